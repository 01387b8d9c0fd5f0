//! Node's and Python's own clients: the same conversation, each in its language.

use std::path::Path;
use std::process::Command;

use crate::Chat;

/// Runs a script with the room's address; it must end well.
#[track_caller]
fn converse(program: &str, script: &str) {
    let chat = Chat::start();
    let here = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients");
    let clients = Path::new(env!("CARGO_TARGET_TMPDIR")).join("../clients/bin").join(program);
    assert!(
        clients.exists(),
        "this test needs {}: python3 -m venv target/clients && target/clients/bin/pip install -r {}",
        clients.display(),
        here.join("requirements.txt").display()
    );
    let url = format!("ws://{}/rooms/{program}", chat.address);
    let output = Command::new(clients).arg(here.join(script)).arg(url).output().expect(program);
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success() && out.ends_with("all is well\n"), "{program}: {out}{err}");
}

#[test]
fn nodes_own_client_talks() {
    converse("node", "client.mjs");
}

#[test]
fn pythons_websockets_talks() {
    converse("python3", "client.py");
}
