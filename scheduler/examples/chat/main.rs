//! Chat rooms that sleep while nobody talks: `cargo chat [DIR] [ADDRESS] [--idle SECONDS]`, then open
//! the address.
//!
//! A room, its history and its members' sockets are `room.rs`; who says too much is `limiter.rs`'s
//! to know; which path is what, `web.rs`'s; what people see is `chat.html`.

mod limiter;
pub(crate) mod room;
pub(crate) mod web;

use std::time::Duration;

use dormouse_scheduler::prelude::*;
use dormouse_scheduler::until_signal;

const USAGE: &str = "cargo chat [DIR] [ADDRESS] [--idle SECONDS]
  DIR      where rooms are kept; target/chat unless said
  ADDRESS  where to listen; 127.0.0.1:8787 unless said
  --idle   how long a room is awake with nothing to do; 10 unless said";

fn main() -> Result<()> {
    run(std::env::args().skip(1))
}

/// Serves until a signal comes.
pub(crate) fn run(args: impl Iterator<Item = String>) -> Result<()> {
    let Some((dir, address, idle)) = parse(args) else {
        eprintln!("{USAGE}");
        std::process::exit(2);
    };
    let runtime = web::start(&dir, idle, None)?;
    let address = runtime.serve_router(address, web::router(&runtime)).wait()?;
    println!("http://{address}/   (what is said is kept in {dir}; Ctrl-C ends it)");
    until_signal()?;
    runtime.close()
}

fn parse(mut args: impl Iterator<Item = String>) -> Option<(String, String, Duration)> {
    let (mut places, mut idle) = (Vec::new(), Duration::from_secs(10));
    while let Some(arg) = args.next() {
        match &*arg {
            "--idle" => idle = Duration::try_from_secs_f64(args.next()?.parse().ok()?).ok()?,
            _ if arg.starts_with('-') => return None,
            _ => places.push(arg),
        }
    }
    let mut places = places.into_iter();
    let dir = places.next().unwrap_or_else(|| "target/chat".to_owned());
    let address = places.next().unwrap_or_else(|| "127.0.0.1:8787".to_owned());
    places.next().is_none().then_some((dir, address, idle))
}
