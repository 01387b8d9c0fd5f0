//! How things are shown: times, bytes, lines of JSON, progress.

use std::fmt::Write as _;
use std::io::{self, StdoutLock, Write};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

/// The standard output, buffered.
pub(crate) type Out = io::BufWriter<StdoutLock<'static>>;

pub(crate) fn out() -> Out {
    io::BufWriter::new(io::stdout().lock())
}

/// Writes a value as one line of JSON.
pub(crate) fn json(out: &mut impl Write, value: &impl Serialize) -> io::Result<()> {
    serde_json::to_writer(&mut *out, value)?;
    out.write_all(b"\n")
}

/// Milliseconds since 1970 as a time of RFC 3339, in UTC.
pub(crate) fn time(ms: u64) -> String {
    let (days, of_day) = (ms / 86_400_000, ms % 86_400_000);
    // Years that begin in March, counted from the year 0: a leap day is a year's last.
    let days = days + 719_468;
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let date = day - (153 * month + 2) / 5 + 1;
    let (month, next) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    let year = era * 400 + year + next;
    if year > 9999 {
        return format!("{ms} ms after 1970");
    }
    let (seconds, millis) = (of_day / 1000, of_day % 1000);
    let (hour, minute, second) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    format!("{year:04}-{month:02}-{date:02}T{hour:02}:{minute:02}:{second:02}.{millis:03}Z")
}

/// A time, or `-`.
pub(crate) fn time_or_none(ms: Option<u64>) -> String {
    ms.map_or_else(|| "-".to_owned(), time)
}

/// Bytes on one line: text as it is, but for backslashes and control characters, which are escaped,
/// as are bytes that are no UTF-8.
pub(crate) fn escaped(bytes: &[u8]) -> String {
    let mut text = String::new();
    for chunk in bytes.utf8_chunks() {
        for char in chunk.valid().chars() {
            match char {
                '\\' => text.push_str("\\\\"),
                char if char.is_control() => text.extend(char.escape_default()),
                char => text.push(char),
            }
        }
        for byte in chunk.invalid() {
            write!(text, "\\x{byte:02x}").expect("a string takes all");
        }
    }
    text
}

/// [`escaped`], or `-`.
pub(crate) fn name(name: Option<&str>) -> String {
    name.map_or_else(|| "-".to_owned(), |name| escaped(name.as_bytes()))
}

/// At most so many characters of a text.
pub(crate) fn cut(text: String, chars: usize) -> String {
    match text.char_indices().nth(chars) {
        Some((at, _)) => format!("{}…", &text[..at]),
        None => text,
    }
}

/// Bytes in JSON: UTF-8 as a string, others as `{"hex": "…"}`.
#[derive(Serialize)]
#[serde(untagged)]
pub(crate) enum Text<'a> {
    Utf8(&'a str),
    Bytes { hex: String },
}

impl<'a> Text<'a> {
    pub(crate) fn of(bytes: &'a [u8]) -> Self {
        match std::str::from_utf8(bytes) {
            Ok(text) => Self::Utf8(text),
            Err(_) => Self::Bytes { hex: hex::encode(bytes) },
        }
    }
}

/// A bar on the error output, if that is a terminal.
pub(crate) fn bar(what: &str, of: u64) -> ProgressBar {
    let bar = ProgressBar::new(of);
    let style = ProgressStyle::with_template("{msg} {wide_bar} {pos} of {len}, {eta} to go");
    bar.set_style(style.expect("a template"));
    bar.set_message(what.to_owned());
    bar.enable_steady_tick(Duration::from_millis(200));
    bar
}

/// The same for what has no measure.
pub(crate) fn waiting(what: &str) -> ProgressBar {
    let spinner = ProgressBar::new_spinner().with_message(what.to_owned());
    spinner.enable_steady_tick(Duration::from_millis(200));
    spinner
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_those_of_the_calendar() {
        for (ms, text) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (951_782_399_999, "2000-02-28T23:59:59.999Z"),
            (951_782_400_000, "2000-02-29T00:00:00.000Z"),
            (1_709_251_200_000, "2024-03-01T00:00:00.000Z"),
            (4_102_444_799_001, "2099-12-31T23:59:59.001Z"),
            (4_107_542_400_000, "2100-03-01T00:00:00.000Z"),
            (253_402_300_799_999, "9999-12-31T23:59:59.999Z"),
            (u64::MAX, "18446744073709551615 ms after 1970"),
        ] {
            assert_eq!(time(ms), text);
        }
    }

    #[test]
    fn bytes_are_shown_on_one_line_and_unambiguously() {
        assert_eq!(escaped("a \"b\" é".as_bytes()), "a \"b\" é");
        assert_eq!(escaped(b"\n\\n\xff"), "\\n\\\\n\\xff");
        assert_eq!(cut("aéb".to_owned(), 2), "aé…");
        assert_eq!(cut("aéb".to_owned(), 3), "aéb");
        let json = |bytes| serde_json::to_string(&Text::of(bytes)).expect("JSON");
        assert_eq!(json(b"{\"hex\":\"ff\"}"), "\"{\\\"hex\\\":\\\"ff\\\"}\"");
        assert_eq!(json(b"\xff"), "{\"hex\":\"ff\"}");
    }
}
