//! What a socket takes in memory that says nothing while its object sleeps, counted by the allocator: by
//! itself, and with its connection, while that is carried and when it rests. What is counted for it
//! (`SocketLimits::core_bytes`) is worth what that is worth. Prints all of it:
//! `cargo test --release -p dormouse-scheduler --features server --test silent -- --nocapture`.
//!
//! One test, for its allocator counts the whole process.

#![expect(clippy::disallowed_types, reason = "clients on a real network")]
#![expect(clippy::disallowed_methods, reason = "threads and the real clock")]

use std::alloc::System;
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use dormouse_engine::call::wait;
use dormouse_scheduler::prelude::*;
use dormouse_scheduler::{ClientSocket, Received, SOCKET_BYTES, ServerOptions};
use stats_alloc::{INSTRUMENTED_SYSTEM, StatsAlloc};
use tungstenite::WebSocket as Client;

#[global_allocator]
static GLOBAL: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// As many are open before: what grows with the first ones is not theirs. Both ends of all need file
/// descriptors.
const SOCKETS: usize = 200;
/// At most so many bytes for one without its connection. The target is 1,024.
const SOCKET_MAX: usize = 660;
/// At most so many with one that rests, the kernel's left out. The target is 1,024.
const RESTING_MAX: usize = 900;
/// At most so many with one that is carried.
const CARRIED_MAX: usize = 1750;

/// Bytes that are allocated now.
fn heap() -> usize {
    let stats = GLOBAL.stats();
    stats.bytes_allocated - stats.bytes_deallocated
}

/// Echoes.
struct Room(State);

impl DurableObject for Room {
    fn new(state: State) -> Self {
        Self(state)
    }

    async fn fetch(&self, request: Request) -> Result<Response> {
        let socket = request.web_socket_upgrade()?.ok_or_else(|| Error::user("no socket"))?;
        self.0.accept_web_socket(&socket, ["client"])?;
        Ok(socket.into_response())
    }

    async fn web_socket_message(&self, socket: &WebSocket, message: Message) -> Result<()> {
        socket.send(message)
    }
}

/// A socket without a transport, which has said something once.
fn in_process(room: &Stub<Room>) -> ClientSocket {
    let request = Request::get("/").body(Body::default()).unwrap().with_web_socket_upgrade();
    let client = room.fetch(request).wait().unwrap().take_web_socket().unwrap();
    wait(client.send("hello")).unwrap();
    assert_eq!(wait(client.recv()), Some(Received::Message("hello".into())));
    client
}

/// One over TCP. Its client keeps nothing but the connection.
fn over_tcp(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).expect("connected; see `ulimit -n`");
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let mut client: Client<TcpStream> =
        tungstenite::client(format!("ws://{address}/rooms/silent/"), stream).expect("accepted").0;
    client.send("hello".into()).unwrap();
    assert_eq!(client.read().unwrap(), "hello".into());
    client.get_ref().try_clone().unwrap()
}

/// What each of many more takes.
fn each<T>(runtime: &Runtime, room: &Stub<Room>, open: impl Fn() -> T) -> usize {
    let mut all = Vec::with_capacity(2 * SOCKETS);
    let mut heap_with = |sockets: usize| {
        all.extend((0..sockets).map(|_| open()));
        wait(runtime.evict(room.id()));
        // What was needed to open the last ones goes soon.
        let settled = Instant::now() + Duration::from_millis(300);
        std::iter::repeat_with(|| {
            std::thread::sleep(Duration::from_millis(10));
            heap()
        })
        .take_while(|_| Instant::now() < settled)
        .min()
        .unwrap()
    };
    let before = heap_with(SOCKETS);
    heap_with(SOCKETS).saturating_sub(before) / SOCKETS
}

#[test]
fn a_socket_that_says_nothing_takes_little() {
    let dir = tempfile::tempdir().unwrap();
    let runtime = Runtime::builder(dir.path()).cores(1).namespace::<Room>("rooms");
    let runtime = runtime.start().unwrap();
    let serve = |rest_time| {
        let options = ServerOptions { rest_time, ..ServerOptions::PRODUCTION };
        runtime.serve_router("127.0.0.1:0", runtime.router(options)).wait().unwrap()
    };
    let awake = serve(Duration::from_secs(10));
    let asleep = serve(Duration::from_millis(50));
    let room = runtime.namespace::<Room>().get_by_name("silent");

    let socket = each(&runtime, &room, || in_process(&room));
    let carried = each(&runtime, &room, || over_tcp(awake));
    let resting = each(&runtime, &room, || over_tcp(asleep));
    println!(
        "a silent socket: {socket} bytes; with its connection {carried}, counted {SOCKET_BYTES}; while \
         that rests {resting}"
    );
    assert!(socket <= SOCKET_MAX, "{socket} bytes for each silent socket");
    assert!(resting <= RESTING_MAX, "{resting} bytes for each connection that rests");
    assert!(carried <= CARRIED_MAX, "{carried} bytes for each silent connection");
    assert!(carried <= SOCKET_BYTES, "{carried} bytes, counted {SOCKET_BYTES}");
    assert!(SOCKET_BYTES <= carried * 3 / 2, "{carried} bytes, counted {SOCKET_BYTES}");
    runtime.close().unwrap();
}
