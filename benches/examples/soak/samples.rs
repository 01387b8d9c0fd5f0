//! What is looked at from time to time, and what must come of it.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use crate::{Result, mib};

/// How much higher the last third of the samples may be than the middle one.
const FACTOR: f64 = 1.25;
/// Descriptors beyond: a few runs and segments more are no leak.
const DESCRIPTORS: u64 = 16;
/// Samples of which a verdict is worth something.
const SAMPLES_MIN: usize = 12;
/// Bytes of a page of memory, as /proc counts.
const PAGE_BYTES: u64 = 4096;

/// One look at the store and its process.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Sample {
    /// Since the load began.
    pub(crate) ms: u64,
    /// Bytes of values that were written over others so far.
    pub(crate) written: u64,
    /// Blocks of the store's files.
    pub(crate) disk: u64,
    /// Bytes of the log that objects need.
    pub(crate) live: u64,
    /// Resident memory, file maps included.
    pub(crate) memory: u64,
    pub(crate) descriptors: u64,
    /// Commits in a second.
    pub(crate) rate: u64,
    /// Of the latencies of commits since the last sample.
    pub(crate) median_us: u64,
    pub(crate) p999_us: u64,
}

impl Sample {
    pub(crate) fn fields(&self) -> [u64; 9] {
        let Self { ms, written, disk, live, memory, descriptors, rate, median_us, p999_us } = *self;
        [ms, written, disk, live, memory, descriptors, rate, median_us, p999_us]
    }

    pub(crate) fn of_fields(fields: [u64; 9]) -> Self {
        let [ms, written, disk, live, memory, descriptors, rate, median_us, p999_us] = fields;
        Self { ms, written, disk, live, memory, descriptors, rate, median_us, p999_us }
    }
}

/// Bytes that the files of a directory take.
pub(crate) fn disk_bytes(dir: &Path) -> Result<u64> {
    let mut bytes = 0;
    for entry in std::fs::read_dir(dir)? {
        // One that was removed since takes none.
        bytes += entry?.metadata().map_or(0, |file| file.blocks() * 512);
    }
    Ok(bytes)
}

/// A sample of this process.
pub(crate) fn sample(
    dir: &Path,
    at: Duration,
    written: u64,
    live: u64,
    since: Duration,
    mut micros: Vec<u32>,
) -> Result<Sample> {
    let statm = std::fs::read_to_string("/proc/self/statm")?;
    let pages: u64 = statm.split_whitespace().nth(1).ok_or("no figure in statm")?.parse()?;
    micros.sort_unstable();
    let of_1000 =
        |part: usize| micros.get(micros.len() * part / 1000).copied().map_or(0, u64::from);
    Ok(Sample {
        ms: u64::try_from(at.as_millis())?,
        written,
        disk: disk_bytes(dir)?,
        live,
        memory: pages * PAGE_BYTES,
        descriptors: std::fs::read_dir("/proc/self/fd")?.count() as u64,
        rate: micros.len() as u64 * 1_000_000 / u64::try_from(since.as_micros().max(1))?,
        median_us: of_1000(500),
        p999_us: of_1000(999),
    })
}

/// Prints one sample in twenty.
pub(crate) fn print(sample: &Sample, goal: u64) {
    if sample.ms % 5_000 < 250 {
        println!(
            "{:5.1} s, {:3} %: {:.0} MiB on disk, {:.0} live, {:.0} of memory, {} descriptors; {} commits/s, \
             median {} us, p99.9 {} us",
            sample.ms as f64 / 1e3,
            (sample.written * 100).checked_div(goal).unwrap_or(100).min(100),
            mib(sample.disk),
            mib(sample.live),
            mib(sample.memory),
            sample.descriptors,
            sample.rate,
            sample.median_us,
            sample.p999_us,
        );
    }
}

pub(crate) fn write_csv(samples: &[Sample], path: &Path) -> Result<()> {
    let mut lines =
        vec!["ms,written,disk,live,memory,descriptors,commits_per_s,median_us,p999_us".to_owned()];
    for sample in samples {
        let fields: Vec<String> = sample.fields().iter().map(ToString::to_string).collect();
        lines.push(fields.join(","));
    }
    Ok(std::fs::write(path, lines.join("\n") + "\n")?)
}

/// The highest of a third of the samples.
fn highest(samples: &[Sample], third: usize, of: impl Fn(&Sample) -> u64) -> u64 {
    let each = samples.len() / 3;
    samples[third * each..(third + 1) * each].iter().map(of).max().unwrap_or(0)
}

/// Whether bytes on disk, memory and descriptors have levelled off: in the last third they are no more than 1.25
/// times as high as in the middle one (descriptors: and 16).
pub(crate) fn judge(samples: &[Sample]) -> Result<()> {
    if samples.len() < SAMPLES_MIN {
        return Err(format!("{} samples say nothing: write more", samples.len()).into());
    }
    type Of = fn(&Sample) -> u64;
    let judged: [(&str, Of, u64); 3] = [
        ("bytes on disk", |sample| sample.disk, 0),
        ("bytes of memory", |sample| sample.memory, 0),
        ("descriptors", |sample| sample.descriptors, DESCRIPTORS),
    ];
    let mut rising = Vec::new();
    for (what, of, beyond) in judged {
        let thirds = [0, 1, 2].map(|third| highest(samples, third, of));
        println!("{what}, highest in each third: {thirds:?}");
        if thirds[2] as f64 > thirds[1] as f64 * FACTOR + beyond as f64 {
            rising.push(what);
        }
    }
    match rising.is_empty() {
        true => Ok(()),
        false => Err(format!("still rising: {}", rising.join(", ")).into()),
    }
}
