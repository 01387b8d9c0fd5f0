//! What time it is on real cores: the system's, or, for tests, one that stands still until it is
//! moved.
//!
//! Invariants of a [`TestClock`]: it never goes back; whoever sleeps until a time that it has passed
//! is woken; between two moves every core sees the same time.

use std::collections::BTreeMap;
use std::future::{Future, poll_fn};
use std::sync::{Arc, LazyLock};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant, SystemTime};

use futures_util::future::{Either, FutureExt};

use crate::sync::Mutex;

/// A core's clock.
#[derive(Clone, Debug, Default)]
pub enum Clock {
    /// The system's.
    #[default]
    System,
    /// One that is moved by hand.
    Test(TestClock),
}

/// Since when the system's clock is counted: the same on all cores.
static STARTED: LazyLock<Instant> = LazyLock::new(instant);

impl Clock {
    /// What [`Host::now`](crate::Host::now) of every core with this clock says, for threads that are no cores.
    pub fn now(&self) -> Duration {
        match self {
            Self::System => STARTED.elapsed(),
            Self::Test(clock) => clock.now(),
        }
    }
}

/// A clock that stands still until it is moved. Cheap to clone; `Send + Sync`.
#[derive(Clone)]
pub struct TestClock(Arc<Shared>);

struct Shared {
    /// The wall clock when it was made, in milliseconds since 1970.
    wall_ms: u64,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    now: Duration,
    /// Since when it goes by itself.
    released: Option<Instant>,
    /// Who sleeps until when.
    sleepers: BTreeMap<(Duration, u64), Waker>,
    next: u64,
}

impl std::fmt::Debug for TestClock {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("TestClock").field(&self.now()).finish()
    }
}

#[expect(clippy::disallowed_methods, reason = "the seam to the real world")]
fn system_ms() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

#[expect(clippy::disallowed_methods, reason = "the seam to the real world")]
fn instant() -> Instant {
    Instant::now()
}

impl TestClock {
    /// It begins with the system's time.
    pub fn new() -> Self {
        Self(Arc::new(Shared { wall_ms: system_ms(), state: Mutex::new(State::default()) }))
    }

    /// Moves it on. Who sleeps until then is woken, and sees the new time: a sleep that begins
    /// now counts from it.
    pub fn advance(&self, by: Duration) {
        self.wake(|state| {
            state.now = state.now.saturating_add(by);
            let later = state.sleepers.split_off(&(state.now, u64::MAX));
            std::mem::replace(&mut state.sleepers, later)
        });
    }

    /// From now on it goes as the system's does.
    pub fn release(&self) {
        self.wake(|state| {
            state.released.get_or_insert_with(instant);
            std::mem::take(&mut state.sleepers)
        });
    }

    fn wake(&self, take: impl FnOnce(&mut State) -> BTreeMap<(Duration, u64), Waker>) {
        let woken = take(&mut self.0.state.lock().expect("no code panics under it"));
        woken.into_values().for_each(Waker::wake);
    }

    /// Time since it was made.
    pub fn now(&self) -> Duration {
        self.0.state.lock().expect("no code panics under it").now()
    }

    fn wall_ms(&self) -> u64 {
        let since = u64::try_from(self.now().as_millis()).unwrap_or(u64::MAX);
        self.0.wall_ms.saturating_add(since)
    }

    /// Ready when it is `until`, or, with what is left, when it goes by itself. `place` is where it
    /// waits meanwhile.
    fn poll_until(
        &self,
        until: Duration,
        place: &mut Option<u64>,
        cx: &Context<'_>,
    ) -> Poll<Duration> {
        let mut state = self.0.state.lock().expect("no code panics under it");
        let left = until.saturating_sub(state.now());
        if left.is_zero() || state.released.is_some() {
            place.take().and_then(|number| state.sleepers.remove(&(until, number)));
            return Poll::Ready(left);
        }
        let number = *place.get_or_insert_with(|| {
            state.next += 1;
            state.next
        });
        state.sleepers.insert((until, number), cx.waker().clone());
        Poll::Pending
    }

    fn sleep(&self, duration: Duration) -> impl Future<Output = ()> + 'static {
        let until = self.now().saturating_add(duration);
        let mut sleeper = Sleeper { clock: self.clone(), until, number: None };
        async move {
            let left = poll_fn(|cx| {
                let Sleeper { clock, until, number } = &mut sleeper;
                clock.poll_until(*until, number, cx)
            })
            .await;
            drop(sleeper);
            system_sleep(left).await;
        }
    }
}

impl Default for TestClock {
    fn default() -> Self {
        Self::new()
    }
}

impl State {
    fn now(&self) -> Duration {
        let since = self.released.map_or(Duration::ZERO, |released| released.elapsed());
        self.now.saturating_add(since)
    }
}

/// One who sleeps. Dropped, it is woken no more.
struct Sleeper {
    clock: TestClock,
    until: Duration,
    number: Option<u64>,
}

impl Drop for Sleeper {
    fn drop(&mut self) {
        if let Some(number) = self.number {
            let state = self.clock.0.state.lock();
            let left =
                state.expect("no code panics under it").sleepers.remove(&(self.until, number));
            drop(left);
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "the seam to the real world")]
async fn system_sleep(duration: Duration) {
    if !duration.is_zero() {
        tokio::time::sleep(duration).await;
    }
}

/// The clock of one core, and since when the system's is counted.
pub(crate) struct CoreClock {
    clock: Clock,
    started: Instant,
}

impl CoreClock {
    pub(crate) fn new(clock: Clock) -> Self {
        Self { clock, started: *STARTED }
    }

    pub(crate) fn now(&self) -> Duration {
        match &self.clock {
            Clock::System => self.started.elapsed(),
            Clock::Test(clock) => clock.now(),
        }
    }

    pub(crate) fn wall_ms(&self) -> u64 {
        match &self.clock {
            Clock::System => system_ms(),
            Clock::Test(clock) => clock.wall_ms(),
        }
    }

    #[expect(clippy::disallowed_methods, reason = "the seam to the real world")]
    pub(crate) fn sleep(&self, duration: Duration) -> impl Future<Output = ()> + 'static {
        match &self.clock {
            Clock::System => Either::Left(tokio::time::sleep(duration)),
            Clock::Test(clock) => Either::Right(clock.sleep(duration).boxed_local()),
        }
    }
}

#[cfg(all(test, not(dormouse_loom)))]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn it_stands_still_until_it_is_moved() {
        let clock = TestClock::new();
        let (began, wall) = (clock.now(), clock.wall_ms());
        let mut early = Box::pin(clock.sleep(SECOND));
        let mut late = Box::pin(clock.sleep(3 * SECOND));
        assert!((&mut early).now_or_never().is_none() && (&mut late).now_or_never().is_none());
        clock.advance(2 * SECOND);
        assert_eq!((clock.now() - began, clock.wall_ms() - wall), (2 * SECOND, 2000));
        assert!(early.now_or_never().is_some() && (&mut late).now_or_never().is_none());
        clock.advance(SECOND);
        assert!(late.now_or_never().is_some());
        assert!(clock.0.state.lock().unwrap().sleepers.is_empty());
    }

    #[test]
    fn who_sleeps_no_more_leaves_nothing_behind() {
        let clock = TestClock::new();
        let mut sleep = Box::pin(clock.sleep(SECOND));
        assert!((&mut sleep).now_or_never().is_none());
        assert_eq!(clock.0.state.lock().unwrap().sleepers.len(), 1);
        drop(sleep);
        assert!(clock.0.state.lock().unwrap().sleepers.is_empty());
    }

    #[test]
    fn released_it_goes_by_itself() {
        let clock = TestClock::new();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let began = clock.now();
        let mut sleep = Box::pin(clock.sleep(Duration::from_millis(5)));
        assert!((&mut sleep).now_or_never().is_none());
        clock.release();
        runtime.block_on(sleep);
        assert!(clock.now() - began >= Duration::from_millis(5));
    }
}

#[cfg(all(test, dormouse_loom))]
mod models {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::Wake;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    struct Wakes(AtomicUsize);

    impl Wake for Wakes {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    /// A sleep that begins against a clock that is moved: it is over, or woken.
    fn sleep_against(advance: impl Fn(&TestClock) + Send + Sync + 'static) {
        let advance = Arc::new(advance);
        loom::model(move || {
            let clock = TestClock::new();
            let (theirs, act) = (clock.clone(), advance.clone());
            let thread = loom::thread::spawn(move || act(&theirs));
            let wakes = Arc::new(Wakes(AtomicUsize::new(0)));
            let waker = Waker::from(wakes.clone());
            let polled = clock.poll_until(SECOND, &mut None, &Context::from_waker(&waker));
            thread.join().expect("it ends");
            assert!(polled.is_ready() || wakes.0.load(Ordering::SeqCst) > 0, "it is overslept");
        });
    }

    #[test]
    fn loom_no_sleeper_is_forgotten() {
        sleep_against(|clock| clock.advance(SECOND));
        sleep_against(TestClock::release);
    }

    #[test]
    #[should_panic(expected = "it is overslept")]
    fn loom_a_clock_that_wakes_before_it_moves_forgets_one() {
        sleep_against(|clock| {
            clock.wake(|state| std::mem::take(&mut state.sleepers));
            clock.0.state.lock().expect("no code panics under it").now = SECOND;
        });
    }
}
