//! How the trace format shows results, and what a recorded step expects.

use bytes::Bytes;
use serde_json::{Value, json};

/// Longest value that a result shows whole, in bytes.
const SHOWN: usize = 64;

/// Longest text that a frame shows whole, in UTF-16 units.
const SHOWN_UNITS: usize = 128;

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

/// How a result shows a text: long ones by their length in UTF-16 units.
pub(crate) fn shown_text(text: &str) -> Value {
    let len = text.encode_utf16().count();
    if len <= SHOWN_UNITS { json!(text) } else { json!({ "len": len }) }
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
        None => match step.get("result") {
            Some(result) => json!({ "result": result }),
            // Also inside an operation that is itself skipped.
            None => json!({ "skipped": true }),
        },
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
    fn long_values_are_shown_by_their_hash() {
        assert_eq!(shown(&[0, 255]), json!("00ff"));
        assert_eq!(shown(&[7; 64]), json!("07".repeat(64)));
        // Computed by another implementation of FNV-1a, checked against the published
        // 85944171f73967e8 of "foobar".
        assert_eq!(shown(&[b'a'; 65]), json!({ "len": 65, "fnv1a64": "8087e9a889f8a14c" }));
    }

    #[test]
    fn long_texts_are_shown_by_their_units() {
        assert_eq!(shown_text(&"é".repeat(128)), json!("é".repeat(128)));
        assert_eq!(shown_text(&"😀".repeat(65)), json!({ "len": 130 }));
    }

    #[test]
    fn a_step_without_an_outcome_was_skipped() {
        assert_eq!(expected(&json!({ "op": "get", "skipped": true })), json!({ "skipped": true }));
        assert_eq!(expected(&json!({ "op": "get", "result": null })), json!({ "result": null }));
    }

    #[test]
    fn a_limit_gives_its_error() {
        let step = json!({ "op": "put_many", "beyond": "too-many-keys", "result": "ok" });
        assert_eq!(expected(&step), json!({ "error": "too-many-keys" }));
    }
}
