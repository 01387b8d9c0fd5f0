//! libFuzzer's way into [`dormouse_fuzz::page`].
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| dormouse_fuzz::page(bytes));
