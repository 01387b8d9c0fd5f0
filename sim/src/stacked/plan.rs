//! What objects do in their turns, what SQLite says of it, and what clients were told.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;

use anyhow::Result;
use bytes::Bytes;
use rusqlite::params;

use crate::random::Random;

/// The key that holds the number of the turn.
pub(super) const TURN: &str = "turn";

thread_local! {
    /// The life that this thread lives: objects are built from their state alone.
    pub(super) static LIFE: RefCell<Option<Rc<Shared>>> = const { RefCell::new(None) };
}

/// What objects, clients and driver share; it outlives processes.
pub(super) struct Shared {
    pub(super) seed: u64,
    pub(super) reference: RefCell<Reference>,
    /// By object: the highest turn that was answered, and the highest that was begun.
    pub(super) turns: RefCell<BTreeMap<String, (u64, u64)>>,
    pub(super) operations: Cell<u64>,
    pub(super) writes: Cell<u64>,
    pub(super) failure: RefCell<Option<String>>,
}

pub(super) fn shared() -> Rc<Shared> {
    LIFE.with_borrow(|life| life.clone().expect("objects run within a life"))
}

impl Shared {
    pub(super) fn fail(&self, text: impl FnOnce() -> String) {
        self.failure.borrow_mut().get_or_insert_with(text);
    }

    pub(super) fn begun(&self, object: &str, turn: u64) {
        let mut turns = self.turns.borrow_mut();
        let (_, begun) = turns.entry(object.to_owned()).or_default();
        *begun = turn.max(*begun);
    }

    /// The turn takes nothing with it: what it wrote must never be seen.
    pub(super) fn undone(&self, object: &str, turn: u64) {
        let mut turns = self.turns.borrow_mut();
        let (_, begun) = turns.entry(object.to_owned()).or_default();
        *begun = turn - 1;
    }

    pub(super) fn answered(&self, object: &str, turn: u64) {
        let mut turns = self.turns.borrow_mut();
        let (answered, begun) = turns.entry(object.to_owned()).or_default();
        *answered = turn.max(*answered);
        if turn > *begun {
            self.fail(|| format!("{object}: turn {turn} was never begun"));
        }
    }

    pub(super) fn count(&self, operations: u64, writes: u64) {
        self.operations.set(self.operations.get() + operations);
        self.writes.set(self.writes.get() + writes);
    }

    /// Compares a whole object with the state after `turn`.
    pub(super) fn compare(&self, object: &str, turn: u64, pairs: &[(String, Bytes)]) {
        let wanted = match self.reference.borrow_mut().state(self.seed, object, turn) {
            Ok(wanted) => wanted,
            Err(error) => return self.fail(|| format!("the reference: {error:#}")),
        };
        let found: Vec<_> = pairs.iter().filter(|(key, _)| key != TURN).cloned().collect();
        if wanted != found {
            self.fail(|| format!("{object} after turn {turn}: {found:?}, not {wanted:?}"));
        }
    }
}

/// One change of a key.
type Change = (String, Option<Vec<u8>>);

/// What one turn of an object does.
pub(super) struct Plan {
    pub(super) changes: Vec<Change>,
    pub(super) in_transaction: bool,
    /// A change inside it that is rolled back.
    pub(super) savepoint: bool,
    pub(super) alarm_in_ms: Option<u64>,
}

impl Plan {
    pub(super) fn of(seed: u64, object: &str, turn: u64) -> Self {
        let number =
            object.bytes().fold(seed, |hash, byte| hash * 31 % (1 << 40) + u64::from(byte));
        let mut random = Random::new(number * 1_000_003 % (1 << 50) + turn);
        let change = |random: &mut Random| {
            let key = format!("key-{}", random.below(6));
            let byte = random.bits().to_le_bytes()[0];
            let value = (!random.one_in(3)).then(|| vec![byte; random.index(40)]);
            (key, value)
        };
        Self {
            changes: (0..random.between(1, 4)).map(|_| change(&mut random)).collect(),
            in_transaction: random.one_in(3),
            savepoint: random.one_in(2),
            alarm_in_ms: random.one_in(4).then(|| random.between(1, 200)),
        }
    }
}

/// The states that SQLite holds: of each object after its newest turn that was asked for.
pub(super) struct Reference {
    sqlite: rusqlite::Connection,
    applied: BTreeMap<String, u64>,
}

impl Reference {
    pub(super) fn new() -> Result<Self> {
        let sqlite = rusqlite::Connection::open_in_memory()?;
        let schema =
            "CREATE TABLE kv (object TEXT, key TEXT, value BLOB, PRIMARY KEY (object, key))";
        sqlite.execute(schema, ())?;
        Ok(Self { sqlite, applied: BTreeMap::new() })
    }

    fn state(&mut self, seed: u64, object: &str, turn: u64) -> Result<Vec<(String, Bytes)>> {
        let mut applied = self.applied.get(object).copied().unwrap_or(0);
        if applied > turn {
            self.sqlite.prepare_cached("DELETE FROM kv WHERE object = ?")?.execute([object])?;
            applied = 0;
        }
        for turn in applied + 1..=turn {
            for (key, value) in Plan::of(seed, object, turn).changes {
                match value {
                    Some(value) => self
                        .sqlite
                        .prepare_cached("REPLACE INTO kv VALUES (?, ?, ?)")?
                        .execute(params![object, key, value])?,
                    None => self
                        .sqlite
                        .prepare_cached("DELETE FROM kv WHERE object = ? AND key = ?")?
                        .execute([object, &key])?,
                };
            }
        }
        self.applied.insert(object.to_owned(), turn);
        let mut select = self
            .sqlite
            .prepare_cached("SELECT key, value FROM kv WHERE object = ? ORDER BY key")?;
        let rows = select
            .query_map([object], |row| Ok((row.get(0)?, Bytes::from(row.get::<_, Vec<u8>>(1)?))))?;
        Ok(rows.collect::<rusqlite::Result<_>>()?)
    }
}
