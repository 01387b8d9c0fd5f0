//! What was counted, what it may be at most, and what could not be counted.

use std::fmt;

use dormouse_benches::costs::Op;

/// What is counted, for each operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum What {
    /// Blocks asked of the allocator, by all threads; one that grows counts again.
    Allocations,
    /// Bytes of them.
    AllocatedBytes,
    /// Bytes of the batches that carry the commits.
    BatchBytes,
    /// Writes of these batches.
    BatchWrites,
    /// Bytes of all writes: batches, segments made ready, checkpoints.
    WrittenBytes,
    /// Reads from the device.
    Reads,
    /// Bytes of them.
    ReadBytes,
    /// Times that the core's thread slept.
    Sleeps,
    /// System calls of all threads.
    SystemCalls,
    /// Instructions of all threads, in a release build on the posix disk.
    Instructions,
}

impl What {
    pub(crate) const ALL: [Self; 10] = [
        Self::Allocations,
        Self::AllocatedBytes,
        Self::BatchBytes,
        Self::BatchWrites,
        Self::WrittenBytes,
        Self::Reads,
        Self::ReadBytes,
        Self::Sleeps,
        Self::SystemCalls,
        Self::Instructions,
    ];
}

impl fmt::Display for What {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Allocations => "allocations",
            Self::AllocatedBytes => "bytes allocated",
            Self::BatchBytes => "bytes of batches",
            Self::BatchWrites => "writes of batches",
            Self::WrittenBytes => "bytes written",
            Self::Reads => "reads",
            Self::ReadBytes => "bytes read",
            Self::Sleeps => "sleeps",
            Self::SystemCalls => "system calls",
            Self::Instructions => "instructions",
        })
    }
}

/// One figure, for one operation.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Figure {
    pub(crate) op: Op,
    pub(crate) what: What,
    pub(crate) value: f64,
}

/// All that was found.
#[derive(Default)]
pub(crate) struct Report {
    figures: Vec<Figure>,
    skipped: Vec<String>,
}

impl Report {
    pub(crate) fn add(&mut self, figures: impl IntoIterator<Item = Figure>) {
        self.figures.extend(figures);
    }

    /// Something could not be counted here.
    pub(crate) fn skip(&mut self, what: &str, why: impl fmt::Display) {
        self.skipped.push(format!("NOT COUNTED: {what}: {why}"));
    }

    /// Prints a row for each thing that is counted, a column for each operation.
    pub(crate) fn print(&self) {
        let names = Op::ALL.map(|op| format!(" {:>10} |", op.name())).concat();
        println!("| for each operation   |{names}");
        println!("|---|{}", "---|".repeat(Op::ALL.len()));
        for what in What::ALL {
            let cells = Op::ALL.map(|op| match self.value(op, what) {
                Some(value) if value >= 100.0 => format!(" {value:>10.0} |"),
                Some(value) => format!(" {value:>10.2} |"),
                None => format!(" {:>10} |", ""),
            });
            if self.figures.iter().any(|figure| figure.what == what) {
                println!("| {what:<20} |{}", cells.concat());
            }
        }
        self.skipped.iter().for_each(|skipped| println!("{skipped}"));
    }

    fn value(&self, op: Op, what: What) -> Option<f64> {
        let is_it = |figure: &&Figure| figure.op == op && figure.what == what;
        self.figures.iter().find(is_it).map(|figure| figure.value)
    }

    /// What is over its bound, or has none.
    pub(crate) fn over(&self, bounds: &[(What, [f64; Op::ALL.len()])]) -> Vec<String> {
        let over = |Figure { op, what, value }: &Figure| {
            let column = Op::ALL.iter().position(|other| other == op).expect("one of all");
            let row = bounds.iter().find(|(other, _)| other == what);
            match row.map(|(_, maxima)| maxima[column]) {
                Some(max) if *value <= max => None,
                Some(max) => Some(format!("{} {what}: {value:.2}, at most {max}", op.name())),
                None => Some(format!("{} {what}: {value:.2}, and no bound", op.name())),
            }
        };
        self.figures.iter().filter_map(over).collect()
    }
}
