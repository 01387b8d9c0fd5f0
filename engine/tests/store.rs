//! A store on the real disks: what was acknowledged is there after closing, reopening and SIGKILL.
//!
//! The kill test runs this very program again as a child, which commits increments and says on a
//! pipe what was acknowledged; the parent kills it at random moments. A SIGKILL shows recovery
//! and ordering, not durability: what the kernel holds survives it. Durability is shown by the
//! simulator's power cuts, and here by how files are opened (`O_DSYNC`).

mod common;

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use common::{dir, disks};
use dormouse_engine::real::{DiskChoice, RealEnv, block_on};
use dormouse_engine::{Batch, Host, Kind, Limits, ObjectId, Shard, StoreLock};

const SHARDS: u16 = 2;
const OBJECTS: u8 = 16;
const KILLS: usize = 100;

struct Store {
    _lock: StoreLock<RealEnv>,
    shards: Vec<Shard<RealEnv>>,
}

impl Store {
    async fn open(env: &RealEnv) -> Self {
        let limits = Limits { lock_wait: Duration::from_secs(30), ..Limits::PRODUCTION };
        let lock = StoreLock::open_or_create(env, &limits, SHARDS).await.expect("a store");
        let mut shards = Vec::new();
        for number in 0..lock.superblock().shards {
            let opened = Shard::open(env, lock.superblock(), number, limits).await;
            let (shard, recovery) = opened.expect("a shard");
            assert_eq!(recovery.damaged, []);
            shards.push(shard);
        }
        Self { _lock: lock, shards }
    }

    fn shard(&self, id: &ObjectId) -> &Shard<RealEnv> {
        &self.shards[usize::from(id.shard(SHARDS))]
    }

    async fn close(self) {
        for shard in &self.shards {
            shard.close().await.expect("close");
        }
    }
}

fn object(index: u8) -> ObjectId {
    ObjectId::from_bytes([index; 32])
}

fn count_of(contents: &dormouse_engine::Contents) -> u64 {
    let bytes = contents.map.get(&b"count"[..]);
    bytes.map_or(0, |bytes| u64::from_le_bytes(bytes[..].try_into().expect("8 bytes")))
}

#[test]
fn a_closed_store_holds_what_was_committed() {
    for disk in disks() {
        let dir = dir();
        let commit = async |env: RealEnv| {
            let store = Store::open(&env).await;
            let shard = store.shard(&object(1));
            for index in 0..50_u64 {
                let batch = Batch::new().put(format!("key-{index}"), [7; 100]).set_alarm(index + 1);
                shard.commit(&object(1), &batch, None).expect("accepted").await.expect("durable");
            }
            let error = shard.commit(&object(1), &Batch::new().put([0; 3000], ""), None).err();
            assert_eq!(error.and_then(|error| error.code()), Some("key-too-large"));
            store.close().await;
        };
        block_on(dir.path(), disk, commit).expect("a core");
        let check = async |env: RealEnv| {
            let store = Store::open(&env).await;
            let contents = store.shard(&object(1)).load(&object(1)).await.expect("readable");
            assert_eq!((contents.map.len(), contents.alarm), (50, Some(50)));
            store.close().await;
        };
        block_on(dir.path(), disk, check).expect("a core");
    }
}

#[test]
fn a_second_opening_is_refused() {
    let dir = dir();
    let path = dir.path().to_owned();
    let refused = block_on(dir.path(), DiskChoice::Posix, async move |env| {
        let store = Store::open(&env).await;
        let second = std::thread::scope(|scope| {
            let second = || {
                block_on(&path, DiskChoice::Posix, async |env| {
                    let limits =
                        Limits { lock_wait: Duration::from_millis(50), ..Limits::PRODUCTION };
                    StoreLock::open_or_create(&env, &limits, SHARDS).await.err()
                })
            };
            scope.spawn(second).join().expect("no panic").expect("a core")
        });
        store.close().await;
        second.map(|error| (error.kind(), error.message().to_owned()))
    });
    let (kind, message) = refused.expect("a core").expect("refused");
    assert_eq!((kind, message.as_str()), (Kind::Retry, "the store is open elsewhere"));
}

/// Not a test of its own: the child of [`acknowledged_increments_survive_sigkill`].
#[test]
fn child() {
    let Some(arguments) = child_arguments() else { return };
    let (dir, disk) = arguments;
    block_on(Path::new(&dir), disk, async |env| {
        let store = std::rc::Rc::new(Store::open(&env).await);
        for index in 0..OBJECTS {
            let (store, env2) = (store.clone(), env.clone());
            env.spawn("increments", async move { increment(&store, &env2, index).await });
        }
        std::future::pending::<()>().await;
    })
    .expect("a core");
}

#[expect(clippy::disallowed_methods, reason = "how the parent speaks to the child")]
fn child_arguments() -> Option<(String, DiskChoice)> {
    let dir = std::env::var("DORMOUSE_KILL_DIR").ok()?;
    let posix = std::env::var("DORMOUSE_KILL_POSIX").is_ok();
    Some((dir, if posix { DiskChoice::Posix } else { DiskChoice::Uring }))
}

async fn increment(store: &Store, env: &RealEnv, index: u8) {
    let id = object(index);
    let shard = store.shard(&id);
    let mut count = count_of(&shard.load(&id).await.expect("readable"));
    loop {
        count += 1;
        let mut batch = Batch::new().put("count", count.to_le_bytes());
        if index.is_multiple_of(4) {
            // Large writes, so that the kill finds some of them half-way.
            batch = batch.put("large", vec![index; 30_000]);
        }
        shard.commit(&id, &batch, None).expect("accepted").await.expect("durable");
        let mut out = std::io::stdout().lock();
        writeln!(out, "ack {index} {count}").expect("the parent reads");
        out.flush().expect("the parent reads");
        drop(out);
        env.sleep(Duration::from_micros(200)).await;
    }
}

fn kill_test(disk: DiskChoice) {
    let dir = dir();
    let mut acknowledged: BTreeMap<u8, u64> = BTreeMap::new();
    let mut total = 0;
    for round in 0..KILLS {
        let mut command = Command::new(std::env::current_exe().expect("this program"));
        command.args(["--exact", "child", "--nocapture"]).env("DORMOUSE_KILL_DIR", dir.path());
        if disk == DiskChoice::Posix {
            command.env("DORMOUSE_KILL_POSIX", "1");
        }
        let mut child = command.stdout(Stdio::piped()).spawn().expect("a child");
        let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines();
        // Some rounds die soon after opening, some after many commits.
        let wanted = (round * 37) % 40 + 1;
        let mut seen = 0;
        for line in &mut lines {
            seen += note(&mut acknowledged, &line.expect("a line"));
            if seen >= wanted {
                break;
            }
        }
        child.kill().expect("SIGKILL");
        for line in lines {
            seen += note(&mut acknowledged, &line.expect("a line"));
        }
        child.wait().expect("dead");
        assert!(seen >= wanted, "round {round}: the child ended by itself after {seen}");
        total += seen;
    }
    let expected = acknowledged.clone();
    block_on(dir.path(), disk, async move |env| {
        let store = Store::open(&env).await;
        for (index, count) in expected {
            let id = object(index);
            let found = count_of(&store.shard(&id).load(&id).await.expect("readable"));
            assert!(found >= count, "object {index}: {count} acknowledged, {found} found");
        }
        store.close().await;
    })
    .expect("a core");
    println!("{disk:?}: {KILLS} kills, {total} acknowledged, 0 lost");
}

/// Reads one line of a child; 1 if it was an acknowledgement. A line may be cut by the kill.
fn note(acknowledged: &mut BTreeMap<u8, u64>, line: &str) -> usize {
    let mut words = line.split(' ').skip_while(|word| *word != "ack").skip(1);
    let (Some(index), Some(count)) = (words.next(), words.next()) else { return 0 };
    let (Ok(index), Ok(count)) = (index.parse(), count.parse()) else { return 0 };
    let before = acknowledged.insert(index, count).unwrap_or(0);
    assert!(count > before, "object {index} went from {before} to {count}: an increment was lost");
    1
}

#[test]
fn acknowledged_increments_survive_sigkill_on_io_uring() {
    disks().into_iter().filter(|disk| *disk == DiskChoice::Uring).for_each(kill_test);
}

#[test]
fn acknowledged_increments_survive_sigkill_on_the_posix_disk() {
    kill_test(DiskChoice::Posix);
}
