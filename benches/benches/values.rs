//! How values could be kept: JSON beside MessagePack, with the names of fields (decisions/0004). Sizes are printed
//! first.

use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

#[derive(Deserialize, Serialize)]
struct Member {
    name: String,
    email: String,
    age: u32,
    score: f64,
    active: bool,
}

fn member() -> Member {
    let (name, email) = ("Ada Lovelace".to_owned(), "ada@example.org".to_owned());
    Member { name, email, age: 36, score: 99.5, active: true }
}

/// As the scheduler keeps it.
fn message_pack(value: &impl Serialize) -> Box<[u8]> {
    let mut bytes = Vec::with_capacity(64);
    rmp_serde::encode::write_named(&mut bytes, value).expect("written");
    bytes.into_boxed_slice()
}

fn json(value: &impl Serialize) -> Box<[u8]> {
    serde_json::to_vec(value).expect("written").into_boxed_slice()
}

fn compare<T: DeserializeOwned + Serialize>(c: &mut Criterion, name: &str, value: &T) {
    let (as_json, packed) = (json(value), message_pack(value));
    println!("{name}: {} bytes as JSON, {} as MessagePack", as_json.len(), packed.len());
    c.bench_function(&format!("values/encode/json/{name}"), |b| b.iter(|| json(black_box(value))));
    c.bench_function(&format!("values/encode/message-pack/{name}"), |b| {
        b.iter(|| message_pack(black_box(value)));
    });
    c.bench_function(&format!("values/decode/json/{name}"), |b| {
        b.iter(|| serde_json::from_slice::<T>(black_box(&as_json)).expect("read"));
    });
    c.bench_function(&format!("values/decode/message-pack/{name}"), |b| {
        b.iter(|| rmp_serde::from_slice::<T>(black_box(&packed)).expect("read"));
    });
}

fn values(c: &mut Criterion) {
    compare(c, "a counter", &123_456_u64);
    compare(c, "a struct of five fields", &member());
    let names: Vec<_> = (0..20).map(|number| format!("member number {number}")).collect();
    compare(c, "a list of 20 strings", &names);
    let bytes: Vec<u8> = (0..4096_u32).map(|number| (number * 7).to_le_bytes()[0]).collect();
    compare(c, "a list of 4,096 small numbers", &bytes);
    let text = "The quick brown fox \"jumps\" over the lazy dog.\n".repeat(1394);
    compare(c, "a text of 64 KiB", &text);
    let floats: Vec<_> = (0..50).map(|number| f64::from(number) * 1.1).collect();
    compare(c, "a list of 50 floats", &floats);
}

criterion_group!(benches, values);
criterion_main!(benches);
