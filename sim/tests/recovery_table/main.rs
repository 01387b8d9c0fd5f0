//! Recovery as one truth table (E1, E2, E5 to E9): each row prepares files as a crash, rot or a
//! careless hand may leave them, opens the store, and looks at everything. docs/recovery.md is the
//! same table for people; a test keeps the two the same.

mod rows;
mod scene;
mod story;

use std::collections::BTreeSet;
use std::fmt;

use dormouse_engine::{Kind, ObjectId, Recovery, Version};
use dormouse_sim::{DiskFaults, World};

use rows::{Row, rows};
use scene::Scene;
use story::{Files, STEPS, Saved, id, open};

/// What a row's store does when it is opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Wanted {
    Opens(Opens),
    /// Refuses, twice in the same words, and changes no file.
    Refuses(Kind, &'static str),
}

/// Names of objects; `filler` stands for any of those.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Opens {
    /// Part of `Recovery::dropped`.
    pub(crate) dropped: Option<&'static str>,
    /// In `Recovery::damaged`, and unreadable.
    pub(crate) damaged: &'static [&'static str],
    /// Unreadable, which is found when they are read.
    pub(crate) unreadable: &'static [&'static str],
    /// Not there, or as they were before: their last commit is gone, and nobody says so, unless it
    /// was dropped.
    pub(crate) lost: &'static [&'static str],
}

impl fmt::Display for Wanted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let opens = match self {
            Self::Refuses(kind, text) => return write!(f, "refuses with {kind:?}: {text}"),
            Self::Opens(opens) => opens,
        };
        if *opens == Opens::default() {
            return f.write_str("opens with everything");
        }
        f.write_str("opens")?;
        let dropped = opens.dropped.as_slice();
        let parts = [
            ("reports a dropped tail", dropped),
            ("names as damaged", opens.damaged),
            ("finds unreadable", opens.unreadable),
            ("is without", opens.lost),
        ];
        let parts = parts.into_iter().filter(|(_, names)| !names.is_empty());
        let parts = parts.map(|(what, names)| format!("{what}: {}", names.join(", ")));
        write!(f, "; {}", parts.collect::<Vec<_>>().join("; "))
    }
}

/// What one opening showed.
#[derive(Debug)]
enum Found {
    Refused(Kind, String),
    Opened { recovery: Recovery, unreadable: BTreeSet<String>, lost: BTreeSet<String> },
}

/// `filler-12` is a `filler`.
fn plain(name: &str) -> String {
    name.split('-').next().expect("the first").to_owned()
}

fn names(ids: &[ObjectId]) -> BTreeSet<String> {
    let text = |id: &ObjectId| String::from_utf8_lossy(id.as_bytes()).trim_matches('\0').to_owned();
    ids.iter().map(|id| plain(&text(id))).collect()
}

/// Opens the store in a process of its own, looks at every object, and kills the process.
fn look(world: &World, saved: &Saved) -> Found {
    let process = world.process();
    let (env, objects) = (process.core(), saved.objects.clone());
    let looked = world.block_on(&env.clone(), STEPS, async move {
        let (_lock, shard, recovery) = match open(&env).await {
            Ok(opened) => opened,
            Err(error) => return Found::Refused(error.kind(), error.to_string()),
        };
        assert_eq!(shard.stats().recovery, recovery, "`stat` shows what opening found");
        let (mut unreadable, mut lost) = (BTreeSet::new(), BTreeSet::new());
        for (name, value) in &objects {
            match shard.load(&id(name)).await {
                Ok(contents) if contents.map.get(&b"key"[..]).is_some_and(|it| it == value) => {}
                Ok(contents) => {
                    let older = contents.map.get(&b"key"[..]).map(|it| it.len());
                    let is_older = older.is_some_and(|len| len < value.len());
                    assert!(is_older || contents.version == Version::NONE, "{contents:?}");
                    lost.insert(plain(name));
                }
                Err(error) => {
                    assert_eq!(error.kind(), Kind::Corrupt, "{error}");
                    assert!(error.message().contains(&id(name).to_string()), "{error}");
                    unreadable.insert(plain(name));
                }
            }
        }
        Found::Opened { recovery, unreadable, lost }
    });
    process.kill();
    assert_eq!(world.take_panics(), [] as [String; 0]);
    looked.expect("opening ends")
}

fn set(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

impl Wanted {
    /// Whether an opening showed this. What was dropped and damaged is told by the first opening
    /// only; what can't be read stays so (E7).
    fn is(&self, found: &Found, first: bool) -> bool {
        match (self, found) {
            (Self::Refuses(kind, text), Found::Refused(found, said)) => {
                kind == found && said.contains(text)
            }
            (Self::Opens(wanted), Found::Opened { recovery, unreadable, lost }) => {
                let named = names(&recovery.damaged);
                let said = match (wanted.dropped, &recovery.dropped) {
                    (None, None) => true,
                    (Some(wanted), Some(found)) => found.contains(wanted),
                    _ => false,
                };
                let told = !first || (said && named == set(wanted.damaged));
                let cant_be_read = [wanted.damaged, wanted.unreadable].concat();
                told && *unreadable == set(&cant_be_read) && *lost == set(wanted.lost)
            }
            _ => false,
        }
    }
}

/// Prepares a row's files, opens them twice, and says what differs from what is wanted.
fn differs(row: &Row, story: &story::Story) -> Option<String> {
    let mut scene = Scene::new(story, row.moment);
    (row.prepare)(&mut scene);
    let world = World::new(5, DiskFaults::default());
    world.bring_back(&scene.files);
    let owner = scene.elsewhere.then(|| {
        let env = world.process().core();
        world.block_on(&env.clone(), STEPS, async move { open(&env).await }).expect("done")
    });
    let before: Files = world.save();
    let saved = &story[&row.moment];
    let found = [look(&world, saved), look(&world, saved)];
    drop(owner);
    let refused = matches!(row.wanted, Wanted::Refuses(..));
    let same = row.wanted.is(&found[0], true) && row.wanted.is(&found[1], false);
    let touched: Vec<_> = before
        .iter()
        .filter(|(file, bytes)| {
            refused && !bytes.is_empty() && world.save().get(*file) != Some(*bytes)
        })
        .map(|(file, _)| file)
        .collect();
    let text = || {
        format!(
            "{}\n  wanted: {}\n  found: {found:?}\n  changed: {touched:?}",
            row.name, row.wanted
        )
    };
    (!same || !touched.is_empty()).then(text)
}

#[test]
fn every_row_of_the_table_is_true() {
    let story = story::tell();
    let rows = rows();
    assert!(rows.len() >= 30);
    let differing: Vec<_> = rows.iter().filter_map(|row| differs(row, &story)).collect();
    let count = differing.len();
    assert!(count == 0, "{count} of {} rows differ:\n{}", rows.len(), differing.join("\n"));
}

/// Names and results in docs/recovery.md: the first and the last cell of each line of its tables
/// whose first cell is in bold.
fn told() -> Vec<(String, String)> {
    let lines = include_str!("../../../docs/recovery.md").lines();
    let rows = lines.filter_map(|line| line.strip_prefix("| **")?.strip_suffix(" |"));
    rows.map(|row| {
        let (name, rest) = row.split_once("** |").expect("a name in bold");
        let result = rest.rsplit(" | ").next().expect("the last cell");
        (name.to_owned(), result.to_owned())
    })
    .collect()
}

#[test]
fn the_page_tells_the_same_table() {
    let rows = rows().iter().map(|row| (row.name.to_owned(), row.wanted.to_string())).collect();
    let (told, rows): (Vec<_>, Vec<_>) = (told(), rows);
    let lacks = rows.iter().filter(|row| !told.contains(row));
    let lacks: Vec<_> =
        lacks.map(|(name, result)| format!("| **{name}** | | {result} |")).collect();
    assert!(lacks.is_empty(), "docs/recovery.md lacks these rows:\n{}", lacks.join("\n"));
    let more: Vec<_> = told.iter().filter(|row| !rows.contains(row)).collect();
    assert!(more.is_empty(), "docs/recovery.md has rows that are not tested: {more:#?}");
    let names: BTreeSet<_> = rows.iter().map(|(name, _)| name).collect();
    assert_eq!((told.len(), names.len()), (rows.len(), rows.len()), "a row is there twice");
}
