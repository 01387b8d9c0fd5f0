//! Workloads of the engine: one shard on one core.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use dormouse_engine::real::{DiskChoice, RealEnv, block_on};
use dormouse_engine::signal::Signal;
use dormouse_engine::{Batch, Env, Limits, ObjectId, Shard, StoreLock};
use futures_util::future::join_all;

use crate::rounds::{Rounds, Span};
use crate::scratch;

/// Those of use; but no close record comes between two commits.
pub const LIMITS: Limits = Limits { quiet: Duration::from_secs(3600), ..Limits::PRODUCTION };
/// With these a few megabytes are enough for runs of the directory, as a large store has them.
/// The cleaner has nothing to do: it would write while reads are counted.
const UNCLEANED: Limits = Limits { space_slack_bytes: 1 << 40, ..LIMITS };
const LOADING: Limits =
    Limits { checkpoint_bytes: 256 << 10, replay_bytes_max: 512 << 10, ..LIMITS };
/// Objects of which [`activations`] reads one after the other.
const OBJECTS: u64 = 4000;
/// Keys of an object.
pub const KEYS: u32 = 4;

/// A key of 12 bytes.
pub fn key(number: u32) -> [u8; 12] {
    let mut key = *b"key-00000000";
    let mut rest = number;
    for digit in key[4..].iter_mut().rev() {
        *digit = b'0' + u8::try_from(rest % 10).expect("a digit");
        rest /= 10;
    }
    key
}

/// A value of 100 bytes, another one for each number up to 250.
pub fn value(number: u64) -> [u8; 100] {
    [u8::try_from(number % 251).expect("less than 251"); 100]
}

/// The object of this number.
pub fn object(number: u64) -> ObjectId {
    let mut bytes = [0xb0; 32];
    bytes[..8].copy_from_slice(&number.to_le_bytes());
    ObjectId::from_bytes(bytes)
}

/// Runs `main` on a core of its own, in a directory of its own.
pub fn on_core<T: Send + 'static, F: Future<Output = T> + 'static>(
    disk: DiskChoice,
    main: impl FnOnce(RealEnv) -> F + Send + 'static,
) -> T {
    let dir = scratch();
    block_on(dir.path(), disk, main).expect("a core")
}

/// Opens a store of one shard, made if it is not there, and closes it afterwards.
pub async fn with_shard<E: Env, T>(
    env: &E,
    limits: Limits,
    visit: impl AsyncFnOnce(&Shard<E>) -> T,
) -> T {
    let lock = StoreLock::open_or_create(env, &limits, 1).await.expect("a store");
    let (shard, _) = Shard::open(env, lock.superblock(), 0, limits).await.expect("a shard");
    let result = visit(&shard).await;
    shard.close().await.expect("closed");
    result
}

/// Rounds of one durable commit of one key by each of `clients` tasks, each to an object of its own
/// that nobody holds in memory. The first task reads.
pub async fn commits<E: Env, R: 'static>(
    env: &E,
    shard: &Shard<E>,
    clients: u64,
    rounds: Rounds,
    read: fn() -> R,
) -> Span<R> {
    let ended = Rc::new((RefCell::new(Vec::new()), Signal::default()));
    for client in 0..clients {
        let (shard, ended, id) = (shard.clone(), ended.clone(), object(client));
        env.spawn("client", async move {
            let commit = async |round| {
                let batch = Batch::new().put(key(0), value(round));
                shard.commit(&id, &batch, None).expect("accepted").await.expect("durable");
            };
            let span = match client {
                0 => Some(rounds.span(read, commit).await),
                _ => {
                    rounds.span(|| (), commit).await;
                    None
                }
            };
            ended.0.borrow_mut().push(span);
            ended.1.notify();
        });
    }
    let all = usize::try_from(clients).expect("few");
    ended.1.until(|| (ended.0.borrow().len() == all).then_some(())).await;
    ended.0.take().into_iter().flatten().next().expect("the first task reads")
}

async fn load<E: Env>(shard: &Shard<E>, numbers: std::ops::Range<u64>) {
    let commits = numbers.map(|number| {
        let put = |batch: Batch, at| batch.put(key(at), value(number));
        let batch = (0..KEYS).fold(Batch::new(), put);
        shard.commit(&object(number), &batch, None).expect("accepted")
    });
    for commit in join_all(commits).await {
        commit.expect("durable");
    }
}

/// Rounds of one object that is not in memory, read whole. Most entries of the directory are in runs.
pub async fn activations<E: Env, R>(env: &E, rounds: Rounds, read: fn() -> R) -> Span<R> {
    for first in (0..OBJECTS).step_by(500) {
        // Closing ends the checkpoint, so that there are the same runs each time.
        with_shard(env, LOADING, async |shard| load(shard, first..first + 500).await).await;
    }
    with_shard(env, UNCLEANED, async |shard| {
        assert!(shard.stats().runs > 0);
        let activate = async |round: u64| {
            let contents = shard.load(&object(round * 7919 % OBJECTS)).await.expect("an object");
            assert_eq!(contents.map.len(), KEYS as usize);
        };
        rounds.span(read, activate).await
    })
    .await
}
