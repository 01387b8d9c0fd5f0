//! The machine under the run: what it is, which core takes the disk's interrupts, and the kernel's
//! counters of what was written, read, flushed and kept in memory.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

/// The disk below a directory.
#[derive(Clone)]
pub(crate) struct Device {
    pub name: String,
    sysfs: Option<PathBuf>,
    /// The CPU that takes most of its interrupts.
    pub cpu: Option<usize>,
}

/// Counters of the whole device, whoever caused them.
#[derive(Clone, Copy, Default)]
pub(crate) struct Counters {
    pub reads: u64,
    pub flushes: u64,
}

impl Device {
    /// Finds the disk, through the partition if there is one.
    pub(crate) fn below(dir: &Path) -> Result<Self> {
        let dev = std::fs::metadata(dir)?.dev();
        let (major, minor) = (rustix::fs::major(dev), rustix::fs::minor(dev));
        let link = PathBuf::from(format!("/sys/dev/block/{major}:{minor}"));
        let Ok(mut sysfs) = link.canonicalize() else {
            return Ok(Self { name: format!("{major}:{minor}"), sysfs: None, cpu: None });
        };
        if sysfs.join("partition").exists() {
            sysfs.pop();
        }
        let name = sysfs.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let cpu = interrupt_cpu(&sysfs);
        Ok(Self { name, sysfs: Some(sysfs), cpu })
    }

    /// How the device keeps writes: with `write through` the kernel sends it no flushes.
    pub(crate) fn write_cache(&self) -> Option<String> {
        let path = self.sysfs.as_ref()?.join("queue/write_cache");
        Some(std::fs::read_to_string(path).ok()?.trim().to_owned())
    }

    /// Whether each durable write shows as a flush: the device has a cache, and no writes that go
    /// through it by themselves.
    pub(crate) fn counts_flushes(&self) -> bool {
        let fua = self.sysfs.as_ref().map(|sysfs| sysfs.join("queue/fua"));
        let fua = fua.and_then(|path| std::fs::read_to_string(path).ok());
        self.write_cache().as_deref() == Some("write back")
            && fua.is_some_and(|fua| fua.trim() == "0")
            && self.counters().is_some()
    }

    /// Reads and flushes so far; `None` where the kernel does not count flushes.
    pub(crate) fn counters(&self) -> Option<Counters> {
        parse_stat(&std::fs::read_to_string(self.sysfs.as_ref()?.join("stat")).ok()?)
    }

    /// What others do to the device meanwhile, for each second.
    pub(crate) fn background(&self) -> Option<(f64, f64)> {
        let (before, began) = (self.counters()?, Instant::now());
        std::thread::sleep(Duration::from_millis(150));
        let (after, seconds) = (self.counters()?, began.elapsed().as_secs_f64());
        let rate = |from: u64, to: u64| to.saturating_sub(from) as f64 / seconds;
        Some((rate(before.reads, after.reads), rate(before.flushes, after.flushes)))
    }
}

/// Fields 1 and 16 of a block device's `stat`.
fn parse_stat(text: &str) -> Option<Counters> {
    let fields: Vec<u64> = text.split_whitespace().map_while(|field| field.parse().ok()).collect();
    Some(Counters { reads: *fields.first()?, flushes: *fields.get(15)? })
}

/// The CPU with most interrupts of the lines that name the device's driver.
fn interrupt_cpu(sysfs: &Path) -> Option<usize> {
    let parent = sysfs.join("device").canonicalize().ok()?;
    let (disk, parent) = (sysfs.file_name()?.to_str()?, parent.file_name()?.to_str()?);
    let prefix = match disk.rsplit_once('n') {
        Some((controller, _)) if disk.starts_with("nvme") => format!("{controller}q"),
        _ if parent.starts_with("virtio") => format!("{parent}-req"),
        _ => parent.to_owned(),
    };
    busiest(&std::fs::read_to_string("/proc/interrupts").ok()?, &prefix)
}

fn busiest(interrupts: &str, prefix: &str) -> Option<usize> {
    let cpus = interrupts.lines().next()?.split_whitespace().count();
    let mut sums = vec![0_u64; cpus];
    for line in interrupts.lines().skip(1) {
        let mut words = line.split_whitespace();
        if !line.split_whitespace().last().is_some_and(|name| name.starts_with(prefix)) {
            continue;
        }
        words.next();
        for (sum, word) in sums.iter_mut().zip(words) {
            *sum += word.parse::<u64>().unwrap_or(0);
        }
    }
    let most = sums.iter().copied().max().filter(|most| *most > 0)?;
    sums.iter().position(|sum| *sum == most)
}

/// Keeps the calling thread, and those that it starts, on the CPU of the disk's interrupts.
pub(crate) fn pin(cpu: Option<usize>) {
    let Some(cpu) = cpu else { return };
    let mut set = rustix::thread::CpuSet::new();
    set.set(cpu);
    if let Err(error) = rustix::thread::sched_setaffinity(None, &set) {
        eprintln!("could not pin a thread to core {cpu}: {error}");
    }
}

/// Bytes that this process has had written to devices, dirtied pages included.
pub(crate) fn written_bytes() -> Result<u64> {
    let text = std::fs::read_to_string("/proc/self/io").context("/proc/self/io")?;
    let line = text.lines().find_map(|line| line.strip_prefix("write_bytes:"));
    Ok(line.context("write_bytes")?.trim().parse()?)
}

/// Bytes of this process that no file backs.
pub(crate) fn anonymous_bytes() -> Result<u64> {
    let text = std::fs::read_to_string("/proc/self/smaps_rollup")?;
    let line =
        text.lines().find_map(|line| line.strip_prefix("Anonymous:")).context("Anonymous")?;
    let kib: u64 = line.split_whitespace().next().context("a figure")?.parse()?;
    Ok(kib * 1024)
}

/// CPU time of all threads of this process.
pub(crate) fn cpu_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap_or(0))
}

/// Entries of a directory of /proc/self.
pub(crate) fn entries(dir: &str) -> Result<u64> {
    Ok(std::fs::read_dir(dir)?.count() as u64)
}

/// All files below a directory.
pub(crate) fn files(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut dirs = vec![dir.to_owned()];
    while let Some(dir) = dirs.pop() {
        for entry in std::fs::read_dir(dir)? {
            let entry = entry?;
            match entry.file_type()?.is_dir() {
                true => dirs.push(entry.path()),
                false => found.push(entry.path()),
            }
        }
    }
    Ok(found)
}

/// Blocks that the files below a directory take, in bytes, and the directories' own.
pub(crate) fn disk_bytes(dir: &Path) -> Result<u64> {
    let mut bytes = std::fs::metadata(dir)?.blocks() * 512;
    for file in files(dir)? {
        bytes += std::fs::metadata(file)?.blocks() * 512;
    }
    Ok(bytes)
}

/// Writes out everything that the file system of `dir` still has to write.
pub(crate) fn sync(dir: &Path) -> Result<()> {
    Ok(rustix::fs::syncfs(std::fs::File::open(dir)?)?)
}

/// How page caches are dropped here.
pub(crate) fn cache_dropping() -> &'static str {
    let path = Path::new("/proc/sys/vm/drop_caches");
    match rustix::fs::access(path, rustix::fs::Access::WRITE_OK) {
        Ok(()) => "/proc/sys/vm/drop_caches",
        Err(_) => "posix_fadvise DONTNEED",
    }
}

/// Drops what the kernel keeps of the files in `dir`, which nobody may have open.
pub(crate) fn drop_caches(dir: &Path) -> Result<()> {
    sync(dir)?;
    if std::fs::write("/proc/sys/vm/drop_caches", "1").is_ok() {
        return Ok(());
    }
    for path in files(dir)? {
        let file = std::fs::File::open(path)?;
        rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed)?;
    }
    Ok(())
}

/// Lets this process have as many open files as it may: engines with a file for each object.
pub(crate) fn raise_file_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let _refused_at_worst =
        setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
}

/// Which part of the machine's CPU time others took, since this was made.
pub(crate) struct Others {
    before: Option<(u64, u64)>,
    own: Duration,
}

impl Others {
    pub(crate) fn watch() -> Self {
        Self { before: processor_ticks(), own: own_and_children() }
    }

    /// Between 0 and 1; `None` where the kernel does not tell.
    pub(crate) fn share(&self) -> Option<f64> {
        let ((busy_before, all_before), (busy, all)) = (self.before?, processor_ticks()?);
        let own = own_and_children().saturating_sub(self.own).as_secs_f64();
        // The kernel tells these times in hundredths of a second.
        let seconds = |ticks: u64| ticks as f64 / 100.0;
        let others = seconds(busy - busy_before) - own;
        Some((others / seconds(all - all_before)).clamp(0.0, 1.0))
    }
}

/// Ticks of all CPUs in which something ran, and all ticks.
fn processor_ticks() -> Option<(u64, u64)> {
    parse_ticks(&std::fs::read_to_string("/proc/stat").ok()?)
}

/// User, nice, system, idle and what waits for a device; then interrupts and what was stolen. Guests
/// are in the first two.
fn parse_ticks(text: &str) -> Option<(u64, u64)> {
    let line = text.lines().find_map(|line| line.strip_prefix("cpu "))?;
    let ticks: Vec<u64> = line.split_whitespace().take(8).flat_map(str::parse).collect();
    let all = ticks.iter().sum();
    Some((all - ticks.get(3)? - ticks.get(4)?, all))
}

/// CPU time of this process and of the children that have ended.
fn own_and_children() -> Duration {
    let text = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // The name before may hold anything, a bracket too.
    let fields = text.rsplit_once(") ").map_or("", |(_, fields)| fields);
    let ticks = fields.split_whitespace().skip(11).take(4).flat_map(str::parse::<u64>);
    Duration::from_millis(ticks.sum::<u64>() * 10)
}

/// The lines at the top of a run.
pub(crate) fn describe(dir: &Path, device: &Device) -> Result<Vec<String>> {
    let uname = rustix::system::uname();
    let cores = std::thread::available_parallelism()?;
    let model = std::fs::read_to_string("/proc/cpuinfo").ok();
    let model = model.as_deref().and_then(|text| {
        let line = text.lines().find(|line| line.starts_with("model name"))?;
        Some(line.split_once(':')?.1.trim().to_owned())
    });
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let load = load.split_whitespace().take(3).collect::<Vec<_>>().join(" ");
    let cpu = device.cpu.map_or("unknown: nothing is pinned".to_owned(), |cpu| {
        format!("core {cpu}; lone clients, lone shards and the floor run there")
    });
    Ok(vec![
        format!(
            "machine: {cores} cores ({}), Linux {}, load {load} at the start",
            model.unwrap_or_default(),
            uname.release().to_string_lossy()
        ),
        format!(
            "disk: {} on {}, write cache: {}",
            file_system(dir),
            device.name,
            device.write_cache().unwrap_or("unknown".into())
        ),
        format!("the disk's interrupts: {cpu}"),
    ])
}

/// The type of the file system that `dir` is on, from the mount that is nearest above it.
fn file_system(dir: &Path) -> String {
    let mounts = std::fs::read_to_string("/proc/mounts").unwrap_or_default();
    let dir = dir.canonicalize().unwrap_or(dir.to_owned());
    let above = mounts.lines().filter_map(|line| {
        let mut words = line.split_whitespace().skip(1);
        let (point, kind) = (words.next()?, words.next()?);
        dir.starts_with(point).then_some((point.len(), kind))
    });
    above.max_by_key(|(length, _)| *length).map_or("unknown".into(), |(_, kind)| kind.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stat_line_gives_reads_and_flushes() {
        let text = "  13 1 8 11 54 63 47 15 0 11 13 9 3 7 1 1860041 191975\n";
        let counters = parse_stat(text).expect("17 fields");
        assert_eq!((counters.reads, counters.flushes), (13, 1_860_041));
        assert!(parse_stat("1 2 3").is_none());
    }

    #[test]
    fn busy_ticks_are_all_but_the_idle_ones() {
        let text = "cpu  10 2 30 400 50 6 7 8 0 0\ncpu0 1 1 1 1 1 1 1 1 0 0\n";
        assert_eq!(parse_ticks(text), Some((63, 513)));
    }

    #[test]
    fn the_busiest_cpu_is_that_of_the_devices_lines() {
        let text = "      CPU0  CPU1\n 32: 900 0 PCI 4-edge virtio0-req\n 36: 1 50 PCI 1-edge \
                    virtio1-req.0\n 37: 60 1 PCI 0-edge virtio1-config\n";
        assert_eq!(busiest(text, "virtio1-"), Some(0));
        assert_eq!(busiest(text, "virtio1-req"), Some(1));
        assert_eq!(busiest(text, "nvme0q"), None);
    }
}
