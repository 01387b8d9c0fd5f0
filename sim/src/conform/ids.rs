//! Replays traces of kind `ids`, on the namespaces that the header names.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use dormouse_scheduler::{Id, NamespaceKey};
use serde_json::{Value, json};

use super::Replay;
use super::compare::expected;

pub(crate) fn replay(replay: &mut Replay<'_>, lines: &[(usize, Value)]) -> Result<()> {
    let mut keys = BTreeMap::new();
    for (name, unique_key) in replay.header["namespaces"].as_object().context("namespaces")? {
        let unique_key = unique_key.as_str().context("a unique key is text")?;
        keys.insert(name.clone(), NamespaceKey::new(unique_key));
    }
    for (number, step) in lines {
        replay.outcome.operations += 1;
        let key = step["ns"].as_str().and_then(|ns| keys.get(ns)).context("a namespace")?;
        let others = keys.iter().filter(|(name, _)| step["ns"] != json!(name));
        let others: Vec<&NamespaceKey> = others.map(|(_, key)| key).collect();
        let Some(got) = run(key, &others, step) else {
            replay.outcome.inexpressible += 1;
            continue;
        };
        let wanted = match step["op"] == "unique_id_roundtrip" {
            true => recorded_roundtrip(step),
            false => expected(step),
        };
        if got != wanted {
            let what = step["op"].as_str().unwrap_or_default();
            replay.differs(*number, what, &wanted, &got);
        }
    }
    Ok(())
}

fn outcome(result: Result<Value, dormouse_engine::Error>) -> Value {
    match result {
        Ok(value) => json!({ "result": value }),
        Err(error) => json!({ "error": error.code() }),
    }
}

fn shown(id: &Id) -> Value {
    json!({ "id": id.to_string(), "name": id.name() })
}

/// The outcome; `None` for an operation that Dormouse's types rule out (jurisdictions).
fn run(key: &NamespaceKey, others: &[&NamespaceKey], step: &Value) -> Option<Value> {
    let text = |field: &str| step[field].as_str().unwrap_or_default();
    let parsed = |field: &str| key.id_from_string(text(field));
    let got = match text("op") {
        "id_from_name" => Ok(shown(&key.id_from_name(text("name")))),
        "id_from_string" => parsed("id").map(|id| shown(&id)),
        "id_equals" => parsed("a").and_then(|a| Ok(json!(a == parsed("b")?))),
        "unique_id_roundtrip" => roundtrip(key, others),
        "new_unique_id" => return None,
        other => Ok(json!(format!("unknown operation {other}"))),
    };
    Some(outcome(got))
}

fn roundtrip(
    key: &NamespaceKey,
    others: &[&NamespaceKey],
) -> Result<Value, dormouse_engine::Error> {
    let id = key.new_unique_id([7; 16]);
    let text = id.to_string();
    let again = key.id_from_string(&text)?;
    let mut foreign = Value::Null;
    for other in others {
        foreign =
            other.id_from_string(&text).err().map_or(Value::Null, |error| json!(error.code()));
    }
    Ok(json!({
        "hex_len": text.len(),
        "name": id.name(),
        "same": again.to_string() == text,
        "equals": again == id,
        "other_ns_error": foreign,
    }))
}

/// A round trip's observations stand in the step itself.
fn recorded_roundtrip(step: &Value) -> Value {
    json!({ "result": {
        "hex_len": step["hex_len"],
        "name": step["name"],
        "same": step["same"],
        "equals": step["equals"],
        "other_ns_error": step["other_ns_error"]["kind"],
    } })
}
