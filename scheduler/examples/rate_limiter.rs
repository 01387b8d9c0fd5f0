//! A rate limiter: one object for each key, wherever it is asked from.
//! `cargo run -p dormouse-scheduler --example rate_limiter -- [DIR]`
//!
//! A key is who or what is limited: an address, an account, an account and a path. Its object keeps
//! one number. It needs no lock, for it does one thing at a time; no cleaning, for an alarm forgets
//! it when there is nothing to remember; and it is as exact after a restart as before.

use std::path::Path;
use std::time::Duration;

use dormouse_scheduler::prelude::*;

/// So many at once, and then one each `every_ms` milliseconds.
#[derive(Clone, Copy)]
struct Rule {
    burst: u32,
    every_ms: u64,
}

struct Limiter {
    state: State,
}

impl DurableObject for Limiter {
    fn new(state: State) -> Self {
        Self { state }
    }

    /// The burst is whole again: as if nobody had ever come.
    async fn alarm(&self, _info: AlarmInfo) -> Result<()> {
        self.state.storage().delete_all().await
    }
}

/// Asks for one. The answer is how long to wait, if it is refused.
struct Take(Rule);

impl Handler<Take> for Limiter {
    type Reply = Result<(), Duration>;

    async fn handle(&self, Take(rule): Take) -> Result<Self::Reply> {
        let (storage, now) = (self.state.storage(), self.state.now_ms());
        let ahead_max = rule.every_ms * u64::from(rule.burst);
        // What was taken is paid for by time; this is when all of it will be.
        let paid_at: u64 = storage.get("paid at").await?.unwrap_or(0);
        let next = paid_at.clamp(now, now + ahead_max) + rule.every_ms;
        if next > now + ahead_max {
            return Ok(Err(Duration::from_millis(next - now - ahead_max)));
        }
        storage.put("paid at", &next).await?; // nobody else is let in between
        storage.set_alarm(At(next)).await?; // in the same commit
        Ok(Ok(()))
    }
}

/// Asks how many values are kept.
struct Kept;

impl Handler<Kept> for Limiter {
    type Reply = usize;

    async fn handle(&self, _kept: Kept) -> Result<usize> {
        Ok(self.state.storage().list_bytes(&List::default()).await?.len())
    }
}

fn main() -> Result<()> {
    let dir = std::env::args().nth(1).unwrap_or_else(|| "target/rate_limiter".to_owned());
    run(dir)?.iter().for_each(|line| println!("{line}"));
    Ok(())
}

/// What happened, line by line.
pub(crate) fn run(dir: impl AsRef<Path>) -> Result<Vec<String>> {
    let start = || Runtime::builder(&dir).namespace::<Limiter>("limiters").start();
    let mut said = Vec::new();
    let runtime = start()?;
    let limiters = runtime.namespace::<Limiter>();
    let slow = Rule { burst: 5, every_ms: 60_000 };
    let takes = |key: &str, times| -> Result<usize> {
        // All on their way at once: each gets its own answer.
        let limiter = limiters.get_by_name(key);
        let calls: Vec<_> = (0..times).map(|_| limiter.call(Take(slow))).collect();
        let answers: Result<Vec<_>> = calls.into_iter().map(|call| call.wait()).collect();
        Ok(answers?.iter().filter(|answer| answer.is_ok()).count())
    };
    said.push(format!("ann: {} of 8 taken", takes("ann", 8)?));
    said.push(format!("ben, who is another object: {} of 3 taken", takes("ben", 3)?));
    let refused = limiters.get_by_name("ann").call(Take(slow)).wait()?;
    let wait = refused.expect_err("five were taken");
    said.push(format!("ann is to wait up to a minute: {}", wait.as_millis() <= 60_000));
    runtime.close()?;

    let runtime = start()?;
    let limiters = runtime.namespace::<Limiter>();
    let refused = limiters.get_by_name("ann").call(Take(slow)).wait()?;
    said.push(format!(
        "after a restart: {}",
        if refused.is_err() { "still to wait" } else { "taken" }
    ));

    // Who waits as long as is said gets one, and is forgotten soon after.
    let quick = Rule { burst: 1, every_ms: 100 };
    let eve = limiters.get_by_name("eve");
    for _ in 0..2 {
        while let Err(wait) = eve.call(Take(quick)).wait()? {
            pause(wait);
        }
        said.push("eve: taken".to_owned());
    }
    while eve.call(Kept).wait()? > 0 {
        pause(Duration::from_millis(quick.every_ms));
    }
    said.push("eve is forgotten".to_owned());
    runtime.close()?;
    Ok(said)
}

#[expect(clippy::disallowed_methods, reason = "a client's own thread")]
fn pause(time: Duration) {
    std::thread::sleep(time);
}
