//! [`Namespace`] and [`Stub`]: how objects are found and called, from any thread.

use std::future::Future;
use std::marker::PhantomData;
use std::pin::Pin;
use std::task::{Context, Poll};

use futures_channel::oneshot;
use futures_util::FutureExt;

use crate::error::Result;
use crate::event::{Deliver, Fetch, Reply, TypedCall, closed};
use crate::http::{Body, Request, Response};
use crate::id::Id;
use crate::instance::{self, OutsideCall};
use crate::object::{DurableObject, Handler};
use crate::topology::{Mail, Topology};
use crate::watch::{Awake, Resident};

/// The objects of one type. Cheap to clone; `Send + Sync`.
pub struct Namespace<T> {
    topology: Topology,
    class: usize,
    objects: PhantomData<fn(T)>,
}

impl<T> Clone for Namespace<T> {
    fn clone(&self) -> Self {
        Self { topology: self.topology.clone(), class: self.class, objects: PhantomData }
    }
}

impl<T: DurableObject> Namespace<T> {
    pub(crate) fn new(topology: Topology, class: usize) -> Self {
        Self { topology, class, objects: PhantomData }
    }

    /// The id of a name: always the same, without any look-up.
    pub fn id_from_name(&self, name: &str) -> Id {
        self.topology.class(self.class).key.id_from_name(name)
    }

    /// The id that was printed as `text`.
    ///
    /// Errors: codes `id-malformed` and `id-foreign`.
    pub fn id_from_string(&self, text: &str) -> Result<Id> {
        Ok(self.topology.class(self.class).key.id_from_string(text)?)
    }

    /// An id that nobody else has.
    pub fn new_unique_id(&self) -> Id {
        self.topology.class(self.class).key.new_unique_id(self.topology.entropy())
    }

    /// A stub of the object; it need not exist.
    pub fn get(&self, id: Id) -> Stub<T> {
        Stub { namespace: self.clone(), id }
    }

    /// A stub of the object of this name.
    pub fn get_by_name(&self, name: &str) -> Stub<T> {
        self.get(self.id_from_name(name))
    }
}

/// A handle on one object, which may live or not. Cheap to clone; `Send + Sync`.
///
/// A call is made when the method is called; calls through one stub arrive in that order.
pub struct Stub<T> {
    namespace: Namespace<T>,
    id: Id,
}

impl<T> Clone for Stub<T> {
    fn clone(&self) -> Self {
        Self { namespace: self.namespace.clone(), id: self.id.clone() }
    }
}

impl<T: DurableObject> Stub<T> {
    /// The object's id.
    pub fn id(&self) -> &Id {
        &self.id
    }

    /// Makes a typed call.
    ///
    /// Errors of the reply: those of the handler; why the object was reset; `Overloaded` at once
    /// if its core's mailbox is full.
    pub fn call<M: Send + 'static>(&self, message: M) -> Call<T::Reply>
    where
        T: Handler<M>,
    {
        let (reply, receiver) = Reply::new();
        self.send(
            Box::new(TypedCall::<T, M, T::Reply> { message, reply, object: PhantomData }),
            receiver,
        )
    }

    /// Sends an HTTP request. Errors as [`Stub::call`].
    pub fn fetch(&self, request: Request<impl Into<Body>>) -> Call<Response> {
        let (reply, receiver) = Reply::new();
        let request = request.map(Into::into);
        self.send(Box::new(Fetch::<T> { request, reply, object: PhantomData }), receiver)
    }

    /// Why the object is awake, and why it last woke; none if it is not in memory. This does not wake it.
    ///
    /// Errors: `Overloaded` (its core's mailbox is full), `Closed`.
    pub async fn resident(&self) -> Result<Option<Resident>> {
        self.namespace.topology.resident(&self.id).await
    }

    /// What a router needs to bring requests to it.
    #[cfg(feature = "server")]
    pub(crate) fn address(&self) -> (Topology, usize, Id) {
        (self.namespace.topology.clone(), self.namespace.class, self.id.clone())
    }

    /// Deletes the object for good: its instance ends, its keys, alarm and name are removed in one
    /// atomic step, and its sockets are closed (1001). Calls made before, and not answered, fail with
    /// code `object-deleted`; those made later, through this stub or another one, meet an object that
    /// never was. Resolves when it is durable; also for an object that does not exist, and for one that
    /// can't be read.
    ///
    /// [`Storage::delete_all`](crate::Storage::delete_all) is something else: an operation of the object's own, which goes on
    /// living with what it has in memory, its sockets, and whatever it writes next.
    ///
    /// Errors: of the storage engine; the instance has ended all the same. `Unknown`: it may have happened.
    pub fn delete(&self) -> Call<()> {
        let (reply, receiver) = Reply::new();
        let (id, class) = (self.id.clone(), self.namespace.class);
        self.post(Mail::Delete { id, class, reply }, receiver)
    }

    fn send<R>(&self, call: Box<dyn Deliver>, reply: oneshot::Receiver<Result<R>>) -> Call<R> {
        self.post(Mail::Call { id: self.id.clone(), class: self.namespace.class, call }, reply)
    }

    fn post<R>(&self, mail: Mail, reply: oneshot::Receiver<Result<R>>) -> Call<R> {
        let (topology, object) = (self.namespace.topology.clone(), self.id.object());
        let send = move || {
            if let Err((mail, error)) = topology.send(object, mail) {
                mail.refuse(error);
            }
        };
        // What an object says waits at its output gate.
        let mut outside = None;
        match instance::current() {
            Some(caller) => {
                outside = Some(caller.calls_outside());
                caller.say(send);
            }
            None => send(),
        }
        Call { reply, outside, early: Early::NotPolled }
    }
}

/// The reply of a call. Dropping it does not take the call back.
#[must_use = "the call is made, but whether it failed is not known"]
#[derive(Debug)]
pub struct Call<R> {
    reply: oneshot::Receiver<Result<R>>,
    /// If an object made it.
    outside: Option<OutsideCall>,
    early: Early<R>,
}

/// A reply that was there when an object first looked for it: another core may have answered calls of other events
/// before, and those go on first, for they were woken first.
#[derive(Debug)]
enum Early<R> {
    /// Next: kept, polled.
    NotPolled,
    Kept(Result<R>),
    Polled,
}

impl<R> Unpin for Call<R> {}

impl<R> Future for Call<R> {
    type Output = Result<R>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<R>> {
        let this = &mut *self;
        let reply = match this.early {
            Early::Polled => this.look(cx),
            Early::NotPolled | Early::Kept(_) => this.look_early(cx),
        };
        if reply.is_ready() && this.outside.take().is_some() {
            let taker = instance::current();
            taker.into_iter().for_each(|taker| taker.woken_by(Awake::OutsideCall));
        }
        reply
    }
}

impl<R> Call<R> {
    fn look(&mut self, cx: &mut Context<'_>) -> Poll<Result<R>> {
        self.reply.poll_unpin(cx).map(|reply| reply.unwrap_or_else(|_| Err(closed())))
    }

    /// The first look, and the one at what that kept.
    fn look_early(&mut self, cx: &mut Context<'_>) -> Poll<Result<R>> {
        if let Early::Kept(reply) = std::mem::replace(&mut self.early, Early::Polled) {
            return Poll::Ready(reply);
        }
        match self.look(cx) {
            Poll::Ready(reply) if self.outside.is_some() => {
                self.early = Early::Kept(reply);
                cx.waker().wake_by_ref();
                Poll::Pending
            }
            reply => reply,
        }
    }

    #[cfg(feature = "server")]
    pub(crate) fn new(reply: oneshot::Receiver<Result<R>>) -> Self {
        Self { reply, outside: None, early: Early::NotPolled }
    }

    /// Blocks this thread until the reply is there. Not for use on a core, nor in async code.
    ///
    /// Errors: those of the call.
    pub fn wait(self) -> Result<R> {
        dormouse_engine::call::wait(self)
    }
}
