//! The engine by itself, without objects that run: `cargo run -p dormouse-engine --example embed`.
//!
//! Keeps a few chat rooms in a directory: commits and reads, lists, a safe read-modify-write, an
//! alarm, deletes, and a walk over all rooms. Everything here blocks; in async code write `.await`
//! for `.wait()`, and `next().await` for `blocking()`, on whatever runtime you have.

use std::path::Path;

use dormouse_engine::{Batch, Durability, Kind, List, Object, ObjectId, Options, Result, Store};

/// Every object is an ordered map of its own, found by an id of 32 bytes, and has one alarm.
fn room(store: &Store, number: u8) -> Object {
    store.object(ObjectId::from_bytes([number; 32])) // costs nothing; it need not exist
}

fn commit_and_read(store: &Store, said: &mut Vec<String>) -> Result<()> {
    let lobby = room(store, 1);
    // One commit: all of it happens, or nothing. Durable when `wait` returns.
    let mut batch = Batch::new().put("topic", "mice");
    for (number, text) in ["hello", "is this on?", "it is"].iter().enumerate() {
        batch = batch.put(format!("msg:{number:04}"), text);
    }
    lobby.commit(batch).wait()?;
    let topic = lobby.get("topic").wait()?.expect("put above");
    said.push(format!("the lobby's topic: {}", String::from_utf8_lossy(&topic)));
    // A list shows one state, whatever is committed meanwhile.
    for message in lobby.list(List::prefix("msg:").reverse().limit(2)).blocking() {
        let (key, text) = message?;
        let (key, text) = (String::from_utf8_lossy(&key), String::from_utf8_lossy(&text));
        said.push(format!("newest first: {key} {text}"));
    }
    Ok(())
}

/// Adds one visitor. If somebody commits in between, it tries again: nobody is lost.
fn visit(lobby: &Object) -> Result<u32> {
    loop {
        let now = lobby.contents().wait()?;
        let count = now.map.get(&b"visitors"[..]).map_or(0, |bytes| {
            u32::from_le_bytes(bytes[..].try_into().expect("written below, 4 bytes"))
        });
        let next = Batch::new().put("visitors", (count + 1).to_le_bytes()).only_if(now.version);
        match lobby.commit(next).wait() {
            Ok(_) => return Ok(count + 1),
            Err(error) if error.kind() == Kind::Conflict => {}
            Err(error) => return Err(error),
        }
    }
}

fn visit_from_many_threads(store: &Store, said: &mut Vec<String>) -> Result<()> {
    let lobby = room(store, 1);
    std::thread::scope(|scope| {
        let visitors: Vec<_> = (0..4).map(|_| scope.spawn(|| visit(&lobby))).collect();
        visitors.into_iter().try_for_each(|visitor| visitor.join().expect("no panic").map(drop))
    })?;
    said.push(format!("visitors: {}", visit(&lobby)?));
    Ok(())
}

fn set_an_alarm_and_delete(store: &Store, said: &mut Vec<String>) -> Result<()> {
    let lobby = room(store, 1);
    // The alarm is part of the commit. The engine keeps it; `head()` and `objects()` show it.
    lobby.commit(Batch::new().put("open", "yes").set_alarm(4_102_444_800_000)).wait()?;
    let (_version, alarm) = lobby.head().wait()?;
    said.push(format!("the alarm, in ms since 1970: {}", alarm.expect("set above")));
    said.push(format!("messages deleted: {}", lobby.delete_prefix("msg:").wait()?));
    Ok(())
}

fn fill_without_waiting(dir: &Path, said: &mut Vec<String>) -> Result<()> {
    // Commits are answered before they are on the device; a flush makes all of them durable, and
    // tells of one that failed after it was answered.
    let options = Options { durability: Durability::OnFlush, ..Options::default() };
    let store = Store::open(dir, options)?;
    for number in 2..12 {
        room(&store, number).commit(Batch::new().put("topic", "cheese")).wait()?;
    }
    room(&store, 2).delete().wait()?; // all its keys, and its alarm
    store.flush().wait()?;
    let (mut rooms, mut alarms) = (0, 0);
    for object in store.objects().blocking() {
        rooms += 1;
        alarms += u32::from(object?.alarm.is_some());
    }
    said.push(format!("rooms: {rooms}, with an alarm: {alarms}"));
    let stats = store.stats().wait()?;
    said.push(format!("as counted: {} in {} shards", stats.total.objects, stats.shards.len()));
    store.close().wait() // flushes too
}

/// Does all of it in `dir`, and says what it did.
pub(crate) fn run(dir: &Path) -> Result<Vec<String>> {
    let mut said = Vec::new();
    let store = Store::open(dir, Options { shards: Some(2), ..Options::default() })?;
    commit_and_read(&store, &mut said)?;
    visit_from_many_threads(&store, &mut said)?;
    set_an_alarm_and_delete(&store, &mut said)?;
    store.close().wait()?;
    fill_without_waiting(dir, &mut said)?;
    Ok(said)
}

#[allow(dead_code, reason = "the test of this example calls `run`")]
fn main() -> Result<()> {
    let dir = std::env::temp_dir().join(format!("dormouse-embed-{}", std::process::id()));
    run(&dir)?.iter().for_each(|line| println!("{line}"));
    std::fs::remove_dir_all(dir).expect("it was made above");
    Ok(())
}
