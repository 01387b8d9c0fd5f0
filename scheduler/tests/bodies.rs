//! Bodies that come piece by piece: between objects, and over real sockets to an object and back.

#![expect(clippy::disallowed_types, reason = "clients on a real network")]
#![expect(clippy::disallowed_methods, reason = "tests on the real clock, with threads")]

use std::io::{BufRead, BufReader, Read, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use dormouse_engine::call::wait;
use dormouse_scheduler::prelude::*;
use dormouse_scheduler::{ServerOptions, StackLimits};

const MIB: u64 = 1 << 20;
const CHUNK: usize = 8 << 10;
/// What sockets on loopback and all buffers between may hold, generously.
const BETWEEN: u64 = 24 * MIB;
const SOON: Duration = Duration::from_secs(60);

/// What one test and its object tell each other.
#[derive(Default)]
struct Board {
    received: AtomicU64,
    sent: AtomicU64,
    may_read: AtomicBool,
    ends: std::sync::Mutex<Vec<String>>,
}

static BOARDS: [Board; 6] = [const {
    Board {
        received: AtomicU64::new(0),
        sent: AtomicU64::new(0),
        may_read: AtomicBool::new(false),
        ends: std::sync::Mutex::new(Vec::new()),
    }
}; 6];

/// The byte at a place of every body here.
fn byte(at: u64) -> u8 {
    at.wrapping_mul(0x9e37_79b9).to_le_bytes()[2]
}

fn bytes(from: u64, len: usize) -> Vec<u8> {
    (from..from + len as u64).map(byte).collect()
}

struct Pipe<const TEST: usize>(State);

impl<const TEST: usize> Pipe<TEST> {
    fn board() -> &'static Board {
        &BOARDS[TEST]
    }

    /// Reads to the end; how many bytes there were.
    async fn read(&self, mut body: Body) -> Result<u64> {
        let mut at = 0;
        while let Some(chunk) = body.chunk().await? {
            assert!(chunk.iter().zip(at..).all(|(found, at)| *found == byte(at)), "at {at}");
            at += chunk.len() as u64;
            Self::board().received.store(at, Ordering::SeqCst);
        }
        Ok(at)
    }

    fn send(&self, total: u64) -> Body {
        let (mut sender, body) = Body::stream();
        self.0.wait_until(async move {
            let mut at = 0;
            while at < total {
                if let Err(error) = sender.send(bytes(at, CHUNK)).await {
                    let code = error.code().unwrap_or("none").to_owned();
                    return Self::board().ends.lock().unwrap().push(code);
                }
                at += CHUNK as u64;
                Self::board().sent.store(at, Ordering::SeqCst);
            }
            sender.finish();
        });
        body
    }
}

impl<const TEST: usize> DurableObject for Pipe<TEST> {
    fn new(state: State) -> Self {
        Self(state)
    }

    async fn fetch(&self, request: Request) -> Result<Response> {
        let (parts, body) = request.into_parts();
        let mut path = parts.uri.path().split('/').skip(1);
        match (path.next(), path.next()) {
            (Some("up"), _) => {
                while !Self::board().may_read.load(Ordering::SeqCst) {
                    self.0.sleep(Duration::from_millis(1)).await;
                }
                let read = self.read(body).await;
                if let Err(error) = &read {
                    let code = error.code().unwrap_or("none").to_owned();
                    Self::board().ends.lock().unwrap().push(code);
                }
                Ok(Response::text(format!("{}", read?)))
            }
            (Some("down"), Some(total)) => Ok(Response::new(self.send(total.parse().unwrap()))),
            (Some("echo"), _) => {
                let (mut sender, echo) = Body::stream();
                let mut body = body;
                self.0.wait_until(async move {
                    while let Ok(Some(chunk)) = body.chunk().await {
                        if sender.send(chunk).await.is_err() {
                            return;
                        }
                    }
                    sender.finish();
                });
                Ok(Response::new(echo))
            }
            // From another object, read here.
            (Some("from"), Some(name)) => {
                let other = OTHERS.get().unwrap().get_by_name(name);
                let request = Request::get(format!("/down/{}", 4 * MIB)).body(())?;
                let body = other.fetch(request).await?.into_body();
                Ok(Response::text(format!("{}", self.read(body).await?)))
            }
            (Some("panic"), _) => {
                let (mut sender, body) = Body::stream();
                self.0.wait_until(async move {
                    sender.send(bytes(0, CHUNK)).await.unwrap();
                    sender.closed().await;
                });
                let state = self.0.clone();
                self.0.wait_until(async move {
                    state.sleep(Duration::from_millis(50)).await;
                    panic!("as asked");
                });
                Ok(Response::new(body))
            }
            _ => Err(Error::user("no such path")),
        }
    }
}

static OTHERS: std::sync::OnceLock<Namespace<Pipe<5>>> = std::sync::OnceLock::new();

struct Rig<const TEST: usize> {
    runtime: Option<Runtime>,
    address: SocketAddr,
    _dir: tempfile::TempDir,
}

impl<const TEST: usize> Rig<TEST> {
    fn new(options: ServerOptions) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let idle = Duration::from_millis(50);
        let limits = StackLimits { idle, ..StackLimits::PRODUCTION };
        let builder = Runtime::builder(&dir).cores(2).limits(limits);
        let runtime = builder.namespace::<Pipe<TEST>>("pipes").start().unwrap();
        let router = runtime.router(options);
        let address = runtime.serve_router("127.0.0.1:0", router).wait().unwrap();
        Self { runtime: Some(runtime), address, _dir: dir }
    }

    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(SOON)).unwrap();
        stream
    }

    fn close(mut self) {
        self.runtime.take().unwrap().close().unwrap();
    }
}

fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let began = Instant::now();
    while !condition() {
        assert!(began.elapsed() < SOON, "not in time: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Waits until a count stands still, and gives it.
fn settled(count: &AtomicU64) -> u64 {
    let mut last = (0, Instant::now());
    until("it stands still", || {
        let now = count.load(Ordering::SeqCst);
        if now != last.0 {
            last = (now, Instant::now());
        }
        now > 0 && last.1.elapsed() > Duration::from_millis(300)
    });
    last.0
}

/// Status, and the body, which comes in chunks or has a length; an error if it is cut off.
fn response(stream: &TcpStream) -> std::io::Result<(u16, Vec<u8>)> {
    let mut reader = BufReader::new(stream);
    let mut line = || -> std::io::Result<String> {
        let mut line = String::new();
        match reader.read_line(&mut line)? {
            0 => Err(std::io::ErrorKind::UnexpectedEof.into()),
            _ => Ok(line.trim_end().to_owned()),
        }
    };
    let status = line()?.split(' ').nth(1).unwrap().parse().unwrap();
    let (mut length, mut chunked) = (0, false);
    loop {
        let header = line()?.to_ascii_lowercase();
        match header.split_once(": ") {
            None => break,
            Some(("content-length", bytes)) => length = bytes.parse().unwrap(),
            Some(("transfer-encoding", "chunked")) => chunked = true,
            Some(_) => {}
        }
    }
    let mut body = Vec::new();
    if !chunked {
        body.resize(length, 0);
        reader.read_exact(&mut body)?;
        return Ok((status, body));
    }
    loop {
        let mut size = String::new();
        if reader.read_line(&mut size)? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        let size = usize::from_str_radix(size.trim_end(), 16).unwrap();
        let begin = body.len();
        body.resize(begin + size, 0);
        reader.read_exact(&mut body[begin..])?;
        reader.read_exact(&mut [0; 2])?;
        if size == 0 {
            return Ok((status, body));
        }
    }
}

fn options() -> ServerOptions {
    ServerOptions { body_bytes: 128 << 20, ..ServerOptions::PRODUCTION }
}

#[test]
fn an_upload_of_64_mib_waits_for_its_object_and_arrives_whole() {
    const TOTAL: u64 = 64 * MIB;
    let rig = Rig::<0>::new(options());
    let mut stream = rig.connect();
    write!(stream, "POST /pipes/a/up HTTP/1.1\r\nhost: x\r\ncontent-length: {TOTAL}\r\n\r\n")
        .unwrap();
    let written = std::sync::Arc::new(AtomicU64::new(0));
    let (count, mut upload) = (written.clone(), stream.try_clone().unwrap());
    let client = std::thread::spawn(move || {
        let mut at = 0;
        while at < TOTAL {
            upload.write_all(&bytes(at, CHUNK)).unwrap();
            at += CHUNK as u64;
            count.store(at, Ordering::SeqCst);
        }
    });
    let held = settled(&written);
    assert!(held < BETWEEN, "{held} bytes were taken, and the object read none");
    BOARDS[0].may_read.store(true, Ordering::SeqCst);
    client.join().unwrap();
    assert_eq!(response(&stream).unwrap(), (200, TOTAL.to_string().into_bytes()));
    rig.close();
}

#[test]
fn a_download_of_64_mib_waits_for_its_client_and_arrives_whole() {
    const TOTAL: u64 = 64 * MIB;
    let rig = Rig::<1>::new(options());
    let mut stream = rig.connect();
    write!(stream, "GET /pipes/a/down/{TOTAL} HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
    let held = settled(&BOARDS[1].sent);
    assert!(held < BETWEEN, "{held} bytes were sent, and the client read none");
    let (status, body) = response(&stream).unwrap();
    assert_eq!((status, body.len() as u64), (200, TOTAL));
    assert!(body.iter().zip(0..).all(|(found, at)| *found == byte(at)));

    // A client that goes has its object told.
    let mut gone = rig.connect();
    write!(gone, "GET /pipes/a/down/{TOTAL} HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
    gone.read_exact(&mut [0; 1000]).unwrap();
    drop(gone);
    until("the object is told", || !BOARDS[1].ends.lock().unwrap().is_empty());
    assert_eq!(*BOARDS[1].ends.lock().unwrap(), ["body-gone"]);
    rig.close();
}

#[test]
fn both_ways_at_a_time() {
    let rig = Rig::<2>::new(options());
    let mut stream = rig.connect();
    write!(stream, "POST /pipes/a/echo HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n")
        .unwrap();
    // The answer begins before the request has ended.
    let mut upload = stream.try_clone().unwrap();
    upload.write_all(b"2\r\nhi\r\n").unwrap();
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let mut seen = String::new();
    while !seen.ends_with("2\r\nhi\r\n") {
        assert_ne!(reader.read_line(&mut seen).unwrap(), 0, "{seen}");
    }
    upload.write_all(b"5\r\nthere\r\n0\r\n\r\n").unwrap();
    let mut rest = String::new();
    while !rest.ends_with("0\r\n\r\n") {
        assert_ne!(reader.read_line(&mut rest).unwrap(), 0, "{rest}");
    }
    assert!(rest.starts_with("5\r\nthere\r\n"), "{rest}");
    // An object that panics cuts its body off, and the client sees that it is not whole.
    let mut stream = rig.connect();
    write!(stream, "GET /pipes/a/panic HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
    let error = response(&stream).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::UnexpectedEof);
    rig.close();
}

#[test]
fn an_upload_that_ends_early_is_slow_or_too_large_is_an_error_for_its_object() {
    let body_time = Duration::from_millis(200);
    let rig = Rig::<3>::new(ServerOptions { body_bytes: 1 << 20, body_time, ..options() });
    let board = &BOARDS[3];
    board.may_read.store(true, Ordering::SeqCst);
    let begin = |length: &str| {
        let mut stream = rig.connect();
        write!(stream, "POST /pipes/a/up HTTP/1.1\r\nhost: x\r\n{length}\r\n\r\n").unwrap();
        stream
    };
    let last = |count: usize| {
        until("it ends", || board.ends.lock().unwrap().len() == count);
        board.ends.lock().unwrap().last().cloned().unwrap()
    };
    // The client goes.
    let mut stream = begin("content-length: 500000");
    stream.write_all(&bytes(0, 100_000)).unwrap();
    until("it is read", || board.received.load(Ordering::SeqCst) == 100_000);
    drop(stream);
    assert_eq!(last(1), "body-cut");
    // It stays, and says nothing.
    let mut stream = begin("content-length: 500000");
    stream.write_all(&bytes(0, 100_000)).unwrap();
    assert_eq!(response(&stream).unwrap().0, 408);
    assert_eq!(last(2), "body-timeout");
    // It says too much: known before, and not.
    assert_eq!(response(&begin("content-length: 2000000")).unwrap().0, 413);
    let stream = begin("transfer-encoding: chunked");
    let mut upload = stream.try_clone().unwrap();
    let client = std::thread::spawn(move || {
        for at in 0..200 {
            let chunk = bytes(at * CHUNK as u64, CHUNK);
            if write!(upload, "{CHUNK:x}\r\n").is_err()
                || upload.write_all(&chunk).is_err()
                || upload.write_all(b"\r\n").is_err()
            {
                return;
            }
        }
    });
    assert_eq!(response(&stream).unwrap().0, 413);
    stream.shutdown(std::net::Shutdown::Both).ok();
    client.join().unwrap();
    assert_eq!(last(3), "body-too-large");
    rig.close();
}

/// While a client takes what it is sent, however slowly, the object stays in memory and goes on; one that
/// takes nothing for long is given up.
#[test]
fn a_slow_reader_is_waited_for_and_one_that_reads_nothing_is_not_for_ever() {
    let silence_time = Duration::from_millis(500);
    let rig = Rig::<4>::new(ServerOptions { silence_time, ..options() });
    let mut slow = rig.connect();
    write!(slow, "GET /pipes/a/down/{} HTTP/1.1\r\nhost: x\r\n\r\n", 64 * MIB).unwrap();
    settled(&BOARDS[4].sent);
    let began = Instant::now();
    let mut buffer = vec![0; 1 << 20];
    let mut read = 0;
    while began.elapsed() < 4 * silence_time {
        read += slow.read(&mut buffer).unwrap();
        std::thread::sleep(silence_time / 10);
    }
    assert!(read > 0 && BOARDS[4].ends.lock().unwrap().is_empty(), "it was given up");
    let stopped = Instant::now();
    until("it is given up", || !BOARDS[4].ends.lock().unwrap().is_empty());
    assert!(stopped.elapsed() >= silence_time, "too soon");
    assert_eq!(*BOARDS[4].ends.lock().unwrap(), ["body-gone"]);
    rig.close();
}

#[test]
fn an_object_reads_what_another_one_sends_on_whichever_core() {
    let dir = tempfile::tempdir().unwrap();
    let builder = Runtime::builder(&dir).cores(2);
    let runtime = builder.namespace::<Pipe<5>>("pipes").start().unwrap();
    OTHERS.set(runtime.namespace()).ok();
    for name in ["b", "c", "d", "e"] {
        let stub = runtime.namespace::<Pipe<5>>().get_by_name("a");
        let request = Request::get(format!("/from/{name}")).body(()).unwrap();
        let body = stub.fetch(request).wait().unwrap().into_body();
        assert_eq!(wait(body.text()).unwrap(), (4 * MIB).to_string());
    }
    // And one that a thread sends is read by an object.
    BOARDS[5].may_read.store(true, Ordering::SeqCst);
    let (mut sender, body) = Body::stream();
    let stub = runtime.namespace::<Pipe<5>>().get_by_name("a");
    let call = stub.fetch(Request::post("/up").body(body).unwrap());
    for at in 0..100 {
        wait(sender.send(bytes(at * CHUNK as u64, CHUNK))).unwrap();
    }
    drop(sender);
    assert_eq!(call.wait().unwrap_err().code(), Some("body-cut"), "it was not finished");
    runtime.close().unwrap();
}
