//! Chat rooms that sleep while nobody talks: `cargo chat [DIR] [ADDRESS] [--idle SECONDS] [--metrics ADDRESS]`, then
//! open the address. Metrics are served on an address of their own, if one is given.
//!
//! A room, its history and its members' sockets are `room.rs`; who says too much is `limiter.rs`'s
//! to know; which path is what, `web.rs`'s; what people see is `chat.html`.

mod limiter;
pub(crate) mod room;
pub(crate) mod web;

use std::time::Duration;

use dormouse_scheduler::prelude::*;
use dormouse_scheduler::until_signal;

const USAGE: &str = "cargo chat [DIR] [ADDRESS] [--idle SECONDS] [--metrics ADDRESS]
  DIR        where rooms are kept; target/chat unless said
  ADDRESS    where to listen; 127.0.0.1:8787 unless said
  --idle     how long a room is awake with nothing to do; 10 unless said
  --metrics  where to serve metrics; nowhere unless said";

fn main() -> Result<()> {
    run(std::env::args().skip(1))
}

/// Serves until a signal comes.
pub(crate) fn run(args: impl Iterator<Item = String>) -> Result<()> {
    let Some(Options { dir, address, idle, metrics }) = parse(args) else {
        eprintln!("{USAGE}");
        std::process::exit(2);
    };
    let runtime = web::start(&dir, idle, None)?;
    let address = runtime.serve_router(address, web::router(&runtime)).wait()?;
    if let Some(metrics) = metrics {
        let address = runtime.serve_metrics(metrics).wait()?;
        println!("http://{address}/metrics");
    }
    println!("http://{address}/   (what is said is kept in {dir}; Ctrl-C ends it)");
    until_signal()?;
    runtime.close()
}

struct Options {
    dir: String,
    address: String,
    idle: Duration,
    metrics: Option<String>,
}

fn parse(mut args: impl Iterator<Item = String>) -> Option<Options> {
    let (mut places, mut idle, mut metrics) = (Vec::new(), Duration::from_secs(10), None);
    while let Some(arg) = args.next() {
        match &*arg {
            "--idle" => idle = Duration::try_from_secs_f64(args.next()?.parse().ok()?).ok()?,
            "--metrics" => metrics = Some(args.next()?),
            _ if arg.starts_with('-') => return None,
            _ => places.push(arg),
        }
    }
    let mut places = places.into_iter();
    let dir = places.next().unwrap_or_else(|| "target/chat".to_owned());
    let address = places.next().unwrap_or_else(|| "127.0.0.1:8787".to_owned());
    places.next().is_none().then_some(Options { dir, address, idle, metrics })
}
