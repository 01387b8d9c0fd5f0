//! The object that runs recorded programs, and what it is sent.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use dormouse_cache::AlarmToo;
use dormouse_scheduler::prelude::*;
use serde_json::{Value, json};

use super::interpreter::{Interpreter, Notes, note};
use super::ws_object;

thread_local! {
    /// How often each object was built in the trace that this thread replays.
    static BUILT: RefCell<BTreeMap<String, u64>> = const { RefCell::new(BTreeMap::new()) };
}

/// Forgets which objects were built.
pub(crate) fn start_trace() {
    BUILT.take();
}

/// The operations of one event.
pub(crate) struct Program {
    pub(crate) ops: Vec<Value>,
    pub(crate) alarm_too: AlarmToo,
    pub(crate) notes: Notes,
}

/// One of many concurrent increments.
pub(crate) struct Increment {
    pub(crate) key: String,
    pub(crate) in_block: bool,
}

/// Runs recorded programs.
pub(crate) struct Recorded {
    state: State,
    incarnation: u64,
}

impl DurableObject for Recorded {
    fn new(state: State) -> Self {
        let incarnation = BUILT.with_borrow_mut(|built| {
            let count = built.entry(state.id().to_string()).or_default();
            *count += 1;
            *count
        });
        Self { state, incarnation }
    }

    async fn alarm(&self, info: AlarmInfo) -> Result<()> {
        super::alarm::handler(&self.state, self.incarnation, info).await
    }

    async fn fetch(&self, request: Request) -> Result<Response> {
        ws_object::connect(&self.state, self.incarnation, request).await
    }

    async fn web_socket_message(&self, socket: &WebSocket, message: Message) -> Result<()> {
        ws_object::message(&self.state, self.incarnation, socket, message).await
    }

    async fn web_socket_close(&self, socket: &WebSocket, closed: Closed) -> Result<()> {
        ws_object::closed(&self.state, self.incarnation, socket, &closed);
        Ok(())
    }

    async fn web_socket_error(&self, socket: &WebSocket, _error: Error) -> Result<()> {
        ws_object::failed(self.incarnation, socket);
        Ok(())
    }
}

impl Handler<Program> for Recorded {
    type Reply = ();

    async fn handle(&self, program: Program) -> Result<()> {
        let Program { ops, alarm_too, notes } = program;
        note(&notes, "incarnation", json!(self.incarnation));
        let interpreter = Interpreter { state: self.state.clone(), alarm_too, notes };
        interpreter.run(ops, None, String::new()).await
    }
}

impl Handler<Increment> for Recorded {
    type Reply = (u32, u64);

    async fn handle(&self, Increment { key, in_block }: Increment) -> Result<(u32, u64)> {
        let state = self.state.clone();
        let increment = async move || {
            let old = state.storage().get_bytes(&key).await?;
            let old = old.map_or(Ok([0; 4]), |old| (&*old).try_into());
            let old = old.map_err(|_| Error::user("not four bytes"))?;
            if in_block {
                state.sleep(Duration::from_millis(1)).await;
            }
            let new = u32::from_be_bytes(old) + 1;
            let bytes = Bytes::copy_from_slice(&new.to_be_bytes());
            state.storage().put_bytes(&key, bytes).await?;
            Ok(new)
        };
        let new = match in_block {
            true => self.state.block_concurrency_while(increment).await?,
            false => increment().await?,
        };
        Ok((new, self.incarnation))
    }
}
