//! `torture`, for as long as a test may last (E1, E2, E7, E9 under SIGKILL).

use super::{dir, files, fine, run};

/// The numbers of the last line.
fn numbers(out: &str) -> Vec<u64> {
    let last = out.lines().last().unwrap();
    assert!(last.starts_with("torture: "), "{last}");
    last.split(' ').filter_map(|word| word.parse().ok()).collect()
}

#[test]
fn nothing_acknowledged_is_lost_by_kills() {
    let (_dir, path) = dir();
    let numbers = numbers(&fine(&["torture", &path, "--seconds", "3", "--cores", "2"]));
    assert!(numbers[0] > 1 && numbers[1] > 0 && numbers[2] == 0, "{numbers:?}");
    // What it left is a store like any other.
    assert!(fine(&["scrub", &path]).ends_with(" 0 damaged\n"));
}

/// Every commit is damaged: what can't be read is lost.
#[test]
fn a_loss_is_found() {
    let (_dir, path) = dir();
    fine(&["torture", &path, "--seconds", "2", "--cores", "1"]);
    for (file, mut bytes) in files(&path) {
        let number = b"number";
        let there = |at: &usize| bytes[*at..].starts_with(number);
        let places: Vec<_> = (0..bytes.len()).filter(there).collect();
        places.into_iter().for_each(|at| bytes[at] ^= 1);
        std::fs::write(file, bytes).unwrap();
    }
    let found = run(&["torture", &path, "--seconds", "1", "--cores", "1"]);
    assert_eq!(found.code, 1, "{}{}", found.out, found.err);
    assert!(numbers(&found.out)[2] > 0 && !found.err.is_empty(), "{}", found.err);
}

#[test]
fn what_torture_did_not_make_is_left_alone() {
    let (dir, _) = dir();
    let path = dir.path().to_str().unwrap();
    std::fs::write(dir.path().join("precious"), "data").unwrap();
    let refused = run(&["torture", path, "--seconds", "1"]);
    assert!(refused.code == 2 && refused.err.contains("not made by torture"), "{}", refused.err);
    assert_eq!(files(path).len(), 1);
}
