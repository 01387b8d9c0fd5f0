//! How typed values are kept: as MessagePack, structs with the names of their fields, so that a build with
//! more or fewer fields still reads them, and a tool can show them (decisions/0004).

use std::cell::Cell;

use bytes::Bytes;
use rmp_serde::decode::Error as DecodeError;
use rmp_serde::{Deserializer, encode};
use serde::de::{DeserializeOwned, IgnoredAny};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// Room that is kept for the next value.
const ROOM_MAX: usize = 64 << 10;

thread_local! {
    /// What values are written into, before they are copied to where they just fit.
    static ROOM: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// Lists, maps and the like inside one another that are read, at most: the stack of a core has room for them.
const DEPTH_MAX: usize = 128;

/// Errors: the type can't be written, such as one that fails in its own `Serialize`.
pub(crate) fn encode<T: Serialize + ?Sized>(value: &T) -> Result<Bytes> {
    // Taken: a type may write another value while it is written.
    let mut room = ROOM.take();
    room.clear();
    encode::write_named(&mut room, value).map_err(no_value)?;
    // A value stays in memory for as long as its object: not with room for more.
    let bytes = Bytes::copy_from_slice(&room);
    if room.capacity() <= ROOM_MAX {
        ROOM.set(room);
    }
    Ok(bytes)
}

/// Errors: the bytes are no value of this type, or not that alone; it lies in itself more than 128 deep.
pub(crate) fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T> {
    let mut from = Deserializer::from_read_ref(bytes);
    from.set_max_depth(DEPTH_MAX);
    let value = T::deserialize(&mut from).map_err(no_value)?;
    match IgnoredAny::deserialize(&mut from) {
        Err(DecodeError::InvalidMarkerRead(_)) => Ok(value),
        _ => Err(no_value("bytes follow it, as where it was put as bytes")),
    }
}

fn no_value(error: impl std::fmt::Display) -> Error {
    Error::user(format!("a value can't be read or written as its type: {error}"))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::fmt::Debug;

    use proptest::prelude::*;

    use super::*;

    fn round_trip<T: Serialize + DeserializeOwned + PartialEq + Debug>(value: &T) {
        let bytes = encode(value).expect("written");
        assert_eq!(&decode::<T>(&bytes).expect("read"), value, "as {bytes:?}");
    }

    #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
    enum Shape {
        Unit,
        New(f64),
        Tuple(i64, Option<u64>),
        Struct { text: String, bytes: Vec<u8>, nothing: () },
    }

    /// Kept under the name of their variant beside their fields.
    #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
    #[serde(tag = "kind")]
    enum Tagged {
        Empty,
        Full { bytes: Vec<u8>, shape: Shape },
    }

    #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
    #[serde(untagged)]
    enum Bare {
        Number(u64),
        Text(String),
        Bytes(Vec<u8>),
    }

    fn float() -> impl Strategy<Value = f64> {
        // NaN is equal to nothing.
        any::<u64>().prop_map(f64::from_bits).prop_filter("a number", |float| !float.is_nan())
    }

    fn shape() -> impl Strategy<Value = Shape> {
        prop_oneof![
            Just(Shape::Unit),
            float().prop_map(Shape::New),
            any::<(i64, Option<u64>)>().prop_map(|(a, b)| Shape::Tuple(a, b)),
            any::<(String, Vec<u8>)>().prop_map(|(text, bytes)| Shape::Struct {
                text,
                bytes,
                nothing: ()
            }),
        ]
    }

    proptest! {
        #[test]
        fn values_are_what_they_were(
            float in float(),
            signed: (i8, i16, i32, i64, i128),
            unsigned: (u8, u16, u32, u64, u128),
            small: (bool, char, (), f32),
            option: Option<Vec<Option<u32>>>,
            shapes in prop::collection::vec(shape(), 0..4),
            tagged in (any::<Vec<u8>>(), shape()),
            bare: (u64, String, Vec<u8>),
            numbered: BTreeMap<i32, String>,
            paired: BTreeMap<(u8, Option<char>), Vec<u8>>,
        ) {
            round_trip(&float);
            round_trip(&signed);
            round_trip(&unsigned);
            prop_assume!(!small.3.is_nan());
            round_trip(&small);
            round_trip(&option);
            round_trip(&shapes);
            round_trip(&[Tagged::Empty, Tagged::Full { bytes: tagged.0, shape: tagged.1 }]);
            round_trip(&[Bare::Number(bare.0), Bare::Text(bare.1), Bare::Bytes(bare.2)]);
            round_trip(&numbered);
            round_trip(&paired);
        }

        #[test]
        fn no_bytes_panic(bytes: Vec<u8>) {
            let _read = decode::<Vec<Shape>>(&bytes);
            let _read = decode::<BTreeMap<String, Tagged>>(&bytes);
        }
    }

    #[test]
    fn a_build_with_other_fields_reads_what_an_older_one_kept() {
        #[derive(Serialize)]
        struct Old {
            name: &'static str,
            gone: u64,
        }
        #[derive(Debug, PartialEq, Deserialize)]
        struct New {
            #[serde(default)]
            tags: Vec<String>,
            name: String,
        }
        let kept = encode(&Old { name: "mice", gone: 7 }).unwrap();
        assert_eq!(decode::<New>(&kept).unwrap(), New { tags: vec![], name: "mice".into() });
    }

    #[test]
    fn depth_is_bounded() {
        #[derive(Debug, PartialEq, Deserialize, Serialize)]
        struct Nest(Vec<Nest>);
        let nest = |levels| (0..levels).fold(Nest(vec![]), |inner, _| Nest(vec![inner]));
        round_trip(&nest(50));
        let error = decode::<Nest>(&encode(&nest(1000)).unwrap()).unwrap_err();
        assert!(error.to_string().contains("depth"), "{error}");
    }

    #[test]
    fn what_was_put_as_bytes_is_no_value() {
        for bytes in [&b"12"[..], b"hello", b"", &[0xc1], &[0xdd, 0xff, 0xff, 0xff, 0xff]] {
            let error = decode::<Vec<u64>>(bytes).unwrap_err();
            assert!(error.to_string().contains("can't be read"), "{error}");
            decode::<u64>(bytes).unwrap_err();
        }
        assert_eq!(encode(&7_u64).unwrap().len(), 1);
    }
}
