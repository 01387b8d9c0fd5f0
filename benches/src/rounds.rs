//! How often an operation is repeated, and what is read of the world before and after.

/// How often to do something.
#[derive(Clone, Copy, Debug)]
pub struct Rounds {
    /// First, so that what is done once is done.
    pub warm_up: u64,
    /// Then, between the two readings.
    pub measured: u64,
}

/// Two readings: before the measured rounds, and after them.
#[derive(Clone, Copy, Debug)]
pub struct Span<R> {
    /// Before.
    pub from: R,
    /// After.
    pub to: R,
}

impl Rounds {
    /// Does `round` so often; it is given the number of the round, from zero on. `read` is called on
    /// the thread that does the rounds.
    pub async fn span<R>(self, read: fn() -> R, mut round: impl AsyncFnMut(u64)) -> Span<R> {
        for number in 0..self.warm_up {
            round(number).await;
        }
        let from = read();
        for number in self.warm_up..self.warm_up + self.measured {
            round(number).await;
        }
        Span { from, to: read() }
    }
}
