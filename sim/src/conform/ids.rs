//! Replays traces of kind `ids`, through the namespaces that the header names.

use std::collections::BTreeMap;
use std::sync::Mutex;

use anyhow::{Context, Result};
use dormouse_scheduler::{Id, Namespace, Topology};
use serde_json::{Value, json};

use super::Replay;
use super::compare::expected;
use super::object::Recorded;
use crate::random::Random;

type Objects = Namespace<Recorded>;

/// The namespace of this unique key. No core serves it: ids need none.
fn namespace(unique_key: &str, seed: u64) -> Objects {
    let random = Mutex::new(Random::new(seed));
    let topology = Topology::builder().namespace::<Recorded>(unique_key);
    topology.build(move || random.lock().expect("no panic under it").bits()).namespace()
}

pub(crate) fn replay(replay: &mut Replay<'_>, lines: &[(usize, Value)]) -> Result<()> {
    let mut namespaces = BTreeMap::new();
    for (name, unique_key) in replay.header["namespaces"].as_object().context("namespaces")? {
        let unique_key = unique_key.as_str().context("a unique key is text")?;
        namespaces.insert(name.clone(), namespace(unique_key, replay.seed));
    }
    for (number, step) in lines {
        replay.outcome.operations += 1;
        let of_step = |name: &&String| step["ns"] == json!(name);
        let mine = namespaces.iter().find(|(name, _)| of_step(name)).context("a namespace")?.1;
        let others = namespaces.iter().filter(|(name, _)| !of_step(name));
        let others: Vec<&Objects> = others.map(|(_, namespace)| namespace).collect();
        let Some(got) = run(mine, &others, step) else {
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

fn outcome(result: dormouse_scheduler::Result<Value>) -> Value {
    match result {
        Ok(value) => json!({ "result": value }),
        Err(error) => json!({ "error": error.code() }),
    }
}

fn shown(id: &Id) -> Value {
    json!({ "id": id.to_string(), "name": id.name() })
}

/// The outcome; `None` for an operation that Dormouse's types rule out (jurisdictions).
fn run(namespace: &Objects, others: &[&Objects], step: &Value) -> Option<Value> {
    let text = |field: &str| step[field].as_str().unwrap_or_default();
    let parsed = |field: &str| namespace.id_from_string(text(field));
    let got = match text("op") {
        "id_from_name" => Ok(shown(&namespace.id_from_name(text("name")))),
        "id_from_string" => parsed("id").map(|id| shown(&id)),
        "id_equals" => parsed("a").and_then(|a| Ok(json!(a == parsed("b")?))),
        "unique_id_roundtrip" => roundtrip(namespace, others),
        "new_unique_id" => return None,
        other => Ok(json!(format!("unknown operation {other}"))),
    };
    Some(outcome(got))
}

fn roundtrip(namespace: &Objects, others: &[&Objects]) -> dormouse_scheduler::Result<Value> {
    let id = namespace.new_unique_id();
    let text = id.to_string();
    let again = namespace.id_from_string(&text)?;
    let refusals = others.iter().map(|other| other.id_from_string(&text).err());
    let codes: Vec<Value> =
        refusals.map(|error| json!(error.and_then(|error| error.code()))).collect();
    // One code if all the others say the same.
    let agree = codes.windows(2).all(|pair| pair[0] == pair[1]);
    let foreign = if agree { json!(codes.first()) } else { json!(codes) };
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
