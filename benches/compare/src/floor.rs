//! The floors: what this disk and these cores do at best, measured in every round.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::hint::black_box;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use bytes::Bytes;

use crate::context::Context;
use crate::data::{self, HOT_KEYS, KEYS, Rng};
use crate::machine;
use crate::stats::{Timing, Window, closed_loop};
use crate::workloads::reads::{self, HOT_OBJECTS};

const FILE_BYTES: usize = 64 << 20;

/// A buffer that starts where direct I/O wants it.
struct Aligned {
    bytes: Vec<u8>,
    start: usize,
    length: usize,
}

impl Aligned {
    fn new(length: usize, rng: &mut Rng) -> Self {
        let mut bytes = vec![0; length + 4096];
        bytes.chunks_mut(8).for_each(|chunk| {
            chunk.copy_from_slice(&rng.next().to_le_bytes()[..chunk.len()]);
        });
        let start = bytes.as_ptr().align_offset(4096);
        Self { bytes, start, length }
    }

    fn get(&mut self) -> &mut [u8] {
        &mut self.bytes[self.start..self.start + self.length]
    }
}

fn flag(flags: rustix::fs::OFlags) -> i32 {
    flags.bits().cast_signed()
}

/// Opens a file for direct, synchronous writes whose blocks are all written already.
fn prewritten(path: &Path, rng: &mut Rng) -> Result<File> {
    let mut file = File::create(path)?;
    let mut block = Aligned::new(1 << 20, rng);
    for _ in 0..FILE_BYTES >> 20 {
        std::io::Write::write_all(&mut file, block.get())?;
    }
    file.sync_all()?;
    drop(file);
    let flags = flag(rustix::fs::OFlags::DIRECT | rustix::fs::OFlags::DSYNC);
    let direct = OpenOptions::new().read(true).write(true).custom_flags(flags).open(path);
    direct.context("a file system with direct writes")
}

/// Measures all floors of one round.
pub(crate) fn measure(context: &mut Context) -> Result<()> {
    let dir = context.dir();
    std::fs::create_dir_all(&dir)?;
    let path = dir.join("file");
    let mut rng = context.rng();
    let file = prewritten(&path, &mut rng)?;
    let (time, cpu) = (context.settings.measure, context.device.cpu);
    for (workload, bytes) in [("floor-write", 4 << 10), ("floor-write-16k", 16 << 10)] {
        let seed = rng.next();
        let timing = alone(cpu, || writes(&file, bytes, time, seed))?;
        context.record_timing(workload, &timing);
        context.record(workload, "p999", timing.quantile_us(0.999));
    }
    let seed = rng.next();
    let timing = alone(cpu, || uring_writes(&path, time, seed))?;
    context.record_timing("floor-uring", &timing);
    let timing = alone(cpu, || random_reads(&file, time, seed))?;
    context.record_timing("floor-read", &timing);
    let timing = reads_by_many(&file, 32, time)?;
    context.record_timing("floor-read-32", &timing);
    Ok(())
}

/// Runs `work` on a thread of its own on the disk's core.
fn alone<T: Send>(cpu: Option<usize>, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            machine::pin(cpu);
            work()
        });
        thread.join().unwrap_or_else(|_| anyhow::bail!("a thread of the floor panicked"))
    })
}

fn writes(file: &File, bytes: usize, time: Duration, seed: u64) -> Result<Timing> {
    let mut rng = Rng::new(seed);
    let mut block = Aligned::new(bytes, &mut rng);
    let mut at = 0;
    closed_loop(time, || {
        block.get()[..8].copy_from_slice(&rng.next().to_le_bytes());
        file.write_all_at(block.get(), at as u64)?;
        at = (at + bytes) % FILE_BYTES;
        Ok(1)
    })
}

fn uring_writes(path: &Path, time: Duration, seed: u64) -> Result<Timing> {
    let flags = flag(rustix::fs::OFlags::DIRECT | rustix::fs::OFlags::DSYNC);
    let file = OpenOptions::new().write(true).custom_flags(flags).open(path)?;
    let mut rng = Rng::new(seed);
    tokio_uring::start(async move {
        let file = tokio_uring::fs::File::from_std(file);
        let mut block = Block(Aligned::new(4096, &mut rng));
        let mut at = 0;
        let window = Window::new(time);
        let (mut timing, mut before) = (Timing::new(), Instant::now());
        while before < window.end {
            block.0.get()[..8].copy_from_slice(&rng.next().to_le_bytes());
            let (written, back) = file.write_at(block, at).submit().await;
            anyhow::ensure!(written? == 4096, "a short write");
            block = back;
            at = (at + 4096) % FILE_BYTES as u64;
            let now = Instant::now();
            if before >= window.warm {
                timing.record(now - before, 1);
                timing.elapsed += now - before;
            }
            before = now;
        }
        file.close().await?;
        Ok(timing)
    })
}

/// An aligned buffer that the ring may own for a while.
struct Block(Aligned);

#[expect(unsafe_code, reason = "the ring's interface to buffers")]
// SAFETY: the buffer is on the heap and stays where it is while the value moves; all of it is
// initialized.
unsafe impl tokio_uring::buf::IoBuf for Block {
    fn stable_ptr(&self) -> *const u8 {
        self.0.bytes[self.0.start..].as_ptr()
    }

    fn bytes_init(&self) -> usize {
        self.0.length
    }

    fn bytes_total(&self) -> usize {
        self.0.length
    }
}

fn random_reads(file: &File, time: Duration, seed: u64) -> Result<Timing> {
    let mut rng = Rng::new(seed);
    let mut block = Aligned::new(4096, &mut rng);
    closed_loop(time, || {
        let at = rng.below((FILE_BYTES / 4096) as u64) * 4096;
        file.read_exact_at(block.get(), at)?;
        Ok(1)
    })
}

/// `threads` threads that read at the same time; the sum of what they did.
fn reads_by_many(file: &File, threads: u64, time: Duration) -> Result<Timing> {
    std::thread::scope(|scope| {
        let started: Vec<_> =
            (0..threads).map(|seed| scope.spawn(move || random_reads(file, time, seed))).collect();
        let mut whole = Timing::new();
        for thread in started {
            let one = thread.join().map_err(|_| anyhow::anyhow!("a reader panicked"))??;
            whole.latencies.add(one.latencies)?;
            whole.done += one.done;
            whole.elapsed = whole.elapsed.max(one.elapsed);
        }
        Ok(whole)
    })
}

/// Gets from a `BTreeMap` with the contents of W4's objects; nanoseconds for each.
pub(crate) fn gets(context: &mut Context) -> Result<()> {
    let (time, mut rng) = (context.settings.measure, context.rng());
    let map = |keys: u64, rng: &mut Rng| -> BTreeMap<Bytes, Bytes> {
        let entry = |number| {
            (Bytes::copy_from_slice(&data::key(number)), Bytes::copy_from_slice(&rng.value()))
        };
        (0..keys).map(entry).collect()
    };
    let hot = map(HOT_KEYS, &mut rng);
    let many: Vec<_> = (0..HOT_OBJECTS).map(|_| map(KEYS, &mut rng)).collect();
    let cpu = context.device.cpu;
    let (one, several) = alone(cpu, || {
        let keys = reads::hot_keys(&mut rng);
        let one = reads::time_gets(time, &keys, |(_, key)| {
            black_box(hot.get(&black_box(key)[..])).is_some()
        })?;
        let keys = reads::keys_of_many(&mut rng);
        let several = reads::time_gets(time, &keys, |(object, key)| {
            let map = &many[usize::try_from(*object).expect("an index")];
            black_box(map.get(&black_box(key)[..])).is_some()
        })?;
        Ok((one, several))
    })?;
    context.record("W4a", "time", one);
    context.record("W4b", "time", several);
    Ok(())
}
