//! libFuzzer's way into [`dormouse_fuzz::life`].
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| dormouse_fuzz::life(bytes));
