//! The search for an image that does not show what it must: images are made one after the other,
//! and opened by several threads, since opening waits for the device.

use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use dormouse_engine::real::DiskChoice;

use crate::check::Admissible;
use crate::common::dir;
use crate::model::{Files, LeftOut, Model};
use crate::random::Random;
use crate::record::Log;

const THREADS: usize = 6;

struct Image {
    number: usize,
    /// Events of the log that came before.
    events: usize,
    files: Files,
    admissible: Admissible,
}

/// An image, and what is wrong with it.
pub(crate) struct Failure {
    pub(crate) image: usize,
    pub(crate) why: String,
    pub(crate) files: Files,
}

/// Makes `count` images of a log, and gives the first found that does not show what it must.
pub(crate) fn search(
    (disk, log): (DiskChoice, &Log),
    seed: u64,
    count: usize,
    left_out: Option<LeftOut>,
) -> Option<Failure> {
    let failed = Mutex::new(None);
    // Without room: no more images are made than are opened.
    let (images, receiver) = sync_channel(0);
    let receiver = Mutex::new(receiver);
    std::thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| open_all(&receiver, &failed, disk));
        }
        make_all(log, seed, count, left_out, &images, &failed);
        drop(images);
    });
    failed.into_inner().expect("no panic under it")
}

fn make_all(
    log: &Log,
    seed: u64,
    count: usize,
    left_out: Option<LeftOut>,
    images: &SyncSender<Image>,
    failed: &Mutex<Option<Failure>>,
) {
    let mut random = Random::new(seed);
    let mut moments: Vec<usize> = (0..count).map(|_| random.below(log.events.len() + 1)).collect();
    moments.sort_unstable();
    let (mut model, mut admissible) = (Model::new(left_out), Admissible::new());
    let mut events = 0;
    for (number, moment) in moments.into_iter().enumerate() {
        for event in &log.events[events..moment] {
            model.apply(event);
            admissible.apply(event);
        }
        events = moment;
        let files = model.power_cut(&mut random);
        let image = Image { number, events, files, admissible: admissible.now() };
        let is_over = failed.lock().expect("no panic under it").is_some();
        if is_over || images.send(image).is_err() {
            return;
        }
    }
}

fn open_all(images: &Mutex<Receiver<Image>>, failed: &Mutex<Option<Failure>>, disk: DiskChoice) {
    loop {
        let image = images.lock().expect("no panic under it").recv();
        let Ok(image) = image else { return };
        let Image { number, events, files, admissible } = image;
        // A core with a ring takes longer to start: most images go through the posix disk.
        let by = if number.is_multiple_of(8) { disk } else { DiskChoice::Posix };
        let dir = dir();
        write(dir.path(), &files);
        let checked = admissible.check(dir.path(), by, number.is_multiple_of(5));
        if let Err(why) = checked {
            let why = format!("after {events} events, opened by {by:?}: {why}");
            let failure = Failure { image: number, why, files };
            failed.lock().expect("no panic under it").get_or_insert(failure);
        }
    }
}

/// Leaves an image for whoever looks into a failure, as it was before it was opened.
pub(crate) fn keep(files: &Files) -> PathBuf {
    let kept = dir().keep();
    write(&kept, files);
    kept
}

#[expect(clippy::disallowed_methods, reason = "an image comes from outside of the store")]
fn write(dir: &Path, files: &Files) {
    for (name, bytes) in files {
        std::fs::write(dir.join(name), bytes).expect("an image");
    }
}
