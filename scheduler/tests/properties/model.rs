//! What programs must answer and leave behind, said with plain maps.

use std::collections::BTreeMap;

use super::program::{
    Action, By, Ending, OBJECTS, Outcome, Pairs, Program, Said, Span, Txn, TxnEnd, text,
};

/// What one object holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Object {
    map: BTreeMap<String, u64>,
    alarm: Option<u64>,
}

/// All objects.
#[derive(Default)]
pub(crate) struct Model {
    objects: [Object; OBJECTS],
    /// Objects whose instances were ended by the program that runs.
    reset: Vec<usize>,
}

impl Model {
    /// Runs a call; gives how it ends, and which objects it reset.
    pub(crate) fn run(&mut self, object: usize, program: &Program) -> (Outcome, Vec<usize>) {
        let outcome = self.call(object, program);
        (outcome, std::mem::take(&mut self.reset))
    }

    fn call(&mut self, object: usize, program: &Program) -> Outcome {
        let actions = program.actions.iter();
        let said: Vec<_> = actions.map(|action| self.act(object, action, false)).collect();
        match &program.ending {
            Ending::Reply => Outcome::Said(said),
            // An error takes nothing back.
            Ending::Fail => Outcome::Failed(text(&said)),
            // What came before was durable; what came after never happened.
            Ending::Reset { by, .. } => {
                self.reset.push(object);
                reset(*by, &said)
            }
        }
    }

    fn act(&mut self, object: usize, action: &Action, in_transaction: bool) -> Said {
        let Object { map, alarm } = &mut self.objects[object];
        match action {
            Action::Get(key) => Said::Value(map.get(*key).copied()),
            Action::GetMany(keys) => {
                Said::Pairs(pairs(map.iter().filter(|(key, _)| keys.contains(&key.as_str()))))
            }
            Action::List(span) => Said::Pairs(list(map, span)),
            Action::Put(key, value) | Action::PutUnawaited(key, value) => {
                map.insert((*key).into(), *value);
                Said::Done
            }
            Action::PutMany(entries) => {
                map.extend(entries.iter().map(|(key, value)| ((*key).into(), *value)));
                Said::Done
            }
            Action::Increment(key) => {
                let value = map.entry((*key).into()).or_insert(0);
                *value += 1;
                Said::Value(Some(*value))
            }
            Action::Delete(key) => Said::Existed(map.remove(*key).is_some()),
            Action::DeleteMany(keys) => {
                Said::Count(keys.iter().filter(|key| map.remove(**key).is_some()).count())
            }
            Action::DeleteAll { .. } if in_transaction => Said::Refused,
            Action::DeleteAll { keep_alarm } => {
                map.clear();
                *alarm = alarm.filter(|_| *keep_alarm);
                Said::Done
            }
            Action::SetAlarm(at_ms) => {
                *alarm = Some(*at_ms);
                Said::Done
            }
            Action::GetAlarm => Said::Alarm(*alarm),
            Action::DeleteAlarm => {
                *alarm = None;
                Said::Done
            }
            Action::Sync => Said::Done,
            Action::Transaction(txn) => self.transact(object, txn),
            Action::Call(behind, program) => {
                Said::Other(self.call((object + behind) % OBJECTS, program))
            }
        }
    }

    fn transact(&mut self, object: usize, txn: &Txn) -> Said {
        let before = self.objects[object].clone();
        let actions = txn.actions.iter();
        let said: Vec<_> = actions.map(|action| self.act(object, action, true)).collect();
        if !matches!(txn.end, TxnEnd::Commit) {
            self.objects[object] = before;
        }
        match txn.end {
            TxnEnd::Commit => Said::Committed(said),
            TxnEnd::Rollback => Said::RolledBack(said),
            TxnEnd::Fail => Said::Failed(text(&said)),
        }
    }
}

fn reset(by: By, said: &[Said]) -> Outcome {
    Outcome::Reset(by, text(said))
}

fn pairs<'a>(pairs: impl Iterator<Item = (&'a String, &'a u64)>) -> Pairs {
    pairs.map(|(key, value)| (key.clone(), *value)).collect()
}

fn list(map: &BTreeMap<String, u64>, span: &Span) -> Pairs {
    let within = |key: &str| {
        span.start.is_none_or(|start| key >= start)
            && span.end.is_none_or(|end| key < end)
            && span.prefix.is_none_or(|prefix| key.starts_with(prefix))
    };
    let mut found = pairs(map.iter().filter(|(key, _)| within(key)));
    if span.reverse {
        found.reverse();
    }
    found.truncate(span.limit.map_or(usize::MAX, usize::from));
    found
}
