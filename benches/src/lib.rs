//! Benchmarks of each layer on a real disk: `cargo bench -p dormouse-benches`. Files lie below
//! target/, so the figures are those of the disk that the checkout is on.
