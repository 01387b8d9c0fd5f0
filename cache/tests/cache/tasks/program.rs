//! The programs: what the tasks do, what becomes of the answers, and what happens to the tasks.

use dormouse_cache::{AlarmToo, Read, Write};
use proptest::prelude::*;

/// What becomes of an operation's answer.
#[derive(Clone, Copy, Debug)]
pub(super) enum Wait {
    /// The gate is kept meanwhile.
    Held,
    Open,
    /// It is dropped, after one poll.
    Dropped,
}

#[derive(Clone, Debug)]
pub(super) enum Step {
    /// Of so many bytes; each value is another one.
    Put(u8, usize, Write, Wait),
    PutMany(Vec<u8>, Wait),
    Delete(Vec<u8>, Write, Wait),
    DeleteAll(AlarmToo, Wait),
    SetAlarm(Option<u64>, Wait),
    Get(u8, Read),
    List(Read),
    /// Says something outside.
    Say,
    Sync,
    /// Waits for something else.
    Rest,
    Transaction(Vec<Step>, End),
}

#[derive(Clone, Copy, Debug)]
pub(super) enum End {
    Commit(Wait),
    Rollback,
    Drop,
}

/// What happens to the tasks from outside.
#[derive(Clone, Debug)]
pub(super) enum Act {
    Run,
    Durable,
    /// Nothing was written.
    Retry,
    /// The engine can't go on.
    Fatal,
    /// A task is dropped where it is.
    Kill(usize),
}

fn wait() -> impl Strategy<Value = Wait> {
    prop::sample::select(vec![Wait::Held, Wait::Open, Wait::Dropped])
}

fn write() -> impl Strategy<Value = Write> {
    let options = [Write::default(), Write::allow_unconfirmed(), Write::no_cache()];
    prop::sample::select(options.to_vec())
}

fn read() -> impl Strategy<Value = Read> {
    prop::sample::select(vec![Read::default(), Read::no_cache(), Read::allow_concurrency()])
}

pub(super) fn steps() -> impl Strategy<Value = Vec<Step>> {
    let keys = || prop::collection::vec(0..6_u8, 0..4);
    let alarm_too = prop::sample::select(vec![AlarmToo::Keep, AlarmToo::Clear]);
    let leaf = prop_oneof![
        6 => (0..6_u8, 8..120_usize, write(), wait())
            .prop_map(|(key, bytes, options, wait)| Step::Put(key, bytes, options, wait)),
        2 => (keys(), wait()).prop_map(|(keys, wait)| Step::PutMany(keys, wait)),
        2 => (keys(), write(), wait())
            .prop_map(|(keys, options, wait)| Step::Delete(keys, options, wait)),
        1 => (alarm_too, wait()).prop_map(|(too, wait)| Step::DeleteAll(too, wait)),
        1 => (prop::option::of(1..4_u64), wait())
            .prop_map(|(at_ms, wait)| Step::SetAlarm(at_ms, wait)),
        2 => (0..6_u8, read()).prop_map(|(key, options)| Step::Get(key, options)),
        1 => read().prop_map(Step::List),
        2 => Just(Step::Say),
        1 => Just(Step::Sync),
        3 => Just(Step::Rest),
    ];
    let step = leaf.prop_recursive(3, 16, 5, |inner| {
        let end = prop_oneof![
            4 => wait().prop_map(End::Commit),
            1 => Just(End::Rollback),
            1 => Just(End::Drop),
        ];
        let transaction = (prop::collection::vec(inner.clone(), 0..5), end);
        prop_oneof![
            4 => inner,
            1 => transaction.prop_map(|(steps, end)| Step::Transaction(steps, end)),
        ]
    });
    prop::collection::vec(step, 0..10)
}

pub(super) fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        30 => Just(Act::Run),
        30 => Just(Act::Durable),
        8 => Just(Act::Retry),
        1 => Just(Act::Fatal),
        6 => (0..4_usize).prop_map(Act::Kill),
    ]
}
