//! Large objects in memory: what is not asked for is not read, what is read is kept within a bound, and
//! what one event reads and writes stays together though it has to wait.

use dormouse_cache::CacheLimits;
use dormouse_engine::call::wait;
use dormouse_scheduler::StackLimits;
use dormouse_scheduler::prelude::*;

/// Keys of an object that is large many times over.
const KEYS: u64 = 20_000;
const VALUE: [u8; 100] = [7; 100];

struct Ledger(State);

impl DurableObject for Ledger {
    fn new(state: State) -> Self {
        Self(state)
    }
}

enum Ask {
    /// Writes the keys from this one to before the other one.
    Fill(u64, u64),
    /// Bytes of the value of a key.
    Get(u64),
    /// The number of the first, or the last, key, and how many come along.
    List(bool, i64),
    /// Adds one to the number that is kept for a key.
    Add(u64),
    /// Whether a key was there that is gone now.
    Delete(u64),
}

fn key(number: u64) -> String {
    format!("{number:06}")
}

impl Handler<Ask> for Ledger {
    type Reply = (u64, usize);

    async fn handle(&self, ask: Ask) -> Result<(u64, usize)> {
        let storage = self.0.storage();
        match ask {
            Ask::Fill(from, to) => {
                for number in from..to {
                    storage.put_bytes(&key(number), VALUE.to_vec()).await?;
                }
                Ok((to - from, 0))
            }
            Ask::Get(number) => {
                let value = storage.get_bytes(&key(number)).await?;
                Ok((value.map_or(0, |value| value.len() as u64), 0))
            }
            Ask::List(last, limit) => {
                let list = List::all().limit(limit);
                let list = if last { list.reverse() } else { list };
                let found = storage.list_bytes(&list).await?;
                let first = found.first().map_or(0, |(key, _)| key.parse().expect("a number"));
                Ok((first, found.len()))
            }
            Ask::Add(number) => {
                let name = format!("count {number}");
                let count = storage.get::<u64>(&name).await?.unwrap_or(0) + 1;
                storage.put(&name, &count).await?;
                Ok((count, 0))
            }
            Ask::Delete(number) => Ok((u64::from(storage.delete(&key(number)).await?), 0)),
        }
    }
}

fn start(dir: &tempfile::TempDir, limits: StackLimits) -> Runtime {
    let builder = Runtime::builder(dir).cores(1).limits(limits);
    builder.namespace::<Ledger>("ledgers").start().expect("started")
}

fn filled(dir: &tempfile::TempDir) {
    let runtime = start(dir, StackLimits::PRODUCTION);
    let stub = runtime.namespace::<Ledger>().get_by_name("one");
    for from in (0..KEYS).step_by(1000) {
        stub.call(Ask::Fill(from, from + 1000)).wait().expect("written");
    }
    runtime.close().expect("closed");
}

fn bytes_of(stub: &Stub<Ledger>) -> usize {
    wait(stub.resident()).expect("answered").expect("in memory").bytes
}

#[test]
fn of_a_large_object_what_is_asked_for_is_in_memory() {
    let dir = tempfile::tempdir().expect("a directory");
    filled(&dir);
    let runtime = start(&dir, StackLimits::PRODUCTION);
    let stub = runtime.namespace::<Ledger>().get_by_name("one");
    let ask = |ask| stub.call(ask).wait().expect("answered");
    assert_eq!(ask(Ask::Get(12_345)).0, 100);
    assert_eq!(ask(Ask::Get(KEYS)).0, 0);
    assert_eq!(ask(Ask::List(true, 10)), (KEYS - 1, 10));
    assert_eq!(ask(Ask::Delete(77)).0, 1);
    assert_eq!(ask(Ask::Delete(77)).0, 0);
    assert!(bytes_of(&stub) < 32 << 10, "{}", bytes_of(&stub));
    assert_eq!(ask(Ask::List(false, i64::MAX)), (0, 19_999));
    assert!(bytes_of(&stub) > 2 << 20, "it is there as a whole: {}", bytes_of(&stub));
    runtime.close().expect("closed");
}

#[test]
fn what_an_event_reads_and_writes_stays_together() {
    let dir = tempfile::tempdir().expect("a directory");
    filled(&dir);
    let cache = CacheLimits { kept_bytes_max: 2000, ..CacheLimits::PRODUCTION };
    let runtime = start(&dir, StackLimits { cache, ..StackLimits::PRODUCTION });
    let stub = runtime.namespace::<Ledger>().get_by_name("one");
    for round in 1..=8 {
        // Each number is read, and read again after others have pushed it out.
        let calls: Vec<_> = (0..64).map(|call| stub.call(Ask::Add(call % 4))).collect();
        let counts: Vec<u64> =
            calls.into_iter().map(|call| call.wait().expect("added").0).collect();
        assert_eq!(counts.iter().max(), Some(&(16 * round)), "none is lost");
        assert_eq!(stub.call(Ask::Get(round * 100)).wait().expect("read").0, 100);
        assert_eq!(stub.call(Ask::List(false, 40)).wait().expect("listed").1, 40);
        assert!(bytes_of(&stub) < 64 << 10, "{}", bytes_of(&stub));
    }
    runtime.close().expect("closed");
}
