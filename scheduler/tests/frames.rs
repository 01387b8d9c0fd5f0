//! The kept corpus of the fuzz target `frames` (`fuzz/README.md`), each input also cut short, changed,
//! and spliced by chance.

#![expect(clippy::disallowed_methods, reason = "reads the corpus")]

use std::path::Path;

use dormouse_scheduler::hostile;

fn corpus() -> Vec<Vec<u8>> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus/frames");
    let entries = std::fs::read_dir(dir).expect("the corpus");
    let mut paths: Vec<_> = entries.map(|entry| entry.expect("an entry").path()).collect();
    paths.sort();
    let inputs: Vec<_> =
        paths.into_iter().map(|path| std::fs::read(path).expect("an input")).collect();
    assert!(inputs.len() >= 8, "the corpus is gone");
    inputs
}

#[test]
fn no_small_change_of_the_corpus_fails() {
    for input in corpus() {
        hostile(&input);
        for at in 0..input.len() {
            hostile(&input[..at]);
            for change in [1, 0x0f, 0x80, 0xff] {
                let mut changed = input.clone();
                changed[at] ^= change;
                hostile(&changed);
            }
        }
    }
}

#[test]
fn no_random_change_of_the_corpus_fails() {
    let inputs = corpus();
    let mut state = 5_u64;
    let mut below = move |most: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        usize::try_from(state % most as u64).expect("below a length")
    };
    for _ in 0..20_000 {
        let mut input = inputs[below(inputs.len())].clone();
        for _ in 0..=below(4) {
            let other = &inputs[below(inputs.len())];
            let start = below(other.len());
            let end = (start + below(64) + 1).min(other.len());
            let at = below(input.len() + 1);
            let cut = (at + below(64)).min(input.len());
            match below(3) {
                0 => drop(input.drain(at..cut)),
                1 => drop(input.splice(at..at, other[start..end].iter().copied())),
                _ => input[at..cut].iter_mut().for_each(|byte| *byte = below(256).to_le_bytes()[0]),
            }
        }
        hostile(&input);
    }
}
