//! The load in a child process that is killed again and again: it says through a pipe what is durable, and the next
//! one says what it finds.
//!
//! A thread of the child has one commit on its way at most, and says that it is durable before it begins the next. So
//! each key must be found as it was acknowledged last, or as the one commit after that left it.

use std::io::{PipeWriter, Read, Write};
use std::ops::Range;
use std::os::fd::AsFd;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use dormouse_engine::{Options, Store};

use crate::data::{Plan, Random};
use crate::samples::{self, Sample};
use crate::{Args, Result, load, mib};

/// What the child says.
#[derive(Clone, Copy, Debug)]
enum Said {
    /// It has opened the store and found this key written so often.
    Found {
        slot: u64,
        stamp: u64,
    },
    /// It has read all that is there, and goes on.
    Ready,
    /// Neighbouring keys are durable as they were written once more.
    Durable {
        first: u64,
        count: u64,
        bytes: u64,
    },
    Sample(Sample),
    /// It has written all that it was to write, and closed the store.
    Ended,
}

impl Said {
    fn encode(&self, out: &mut Vec<u8>) {
        let (tag, fields): (u8, &[u64]) = match self {
            Self::Found { slot, stamp } => (1, &[*slot, *stamp]),
            Self::Ready => (2, &[]),
            Self::Durable { first, count, bytes } => (3, &[*first, *count, *bytes]),
            Self::Sample(sample) => (4, &sample.fields()),
            Self::Ended => (5, &[]),
        };
        out.push(tag);
        fields.iter().for_each(|field| out.extend_from_slice(&field.to_le_bytes()));
    }

    /// Takes what is there as a whole; of a process that was killed the last may not be.
    fn take(rest: &mut &[u8]) -> Result<Option<Self>> {
        let Some((tag, after)) = rest.split_first() else { return Ok(None) };
        let count = match tag {
            1 => 2,
            2 | 5 => 0,
            3 => 3,
            4 => 9,
            _ => return Err(format!("the child said {tag}").into()),
        };
        let Some((fields, after)) = after.split_at_checked(count * 8) else { return Ok(None) };
        *rest = after;
        let field = |at: usize| {
            u64::from_le_bytes(fields[at * 8..at * 8 + 8].try_into().expect("eight bytes"))
        };
        Ok(Some(match tag {
            1 => Self::Found { slot: field(0), stamp: field(1) },
            2 => Self::Ready,
            3 => Self::Durable { first: field(0), count: field(1), bytes: field(2) },
            4 => Self::Sample(Sample::of_fields(std::array::from_fn(field))),
            _ => Self::Ended,
        }))
    }
}

/// Where the child says it. What was written to a pipe is there whatever becomes of whoever wrote it.
struct Pipe(Mutex<PipeWriter>);

impl Pipe {
    fn say(&self, all: impl IntoIterator<Item = Said>) -> Result<()> {
        let mut bytes = Vec::new();
        all.into_iter().for_each(|said| said.encode(&mut bytes));
        Ok(self.0.lock().expect("no code panics under it").write_all(&bytes)?)
    }

    fn durable(&self, slots: Range<usize>, bytes: u64) -> Result<()> {
        let (first, count) = (slots.start as u64, slots.len() as u64);
        self.say([Said::Durable { first, count, bytes }])
    }
}

/// The child: opens, reads, and writes until it is killed or done.
pub(crate) fn child(args: &Args, of_child: &[String]) -> Result<()> {
    let [dir, goal, life] = of_child else { return Err("three arguments".into()) };
    let (dir, goal, life): (&Path, u64, u64) = (Path::new(dir), goal.parse()?, life.parse()?);
    let pipe = Pipe(Mutex::new(std::io::stdout().as_fd().try_clone_to_owned()?.into()));
    let plan = args.plan();
    let store = Store::open(dir, Options::default())?;
    let mut stamps = load::read_all(&store, &plan, args.threads)?;
    pipe.say((0..).zip(&stamps).map(|(slot, stamp)| Said::Found { slot, stamp: *stamp }))?;
    pipe.say([Said::Ready])?;
    // Of what fills it the bytes do not count.
    load::fill(&store, &plan, &mut stamps, args.threads, &|slots, _| pipe.durable(slots, 0))?;
    let run = load::Run { threads: args.threads, goal, seed: args.seed << 16 | life };
    let take = |sample| pipe.say([Said::Sample(sample)]);
    let told = |slots, bytes| pipe.durable(slots, bytes);
    load::overwrite(&store, &plan, &mut stamps, &run, dir, take, &told)?;
    store.close().wait()?;
    pipe.say([Said::Ended])
}

/// What the parent knows.
struct Ledger {
    began: Instant,
    /// How often each key was written, as far as it was acknowledged.
    stamps: Vec<u64>,
    /// Bytes of values that were written over others.
    written: u64,
    samples: Vec<Sample>,
    /// Keys that were found as a commit left them that nobody had acknowledged.
    unacknowledged: u64,
    wrong: Vec<String>,
}

impl Ledger {
    fn learn(&mut self, said: Said, goal: u64) -> Result<()> {
        match said {
            Said::Found { slot, stamp } => {
                let known = self.stamps.get_mut(usize::try_from(slot)?).ok_or("no such key")?;
                if stamp != *known && stamp != *known + 1 {
                    let what = format!(
                        "key {slot} was written {known} times, and is found as the {stamp}th left it"
                    );
                    self.wrong.push(what);
                }
                self.unacknowledged += u64::from(stamp == *known + 1);
                *known = stamp;
            }
            Said::Durable { first, count, bytes } => {
                let range = usize::try_from(first)?..usize::try_from(first + count)?;
                let known = self.stamps.get_mut(range).ok_or("no such keys")?;
                known.iter_mut().for_each(|stamp| *stamp += 1);
                self.written += bytes;
            }
            Said::Sample(sample) => {
                let ms = u64::try_from(self.began.elapsed().as_millis())?;
                let sample = Sample { ms, written: self.written, ..sample };
                samples::print(&sample, goal);
                self.samples.push(sample);
            }
            Said::Ready | Said::Ended => {}
        }
        Ok(())
    }
}

/// Takes in all that a child says, and tells when it is ready and when it ended.
fn listen(mut pipe: impl Read, ledger: &mut Ledger, goal: u64, tell: &Sender<Said>) -> Result<()> {
    let (mut bytes, mut buf) = (Vec::new(), vec![0; 1 << 16]);
    loop {
        let read = pipe.read(&mut buf)?;
        if read == 0 {
            return Ok(());
        }
        bytes.extend_from_slice(&buf[..read]);
        let mut rest = &bytes[..];
        while let Some(said) = Said::take(&mut rest)? {
            ledger.learn(said, goal)?;
            if matches!(said, Said::Ready | Said::Ended) {
                let _nobody_waits = tell.send(said);
            }
        }
        let left = rest.len();
        bytes.drain(..bytes.len() - left);
    }
}

/// How a child's life ended.
enum End {
    Killed {
        ready: bool,
    },
    /// By itself.
    Done,
}

/// Kills the child when its time has come: some time after it is ready, or, if it dies `early`, while it opens and reads.
fn kill(
    child: &mut Child,
    heard: &Receiver<Said>,
    early: Option<Duration>,
    lives: Duration,
) -> Result<End> {
    let ready = match early {
        Some(early) => heard.recv_timeout(early),
        None => heard.recv().map_err(|_| RecvTimeoutError::Disconnected),
    };
    let ready = match ready {
        Ok(_) => true,
        Err(RecvTimeoutError::Timeout) => false,
        Err(RecvTimeoutError::Disconnected) => return Ok(End::Done),
    };
    if ready {
        match heard.recv_timeout(lives) {
            Err(RecvTimeoutError::Timeout) => {}
            _ => return Ok(End::Done),
        }
    }
    child.kill()?;
    Ok(End::Killed { ready })
}

/// Has children write over the store until the goal is reached, and kills each but the last.
pub(crate) fn soak(args: &Args, plan: &Plan, dir: &Path) -> Result<Vec<Sample>> {
    let mut ledger = Ledger {
        began: Instant::now(),
        stamps: vec![0; plan.slots()],
        written: 0,
        samples: Vec::new(),
        unacknowledged: 0,
        wrong: Vec::new(),
    };
    let mut random = Random::new(args.seed);
    let (mut killed, mut early_ones) = (0, 0);
    for life in 0_u64.. {
        let goal = args.goal();
        let left = goal.saturating_sub(ledger.written);
        let mut child = Command::new(std::env::current_exe()?)
            .args(["--capacity", &args.capacity.to_string()])
            .args(["--threads", &args.threads.to_string(), "--seed", &args.seed.to_string()])
            .arg("--child")
            .arg(dir)
            .args([left.to_string(), life.to_string()])
            .stdout(Stdio::piped())
            .spawn()?;
        let pipe = child.stdout.take().ok_or("a pipe")?;
        let early = (life % 4 == 3).then(|| Duration::from_millis(random.below(400)));
        let lives = args.every * (0.5 + random.below(1000) as f64 / 1000.0);
        let lives = Duration::from_secs_f64(lives);
        let (tell, heard) = channel();
        let end = std::thread::scope(|scope| {
            let ledger = &mut ledger;
            let listening = scope.spawn(move || listen(pipe, ledger, goal, &tell));
            let end = kill(&mut child, &heard, early, lives);
            listening.join().expect("no panic").and(end)
        })?;
        let status = child.wait()?;
        if let Some(wrong) = ledger.wrong.first() {
            return Err(
                format!("life {life}: {} keys are wrong: {wrong}", ledger.wrong.len()).into()
            );
        }
        match end {
            End::Killed { ready } => {
                killed += 1;
                early_ones += u64::from(!ready);
            }
            End::Done if status.success() => break,
            End::Done => return Err(format!("life {life} ended by itself: {status}").into()),
        }
    }
    println!(
        "written {:.0} MiB in {:.1} s; killed {killed} times, {early_ones} of them while it opened or read; nothing \
         acknowledged is missing, {} keys were found as a commit left them that was not acknowledged yet",
        mib(ledger.written),
        ledger.began.elapsed().as_secs_f64(),
        ledger.unacknowledged,
    );
    let store = Store::open(dir, Options::default())?;
    let found = load::read_all(&store, plan, args.threads)?;
    store.close().wait()?;
    match found == ledger.stamps {
        true => Ok(ledger.samples),
        false => Err("after the last close keys are not what was acknowledged".into()),
    }
}
