//! The rows of the log: its segments, its middle, its end, its fences.

use dormouse_engine::Kind::Invalid;
use dormouse_engine::format::batch::Role::{Close, Fence};

use super::*;

pub(super) fn log() -> Vec<Row> {
    [older_segments(), later_segments(), ends(), heads(), fences()].into_iter().flatten().collect()
}

fn older_segments() -> Vec<Row> {
    vec![
        row(
            "older segment absent",
            Last,
            |it| it.remove(&it.batch("early").file),
            unreadable(&["early", "second", "third", "filler"]),
        ),
        row(
            "older segment's header damaged",
            Last,
            |it| it.damage_header(&it.batch("early").file),
            ALL,
        ),
        row(
            "older segment's frame damaged",
            Last,
            |it| it.damage_body(&it.batch("early")),
            unreadable(&["early"]),
        ),
        row(
            "older segment's batch header damaged",
            Last,
            |it| it.damage(&it.batch("early").head()),
            ALL,
        ),
        row(
            "older segment of a newer format",
            Last,
            |it| it.make_newer(&it.segment_header(&it.batch("early").file)),
            ALL,
        ),
        row("freed segment brought back", Looped, |it| it.bring_back_removed(Fenced), ALL),
        row(
            "checkpoint's segment absent",
            Last,
            |it| it.remove(&it.checkpoint_segment()),
            refuses("in which the checkpoint ends, is gone or damaged"),
        ),
        row(
            "checkpoint's segment's header damaged",
            Last,
            |it| it.damage_header(&it.checkpoint_segment()),
            ALL,
        ),
        row(
            "checkpoint's segment stale",
            Last,
            |it| it.bring_back(&it.checkpoint_segment(), Often),
            refuses(LOST_BATCH),
        ),
    ]
}

fn later_segments() -> Vec<Row> {
    vec![
        row(
            "middle batch's frames damaged",
            Last,
            |it| it.damage_body(&it.batch("middle")),
            damaged(&["middle"]),
        ),
        row(
            "middle batch's header damaged",
            Last,
            |it| it.damage(&it.batch("middle").head()),
            damaged(&["middle"]),
        ),
        row(
            "middle batch's both tables damaged",
            Last,
            |it| it.damage_tables(&it.batch("middle")),
            refuses(LOST_BATCH),
        ),
        row("middle batch stale", Last, |it| it.zero(&it.batch("middle")), refuses(LOST_BATCH)),
        row(
            "middle batch damaged, its object made anew later",
            Last,
            |it| it.damage_body(&it.batches_of("anew")[0]),
            ALL,
        ),
        row(
            "later segment's first batch damaged",
            Last,
            |it| it.damage_body(&it.batch("next")),
            damaged(&["next"]),
        ),
        row(
            "later segment's header damaged",
            Last,
            |it| it.damage_header(&it.batch("next").file),
            refuses(HEADER_DAMAGED),
        ),
        row(
            "later segment's header is another's",
            Last,
            |it| {
                let [from, to] = ["early", "next"].map(|of| it.segment_header(&it.batch(of).file));
                it.misdirect(&from, &to);
            },
            refuses(HEADER_DAMAGED),
        ),
        row(
            "later segment's header stale",
            Last,
            |it| it.make_stale(&it.segment_header(&it.batch("next").file)),
            refuses(HEADER_DAMAGED),
        ),
        row(
            "later segment's header and first batch damaged",
            Last,
            |it| {
                it.damage_header(&it.batch("next").file);
                it.damage(&it.batch("next").head());
            },
            refuses(HEADER_DAMAGED),
        ),
        row(
            "later segment of a newer format",
            Last,
            |it| it.make_newer(&it.segment_header(&it.batch("next").file)),
            Wanted::Refuses(Invalid, NEWER),
        ),
        row(
            "later segment absent",
            Quiet,
            |it| it.remove(&it.batch("next").file),
            lost(&["next", "last"]),
        ),
        row(
            "later segment stale",
            Quiet,
            |it| it.bring_back(&it.batch("next").file, Next),
            lost(&["last"]),
        ),
    ]
}

fn ends() -> Vec<Row> {
    vec![
        row(
            "last batch's frames torn, no close record",
            Last,
            |it| it.damage_body(&it.batch("last")),
            dropped("checksum does not fit", &["last"]),
        ),
        row(
            "last batch's header torn, no close record",
            Last,
            |it| it.damage(&it.batch("last").head()),
            dropped("checksum does not fit", &["last"]),
        ),
        row(
            "last batch's header absent, no close record",
            Last,
            |it| it.zero(&it.batch("last").head()),
            dropped("its header is gone", &["last"]),
        ),
        row(
            "last batch absent, no close record",
            Last,
            |it| it.zero(&it.batch("last")),
            lost(&["last"]),
        ),
        row(
            "last batch torn at the head of a later segment, no close record",
            Next,
            |it| it.damage_body(&it.batch("next")),
            dropped("checksum does not fit", &["next"]),
        ),
        row(
            "last batch damaged, close record",
            Quiet,
            |it| it.damage_body(&it.batch("last")),
            damaged(&["last"]),
        ),
        row(
            "last batch absent, close record",
            Quiet,
            |it| it.zero(&it.batch("last")),
            refuses(LOST_BATCH),
        ),
        row(
            "close record damaged",
            Quiet,
            |it| it.damage(&it.newest(Close)),
            dropped("checksum does not fit", &[]),
        ),
        row("close record absent", Quiet, |it| it.zero(&it.newest(Close)), ALL),
        row(
            "last batch of a newer format",
            Last,
            |it| it.make_newer(&it.batch_header(&it.batch("last"))),
            Wanted::Refuses(Invalid, NEWER),
        ),
    ]
}

/// No checkpoint was made yet.
fn heads() -> Vec<Row> {
    vec![
        row("no checkpoint, fence damaged", Young, |it| it.damage(&it.newest(Fence)), ALL),
        row(
            "no checkpoint, fence absent",
            Young,
            |it| it.zero(&it.newest(Fence)),
            refuses(LOST_BATCH),
        ),
        row(
            "no checkpoint, first batch damaged",
            Young,
            |it| it.damage_body(&it.batch("early")),
            damaged(&["early"]),
        ),
        row(
            "no checkpoint, last batch torn",
            Young,
            |it| it.damage_body(&it.batch("third")),
            dropped("checksum does not fit", &["third"]),
        ),
        row(
            "no checkpoint, last batch damaged, close record",
            YoungQuiet,
            |it| it.damage_body(&it.batch("third")),
            damaged(&["third"]),
        ),
        row(
            "no checkpoint, first segment absent",
            Young,
            |it| it.remove(&it.first_segment()),
            refuses(NO_CHECKPOINT),
        ),
        row(
            "no checkpoint, last segment absent",
            Young,
            |it| it.remove(&it.batch("early").file),
            lost(&["early", "second", "third"]),
        ),
        row(
            "no checkpoint, last segment's header damaged",
            Young,
            |it| it.damage_header(&it.batch("early").file),
            refuses(HEADER_DAMAGED),
        ),
    ]
}

fn fences() -> Vec<Row> {
    vec![
        row("fence, nothing behind it", Fenced, |_| {}, ALL),
        row(
            "fence torn, nothing behind it",
            Fenced,
            |it| it.damage(&it.newest(Fence)),
            dropped("checksum does not fit", &[]),
        ),
        row("fence absent, nothing behind it", Fenced, |it| it.zero(&it.newest(Fence)), ALL),
        row(
            "fence's segment absent, nothing behind it",
            Fenced,
            |it| it.remove(&it.newest(Fence).file),
            ALL,
        ),
        row("fence damaged", Reopened, |it| it.damage(&it.newest(Fence)), ALL),
        row("fence absent", Reopened, |it| it.zero(&it.newest(Fence)), refuses(LOST_BATCH)),
        row(
            "fence's segment's header damaged",
            Reopened,
            |it| it.damage_header(&it.newest(Fence).file),
            refuses(HEADER_DAMAGED),
        ),
        row(
            "fence's segment absent",
            Reopened,
            |it| it.remove(&it.newest(Fence).file),
            lost(&["after"]),
        ),
        row(
            "last batch before the fence damaged",
            Reopened,
            |it| it.damage_body(&it.batch("last")),
            damaged(&["last"]),
        ),
        row(
            "segment before the fence absent",
            Reopened,
            |it| it.remove(&it.batch("last").file),
            refuses(LOST_BATCH),
        ),
        row(
            "a dead process's write lands behind a fence",
            Forked,
            |it| it.bring_back(&it.batch("next").file, Last),
            ALL,
        ),
    ]
}
