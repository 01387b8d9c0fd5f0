//! Draws plans: a seed decides once which kinds of trouble its life knows (swarm), then the rest.

use dormouse_engine::Limits;

use super::{At, Change, Close, End, Fate, Level, Op, Plan, Session, Step, Talk, Turn, Wait};
use crate::disk::DiskFaults;
use crate::net::NetFaults;
use crate::random::Random;

/// Clients of a process at most.
const CLIENTS: u64 = 5;
/// Operations planned for the last session, which nothing cuts short.
const LAST_OPS_MIN: usize = 240;

/// In what an operation stands.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Inside {
    Event,
    /// Nothing is asked of others.
    Section,
    /// And nothing waits.
    Transaction,
}

/// What a seed decides for its whole life.
pub(super) struct Swarm {
    pub(super) random: Random,
    level: Level,
    objects: u64,
    keys: u64,
    bytes_max: u64,
    odd_keys: bool,
    delete_all: bool,
    alarms: bool,
    transactions: bool,
    sections: bool,
    calls: bool,
    unconfirmed: bool,
    beside: bool,
    ahead: bool,
    pub(super) fates: bool,
    evictions: bool,
    compacts: bool,
    clock: bool,
    deletions: bool,
    bodies: bool,
    blocking: bool,
    pub(super) sockets: bool,
    /// Sockets that their objects read themselves, too.
    pub(super) live_sockets: bool,
    /// Clients that wait for minutes: retries of alarms come to their end.
    patient: bool,
    /// Alarms within milliseconds, and many changes of them: they meet what runs.
    eager: bool,
    pipelined: bool,
    resident: bool,
    large: bool,
}

impl Plan {
    /// The life of this seed.
    pub fn of(seed: u64) -> Self {
        Self::draw(seed, Random::new(seed))
    }

    /// The life that these bytes decide, for a fuzzer: each choice of the plan takes some of them.
    pub fn of_bytes(bytes: &[u8]) -> Self {
        Self::draw(0, Random::from_tape(bytes))
    }

    fn draw(seed: u64, mut random: Random) -> Self {
        // The stack has more to go wrong in; the engine alone sees more commits.
        let level = if random.one_in(3) { Level::Engine } else { Level::Stack };
        let faults = faults(&mut random);
        let tiny_caches = random.one_in(3);
        let mut flag = |odds| random.one_in(odds);
        let mut swarm = Swarm {
            level,
            odd_keys: flag(4),
            delete_all: flag(2),
            // Where commits are refused, retries of alarms are what goes on.
            alarms: flag(2) || faults.fails(),
            transactions: flag(2),
            sections: flag(3),
            calls: flag(2),
            unconfirmed: flag(3),
            beside: flag(4),
            ahead: flag(2),
            fates: flag(2),
            evictions: flag(2),
            compacts: flag(3),
            clock: flag(6),
            deletions: flag(3),
            bodies: flag(3),
            blocking: flag(3),
            sockets: flag(2) && level == Level::Stack,
            // They would hold what little room there is for good.
            live_sockets: flag(2) && !tiny_caches,
            patient: flag(4) || (faults.fails() && flag(2)),
            eager: flag(3),
            pipelined: flag(2),
            resident: flag(2),
            large: flag(3),
            objects: random.between(1, 6),
            keys: random.between(1, 24),
            bytes_max: [8, 100, 512][random.index(3)],
            random: random.fork(),
        };
        // Trees of which the cleaner moves a part at a time; or more data than a small disk holds.
        if level == Level::Engine && random.one_in(if faults.is_only_small() { 2 } else { 3 }) {
            let few = if faults.is_only_small() { 6 } else { 3 };
            swarm.objects = random.between(1, few);
            swarm.keys = random.between(24, 80);
            (swarm.bytes_max, swarm.delete_all) = (512, false);
        }
        let count = random.between(4, 10);
        let mut sessions: Vec<Session> = (0..count).map(|_| swarm.session()).collect();
        sessions.push(swarm.last_session());
        let mut alarms: Vec<Turn> = (0..4).map(|_| swarm.turn(0)).collect();
        if swarm.patient && random.one_in(2) {
            alarms.iter_mut().for_each(|turn| turn.fate = Fate::Error);
        }
        let cores = if level == Level::Stack { random.index(3) + 1 } else { 1 };
        let shards = u16::try_from(random.between(1, 3)).expect("small");
        let shards = if faults.is_only_small() { 1 } else { shards };
        let stalls = if random.one_in(4) { random.between(20, 400) } else { 0 };
        let late_wakes = if random.one_in(4) { random.between(2, 40) } else { 0 };
        let mailbox = if random.one_in(8) { random.index(4) + 1 } else { 0 };
        let damage = level == Level::Engine && random.one_in(3);
        let (net, tiny_sockets) = (net(&mut random), random.one_in(3));
        let (net, tiny_sockets) = match swarm.sockets {
            true => (net, tiny_sockets),
            false => (NetFaults::default(), false),
        };
        Self {
            seed,
            level,
            cores,
            shards,
            faults,
            stalls,
            late_wakes,
            mailbox,
            net,
            tiny_sockets,
            tiny_caches,
            damage,
            alarms,
            sessions,
        }
    }
}

fn faults(random: &mut Random) -> DiskFaults {
    let short_io = if random.one_in(3) { 10 } else { 0 };
    let slow_io = if random.one_in(5) { random.between(5, 100) } else { 0 };
    let (buffered, large_blocks) = (random.one_in(6), random.one_in(5));
    let fails = random.one_in(3);
    let mut error = |low, high| match fails && random.one_in(2) {
        true => random.between(low, high),
        false => 0,
    };
    let (write_error, read_error) = (error(20, 300), error(20, 300));
    // Syncs are rare: a segment and an opening need a few each.
    let sync_error = error(3, 40);
    let capacity = match fails && random.one_in(2) {
        true => random.between(100_000, 600_000),
        false => 0,
    };
    // Half of them are small and nothing else, so that what is promised of a full disk can be held to it.
    if capacity > 0 && random.one_in(2) {
        let capacity = random.between(160_000, 280_000);
        return DiskFaults { short_io, slow_io, buffered, capacity, ..DiskFaults::default() };
    }
    DiskFaults {
        short_io,
        slow_io,
        buffered,
        large_blocks,
        write_error,
        read_error,
        sync_error,
        capacity,
    }
}

fn net(random: &mut Random) -> NetFaults {
    NetFaults {
        pieces: if random.one_in(2) { random.between(1, 8) } else { 0 },
        late: if random.one_in(3) { random.between(2, 20) } else { 0 },
        room: if random.one_in(2) { random.index(1000) + 1 } else { 0 },
    }
}

impl Swarm {
    fn session(&mut self) -> Session {
        let clients =
            (0..self.random.between(1, CLIENTS)).map(|client| self.client(client)).collect();
        let end = match self.random.below(4) {
            0 => End::Close,
            1 => End::Kill,
            2 => End::PowerCut,
            _ => End::KillThenPowerCut(self.random.below(20)),
        };
        let at = match self.random.below(8) {
            _ if end == End::Close => At::Done,
            0..2 => At::Steps(self.random.between(1, 60)),
            2 => At::InFlight(self.random.between(1, 3)),
            _ => At::InFlight(self.random.between(1, 60)),
        };
        Session { clients, end, at }
    }

    fn last_session(&mut self) -> Session {
        let mut clients = vec![Vec::new(); usize::try_from(CLIENTS).expect("few")];
        let mut ops = 0;
        while ops < LAST_OPS_MIN {
            for (number, client) in (0..).zip(&mut clients) {
                let steps = self.client(number);
                ops += steps.iter().map(weight).sum::<usize>();
                client.extend(steps);
            }
        }
        Session { clients, end: End::Close, at: At::Done }
    }

    fn client(&mut self, number: u64) -> Vec<Step> {
        let steps = self.random.between(4, 12);
        match self.level {
            Level::Engine => (0..steps).map(|_| self.engine_step(number)).collect(),
            Level::Stack => {
                let mut open = [false; 2];
                (0..steps).map(|_| self.stack_step(&mut open)).collect()
            }
        }
    }

    pub(super) fn object(&mut self) -> u8 {
        u8::try_from(self.random.below(self.objects)).expect("few objects")
    }

    fn key(&mut self) -> u8 {
        if self.odd_keys && self.random.one_in(5) {
            return u8::try_from(self.random.between(250, 253)).expect("below 254");
        }
        u8::try_from(self.random.below(self.keys)).expect("few keys")
    }

    fn put(&mut self) -> (u8, u16, u8) {
        let bytes = match self.random.below(16) {
            0 => 0,
            1 => Limits::TINY.value_bytes_max as u64,
            _ => self.random.between(0, self.bytes_max),
        };
        let fill = u8::try_from(self.random.below(256)).expect("a byte");
        (self.key(), u16::try_from(bytes).expect("small"), fill)
    }

    fn engine_step(&mut self, client: u64) -> Step {
        // Each object belongs to one client, as it would to one cache.
        let object = client + CLIENTS * self.random.below(self.objects.div_ceil(2));
        let object = u8::try_from(object).expect("few objects");
        let count = self.random.between(1, 5);
        match self.random.below(10) {
            0..2 => Step::Load(object),
            2 => Step::CommitStale(object, self.batch()),
            3 if self.compacts => Step::Compact(object),
            _ if self.resident => {
                Step::CommitResident(object, (0..count).map(|_| self.batch()).collect())
            }
            _ => {
                let count = if self.pipelined { count } else { 1 };
                Step::Commit(object, (0..count).map(|_| self.batch()).collect())
            }
        }
    }

    fn batch(&mut self) -> Vec<Change> {
        let large = self.large && self.random.one_in(8);
        let count = if large { self.random.between(16, 60) } else { self.random.between(1, 5) };
        (0..count).map(|_| self.change()).collect()
    }

    pub(super) fn change(&mut self) -> Change {
        if self.alarms && self.eager && self.random.one_in(3) {
            return match self.random.below(3) {
                0 => Change::NoAlarm,
                _ => Change::Alarm(u32::try_from(self.random.below(3)).expect("small")),
            };
        }
        match self.random.below(24) {
            0 if self.delete_all => Change::DeleteAll(self.random.one_in(2)),
            1..4 if self.alarms => {
                Change::Alarm(u32::try_from(self.random.below(200)).expect("small"))
            }
            4 if self.alarms => Change::NoAlarm,
            5..11 => Change::Delete(self.key()),
            _ => {
                let (key, bytes, fill) = self.put();
                Change::Put(key, bytes, fill)
            }
        }
    }

    /// `open`: which of the client's sockets are.
    fn stack_step(&mut self, open: &mut [bool]) -> Step {
        if self.sockets && self.random.one_in(2) {
            let socket = self.random.index(open.len());
            let talk = self.talk(&mut open[socket]);
            return Step::Socket(u8::try_from(socket).expect("few"), talk);
        }
        let long = self.patient && self.random.one_in(2);
        let pause = self.random.below(if long { 400_000_000 } else { 3000 });
        let pause = u32::try_from(pause).expect("below an hour");
        match self.random.below(24) {
            0..2 if self.evictions => Step::Evict(self.object()),
            2 => Step::Pause(pause),
            3 if self.clock => {
                Step::Clock(i32::try_from(self.random.below(4000)).expect("small") - 2000)
            }
            4 if self.deletions => Step::Delete(self.object(), self.wait()),
            5..8 if self.bodies => Step::Fetch(self.object(), self.exchange()),
            _ => {
                let (turn, wait) = (self.turn(1), self.wait());
                Step::Call(self.object(), turn, wait)
            }
        }
    }

    fn wait(&mut self) -> Wait {
        match self.random.below(12) {
            0 => Wait::Never,
            1..5 if self.pipelined => Wait::Last,
            _ => Wait::Now,
        }
    }

    pub(super) fn turn(&mut self, depth: u32) -> Turn {
        let count = self.random.between(1, 8);
        let ops: Vec<_> = (0..count).map(|_| self.op(depth, Inside::Event)).collect();
        let fate = match self.random.below(12) {
            0 if self.fates => Fate::Error,
            1 if self.fates => Fate::Abort,
            2 if self.fates => Fate::Panic,
            _ => Fate::Fine,
        };
        self.ending(ops, fate)
    }

    /// `depth`: how many calls to others may be nested.
    pub(super) fn op(&mut self, depth: u32, within: Inside) -> Op {
        let inside = within != Inside::Event;
        let waits = within != Inside::Transaction;
        match self.random.below(32) {
            0..7 if self.ahead && self.random.one_in(2) => Op::Ahead(Box::new(self.read())),
            0..7 => self.read(),
            7 => Op::PutMany((0..self.random.between(1, 5)).map(|_| self.put()).collect()),
            8 => Op::DeleteMany((0..self.random.between(1, 5)).map(|_| self.key()).collect()),
            9 if self.alarms => Op::GetAlarm,
            10 if waits => Op::Sync,
            11..14 if waits => Op::Pause(u16::try_from(self.random.below(1500)).expect("small")),
            14..16 => Op::Increment(self.key()),
            16..18 if self.transactions => {
                let close = match self.random.below(9) {
                    0..4 => Close::Commit,
                    4..6 => Close::Rollback,
                    6..8 => Close::Fail,
                    _ => Close::Drop,
                };
                Op::Transaction(self.ops(4, Inside::Transaction), close)
            }
            18 if self.sections && !inside => Op::Section(self.ops(5, Inside::Section)),
            19 if self.beside && !inside => Op::Beside(self.ops(4, Inside::Section)),
            20 if self.calls && !inside && depth > 0 => {
                Op::Call(self.object(), self.turn(depth - 1))
            }
            21 if self.unconfirmed && !inside => {
                let (key, bytes, fill) = self.put();
                Op::Unconfirmed(key, bytes, fill)
            }
            22..25 if self.sockets && waits => self.socket_op(),
            25 if self.blocking && waits => Op::Work(self.work()),
            _ => match self.change() {
                // Not to be done in a transaction.
                Change::DeleteAll(_) if inside => Op::Get(self.key()),
                change => Op::Write(change),
            },
        }
    }

    /// Reads keys.
    fn read(&mut self) -> Op {
        match self.random.below(7) {
            0..4 => Op::Get(self.key()),
            4 => Op::GetMany((0..self.random.between(1, 5)).map(|_| self.key()).collect()),
            _ => {
                let (from, to) = (self.key(), self.key());
                let limit = u8::try_from(self.random.below(9)).expect("small");
                Op::List(from, to, limit, self.random.one_in(3))
            }
        }
    }

    fn ops(&mut self, max: u64, within: Inside) -> Vec<Op> {
        (0..self.random.between(1, max)).map(|_| self.op(0, within)).collect()
    }
}

/// Checked operations that a step brings at least.
fn weight(step: &Step) -> usize {
    match step {
        Step::Call(_, turn, _) | Step::Socket(_, Talk::Send(_, _, _, turn)) => 1 + turn.ops.len(),
        Step::Fetch(_, exchange) => 1 + exchange.turn.ops.len(),
        Step::Commit(_, batches) | Step::CommitResident(_, batches) => batches.len(),
        _ => 1,
    }
}
