//! Filling, writing over, and reading all of a store, each by some threads that wait for every commit.

use std::ops::Range;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use dormouse_engine::{Batch, List, Store};

use crate::Result;
use crate::data::{CLASSES, Object, Plan, Random, key, stamp, value};
use crate::samples::{self, Sample};

/// How often a sample is taken.
const EVERY: Duration = Duration::from_millis(250);

/// Told of what is durable: keys that were written once more, and bytes of their values.
pub(crate) type Told<'a> = &'a (dyn Fn(Range<usize>, u64) -> Result<()> + Sync);

/// How the store is written over.
pub(crate) struct Run {
    pub(crate) threads: usize,
    /// Bytes of values that are written.
    pub(crate) goal: u64,
    pub(crate) seed: u64,
}

/// One commit that writes some neighbouring keys of an object once more; what was there of it before goes with `anew`.
/// Gives the bytes of their values.
fn commit(
    store: &Store,
    object: &Object,
    keys: Range<usize>,
    anew: bool,
    stamps: &mut [u64],
    told: Told<'_>,
) -> Result<u64> {
    let slots = object.first + keys.start..object.first + keys.end;
    let empty = Batch::new().named("soak", "object");
    let empty = if anew { empty.delete_all() } else { empty };
    let mut bytes = 0;
    let batch = keys.fold(empty, |batch, number| {
        let slot = object.first + number;
        let value = value(slot, object.class, stamps[number] + 1);
        bytes += value.len() as u64;
        batch.put(key(number), value)
    });
    store.object(object.id).commit(batch).wait()?;
    let written = slots.start - object.first..slots.end - object.first;
    stamps[written].iter_mut().for_each(|stamp| *stamp += 1);
    told(slots, bytes)?;
    Ok(bytes)
}

/// Runs `work` on each thread's part of the plan, with the stamps of each of its objects.
fn on_threads<T: Send>(
    plan: &Plan,
    stamps: &mut [u64],
    threads: usize,
    work: impl Fn(usize, Vec<(Object, &mut [u64])>) -> Result<T> + Sync,
) -> Result<Vec<T>> {
    let mut parts: Vec<Vec<(Object, &mut [u64])>> = (0..threads).map(|_| Vec::new()).collect();
    let mut rest = stamps;
    for (number, object) in plan.objects().iter().enumerate() {
        let (mine, after) = rest.split_at_mut(object.keys());
        rest = after;
        parts[number % threads].push((*object, mine));
    }
    let work = &work;
    std::thread::scope(|scope| {
        let each = |(thread, part)| scope.spawn(move || work(thread, part));
        let running: Vec<_> = parts.into_iter().enumerate().map(each).collect();
        running.into_iter().map(|thread| thread.join().expect("no panic")).collect()
    })
}

/// Writes each key that was never written.
pub(crate) fn fill(
    store: &Store,
    plan: &Plan,
    stamps: &mut [u64],
    threads: usize,
    told: Told<'_>,
) -> Result<()> {
    on_threads(plan, stamps, threads, |_, part| {
        for (object, stamps) in part {
            // All of an object in one commit, so that a key that is not there says that none is.
            if stamps.iter().all(|stamp| *stamp == 0) {
                commit(store, &object, 0..object.keys(), false, stamps, told)?;
            }
        }
        Ok(())
    })
    .map(drop)
}

/// The objects of one thread, by class, those that are hot first, with the stamps of their keys.
type Part<'a> = [Vec<(Object, &'a mut [u64])>; CLASSES.len()];

/// Something to write: half of the commits go to a tenth of the objects.
fn next(random: &mut Random, part: &Part<'_>) -> Option<(usize, usize, Range<usize>, bool)> {
    let mut percent = random.below(100);
    let class = CLASSES.iter().position(|class| {
        let chosen = percent < class.commits;
        percent = percent.saturating_sub(class.commits);
        chosen
    })?;
    let objects = part[class].len() as u64;
    let among = if random.below(2) == 0 { objects.div_ceil(10) } else { objects };
    let object = usize::try_from(random.below(among.max(1))).ok()?;
    let (keys, anew) = (CLASSES[class].keys, random.below(CLASSES[class].anew) == 0);
    let first = usize::try_from(random.below(keys as u64)).ok()?;
    let keys = if anew { 0..keys } else { first..first + 1 };
    (objects > 0).then_some((class, object, keys, anew))
}

/// What the threads have done since the last sample, and in all.
#[derive(Default)]
struct Meter {
    bytes: AtomicU64,
    micros: Mutex<Vec<u32>>,
    ended: AtomicBool,
}

/// Writes over the store until the goal is reached; `take` gets samples meanwhile.
pub(crate) fn overwrite(
    store: &Store,
    plan: &Plan,
    stamps: &mut [u64],
    run: &Run,
    dir: &Path,
    mut take: impl FnMut(Sample) -> Result<()>,
    told: Told<'_>,
) -> Result<()> {
    let meter = &Meter::default();
    std::thread::scope(|scope| {
        let writing = scope.spawn(move || {
            let written = on_threads(plan, stamps, run.threads, |thread, part| {
                let written = write(store, part, thread, run, meter, told);
                // Nobody waits for a thread that has failed.
                if written.is_err() {
                    meter.bytes.fetch_add(run.goal, Ordering::Relaxed);
                }
                written
            });
            meter.ended.store(true, Ordering::Release);
            written.map(drop)
        });
        let began = Instant::now();
        let mut last = began;
        while !meter.ended.load(Ordering::Acquire) {
            std::thread::sleep(EVERY);
            let micros =
                std::mem::take(&mut *meter.micros.lock().expect("no code panics under it"));
            let since = last.elapsed();
            last = Instant::now();
            let written = meter.bytes.load(Ordering::Relaxed);
            let live = store.stats().wait()?.total.live_bytes;
            take(samples::sample(dir, began.elapsed(), written, live, since, micros)?)?;
        }
        writing.join().expect("no panic")
    })
}

fn write(
    store: &Store,
    all: Vec<(Object, &mut [u64])>,
    thread: usize,
    run: &Run,
    meter: &Meter,
    told: Told<'_>,
) -> Result<()> {
    let mut part: Part<'_> = Default::default();
    all.into_iter().for_each(|(object, stamps)| part[object.class].push((object, stamps)));
    let mut random = Random::new(run.seed << 16 | thread as u64);
    while meter.bytes.load(Ordering::Relaxed) < run.goal {
        let Some((class, object, keys, anew)) = next(&mut random, &part) else { continue };
        let (object, stamps) = &mut part[class][object];
        let began = Instant::now();
        let bytes = commit(store, object, keys, anew, stamps, told)?;
        let micros = u32::try_from(began.elapsed().as_micros()).unwrap_or(u32::MAX);
        meter.bytes.fetch_add(bytes, Ordering::Relaxed);
        meter.micros.lock().expect("no code panics under it").push(micros);
    }
    Ok(())
}

/// Reads every key; how often each was written, 0 if it is not there.
///
/// Errors: a value that was never written to its key, or a key that nobody wrote.
pub(crate) fn read_all(store: &Store, plan: &Plan, threads: usize) -> Result<Vec<u64>> {
    let mut found = vec![0; plan.slots()];
    on_threads(plan, &mut found, threads, |_, part| {
        for (object, stamps) in part {
            let expected: Vec<String> = (0..object.keys()).map(key).collect();
            for pair in store.object(object.id).list(List::all()).blocking() {
                let (key, value) = pair?;
                let number = expected.iter().position(|known| known.as_bytes() == key);
                let number = number.ok_or_else(|| format!("{} has a key {key:?}", object.id))?;
                let slot = object.first + number;
                stamps[number] = stamp(slot, object.class, &value)
                    .ok_or_else(|| format!("{} key {number}: never written", object.id))?;
            }
        }
        Ok(())
    })?;
    Ok(found)
}
