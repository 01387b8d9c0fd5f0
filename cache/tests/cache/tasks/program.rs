//! The programs: what the tasks do, what becomes of the answers, and what happens to the tasks.

use dormouse_cache::{AlarmToo, Outcome, Read, Write};
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
    /// Its operations are made through its handle, or through the object's own storage.
    Transaction {
        steps: Vec<Step>,
        own: bool,
        end: End,
    },
    /// Both at once, in one event; done when both are.
    Join(Vec<Step>, Vec<Step>),
    /// In a task beside the event.
    Beside(Vec<Step>),
    /// The alarm's handler runs.
    Alarm {
        at_ms: u64,
        steps: Vec<Step>,
        outcome: Outcome,
    },
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
    /// A flush that is in flight has taken too long.
    Timeout,
    /// The object is reset.
    Shutdown,
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
    let step = leaf.prop_recursive(4, 24, 5, |inner| {
        let end = prop_oneof![
            4 => wait().prop_map(End::Commit),
            1 => Just(End::Rollback),
            1 => Just(End::Drop),
        ];
        let steps = || prop::collection::vec(inner.clone(), 0..5);
        let transaction = (steps(), any::<bool>(), end)
            .prop_map(|(steps, own, end)| Step::Transaction { steps, own, end })
            .boxed();
        // Transactions that are joined lie in one another, in any order of their ends.
        let side = prop_oneof![
            2 => transaction.clone(),
            2 => Just(Step::Rest),
            2 => inner.clone(),
        ];
        let side = prop::collection::vec(side, 0..4).boxed();
        let outcomes = [Outcome::Succeeded, Outcome::Failed, Outcome::Abandoned];
        prop_oneof![
            8 => inner.clone(),
            4 => transaction,
            3 => (side.clone(), side).prop_map(|(one, other)| Step::Join(one, other)),
            1 => steps().prop_map(Step::Beside),
            1 => (1..4_u64, steps(), prop::sample::select(outcomes.to_vec()))
                .prop_map(|(at_ms, steps, outcome)| Step::Alarm { at_ms, steps, outcome }),
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
        1 => Just(Act::Timeout),
        1 => Just(Act::Shutdown),
        6 => (0..4_usize).prop_map(Act::Kill),
    ]
}
