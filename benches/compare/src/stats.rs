//! Medians, spreads, and the latencies and rate of a closed loop.

use std::time::{Duration, Instant};

use hdrhistogram::Histogram;

/// What the rounds gave for one metric of one engine.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Summary {
    pub median: f64,
    pub min: f64,
    pub max: f64,
    pub rounds: usize,
}

/// The summary of one figure from each round; `None` without any.
pub(crate) fn summarize(values: &[f64]) -> Option<Summary> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let (min, max) = (*sorted.first()?, *sorted.last()?);
    let middle = sorted.len() / 2;
    let median = match sorted.len() % 2 {
        1 => sorted[middle],
        _ => f64::midpoint(sorted[middle - 1], sorted[middle]),
    };
    Some(Summary { median, min, max, rounds: sorted.len() })
}

/// Latencies in nanoseconds and how long the whole took.
pub(crate) struct Timing {
    pub latencies: Histogram<u64>,
    pub elapsed: Duration,
    /// What was done, where one latency stands for many (a group of commits).
    pub done: u64,
    /// The same, the warm-up included.
    pub total: u64,
}

impl Timing {
    pub(crate) fn new() -> Self {
        // A minute at most, which all commits that end do.
        let latencies = Histogram::new_with_max(60_000_000_000, 3).expect("a range and digits");
        Self { latencies, elapsed: Duration::ZERO, done: 0, total: 0 }
    }

    pub(crate) fn record(&mut self, latency: Duration, done: u64) {
        let nanoseconds = u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX).max(1);
        self.latencies.saturating_record(nanoseconds);
        self.done += done;
        self.total += done;
    }

    pub(crate) fn rate(&self) -> f64 {
        self.done as f64 / self.elapsed.as_secs_f64()
    }

    pub(crate) fn mean_us(&self) -> f64 {
        1e6 / self.rate()
    }

    pub(crate) fn quantile_us(&self, quantile: f64) -> f64 {
        self.latencies.value_at_quantile(quantile) as f64 / 1e3
    }
}

/// When a loop is over: the time for it, and the first tenth is not counted.
#[derive(Clone, Copy)]
pub(crate) struct Window {
    pub warm: Instant,
    pub end: Instant,
}

impl Window {
    pub(crate) fn new(measure: Duration) -> Self {
        let warm = Instant::now() + measure / 10;
        Self { warm, end: warm + measure }
    }
}

/// Calls `once` again and again for `measure`, after a warm-up; it says how much it did.
pub(crate) fn closed_loop<E>(
    measure: Duration,
    mut once: impl FnMut() -> Result<u64, E>,
) -> Result<Timing, E> {
    let window = Window::new(measure);
    let mut timing = Timing::new();
    while Instant::now() < window.warm {
        timing.total += once()?;
    }
    // The last call of the warm-up may have taken long.
    let began = Instant::now();
    let (mut before, end) = (began, began + measure);
    while before < end {
        let done = once()?;
        let now = Instant::now();
        timing.record(now - before, done);
        before = now;
    }
    timing.elapsed = before - began;
    Ok(timing)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle_one() {
        let summary = summarize(&[3.0, 1.0, 2.0]).expect("values");
        assert_eq!(summary, Summary { median: 2.0, min: 1.0, max: 3.0, rounds: 3 });
        assert_eq!(summarize(&[4.0, 1.0]).expect("values").median, 2.5);
        assert_eq!(summarize(&[]), None);
    }

    #[test]
    fn a_rate_counts_what_was_done_and_not_calls() {
        let mut timing = Timing::new();
        for _ in 0..10 {
            timing.record(Duration::from_millis(1), 64);
        }
        timing.elapsed = Duration::from_millis(10);
        assert!((timing.rate() - 64_000.0).abs() < 1.0);
        assert!((timing.mean_us() - 15.625).abs() < 0.01);
        assert!((timing.quantile_us(0.5) - 1_000.0).abs() < 10.0);
    }

    #[test]
    fn a_loop_ends_and_leaves_its_warm_up_out() {
        let mut calls = 0;
        let timing = closed_loop::<()>(Duration::from_millis(20), || {
            calls += 1;
            std::thread::sleep(Duration::from_millis(1));
            Ok(1)
        });
        let timing = timing.expect("no error");
        assert!(timing.done > 0 && timing.done < calls);
        assert_eq!(timing.total, calls);
        assert!(timing.elapsed >= Duration::from_millis(20));
    }
}
