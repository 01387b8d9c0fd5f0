//! A headless Chromium, driven by its DevTools protocol over one WebSocket.

use std::cell::{Cell, RefCell};
use std::io::{BufRead, BufReader};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};
use tempfile::TempDir;
use tungstenite::{Message, WebSocket};

use crate::{CLIENT_TIME, until};

/// Without a sandbox, which root can't have; nothing but this machine can be reached, and no page
/// is slowed down because another one is in front.
const FLAGS: [&str; 13] = [
    "--headless=new",
    "--remote-debugging-port=0",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-background-timer-throttling",
    "--disable-backgrounding-occluded-windows",
    "--disable-renderer-backgrounding",
    "--disable-component-update",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
    "--no-first-run",
    "--hide-scrollbars",
];

pub(crate) struct Browser {
    process: Child,
    socket: RefCell<WebSocket<TcpStream>>,
    next: Cell<u64>,
    /// What pages threw and nobody caught.
    thrown: RefCell<Vec<Value>>,
    _profile: TempDir,
}

impl Browser {
    /// Starts Chromium.
    ///
    /// # Panics
    /// If there is none: `apt-get install chromium`, as `.ci/run` does.
    pub(crate) fn start() -> Self {
        let profile = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let mut command = Command::new("chromium");
        command.args(FLAGS).arg(format!("--user-data-dir={}", profile.path().display()));
        let spawned = command.stderr(Stdio::piped()).stdout(Stdio::null()).spawn();
        let mut process = spawned.unwrap_or_else(|error| {
            panic!("this test needs the program `chromium` (apt-get install chromium): {error}")
        });
        let mut lines = BufReader::new(process.stderr.take().expect("piped")).lines();
        let mut said = String::new();
        let url = loop {
            let Some(Ok(line)) = lines.next() else { panic!("chromium did not start:\n{said}") };
            if let Some(url) = line.strip_prefix("DevTools listening on ") {
                break url.to_owned();
            }
            said.push_str(&(line + "\n"));
        };
        // It must be able to write there.
        std::thread::spawn(move || lines.for_each(drop));
        let address = url.trim_start_matches("ws://").split('/').next().expect("an address");
        let stream = TcpStream::connect(address).expect("chromium listens");
        stream.set_read_timeout(Some(CLIENT_TIME)).unwrap();
        let (socket, _) = tungstenite::client(url, stream).expect("chromium speaks");
        let (socket, next, thrown) = (RefCell::new(socket), Cell::new(0), RefCell::default());
        Self { process, socket, next, thrown, _profile: profile }
    }

    /// One command and its answer.
    fn ask(&self, session: Option<&str>, method: &str, params: Value) -> Value {
        let id = self.next.get();
        self.next.set(id + 1);
        let mut command = json!({ "id": id, "method": method, "params": params });
        if let Some(session) = session {
            command["sessionId"] = session.into();
        }
        let mut socket = self.socket.borrow_mut();
        socket.send(Message::text(command.to_string())).expect("chromium is there");
        loop {
            let message = socket.read().unwrap_or_else(|error| panic!("{method}: {error}"));
            let Ok(text) = message.to_text() else { continue };
            let mut answer: Value = serde_json::from_str(text).unwrap_or_default();
            if answer["method"] == "Runtime.exceptionThrown" {
                self.thrown.borrow_mut().push(answer["params"]["exceptionDetails"].take());
            } else if answer["id"] == id {
                assert!(answer["error"].is_null(), "{method}: {}", answer["error"]);
                return answer["result"].take();
            }
        }
    }

    /// Opens a page of this size in a window of its own; a phone's has touch and small pixels.
    pub(crate) fn open(&self, url: &str, (width, height): (u32, u32), is_phone: bool) -> Page<'_> {
        let target = json!({ "url": "about:blank", "newWindow": true });
        let target = self.ask(None, "Target.createTarget", target);
        let attach = json!({ "targetId": target["targetId"], "flatten": true });
        let session = self.ask(None, "Target.attachToTarget", attach);
        let session = session["sessionId"].as_str().expect("a session").to_owned();
        let page = Page { browser: self, session };
        let factor = if is_phone { 2 } else { 1 };
        page.ask("Runtime.enable", json!({}));
        page.ask(
            "Emulation.setDeviceMetricsOverride",
            json!({ "width": width, "height": height, "deviceScaleFactor": factor, "mobile": is_phone }),
        );
        page.ask("Page.navigate", json!({ "url": url }));
        let loaded = "document.readyState === 'complete' && location.href !== 'about:blank'";
        page.until(loaded);
        page
    }

    /// What pages threw so far.
    pub(crate) fn thrown(&self) -> Vec<Value> {
        self.thrown.borrow().clone()
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        let _it_may_be_dead = self.process.kill();
        let _it_is_reaped = self.process.wait();
    }
}

pub(crate) struct Page<'a> {
    browser: &'a Browser,
    session: String,
}

impl Page<'_> {
    fn ask(&self, method: &str, params: Value) -> Value {
        self.browser.ask(Some(&self.session), method, params)
    }

    /// What an expression of JavaScript is.
    #[track_caller]
    pub(crate) fn eval(&self, expression: &str) -> Value {
        let params = json!({ "expression": expression, "returnByValue": true });
        let mut answer = self.ask("Runtime.evaluate", params);
        let thrown = &answer["exceptionDetails"];
        assert!(thrown.is_null(), "{expression}: {thrown}");
        answer["result"]["value"].take()
    }

    /// Waits until an expression is true.
    #[track_caller]
    pub(crate) fn until(&self, expression: &str) {
        until(expression, || match self.eval(expression) {
            Value::Bool(true) => Ok(()),
            other => Err(format!("{other}; the page says: {}", self.text())),
        });
    }

    /// All that a person could read.
    pub(crate) fn text(&self) -> String {
        self.eval("document.body?.innerText ?? ''").as_str().unwrap_or_default().to_owned()
    }

    /// Types into the field of this id, in place of what is there, and presses Enter.
    pub(crate) fn enter(&self, field: &str, text: &str) {
        self.write(field, text);
        for kind in ["rawKeyDown", "char", "keyUp"] {
            let key = json!({ "type": kind, "key": "Enter", "code": "Enter", "text": "\r",
                "windowsVirtualKeyCode": 13 });
            self.ask("Input.dispatchKeyEvent", key);
        }
    }

    pub(crate) fn write(&self, field: &str, text: &str) {
        self.eval(&format!("document.getElementById('{field}').select()"));
        self.ask("Input.insertText", json!({ "text": text }));
    }

    /// Clicks in the middle of what a selector finds.
    pub(crate) fn click(&self, selector: &str) {
        let middle = format!(
            "(() => {{ const box = document.querySelector('{selector}').getBoundingClientRect(); \
             return [box.x + box.width / 2, box.y + box.height / 2]; }})()"
        );
        let middle = self.eval(&middle);
        for kind in ["mousePressed", "mouseReleased"] {
            let click = json!({ "type": kind, "x": middle[0], "y": middle[1], "button": "left",
                "clickCount": 1 });
            self.ask("Input.dispatchMouseEvent", click);
        }
    }

    pub(crate) fn dark(&self, is_dark: bool) {
        let value = if is_dark { "dark" } else { "light" };
        let feature = json!({ "name": "prefers-color-scheme", "value": value });
        self.ask("Emulation.setEmulatedMedia", json!({ "features": [feature] }));
    }

    /// Keeps a picture of what is to be seen; its path.
    pub(crate) fn screenshot(&self, name: &str) {
        self.ask("Page.bringToFront", json!({}));
        let answer = self.ask("Page.captureScreenshot", json!({ "format": "png" }));
        let png = base64(answer["data"].as_str().expect("a picture"));
        assert!(png.starts_with(b"\x89PNG"), "no picture");
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        std::fs::write(&path, png).expect("the picture is kept");
        println!("kept {}", path.display());
    }
}

fn base64(text: &str) -> Vec<u8> {
    let digit = |byte: u8| match byte {
        b'A'..=b'Z' => byte - b'A',
        b'a'..=b'z' => byte - b'a' + 26,
        b'0'..=b'9' => byte - b'0' + 52,
        b'+' => 62,
        b'/' => 63,
        _ => panic!("{byte} is no digit of Base64"),
    };
    let digits: Vec<u8> = text.trim_end_matches('=').bytes().map(digit).collect();
    let mut bytes = Vec::with_capacity(digits.len() / 4 * 3);
    for some in digits.chunks(4) {
        let bits = some.iter().fold(0, |bits, digit| bits << 6 | u32::from(*digit));
        let bits = bits << (6 * (4 - some.len()));
        bytes.extend_from_slice(&bits.to_be_bytes()[1..some.len()]);
    }
    bytes
}
