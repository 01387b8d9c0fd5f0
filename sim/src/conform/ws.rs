//! Replays traces of kind `ws`: one object, and clients that do one thing after the other.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use dormouse_scheduler::prelude::*;
use dormouse_scheduler::{ClientSocket, Received};
use futures_util::FutureExt;
use futures_util::future::{Either, select};
use serde_json::{Value, json};

use super::args::{bytes, message_text};
use super::compare::{count, shown, shown_text};
use super::object::start_trace;
use super::stack::Stack;
use super::{Replay, ops, ws_object};

/// How long a frame may take to come (FORMAT.md).
const RECV_TIME: Duration = Duration::from_millis(1500);
/// How long is waited for a handler that must not run.
const QUIET_TIME: Duration = Duration::from_millis(300);
/// How long is waited for one that must, in steps of a millisecond.
const LOG_STEPS: u64 = 10_000;

type Line = (usize, Value);

struct Script<'a, 'b> {
    replay: &'a mut Replay<'b>,
    stack: Stack,
    clients: BTreeMap<String, Arc<ClientSocket>>,
}

pub(crate) fn replay(replay: &mut Replay<'_>, lines: &[Line]) -> Result<()> {
    start_trace();
    ws_object::start_trace();
    let stack = Stack::new(replay.seed, super::ops::alarm_too(&replay.header))?;
    let mut script = Script { replay, stack, clients: BTreeMap::new() };
    for (number, step) in lines {
        script.step(*number, step).with_context(|| format!("line {number}"))?;
    }
    Ok(())
}

impl Script<'_, '_> {
    fn step(&mut self, number: usize, step: &Value) -> Result<()> {
        self.replay.outcome.operations += count(step);
        match step["op"].as_str().unwrap_or_default() {
            "ws_connect" => self.connect(number, step)?,
            "ws_send" => {
                let text = message_text(&step["text"]).context("a text")?;
                self.send(step, Message::from(text))?;
            }
            "ws_send_binary" => {
                let bytes = bytes(&step["hex"])?.context("bytes")?;
                self.send(step, Message::from(bytes))?;
            }
            "ws_ping" => {
                let (client, bytes) = (self.client(step)?, bytes(&step["hex"])?);
                // To a connection that is lost a ping goes nowhere, as all that is sent.
                let ping = async move { client.ping(bytes.unwrap_or_default()).await.ok() };
                self.stack.run(ping)?;
            }
            "ws_client_close" => {
                let code = step["code"].as_u64().map(u16::try_from).transpose()?;
                let reason = step["reason"].as_str().unwrap_or_default();
                match self.client(step)?.close(code, reason) {
                    Err(error) if error.code() != Some("socket-lost") => bail!("{error}"),
                    _ => {}
                }
            }
            "ws_client_drop" => {
                self.clients.remove(conn(step)?);
            }
            "ws_recv" => self.recv(number, step)?,
            "ws_object" => self.object(number, step)?,
            "ws_handler_log" => self.log(number, step)?,
            "hibernate" => {
                let seconds = step["seconds"].as_u64().context("seconds")?;
                self.stack.pass(Duration::from_secs(seconds))?;
            }
            other => bail!("{other} is no step of a ws trace"),
        }
        Ok(())
    }

    fn client(&self, step: &Value) -> Result<Arc<ClientSocket>> {
        let conn = conn(step)?;
        self.clients.get(conn).cloned().with_context(|| format!("{conn} is not connected"))
    }

    fn connect(&mut self, number: usize, step: &Value) -> Result<()> {
        let request = Request::get("/").body(step.to_string())?.with_web_socket_upgrade();
        let response = self.stack.call(self.stack.stub("o").fetch(request))??;
        let mut got = json!({ "status": response.status().as_u16() });
        match response.take_web_socket() {
            Some(client) => {
                self.clients.insert(conn(step)?.to_owned(), Arc::new(client));
            }
            None => {
                let text = self.stack.run(response.into_body().text())??;
                got["error"] = json!(text);
            }
        }
        let mut wanted = json!({ "status": step["status"] });
        if let Some(error) = step.get("error") {
            wanted["error"] = error["kind"].clone();
        }
        self.compare(number, "ws_connect", &wanted, &got);
        Ok(())
    }

    fn send(&self, step: &Value, message: Message) -> Result<()> {
        let client = self.client(step)?;
        // What is sent to a connection that is lost goes nowhere.
        self.stack.run(async move { client.send(message).await.ok() })?;
        Ok(())
    }

    fn recv(&mut self, number: usize, step: &Value) -> Result<()> {
        let got = match self.clients.get(conn(step)?).cloned() {
            None => json!({ "frame": "eof" }),
            Some(client) => {
                let time = self.stack.sleep(RECV_TIME);
                let frame = self.stack.run(async move {
                    let frame = async { client.recv().await };
                    match select(frame.boxed_local(), time.boxed_local()).await {
                        Either::Left((frame, _)) => Some(frame),
                        Either::Right(_) => None,
                    }
                })?;
                shown_frame(frame)
            }
        };
        self.compare(number, "ws_recv", &step["frame"], &got);
        Ok(())
    }

    fn object(&mut self, number: usize, step: &Value) -> Result<()> {
        let ops = step["ops"].as_array().into_iter().flatten();
        let lines: Vec<Line> = ops.map(|op| (number, op.clone())).collect();
        let mut event = step.clone();
        event["object"] = json!("o");
        if event.get("outcome").is_none() {
            event["outcome"] = json!("ok");
        }
        ops::event(self.replay, &self.stack, number, &event, &lines)
    }

    fn log(&mut self, number: usize, step: &Value) -> Result<()> {
        let wanted_len = step["n"].as_u64().context("a number")?;
        if wanted_len == 0 {
            self.stack.pass(QUIET_TIME)?;
        }
        for _ in 0..LOG_STEPS {
            if ws_object::log_len() as u64 >= wanted_len {
                break;
            }
            self.stack.pass(Duration::from_millis(1))?;
        }
        let wanted = match step["log"].as_array() {
            Some(log) => log.iter().map(entry).collect(),
            None => step["log"].clone(),
        };
        let got = json!(ws_object::take_log());
        self.compare(number, "ws_handler_log", &wanted, &got);
        Ok(())
    }

    fn compare(&mut self, number: usize, what: &str, wanted: &Value, got: &Value) {
        if wanted != got {
            self.replay.differs(number, what, wanted, got);
        }
    }
}

fn conn(step: &Value) -> Result<&str> {
    step["conn"].as_str().context("a step names its client")
}

/// An entry of a recorded log, with the kind of its error alone; an error event's text is the
/// original's own.
fn entry(recorded: &Value) -> Value {
    let mut entry = recorded.clone();
    if recorded["ev"] == "error" {
        return json!({
            "incarnation": entry["incarnation"], "ev": "error", "conn": entry["conn"],
        });
    }
    if let Some(error) = entry.get_mut("error") {
        *error = json!({ "kind": error["kind"] });
    }
    entry
}

/// How the format shows what a client received in time: something, the end, or nothing.
fn shown_frame(frame: Option<Option<Received>>) -> Value {
    match frame {
        None => json!({ "frame": "none" }),
        Some(None) => json!({ "frame": "eof" }),
        Some(Some(Received::Message(Message::Text(text)))) => {
            json!({ "frame": "text", "text": shown_text(&text) })
        }
        Some(Some(Received::Message(Message::Binary(bytes)))) => {
            json!({ "frame": "binary", "hex": shown(&bytes) })
        }
        Some(Some(Received::Pong(bytes))) => json!({ "frame": "pong", "hex": shown(&bytes) }),
        Some(Some(Received::Close(close))) => {
            json!({ "frame": "close", "code": close.code, "reason": close.reason })
        }
    }
}
