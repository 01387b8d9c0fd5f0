//! [`Heartbeat`]: what a core is at, for a thread that watches it.
//!
//! Only the core writes, through its [`Heart`]: plain stores in an order that the watcher can check; it never waits, and the watcher
//! never keeps it waiting.
//!
//! Invariant: the count grows with each step, and says which by its remainder of 3: idle (0), about to say what it is
//! at (1), at it (2). A watcher that reads the same count of the last kind before and after what it is at has
//! read what belongs to that count.

use std::cell::Cell;
use std::sync::Arc;

use crate::ids::ObjectId;
use crate::sync::{AtomicU64, Ordering, fence};

/// Steps of a core: idle, saying, at it.
const STEPS: u64 = 3;
/// The step in which what the core is at can be read.
const AT_IT: u64 = 2;
const WORDS: usize = ObjectId::BYTES / 8;

/// What one core is at, for those who watch it.
#[derive(Debug)]
pub struct Heartbeat {
    count: AtomicU64,
    object: [AtomicU64; WORDS],
    tag: AtomicU64,
}

/// An object that a core is at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Beat {
    /// The same as long as the core has not gone on.
    pub count: u64,
    /// The object.
    pub object: ObjectId,
    /// What the core said beside it.
    pub tag: u64,
}

impl Default for Heartbeat {
    fn default() -> Self {
        Self::new()
    }
}

impl Heartbeat {
    /// Of a core that is idle.
    pub fn new() -> Self {
        let zero = || AtomicU64::new(0);
        Self { count: zero(), object: std::array::from_fn(|_| zero()), tag: zero() }
    }

    /// What the core is at; none if that is no object, or changes just now.
    pub fn look(&self) -> Option<Beat> {
        let count = self.count.load(Ordering::Acquire);
        if count % STEPS != AT_IT {
            return None;
        }
        let beat = self.read(count);
        fence(Ordering::Acquire);
        (self.count.load(Ordering::Relaxed) == count).then_some(beat)
    }

    fn read(&self, count: u64) -> Beat {
        let mut bytes = [0; ObjectId::BYTES];
        let (words, _) = bytes.as_chunks_mut::<8>();
        for (bytes, word) in words.iter_mut().zip(&self.object) {
            *bytes = word.load(Ordering::Relaxed).to_le_bytes();
        }
        let tag = self.tag.load(Ordering::Relaxed);
        Beat { count, object: ObjectId::from_bytes(bytes), tag }
    }
}

/// The core's end of a [`Heartbeat`]; there is one.
#[derive(Debug)]
pub struct Heart {
    seen: Arc<Heartbeat>,
    count: Cell<u64>,
}

impl Heart {
    /// The core's end of a heartbeat that has no other.
    pub fn new(seen: Arc<Heartbeat>) -> Self {
        Self { seen, count: Cell::new(0) }
    }

    /// The core is at this object from now on.
    pub fn begin(&self, object: &ObjectId, tag: u64) {
        let count = self.count.get();
        assert_eq!(count % STEPS, 0, "a core does one thing at a time");
        self.seen.count.store(count + 1, Ordering::Relaxed);
        // Nobody who reads what follows finds the count before it.
        fence(Ordering::Release);
        let (words, _) = object.as_bytes().as_chunks::<8>();
        for (word, bytes) in self.seen.object.iter().zip(words) {
            word.store(u64::from_le_bytes(*bytes), Ordering::Relaxed);
        }
        self.seen.tag.store(tag, Ordering::Relaxed);
        self.seen.count.store(count + AT_IT, Ordering::Release);
        self.count.set(count + AT_IT);
    }

    /// The core is not at it any more.
    pub fn end(&self) {
        let count = self.count.get();
        assert_eq!(count % STEPS, AT_IT, "something was begun");
        self.seen.count.store(count + 1, Ordering::Release);
        self.count.set(count + 1);
    }
}

#[cfg(all(test, not(dormouse_loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_core_is_seen_at_what_it_began_until_it_ends() {
        let (seen, object) = (Arc::new(Heartbeat::new()), ObjectId::from_bytes([7; 32]));
        let heart = Heart::new(seen.clone());
        assert_eq!(seen.look(), None);
        heart.begin(&object, 3);
        let beat = seen.look().expect("at it");
        assert_eq!((beat.object, beat.tag), (object, 3));
        assert_eq!(seen.look(), Some(beat));
        heart.end();
        assert_eq!(seen.look(), None);
        heart.begin(&object, 3);
        assert_ne!(seen.look().expect("again").count, beat.count);
    }
}

#[cfg(all(test, dormouse_loom))]
mod models {
    use super::*;

    fn watch(look: impl Fn(&Heartbeat) -> Option<Beat> + Send + Sync + 'static) {
        // Old values are tried at each load, whatever the order: with every order it takes a minute.
        let mut model = loom::model::Builder::new();
        model.preemption_bound = Some(2);
        model.check(move || {
            let seen = Arc::new(Heartbeat::new());
            // Its count is in no atomic: loom would take its own load for the last one of all.
            let core = Heart::new(seen.clone());
            core.begin(&ObjectId::from_bytes([1; 32]), 1);
            let thread = loom::thread::spawn(move || {
                core.end();
                core.begin(&ObjectId::from_bytes([2; 32]), 2);
            });
            if let Some(beat) = look(&seen) {
                let whole = ObjectId::from_bytes([u8::try_from(beat.tag).expect("1 or 2"); 32]);
                let count = STEPS * beat.tag - 1;
                assert_eq!((beat.object, beat.count), (whole, count), "a mixture");
            }
            thread.join().expect("the core ends");
        });
    }

    #[test]
    fn loom_a_watcher_sees_what_the_core_is_at() {
        watch(Heartbeat::look);
    }

    #[test]
    #[should_panic(expected = "a mixture")]
    fn loom_a_watcher_that_does_not_look_again_sees_a_mixture() {
        watch(|seen| {
            let count = seen.count.load(Ordering::Acquire);
            (count % STEPS == AT_IT).then(|| seen.read(count))
        });
    }
}
