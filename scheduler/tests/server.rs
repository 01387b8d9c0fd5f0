//! The server on loopback, with real clients: tungstenite's, and bytes written by hand.

#![expect(clippy::disallowed_types, reason = "clients on a real network")]
#![expect(clippy::disallowed_methods, reason = "tests on the real clock, with threads")]

#[path = "server/rig.rs"]
mod rig;

use std::io::{Read, Write};
use std::time::{Duration, Instant};

use dormouse_scheduler::{Origins, ServerOptions};
use rig::{Rig, close, masked, sleep_ms};
use tungstenite::protocol::CloseFrame;
use tungstenite::{Error, Message};

fn close_frame(message: Message) -> (u16, String) {
    match message {
        Message::Close(Some(CloseFrame { code, reason })) => (code.into(), reason.to_string()),
        other => panic!("{other:?} is no close frame with a code"),
    }
}

#[test]
fn a_path_names_an_object_and_the_rest_is_the_objects() {
    let rig = Rig::new();
    for (path, body, expected) in [
        ("/rooms/a/x/y?z=1", "", "200 a GET /x/y?z=1 "),
        ("/rooms/a", "", "200 a GET / "),
        ("/rooms/a?q", "", "200 a GET /?q "),
        ("/rooms/a/", "hello", "200 a POST / hello"),
        ("/rooms/caf%C3%A9%2Fbar/", "", "200 café/bar GET / "),
        ("/own", "", "200 mine"),
        ("/to/a?q", "", "200 a GET /to/a?q "),
        ("/from", "", "200 127.0.0.1"),
        ("/own/", "", "404 Not Found\n"),
        ("/rooms/", "", "404 Not Found\n"),
        ("/rooms", "", "404 Not Found\n"),
        ("/nothing/a", "", "404 Not Found\n"),
        ("/", "", "404 Not Found\n"),
        ("/rooms/%ff/", "", "400 Bad Request\n"),
        ("/rooms/a/fail", "", "500 Internal Server Error\n"),
    ] {
        assert_eq!(rig.http(path, body), expected, "{path}");
    }
}

/// As it would stand behind another server, with another's kind of body.
#[test]
fn the_router_is_a_tower_service() {
    use bytes::Bytes;
    use http_body_util::{BodyExt, Full};
    use tower_service::Service;
    let rig = Rig::new();
    let mut router = rig.router();
    let tokio = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (status, body) = tokio.block_on(async {
        let request = http::Request::post("/rooms/a/x")
            .body(Full::new(Bytes::from_static(b"hello")))
            .unwrap();
        let response = router.call(request).await.unwrap();
        let status = response.status();
        (status, response.into_body().collect().await.unwrap().to_bytes())
    });
    assert_eq!((status.as_u16(), &*body), (200, &b"a POST /x hello"[..]));
}

#[test]
fn a_connection_is_kept_for_more_requests() {
    let rig = Rig::new();
    let mut stream = rig.stream();
    for n in 0..3 {
        let request = format!("GET /rooms/a/{n} HTTP/1.1\r\nhost: x\r\n\r\n");
        stream.write_all(request.as_bytes()).unwrap();
        let answer = rig::read_answer(&mut stream);
        assert_eq!(answer, format!("200 a GET /{n} "));
    }
}

#[test]
fn what_is_too_long_or_takes_too_long_is_refused() {
    let options = ServerOptions {
        body_bytes: 1000,
        body_time: Duration::from_millis(200),
        answer_time: Duration::from_millis(200),
        header_time: Duration::from_millis(200),
        ..ServerOptions::PRODUCTION
    };
    let rig = Rig::with(options);
    assert_eq!(rig.http("/rooms/a/", &"x".repeat(1000)).len(), 1000 + "200 a POST / ".len());
    assert_eq!(rig.http("/rooms/a/", &"x".repeat(1001)), "413 Payload Too Large\n");
    assert_eq!(rig.http("/rooms/a/sleep/1000", ""), "504 Gateway Timeout\n");
    // Without a length, in one chunk.
    let mut stream = rig.stream();
    let head = "POST /rooms/a/ HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n";
    write!(stream, "{head}7d0\r\n{}\r\n0\r\n\r\n", "x".repeat(2000)).unwrap();
    assert_eq!(rig::read_answer(&mut stream), "413 Payload Too Large\n");
    // A body that does not come, and headers that do not.
    let mut stream = rig.stream();
    write!(stream, "POST /rooms/a/ HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\n\r\nab").unwrap();
    assert_eq!(rig::read_answer(&mut stream), "408 Request Timeout\n");
    let mut stream = rig.stream();
    write!(stream, "GET /rooms/a/ HTTP/1.1\r\nhost: x\r\nslow: ").unwrap();
    let begun = Instant::now();
    let mut rest = Vec::new();
    let _reset_or_end = stream.read_to_end(&mut rest);
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    // A flood of headers.
    let mut stream = rig.stream();
    let flood =
        format!("GET /rooms/a/ HTTP/1.1\r\nhost: x\r\nflood: {}\r\n\r\n", "x".repeat(1 << 20));
    let _it_may_be_cut = stream.write_all(flood.as_bytes());
    let mut answer = Vec::new();
    let _reset_or_end = stream.read_to_end(&mut answer);
    let answer = String::from_utf8_lossy(&answer).into_owned();
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 431"), "{answer}");
}

#[test]
fn messages_of_every_size_come_back() {
    let rig = Rig::new();
    let mut socket = rig.connect("a");
    for len in [0, 1, 125, 126, 65_535, 65_536, 300_000, 1 << 20] {
        for message in [Message::text("x".repeat(len)), Message::binary(vec![7; len])] {
            socket.send(message.clone()).unwrap();
            assert_eq!(socket.read().unwrap(), message, "{len} bytes");
        }
    }
    socket.send(Message::text("héllo 😀")).unwrap();
    assert_eq!(socket.read().unwrap(), Message::text("héllo 😀"));
}

#[test]
fn messages_over_an_eviction_keep_their_order() {
    let rig = Rig::new();
    let mut socket = rig.connect("a");
    for n in 0..100 {
        socket.send(Message::text(n.to_string())).unwrap();
        if n % 10 == 0 {
            rig.evict("a");
        }
    }
    for n in 0..100 {
        assert_eq!(socket.read().unwrap(), Message::text(n.to_string()));
    }
    assert!(rig.built("a") > 1);
}

/// R-718, T-174; and T-175: the client waits until the object answers.
#[test]
fn a_clients_close_reaches_the_object_which_alone_answers() {
    let rig = Rig::new();
    let mut socket = rig.connect("a");
    close(&mut socket, 4001, "back");
    assert_eq!(close_frame(socket.read().unwrap()), (4001, "back".to_owned()));
    assert!(matches!(socket.read(), Err(Error::ConnectionClosed)));
    assert_eq!(rig.log("a", 1), ["close 4001 back true"]);

    let mut socket = rig.connect("a");
    socket.close(None).unwrap();
    socket.flush().unwrap();
    assert_eq!(rig.log("a", 2)[1], "close 1005  true");
    rig::wait_at_most(&mut socket, 100);
    match socket.read() {
        Err(Error::Io(error)) => assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock),
        other => panic!("{other:?} though the object did not answer"),
    }
}

#[test]
fn an_objects_close_reaches_the_client_and_ends_the_connection() {
    let rig = Rig::new();
    let mut socket = rig.connect("a");
    socket.send(Message::text("close:4242:server says")).unwrap();
    assert_eq!(close_frame(socket.read().unwrap()), (4242, "server says".to_owned()));
    // tungstenite answers by itself; then the server ends the connection.
    assert!(matches!(socket.read(), Err(Error::ConnectionClosed)));
    assert_eq!(rig.log("a", 2)[1], "close 4242 server says true");
    let mut socket = rig.connect("a");
    socket.send(Message::text("close::")).unwrap();
    assert_eq!(socket.read().unwrap(), Message::Close(None));
}

/// R-719, T-176.
#[test]
fn a_client_that_vanishes_is_told_once() {
    let rig = Rig::new();
    let socket = rig.connect("a");
    drop(socket);
    assert_eq!(rig.log("a", 1), ["close 1006 false"]);
    let mut socket = rig.connect("a");
    socket.send(Message::text("last")).unwrap();
    drop(socket);
    sleep_ms(50);
    assert_eq!(rig.log("a", 3)[1..], ["text last", "close 1006 false"]);
    // In the midst of a frame.
    let mut socket = rig.connect("a");
    let half = &masked(0x82, &[7; 1000])[..500];
    socket.get_mut().write_all(half).unwrap();
    drop(socket);
    assert_eq!(rig.log("a", 4)[3], "close 1006 false");
}

/// the code that each deserves; the object gets the error, others notice nothing.
#[test]
fn hostile_frames_end_their_connection_alone_with_the_right_code() {
    let rig = Rig::new();
    let mut other = rig.connect("a");
    let huge = [&[0x82, 0xff][..], &u64::MAX.to_be_bytes(), &[0; 4]].concat();
    for (bytes, code) in [
        (masked(0x82, &vec![7; (1 << 20) + 1]), 1009),
        (huge, 1009),
        (masked(0x81, &[0xff, 0xfe]), 1007),
        (vec![0x81, 1, b'x'], 1002),
        (masked(0x83, b"x"), 1002),
        (masked(0xc1, b"x"), 1002),
        (masked(0x80, b"x"), 1002),
        (masked(0x88, &[0x03, 0xed]), 1002),
    ] {
        let mut socket = rig.connect("a");
        // What it sends after it was refused may not arrive any more.
        let _it_may_be_cut = socket.get_mut().write_all(&bytes);
        let (got, _why) = close_frame(socket.read().unwrap());
        assert_eq!(got, code, "{:x?}", &bytes[..bytes.len().min(20)]);
    }
    assert_eq!(rig.log("a", 8), ["error socket-protocol"; 8]);
    other.send(Message::text("well")).unwrap();
    assert_eq!(other.read().unwrap(), Message::text("well"));
}

/// The object hears that a client does not take what it is sent; nobody else waits for it, and it
/// gets all of it, in order, when it reads at last.
#[test]
fn a_slow_reader_is_bounded_and_loses_nothing() {
    let rig = Rig::new();
    let (mut slow, mut other) = (rig.connect("a"), rig.connect("a"));
    slow.send(Message::text("flood")).unwrap();
    let log = rig.log("a", 2);
    let sent = log[1].strip_prefix("refused socket-queue-full after ").expect(&log[1]);
    let sent: usize = sent.parse().unwrap();
    assert!(sent > 3000, "{sent} messages of a kilobyte");
    other.send(Message::text("well")).unwrap();
    assert_eq!(other.read().unwrap(), Message::text("well"));
    for n in 0..sent {
        let Message::Text(text) = slow.read().unwrap() else { panic!("a text") };
        assert!(text.starts_with(&format!("{n} ")), "{n}: {}", &text[..20]);
    }
    slow.send(Message::text("and now")).unwrap();
    assert_eq!(slow.read().unwrap(), Message::text("and now"));
}

/// A fast writer is held back by an object that is behind, and nothing is lost.
#[test]
fn a_fast_writer_waits_for_the_object() {
    let rig = Rig::new();
    let mut socket = rig.connect("a");
    socket.send(Message::text("busy:300")).unwrap();
    let mut stream = socket.get_ref().try_clone().unwrap();
    let writing = std::thread::spawn(move || {
        let begun = Instant::now();
        for n in 0..200 {
            let text = format!("number:{n} {}", "x".repeat(100_000));
            stream.write_all(&masked(0x81, text.as_bytes())).unwrap();
        }
        begun.elapsed()
    });
    for n in 0..200 {
        assert_eq!(socket.read().unwrap(), Message::text(n.to_string()));
    }
    let took = writing.join().unwrap();
    assert!(took > Duration::from_millis(100), "20 MB were taken at once: {took:?}");
}

#[test]
fn a_ping_is_answered_while_the_object_sleeps() {
    let rig = Rig::new();
    let mut socket = rig.connect("a");
    for _ in 0..3 {
        rig.evict("a");
        socket.send(Message::Ping(vec![1, 2, 3].into())).unwrap();
        assert_eq!(socket.read().unwrap(), Message::Pong(vec![1, 2, 3].into()));
    }
    assert_eq!(rig.built("a"), 2, "built anew by this question alone");
}

/// A peer that is gone without a word is found out; one that only has nothing to say is not.
/// Nothing is waited for on the way of a pong: only its connection itself can make way for others, on the same core.
#[test]
fn who_never_stops_sending_keeps_the_core_from_nobody() {
    let rig = Rig::with_cores(1);
    let mut others: Vec<_> = (0..4).map(|_| rig.connect("other")).collect();
    let ended = Instant::now() + Duration::from_secs(2);
    let floods: Vec<_> = (0..3)
        .map(|_| {
            let mut stream = rig.connect("flooded").get_ref().try_clone().unwrap();
            std::thread::spawn(move || {
                let pongs = masked(0x8a, b"").repeat(20_000);
                while Instant::now() < ended {
                    stream.write_all(&pongs).unwrap();
                }
            })
        })
        .collect();
    let mut longest = Duration::ZERO;
    while Instant::now() < ended {
        for socket in &mut others {
            let asked = Instant::now();
            socket.send(Message::text("well")).unwrap();
            assert_eq!(socket.read().unwrap(), Message::text("well"));
            longest = longest.max(asked.elapsed());
        }
    }
    floods.into_iter().for_each(|flood| flood.join().unwrap());
    println!("an answer took {longest:?} at most");
    assert!(longest < Duration::from_secs(1), "an answer took {longest:?}");
}

#[test]
fn a_silent_client_is_pinged_and_lost_if_it_does_not_answer() {
    let silence_time = Duration::from_millis(200);
    let rig = Rig::with(ServerOptions { silence_time, ..ServerOptions::PRODUCTION });
    let mut alive = rig.connect("a");
    let dead = rig.connect("a");
    rig::wait_at_most(&mut alive, 50);
    for _ in 0..20 {
        match alive.read() {
            Ok(Message::Ping(_)) => {}
            Err(Error::Io(error)) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(rig.log("a", 1), ["close 1006 false"]);
    alive.send(Message::text("still here")).unwrap();
    rig::wait_at_most(&mut alive, 5000);
    while !matches!(alive.read().unwrap(), Message::Text(_)) {}
    drop(dead);
}

/// What its object says does not speak for the client.
#[test]
fn a_silent_client_is_pinged_and_lost_though_its_object_talks() {
    let silence_time = Duration::from_millis(300);
    let rig = Rig::with(ServerOptions { silence_time, ..ServerOptions::PRODUCTION });
    let mut socket = rig.connect("a");
    socket.send(Message::text("talk")).unwrap();
    let begun = Instant::now();
    // It reads, and answers nothing.
    let mut all: Vec<u8> = Vec::new();
    let stream = socket.get_mut();
    stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    loop {
        let mut some = [0; 4096];
        match stream.read(&mut some) {
            Ok(0) => break,
            Ok(read) => all.extend(&some[..read]),
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => break,
            Err(error) => panic!("{error}"),
        }
        assert!(begun.elapsed() < 10 * silence_time, "it is not lost");
    }
    assert!(begun.elapsed() >= 2 * silence_time, "too soon");
    assert_eq!(all.windows(2).filter(|bytes| **bytes == *b"\x89\x00").count(), 1, "pings");
}

#[test]
fn handshakes_that_are_none_are_refused() {
    let rig = Rig::new();
    let key = "sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==";
    let version = "sec-websocket-version: 13";
    for (headers, status) in [
        (vec![key, version], "101"),
        (vec![key], "426"),
        (vec![version], "400"),
        (vec![key, "sec-websocket-version: 8"], "400"),
        (vec![key, version, "origin: http://evil.example"], "403"),
        (vec![key, version, "origin: http://HOST"], "101"),
    ] {
        assert_eq!(rig.handshake(&headers), status, "{headers:?}");
    }
    let any = Rig::with(ServerOptions { origins: Origins::Any, ..ServerOptions::PRODUCTION });
    assert_eq!(any.handshake(&[key, version, "origin: http://evil.example"]), "101");
}

/// What happens to a connection while it rests, from both ends.
#[test]
fn a_connection_that_rests_goes_on_where_it_was() {
    let rig = Rig::new();
    let mut sockets: Vec<_> = (0..50).map(|_| rig.connect("a")).collect();
    for round in 0..5 {
        // Some have gone to rest by then, some go just now, some are woken by what others do.
        sleep_ms(round * 3);
        for (number, socket) in sockets.iter_mut().enumerate() {
            socket.send(Message::text(format!("number:{number} {round}"))).unwrap();
        }
        for (number, socket) in sockets.iter_mut().enumerate() {
            assert_eq!(socket.read().unwrap(), Message::text(number.to_string()));
        }
        rig.evict("a");
    }
    sleep_ms(30);
    // Half of them vanish while they rest; each is told of once.
    let vanished = sockets.split_off(25).len();
    let log = rig.log("a", vanished);
    assert_eq!(log, ["close 1006 false"].repeat(vanished));
    // A frame in two parts, with a rest in the middle of it if there could be one.
    let frame = masked(0x81, b"halves");
    for socket in &mut sockets {
        socket.get_mut().write_all(&frame[..7]).unwrap();
    }
    sleep_ms(20);
    for socket in &mut sockets {
        socket.get_mut().write_all(&frame[7..]).unwrap();
        assert_eq!(socket.read().unwrap(), Message::text("halves"));
    }
    // And so a message of two fragments, without a byte of it yet.
    for socket in &mut sockets {
        socket.get_mut().write_all(&masked(0x01, b"")).unwrap();
    }
    sleep_ms(20);
    for socket in &mut sockets {
        socket.get_mut().write_all(&masked(0x80, b"whole")).unwrap();
        assert_eq!(socket.read().unwrap(), Message::text("whole"));
    }
    sleep_ms(20);
    // The object ends all of them.
    sockets[0].send(Message::text("abort")).unwrap();
    for socket in &mut sockets {
        match socket.read() {
            Err(Error::Protocol(_) | Error::Io(_)) => {}
            other => panic!("{other:?} is no lost connection"),
        }
    }
}

/// no close frame, just the end.
#[test]
fn a_reset_cuts_its_clients_off() {
    let rig = Rig::new();
    let mut socket = rig.connect("a");
    let mut other = rig.connect("b");
    socket.send(Message::text("abort")).unwrap();
    match socket.read() {
        Err(Error::Protocol(_) | Error::Io(_)) => {}
        other => panic!("{other:?} is no lost connection"),
    }
    other.send(Message::text("well")).unwrap();
    assert_eq!(other.read().unwrap(), Message::text("well"));
}

#[test]
fn closing_answers_what_was_asked_and_tells_sockets_that_it_goes_away() {
    let mut rig = Rig::new();
    let mut socket = rig.connect("a");
    let mut stream = rig.stream();
    write!(stream, "GET /rooms/a/sleep/300 HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
    let _idle = rig.stream();
    rig.log("a", 1);
    let begun = Instant::now();
    rig.close();
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    assert_eq!(rig::read_answer(&mut stream), "200 slept");
    assert_eq!(close_frame(socket.read().unwrap()).0, 1001);
    assert!(rig.try_stream().is_err(), "nobody listens any more");
}

/// A connection that becomes a socket moves to its object's core, with what was read of it ahead.
#[test]
fn frames_that_come_with_the_handshake_move_with_their_socket() {
    let mut rig = Rig::new();
    let mut streams: Vec<_> = (0..12)
        .map(|name| {
            let mut stream = rig.stream();
            let mut bytes = format!(
                "GET /rooms/{name}/ HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: websocket\r\n\
                 sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
            )
            .into_bytes();
            // The last one comes in two parts.
            bytes.extend(masked(0x81, b"one"));
            bytes.extend(masked(0x82, &[7; 300]));
            let last = masked(0x81, b"three");
            bytes.extend(&last[..4]);
            stream.write_all(&bytes).unwrap();
            (stream, last[4..].to_vec())
        })
        .collect();
    for (stream, rest) in &mut streams {
        assert!(rig::read_answer(stream).starts_with("101"));
        stream.write_all(rest).unwrap();
        let expected = [
            &b"\x81\x03one"[..],
            &[0x82, 126, 300_u16.to_be_bytes()[0], 44],
            &[7; 300],
            b"\x81\x05three",
        ]
        .concat();
        let mut echoed = vec![0; expected.len()];
        stream.read_exact(&mut echoed).unwrap();
        assert_eq!(echoed, expected);
    }
    // On whichever core they are, they are told of the end.
    rig.close();
    for (stream, _) in &mut streams {
        let mut rest = Vec::new();
        stream.read_to_end(&mut rest).unwrap();
        assert_eq!(rest[..1], [0x88], "{rest:?}");
        assert_eq!(rest[2..4], 1001_u16.to_be_bytes(), "{rest:?}");
    }
}

#[test]
fn a_server_is_started_from_a_task_of_tokios() {
    let rig = Rig::new();
    let tokio = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let address = tokio.block_on(async { rig.serve_at("127.0.0.1:0".parse().unwrap()).await });
    assert!(std::net::TcpStream::connect(address.unwrap()).is_ok());
}

#[test]
fn an_address_that_is_taken_is_refused() {
    let rig = Rig::new();
    let error = rig.serve_again().unwrap_err();
    assert!(error.is_retryable(), "{error:?}");
}
