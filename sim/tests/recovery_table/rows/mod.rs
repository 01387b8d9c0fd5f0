//! The rows: files as they are at a moment of the story, what is done to them, what opening does.
//! Here those of the superblock, the checkpoints and the runs; in `log`, those of the log.

mod log;

use dormouse_engine::Kind::{Corrupt, Invalid, Retry};

use crate::scene::Slot::{self, Newest};
use crate::scene::{MANIFEST, SUPERBLOCK, Scene};
use crate::story::Moment::{self, *};
use crate::{Opens, Wanted};
use log::log;

pub(crate) struct Row {
    pub(crate) name: &'static str,
    pub(crate) moment: Moment,
    pub(crate) prepare: fn(&mut Scene<'_>),
    pub(crate) wanted: Wanted,
}

const NOTHING_ELSE: Opens = Opens { dropped: None, damaged: &[], unreadable: &[], lost: &[] };
const ALL: Wanted = Wanted::Opens(NOTHING_ELSE);
const COMMITS_THERE: &str = "but there are commits in the log";
const NO_BEGINNING: &str = "its log has no beginning";
const NO_CHECKPOINT: &str = "at the log's beginning, and no checkpoint can be used";
const LOST_BATCH: &str = "was durable and is lost";
const HEADER_DAMAGED: &str = "is damaged, and the log goes on in it";
const NEWER: &str = "newer than this code";

const fn damaged(damaged: &'static [&'static str]) -> Wanted {
    Wanted::Opens(Opens { damaged, ..NOTHING_ELSE })
}

const fn unreadable(unreadable: &'static [&'static str]) -> Wanted {
    Wanted::Opens(Opens { unreadable, ..NOTHING_ELSE })
}

const fn lost(lost: &'static [&'static str]) -> Wanted {
    Wanted::Opens(Opens { lost, ..NOTHING_ELSE })
}

const fn dropped(why: &'static str, lost: &'static [&'static str]) -> Wanted {
    Wanted::Opens(Opens { dropped: Some(why), lost, ..NOTHING_ELSE })
}

const fn refuses(text: &'static str) -> Wanted {
    Wanted::Refuses(Corrupt, text)
}

const fn row(
    name: &'static str,
    moment: Moment,
    prepare: fn(&mut Scene<'_>),
    wanted: Wanted,
) -> Row {
    Row { name, moment, prepare, wanted }
}

pub(crate) fn rows() -> Vec<Row> {
    [superblock(), slots(), runs(), log(), reserve()].into_iter().flatten().collect()
}

fn reserve() -> Vec<Row> {
    vec![
        row("reserve absent", Last, |it| it.remove_reserve(0), ALL),
        row("files of the reserve cut short", Last, |it| it.cut_reserve(), ALL),
        row("some files of the reserve absent", Last, |it| it.remove_reserve(2), ALL),
        row(
            "files of the reserve that were segments",
            Last,
            |it| it.fill_reserve(&it.checkpoint_segment()),
            ALL,
        ),
    ]
}

fn superblock() -> Vec<Row> {
    vec![
        row("everything whole, closed", Quiet, |_| {}, ALL),
        row("everything whole, killed", Last, |_| {}, ALL),
        row("superblock absent, log empty", Empty, |it| it.remove(SUPERBLOCK), ALL),
        row("superblock damaged, log empty", Empty, |it| it.damage(&it.superblock()), ALL),
        row("no file at all", Empty, |it| it.remove_all(""), ALL),
        row("superblock absent", Quiet, |it| it.remove(SUPERBLOCK), refuses(COMMITS_THERE)),
        row("superblock empty", Quiet, |it| it.truncate(SUPERBLOCK, 0), refuses(COMMITS_THERE)),
        row("superblock damaged", Quiet, |it| it.damage(&it.superblock()), refuses(COMMITS_THERE)),
        row(
            "superblock of another store",
            Quiet,
            |it| it.bring_back(SUPERBLOCK, Moment::Elsewhere),
            refuses(NO_BEGINNING),
        ),
        row(
            "superblock of a newer format",
            Quiet,
            |it| it.make_newer(&it.superblock()),
            Wanted::Refuses(Invalid, NEWER),
        ),
        row(
            "open elsewhere",
            Quiet,
            |it| it.elsewhere = true,
            Wanted::Refuses(Retry, "the store is open elsewhere"),
        ),
        row("shard absent", Quiet, |it| it.remove_all("shard-"), refuses(NO_BEGINNING)),
    ]
}

fn damage_both_slots(it: &mut Scene<'_>) {
    it.damage(&it.slot(Newest).0);
    it.damage(&it.slot(Slot::Other).0);
}

fn slots() -> Vec<Row> {
    vec![
        row("newest slot damaged", Last, |it| it.damage(&it.slot(Newest).0), ALL),
        row("newest slot absent", Last, |it| it.zero(&it.slot(Newest).0), ALL),
        row("other slot damaged", Last, |it| it.damage(&it.slot(Slot::Other).0), ALL),
        row("first checkpoint damaged", Once, |it| it.damage_header(MANIFEST), ALL),
        row("first checkpoint's manifest absent", Once, |it| it.remove(MANIFEST), ALL),
        row("both slots damaged", Last, damage_both_slots, refuses(NO_CHECKPOINT)),
        row("manifest absent", Last, |it| it.remove(MANIFEST), refuses(NO_CHECKPOINT)),
        row("manifest empty", Last, |it| it.truncate(MANIFEST, 0), refuses(NO_CHECKPOINT)),
        row("manifest stale", Last, |it| it.bring_back(MANIFEST, Once), refuses(NO_CHECKPOINT)),
        row(
            "manifest cut in half",
            Last,
            |it| it.truncate(MANIFEST, it.files[MANIFEST].len() / 2),
            ALL,
        ),
        row(
            "manifest of another store",
            Last,
            |it| it.bring_back(MANIFEST, Moment::Elsewhere),
            refuses(NO_CHECKPOINT),
        ),
        row(
            "newest slot of a newer format",
            Last,
            |it| it.make_newer(&it.slot(Newest).0),
            Wanted::Refuses(Invalid, NEWER),
        ),
        row(
            "other slot of a newer format",
            Last,
            |it| it.make_newer(&it.slot(Slot::Other).0),
            Wanted::Refuses(Invalid, NEWER),
        ),
        row(
            "newest slot damaged, log's end absent",
            Often,
            |it| {
                it.damage(&it.slot(Newest).0);
                it.zero(&it.batch("between"));
            },
            refuses(LOST_BATCH),
        ),
    ]
}

fn runs() -> Vec<Row> {
    vec![
        row("newest run absent", Last, |it| it.remove(&it.run(Newest)), ALL),
        row("newest run's header damaged", Last, |it| it.damage_header(&it.run(Newest)), ALL),
        row("other run absent", Last, |it| it.remove(&it.run(Slot::Other)), ALL),
        row(
            "newest run stale",
            Last,
            |it| {
                let older = it.files[&it.run(Slot::Other)].clone();
                it.files.insert(it.run(Newest), older);
            },
            ALL,
        ),
        row("freed run brought back", Last, |it| it.bring_back_removed(Once), ALL),
        row(
            "newest run's entries damaged",
            Last,
            |it| it.damage(&it.run_block(&it.run(Newest), 1)),
            unreadable(&["early", "second", "third", "between", "filler"]),
        ),
        row(
            "both runs absent",
            Last,
            |it| {
                it.remove(&it.run(Newest));
                it.remove(&it.run(Slot::Other));
            },
            refuses(NO_CHECKPOINT),
        ),
        row(
            "newest run of a newer format",
            Last,
            |it| it.make_newer(&it.run_block(&it.run(Newest), 0)),
            Wanted::Refuses(Invalid, NEWER),
        ),
    ]
}
