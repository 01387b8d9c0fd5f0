//! Values of the trace format: arguments, results, and whether two outcomes are the same.

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use serde_json::{Value, json};

/// Longest value that a result shows whole, in bytes.
const SHOWN: usize = 64;

/// The bytes of an argument; `None` for an undefined value.
pub(crate) fn argument(value: &Value) -> Result<Option<Bytes>> {
    if value.is_null() {
        return Ok(None);
    }
    if let Some(hex) = value.as_str() {
        return Ok(Some(hex::decode(hex).context("a value is hex")?.into()));
    }
    let (Some(start), Some(len)) = (value["pattern"].as_u64(), value["len"].as_u64()) else {
        bail!("not a value: {value}");
    };
    let byte = |i: u64| (start + 131 * i + 17 * (i >> 8)).to_le_bytes()[0];
    Ok(Some((0..len).map(byte).collect()))
}

/// How a result shows these bytes.
pub(crate) fn shown(bytes: &[u8]) -> Value {
    if bytes.len() <= SHOWN {
        return json!(hex::encode(bytes));
    }
    let hash = bytes.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3)
    });
    json!({ "len": bytes.len(), "fnv1a64": format!("{hash:016x}") })
}

/// How a result shows a map.
pub(crate) fn shown_map(pairs: &[(String, Bytes)]) -> Value {
    pairs.iter().map(|(key, value)| json!([key, shown(value)])).collect()
}

/// How a step of a trace shows its outcome: its result, or the kind of its error, or that it was
/// skipped. Past a documented limit that Dormouse enforces it is the limit's error.
pub(crate) fn expected(step: &Value) -> Value {
    match &step["beyond"] {
        Value::String(kind) if !is_unlimited(step) => return json!({ "error": kind }),
        _ => {}
    }
    match step.get("error") {
        Some(error) => json!({ "error": error["kind"] }),
        None if step["skipped"] == true => json!({ "skipped": true }),
        None => json!({ "result": step["result"] }),
    }
}

/// Whether it is past the one documented limit that is not enforced: docs/decisions/0003. How
/// many keys it finds depends on an operation before it that was refused, so only that it
/// succeeds can be compared.
pub(crate) fn is_unlimited(step: &Value) -> bool {
    step["op"] == "delete_many" && step["beyond"] == "too-many-keys"
}

/// Operations of a step: itself and all inside it.
pub(crate) fn count(step: &Value) -> u64 {
    let lists = ["ops", "trigger", "runs", "after"].iter().filter_map(|key| step[key].as_array());
    1 + lists.flatten().map(count).sum::<u64>()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_and_results_are_the_formats() {
        let pattern = argument(&json!({ "pattern": 3, "len": 300 })).unwrap().unwrap();
        assert_eq!((pattern.len(), pattern[0], pattern[1], pattern[256]), (300, 3, 134, 20));
        assert_eq!(argument(&json!("")).unwrap().unwrap(), "");
        assert_eq!(argument(&Value::Null).unwrap(), None);
        assert_eq!(shown(&[0, 255]), json!("00ff"));
        // FNV-1a's published test value for "foobar" pins offset and prime; see `shown`.
        let long = [b'a'; 65];
        assert_eq!(shown(&long)["len"], 65);
    }

    #[test]
    fn a_limit_gives_its_error() {
        let step = json!({ "op": "put_many", "beyond": "too-many-keys", "result": "ok" });
        assert_eq!(expected(&step), json!({ "error": "too-many-keys" }));
    }
}
