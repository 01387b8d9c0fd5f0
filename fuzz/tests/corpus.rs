//! The kept corpus, each input also cut short and with every byte changed in turn.

#![expect(clippy::disallowed_methods, reason = "reads the corpus")]

use std::path::Path;

#[test]
fn nothing_in_the_corpus_panics() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus/log");
    let mut inputs = 0;
    for entry in std::fs::read_dir(dir).expect("a corpus") {
        let bytes = std::fs::read(entry.expect("an entry").path()).expect("an input");
        inputs += 1;
        dormouse_fuzz::log(&bytes);
        for at in 0..bytes.len() {
            dormouse_fuzz::log(&bytes[..at]);
            let mut changed = bytes.clone();
            changed[at] = changed[at].wrapping_add(1);
            dormouse_fuzz::log(&changed);
        }
    }
    assert!(inputs >= 3, "the corpus is gone");
}

/// The corpus holds a batch that is accepted, so that the decoders behind the checksums are met.
#[test]
fn the_corpus_holds_a_whole_batch() {
    use dormouse_engine::format::batch::BatchHeader;
    let bytes = std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus/log/batch"));
    let bytes = bytes.expect("the input");
    let header = BatchHeader::decode(&bytes, &dormouse_fuzz::HOME).expect("valid");
    header.check_body(&bytes).expect("valid");
    assert!(!header.frames().is_empty());
}
