//! Who says too much: one object for each address that clients come from, whatever room they are in.

use std::time::Duration;

use dormouse_scheduler::prelude::*;

/// What an action costs of the time that an address may be ahead of the clock.
const COST_MS: u64 = 1000;
/// So many milliseconds ahead: twenty actions at once, then one a second.
const AHEAD_MS: u64 = 20_000;
/// How long an address is remembered that does nothing.
const REMEMBERED: Duration = Duration::from_secs(60);

pub(crate) struct RateLimiter {
    state: State,
}

/// Asks whether one more action is allowed; the answer is how long to wait, if it is not.
pub(crate) struct Act;

impl DurableObject for RateLimiter {
    fn new(state: State) -> Self {
        Self { state }
    }

    /// Forgets an address that has done nothing for a while.
    async fn alarm(&self, _info: AlarmInfo) -> Result<()> {
        let ahead: u64 = self.state.storage().get("ahead").await?.unwrap_or(0);
        match ahead > self.state.now_ms() {
            true => self.state.storage().set_alarm(In(REMEMBERED)).await,
            false => self.state.storage().delete_all().await,
        }
    }
}

impl Handler<Act> for RateLimiter {
    type Reply = Option<Duration>;

    async fn handle(&self, _act: Act) -> Result<Option<Duration>> {
        let (storage, now) = (self.state.storage(), self.state.now_ms());
        let ahead: u64 = storage.get("ahead").await?.unwrap_or(0);
        // Not further than it can be, also if the clock was set back.
        let next = ahead.clamp(now, now + AHEAD_MS) + COST_MS;
        if next > now + AHEAD_MS {
            return Ok(Some(Duration::from_millis(next - now - AHEAD_MS)));
        }
        // After a crash one may be a little too generous, but nobody waits for the disk.
        storage.put_with("ahead", &next, Write::allow_unconfirmed()).await?;
        if storage.get_alarm().await?.is_none() {
            storage.set_alarm_with(In(REMEMBERED), Write::allow_unconfirmed()).await?;
        }
        Ok(None)
    }
}
