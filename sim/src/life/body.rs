//! Bodies that come chunk by chunk, from clients to objects and back: what is read of one is what was
//! sent, in order; it passes for whole if it was finished, and is cut off if not; and what an object
//! sends arrives when all that it wrote before is durable.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use bytes::Bytes;
use dormouse_engine::Host;
use dormouse_scheduler::Kind;
use dormouse_scheduler::prelude::*;
use futures_util::FutureExt;

use super::object::{Inner, planned};
use super::shared::{Mark, Shared};
use super::stack::{Client, ended};
use crate::plan::{Ends, Exchange, Flow};

/// How long a client pauses between two chunks.
const PAUSE: Duration = Duration::from_micros(300);

/// Requests by their numbers.
pub(super) type Exchanges = BTreeMap<u64, Talk>;

/// Which body of the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Up,
    Down,
}

/// What is known of one body.
#[derive(Default)]
struct Course {
    /// Of each chunk its bytes, and how many groups of its object are durable when it arrives.
    sent: Vec<(u16, u64)>,
    /// How it was ended, and the same.
    end: Option<(Ends, u64)>,
    got: usize,
    /// It has a reader; that has gone.
    reading: bool,
    left: bool,
}

/// What is known of one request.
pub(super) struct Talk {
    object: String,
    client: u64,
    plan: Exchange,
    /// The instance that took it.
    instance: u64,
    up: Course,
    down: Course,
}

impl Talk {
    fn of(&mut self, way: Way) -> &mut Course {
        match way {
            Way::Up => &mut self.up,
            Way::Down => &mut self.down,
        }
    }
}

/// The number of the exchange that a request is of.
pub(super) fn token_of(request: &Request) -> Option<u64> {
    request.uri().path().strip_prefix("/body/")?.parse().ok()
}

fn chunk(token: u64, way: Way, number: usize, len: u16) -> Bytes {
    let mut bytes = vec![way as u8; usize::from(len)];
    bytes[..8].copy_from_slice(&token.to_le_bytes());
    bytes[8] = u8::try_from(number).expect("few chunks");
    bytes.into()
}

impl Client {
    pub(super) async fn exchange(&mut self, object: u8, plan: Exchange) {
        let (shared, env, stub) =
            (self.shared.clone(), self.env.clone(), self.stub(object).clone());
        let (id, token) = (stub.id().to_string(), shared.number());
        let (up, taken) = (plan.up.clone(), plan.down.taken);
        let talk = Talk {
            object: id.clone(),
            client: self.number,
            plan,
            instance: 0,
            up: Course::default(),
            down: Course::default(),
        };
        shared.exchanges.borrow_mut().insert(token, talk);
        shared.calls(&id, token);
        let (sender, body) = Body::stream();
        let request = Request::post(format!("/body/{token}")).body(body).expect("a request");
        let call = stub.fetch(request);
        let (sends, pauses) = (shared.clone(), env.clone());
        self.env.spawn("upload", async move {
            let pause = async || {
                pauses.sleep(PAUSE).await;
                Some(0)
            };
            sends.send_body(token, Way::Up, sender, up, pause).await;
        });
        let reply = call.await;
        shared.called(&id, token);
        let (body, reply) = match reply {
            Ok(response) => (Some(response.into_body()), Ok(token)),
            Err(error) => (None, Err(error)),
        };
        ended(&shared, token, reply);
        if let Some(body) = body {
            shared.read_body(token, Way::Down, body, taken, || ()).await;
        }
    }
}

impl Inner {
    /// Reads a request's body, does what its turn says, and answers with a body that comes.
    pub(super) async fn exchange(
        self: &Rc<Self>,
        token: u64,
        request: Request,
    ) -> Result<Response> {
        let shared = &self.shared;
        let known = shared.on_talk(token, |talk| {
            talk.instance = self.instance;
            Ok(Some((talk.client, talk.plan.clone())))
        });
        let Some((client, Exchange { up, turn, between, down })) = known else {
            return Err(planned());
        };
        shared.check(&self.name, shared.arrives(&self.name, token, Some(client)));
        shared.called(&self.name, token);
        let body = request.into_body();
        let runs = || self.on(token, |_| Ok(()));
        shared.read_body(token, Way::Up, body, up.taken, runs).await;
        let result = self.clone().turn(token, &turn).await;
        let groups = shared.on(&self.name, |ghost| {
            ghost.pause();
            Ok(ghost.confirmed())
        });
        shared.ended.borrow_mut().insert(token, (self.name.clone(), groups));
        result?;
        let (sender, body) = Body::stream();
        let (this, event) = (self.clone(), shared.number());
        self.state.wait_until(async move {
            let before = async || {
                let (storage, mut made) = (this.state.storage(), Vec::new());
                let run = this.run(event, storage, &between, &mut made).await;
                let result = run.and(this.finish(event, &mut made).await);
                let fine = result.is_ok();
                this.tolerate(result);
                let groups = this.on(event, |ghost| {
                    ghost.pause();
                    Ok(ghost.confirmed())
                });
                fine.then_some(groups)
            };
            this.shared.send_body(token, Way::Down, sender, down, before).await;
            this.on(event, |ghost| {
                ghost.pause();
                Ok(())
            });
        });
        Ok(Response::new(body))
    }
}

impl Shared {
    fn on_talk<T: Default>(
        &self,
        token: u64,
        use_it: impl FnOnce(&mut Talk) -> anyhow::Result<T>,
    ) -> T {
        let mut exchanges = self.exchanges.borrow_mut();
        let talk = exchanges.get_mut(&token).context("nobody made it");
        talk.and_then(use_it).unwrap_or_else(|error| {
            self.fail(format!("exchange {token}: {error:#}"));
            T::default()
        })
    }

    /// Sends what `flow` says; `before` is done before each chunk and the end, and says how many
    /// groups of the object must be durable then, or that there is no going on.
    async fn send_body(
        &self,
        token: u64,
        way: Way,
        mut sender: BodySender,
        flow: Flow,
        before: impl AsyncFn() -> Option<u64>,
    ) {
        let end = |end, groups| {
            self.on_talk(token, |talk| {
                talk.of(way).end = Some((end, groups));
                Ok(())
            });
        };
        for (number, len) in flow.chunks.into_iter().enumerate() {
            let Some(groups) = before().await else { return end(Ends::Dropped, 0) };
            self.on_talk(token, |talk| {
                talk.of(way).sent.push((len, groups));
                Ok(())
            });
            self.count(false);
            let mut send = std::pin::pin!(sender.send(chunk(token, way, number, len)));
            let sent = match send.as_mut().now_or_never() {
                Some(sent) => sent,
                None => {
                    self.mark(Mark::BodyWaitedForRoom);
                    send.await
                }
            };
            if let Err(error) = sent {
                return self.check_gone(token, way, &error);
            }
        }
        let Some(groups) = before().await else { return end(Ends::Dropped, 0) };
        end(flow.end, groups);
        match flow.end {
            Ends::Whole => sender.finish(),
            Ends::Dropped => drop(sender),
            Ends::Failed => sender.fail(planned()),
        }
    }

    /// A sender was told that nobody reads.
    fn check_gone(&self, token: u64, way: Way, error: &Error) {
        let lives = self.taker_lives(token);
        self.on_talk(token, |talk| {
            ensure!(error.code() == Some("body-gone"), "{way:?}: not sent: {error:?}");
            let course = talk.of(way);
            let reads = course.reading && !course.left && (way == Way::Down || lives);
            ensure!(!reads, "{way:?}: nobody reads, is said, while somebody does");
            Ok(())
        });
    }

    /// Whether the instance that took the request lives.
    fn taker_lives(&self, token: u64) -> bool {
        let taken = self.on_talk(token, |talk| Ok(Some((talk.object.clone(), talk.instance))));
        let Some((object, instance)) = taken else { return false };
        self.on(&object, |ghost| Ok(ghost.instance == Some(instance)))
    }

    /// Reads a body to its end, or until its reader goes; `came` is called when something came.
    async fn read_body(
        &self,
        token: u64,
        way: Way,
        mut body: Body,
        taken: Option<u8>,
        came: impl Fn(),
    ) {
        self.on_talk(token, |talk| {
            talk.of(way).reading = true;
            Ok(())
        });
        for number in 0.. {
            if taken.is_some_and(|taken| usize::from(taken) == number) {
                self.mark(Mark::BodyReaderLeft);
                break;
            }
            let next = body.chunk().await;
            came();
            if !self.came(token, way, next) {
                break;
            }
        }
        self.on_talk(token, |talk| {
            talk.of(way).left = true;
            Ok(())
        });
    }

    /// What came of a body; whether more may.
    fn came(&self, token: u64, way: Way, next: Result<Option<Bytes>>) -> bool {
        let lives = self.taker_lives(token);
        self.count(false);
        self.world.fold(&token.to_le_bytes());
        let (more, groups, object) = self.on_talk(token, |talk| {
            let object = talk.object.clone();
            let course = talk.of(way);
            let (mark, more, groups) = course.check(token, way, next, lives)?;
            mark.into_iter().for_each(|mark| self.mark(mark));
            Ok((more, groups, Some(object)))
        });
        if let (Some(object), Way::Down) = (object, way) {
            self.on(&object, |ghost| {
                ghost.acknowledge(groups);
                Ok(())
            });
        }
        more
    }

    /// The process dies, with all bodies.
    pub(super) fn exchanges_crashed(&self) {
        let exchanges = std::mem::take(&mut *self.exchanges.borrow_mut());
        let coming = |course: &Course| course.reading && !course.left;
        let cut = exchanges.values().filter(|talk| coming(&talk.up) || coming(&talk.down)).count();
        (0..cut).for_each(|_| self.mark(Mark::BodyInACrash));
    }
}

impl Course {
    /// Holds what was read against what was sent; whether more may come, and how many groups of the
    /// object are durable.
    fn check(
        &mut self,
        token: u64,
        way: Way,
        next: Result<Option<Bytes>>,
        lives: bool,
    ) -> anyhow::Result<(Option<Mark>, bool, u64)> {
        let number = self.got;
        match next {
            Ok(Some(bytes)) => {
                let (len, groups) = *self.sent.get(number).context("a chunk that nobody sent")?;
                let wanted = chunk(token, way, number, len);
                ensure!(bytes == wanted, "{way:?}: chunk {number} is another one");
                self.got += 1;
                Ok((None, true, groups))
            }
            Ok(None) => {
                let Some((Ends::Whole, groups)) = self.end else {
                    bail!("{way:?}: whole, is said, and it ended by {:?}", self.end)
                };
                let sent = self.sent.len();
                ensure!(number == sent, "{way:?}: whole after {number} chunks of {sent}");
                Ok((Some(Mark::BodyWhole), false, groups))
            }
            Err(error) => {
                let cut = error.code() == Some("body-cut");
                let mark = match self.end {
                    Some((Ends::Dropped, _)) if cut => Mark::BodyCutByItsSender,
                    Some((Ends::Failed, _)) if error.kind() == Kind::User => {
                        Mark::BodyCutByItsSender
                    }
                    // What it said may have been kept by the output gate.
                    _ if cut && way == Way::Down && !lives => Mark::BodyCutByAReset,
                    end => bail!("{way:?}: {error:?} after {number} chunks; it ended by {end:?}"),
                };
                if mark == Mark::BodyCutByItsSender {
                    let sent = self.sent.len();
                    let all = number == sent || way == Way::Down && !lives;
                    ensure!(all, "{way:?}: cut after {number} chunks of {sent}");
                }
                Ok((Some(mark), false, 0))
            }
        }
    }
}
