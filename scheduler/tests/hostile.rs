//! A server as a process of its own under clients that mean it ill: its memory stays within what its
//! bounds say, each connection ends as it should, and those who mean well are served meanwhile.
//!
//! Memory is the process's highest resident set during an attack, less what it was before. Two
//! thousand connections need as many file descriptors: `ulimit -n 8192`, if less are allowed.

#![expect(clippy::disallowed_types, reason = "clients on a real network")]
#![expect(clippy::disallowed_methods, reason = "processes, threads and the real clock")]

#[path = "server/rig.rs"]
#[expect(dead_code, reason = "what only the server's tests need")]
mod rig;

use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use dormouse_scheduler::ServerOptions;
use rig::{Rig, masked, read_answer};
use tungstenite::protocol::Role;
use tungstenite::{Error, Message, WebSocket};

const KIB: usize = 1 << 10;
const MIB: usize = 1 << 20;
/// A client that waits longer for something fails the test.
const WAIT: Duration = Duration::from_secs(30);
/// Connections that begin a handshake and never finish it.
const HALF_OPEN: usize = 2000;

const OPTIONS: ServerOptions = ServerOptions {
    header_time: Duration::from_secs(5),
    close_time: Duration::from_secs(2),
    partial_bytes: 8 * MIB,
    ..ServerOptions::PRODUCTION
};

/// The server, until the test is over.
#[test]
fn child() {
    if std::env::var("DORMOUSE_HOSTILE").is_err() {
        return;
    }
    let rig = Rig::with(OPTIONS);
    println!("serves {}", rig.address);
    let _until_it_is_killed = std::io::stdin().read(&mut [0]);
    std::process::exit(0);
}

struct Server {
    process: Child,
    address: SocketAddr,
}

impl Server {
    fn start() -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "child", "--nocapture"]).env("DORMOUSE_HOSTILE", "1");
        let mut process = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(process.stdout.take().unwrap()).lines();
        let address = lines
            .find_map(|line| Some(line.ok()?.split_once("serves ")?.1.parse().unwrap()))
            .expect("the server ended before it served");
        std::thread::spawn(move || lines.for_each(drop));
        Self { process, address }
    }

    fn stream(&self) -> TcpStream {
        stream(self.address)
    }

    fn socket(&self, room: &str) -> WebSocket<TcpStream> {
        let url = format!("ws://{}/rooms/{room}/", self.address);
        tungstenite::client(url, self.stream()).expect("accepted").0
    }

    fn proc(&self, file: &str) -> String {
        format!("/proc/{}/{file}", self.process.id())
    }

    /// A line of the process's status, in bytes.
    fn status(&self, name: &str) -> usize {
        let status = std::fs::read_to_string(self.proc("status")).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        line.trim().trim_end_matches(" kB").parse::<usize>().unwrap() * KIB
    }

    fn open_files(&self) -> usize {
        std::fs::read_dir(self.proc("fd")).unwrap().count()
    }

    /// What `attack` made its memory grow by, at its height.
    fn growth(&self, attack: impl FnOnce(&Self)) -> usize {
        // The mark of the highest is set to what is now.
        std::fs::write(self.proc("clear_refs"), "5").unwrap();
        let before = self.status("VmRSS:");
        attack(self);
        self.status("VmHWM:").saturating_sub(before)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _it_may_be_dead = self.process.kill();
        let _it_is_reaped = self.process.wait();
    }
}

fn stream(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).expect("connected; see `ulimit -n`");
    stream.set_read_timeout(Some(WAIT)).unwrap();
    stream.set_write_timeout(Some(WAIT)).unwrap();
    stream
}

/// Somebody who means well, on a socket and by requests, until it is told to stop.
struct Innocent {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Duration>,
}

impl Innocent {
    fn start(address: SocketAddr) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = std::thread::spawn(move || {
            let url = format!("ws://{address}/rooms/innocent/");
            let (mut socket, _) = tungstenite::client(url, stream(address)).expect("accepted");
            let mut longest = Duration::ZERO;
            for n in 0.. {
                let begun = Instant::now();
                socket.send(Message::text(format!("{n}"))).expect("it is served");
                assert_eq!(socket.read().expect("it is served"), Message::text(format!("{n}")));
                let mut request = stream(address);
                request.write_all(b"GET /rooms/innocent/x HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
                assert_eq!(read_answer(&mut request), "200 innocent GET /x ");
                longest = longest.max(begun.elapsed());
                if stopped.load(Ordering::Acquire) {
                    break;
                }
                std::thread::sleep(Duration::from_millis(5));
            }
            longest
        });
        Self { stop, thread }
    }

    /// The longest that it waited.
    fn stop(self) -> Duration {
        self.stop.store(true, Ordering::Release);
        self.thread.join().expect("whoever means well is served")
    }
}

/// All that still comes, until the connection ends.
fn rest(stream: &mut TcpStream) -> Vec<u8> {
    let mut rest = Vec::new();
    let end = stream.read_to_end(&mut rest);
    // A reset is an end as well; that nothing comes is none.
    assert!(!end.is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock), "it hangs");
    rest
}

/// The code that a socket is closed with, if it is told.
fn close_code(socket: &mut WebSocket<TcpStream>) -> Option<u16> {
    loop {
        match socket.read() {
            Ok(Message::Close(close)) => return close.map(|close| close.code.into()),
            Ok(_) => {}
            Err(_) => return None,
        }
    }
}

fn half_open(server: &Server) {
    let (mut half, mut most) = (Vec::new(), 0);
    for n in 0..HALF_OPEN {
        let mut stream = server.stream();
        let head = b"GET /rooms/a/ HTTP/1.1\r\nhost: x\r\nupgrade: websocket\r\nconnec";
        stream.write_all(&head[..n % head.len()]).unwrap();
        half.push(stream);
        if n % 100 == 99 {
            most = most.max(server.open_files());
        }
    }
    // On a slow machine the first are gone before the last come.
    assert!(most > HALF_OPEN / 3, "only {most} at a time");
    for stream in half.iter_mut().take(20) {
        let rest = rest(stream);
        assert!(!rest.starts_with(b"HTTP/1.1 101"), "no handshake");
    }
}

fn header_flood(server: &Server) {
    let long = format!("flood: {}\r\n", "x".repeat(MIB));
    let many = (0..20_000).map(|n| format!("h{n}: x\r\n")).collect::<String>();
    for flood in [long, many] {
        let streams: Vec<_> = (0..30)
            .map(|_| {
                let (mut stream, flood) = (server.stream(), flood.clone());
                std::thread::spawn(move || {
                    let _it_may_be_cut = write!(stream, "GET / HTTP/1.1\r\n{flood}\r\n");
                    let rest = rest(&mut stream);
                    // Told, unless it was still writing when it was cut.
                    assert!(rest.is_empty() || rest.starts_with(b"HTTP/1.1 431"));
                })
            })
            .collect();
        streams.into_iter().for_each(|stream| stream.join().unwrap());
    }
}

/// What is no HTTP at all.
fn garbage(server: &Server) {
    let mut random = Random(7);
    for n in 0..200 {
        let mut stream = server.stream();
        let bytes = random.bytes(1 + n * 5);
        let _it_may_be_cut =
            stream.write_all(&bytes).and_then(|()| stream.shutdown(Shutdown::Write));
        let rest = rest(&mut stream);
        assert!(rest.is_empty() || rest.starts_with(b"HTTP/1.1 400"), "{rest:?}");
    }
}

/// Lengths that nobody could keep are refused before a byte of them comes.
fn huge_lengths(server: &Server) {
    let mut sockets: Vec<_> = (0..200).map(|_| server.socket("huge")).collect();
    for (n, socket) in sockets.iter_mut().enumerate() {
        let len = (u64::MAX >> (n % 40)).to_be_bytes();
        let header = [&[0x82, 0xff][..], &len, &[0; 4]].concat();
        socket.get_mut().write_all(&header).unwrap();
        assert_eq!(close_code(socket), Some(1009));
    }
}

/// Messages of a mebibyte that never end: what all of them hold together has a bound.
fn endless_messages(server: &Server) {
    let fragment = masked(0x00, &vec![b'x'; 64 * KIB]);
    let mut sockets: Vec<_> = (0..60).map(|_| server.socket("endless")).collect();
    for socket in &mut sockets {
        socket.get_mut().write_all(&masked(0x01, b"begins")).unwrap();
    }
    for socket in &mut sockets {
        // It goes on though it was told, as the worst would.
        let _it_may_be_cut = (0..15).try_for_each(|_| socket.get_mut().write_all(&fragment));
    }
    // It takes a while to read all that; then those are left that fit.
    let begun = Instant::now();
    while sockets.len() > 10 {
        assert!(begun.elapsed() < WAIT, "{} of 60 hold a mebibyte each", sockets.len());
        sockets.retain(|socket| {
            socket.get_ref().set_read_timeout(Some(Duration::from_millis(20))).unwrap();
            match WebSocket::from_raw_socket(socket.get_ref(), Role::Client, None).read() {
                Ok(Message::Close(close)) => {
                    assert_eq!(close.map(|close| u16::from(close.code)), Some(1013));
                    false
                }
                Err(Error::Io(error)) => error.kind() == ErrorKind::WouldBlock,
                other => panic!("{other:?}"),
            }
        });
    }
    assert!(!sockets.is_empty(), "some of them fit");
    drop(sockets);
    // When they are gone there is room again.
    let begun = Instant::now();
    loop {
        let mut socket = server.socket("endless");
        socket.send(Message::binary(vec![1; MIB])).ok();
        if matches!(socket.read(), Ok(Message::Binary(bytes)) if bytes.len() == MIB) {
            return;
        }
        assert!(begun.elapsed() < WAIT, "no room came back");
    }
}

/// A byte now and then.
fn slow_writers(server: &Server) {
    let frame = masked(0x81, b"slow but sure");
    let mut sockets: Vec<_> = (0..200).map(|_| server.socket("slow")).collect();
    for byte in &frame {
        for socket in &mut sockets {
            socket.get_mut().write_all(&[*byte]).unwrap();
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    for socket in &mut sockets {
        assert_eq!(socket.read().unwrap(), Message::text("slow but sure"));
    }
}

/// Asks for much and reads nothing.
fn slow_readers(server: &Server) {
    let mut sockets: Vec<_> = (0..5).map(|_| server.socket("readers")).collect();
    for socket in &mut sockets {
        socket.send(Message::text("flood")).unwrap();
    }
    for socket in &mut sockets {
        let Message::Text(first) = socket.read().unwrap() else { panic!("a text") };
        assert!(first.starts_with("0 "));
    }
}

/// Pings without end, and no answer is read.
fn ping_flood(server: &Server) {
    let pings = masked(0x89, &[b'p'; 125]).repeat(100);
    let mut sockets: Vec<_> = (0..4).map(|_| server.socket("pings")).collect();
    for socket in &mut sockets {
        let stream = socket.get_mut();
        stream.set_write_timeout(Some(Duration::from_millis(300))).unwrap();
        // 65 MB; long before that it is held back.
        let held_back = (0..5000).any(|_| stream.write_all(&pings).is_err());
        assert!(held_back, "the server takes pings without end");
    }
}

/// Bytes that are no frames, and frames with a byte changed: told why, or cut, or none of it.
fn changed_frames(server: &Server) {
    let mut random = Random(11);
    for n in 0..300 {
        let mut socket = server.socket("changed");
        let mut bytes = [
            masked(0x01, "héllo ".as_bytes()),
            masked(0x89, b"ping"),
            masked(0x80, b"again"),
            masked(0x82, &random.bytes(300)),
        ]
        .concat();
        match n % 3 {
            0 => bytes = random.bytes(500),
            _ => {
                let at = random.index(bytes.len());
                bytes[at] ^= 1 << (random.next() % 8);
            }
        }
        let stream = socket.get_mut();
        let _it_may_be_cut = stream.write_all(&bytes);
        let _it_may_be_cut = stream.write_all(&masked(0x88, &[0x0f, 0xa0]));
        stream.shutdown(Shutdown::Write).ok();
        if let Some(code) = close_code(&mut socket) {
            assert!([1002, 1007, 1009].contains(&code), "{code} for {bytes:x?}");
        }
    }
}

/// Pages of others, and what only looks like a handshake.
fn foreign_handshakes(server: &Server) {
    let host = server.address;
    for (origin, status) in [
        (format!("http://{host}"), "101"),
        ("http://evil.example".to_owned(), "403"),
        (format!("http://{host}.evil.example"), "403"),
        (format!("http://evil.example/{host}"), "403"),
        (format!("http://evil@{host}"), "403"),
        ("null".to_owned(), "403"),
        (String::new(), "403"),
    ] {
        let mut stream = server.stream();
        write!(
            stream,
            "GET /rooms/a/ HTTP/1.1\r\nhost: {host}\r\nconnection: upgrade\r\nupgrade: websocket\r\n\
             sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
             origin: {origin}\r\n\r\n"
        )
        .unwrap();
        let mut head = [0; 12];
        stream.read_exact(&mut head).unwrap();
        assert_eq!(&head[9..], status.as_bytes(), "{origin}");
    }
}

/// The same numbers each time.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn index(&mut self, len: usize) -> usize {
        usize::try_from(self.next() % len as u64).expect("below a length")
    }

    fn bytes(&mut self, len: usize) -> Vec<u8> {
        (0..len).map(|_| self.next().to_le_bytes()[3]).collect()
    }
}

/// Its name, what it does, and the bytes that the server may grow by.
type Attack = (&'static str, fn(&Server), usize);

#[test]
fn each_attack_is_bounded_and_harms_nobody_else() {
    let server = Server::start();
    let innocent = Innocent::start(server.address);
    std::thread::sleep(Duration::from_millis(100));
    let files = server.open_files();
    // What each may take: of its connections, and by the server's bounds.
    let attacks: [Attack; 10] = [
        ("half-open handshakes", half_open, HALF_OPEN * 20 * KIB),
        ("floods of headers", header_flood, 60 * 128 * KIB),
        ("garbage", garbage, 4 * MIB),
        ("huge lengths", huge_lengths, 8 * MIB),
        ("endless messages", endless_messages, 3 * OPTIONS.partial_bytes + 60 * 64 * KIB),
        ("slow writers", slow_writers, 8 * MIB),
        ("slow readers", slow_readers, 5 * 8 * MIB),
        ("floods of pings", ping_flood, 4 * 12 * MIB),
        ("changed frames", changed_frames, 8 * MIB),
        ("foreign handshakes", foreign_handshakes, 2 * MIB),
    ];
    for (name, attack, most) in attacks {
        let begun = Instant::now();
        let growth = server.growth(attack);
        println!("{name}: {} KiB of {} KiB, {:?}", growth / KIB, most / KIB, begun.elapsed());
        assert!(growth <= most, "{name} took {growth} bytes");
    }
    let longest = innocent.stop();
    println!("who meant well waited {longest:?} at most");
    assert!(longest < Duration::from_secs(10), "{longest:?}");
    // All of them are gone.
    let begun = Instant::now();
    while server.open_files() > files {
        assert!(begun.elapsed() < WAIT, "{} files are still open", server.open_files());
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// What a socket that says nothing takes of the server's memory, the kernel's left out.
#[test]
fn a_silent_socket_takes_little() {
    const SOCKETS: usize = 2000;
    let server = Server::start();
    let mut warm: Vec<_> = (0..100).map(|_| server.socket("silent")).collect();
    let before = server.status("VmRSS:");
    let mut silent: Vec<_> = (0..SOCKETS).map(|_| server.socket("silent")).collect();
    // Each has said something once.
    for socket in warm.iter_mut().chain(&mut silent) {
        socket.send(Message::text("hello")).unwrap();
        assert_eq!(socket.read().unwrap(), Message::text("hello"));
    }
    let each = server.status("VmRSS:").saturating_sub(before) / SOCKETS;
    println!("{each} bytes for each of {SOCKETS} silent sockets");
    assert!(each <= 5 * KIB, "{each} bytes each");
}
