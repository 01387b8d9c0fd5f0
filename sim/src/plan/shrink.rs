//! Makes a plan that fails shorter, as long as it fails.
//!
//! Greedy: each candidate is the plan with something left out or made plainer; the first that
//! still fails takes its place. A change of the plan changes every choice that its seed makes, so
//! that a failure may need another one: each candidate is tried with a few.

use super::{
    Accept, At, End, Ends, Exchange, Fate, Flow, Level, Op, Plan, Session, Step, Talk, Turn, Wait,
};
use crate::disk::DiskFaults;
use crate::net::NetFaults;

/// Seeds with which each candidate is tried.
const SEEDS: u64 = 4;

/// The shortest plan found by at most `tries` lives; `fails` says whether one fails.
pub fn shrink(plan: &Plan, tries: u64, mut fails: impl FnMut(&Plan) -> bool) -> Plan {
    let mut best = plan.clone();
    let mut left = tries;
    loop {
        let before = best.clone();
        let mut at = 0;
        loop {
            let Some(candidate) = candidates(&best).nth(at) else { break };
            let shorter = candidate.size() < best.size() || candidate.shape() < best.shape();
            let failing = (0..SEEDS)
                .map(|more| Plan { seed: candidate.seed.wrapping_add(more), ..candidate.clone() })
                .take_while(|_| shorter)
                .find(|plan| {
                    left = left.saturating_sub(1);
                    left > 0 && fails(plan)
                });
            match failing {
                Some(plan) => best = plan,
                None => at += 1,
            }
            if left == 0 {
                return best;
            }
        }
        if best == before {
            return best;
        }
    }
}

impl Plan {
    /// How plain it is, where its text is no shorter.
    fn shape(&self) -> (usize, u16, u64, bool, bool, usize) {
        let stalls = self.stalls.min(1) + self.late_wakes.min(1) + (self.mailbox as u64).min(1);
        let net = [self.net.pieces > 0, self.net.late > 0, self.net.room > 0, self.tiny_sockets];
        let net = net.into_iter().filter(|is_on| *is_on).count();
        (self.cores, self.shards, stalls, self.damage, self.tiny_caches, net)
    }
}

/// The plan with something left out, the largest pieces first.
fn candidates(plan: &Plan) -> impl Iterator<Item = Plan> {
    let with = |change: &dyn Fn(&mut Plan)| {
        let mut changed = plan.clone();
        change(&mut changed);
        changed
    };
    let mut all = vec![
        with(&|plan| plan.faults = DiskFaults::default()),
        with(&|plan| plan.faults.short_io = 0),
        with(&|plan| plan.faults.slow_io = 0),
        with(&|plan| plan.faults.write_error = 0),
        with(&|plan| plan.faults.read_error = 0),
        with(&|plan| plan.faults.sync_error = 0),
        with(&|plan| plan.faults.capacity = 0),
        with(&|plan| plan.faults.buffered = false),
        with(&|plan| plan.faults.large_blocks = false),
        with(&|plan| plan.stalls = 0),
        with(&|plan| plan.late_wakes = 0),
        with(&|plan| plan.mailbox = 0),
        with(&|plan| plan.tiny_caches = false),
        with(&|plan| plan.tiny_sockets = false),
        with(&|plan| plan.net = NetFaults::default()),
        with(&|plan| plan.net.pieces = 0),
        with(&|plan| plan.net.late = 0),
        with(&|plan| plan.net.room = 0),
        with(&|plan| plan.damage = false),
        with(&|plan| plan.cores = 1),
        with(&|plan| plan.shards = 1),
        with(&|plan| plan.alarms.clear()),
    ];
    all.extend(without(&plan.sessions).map(|sessions| Plan { sessions, ..plan.clone() }));
    for (index, session) in plan.sessions.iter().enumerate() {
        all.extend(
            sessions(session).map(|session| with(&|plan| plan.sessions[index] = session.clone())),
        );
    }
    all.extend(without(&plan.alarms).map(|alarms| Plan { alarms, ..plan.clone() }));
    for (index, turn) in plan.alarms.iter().enumerate() {
        all.extend(turns(turn).map(|turn| with(&|plan| plan.alarms[index] = turn.clone())));
    }
    if plan.level == Level::Engine {
        all.retain(|candidate| candidate.cores == 1);
    }
    all.into_iter()
}

fn sessions(session: &Session) -> impl Iterator<Item = Session> {
    let mut all: Vec<Session> =
        without(&session.clients).map(|clients| Session { clients, ..session.clone() }).collect();
    for (index, client) in session.clients.iter().enumerate() {
        let plainer = client.iter().enumerate().flat_map(|(at, step)| {
            steps(step).into_iter().map(move |step| {
                let mut client = client.clone();
                client[at] = step;
                client
            })
        });
        let steps = without(client).chain(plainer);
        all.extend(steps.map(|steps| {
            let mut session = session.clone();
            session.clients[index] = steps;
            session
        }));
    }
    if !matches!(session.end, End::Kill | End::Close) {
        all.push(Session { end: End::Kill, ..session.clone() });
    }
    let earlier = |at: u64| [0, at / 2, at.saturating_sub(1)];
    match session.at {
        At::Done => {}
        At::Steps(at) => {
            all.extend(earlier(at).map(|at| Session { at: At::Steps(at), ..session.clone() }))
        }
        At::InFlight(at) => {
            all.extend(earlier(at).map(|at| Session { at: At::InFlight(at), ..session.clone() }));
        }
    }
    all.into_iter()
}

fn steps(step: &Step) -> Vec<Step> {
    match step {
        Step::Call(object, turn, wait) => {
            let mut all: Vec<_> =
                turns(turn).map(|turn| Step::Call(*object, turn, *wait)).collect();
            if *wait == Wait::Last {
                all.push(Step::Call(*object, turn.clone(), Wait::Now));
            }
            all
        }
        Step::Delete(object, wait) if *wait != Wait::Now => vec![Step::Delete(*object, Wait::Now)],
        Step::Fetch(object, exchange) => {
            exchanges(exchange).into_iter().map(|plainer| Step::Fetch(*object, plainer)).collect()
        }
        Step::Socket(socket, talk) => {
            talks(talk).into_iter().map(|talk| Step::Socket(*socket, talk)).collect()
        }
        Step::Commit(object, batches) => {
            batches_of(batches).map(|batches| Step::Commit(*object, batches)).collect()
        }
        Step::CommitResident(object, batches) => {
            batches_of(batches).map(|batches| Step::CommitResident(*object, batches)).collect()
        }
        _ => Vec::new(),
    }
}

fn exchanges(exchange: &Exchange) -> Vec<Exchange> {
    let with = |change: &dyn Fn(&mut Exchange)| {
        let mut changed = exchange.clone();
        change(&mut changed);
        changed
    };
    let mut all: Vec<_> =
        flows(&exchange.up).map(|up| with(&|exchange| exchange.up = up.clone())).collect();
    all.extend(flows(&exchange.down).map(|down| with(&|exchange| exchange.down = down.clone())));
    all.extend(turns(&exchange.turn).map(|turn| with(&|exchange| exchange.turn = turn.clone())));
    all.extend(
        lists(&exchange.between).map(|ops| with(&|exchange| exchange.between = ops.clone())),
    );
    all
}

fn flows(flow: &Flow) -> impl Iterator<Item = Flow> {
    let chunks = without(&flow.chunks).map(|chunks| Flow { chunks, ..flow.clone() });
    let whole = Flow { end: Ends::Whole, ..flow.clone() };
    let read = Flow { taken: None, ..flow.clone() };
    chunks.chain([whole, read])
}

fn talks(talk: &Talk) -> Vec<Talk> {
    match talk {
        Talk::Open(object, accept) => {
            let with = |change: &dyn Fn(&mut Accept)| {
                let mut changed = accept.clone();
                change(&mut changed);
                Talk::Open(*object, changed)
            };
            let mut all: Vec<_> = without(&accept.tags)
                .map(|tags| with(&|accept| accept.tags = tags.clone()))
                .collect();
            all.extend(turns(&accept.turn).map(|turn| with(&|accept| accept.turn = turn.clone())));
            all.extend(turns(&accept.end).map(|end| with(&|accept| accept.end = end.clone())));
            all
        }
        Talk::Send(bytes, binary, frames, turn) => {
            let send = |bytes, frames, turn| Talk::Send(bytes, *binary, frames, turn);
            let mut all: Vec<_> = turns(turn).map(|turn| send(*bytes, *frames, turn)).collect();
            if *frames > 1 {
                all.push(send(*bytes, 1, turn.clone()));
            }
            if *bytes > 9 {
                all.push(send(9, *frames, turn.clone()));
            }
            all
        }
        _ => Vec::new(),
    }
}

fn batches_of<T: Clone>(batches: &[Vec<T>]) -> impl Iterator<Item = Vec<Vec<T>>> {
    let mut all: Vec<_> = without(batches).collect();
    for (index, batch) in batches.iter().enumerate() {
        all.extend(without(batch).map(|batch| {
            let mut batches = batches.to_vec();
            batches[index] = batch;
            batches
        }));
    }
    all.into_iter()
}

fn turns(turn: &Turn) -> impl Iterator<Item = Turn> {
    let mut all: Vec<Turn> = lists(&turn.ops).map(|ops| Turn { ops, fate: turn.fate }).collect();
    if turn.fate != Fate::Fine {
        all.push(Turn { fate: Fate::Fine, ..turn.clone() });
    }
    all.into_iter()
}

fn lists(ops: &[Op]) -> impl Iterator<Item = Vec<Op>> {
    let mut all: Vec<Vec<Op>> = without(ops).collect();
    for (index, op) in ops.iter().enumerate() {
        let plainer: Vec<Op> = match op {
            Op::Transaction(inner, close) => {
                lists(inner).map(|inner| Op::Transaction(inner, *close)).collect()
            }
            Op::Section(inner) => lists(inner).map(Op::Section).collect(),
            Op::Beside(inner) => lists(inner).map(Op::Beside).collect(),
            Op::Ahead(read) => vec![(**read).clone()],
            Op::Call(object, turn) => turns(turn).map(|turn| Op::Call(*object, turn)).collect(),
            _ => Vec::new(),
        };
        all.extend(plainer.into_iter().map(|op| {
            let mut ops = ops.to_vec();
            ops[index] = op;
            ops
        }));
    }
    all.into_iter()
}

/// The list with halves, quarters and so on of it left out, down to single elements.
fn without<T: Clone>(list: &[T]) -> impl Iterator<Item = Vec<T>> {
    let mut all = Vec::new();
    let mut size = list.len();
    while size > 0 {
        for start in (0..list.len()).step_by(size) {
            let end = (start + size).min(list.len());
            all.push([&list[..start], &list[end..]].concat());
        }
        size /= 2;
    }
    all.into_iter()
}
