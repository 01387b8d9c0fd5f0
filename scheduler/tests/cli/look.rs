//! The commands that look: they show what is there, and change nothing.

use dormouse_engine::Batch;
use dormouse_scheduler::prelude::*;

use super::{dir, files, fine, flip, open, room, run};

struct Note(State);
impl DurableObject for Note {
    fn new(state: State) -> Self {
        Self(state)
    }
}
impl Handler<&'static str> for Note {
    type Reply = ();
    async fn handle(&self, text: &'static str) -> Result<()> {
        self.0.storage().put("text", text).await
    }
}

#[test]
fn what_a_runtime_left_is_looked_into() {
    let (_dir, path) = dir();
    let path = path.as_str();
    let none = run(&["stat", path]);
    assert!(none.code == 2 && none.err.contains("there is no store here"), "{}", none.err);
    assert!(!std::path::Path::new(path).exists(), "nothing is made");
    std::fs::create_dir(path).unwrap();
    std::fs::write(format!("{path}/superblock"), "").unwrap();
    let interrupted = run(&["ls", path]);
    assert!(interrupted.code == 2 && interrupted.err.contains("there is no store here"));
    let runtime = Runtime::builder(path).cores(2).namespace::<Note>("notes").start().unwrap();
    let note = runtime.namespace::<Note>().get_by_name("one");
    note.call("mice").wait().unwrap();
    let open = run(&["stat", path]);
    assert!(open.code == 2 && open.err.contains("open elsewhere"), "{}", open.err);
    assert!(open.err.contains("Close the program"), "{}", open.err);
    runtime.close().unwrap();
    let id = note.id().to_string();
    let stat = fine(&["stat", path]);
    assert!(stat.contains("2 shards") && stat.contains("total: 1 objects"), "{stat}");
    assert!(fine(&["ls", path]).contains(&format!("{id}\tnotes\tone\t")));
    let by_id = fine(&["inspect", path, &id]);
    assert!(by_id.contains("namespace notes, name one"), "{by_id}");
    assert!(by_id.contains("text = \"mice\" (5 bytes)"), "{by_id}");
    assert_eq!(fine(&["inspect", path, "--namespace", "notes", "--name", "one"]), by_id);
    assert_eq!(run(&["inspect", path, "12"]).code, 2);
    assert_eq!(run(&["inspect", path, &"0".repeat(64)]).code, 1);
}

/// A store with three rooms and an object that nothing names, of so many shards.
fn rooms(path: &str, shards: u16) {
    let store = open(path, shards);
    for name in ["b", "a", "c\t"] {
        let (room, batch) = room(&store, name);
        room.commit(batch.put("topic", "x".repeat(200)).set_alarm(4_102_444_800_000))
            .wait()
            .unwrap();
        room.commit(Batch::new().put([0xff, b'\n'], "line\nline\\")).wait().unwrap();
    }
    let bare = store.object(dormouse_engine::ObjectId::from_bytes([7; 32]));
    bare.commit(Batch::new().put("k", [0, 0xfe])).wait().unwrap();
    store.close().wait().unwrap();
}

#[test]
fn objects_are_listed_as_asked_for() {
    let (_dir, path) = dir();
    rooms(&path, 2);
    let names = |args: &[&str]| {
        let text = fine(&[&["ls", &path], args].concat());
        let name = |line: &str| line.split('\t').nth(2).unwrap().to_owned();
        text.lines().map(name).collect::<Vec<_>>()
    };
    assert_eq!(names(&["--sort"]), ["-", "a", "b", "c\\t"]);
    assert_eq!(names(&["--namespace", "rooms", "--sort"]), ["a", "b", "c\\t"]);
    assert_eq!(names(&["--namespace", "rooms", "--prefix", "b"]), ["b"]);
    assert_eq!(names(&["--namespace", "halls"]), [] as [&str; 0]);
    let a = fine(&["ls", &path, "--prefix", "a"]);
    assert!(a.ends_with("Z\t2100-01-01T00:00:00.000Z\n") && a.contains("\trooms\ta\t"), "{a}");
    let json = fine(&["ls", &path, "--prefix", "c", "--json"]);
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!((&json["name"], &json["damaged"]), (&"c\t".into(), &false.into()));
}

#[test]
fn values_are_cut_unless_asked_for() {
    let (_dir, path) = dir();
    rooms(&path, 1);
    let inspect = |args: &[&str]| {
        fine(&[&["inspect", &path, "--namespace", "rooms", "--name", "a"], args].concat())
    };
    let (whole, cut) = ("x".repeat(200), format!("topic = {}… (200 bytes)\n", "x".repeat(100)));
    let text = inspect(&[]);
    assert!(
        text.contains(&cut) && text.contains("\\xff\\n = line\\nline\\\\ (10 bytes)"),
        "{text}"
    );
    assert!(text.contains("alarm 2100-01-01T00:00:00.000Z"), "{text}");
    assert!(inspect(&["--full"]).contains(&whole));
    let topic = inspect(&["--key", "topic"]);
    assert!(topic.contains(&whole) && topic.contains("1 keys"), "{topic}");
    let json: serde_json::Value = serde_json::from_str(&inspect(&["--json"])).unwrap();
    assert_eq!(json["keys"][0], serde_json::json!(["topic", whole]));
    assert!(inspect(&["--key", "\\xff\\n"]).contains("1 keys"));
    let none = run(&["inspect", &path, "--namespace", "rooms", "--name", "a", "--key", "b"]);
    assert!(none.code == 1 && none.err.contains("has no key b"), "{}", none.err);
}

/// The same contents are the same text, whatever came before and however many shards there are.
#[test]
fn a_dump_depends_on_the_contents_alone() {
    let (_dir, path) = dir();
    rooms(&path, 1);
    let dump = fine(&["dump", &path]);
    let other = format!("{path}-other");
    let store = open(&other, 3);
    let (gone, batch) = room(&store, "gone");
    gone.commit(batch.put("a", "b")).wait().unwrap();
    // Without a read, the engine can't know that its last key is gone.
    gone.commit(Batch::new().delete("a")).wait().unwrap();
    let (room, batch) = room(&store, "a");
    room.commit(batch.put("topic", "old").put("gone", "1").set_alarm(5)).wait().unwrap();
    room.commit(Batch::new().delete("gone").delete_alarm()).wait().unwrap();
    store.close().wait().unwrap();
    rooms(&other, 3);
    assert_eq!(fine(&["dump", &other]), dump);
    assert_ne!(fine(&["dump", &other, "--all"]), fine(&["dump", &path, "--all"]));
    let lines: Vec<serde_json::Value> =
        dump.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 4);
    assert!(lines.is_sorted_by_key(|line| line["id"].as_str().unwrap().to_owned()));
    let bare = r#"{"id":"0707070707070707070707070707070707070707070707070707070707070707","namespace":null,"name":null,"alarm":null,"keys":[["k",{"hex":"00fe"}]]}"#;
    assert_eq!(lines.iter().position(|line| line["name"].is_null()), Some(0));
    assert_eq!(dump.lines().next(), Some(bare));
    let halls = fine(&["dump", &path, "--namespace", "halls"]);
    assert_eq!(halls, "");
}

#[test]
fn an_objects_commits_are_told_newest_first() {
    let (_dir, path) = dir();
    rooms(&path, 2);
    let store = open(&path, 2);
    let keys = (0..25).fold(Batch::new(), |batch, n| batch.put(format!("key {n:02}"), "value"));
    let (room, _) = room(&store, "a");
    let version = room.commit(keys.delete("topic").delete_alarm()).wait().unwrap().0;
    let gone = room.delete().wait().unwrap().0;
    store.close().wait().unwrap();
    let log = |args: &[&str]| {
        fine(&[&["log", &path, "--namespace", "rooms", "--name", "a"], args].concat())
    };
    let text = log(&[]);
    let heads: Vec<&str> = text.lines().filter(|line| !line.starts_with("  ")).collect();
    assert_eq!(heads.len(), 4, "{text}");
    assert!(heads[0].contains(&format!(" version {gone} image of nothing: deleted, alarm -, ")));
    assert!(heads[1].contains(&format!(" version {version} delta, alarm -, ")), "{text}");
    assert!(heads[3].contains(" image, alarm 2100-01-01T00:00:00.000Z, "), "{text}");
    assert!(
        text.contains("  + topic (200 bytes)\n") && text.contains("  … and 6 more\n"),
        "{text}"
    );
    let full = log(&["--full"]);
    assert!(full.contains("  + key 24 (5 bytes)\n  - topic\n"), "{full}");
    let lines = log(&["--json"]);
    let line: serde_json::Value = serde_json::from_str(lines.lines().nth(1).unwrap()).unwrap();
    assert_eq!((&line["version"], &line["form"]), (&version.into(), &"delta".into()));
    assert_eq!(line["changes"][25], serde_json::json!({"delete": {"key": "topic"}}));
    let none = run(&["log", &path, &"0".repeat(64)]);
    assert!(none.code == 1 && none.err.contains("holds no commit"), "{}", none.err);
}

/// What opening dropped is reported, in `stat` too (docs/design.md, 3.2); looking drops nothing.
#[test]
fn stat_shows_what_opening_dropped() {
    let (_dir, path) = dir();
    let start = || Runtime::builder(&path).cores(1).namespace::<Note>("notes").start().unwrap();
    let runtime = start();
    runtime.namespace::<Note>().get_by_name("one").call("mice").wait().unwrap();
    runtime.close().unwrap();
    damage_end(&path);
    for _ in 0..2 {
        let stat = fine(&["stat", &path]);
        assert!(stat.contains("total: 1 objects"), "{stat}");
        assert!(
            stat.contains("dropped batch ") && stat.contains("checksum does not fit"),
            "{stat}"
        );
    }
    start().close().unwrap();
    let stat = fine(&["stat", &path]);
    assert!(stat.contains("dropped nothing"), "{stat}");
}

/// Damages the close record at the end of the log that was written: the last of a store's blocks.
fn damage_end(path: &str) {
    const BLOCK: usize = 4096;
    let used = |bytes: &[u8]| {
        bytes.chunks(BLOCK).rposition(|block| block.iter().any(|byte| *byte != 0)).unwrap_or(0)
    };
    let segments = files(path).into_iter();
    let segments = segments.filter(|(path, _)| path.to_string_lossy().contains("-segment-"));
    let (file, bytes) = segments.max_by_key(|(_, bytes)| used(bytes)).unwrap();
    flip(&file, used(&bytes) * BLOCK + 17);
}

/// A dead process's last writes keep the log's files locked for a while; they are waited for (E8).
#[test]
#[expect(clippy::disallowed_types, reason = "plays a process that is dying")]
fn the_last_writes_of_a_dead_process_are_waited_for() {
    let (_dir, path) = dir();
    rooms(&path, 1);
    let segments = files(&path).into_keys();
    let segments = segments.filter(|file| file.to_string_lossy().contains("-segment-"));
    let locked: Vec<_> = segments
        .map(|file| {
            let file = std::fs::File::options().read(true).write(true).open(file).unwrap();
            file.lock().unwrap();
            file
        })
        .collect();
    let ends = std::thread::spawn(move || {
        std::thread::sleep(std::time::Duration::from_millis(600));
        drop(locked);
    });
    assert!(fine(&["stat", &path]).contains("total: 4 objects"));
    ends.join().unwrap();
}

/// Every file is as it was.
#[test]
fn looking_changes_nothing() {
    let (_dir, path) = dir();
    rooms(&path, 2);
    let before = files(&path);
    for args in [
        &["stat"][..],
        &["ls", "--sort"],
        &["inspect", "--namespace", "rooms", "--name", "a"],
        &["log", "--namespace", "rooms", "--name", "a"],
        &["dump"],
        &["scrub"],
        &["repair"],
    ] {
        fine(&[&args[..1], &[path.as_str()], &args[1..]].concat());
    }
    assert!(files(&path) == before);
}
