//! A call on its way: from a stub, through a mailbox, into an object, and its reply back.

use std::any::Any;
use std::future::Future;
use std::marker::PhantomData;
use std::panic::{AssertUnwindSafe, resume_unwind};
use std::rc::Rc;
use std::sync::{Arc, OnceLock};

use dormouse_engine as engine;
use futures_channel::oneshot;
use futures_util::future::{FutureExt, LocalBoxFuture};

use crate::error::{Error, Result};
use crate::http::{Request, Response};
use crate::object::{DurableObject, Handler};

/// Why an instance ended; the first reason stays.
pub(crate) type Verdict = Arc<OnceLock<Error>>;

/// Where one reply goes. Dropped without one, it says why the instance ended.
pub(crate) struct Reply<R> {
    sender: Option<oneshot::Sender<Result<R>>>,
    verdict: Option<Verdict>,
}

impl<R> Reply<R> {
    pub(crate) fn new() -> (Self, oneshot::Receiver<Result<R>>) {
        let (sender, receiver) = oneshot::channel();
        (Self { sender: Some(sender), verdict: None }, receiver)
    }

    pub(crate) fn send(mut self, result: Result<R>) {
        if let Some(sender) = self.sender.take() {
            // The caller may have gone; that concerns only itself.
            let _gone = sender.send(result);
        }
    }
}

impl<R> Drop for Reply<R> {
    fn drop(&mut self) {
        if let Some(sender) = self.sender.take() {
            let verdict = self.verdict.as_ref().and_then(|verdict| verdict.get().cloned());
            let _gone = sender.send(Err(verdict.unwrap_or_else(closed)));
        }
    }
}

/// The error of calls that a core could not take to their end.
pub(crate) fn closed() -> Error {
    engine::Error::new(engine::Kind::Closed, "the runtime was shut down before the reply").into()
}

/// Lets the reply go, or puts the gate's failure in its place.
pub(crate) type Completion = Box<dyn FnOnce(Result<()>)>;

/// One call, whatever its object's type.
pub(crate) trait Deliver: Send {
    /// From now on the instance's end answers the call.
    fn bind(&mut self, verdict: &Verdict);
    /// The object's own work.
    fn start(self: Box<Self>, object: Rc<dyn Any>) -> LocalBoxFuture<'static, Completion>;
    /// Answers with an error.
    fn refuse(self: Box<Self>, error: Error);
    /// Whether the reply passes the input gate on its way out.
    fn is_fetch(&self) -> bool;
}

fn complete<R: 'static>(reply: Reply<R>, result: Result<R>) -> Completion {
    Box::new(move |gate| reply.send(gate.and(result)))
}

/// Says what happened before a panic drops the reply on its way out.
async fn unless_panic<T, R>(work: impl Future<Output = T>, reply: &Reply<R>) -> T {
    AssertUnwindSafe(work).catch_unwind().await.unwrap_or_else(|panic| {
        if let Some(verdict) = &reply.verdict {
            verdict.get_or_init(|| Error::panicked(&*panic));
        }
        resume_unwind(panic)
    })
}

fn cast<T: 'static>(object: Rc<dyn Any>) -> Rc<T> {
    object.downcast().expect("an id belongs to one namespace, a namespace to one type")
}

/// A typed call.
pub(crate) struct TypedCall<T, M, R> {
    pub(crate) message: M,
    pub(crate) reply: Reply<R>,
    pub(crate) object: PhantomData<fn(T)>,
}

impl<M: Send + 'static, T: Handler<M>> Deliver for TypedCall<T, M, T::Reply> {
    fn bind(&mut self, verdict: &Verdict) {
        self.reply.verdict = Some(verdict.clone());
    }

    fn start(self: Box<Self>, object: Rc<dyn Any>) -> LocalBoxFuture<'static, Completion> {
        let object = cast::<T>(object);
        let Self { message, reply, .. } = *self;
        async move {
            let result = unless_panic(object.handle(message), &reply).await;
            complete(reply, result)
        }
        .boxed_local()
    }

    fn refuse(self: Box<Self>, error: Error) {
        self.reply.send(Err(error));
    }

    fn is_fetch(&self) -> bool {
        false
    }
}

/// An HTTP request.
pub(crate) struct Fetch<T> {
    pub(crate) request: Request,
    pub(crate) reply: Reply<Response>,
    pub(crate) object: PhantomData<fn(T)>,
}

impl<T: DurableObject> Deliver for Fetch<T> {
    fn bind(&mut self, verdict: &Verdict) {
        self.reply.verdict = Some(verdict.clone());
    }

    fn start(self: Box<Self>, object: Rc<dyn Any>) -> LocalBoxFuture<'static, Completion> {
        let object = cast::<T>(object);
        let Self { request, reply, .. } = *self;
        async move {
            let result = unless_panic(object.fetch(request), &reply).await;
            complete(reply, result)
        }
        .boxed_local()
    }

    fn refuse(self: Box<Self>, error: Error) {
        self.reply.send(Err(error));
    }

    fn is_fetch(&self) -> bool {
        true
    }
}
