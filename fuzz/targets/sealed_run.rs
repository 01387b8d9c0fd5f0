//! libFuzzer's way into [`dormouse_fuzz::sealed_run`].
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| dormouse_fuzz::sealed_run(bytes));
