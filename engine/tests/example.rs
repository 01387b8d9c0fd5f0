//! The example for embedders does what it says.

mod common;
#[path = "../examples/embed.rs"]
mod embed;

#[test]
fn the_example_does_what_it_says() {
    let dir = common::dir();
    let wanted = [
        "the lobby's topic: mice",
        "newest first: msg:0002 it is",
        "newest first: msg:0001 is this on?",
        "visitors: 5",
        "the alarm, in ms since 1970: 4102444800000",
        "messages deleted: 3",
        "rooms: 10, with an alarm: 1",
        "as counted: 10 in 2 shards",
    ];
    assert_eq!(embed::run(dir.path()).expect("it runs"), wanted);
    // Its directory is an ordinary store, and may be there already.
    assert_eq!(embed::run(dir.path()).expect("it runs again")[3], "visitors: 10");
}
