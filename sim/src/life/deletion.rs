//! Clients that delete objects for good, and what must be true of the sockets of these.

use dormouse_engine::Host;

use dormouse_scheduler::Error;

use super::shared::{Mark, Shared};
use super::stack::{Client, look};
use crate::plan::Wait;

impl Client {
    pub(super) async fn delete(&mut self, object: u8, wait: Wait) {
        let (shared, env, stub) =
            (self.shared.clone(), self.env.clone(), self.stub(object).clone());
        let (id, token) = (stub.id().to_string(), shared.number());
        shared.deletes(&id, token);
        let call = stub.delete();
        let deleted = async move {
            let result = call.await;
            shared.note(|| format!("deletion {token} of {id}: {result:?}"));
            shared.deleted(&id, token, result);
            while shared.is_in_doubt(&id) {
                match look(&shared, &env, &stub).await {
                    Err(error) if error.reset() => {}
                    Err(error) if !shared.closing.get() => {
                        let text = format!("{id} does not answer after {token}: {error:?}");
                        return shared.fail_if_strict(text);
                    }
                    _ => return,
                }
            }
        };
        match wait {
            Wait::Now => deleted.await,
            Wait::Last | Wait::Never => self.env.spawn("deletion", deleted),
        }
    }
}

impl Shared {
    /// A deletion is asked for.
    fn deletes(&self, object: &str, token: u64) {
        let (another, dirty, alarm) = self.on(object, |ghost| {
            let alarm = ghost.alarm()?.is_some();
            Ok((ghost.delete_begins(token), ghost.is_dirty(), alarm))
        });
        let marks = [
            (another, Mark::DeletedBesideAnother),
            (dirty, Mark::DeletedWhileDirty),
            (alarm, Mark::DeletedWithAnAlarm),
        ];
        marks.into_iter().filter(|(is, _)| *is).for_each(|(_, mark)| self.mark(mark));
        self.doom(object, true);
    }

    /// Whether sockets of the object may be closed by a deletion.
    fn doom(&self, object: &str, doomed: bool) {
        let mut lines = self.lines.borrow_mut();
        let lines = lines.lines.values_mut().filter(|line| line.object == object && !line.cut);
        lines.for_each(|line| line.doomed = doomed);
    }

    /// What became of a deletion.
    fn deleted(&self, object: &str, token: u64, result: Result<(), Error>) {
        self.world.fold(&token.to_le_bytes());
        match result {
            Ok(()) => {
                self.count(true);
                let is_over = self.on(object, |ghost| ghost.deleted(token));
                self.lines_deleted(object, token, is_over);
            }
            Err(error) if error.is_overloaded() && error.code() == Some("mailbox-full") => {
                self.refused(&error);
                self.on(object, |ghost| {
                    ghost.delete_refused(token);
                    Ok(())
                });
            }
            Err(error) => {
                self.count(false);
                if !self.closing.get() {
                    self.fail_if_strict(format!("deletion {token} of {object}: {error:?}"));
                }
                self.on(object, |ghost| {
                    ghost.delete_failed(token);
                    Ok(())
                });
            }
        }
        let (pending, in_doubt) =
            self.on(object, |ghost| Ok((ghost.is_being_deleted(), ghost.is_in_doubt())));
        if !pending && !in_doubt {
            self.doom(object, false);
        }
    }

    /// Whether a look at the object is needed to know what is left of it.
    fn is_in_doubt(&self, object: &str) -> bool {
        let in_doubt =
            self.on(object, |ghost| Ok(ghost.is_in_doubt() && !ghost.is_being_deleted()));
        in_doubt && !self.closing.get()
    }

    /// Sockets of before the deletion are gone: all, or those that earlier instances accepted.
    fn lines_deleted(&self, object: &str, token: u64, all: bool) {
        if !self.sockets {
            return;
        }
        for line in self.lines.borrow_mut().lines.values_mut() {
            let before = all || line.accepted.is_some_and(|instance| instance < token);
            if line.object == object && line.is_open() && before {
                line.cut = true;
                line.deleted = true;
            }
        }
        if all {
            self.lines_reset(object);
        }
    }

    /// The process dies with deletions on their way.
    pub(super) fn deletions_crashed(&self) {
        let ghosts = self.ghosts.borrow();
        let pending = ghosts.values().filter(|ghost| ghost.is_being_deleted()).count();
        drop(ghosts);
        (0..pending).for_each(|_| self.mark(Mark::DeletedInACrash));
    }
}
