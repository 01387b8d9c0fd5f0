//! Hibernatable WebSockets on a real directory, through in-process clients: the scenarios of
//! semantics.md §10.9.

#[path = "sockets/rig.rs"]
mod rig;

use std::time::Duration;

use dormouse_engine::call::wait;
use dormouse_scheduler::{Kind, Received, SOCKET_BYTES, SocketLimits, UpgradeResponse};
use rig::{Do, Rig, sleep_ms};

fn text(text: &str) -> Option<Received> {
    Some(Received::Message(text.into()))
}

/// T-158, T-183; R-737, R-750, R-752, R-753.
#[test]
fn a_message_builds_the_object_anew_and_finds_tags_and_attachment() {
    let rig = Rig::new();
    let client = rig.connect("tag=a&tag=b");
    rig.do_it(Do::Attach("a", "kept".to_owned()));
    assert_eq!(rig.lives(), 1);
    rig.evict();
    wait(client.send("echo:hello")).unwrap();
    assert_eq!(wait(client.recv()), text("hello"));
    assert_eq!(rig.lives(), 2);
    assert_eq!(rig.do_it(Do::Tags("a")), "a,b");
    assert_eq!(rig.do_it(Do::Attachment("a")), "kept");
    assert_eq!(rig.do_it(Do::ListedInConstructor), "a+b");

    assert_eq!(rig.do_it(Do::Close("a", 4000)), "ok");
    rig.evict();
    assert_eq!(rig.do_it(Do::Send("a", "late")), "bad-argument", "close() was called");
    assert_eq!(rig.lives(), 3);
}

/// T-162.
#[test]
fn sockets_of_a_tag_are_oldest_first_and_all_are_newest_first() {
    let rig = Rig::new();
    let _clients: Vec<_> =
        ["tag=A&tag=t", "tag=B&tag=t", "tag=C&tag=t", "tag=D"].map(|tags| rig.connect(tags)).into();
    assert_eq!(rig.do_it(Do::List(Some("t"))), "A+t B+t C+t");
    assert_eq!(rig.do_it(Do::List(None)), "D C+t B+t A+t");
    assert_eq!(rig.do_it(Do::List(Some("nobody"))), "");
    rig.evict();
    assert_eq!(rig.do_it(Do::List(Some("t"))), "A+t B+t C+t");
    assert_eq!(rig.do_it(Do::List(None)), "D C+t B+t A+t");
}

/// T-163.
#[test]
fn tags_have_bounds_and_no_duplicates() {
    let rig = Rig::new();
    let ten: Vec<String> = (0..10).map(|n| format!("tag={n}")).collect();
    let ten = ten.join("&");
    let _ten = rig.connect(&ten);
    assert_eq!(rig.refused(&format!("{ten}&tag=10")), "bad-argument");
    assert_eq!(rig.refused(&format!("{ten}&tag=0")), "bad-argument", "also a duplicate (R-706)");
    let _twice = rig.connect("tag=x&tag=y&tag=x");
    assert_eq!(rig.do_it(Do::Tags("x")), "x,y");
    let long = "é".repeat(128);
    let _long = rig.connect(&format!("tag={long}"));
    assert_eq!(rig.refused(&format!("tag={long}e")), "bad-argument");
}

/// T-164, with a smaller bound.
#[test]
fn an_object_has_only_so_many_sockets() {
    assert_eq!(SocketLimits::PRODUCTION.per_object, 32_768);
    let rig = Rig::with(SocketLimits { per_object: 2, ..SocketLimits::PRODUCTION });
    let first = rig.connect("tag=1");
    let _second = rig.connect("tag=2");
    assert_eq!(rig.refused("tag=3"), "too-many-sockets");
    drop(first);
    rig.wait_for_log(1);
    let _third = rig.connect("tag=3");
}

/// Of all objects of a core together, asleep or not.
#[test]
fn what_sockets_hold_has_a_bound_for_each_core() {
    let core_bytes = 2 * SOCKET_BYTES + 100;
    let rig = Rig::with(SocketLimits { core_bytes, ..SocketLimits::PRODUCTION });
    let first = rig.connect("tag=1");
    let _second = rig.connect("tag=2");
    assert_eq!(rig.refused("tag=3"), "sockets-full");
    rig.evict();
    assert_eq!(rig.refused("tag=3"), "sockets-full", "those that sleep count as well");
    drop(first);
    rig.wait_for_log(1);
    // Counted until the last handle on it is gone.
    let third = (0..1000)
        .find_map(|_| rig.fetch("tag=3").inspect_err(|_| sleep_ms(5)).ok()?.take_web_socket());
    assert!(third.is_some(), "room came back");
}

/// T-165, as far as the types let it be written.
#[test]
fn a_socket_is_accepted_once() {
    let rig = Rig::new();
    assert_eq!(rig.refused("twice"), "bad-argument");
    assert_eq!(rig.refused("also-live"), "bad-argument");
    assert_eq!(rig.refused("live&also-live"), "bad-argument");
    assert_eq!(rig.refused("live&twice"), "bad-argument");
}

/// A socket that nobody accepts, or whose response is not sent, is no connection.
#[test]
fn a_socket_without_an_owner_is_lost_at_once() {
    let rig = Rig::new();
    let client = rig.connect("unaccepted");
    assert_eq!(wait(client.recv()), None);
    assert_eq!(wait(client.send("x")).unwrap_err().code(), Some("socket-lost"));
    let error = rig.fetch("fail&tag=a").unwrap_err();
    assert_eq!(error.kind(), Kind::User);
    rig.wait_for_log(1);
    assert_eq!(rig.log(), ["close 1006 false sent ok listed a"]);
    assert_eq!(rig.do_it(Do::List(None)), "");
}

/// T-166.
#[test]
fn an_attachment_has_a_bound_and_none_is_there_before_it_is_set() {
    let rig = Rig::new();
    let _client = rig.connect("tag=a");
    assert_eq!(rig.do_it(Do::Attachment("a")), "none");
    // Three bytes say how long the text is.
    assert_eq!(rig.do_it(Do::Attach("a", "x".repeat(16_381))), "ok");
    assert_eq!(rig.do_it(Do::Attach("a", "x".repeat(16_382))), "bad-argument");
    assert_eq!(rig.do_it(Do::Attachment("a")).len(), 16_381, "the old one stays");
}

/// T-167; R-738, R-741, R-742.
#[test]
fn an_auto_response_needs_no_object() {
    let rig = Rig::new();
    let client = rig.connect("tag=a");
    assert_eq!(rig.do_it(Do::Auto("ping".to_owned(), "pong".to_owned())), "ok");
    assert_eq!(rig.do_it(Do::AutoTime("a")), "none");
    rig.evict();
    wait(client.send("ping")).unwrap();
    assert_eq!(wait(client.recv()), text("pong"));
    assert_eq!(rig.built(), 1, "the object was not built for it");
    assert_eq!(rig.do_it(Do::AutoTime("a")), "set");
    rig.evict();
    wait(client.send(b"ping".to_vec())).unwrap();
    rig.wait_for_log(1);
    assert_eq!(rig.log(), ["binary 4"], "the same bytes are no text");
    assert_eq!(rig.built(), 3);

    assert_eq!(rig.do_it(Do::Auto("q".repeat(2048), "r".repeat(2048))), "ok");
    assert_eq!(rig.do_it(Do::Auto("q".repeat(2049), "r".to_owned())), "bad-argument");
    assert_eq!(rig.do_it(Do::Auto("q".to_owned(), "r".repeat(2049))), "bad-argument");
    // After close() it is swallowed, and its time recorded.
    assert_eq!(rig.do_it(Do::Close("a", 4000)), "ok");
    assert!(matches!(wait(client.recv()), Some(Received::Close(_))));
    wait(client.send("q".repeat(2048))).unwrap();
    wait(client.send("seen")).unwrap();
    rig.wait_for_log(1);
    assert_eq!(rig.log(), ["text seen"]);
    // Without a pair the object sees it.
    assert_eq!(rig.do_it(Do::NoAuto), "ok");
    wait(client.send("q".repeat(2048))).unwrap();
    rig.wait_for_log(1);
}

/// T-171.
#[test]
fn frames_that_arrive_while_the_constructor_works_come_in_order_after_it() {
    let rig = Rig::new();
    let client = rig.connect("tag=a");
    rig.do_it(Do::SlowConstructor(true));
    rig.evict();
    for n in 0..100 {
        wait(client.send(format!("echo:{n}"))).unwrap();
    }
    for n in 0..100 {
        assert_eq!(wait(client.recv()), text(&n.to_string()));
    }
    let expected: Vec<String> = (0..100).map(|n| format!("text echo:{n}")).collect();
    assert_eq!(rig.log(), expected);
}

/// T-172.
#[test]
fn a_handler_that_waits_for_something_outside_is_overtaken() {
    let rig = Rig::new();
    let client = rig.connect("tag=a");
    wait(client.send("slow:200")).unwrap();
    wait(client.send("echo:fast")).unwrap();
    assert_eq!(wait(client.recv()), text("fast"));
    assert_eq!(wait(client.recv()), text("slow:200"));
}

/// T-173.
#[test]
fn a_handler_that_fails_changes_nothing() {
    let rig = Rig::new();
    let client = rig.connect("tag=a");
    wait(client.send("fail")).unwrap();
    wait(client.send("echo:next")).unwrap();
    assert_eq!(wait(client.recv()), text("next"));
    assert_eq!(rig.lives(), 1);
}

/// T-174, T-175; R-712, R-718, R-723.
#[test]
fn a_clients_close_is_told_once_and_answered_by_the_object_alone() {
    let rig = Rig::new();
    let client = rig.connect("tag=a");
    client.close(4001, "bye").unwrap();
    rig.wait_for_log(1);
    assert_eq!(rig.log(), ["close 4001 bye true listed a"]);
    assert_eq!(rig.do_it(Do::List(None)), "", "not listed after the handler's first turn");
    assert_eq!(wait(client.send("x")).unwrap_err().code(), Some("bad-argument"));
    rig.nothing_comes(&client);
    // Its handler, which is not over, may still send and close (R-724).
    assert_eq!(rig.do_it(Do::AnswerClose), "ok");
    assert_eq!(wait(client.recv()), text("last words"));
    let Some(Received::Close(close)) = wait(client.recv()) else { panic!("a close frame") };
    assert_eq!((close.code, &*close.reason), (Some(4002), "you too"));
    assert_eq!(wait(client.recv()), None);
    drop(client);
    assert_eq!(rig.log(), [""; 0], "no second close");
}

/// The same for a client that waits while the object falls asleep: nobody can answer it any more.
#[test]
fn a_closing_socket_ends_with_the_instance_that_could_answer_it() {
    let rig = Rig::new();
    let client = rig.connect("tag=a");
    let _other = rig.connect("tag=b");
    client.close(None, "").unwrap();
    rig.wait_for_log(1);
    assert_eq!(rig.log(), ["close 1005  true listed b a"]);
    assert_eq!(rig.do_it(Do::AnswerClose), "ok");
    rig.evict();
    assert!(matches!(wait(client.recv()), Some(Received::Message(_))));
    assert!(matches!(wait(client.recv()), Some(Received::Close(_))));
    assert_eq!(rig.do_it(Do::List(None)), "b");

    let client = rig.connect("tag=c");
    rig.do_it(Do::ForgetCloses);
    client.close(None, "").unwrap();
    rig.wait_for_log(1);
    rig.evict();
    assert_eq!(wait(client.recv()), None);
}

/// T-176, T-177; R-719, R-720, R-751.
#[test]
fn a_lost_client_is_told_once_and_wakes_the_object() {
    let rig = Rig::new();
    let client = rig.connect("tag=a");
    drop(client);
    rig.wait_for_log(1);
    assert_eq!(rig.log(), ["close 1006 false sent ok listed a"]);
    let client = rig.connect("tag=b");
    rig.evict();
    wait(client.send("echo:unread")).unwrap();
    drop(client);
    rig.wait_for_log(2);
    assert_eq!(rig.log(), ["text echo:unread", "close 1006 false sent ok listed b"]);
    assert_eq!(rig.lives(), 2);
    sleep_ms(50);
    assert_eq!(rig.log(), [""; 0]);
    assert_eq!(rig.do_it(Do::List(None)), "");
}

/// T-178; R-733 too.
#[test]
fn closes_are_checked_and_what_follows_one_is_refused() {
    let rig = Rig::new();
    let client = rig.connect("tag=a");
    for code in [999, 1004, 1005, 1006, 1015, 5000] {
        assert_eq!(rig.do_it(Do::Close("a", code)), "bad-argument");
    }
    assert_eq!(rig.do_it(Do::CloseWithoutCode("a", "why")), "bad-argument");
    assert_eq!(rig.do_it(Do::Ready("a")), "Open");
    assert_eq!(rig.do_it(Do::Close("a", 3000)), "ok");
    assert_eq!(rig.do_it(Do::Ready("a")), "Closing");
    assert_eq!(rig.do_it(Do::Close("a", 4000)), "ok", "ignored");
    assert_eq!(rig.do_it(Do::Close("a", 999)), "bad-argument", "arguments come first");
    assert_eq!(rig.do_it(Do::Send("a", "late")), "bad-argument");
    let Some(Received::Close(close)) = wait(client.recv()) else { panic!("a close frame") };
    assert_eq!(close.code, Some(3000));
    rig.nothing_comes(&client);
    client.close(3000, "").unwrap();
    assert_eq!(wait(client.recv()), None, "both have closed");
    rig.wait_for_log(1);

    // To a lost client messages go nowhere.
    drop(rig.connect("tag=b"));
    rig.wait_for_log(2);
    assert_eq!(rig.log()[1], "close 1006 false sent ok listed b");
}

/// T-179.
#[test]
fn a_handler_that_takes_longer_than_its_limit_has_the_object_reset() {
    let rig = Rig::new();
    let client = rig.connect("tag=a");
    assert_eq!(rig.do_it(Do::Timeout(604_800_001)), "bad-argument");
    assert_eq!(rig.do_it(Do::Timeout(604_800_000)), "ok");
    assert_eq!(rig.do_it(Do::Timeout(100)), "ok");
    rig.evict();
    assert_eq!(rig.do_it(Do::TimeoutIs), "100", "kept while the object slept");
    wait(client.send("echo:in time")).unwrap();
    assert_eq!(wait(client.recv()), text("in time"));
    wait(client.send("slow:60000")).unwrap();
    let waiting = rig.start(Do::Sleep(60_000)).wait().unwrap_err();
    assert!(waiting.is_retryable() && waiting.reset(), "{waiting:?}");
    assert_eq!(waiting.code(), Some("event-timeout"));
    assert_eq!(wait(client.recv()), None);
    assert_eq!(rig.do_it(Do::TimeoutIs), "none", "a reset ends it (R-742)");
}

/// T-180, and the same of a turn.
#[test]
fn what_is_sent_in_a_turn_that_resets_the_object_does_not_leave() {
    let rig = Rig::new();
    let client = rig.connect("tag=a");
    rig.do_it(Do::ConstructorSendsAndPanics);
    rig.evict();
    let error = rig.start(Do::List(None)).wait().unwrap_err();
    assert!(error.reset(), "{error:?}");
    assert_eq!(wait(client.recv()), None);
    assert_eq!(rig.do_it(Do::List(None)), "");
    let client = rig.connect("tag=a");
    let error = rig.start(Do::SendAndAbort("a")).wait().unwrap_err();
    assert_eq!(error.kind(), Kind::ObjectAborted);
    assert_eq!(wait(client.recv()), None);
}

/// T-182; R-756, R-742.
#[test]
fn a_reset_disconnects_all_and_tells_nobody() {
    let rig = Rig::new();
    let clients: Vec<_> = (0..5).map(|n| rig.connect(&format!("tag={n}"))).collect();
    rig.do_it(Do::Auto("ping".to_owned(), "pong".to_owned()));
    assert!(rig.start(Do::Abort).wait().unwrap_err().reset());
    for client in &clients {
        assert_eq!(wait(client.recv()), None);
        assert!(wait(client.send("x")).is_err());
    }
    assert_eq!(rig.do_it(Do::List(None)), "");
    sleep_ms(50);
    assert_eq!(rig.log(), [""; 0], "no close handler runs");
    let client = rig.connect("tag=a");
    wait(client.send("ping")).unwrap();
    rig.wait_for_log(1);
    assert_eq!(rig.log(), ["text ping"], "the pair is gone");
}

/// R-725; the object is told by its error handler (R-720).
#[test]
fn a_message_over_the_limit_ends_its_connection_alone() {
    let rig = Rig::new();
    let (client, other) = (rig.connect("tag=a"), rig.connect("tag=b"));
    wait(client.send(vec![7; 1 << 20])).unwrap();
    wait(client.send(vec![7; (1 << 20) + 1])).unwrap();
    rig.wait_for_log(2);
    assert_eq!(rig.log(), ["binary 1048576", "error message-too-large Closed listed b a"]);
    let Some(Received::Close(close)) = wait(client.recv()) else { panic!("a close frame") };
    assert_eq!(close.code, Some(1009));
    assert_eq!(wait(client.recv()), None);
    assert_eq!(rig.do_it(Do::List(None)), "b");
    wait(other.send("echo:well")).unwrap();
    assert_eq!(wait(other.recv()), text("well"));
}

/// A client that takes nothing bounds what is kept for it, whoever sends.
#[test]
fn a_slow_client_is_bounded_and_holds_back_only_itself() {
    let limits = SocketLimits { outgoing_bytes: 10_000, ..SocketLimits::PRODUCTION };
    let rig = Rig::with(limits);
    let (slow, other) = (rig.connect("tag=slow"), rig.connect("tag=b"));
    let mut sent = 0;
    while rig.do_it(Do::Send("slow", "0123456789")) == "ok" {
        sent += 1;
        assert!(sent < 1000, "no bound");
    }
    assert!(sent > 100, "{sent}");
    assert_eq!(rig.do_it(Do::Send("slow", "more")), "socket-queue-full");
    // Automatic responses wait for room, and the client's next frames behind them.
    rig.do_it(Do::Auto("ping".to_owned(), "p".repeat(100)));
    // One may go over the bound; the second waits.
    wait(slow.send("ping")).unwrap();
    wait(slow.send("ping")).unwrap();
    wait(slow.send("echo:after")).unwrap();
    wait(other.send("echo:well")).unwrap();
    assert_eq!(wait(other.recv()), text("well"));
    assert_eq!(rig.log(), ["text echo:well"]);
    for _ in 0..sent {
        assert_eq!(wait(slow.recv()), text("0123456789"));
    }
    for _ in 0..2 {
        assert_eq!(wait(slow.recv()), text(&"p".repeat(100)));
    }
    assert_eq!(wait(slow.recv()), text("after"));
}

/// R-755.
#[test]
fn a_handle_of_an_instance_that_left_memory_says_so() {
    let rig = Rig::new();
    let client = rig.connect("tag=a");
    rig.do_it(Do::LeaveHandle("a"));
    assert_eq!(rig.do_it(Do::UseLeftHandle), "ok");
    assert_eq!(wait(client.recv()), text("by an old handle"));
    rig.evict();
    assert_eq!(rig.do_it(Do::UseLeftHandle), "object-evicted");
    assert_eq!(rig.do_it(Do::Send("a", "by a new one")), "ok");
    assert_eq!(wait(client.recv()), text("by a new one"));
}

/// R-751, R-753: an alarm wakes the object, and finds its sockets.
#[test]
fn an_alarm_of_a_sleeping_object_reaches_its_sockets() {
    let rig = Rig::new();
    let client = rig.connect("tag=a");
    rig.do_it(Do::SetAlarm(100));
    rig.evict();
    assert_eq!(wait(client.recv()), text("the alarm"));
    assert_eq!(rig.built(), 2);
}

/// A ping is answered without the object.
#[test]
fn a_ping_is_answered_while_the_object_sleeps() {
    let rig = Rig::new();
    let client = rig.connect("tag=a");
    rig.evict();
    wait(client.ping(vec![1, 2].into())).unwrap();
    assert_eq!(wait(client.recv()), Some(Received::Pong(vec![1, 2].into())));
    assert_eq!(rig.built(), 1);
    assert!(wait(client.ping(vec![0; 126].into())).is_err());
}

/// R-749: what is being done keeps the object in memory.
#[test]
fn an_eviction_waits_for_a_handler_and_for_what_it_says() {
    let rig = Rig::new();
    let client = rig.connect("tag=a");
    wait(client.send("slow:100")).unwrap();
    rig.wait_for_log(1);
    rig.evict();
    assert_eq!(wait(client.recv()), text("slow:100"));
    assert_eq!(rig.lives(), 2);
}

/// R-701, R-749, T-160.
#[test]
fn an_ordinary_socket_keeps_the_object_in_memory_while_it_is_open() {
    let rig = Rig::new();
    let client = rig.connect("live");
    assert_eq!(rig.do_it(Do::List(None)), "", "it is not listed");
    assert!(!rig.evict_within_ms(100));
    wait(client.send("echoed")).unwrap();
    assert_eq!(wait(client.recv()), text("echoed"));
    wait(client.ping(vec![1].into())).unwrap();
    assert_eq!(wait(client.recv()), Some(Received::Pong(vec![1].into())));
    assert_eq!(rig.built(), 1);
    drop(client);
    rig.evict();
    assert_eq!(rig.log(), ["live closed 1006 false Closing"]);
    assert_eq!(rig.lives(), 2);
}

/// R-723: the object of an ordinary socket need not answer a close frame.
#[test]
fn an_ordinary_socket_answers_a_close_by_itself() {
    let rig = Rig::new();
    let client = rig.connect("live");
    client.close(4000, "bye").unwrap();
    let Some(Received::Close(close)) = wait(client.recv()) else { panic!("a close frame") };
    assert_eq!((close.code, &*close.reason), (Some(4000), "bye"));
    assert_eq!(wait(client.recv()), None);
    assert_eq!(rig.log(), ["live closed 4000 true Closed"]);

    let client = rig.connect("live");
    wait(client.send("close")).unwrap();
    assert_eq!(wait(client.recv()), text("before the close"));
    let Some(Received::Close(close)) = wait(client.recv()) else { panic!("a close frame") };
    assert_eq!((close.code, &*close.reason), (Some(4003), "from the object"));
    client.close(4003, "").unwrap();
    assert_eq!(wait(client.recv()), None);
    rig.wait_for_log(1);
    assert_eq!(rig.log(), ["live closed 4003 true Closed"]);
    rig.evict();
}

#[test]
fn an_ordinary_socket_ends_with_its_handle_and_with_its_instance() {
    let mut rig = Rig::new();
    let client = rig.connect("live");
    wait(client.send("drop")).unwrap();
    assert_eq!(wait(client.recv()), text("before the drop"));
    assert_eq!(wait(client.recv()), None);
    rig.evict();

    let client = rig.connect("live");
    assert!(rig.start(Do::Abort).wait().unwrap_err().reset());
    assert_eq!(wait(client.recv()), None);

    let client = rig.connect("live");
    wait(client.send(vec![0; (1 << 20) + 1])).unwrap();
    assert!(
        matches!(wait(client.recv()), Some(Received::Close(close)) if close.code == Some(1009))
    );
    assert_eq!(wait(client.recv()), None);
    assert_eq!(rig.log(), ["live error message-too-large"]);

    let client = rig.connect("live");
    rig.close();
    assert_eq!(wait(client.recv()), None);
    assert_eq!(rig.log(), ["live closed 1006 false Closing"]);
}

/// Nothing that an object said is lost by a shutdown; then its clients are disconnected.
#[test]
fn closing_the_runtime_sends_what_was_said_and_disconnects() {
    let mut rig = Rig::new();
    let (client, idle) = (rig.connect("tag=a"), rig.connect("tag=b"));
    wait(client.send("slow:100")).unwrap();
    rig.wait_for_log(1);
    rig.close();
    assert_eq!(wait(client.recv()), text("slow:100"));
    assert_eq!((wait(client.recv()), wait(idle.recv())), (None, None));
    assert!(wait(idle.send("x")).is_err());
}

/// A hundred sockets of one object, written to from many threads: each gets its own echoes, in its
/// order, over evictions.
#[test]
fn many_clients_keep_their_order_over_evictions() {
    let rig = Rig::new();
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let rig = &rig;
            scope.spawn(move || {
                let clients: Vec<_> =
                    (0..25).map(|n| rig.connect(&format!("tag={thread}-{n}"))).collect();
                for n in 0..20 {
                    for (number, client) in clients.iter().enumerate() {
                        wait(client.send(format!("echo:{thread} {number} {n}"))).unwrap();
                    }
                    if n % 5 == thread {
                        rig.evict();
                    }
                }
                for (number, client) in clients.iter().enumerate() {
                    for n in 0..20 {
                        assert_eq!(wait(client.recv()), text(&format!("{thread} {number} {n}")));
                    }
                    rig.nothing_comes_at_once(client);
                }
            });
        }
    });
    assert!(rig.built() > 1, "it slept in between");
    let messages = rig.log().into_iter().filter(|entry| entry.starts_with("text"));
    assert_eq!(messages.count(), 4 * 25 * 20);
}

/// The wait of R-713 is for the first turn only, and the events of two sockets do not wait for each
/// other.
#[test]
#[expect(clippy::disallowed_methods, reason = "a test on the real clock")]
fn sockets_do_not_wait_for_each_other() {
    let rig = Rig::new();
    let clients: Vec<_> = (0..10).map(|n| rig.connect(&format!("tag={n}"))).collect();
    let begun = std::time::Instant::now();
    clients.iter().for_each(|client| wait(client.send("slow:200")).unwrap());
    clients.iter().for_each(|client| assert_eq!(wait(client.recv()), text("slow:200")));
    assert!(begun.elapsed() < Duration::from_millis(1900), "{:?}", begun.elapsed());
}
