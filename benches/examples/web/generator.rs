//! The load: connections that stay open, each sending its next request when the last one is answered.
//!
//! It is the same for all servers, and is itself part of what the floor shows: a rate near the floor's may be bounded
//! by this thread and not by the server.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::Uri;
use tokio::runtime::Runtime;

use crate::Result;
use crate::client::{ANSWER_TIME, Connection};
use crate::objects::NAMESPACE;
use crate::rows::Load;

/// Objects that a load is spread over whose path has a star.
pub(crate) const MANY: usize = 1000;

/// What a load found.
pub(crate) struct Found {
    /// Answers each second.
    pub(crate) rate: f64,
    pub(crate) p50_us: f64,
    pub(crate) p99_us: f64,
}

/// Loads a server for `measure`, after a warm-up.
pub(crate) fn run(
    runtime: &Runtime,
    address: SocketAddr,
    load: Load,
    warm: Duration,
    measure: Duration,
) -> Result<Found> {
    let paths: Arc<[Uri]> =
        paths(load.path).iter().map(|path| path.parse()).collect::<std::result::Result<_, _>>()?;
    let latencies = async {
        let mut tasks = Vec::new();
        for number in 0..load.connections {
            let connection = Connection::open(address).await?;
            tasks.push((number, connection));
        }
        let from = Instant::now() + warm;
        let window = (from, from + measure);
        let tasks: Vec<_> = tasks
            .into_iter()
            .map(|(number, connection)| {
                let random = Random(0x9e37_79b9_7f4a_7c15 ^ (number as u64 + 1));
                tokio::spawn(requests(connection, paths.clone(), random, window))
            })
            .collect();
        let mut latencies = Vec::new();
        for task in tasks {
            latencies.extend(task.await??);
        }
        Result::Ok(latencies)
    };
    // One time limit for all: one for each request would be work of the load's.
    let limit = warm + measure + ANSWER_TIME;
    let latencies = runtime.block_on(async { tokio::time::timeout(limit, latencies).await })??;
    found(latencies, measure)
}

/// All paths that a star stands for.
fn paths(path: &str) -> Vec<String> {
    let count = if path.contains('*') { MANY } else { 1 };
    (0..count).map(|n| format!("/{NAMESPACE}/{}", path.replace('*', &n.to_string()))).collect()
}

/// How long each request took that was answered within the window.
async fn requests(
    mut connection: Connection,
    paths: Arc<[Uri]>,
    mut random: Random,
    (from, to): (Instant, Instant),
) -> Result<Vec<Duration>> {
    let mut taken = Vec::new();
    let mut before = Instant::now();
    while before < to {
        connection.request(&paths[random.below(paths.len())]).await?;
        let now = Instant::now();
        if now >= from && now < to {
            taken.push(now - before);
        }
        before = now;
    }
    Ok(taken)
}

fn found(mut taken: Vec<Duration>, measure: Duration) -> Result<Found> {
    taken.sort_unstable();
    let quantile = |per_mille: usize| {
        let at = taken.len() * per_mille / 1000;
        taken.get(at).map(|taken| taken.as_secs_f64() * 1e6).ok_or("nothing was answered in time")
    };
    Ok(Found {
        rate: taken.len() as f64 / measure.as_secs_f64(),
        p50_us: quantile(500)?,
        p99_us: quantile(990)?,
    })
}

/// A xorshift generator, so that all servers are asked for the same objects.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        // The upper half: an index is far below 2^32.
        usize::try_from(self.0 >> 32).unwrap_or_default() % bound
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_stands_for_a_thousand_objects() {
        assert_eq!(paths("hot/get"), ["/objects/hot/get"]);
        let many = paths("many-*/increment");
        assert_eq!((many.len(), many[7].as_str()), (MANY, "/objects/many-7/increment"));
    }

    #[test]
    fn a_rate_counts_answers_and_quantiles_are_of_the_sorted_ones() {
        let taken = (1..=1000).rev().map(Duration::from_micros).collect();
        let found = found(taken, Duration::from_secs(2)).expect("answers");
        assert!((found.rate - 500.0).abs() < 0.01);
        assert!((found.p50_us - 501.0).abs() < 0.01 && (found.p99_us - 991.0).abs() < 0.01);
        assert!(super::found(Vec::new(), Duration::from_secs(1)).is_err());
    }

    #[test]
    fn random_objects_are_below_the_bound_and_not_always_the_same() {
        let mut random = Random(1);
        let drawn: Vec<_> = (0..100).map(|_| random.below(MANY)).collect();
        assert!(drawn.iter().all(|index| *index < MANY));
        assert!(drawn.windows(2).any(|pair| pair[0] != pair[1]));
    }
}
