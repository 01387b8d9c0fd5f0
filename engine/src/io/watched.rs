//! Many descriptors that are watched for input as one, by the runtime of a core: an epoll set. Each costs the process
//! nothing of its own, where tokio keeps a record.

#![expect(unsafe_code, reason = "tokio watches a descriptor that it is given")]

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::task::{Context, Poll, ready};

use rustix::buffer::spare_capacity;
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::fs::Timespec;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Descriptors that are taken at once.
const FOUND_MAX: usize = 256;
const AT_ONCE: Timespec = Timespec { tv_sec: 0, tv_nsec: 0 };

/// A set of descriptors.
#[derive(Debug)]
pub struct Watched(AsyncFd<OwnedFd>);

impl Watched {
    /// None yet. To be made on a core.
    ///
    /// Errors: there are no more descriptors.
    pub fn new() -> io::Result<Self> {
        let set = epoll::create(CreateFlags::CLOEXEC)?;
        // SAFETY: an `OwnedFd` is open for as long as it is there, always the same, and nobody takes it out of the
        // `AsyncFd` that has it from now on.
        let watched = unsafe { AsyncFd::register_with_interest(set, Interest::READABLE) };
        watched.map(Self).map_err(io::Error::from)
    }

    /// Watches one until it has something to be read, also what was there before, or its other end is gone; then it has
    /// to be removed.
    ///
    /// Errors: there is no memory, or it can't be watched.
    pub fn add(&self, descriptor: impl AsFd, number: u64) -> io::Result<()> {
        let flags = EventFlags::IN | EventFlags::RDHUP | EventFlags::ONESHOT;
        Ok(epoll::add(&self.0, descriptor, EventData::new_u64(number), flags)?)
    }

    /// Watches it no more.
    ///
    /// Errors: it is not watched.
    pub fn remove(&self, descriptor: impl AsFd) -> io::Result<()> {
        Ok(epoll::delete(&self.0, descriptor)?)
    }

    /// The numbers of some that have something to be read, each once.
    pub fn poll_found(&self, cx: &mut Context<'_>) -> Poll<io::Result<Vec<u64>>> {
        loop {
            let mut guard = ready!(self.0.poll_read_ready(cx))?;
            let mut events: Vec<Event> = Vec::with_capacity(FOUND_MAX);
            match epoll::wait(&self.0, spare_capacity(&mut events), Some(&AT_ONCE)) {
                Ok(0) => guard.clear_ready(),
                Ok(_) => {
                    return Poll::Ready(Ok(events.iter().map(|event| event.data.u64()).collect()));
                }
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Poll::Ready(Err(error.into())),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::io::Write;
    use std::os::unix::net::UnixStream;

    use futures_util::FutureExt;

    use super::*;

    #[test]
    fn what_has_something_is_found_once() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let watched = Watched::new().unwrap();
            let pairs: Vec<_> = (0..600).map(|_| UnixStream::pair().unwrap()).collect();
            // One has something before it is watched.
            (&pairs[7].0).write_all(b"early").unwrap();
            for (number, (_, ours)) in (0..).zip(&pairs) {
                watched.add(ours, number).unwrap();
            }
            let found = || poll_fn(|cx| watched.poll_found(cx));
            assert_eq!(found().await.unwrap(), [7]);
            assert!(found().now_or_never().is_none(), "a second time");
            watched.remove(&pairs[9].1).unwrap();
            for (theirs, _) in &pairs {
                (&*theirs).write_all(b"late").unwrap();
            }
            let mut all = Vec::new();
            while all.len() < 598 {
                all.extend(found().await.unwrap());
            }
            all.sort_unstable();
            let expected: Vec<u64> = (0..600).filter(|number| ![7, 9].contains(number)).collect();
            assert_eq!(all, expected);
            assert!(found().now_or_never().is_none());
            // One whose other end goes.
            watched.remove(&pairs[3].1).unwrap();
            let (theirs, ours) = UnixStream::pair().unwrap();
            watched.add(&ours, 1000).unwrap();
            drop(theirs);
            assert_eq!(found().await.unwrap(), [1000]);
        });
    }
}
