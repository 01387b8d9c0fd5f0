//! What a store of many objects costs: `cargo run --release -p dormouse-benches --example scale --
//! 1000000`. Below target/ it loads that many objects of four keys of 100 bytes each in a child
//! process, kills it in the midst of commits, and prints what opening, looking and idling cost.
//!
//! Heap is the process's anonymous memory, as the kernel counts it; what is mapped is not in it.

#![expect(
    clippy::disallowed_methods,
    reason = "it measures the real thing: clock, files, processes"
)]

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use dormouse_engine::{Batch, Error, ObjectId, Options, Store};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// Commits on their way at a time.
const WINDOW: usize = 4000;
const ROUNDS: usize = 5;

fn id(number: u64) -> ObjectId {
    let mut bytes = [0; 32];
    for (at, word) in (0..).zip(bytes.chunks_exact_mut(8)) {
        let mixed = (number + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(at * 17);
        word.copy_from_slice(&(mixed ^ (mixed >> 31)).to_le_bytes());
    }
    bytes[..8].copy_from_slice(&number.to_le_bytes());
    ObjectId::from_bytes(bytes)
}

fn batch(number: u64) -> Batch {
    let mut value = [0; 100];
    let mut state = number + 1;
    for byte in &mut value {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        *byte = (state >> 56) as u8;
    }
    let batch = Batch::new().named("objects", &format!("object-{number}"));
    (0..4).fold(batch, |batch, key| batch.put(format!("key-{key:08}"), value))
}

fn settle(calls: &mut Vec<dormouse_engine::Call<dormouse_engine::Version>>) -> Result<()> {
    for call in calls.drain(..) {
        call.wait()?;
    }
    Ok(())
}

/// The child: loads, says so, and then commits to one object after another until it is killed.
fn load(dir: &Path, objects: u64) -> Result<()> {
    let store = Store::open(dir, Options::default())?;
    let mut calls = Vec::new();
    for number in 0..objects {
        calls.push(store.object(id(number)).commit(batch(number)));
        if calls.len() == WINDOW {
            settle(&mut calls)?;
        }
    }
    settle(&mut calls)?;
    println!("loaded");
    for number in (0..objects).cycle() {
        let batch = Batch::new().put("key-00000001", [1; 100]);
        calls.push(store.object(id(number * 7919 % objects)).commit(batch));
        if calls.len() == 64 {
            settle(&mut calls)?;
        }
    }
    Ok(())
}

fn status(field: &str) -> Result<u64> {
    let text = std::fs::read_to_string("/proc/self/smaps_rollup")?;
    let line = text.lines().find(|line| line.starts_with(field)).ok_or("no such field")?;
    let kib: u64 = line.split_whitespace().nth(1).ok_or("no figure")?.parse()?;
    Ok(kib * 1024)
}

fn disk_bytes(dir: &Path) -> Result<u64> {
    use std::os::unix::fs::MetadataExt;
    let mut bytes = 0;
    for entry in std::fs::read_dir(dir)? {
        bytes += entry?.metadata()?.blocks() * 512;
    }
    Ok(bytes)
}

fn count(dir: &str) -> Result<usize> {
    Ok(std::fs::read_dir(dir)?.count())
}

/// Drops what the kernel keeps of files; whether it could.
fn drop_caches() -> bool {
    let _ = Command::new("sync").status();
    std::fs::write("/proc/sys/vm/drop_caches", "3").is_ok()
}

fn ms(duration: Duration) -> String {
    format!("{:.1} ms", duration.as_secs_f64() * 1e3)
}

/// Opens the store and reads one object; how long that took.
fn open_and_read(dir: &Path, number: u64) -> Result<(Store, Duration)> {
    let began = Instant::now();
    let store = Store::open(dir, Options::default())?;
    let found = store.object(id(number)).get("key-00000003").wait()?;
    assert_eq!(found.map(|value| value.len()), Some(100));
    Ok((store, began.elapsed()))
}

/// Loads a store in a child and kills it while it commits.
fn load_and_kill(dir: &Path, objects: u64) -> Result<()> {
    let began = Instant::now();
    let mut child = Command::new(std::env::current_exe()?)
        .args(["--load", &objects.to_string()])
        .arg(dir)
        .stdout(Stdio::piped())
        .spawn()?;
    let mut line = String::new();
    BufReader::new(child.stdout.take().ok_or("a pipe")?).read_line(&mut line)?;
    assert_eq!(line.trim(), "loaded");
    let took = began.elapsed();
    println!("load: {objects} objects in {:.1} s", took.as_secs_f64());
    std::thread::sleep(Duration::from_millis(300));
    child.kill()?;
    child.wait()?;
    Ok(())
}

/// Kills a process that commits, again.
fn kill_again(dir: &Path, objects: u64) -> Result<()> {
    let store = Store::open(dir, Options::default())?;
    drop(store);
    let mut child = Command::new(std::env::current_exe()?)
        .args(["--commit", &objects.to_string()])
        .arg(dir)
        .stdout(Stdio::piped())
        .spawn()?;
    std::thread::sleep(Duration::from_millis(600));
    child.kill()?;
    child.wait()?;
    Ok(())
}

fn commit_on(dir: &Path, objects: u64) -> Result<()> {
    let store = Store::open(dir, Options::default())?;
    let mut calls = Vec::new();
    for number in 0.. {
        let batch = Batch::new().put("key-00000002", [2; 100]);
        calls.push(store.object(id(number * 7919 % objects)).commit(batch));
        if calls.len() == 64 {
            settle(&mut calls)?;
        }
    }
    Ok(())
}

fn walk(store: &Store, prefix: &str) -> Result<(u64, Duration)> {
    let began = Instant::now();
    let walk = store.objects().namespace("objects").name_prefix(prefix).blocking();
    let count = walk.map(|object| object.map(drop)).collect::<std::result::Result<Vec<_>, Error>>();
    Ok((count?.len() as u64, began.elapsed()))
}

fn measure(dir: &Path, objects: u64) -> Result<()> {
    let heap_before = status("Anonymous:")?;
    let mut warm = Vec::new();
    for round in 0..ROUNDS as u64 {
        kill_again(dir, objects)?;
        let (store, took) = open_and_read(dir, round * 104_729 % objects)?;
        warm.push(took);
        store.close().wait()?;
    }
    warm.sort();
    println!("open and read one, after SIGKILL, warm: {} … {}", ms(warm[0]), ms(warm[ROUNDS - 1]));
    let mut cold = Vec::new();
    for round in 0..ROUNDS as u64 {
        kill_again(dir, objects)?;
        if !drop_caches() {
            println!("cold: not measured, the caches can't be dropped");
            break;
        }
        let (store, took) = open_and_read(dir, round * 1_299_709 % objects)?;
        cold.push(took);
        store.close().wait()?;
    }
    cold.sort();
    if let (Some(least), Some(most)) = (cold.first(), cold.last()) {
        println!("open and read one, after SIGKILL, cold: {} … {}", ms(*least), ms(*most));
    }
    let (store, _) = open_and_read(dir, 1)?;
    let heap = status("Anonymous:")?.saturating_sub(heap_before);
    println!(
        "heap after opening: {heap} bytes, {:.2} for each object",
        heap as f64 / objects as f64
    );
    println!("descriptors {}, threads {}", count("/proc/self/fd")?, count("/proc/self/task")?);
    let began = Instant::now();
    let stats = store.stats().wait()?;
    println!(
        "stat: {}; {} objects, {} runs, {} segments",
        ms(began.elapsed()),
        stats.total.objects,
        stats.total.runs,
        stats.total.segments
    );
    for prefix in ["object-77", ""] {
        let (count, took) = walk(&store, prefix)?;
        println!("ls by prefix {prefix:?}: {count} objects in {}", ms(took));
    }
    store.close().wait()?;
    let disk = disk_bytes(dir)?;
    println!(
        "disk: {disk} bytes, {:.0} for each object, {:.0} for each key",
        disk as f64 / objects as f64,
        disk as f64 / objects as f64 / 4.0
    );
    Ok(())
}

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["--load", objects, dir] => load(Path::new(dir), objects.parse()?),
        ["--commit", objects, dir] => commit_on(Path::new(dir), objects.parse()?),
        ["--open", number, dir] => {
            let (store, took) = open_and_read(Path::new(dir), number.parse()?)?;
            println!("open and read one: {}", ms(took));
            Ok(store.close().wait()?)
        }
        [objects] => {
            let below = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target");
            let dir = tempfile::tempdir_in(below)?;
            load_and_kill(dir.path(), objects.parse()?)?;
            measure(dir.path(), objects.parse()?)
        }
        _ => Err("usage: scale OBJECTS".into()),
    }
}
