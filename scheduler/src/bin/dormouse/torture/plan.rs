//! What is committed: the n-th commit of an object is always the same, so that its number says what the
//! object holds.

use std::fmt;

use dormouse_engine::{Batch, Contents, ObjectId, Version};

/// How many objects there are.
pub(crate) const OBJECTS: usize = 16;
/// Every so many commits an object is emptied first.
const EMPTIED: u64 = 64;
/// The key that holds the commit's number.
const NUMBER: &str = "number";

/// What a writer says: one line each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Line {
    /// The last commit of an object, when the store was opened.
    Found { object: usize, commit: u64 },
    /// A commit is about to be asked for.
    Begun { object: usize, commit: u64 },
    /// A commit was acknowledged.
    Acknowledged { object: usize, commit: u64 },
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Found { object, commit } => write!(f, "found {object} {commit}."),
            Self::Begun { object, commit } => write!(f, "begun {object} {commit}."),
            Self::Acknowledged { object, commit } => write!(f, "acknowledged {object} {commit}."),
        }
    }
}

impl Line {
    /// `None` for one that was cut: it ends with a dot.
    pub(crate) fn parse(line: &str) -> Option<Self> {
        let words: Vec<&str> = line.strip_suffix('.')?.split(' ').collect();
        let [what, object, commit] = words[..] else { return None };
        let object = object.parse().ok().filter(|object| *object < OBJECTS)?;
        let commit = commit.parse().ok()?;
        match what {
            "found" => Some(Self::Found { object, commit }),
            "begun" => Some(Self::Begun { object, commit }),
            "acknowledged" => Some(Self::Acknowledged { object, commit }),
            _ => None,
        }
    }
}

pub(crate) fn id(object: usize) -> ObjectId {
    let mut bytes = [0x77; ObjectId::BYTES];
    bytes[..8].copy_from_slice(&(object as u64).to_le_bytes());
    ObjectId::from_bytes(bytes)
}

/// A number that looks like chance, from two.
fn mix(object: usize, commit: u64) -> u64 {
    let mut mixed = (object as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ commit;
    for factor in [0xbf58_476d_1ce4_e5b9, 0x94d0_49bb_1331_11eb_u64] {
        mixed = (mixed ^ (mixed >> 29)).wrapping_mul(factor);
    }
    mixed ^ (mixed >> 32)
}

fn value(object: usize, commit: u64, bytes: u64) -> Vec<u8> {
    (0..bytes.div_ceil(8)).flat_map(|word| mix(object, commit << 20 | word).to_le_bytes()).collect()
}

/// Commit number `commit` of an object: its number, a value that is new, one that goes, an alarm; now and
/// then more than one batch of the log can carry.
pub(crate) fn batch(object: usize, commit: u64) -> Batch {
    let chance = mix(object, commit);
    let mut batch = Batch::new();
    if commit.is_multiple_of(EMPTIED) {
        batch = batch.delete_all().delete_alarm();
    }
    let bytes = if chance.is_multiple_of(16) { 20_000 } else { chance % 300 };
    batch = batch.put(NUMBER, commit.to_string());
    batch = batch.put(format!("key {}", chance >> 8 & 7), value(object, commit, bytes));
    batch = batch.delete(format!("key {}", chance >> 16 & 7));
    if (chance >> 24).is_multiple_of(100) {
        let put = |batch: Batch, part| {
            batch.put(format!("large {part}"), value(object, commit + part, 100_000))
        };
        batch = (0..8).fold(batch, put);
    }
    match commit % 5 {
        0 => batch.set_alarm(4_102_444_800_000 + commit),
        3 => batch.delete_alarm(),
        _ => batch,
    }
}

/// The number of the last commit that an object holds; 0 for none.
pub(crate) fn last_commit(contents: &Contents) -> u64 {
    let number = contents.map.get(NUMBER.as_bytes());
    let number = number.and_then(|number| std::str::from_utf8(number).ok()?.parse().ok());
    number.unwrap_or(0)
}

/// What an object holds after so many commits.
pub(crate) fn expected(object: usize, commits: u64) -> Contents {
    let first = (commits - commits % EMPTIED).max(1);
    let mut contents = Contents::default();
    for commit in first..=commits {
        contents.apply(&batch(object, commit), Version(commit));
    }
    contents
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_that_was_cut_is_none() {
        let line = Line::Acknowledged { object: 15, commit: 123 };
        let text = line.to_string();
        assert_eq!(Line::parse(&text), Some(line));
        for end in 0..text.len() {
            assert_eq!(Line::parse(&text[..end]), None);
        }
    }

    #[test]
    fn an_emptied_object_owes_nothing_to_what_was_before() {
        for commits in [0, 1, 63, 64, 65, 200] {
            let mut contents = Contents::default();
            for commit in 1..=commits {
                contents.apply(&batch(3, commit), Version(commit));
            }
            assert_eq!(contents, expected(3, commits));
            assert_eq!(last_commit(&contents), commits);
        }
    }
}
