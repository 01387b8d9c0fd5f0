//! libFuzzer's way into [`dormouse_scheduler::hostile`].
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| dormouse_scheduler::hostile(bytes));
