//! Durable Objects on a thread for each core: ids, namespaces, stubs, life cycle, alarms, WebSockets.
//!
//! ```
//! use dormouse_scheduler::prelude::*;
//!
//! struct Counter { state: State }
//!
//! impl DurableObject for Counter {
//!     fn new(state: State) -> Self { Counter { state } }
//!
//!     async fn fetch(&self, _request: Request) -> Result<Response> {
//!         let n: u64 = self.state.storage().get("n").await?.unwrap_or(0) + 1;
//!         self.state.storage().put("n", &n).await?;
//!         Response::json(&n) // leaves only when n is durable
//!     }
//! }
//!
//! # fn main() -> Result<()> {
//! # let dir = std::env::temp_dir().join(format!("dormouse-counter-{}", std::process::id()));
//! let runtime = Runtime::builder(&dir).namespace::<Counter>("counters").start()?;
//! let counter = runtime.namespace::<Counter>().get_by_name("mice");
//! let response = counter.fetch(Request::get("/").body(())?).wait()?;
//! assert_eq!(response.status(), 200);
//! runtime.close()?;
//! # std::fs::remove_dir_all(dir).ok();
//! # Ok(())
//! # }
//! ```
//!
//! Below [`Runtime`] is [`Topology`], which runs on any `Env`, so that the simulator drives the
//! same code.

mod alarm;
mod blocking;
mod core;
mod deletion;
mod error;
mod event;
#[cfg(feature = "server")]
mod guests;
mod host;
mod http;
mod id;
mod instance;
#[cfg(feature = "net")]
pub mod net;
mod object;
mod options;
#[cfg(feature = "server")]
mod outside;
mod residency;
mod runtime;
#[cfg(feature = "server")]
mod server;
mod shards;
mod socket;
mod spare;
mod state;
mod storage;
mod stream;
mod stub;
mod sync;
mod test_runtime;
mod topology;
mod value;
mod watch;

pub use core::Core;
pub use error::{Error, Kind, Overload, Result};
pub use http::{Body, Request, Respond, Response};
pub use id::{Id, NamespaceKey};
pub use object::{AlarmInfo, DurableObject, Handler};
pub use options::NamespaceOptions;
#[cfg(feature = "server")]
pub use outside::{Network, OutsideLimits, Stream};
pub use residency::OBJECT_BYTES;
pub use runtime::{Runtime, RuntimeBuilder};
#[cfg(feature = "server")]
#[doc(hidden)]
pub use server::hostile;
#[cfg(feature = "server")]
pub use server::{ClientAddress, Origins, Route, Router, ServerOptions, until_signal};
pub use socket::{
    ClientSocket, CloseFrame, Closed, LiveSocket, Message, ReadyState, Received, SOCKET_BYTES,
    SocketEvent, SocketLimits, Upgrade, UpgradeRequest, UpgradeResponse, WebSocket,
};
pub use state::State;
pub use storage::{AlarmTime, Op, Storage, Transaction};
pub use stream::BodySender;
pub use stub::{Call, Namespace, Stub};
pub use test_runtime::TestRuntime;
pub use topology::{StackLimits, Topology, TopologyBuilder};
pub use watch::{Awake, Metric, MetricKind, MetricLabel, Reason, Resident, all_metrics};

/// All that a program of objects names.
pub mod prelude {
    pub use dormouse_cache::{AlarmToo, List, Read, Write};

    pub use crate::AlarmTime::{At, In};
    pub use crate::{
        AlarmInfo, Body, BodySender, Closed, DurableObject, Error, Handler, Id, Message, Namespace,
        Request, Respond, Response, Result, Runtime, State, Storage, Stub, TestRuntime,
        Transaction, UpgradeRequest, UpgradeResponse, WebSocket,
    };
}

/// README.md's code, compiled.
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
pub struct Readme;
