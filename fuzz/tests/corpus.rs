//! The kept corpus of each target, each input also cut short and changed.

#![expect(clippy::disallowed_methods, reason = "reads the corpus")]

use std::path::Path;

use dormouse_fuzz::TARGETS;
use dormouse_sim::random::Random;

fn corpus(name: &str) -> Vec<Vec<u8>> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(name);
    let mut paths: Vec<_> = std::fs::read_dir(dir)
        .unwrap_or_else(|error| panic!("the corpus of {name}: {error}"))
        .map(|entry| entry.expect("an entry").path())
        .collect();
    paths.sort();
    paths.into_iter().map(|path| std::fs::read(path).expect("an input")).collect()
}

#[test]
fn nothing_in_the_corpus_fails() {
    for (name, target) in TARGETS {
        let inputs = corpus(name);
        assert!(inputs.len() >= 3, "the corpus of {name} is gone");
        inputs.iter().for_each(|input| target(input));
    }
}

/// What takes microseconds is met with every prefix and every byte changed.
#[test]
fn no_small_change_of_the_corpus_fails() {
    let small = ["log", "sealed", "sealed-run", "page"];
    for (name, target) in TARGETS.into_iter().filter(|(name, _)| small.contains(name)) {
        for input in corpus(name) {
            for at in 0..input.len() {
                target(&input[..at]);
                let mut changed = input.clone();
                changed[at] = changed[at].wrapping_add(1);
                target(&changed);
            }
        }
    }
}

/// What takes longer is met with some changes that chance makes: runs of bytes left out, doubled,
/// moved and overwritten, within one input and between two.
#[test]
fn no_random_change_of_the_corpus_fails() {
    let mut random = Random::new(5);
    for (name, target) in TARGETS {
        let inputs = corpus(name);
        let changes = if name == "life" { 60 } else { 1500 };
        for _ in 0..changes {
            let mut input = inputs[random.index(inputs.len())].clone();
            for _ in 0..random.between(1, 4) {
                let other = &inputs[random.index(inputs.len())];
                let start = random.index(other.len());
                let end = (start + random.index(64) + 1).min(other.len());
                let at = random.index(input.len() + 1);
                let cut = (at + random.index(64)).min(input.len());
                match random.below(3) {
                    0 => drop(input.drain(at..cut)),
                    1 => drop(input.splice(at..at, other[start..end].iter().copied())),
                    _ => input[at..cut].iter_mut().for_each(|byte| {
                        *byte = u8::try_from(random.below(256)).expect("a byte");
                    }),
                }
            }
            target(&input);
        }
    }
}

/// The corpus holds a batch that is accepted, so that the decoders behind the checksums are met.
#[test]
fn the_corpus_holds_a_whole_batch() {
    use dormouse_engine::format::batch::BatchHeader;
    let bytes = std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus/log/batch"));
    let bytes = bytes.expect("the input");
    let header = BatchHeader::decode(&bytes, &dormouse_fuzz::HOME, 0).expect("valid");
    header.check_body(&bytes).expect("valid");
    assert!(!header.frames().is_empty());
}

/// Likewise a block of a run: its entries are read, not refused.
#[test]
fn the_corpus_holds_a_whole_block_of_a_run() {
    use dormouse_engine::format::run;
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus/sealed-run/entries");
    let block = dormouse_fuzz::seal_run(&std::fs::read(path).expect("the input"), true);
    let entries = run::entries(&block, dormouse_fuzz::HOME.incarnation, 1).expect("valid");
    assert_eq!(entries.len(), 3);
    entries.iter().for_each(|entry| drop(entry.known(None).expect("valid")));
}
