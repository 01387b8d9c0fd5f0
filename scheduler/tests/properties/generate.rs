//! Which programs there are. How each ends is certain: calls to others are made outside of
//! transactions and do not call on, so that nobody waits in a circle; a reset comes after
//! everything before it is durable, and what it takes back waits for nothing.

use proptest::prelude::*;

use super::program::{Action, By, Ending, Key, OBJECTS, Program, Span, Txn, TxnEnd};

/// Keys that are each other's prefixes, neighbours and successors.
const KEYS: [Key; 5] = ["a", "aa", "ab", "b", "n"];
/// So far in the future that no alarm fires.
const ALARMS_MS: std::ops::Range<u64> = 4_000_000_000_000..4_000_000_000_003;
/// How deep transactions nest.
const DEPTH: u32 = 2;

fn key() -> impl Strategy<Value = Key> {
    prop::sample::select(KEYS.as_slice())
}

fn span() -> impl Strategy<Value = Span> {
    let bound = || prop::option::weighted(0.3, key());
    (bound(), bound(), bound(), prop::option::of(1..4_u8), any::<bool>()).prop_map(
        |(start, end, prefix, limit, reverse)| Span { start, end, prefix, limit, reverse },
    )
}

/// What waits for nothing, as objects as small as these are in memory whole.
fn plain() -> impl Strategy<Value = Action> {
    let keys = || prop::collection::vec(key(), 0..4);
    let value = || 0..100_u64;
    prop_oneof![
        4 => (key(), value()).prop_map(|(key, value)| Action::Put(key, value)),
        1 => (key(), value()).prop_map(|(key, value)| Action::PutUnawaited(key, value)),
        2 => prop::collection::vec((key(), value()), 0..4).prop_map(Action::PutMany),
        6 => key().prop_map(Action::Increment),
        2 => key().prop_map(Action::Get),
        1 => keys().prop_map(Action::GetMany),
        2 => span().prop_map(Action::List),
        3 => key().prop_map(Action::Delete),
        1 => keys().prop_map(Action::DeleteMany),
        1 => any::<bool>().prop_map(|keep_alarm| Action::DeleteAll { keep_alarm }),
        2 => ALARMS_MS.prop_map(Action::SetAlarm),
        2 => Just(Action::GetAlarm),
        1 => Just(Action::DeleteAlarm),
    ]
}

fn transaction(depth: u32) -> BoxedStrategy<Action> {
    let end = prop_oneof![
        2 => Just(TxnEnd::Commit),
        1 => Just(TxnEnd::Rollback),
        1 => Just(TxnEnd::Fail),
    ];
    let action = match depth {
        0 => plain().boxed(),
        _ => prop_oneof![5 => plain(), 1 => transaction(depth - 1)].boxed(),
    };
    (prop::collection::vec(action, 0..5), any::<bool>(), end)
        .prop_map(|(actions, by_own_storage, end)| {
            Action::Transaction(Txn { actions, by_own_storage, end })
        })
        .boxed()
}

fn ending() -> impl Strategy<Value = Ending> {
    let by = prop_oneof![Just(By::Panic), Just(By::Abort)];
    let lost = prop::collection::vec(plain(), 0..4);
    prop_oneof![
        8 => Just(Ending::Reply),
        2 => Just(Ending::Fail),
        1 => (by, lost, any::<bool>()).prop_map(|(by, lost, in_transaction)| Ending::Reset {
            by,
            lost,
            in_transaction,
        }),
    ]
}

fn local() -> impl Strategy<Value = Action> {
    prop_oneof![8 => plain(), 2 => transaction(DEPTH), 1 => Just(Action::Sync)]
}

fn called() -> impl Strategy<Value = Program> {
    (prop::collection::vec(local(), 0..3), ending())
        .prop_map(|(actions, ending)| Program { actions, ending })
}

/// What a client has an object do.
pub(crate) fn program() -> impl Strategy<Value = Program> {
    let call = (1..OBJECTS, called()).prop_map(|(behind, program)| Action::Call(behind, program));
    let action = prop_oneof![14 => local(), 1 => call];
    (prop::collection::vec(action, 0..5), ending())
        .prop_map(|(actions, ending)| Program { actions, ending })
}
