//! The chat of `cargo chat` as a process of its own, which is killed, and the clients that people
//! have: Chromium, Node and Python. `.ci/run` installs them; where one is missing its test fails.

#![expect(clippy::disallowed_types, reason = "clients on a real network")]
#![expect(clippy::disallowed_methods, reason = "processes and the real clock")]

mod browser;
mod devtools;
mod scripts;

#[path = "../../examples/chat/main.rs"]
#[expect(dead_code, reason = "its own main")]
mod chat;

use std::io::{BufRead, BufReader};
use std::os::unix::process::parent_id;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

/// How long rooms are awake with nothing to do.
const IDLE: Duration = Duration::from_secs(1);
/// A client that waits longer for something fails its test.
const CLIENT_TIME: Duration = Duration::from_secs(60);

/// The chat's process.
struct Chat {
    process: Child,
    /// `127.0.0.1:PORT`, the same after a restart.
    address: String,
    dir: TempDir,
}

impl Chat {
    fn start() -> Self {
        let dir = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let (process, address) = spawn(&dir, "127.0.0.1:0");
        Self { process, address, dir }
    }

    fn kill(&mut self) {
        self.process.kill().expect("SIGKILL");
        self.process.wait().expect("dead");
    }

    /// After a kill.
    fn restart(&mut self) {
        (self.process, self.address) = spawn(&self.dir, &self.address);
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }
}

impl Drop for Chat {
    fn drop(&mut self) {
        let _it_may_be_dead = self.process.kill();
        let _it_is_reaped = self.process.wait();
    }
}

fn spawn(dir: &TempDir, address: &str) -> (Child, String) {
    let mut command = Command::new(std::env::current_exe().expect("this program"));
    command.args(["--exact", "child", "--nocapture"]);
    command.env("DORMOUSE_CHAT_DIR", dir.path()).env("DORMOUSE_CHAT_ADDRESS", address);
    let mut child = command.stdout(Stdio::piped()).spawn().expect("the chat");
    let mut lines =
        BufReader::new(child.stdout.take().expect("piped")).lines().map_while(Result::ok);
    let line = lines.find_map(|line| Some(line.split_once("http://")?.1.to_owned()));
    let line = line.expect("the chat ended before it served");
    // It must be able to write there.
    std::thread::spawn(move || lines.for_each(drop));
    let (address, _) = line.split_once('/').expect("as it prints it");
    (child, address.to_owned())
}

/// The process of the chat, when a test starts it.
#[test]
fn child() {
    let Ok(dir) = std::env::var("DORMOUSE_CHAT_DIR") else { return };
    let address = std::env::var("DORMOUSE_CHAT_ADDRESS").expect("said with the directory");
    // Until it is killed, also by the end of whoever started it.
    let parent = parent_id();
    std::thread::spawn(move || {
        while parent_id() == parent {
            std::thread::sleep(Duration::from_millis(100));
        }
        std::process::exit(1);
    });
    let args = [dir, address, "--idle".to_owned(), IDLE.as_secs_f64().to_string()];
    chat::run(args.into_iter()).unwrap();
}

/// Waits until `look` gives something.
#[track_caller]
fn until<T>(what: &str, mut look: impl FnMut() -> Result<T, String>) -> T {
    let begun = Instant::now();
    loop {
        match look() {
            Ok(found) => return found,
            Err(seen) if begun.elapsed() > CLIENT_TIME => panic!("{what} did not come: {seen}"),
            Err(_) => std::thread::sleep(Duration::from_millis(50)),
        }
    }
}
