//! Two people with browsers: one at a desk, one with a phone.

use crate::Chat;
use crate::devtools::{Browser, Page};

const DESK: (u32, u32) = (1280, 800);
const PHONE: (u32, u32) = (390, 844);

/// Whether the page's state begins like this.
fn state(begins: &str) -> String {
    format!("document.getElementById('state').textContent.startsWith('{begins}')")
}

/// What was said, as the page shows it, from top to bottom.
fn said(page: &Page<'_>) -> Vec<String> {
    let lines = "[...document.querySelectorAll('.said:not(.pending)')].map((line) => \
                 [...line.childNodes].find((node) => node.nodeType === 3).data)";
    let lines = page.eval(lines);
    let lines = lines.as_array().expect("a list").iter();
    lines.map(|line| line.as_str().expect("a text").to_owned()).collect()
}

#[track_caller]
fn hears(page: &Page<'_>, all: &[&str]) {
    crate::until("what was said", || match said(page) {
        heard if heard == all => Ok(()),
        heard => Err(format!("{heard:?}")),
    });
}

fn shows(text: &str) -> String {
    format!("document.getElementById('log').textContent.includes('{text}')")
}

#[test]
fn two_people_talk_in_chromium_over_sleep_and_a_kill() {
    let mut chat = Chat::start();
    let browser = Browser::start();
    let ann = browser.open(&chat.url("/"), DESK, false);
    ann.screenshot("chat-enter.png");
    ann.write("name", "ann");
    ann.enter("room-name", "lobby");
    ann.until(&state("the room is awake"));
    assert_eq!(ann.eval("location.pathname"), "/rooms/lobby");
    // The other one was given the link.
    let ben = browser.open(ann.eval("location.href").as_str().unwrap(), PHONE, true);
    ben.enter("name", "ben");
    ann.until(&shows("ben joined"));
    assert_eq!(ann.eval("document.getElementById('members').innerText"), "ann\nben");

    ann.enter("text", "Good evening!");
    hears(&ben, &["Good evening!"]);
    ben.enter("text", "Oh, <b>hello</b> & welcome");
    hears(&ann, &["Good evening!", "Oh, <b>hello</b> & welcome"]);

    // Nobody talks: the room falls asleep, and both see it. Then one says something.
    for page in [&ann, &ben] {
        page.until(&state("the room is asleep"));
        page.until(&shows("the room fell asleep"));
    }
    ben.enter("text", "Still there?");
    let mut all = vec!["Good evening!", "Oh, <b>hello</b> & welcome", "Still there?"];
    for page in [&ann, &ben] {
        hears(page, &all);
        page.until(&shows("the room woke after"));
        page.until(&state("the room is"));
    }
    ann.screenshot("chat-desk.png");
    ben.screenshot("chat-phone.png");

    // What was said is there when the server is back, and the pages come back by themselves.
    chat.kill();
    for page in [&ann, &ben] {
        page.until(&state("connection lost"));
    }
    ann.screenshot("chat-lost.png");
    chat.restart();
    for page in [&ann, &ben] {
        page.until(&state("the room is"));
        hears(page, &all);
    }
    ann.until("document.getElementById('members').innerText === 'ann\\nben'");
    ann.enter("text", "We are back.");
    all.push("We are back.");
    let cat = browser.open(&chat.url("/rooms/lobby"), PHONE, true);
    cat.enter("name", "cat");
    for page in [&ann, &ben, &cat] {
        hears(page, &all);
    }
    // A reload enters by itself.
    cat.eval("location.reload()");
    ben.until(&shows("cat left"));
    cat.until(&state("the room is"));
    hears(&cat, &all);
    cat.dark(true);
    cat.screenshot("chat-dark.png");
    assert_eq!(browser.thrown(), [] as [serde_json::Value; 0]);
}

#[test]
fn a_private_room_in_chromium_is_entered_by_its_link() {
    let chat = Chat::start();
    let browser = Browser::start();
    let ann = browser.open(&chat.url("/"), PHONE, true);
    ann.write("name", "ann");
    ann.click("#private");
    ann.until(&state("the room is awake"));
    let link = ann.eval("location.href").as_str().unwrap().to_owned();
    assert_eq!(link.len(), chat.url("/rooms/").len() + 64, "{link}");
    let ben = browser.open(&link, DESK, false);
    ben.screenshot("chat-invited.png");
    ben.enter("name", "ben");
    ben.until(&state("the room is awake"));
    ben.enter("text", "Nobody else reads this.");
    hears(&ann, &["Nobody else reads this."]);
    assert_eq!(browser.thrown(), [] as [serde_json::Value; 0]);
}
