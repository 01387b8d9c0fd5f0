//! What clients do with sockets, and what must be true of all of them in the end.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use dormouse_engine::Host;
use dormouse_scheduler::ClientSocket;
use dormouse_scheduler::net::{Bounds, CarryLimits, Rest, Resting, Server, carry};
use dormouse_scheduler::prelude::*;

use super::codec;
use super::line::{Ending, Line, pair, text};
use super::peer::{self, Peer};
use super::shared::{Mark, Shared};
use super::stack::{Client, ended};
use super::{Life, Running};
use crate::net::SimStream;
use crate::plan::{Accept, Break, Fate, Leave, Op, Talk, To, Turn};
use crate::random::Random;
use crate::world::SimEnv;

/// A client that is silent for so long is pinged, and lost after as long again.
const SILENCE: Duration = Duration::from_secs(1200);
/// After one of these its connection rests: in the middle of frames, or when all has been said.
const REST: [Duration; 3] =
    [Duration::from_millis(1), Duration::from_millis(50), Duration::from_secs(300)];
/// So often, for nobody here watches what rests: it goes on though nothing was said.
const RESTS_MAX: u64 = 30;
/// How long one end waits for the other's close frame.
const CLOSE: Duration = Duration::from_secs(60);

impl Client {
    pub(super) async fn talk(&mut self, socket: u8, talk: Talk) {
        if let Talk::Open(object, accept) = talk {
            return self.open(socket, object, accept).await;
        }
        let Some(line) = self.sockets.get(&socket).copied() else { return };
        self.shared.talk(line, talk, self.env.wall_ms());
    }

    async fn open(&mut self, socket: u8, object: u8, accept: Accept) {
        if let Some(before) = self.sockets.remove(&socket) {
            self.shared.talk(before, Talk::Leave(Leave::Finish), 0);
        }
        let shared = self.shared.clone();
        let number = shared.number();
        let stub = self.stub(object).clone();
        let id = stub.id().to_string();
        let mut line = Line::new(number, id.clone(), accept.live, &accept.tags, accept.end.clone());
        line.doomed = shared.on(&id, |ghost| Ok(ghost.is_being_deleted()));
        {
            let mut lines = shared.lines.borrow_mut();
            lines.lines.insert(number, line);
            lines.opens.insert(number, (self.number, accept));
        }
        shared.calls(&id, number);
        let request = Request::get(format!("/{number}")).body(()).expect("a request");
        let reply = stub.fetch(request.with_web_socket_upgrade()).await;
        shared.called(&id, number);
        let taken = reply.as_ref().ok().and_then(UpgradeResponse::take_web_socket);
        ended(&shared, number, reply.map(|_| number));
        let Some(client) = taken else {
            // The object may have accepted it all the same.
            return shared.line_ending(number, Ending::Finish);
        };
        let (theirs, ours) = shared.net().connect();
        let bounds = Arc::new(Bounds::new(CarryLimits {
            silence_time: SILENCE,
            rest_time: REST[Random::new(number).index(REST.len())],
            close_time: CLOSE,
            message_bytes: shared.socket_limits.message_bytes,
            // No client here is closed for what others send.
            partial_bytes: usize::MAX,
        }));
        let closing = shared.clone();
        self.env.spawn("carry", carry_on(self.env.clone(), closing, ours, client, bounds, number));
        let peer = Peer::new(number, theirs, Random::new(number));
        shared.lines.borrow_mut().peers.insert(number, peer.clone());
        self.env.spawn("peer", peer::run(peer, shared));
        self.sockets.insert(socket, number);
    }
}

/// Carries a connection as a server does: where it rests, it goes on at some moment, or when its silence is over.
async fn carry_on(
    env: SimEnv,
    shared: Rc<Shared>,
    mut io: SimStream,
    mut client: ClientSocket,
    bounds: Arc<Bounds>,
    line: u64,
) {
    let mut random = Random::new(!line);
    let mut rest =
        if random.one_in(3) { Rest::Never } else { Rest::May { silent: Duration::ZERO } };
    for rests in 1.. {
        let closing = shared.clone();
        let going_away = move || closing.closing.get();
        let carried = carry(shared.net(), io, client, bounds.clone(), Server, rest, going_away);
        let Some(resting) = carried.await else { return };
        shared.mark(Mark::ConnectionRested);
        let silent;
        Resting { io, client, silent } = resting;
        rest = match random.one_in(2) {
            _ if rests == RESTS_MAX => Rest::Never,
            true => Rest::May { silent },
            // It rested until it is to be pinged.
            false => Rest::May { silent: SILENCE },
        };
        env.sleep(Duration::from_micros(random.below(2_000))).await;
    }
}

impl Shared {
    /// A client does something with a socket that is connected.
    pub(super) fn talk(&self, line: u64, talk: Talk, wall_ms: u64) {
        let Some(peer) = self.peer(line) else { return };
        let mut peer = peer.borrow_mut();
        if !peer.is_open() {
            return;
        }
        self.count(false);
        match talk {
            Talk::Open(..) => unreachable!("handled elsewhere"),
            Talk::Send(bytes, binary, frames, turn) => {
                let token = self.number();
                self.lines.borrow_mut().turns.insert(token, turn);
                let text = text('m', token, bytes);
                let ping = (frames > 2).then_some(&b"between"[..]);
                self.on_line(line, |line| {
                    line.sent(token, bytes, binary, wall_ms);
                    ping.into_iter().for_each(|ping| line.pinged(ping.to_vec()));
                    Ok(())
                });
                let (text, frames) = (text.as_bytes(), usize::from(frames));
                peer.send(|out, mask| codec::put_message(out, mask, binary, text, frames, ping));
            }
            Talk::Ask(which) => {
                let (version, set) = self.lines.borrow().auto_of(line);
                self.on_line(line, |line| {
                    let (version, set) = if line.live { (0, None) } else { (version, set) };
                    line.asked(which, version, set, wall_ms);
                    Ok(())
                });
                let text = pair(which).0;
                peer.send(|out, mask| {
                    codec::put_message(out, mask, false, text.as_bytes(), 1, None)
                });
            }
            Talk::Ping(bytes) => {
                let payload = vec![bytes; usize::from(bytes)];
                self.on_line(line, |line| {
                    line.pinged(payload.clone());
                    Ok(())
                });
                peer.send(|out, mask| codec::put_ping(out, mask, &payload));
            }
            Talk::Close(code, reason) => {
                let code = (code > 0).then_some(code);
                let reason = "r".repeat(if code.is_some() { usize::from(reason) } else { 0 });
                peer.close(code, reason.as_bytes());
                self.line_ending(line, Ending::Close(code, reason));
            }
            Talk::Leave(leave) => {
                let ending = match leave {
                    Leave::Finish => {
                        peer.finish();
                        Ending::Finish
                    }
                    Leave::Reset => {
                        peer.reset();
                        Ending::Reset
                    }
                    Leave::Silent => {
                        peer.go_silent();
                        Ending::Silence
                    }
                };
                self.line_ending(line, ending);
            }
            Talk::Break(how) => {
                let too_long = self.socket_limits.message_bytes + 1;
                let code = breaks(&mut peer, how, too_long);
                peer.broke();
                self.line_ending(line, Ending::Break(code));
            }
            Talk::Hold => {
                peer.hold(true);
                self.on_line(line, |line| {
                    line.held = true;
                    Ok(())
                });
            }
            Talk::Read => peer.hold(false),
        }
    }

    /// Whoever reads nothing reads again.
    pub(super) fn read_all(&self) {
        let peers: Vec<_> = self.lines.borrow().peers.values().map(Rc::clone).collect();
        peers.into_iter().for_each(|peer| peer.borrow_mut().hold(false));
    }
}

/// Sends what no client may send; the code that it is told.
fn breaks(peer: &mut Peer, how: Break, too_long: usize) -> u16 {
    let mut code = 1002;
    peer.send(|out, mask| match how {
        Break::Unmasked => out.extend([0x81, 1, b'x']),
        Break::Unknown => codec::put(out, 0x83, mask, b"x"),
        Break::Headless => codec::put(out, 0x80, mask, b"x"),
        Break::NotUtf8 => {
            code = 1007;
            codec::put(out, 0x81, mask, &[0xc3, 0x28]);
        }
        Break::TooLong => {
            code = 1009;
            out.extend([0x82, 0xff]);
            out.extend((too_long as u64).to_be_bytes());
            out.extend(mask);
        }
    });
    code
}

impl Life<'_> {
    /// After a quiet time: everything arrived, everyone was told, and no object stays in memory for
    /// its sockets but for those that it reads itself. Then each socket still works.
    pub(super) fn check_sockets(&mut self, running: &Running) -> Result<()> {
        if !self.shared.sockets {
            return Ok(());
        }
        self.rested(running).context("at rest")?;
        let open: Vec<_> = {
            let lines = self.shared.lines.borrow();
            let open =
                lines.lines.values().filter(|line| line.is_open() && line.endings.is_empty());
            open.map(|line| (line.number, line.live)).collect()
        };
        let turn = Turn { ops: vec![Op::Say(To::This, 20, false)], fate: Fate::Fine };
        let now = running.env.wall_ms();
        for (line, live) in open {
            self.shared.talk(line, Talk::Send(20, false, 2, turn.clone()), now);
            if live {
                self.shared.talk(line, Talk::Close(1000, 3), now);
            }
        }
        let rested = self.spawn(running, running.env.sleep(CLOSE * 4));
        self.until("a last message", || rested.get())?;
        self.rested(running).context("after a last message")
    }

    fn rested(&self, running: &Running) -> Result<()> {
        let lines = self.shared.lines.borrow();
        for line in lines.lines.values() {
            let checked = line.check_rest();
            checked.with_context(|| format!("line {} of object {}", line.number, line.object))?;
        }
        let mut open: Vec<_> = lines.lines.values().filter(|line| line.is_open()).collect();
        let cores = &running.stack.as_ref().expect("opened").cores;
        let names: Vec<_> = cores.iter().flat_map(|core| self.world.tasks_of(core)).collect();
        let reading = names.iter().filter(|name| **name == "socket").count();
        let sleeping = open.iter().filter(|line| !line.live).count();
        ensure!(reading == sleeping, "{reading} sockets are read, and {sleeping} are open");
        let carried = self.world.tasks_of(&running.env);
        let carried = carried.iter().filter(|name| **name == "carry").count();
        ensure!(carried == open.len(), "{carried} are carried, and {} are open", open.len());
        open.retain(|line| line.live);
        for (object, ghost) in self.shared.ghosts.borrow().iter() {
            let kept = open.iter().any(|line| line.object == *object);
            ensure!(kept || ghost.instance.is_none(), "object {object} stays in memory");
        }
        Ok(())
    }

    /// The cores have ended: all sockets do.
    pub(super) fn close_sockets(&mut self, running: &Running) -> Result<()> {
        if !self.shared.sockets {
            return Ok(());
        }
        self.shared.read_all();
        let (world, env) = (self.world.clone(), running.env.clone());
        let carried = move || world.tasks_of(&env).contains(&"carry");
        self.until("the last sockets", || !carried())
    }
}
