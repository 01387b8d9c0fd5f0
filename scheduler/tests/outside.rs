//! Requests and WebSockets from an object to the outside, which is loopback, over real sockets.

#![expect(clippy::disallowed_types, reason = "the outside is a real network")]
#![expect(clippy::disallowed_methods, reason = "tests on the real clock, with threads")]

#[path = "outside/rig.rs"]
mod rig;

use std::io::{Read, Write};
use std::net::TcpListener;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use dormouse_scheduler::OutsideLimits;
use rig::{Act, Outside, Rig};
use tungstenite::Message;
use tungstenite::protocol::CloseFrame;

const WAIT: Duration = Duration::from_secs(20);

fn answer(body: &str) -> String {
    format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len())
}

#[test]
fn a_request_leaves_as_it_is_and_its_answer_comes_back() {
    let rig = Rig::new();
    let outside = Outside::http(|head, body, stream| {
        assert!(head.starts_with("POST /a/b?c=d HTTP/1.1\r\n"), "{head}");
        assert_eq!(body, "hello");
        let mut lines: Vec<&str> = head.trim_end().lines().skip(1).collect();
        lines.sort_unstable();
        let headers = lines.join("|").replace(rig::local_of(stream).as_str(), "HOST");
        let head = "HTTP/1.1 418 I'm a teapot\r\nx-mine: 1\r\ntransfer-encoding: chunked\r\n\r\n";
        let body = format!("{:x}\r\n{headers}\r\n0\r\n\r\n", headers.len());
        stream.write_all((head.to_owned() + &body).as_bytes()).unwrap();
    });
    let answer = rig.call("a", Act::Fetch(outside.url("http", "/a/b?c=d"), "hello"));
    assert_eq!(answer, "418 1 connection: close|content-length: 5|host: HOST");
}

/// T-111: who awaits the outside lets others in.
#[test]
fn others_run_while_the_outside_is_awaited() {
    let rig = Rig::new();
    let (asked, is_asked) = mpsc::channel();
    let (go, goes) = mpsc::channel::<()>();
    let goes = std::sync::Mutex::new(goes);
    let outside = Outside::http(move |_, _, stream| {
        asked.send(()).unwrap();
        goes.lock().unwrap().recv().unwrap();
        stream.write_all(answer("at last").as_bytes()).unwrap();
    });
    let fetching = rig.start("a", Act::Fetch(outside.url("http", "/"), ""));
    is_asked.recv_timeout(WAIT).unwrap();
    assert_eq!([rig.call("a", Act::Count), rig.call("a", Act::Count)], ["1", "2"]);
    go.send(()).unwrap();
    assert_eq!(fetching.wait().unwrap(), "200 at last");
    assert_eq!(rig.call("a", Act::Count), "3", "the same instance");

    // Within a critical section they wait, and the answer does not.
    let fetching = rig.start("a", Act::FetchInSection(outside.url("http", "/")));
    is_asked.recv_timeout(WAIT).unwrap();
    let counting = rig.start("a", Act::Count);
    std::thread::sleep(Duration::from_millis(50));
    go.send(()).unwrap();
    assert_eq!(fetching.wait().unwrap(), "200 at last, counted 3");
    assert_eq!(counting.wait().unwrap(), "4");
}

#[test]
fn what_goes_wrong_outside_has_its_code() {
    let limits = OutsideLimits {
        answer_bytes: 1000,
        answer_time: Duration::from_millis(400),
        ..OutsideLimits::PRODUCTION
    };
    let rig = Rig::with(limits);
    let nobody = {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        format!("http://{}/", listener.local_addr().unwrap())
    };
    let fetch = |url: &str| rig.call("a", Act::Fetch(url.to_owned(), ""));
    assert_eq!(fetch(&nobody), "outside-unreachable retryable");
    assert_eq!(fetch("http://no-such-host.invalid/"), "outside-unreachable retryable");
    for url in ["https://127.0.0.1/", "/path", "ws://127.0.0.1/", "http://u@127.0.0.1/"] {
        assert_eq!(fetch(url), "bad-argument", "{url}");
    }
    assert_eq!(rig.call("a", Act::Talk("http://127.0.0.1/".into(), &[])), "bad-argument");

    let outside = Outside::http(|head, _, stream| {
        let path = head.split(' ').nth(1).unwrap();
        let bytes = match path {
            "/most" => answer(&"x".repeat(1000)),
            "/long" => answer(&"x".repeat(1001)),
            "/endless" => {
                stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").unwrap();
                while stream.write_all(&[b'x'; 1000]).is_ok() {}
                return;
            }
            "/cut" => answer("all of it")[..45].to_owned(),
            "/none" => String::new(),
            "/other" => "SSH-2.0-nothing\r\n".to_owned(),
            "/flood" => format!("HTTP/1.1 200 OK\r\nx: {}\r\n\r\n", "x".repeat(2 << 20)),
            "/never" => {
                let _until_it_is_given_up = stream.read(&mut [0]);
                return;
            }
            "/drip" => {
                stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").unwrap();
                while stream.write_all(b"x").is_ok() {
                    std::thread::sleep(Duration::from_millis(50));
                }
                return;
            }
            _ => panic!("{path}"),
        };
        let _it_may_have_heard_enough = stream.write_all(bytes.as_bytes());
    });
    for (path, result) in [
        ("/most", &*format!("200 {}", "x".repeat(1000))),
        ("/long", "outside-too-large"),
        ("/endless", "outside-too-large"),
        ("/cut", "outside-lost"),
        ("/none", "outside-lost"),
        ("/other", "outside-lost"),
        ("/flood", "outside-lost"),
        ("/never", "outside-timeout"),
        ("/drip", "outside-timeout"),
    ] {
        assert_eq!(fetch(&outside.url("http", path)), result, "{path}");
    }
}

#[test]
fn what_an_object_opens_at_a_time_is_bounded() {
    let limits = OutsideLimits { per_object: 3, ..OutsideLimits::PRODUCTION };
    let rig = Rig::with(limits);
    let (go, goes) = mpsc::channel::<()>();
    let goes = std::sync::Mutex::new(goes);
    let outside = Outside::http(move |_, _, stream| {
        goes.lock().unwrap().recv().unwrap();
        stream.write_all(answer("ok").as_bytes()).unwrap();
    });
    let fetch = |name| rig.start(name, Act::Fetch(outside.url("http", "/"), ""));
    let three = [fetch("a"), fetch("a"), fetch("a")];
    assert_eq!(fetch("a").wait().unwrap(), "outside-full overloaded");
    let other = fetch("b");
    (0..4).for_each(|_| go.send(()).unwrap());
    three.into_iter().chain([other]).for_each(|call| assert_eq!(call.wait().unwrap(), "200 ok"));
    go.send(()).unwrap();
    assert_eq!(fetch("a").wait().unwrap(), "200 ok", "there is room again");
    // A socket counts as long as it is open.
    let (seen, is_seen) = mpsc::channel();
    let sockets = Outside::sockets(move |mut socket| {
        let _hello = socket.read();
        seen.send(()).unwrap();
        let _until_it_is_over = socket.read();
    });
    let talk = || rig.start("c", Act::Talk(sockets.url("ws", "/"), &["hello"]));
    let _three = [talk(), talk(), talk()];
    (0..3).for_each(|_| is_seen.recv_timeout(WAIT).unwrap());
    assert_eq!(talk().wait().unwrap(), "outside-full overloaded");
}

/// A reset, or a future that is dropped, cuts the connection: the outside does not go on for nobody.
#[test]
fn a_connection_ends_with_whoever_opened_it() {
    let rig = Rig::new();
    let (seen, is_seen) = mpsc::channel();
    let outside = Outside::http(move |_, _, stream| {
        seen.send("asked").unwrap();
        assert_eq!(stream.read(&mut [0]).unwrap_or(0), 0, "nothing more comes");
        seen.send("gone").unwrap();
    });
    let next = || is_seen.recv_timeout(WAIT).unwrap();
    let fetching = rig.start("a", Act::Fetch(outside.url("http", "/"), ""));
    assert_eq!(next(), "asked");
    assert!(rig.start("a", Act::Abort).wait().unwrap_err().reset());
    assert!(fetching.wait().unwrap_err().reset());
    assert_eq!(next(), "gone");

    let dropped = rig.start("a", Act::FetchAtMost(outside.url("http", "/"), 200));
    assert_eq!(dropped.wait().unwrap(), "gave up");
    assert_eq!([next(), next()], ["asked", "gone"]);
    // Before it left: it does not.
    assert_eq!(rig.call("a", Act::FetchAtMost(outside.url("http", "/"), 0)), "gave up");
    assert!(is_seen.recv_timeout(Duration::from_millis(100)).is_err());
}

#[test]
fn a_socket_to_the_outside_carries_messages_both_ways() {
    let rig = Rig::new();
    let outside = Outside::sockets(|mut socket| {
        // It refuses frames without a mask by itself.
        loop {
            match socket.read() {
                Ok(Message::Text(text)) if text == "ping me" => {
                    socket.send(Message::Ping(b"are you there"[..].into())).unwrap();
                    let pong = socket.read().unwrap();
                    assert_eq!(pong, Message::Pong(b"are you there"[..].into()));
                    socket.send(Message::text("it was")).unwrap();
                }
                Ok(message @ (Message::Text(_) | Message::Binary(_))) => {
                    socket.send(message).unwrap();
                }
                Ok(_) => {}
                Err(_) => return,
            }
        }
    });
    let url = outside.url("ws", "/");
    let long: &'static str = "x".repeat(100_000).leak();
    let talked = rig.call("a", Act::Talk(url.clone(), &["one", "höre", "", "ping me"]));
    assert_eq!(talked, "one|höre||it was|closed 4000 done true");
    let talked = rig.call("a", Act::Talk(url, std::slice::from_ref(Box::leak(Box::new(long)))));
    assert_eq!(talked, format!("{long}|closed 4000 done true"));
}

#[test]
fn how_a_socket_to_the_outside_ends_is_told() {
    let rig = Rig::new();
    let outside = Outside::sockets(|mut socket| {
        let Ok(Message::Text(asked)) = socket.read() else { return };
        match asked.as_str() {
            "close" => {
                let bye = CloseFrame { code: 4321.into(), reason: "bye".into() };
                socket.close(Some(bye)).unwrap();
                // The object answers with the same.
                let Ok(Message::Close(Some(back))) = socket.read() else { panic!("no close") };
                assert_eq!((u16::from(back.code), back.reason.as_str()), (4321, "bye"));
            }
            "vanish" => return,
            "mask" => socket.get_mut().write_all(b"\x81\x81\0\0\0\0x").unwrap(),
            "huge" => socket.get_mut().write_all(b"\x82\x7f\xff\xff\xff\xff\0\0\0\0").unwrap(),
            "long" => socket.send(Message::binary(vec![0; (1 << 20) + 1])).unwrap(),
            other => panic!("{other}"),
        }
        // What is broken is told why.
        while let Ok(message) = socket.read() {
            if let Message::Close(Some(close)) = message {
                assert!([1002, 1009].contains(&u16::from(close.code)), "{close:?}");
            }
        }
    });
    for (ask, told) in [
        (&["close"], "closed 4321 bye true"),
        (&["vanish"], "closed 1006 WebSocket disconnected without sending Close frame. false"),
        (&["mask"], "error socket-protocol"),
        (&["huge"], "error socket-protocol"),
        (&["long"], "error socket-protocol"),
    ] {
        assert_eq!(rig.call("a", Act::Talk(outside.url("ws", "/"), ask)), told, "{ask:?}");
    }
    // No handshake at all.
    let outside = Outside::http(|head, _, stream| {
        assert!(head.contains("sec-websocket-version: 13\r\n"), "{head}");
        let accept = "HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\n\
                      connection: upgrade\r\nsec-websocket-accept: another\r\n\r\n";
        let bytes = if head.contains("/other") { accept } else { &answer("no") };
        stream.write_all(bytes.as_bytes()).unwrap();
    });
    for path in ["/", "/other"] {
        let told = rig.call("a", Act::Talk(outside.url("ws", path), &["x"]));
        assert_eq!(told, "outside-refused", "{path}");
    }
}

/// An object's socket goes with its instance, and keeps it in memory as long as it is open.
#[test]
fn a_socket_to_the_outside_ends_with_its_object() {
    let rig = Rig::new();
    let (seen, is_seen) = mpsc::channel();
    let outside = Outside::sockets(move |mut socket| {
        seen.send(socket.read().is_ok()).unwrap();
        seen.send(socket.read().is_ok()).unwrap();
    });
    let talking = rig.start("a", Act::Talk(outside.url("ws", "/"), &["hello"]));
    assert!(is_seen.recv_timeout(WAIT).unwrap());
    assert!(rig.start("a", Act::Abort).wait().unwrap_err().reset());
    assert!(talking.wait().unwrap_err().reset());
    assert!(!is_seen.recv_timeout(WAIT).unwrap(), "the connection is lost");
}

/// Two objects of this runtime, by way of its own server: one hibernates, the other can't.
#[test]
fn objects_may_talk_through_the_server() {
    let rig = Rig::new();
    let url = format!("ws://{}/echoes/e/", rig.serve());
    assert_eq!(rig.call("a", Act::Talk(url, &["one", "two"])), "one|two|closed 4000 done true");
    let url = format!("http://{}/echoes/e/x", rig.serve());
    assert_eq!(rig.call("a", Act::Fetch(url, "y")), "200 echo of y");
}

#[test]
fn a_runtime_closes_while_the_outside_is_awaited() {
    let limits =
        OutsideLimits { answer_time: Duration::from_millis(500), ..OutsideLimits::PRODUCTION };
    let mut rig = Rig::with(limits);
    let (asked, is_asked) = mpsc::channel();
    let outside = Outside::http(move |_, _, stream| {
        asked.send(()).unwrap();
        let _until_it_is_given_up = stream.read(&mut [0]);
    });
    let fetching = rig.start("a", Act::Fetch(outside.url("http", "/"), ""));
    is_asked.recv_timeout(WAIT).unwrap();
    let begun = Instant::now();
    rig.close();
    assert!(begun.elapsed() < Duration::from_secs(8), "{:?}", begun.elapsed());
    assert_eq!(fetching.wait().unwrap(), "outside-timeout");
}

/// R-540, T-128: whenever a request arrives outside, what was written before it survives a SIGKILL.
#[test]
fn a_request_leaves_when_what_was_written_before_it_is_durable() {
    let dir = tempfile::tempdir().unwrap();
    let (asked, is_asked) = mpsc::channel();
    let outside = Outside::http(move |head, _, _| {
        let number = head.split(['/', ' ']).nth(2).unwrap().parse::<u64>().unwrap();
        let _the_test_has_seen_enough = asked.send(number);
    });
    let mut last = 0;
    for _ in 0..5 {
        let mut child = std::process::Command::new(std::env::current_exe().unwrap());
        child.args(["--exact", "child", "--nocapture"]).env("DORMOUSE_OUTSIDE_DIR", dir.path());
        let mut child = child.env("DORMOUSE_OUTSIDE_URL", outside.url("http", "")).spawn().unwrap();
        let number = is_asked.recv_timeout(WAIT);
        child.kill().unwrap();
        child.wait().unwrap();
        let number = number.expect("a request");
        assert!(number > last, "{number} after {last}: a write was lost");
        let rig = Rig::on(&dir);
        let kept: u64 = rig.call("a", Act::Read).parse().unwrap();
        assert!(kept >= number, "{number} was told, and {kept} is kept");
        last = kept;
        // What the dead one still had on its way does not count.
        while is_asked.try_recv().is_ok() {}
    }
}

/// The process that is killed.
#[test]
fn child() {
    let Ok(dir) = std::env::var("DORMOUSE_OUTSIDE_DIR") else { return };
    let url = std::env::var("DORMOUSE_OUTSIDE_URL").expect("said with the directory");
    let rig = Rig::on(&dir);
    let begun = Instant::now();
    while begun.elapsed() < WAIT {
        rig.call("a", Act::WriteAndTell(url.clone()));
    }
}
