//! A walk over the keys of a large object: a task of the object's core reads its pages, a few at a time, and
//! hands them over when they are asked for. What it reads stays in its place meanwhile, so a walk that
//! nobody goes on with for long is ended.

use std::pin::pin;
use std::time::Duration;

use bytes::Bytes;
use futures_channel::mpsc;
use futures_util::StreamExt;
use futures_util::future::{Either, select};

use crate::env::Env;
use crate::error::{Error, Kind, Result};
use crate::list::List;
use crate::snapshot::Snapshot;

/// How long a walk may pause.
const PAUSE_MAX: Duration = Duration::from_secs(60);
/// How long it may last.
const WALK_MAX: Duration = Duration::from_secs(3600);

/// Some keys with their values; none at the end.
type Piece = Result<Vec<(Bytes, Bytes)>>;

/// The reader's end of a walk.
pub(super) struct Listed {
    pages: mpsc::Receiver<Piece>,
    given: std::vec::IntoIter<(Bytes, Bytes)>,
}

impl Listed {
    /// The next key and its value.
    ///
    /// Errors: `Corrupt`, with the place; `Retry`.
    pub(super) async fn next(&mut self) -> Result<Option<(Bytes, Bytes)>> {
        loop {
            if let Some(next) = self.given.next() {
                return Ok(Some(next));
            }
            match self.pages.next().await {
                Some(Ok(some)) if some.is_empty() => return Ok(None),
                Some(some) => self.given = some?.into_iter(),
                None => {
                    let what = "the walk has ended: the store was closed, nobody went on for a minute, or it took an hour";
                    return Err(Error::new(Kind::Retry, what));
                }
            }
        }
    }
}

/// Begins a walk; the task that reads for it, and where it is read.
pub(super) fn scan<E: Env>(
    env: E,
    snapshot: Snapshot<E>,
    list: List,
) -> (impl Future<Output = ()>, Listed) {
    let (mut sender, pages) = mpsc::channel(0);
    let task = async move {
        let mut scan = match snapshot.scan(&list) {
            Ok(scan) => scan,
            Err(error) => return drop(sender.try_send(Err(error))),
        };
        let began = env.now();
        while env.now() - began < WALK_MAX {
            let wanted = std::future::poll_fn(|context| sender.poll_ready(context));
            match select(wanted, pin!(env.sleep(PAUSE_MAX))).await {
                Either::Left((Ok(()), _)) => {}
                // Nobody reads any more, or nobody has for long.
                Either::Left((Err(_), _)) | Either::Right(_) => return,
            }
            let some = scan.next().await.map(Option::unwrap_or_default);
            let ends = some.as_ref().map_or(true, Vec::is_empty);
            if sender.try_send(some).is_err() || ends {
                return;
            }
        }
    };
    (task, Listed { pages, given: Vec::new().into_iter() })
}
