//! An object for each user: what belongs to one is in one place, and nobody else's load touches it.
//! `cargo run -p dormouse-scheduler --example per_user -- [DIR]`
//!
//! Users have a profile and an inbox, and write to each other. There is no database to connect to,
//! no table of all users, and no lock: each object has its own store, and does one thing at a time.

use std::path::Path;

use dormouse_engine::call::wait; // in async code: .await
use dormouse_scheduler::prelude::*;
use serde::{Deserialize, Serialize};

struct User {
    state: State,
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct Profile {
    full_name: String,
    credits: u64,
}

#[derive(Serialize, Deserialize)]
struct Letter {
    from: String,
    text: String,
}

impl DurableObject for User {
    fn new(state: State) -> Self {
        Self { state }
    }

    /// `GET /` shows the profile; `PUT /` with a name sets it.
    async fn fetch(&self, request: Request) -> Result<Response> {
        let mut profile = self.profile().await?;
        if request.method() == "PUT" {
            profile.full_name = request.into_body().text().await?;
            self.state.storage().put("profile", &profile).await?;
        }
        Response::json(&profile) // leaves when it is durable
    }
}

impl User {
    async fn profile(&self) -> Result<Profile> {
        Ok(self.state.storage().get("profile").await?.unwrap_or_default())
    }
}

/// Adds to a user's credits; gives how many there are then.
struct Earn(u64);

impl Handler<Earn> for User {
    type Reply = u64;

    async fn handle(&self, Earn(more): Earn) -> Result<u64> {
        // Safe as it stands: while it waits for storage no other call is let in.
        let mut profile = self.profile().await?;
        profile.credits += more;
        self.state.storage().put("profile", &profile).await?;
        Ok(profile.credits)
    }
}

/// Writes to another user: a letter costs ten credits.
struct Write(&'static str, &'static str);

impl Handler<Write> for User {
    type Reply = bool;

    async fn handle(&self, Write(to, text): Write) -> Result<bool> {
        let from = self.state.id().name().unwrap_or_default().to_owned();
        // All of it, or nothing.
        let paid = self.state.storage().transaction(async |txn| {
            let mut profile: Profile = txn.get("profile").await?.unwrap_or_default();
            let Some(left) = profile.credits.checked_sub(10) else { return Ok(false) };
            profile.credits = left;
            txn.put("profile", &profile).await?;
            txn.put("last letter to", &to).await?;
            Ok(true)
        });
        if !paid.await? {
            return Ok(false);
        }
        // Leaves when what was paid is durable. Meanwhile others may call this object.
        let other = self.state.namespace::<Self>().get_by_name(to);
        other.call(Deliver(Letter { from, text: text.to_owned() })).await?;
        Ok(true)
    }
}

struct Deliver(Letter);

impl Handler<Deliver> for User {
    type Reply = ();

    async fn handle(&self, Deliver(letter): Deliver) -> Result<()> {
        let storage = self.state.storage();
        let number = storage.get::<u64>("letters").await?.unwrap_or(0) + 1;
        storage.put("letters", &number).await?;
        storage.put(&format!("inbox:{number:08}"), &letter).await // in the same commit
    }
}

struct Inbox;

impl Handler<Inbox> for User {
    type Reply = Vec<Letter>;

    async fn handle(&self, _inbox: Inbox) -> Result<Vec<Letter>> {
        let newest = List::prefix("inbox:").reverse().limit(10);
        let letters: Vec<(String, Letter)> = self.state.storage().list(&newest).await?;
        Ok(letters.into_iter().map(|(_, letter)| letter).collect())
    }
}

fn main() -> Result<()> {
    let dir = std::env::args().nth(1).unwrap_or_else(|| "target/per_user".to_owned());
    run(dir)?.iter().for_each(|line| println!("{line}"));
    Ok(())
}

/// What happened, line by line.
pub(crate) fn run(dir: impl AsRef<Path>) -> Result<Vec<String>> {
    let runtime = Runtime::builder(dir).namespace::<User>("users").start()?;
    let users = runtime.namespace::<User>();
    let (ann, ben) = (users.get_by_name("ann"), users.get_by_name("ben"));
    let mut said = Vec::new();
    let put = Request::put("/").body("Ann of the hedge")?;
    let shown = wait(ann.fetch(put).wait()?.into_body().text())?;
    said.push(format!("ann is {shown}"));
    // A thousand calls on their way at once: none is lost.
    let before = ann.call(Earn(0)).wait()?;
    let calls: Vec<_> = (0..1000).map(|_| ann.call(Earn(1))).collect();
    calls.into_iter().try_for_each(|call| call.wait().map(drop))?;
    said.push(format!("ann earned {}", ann.call(Earn(0)).wait()? - before));
    said.push(format!("ann wrote to ben: {}", ann.call(Write("ben", "come over")).wait()?));
    said.push(format!("ben could write to ann: {}", ben.call(Write("ann", "soon")).wait()?));
    let newest = ben.call(Inbox).wait()?;
    said.push(format!("{} wrote to ben: {}", newest[0].from, newest[0].text));
    said.push(format!("ann got {} letters", ann.call(Inbox).wait()?.len()));
    runtime.close()?;
    Ok(said)
}
