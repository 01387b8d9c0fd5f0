//! [`State`]: what an object is given of the world.

use std::convert::Infallible;
use std::future::Future;
use std::rc::Rc;
use std::time::Duration;

use dormouse_engine as engine;
use dormouse_engine::Host;
use futures_channel::oneshot;
use futures_util::future::{Either, FutureExt, select};
use tracing::Instrument;

use crate::error::{Error, Result};
use crate::id::Id;
use crate::instance::{Instance, Work, outside};
use crate::object::DurableObject;
use crate::storage::Storage;
use crate::stub::Namespace;
use crate::watch::Awake;

/// How long a critical section or a transaction may take.
const SECTION_MAX: Duration = Duration::from_secs(30);

/// An object's identity, storage and life. Cheap to clone.
pub struct State(Storage);

impl Clone for State {
    fn clone(&self) -> Self {
        Self::new(self.instance().clone())
    }
}

impl State {
    pub(crate) fn new(instance: Rc<Instance>) -> Self {
        Self(Storage::new(instance))
    }

    pub(crate) fn instance(&self) -> &Rc<Instance> {
        self.0.instance()
    }

    /// The object's id; with its name where the first call of this instance had one.
    pub fn id(&self) -> &Id {
        &self.instance().id
    }

    /// The object's storage.
    pub fn storage(&self) -> &Storage {
        &self.0
    }

    /// The objects of another type, or of this one, of the same runtime. What is said to them waits
    /// at the output gate.
    ///
    /// # Panics
    /// If the runtime has no namespace of this type.
    pub fn namespace<T: DurableObject>(&self) -> Namespace<T> {
        self.instance().topology.namespace()
    }

    /// The wall clock, in milliseconds since 1970.
    pub fn now_ms(&self) -> u64 {
        self.instance().host.wall_ms()
    }

    /// Waits; other events run meanwhile.
    pub fn sleep(&self, duration: Duration) -> impl Future<Output = ()> + 'static {
        let instance = self.instance();
        let (busy, sleep) = (instance.busy_with(Awake::Timer), instance.host.sleep(duration));
        async move {
            sleep.await;
            busy.ends_with_a_wake();
        }
    }

    /// Runs `work` with no other event let in until it is done. It runs also if
    /// the returned future is dropped, so a constructor may just call it.
    ///
    /// If `work` fails, or takes longer than 30 s, the object is reset, and the returned future
    /// never resolves.
    pub fn block_concurrency_while<T: 'static>(
        &self,
        work: impl AsyncFnOnce() -> Result<T> + 'static,
    ) -> impl Future<Output = Result<T>> + 'static {
        let instance = self.instance().clone();
        let (sender, receiver) = oneshot::channel();
        let body = instance.new_event();
        let starter = instance.current().ok_or_else(outside);
        let wait = starter.and_then(|starter| Ok(instance.gate.section(starter, body)?));
        let refused = wait.as_ref().err().cloned();
        if let Ok(wait) = wait {
            let this = instance.clone();
            let section = async move {
                let Ok(section) = wait.await else { return };
                let task = this.gated(body, async move { work().await }.boxed_local());
                let result =
                    match select(task.boxed_local(), this.host.sleep(SECTION_MAX).boxed_local())
                        .await
                    {
                        Either::Left((Ok(result), _)) => result,
                        Either::Left((Err(_), _)) => return,
                        Either::Right(_) => Err(took_too_long("a critical section")),
                    };
                match result {
                    Ok(value) => drop(sender.send((value, section.succeed()))),
                    Err(error) => {
                        let error = this.reset(Error::section_failed(error));
                        let text = error.to_string();
                        section.fail(engine::Error::new(engine::Kind::Closed, text));
                    }
                }
            };
            instance.push(Work::Task(Awake::Section, section.in_current_span().boxed_local()));
        }
        async move {
            if let Some(error) = refused {
                return Err(error);
            }
            match receiver.await {
                // The lock goes once the caller has the value, and is being polled.
                Ok((value, _lock)) => Ok(value),
                Err(_) => std::future::pending().await,
            }
        }
    }

    /// Runs `task` beside the event that starts it, for as long as it takes. Its failure
    /// would concern nobody, so it has none.
    pub fn wait_until(&self, task: impl Future<Output = ()> + 'static) {
        let instance = self.instance();
        let event = instance.new_event();
        if let Some(parent) = instance.current() {
            instance.gate.adopt(event, parent);
        }
        let gated = instance.gated(event, task.boxed_local());
        instance
            .push(Work::Task(Awake::WaitUntil, gated.map(drop).in_current_span().boxed_local()));
    }

    /// Ends this instance at once: what this turn wrote is lost, callers get `reason`, and the
    /// next call meets a new instance. Await it, so that no code after it runs.
    pub fn abort(&self, reason: impl Into<String>) -> impl Future<Output = Infallible> + 'static {
        self.instance().reset(Error::aborted(reason));
        std::future::pending()
    }
}

/// The limit of a section or transaction was passed.
pub(crate) fn took_too_long(what: &str) -> Error {
    let text = format!("{what} took longer than {} s: the object was reset", SECTION_MAX.as_secs());
    Error::reset_by(engine::Error::new(engine::Kind::Overloaded, text))
}

/// Resolves when a section or transaction has taken too long.
pub(crate) async fn section_limit(host: impl Host) {
    host.sleep(SECTION_MAX).await;
}
