//! What the operations of a trace are given: keys, entries, options.

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use dormouse_cache::{List, Read, Write};
use serde_json::Value;

/// A list of operations inside another, or none.
pub(crate) fn nested(op: &Value) -> Vec<Value> {
    op["ops"].as_array().cloned().unwrap_or_default()
}

/// The texts of a list of keys.
pub(crate) fn texts(keys: &Value) -> Vec<&str> {
    keys.as_array().into_iter().flatten().filter_map(Value::as_str).collect()
}

/// The bytes of a value; `None` for an undefined one.
pub(crate) fn bytes(value: &Value) -> Result<Option<Bytes>> {
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

/// A text of a message, given as it is or as a repetition; `None` if there is none.
pub(crate) fn message_text(value: &Value) -> Option<String> {
    match value.as_str() {
        Some(text) => Some(text.to_owned()),
        None => {
            let count = usize::try_from(value["n"].as_u64()?).ok()?;
            Some(value["repeat"].as_str()?.repeat(count))
        }
    }
}

/// The entries of a `put_many`; `None` if a value is undefined.
pub(crate) fn entries(list: &Value) -> Result<Option<Vec<(&str, Bytes)>>> {
    let mut all = Vec::new();
    for entry in list.as_array().context("entries are a list")? {
        let key = entry[0].as_str().context("a key is text")?;
        let Some(value) = bytes(&entry[1])? else { return Ok(None) };
        all.push((key, value));
    }
    Ok(Some(all))
}

/// The options of a read and of a write.
pub(crate) fn options(opts: &Value) -> (Read, Write) {
    let (mut read, mut write) = (Read::default(), Write::default());
    if opts["allowConcurrency"] == true {
        (read, write) =
            (read.and(Read::allow_concurrency()), write.and(Write::allow_concurrency()));
    }
    if opts["noCache"] == true {
        (read, write) = (read.and(Read::no_cache()), write.and(Write::no_cache()));
    }
    if opts["allowUnconfirmed"] == true {
        write = write.and(Write::allow_unconfirmed());
    }
    (read, write)
}

/// What a `list` is to give.
pub(crate) fn list(opts: &Value) -> List {
    let mut list = List::all();
    if let Some(prefix) = opts["prefix"].as_str() {
        list = List::prefix(prefix);
    }
    if let Some(start) = opts["start"].as_str() {
        list = list.start(start);
    }
    if let Some(start) = opts["startAfter"].as_str() {
        list = list.start_after(start);
    }
    if let Some(end) = opts["end"].as_str() {
        list = list.end(end);
    }
    if opts["reverse"] == true {
        list = list.reverse();
    }
    if let Some(limit) = opts["limit"].as_i64() {
        list = list.limit(limit);
    }
    list
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn values_are_hex_or_a_pattern() {
        let pattern = bytes(&json!({ "pattern": 3, "len": 300 })).unwrap().unwrap();
        // 3, 3 + 131, and, after the first 256 bytes, 17 more: all modulo 256.
        assert_eq!((pattern.len(), pattern[0], pattern[1], pattern[256]), (300, 3, 134, 20));
        assert_eq!(bytes(&json!("00ff")).unwrap().unwrap(), &[0, 255][..]);
        assert_eq!(bytes(&json!("")).unwrap().unwrap(), "");
        assert_eq!(bytes(&Value::Null).unwrap(), None);
        assert!(bytes(&json!("0g")).is_err() && bytes(&json!(7)).is_err());
    }

    #[test]
    fn texts_may_be_repetitions() {
        assert_eq!(message_text(&json!({ "repeat": "é", "n": 3 })).unwrap(), "ééé");
        assert_eq!(message_text(&json!("")).unwrap(), "");
        assert_eq!(message_text(&Value::Null), None);
    }

    #[test]
    fn an_undefined_entry_is_told_from_a_malformed_one() {
        assert_eq!(entries(&json!([["k", "00"], ["l", null]])).unwrap(), None);
        assert!(entries(&json!([["k", "0"]])).is_err() && entries(&json!([[1, "00"]])).is_err());
        assert_eq!(entries(&json!([])).unwrap(), Some(Vec::new()));
    }

    #[test]
    fn all_options_of_a_list_are_taken() {
        let opts = json!({ "start": "a", "end": "b", "prefix": "", "reverse": true, "limit": -3 });
        assert_eq!(list(&opts), List::prefix("").start("a").end("b").reverse().limit(-3));
        assert_eq!(list(&json!({ "startAfter": "" })), List::all().start_after(""));
        assert_eq!(list(&Value::Null), List::all());
    }
}
