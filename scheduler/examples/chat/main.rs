//! Chat rooms that sleep while nobody talks: `cargo chat [DIR] [ADDRESS] [METRICS]`, then open the address. Metrics are
//! served on an address of their own, if one is given: `cargo chat target/chat 127.0.0.1:8787 127.0.0.1:9090`.
//!
//! Rooms, history and members' sockets are `room.rs`; what people see is `chat.html`.

mod room;

use dormouse_scheduler::prelude::*;
use dormouse_scheduler::until_signal;

fn main() -> Result<()> {
    let mut args = std::env::args().skip(1);
    let dir = args.next().unwrap_or_else(|| "target/chat".to_owned());
    let address = args.next().unwrap_or_else(|| "127.0.0.1:8787".to_owned());
    let runtime = Runtime::builder(&dir).namespace::<room::Room>("rooms").start()?;
    let address = runtime.serve_router(address, room::router(&runtime)).wait()?;
    if let Some(address) = args.next() {
        let address = runtime.serve_metrics(address).wait()?;
        println!("http://{address}/metrics");
    }
    println!("http://{address}/   (what is said is kept in {dir}; Ctrl-C ends it)");
    until_signal()?;
    runtime.close()
}
