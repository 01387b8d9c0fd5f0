//! How a key's value is shown. Which of them were put as typed values (MessagePack, decisions/0004) and which as
//! bytes is not kept with them: bytes that are one whole MessagePack value are shown as that one, and as text too if
//! they are text by chance, as every single letter is.

use std::fmt;

use serde::de::{MapAccess, SeqAccess, Visitor};
use serde::ser::{SerializeMap, SerializeStruct};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::print;

/// Lists and maps inside one another, at most: what an object can read.
const DEPTH_MAX: usize = 128;

/// A value of MessagePack, whatever it is.
#[derive(Debug, PartialEq)]
enum Any {
    Nothing,
    Bool(bool),
    Signed(i64),
    Unsigned(u64),
    Float(f64),
    Text(String),
    Bytes(Vec<u8>),
    List(Vec<Any>),
    Map(Vec<(Any, Any)>),
}

impl Any {
    fn of(bytes: &[u8]) -> Option<Self> {
        let mut from = rmp_serde::Deserializer::from_read_ref(bytes);
        from.set_max_depth(DEPTH_MAX);
        let value = from.deserialize_any(AnyVisitor).ok()?;
        let rest = serde::de::IgnoredAny::deserialize(&mut from);
        matches!(rest, Err(rmp_serde::decode::Error::InvalidMarkerRead(_))).then_some(value)
    }
}

struct AnyVisitor;

impl<'de> Visitor<'de> for AnyVisitor {
    type Value = Any;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_unit<E>(self) -> Result<Any, E> {
        Ok(Any::Nothing)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Any, E> {
        Ok(Any::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Any, E> {
        Ok(Any::Signed(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Any, E> {
        Ok(Any::Unsigned(value))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Any, E> {
        Ok(Any::Float(value))
    }

    fn visit_str<E>(self, value: &str) -> Result<Any, E> {
        Ok(Any::Text(value.to_owned()))
    }

    fn visit_bytes<E>(self, value: &[u8]) -> Result<Any, E> {
        Ok(Any::Bytes(value.to_vec()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Any, A::Error> {
        let mut list = Vec::new();
        while let Some(value) = seq.next_element()? {
            list.push(value);
        }
        Ok(Any::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Any, A::Error> {
        let mut entries = Vec::new();
        while let Some(entry) = map.next_entry()? {
            entries.push(entry);
        }
        Ok(Any::Map(entries))
    }
}

impl<'de> Deserialize<'de> for Any {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_any(AnyVisitor)
    }
}

/// As JSON: bytes as `{"hex": "…"}`, a map of which some key is no text as a list of pairs, what is no JSON number
/// by its name.
impl Serialize for Any {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Nothing => to.serialize_unit(),
            Self::Bool(value) => to.serialize_bool(*value),
            Self::Signed(value) => to.serialize_i64(*value),
            Self::Unsigned(value) => to.serialize_u64(*value),
            Self::Float(value) if value.is_finite() => to.serialize_f64(*value),
            Self::Float(value) => to.collect_str(value),
            Self::Text(text) => to.serialize_str(text),
            Self::Bytes(bytes) => {
                let mut fields = to.serialize_map(Some(1))?;
                fields.serialize_entry("hex", &hex::encode(bytes))?;
                fields.end()
            }
            Self::List(list) => to.collect_seq(list),
            Self::Map(entries) if entries.iter().all(|(key, _)| matches!(key, Self::Text(_))) => {
                to.collect_map(entries.iter().map(|(key, value)| (key, value)))
            }
            Self::Map(entries) => to.collect_seq(entries),
        }
    }
}

/// What is shown of a value's bytes.
pub(crate) struct Shown<'a> {
    bytes: &'a [u8],
    value: Option<Any>,
}

impl<'a> Shown<'a> {
    pub(crate) fn of(bytes: &'a [u8]) -> Self {
        Self { bytes, value: Any::of(bytes) }
    }

    /// On one line.
    pub(crate) fn line(&self) -> String {
        let text = print::escaped(self.bytes);
        let Some(value) = &self.value else { return text };
        let value = serde_json::to_string(value).expect("every value has JSON");
        let by_chance = std::str::from_utf8(self.bytes).is_ok() && !text.contains('\\');
        if by_chance { format!("{value}, or the text {text}") } else { value }
    }
}

/// In JSON: text as a string, other bytes as `{"hex": "…"}`, a typed value as `{"hex": "…", "value": …}`.
impl Serialize for Shown<'_> {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        let Some(value) = &self.value else { return print::Text::of(self.bytes).serialize(to) };
        let mut fields = to.serialize_struct("Value", 2)?;
        fields.serialize_field("hex", &hex::encode(self.bytes))?;
        fields.serialize_field("value", value)?;
        fields.end()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn line(value: impl Serialize) -> String {
        Shown::of(&rmp_serde::to_vec_named(&value).expect("a value")).line()
    }

    fn json(bytes: &[u8]) -> String {
        serde_json::to_string(&Shown::of(bytes)).expect("JSON")
    }

    #[test]
    fn typed_values_are_shown_as_json() {
        #[derive(Serialize)]
        struct Member<'a> {
            name: &'a str,
            score: f64,
            seen: Option<u64>,
        }
        let member = Member { name: "a \"mouse\"\n", score: 0.5, seen: None };
        assert_eq!(line(member), r#"{"name":"a \"mouse\"\n","score":0.5,"seen":null}"#);
        assert_eq!(line([-1_i64, 2]), "[-1,2]");
        assert_eq!(line(300), "300");
        assert_eq!(line(f64::NEG_INFINITY), "\"-inf\"");
        assert_eq!(line(BTreeMap::from([(1, true)])), "[[1,true]]");
        assert_eq!(Shown::of(&[0xc4, 2, 0, 0xff]).line(), r#"{"hex":"00ff"}"#);
        assert_eq!(json(&[0xcd, 1, 44]), r#"{"hex":"cd012c","value":300}"#);
    }

    #[test]
    fn bytes_are_shown_as_text_or_escaped() {
        assert_eq!(Shown::of(b"two words").line(), "two words");
        assert_eq!(Shown::of(b"").line(), "");
        assert_eq!(Shown::of(b"\0\xfe").line(), "\\u{0}\\xfe");
        assert_eq!(Shown::of(b"7").line(), "55, or the text 7");
        assert_eq!(Shown::of(b"\x07").line(), "7");
        assert_eq!(json(b"two words"), "\"two words\"");
        assert_eq!(json(b"\0\xfe"), r#"{"hex":"00fe"}"#);
    }

    #[test]
    fn hostile_bytes_are_shown_as_bytes() {
        let deep = |levels| [vec![0x91; levels], vec![0]].concat();
        assert_eq!(Any::of(&deep(1 << 20)), None);
        assert!(Any::of(&deep(100)).is_some());
        assert_eq!(Any::of(&[0xdd, 0xff, 0xff, 0xff, 0xff, 0]), None, "a list that is not there");
        assert_eq!(Any::of(&[0xc1]), None);
    }
}
