//! Deleting an object for good: its instance, keys, alarm, name and sockets.
//!
//! A deletion holds the object's place on its core from the moment at which it comes until it is
//! over, so nothing can begin in between:
//!
//! | what | becomes of it |
//! |---|---|
//! | calls that came before and are not answered | fail, code `object-deleted` |
//! | calls that come meanwhile | wait, and meet the object as one that never was |
//! | its alarm, and a retry of it | gone; none is delivered meanwhile |
//! | its sockets | closed with 1001 when the deletion is durable; disconnected if it failed |
//!
//! Invariants: on disk it is one commit, made when the instance has ended, behind all that it had
//! in flight: a crash shows the object as it was, or nothing. No instance reads the object before
//! that commit is settled.

use std::rc::Rc;
use std::time::Duration;

use dormouse_cache::Backing;
use dormouse_engine::{Batch, Contents, Host, ObjectId};
use futures_util::FutureExt;

use crate::core::{Inner, Slot, Waiting, refuse};
use crate::error::{Error, Result};
use crate::event::Reply;
use crate::host::Home;
use crate::id::Id;
use crate::instance::{Instance, Work};
use crate::socket::CloseFrame;
use crate::socket::sockets::Sockets;

/// "Going away" (RFC 6455 §7.4.1).
const CLOSE_CODE: u16 = 1001;

/// The place of an object that is being deleted.
pub(crate) struct Deletion {
    id: Id,
    class: usize,
    /// By the core's clock.
    began: Duration,
    /// Calls, and what its sockets sent.
    queue: Waiting,
    /// Whoever asked for it.
    replies: Vec<Reply<()>>,
    /// It was being started: that task is to notice first.
    starting: bool,
}

impl Deletion {
    /// What comes meanwhile, now by the core's clock; a call is given back if `calls_max` wait.
    pub(crate) fn push(&mut self, now: Duration, work: Work, calls_max: usize) -> Option<Work> {
        match work {
            Work::Call(_) if self.queue.len() >= calls_max => return Some(work),
            // Its reply says that it failed, and what is kept of that goes with the object.
            Work::Alarm(_) => {}
            work => self.queue.push_back((now, work)),
        }
        None
    }

    pub(crate) fn queue(&self) -> &Waiting {
        &self.queue
    }

    /// Of which object, and when it began by the core's clock.
    pub(crate) fn of(&self) -> (&Id, usize, Duration) {
        (&self.id, self.class, self.began)
    }
}

/// Begins to delete an object.
pub(crate) fn begin(core: &Rc<Inner>, id: Id, class: usize, reply: Reply<()>) {
    let object = id.object();
    let mut deletion = Deletion {
        id: id.clone(),
        class,
        began: core.watch.now(),
        queue: Waiting::new(),
        replies: vec![reply],
        starting: false,
    };
    let (mut refused, mut leaving, mut begins) = (Waiting::new(), None, true);
    {
        let mut objects = core.objects.borrow_mut();
        match objects.remove(&object) {
            None => {}
            Some(Slot::Starting(start)) => {
                refused = start.queue;
                deletion.starting = true;
            }
            Some(Slot::Live(instance)) => leaving = Some(instance),
            Some(Slot::Deleting(earlier)) => {
                let Deletion { began, queue, replies, starting, .. } = *earlier;
                // What its sockets sent is not dropped before they are closed: that would end them.
                (refused, deletion.queue) =
                    queue.into_iter().partition(|(_, work)| matches!(work, Work::Call(_)));
                deletion.began = began;
                deletion.replies.splice(0..0, replies);
                deletion.starting = starting;
                begins = false;
            }
        }
        objects.insert(object, Slot::Deleting(Box::new(deletion)));
    }
    let error = Error::deleted(&id);
    if let Some(instance) = &leaving {
        // Its end drops its handles on those that it reads itself.
        instance.sockets().into_iter().for_each(|sockets| sockets.keep_live());
        instance.reset(error.clone());
    }
    refuse(refused, &error);
    if begins {
        let sockets = core.sockets.borrow_mut().remove(&object);
        core.host.spawn("delete", run(core.clone(), id, class, leaving, sockets).boxed_local());
    }
}

async fn run(
    core: Rc<Inner>,
    id: Id,
    class: usize,
    leaving: Option<Rc<Instance>>,
    sockets: Option<Rc<Sockets>>,
) {
    let object = id.object();
    let left = || leaving.as_ref().is_none_or(|instance| instance.has_ended());
    let starting = || with(&core, object, |deletion| deletion.starting);
    core.moved.until(|| (left() && !starting()).then_some(())).await;
    let deleted = commit(&core, object, class).await;
    core.alarms.forget(&core.host, object).await;
    if let Some(sockets) = sockets {
        match &deleted {
            Ok(()) => sockets.close_all(&CloseFrame {
                code: Some(CLOSE_CODE),
                reason: "the object was deleted".to_owned(),
            }),
            Err(_) => sockets.disconnect(),
        }
    }
    let over = core.objects.borrow_mut().remove(&object);
    let Some(Slot::Deleting(over)) = over else { unreachable!("only this task ends it") };
    let Deletion { queue, replies, .. } = *over;
    // What its sockets sent is dropped; they are closed.
    let calls: Waiting =
        queue.into_iter().filter(|(_, work)| matches!(work, Work::Call(_))).collect();
    if !calls.is_empty() {
        core.begin_life(id, class, calls);
    }
    core.moved.notify();
    for reply in replies {
        reply.send(deleted.clone());
    }
}

/// Looks at the deletion that has the object's place.
fn with<T>(core: &Inner, object: ObjectId, look: impl FnOnce(&mut Deletion) -> T) -> T {
    match core.objects.borrow_mut().get_mut(&object) {
        Some(Slot::Deleting(deletion)) => look(deletion),
        _ => unreachable!("a deletion keeps its place"),
    }
}

/// The object has neither keys nor an alarm any more, durably.
async fn commit(core: &Inner, object: ObjectId, class: usize) -> Result<()> {
    let shard = core.shards.wait(core.shards.place(object)).await?;
    let (bell, poisoned) = (core.alarms.bell(), core.shards.bell());
    let home = Home { shard, id: object, class, bell, poisoned, watch: core.watch.clone() };
    let nothing = Batch::new().delete_all().delete_alarm();
    home.commit(&nothing, Some(&Contents::default()))?.await?;
    Ok(())
}

impl Inner {
    /// What waited for an object that was being started; none if it is to be deleted instead.
    pub(crate) fn end_start(&self, object: ObjectId) -> Option<Waiting> {
        let mut objects = self.objects.borrow_mut();
        match objects.remove(&object) {
            Some(Slot::Starting(start)) => Some(start.queue),
            Some(Slot::Deleting(mut deletion)) => {
                deletion.starting = false;
                objects.insert(object, Slot::Deleting(deletion));
                None
            }
            Some(Slot::Live(_)) | None => unreachable!("only this task starts the object"),
        }
    }

    /// An instance has ended: its place is free, unless a deletion has it.
    pub(crate) fn leave(&self, instance: &Instance) {
        let object = instance.id.object();
        let is_deleted = matches!(self.objects.borrow().get(&object), Some(Slot::Deleting(_)));
        if !is_deleted {
            self.objects.borrow_mut().remove(&object);
            self.keep_sockets(instance);
        }
    }
}
