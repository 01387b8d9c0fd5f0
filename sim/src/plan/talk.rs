//! Draws what clients and objects do with sockets.

use super::generate::{Inside, Swarm};
use super::{Accept, Break, Fate, Leave, Op, Talk, To, Turn};

/// Different tags.
const TAGS: u64 = 3;
/// Different automatic responses.
const AUTOS: u64 = 2;

impl Swarm {
    /// What a client does with a socket that is open or not; whether it is afterwards.
    pub(super) fn talk(&mut self, open: &mut bool) -> Talk {
        if !std::mem::replace(open, true) {
            return self.open();
        }
        let talk = match self.random.below(32) {
            0..16 => self.send(),
            16..20 => Talk::Ask(self.auto()),
            20..22 => Talk::Ping(u8::try_from(self.random.below(126)).expect("small")),
            22..24 => self.close(),
            24..27 => Talk::Leave(match self.random.below(5) {
                0..2 => Leave::Finish,
                2..4 => Leave::Reset,
                _ => Leave::Silent,
            }),
            27 => Talk::Break(match self.random.below(5) {
                0 => Break::Unmasked,
                1 => Break::Unknown,
                2 => Break::NotUtf8,
                3 => Break::TooLong,
                _ => Break::Headless,
            }),
            28..30 => Talk::Hold,
            30 => Talk::Read,
            _ => self.open(),
        };
        *open = !matches!(talk, Talk::Close(..) | Talk::Leave(_) | Talk::Break(_));
        talk
    }

    fn open(&mut self) -> Talk {
        let live = self.live_sockets && self.random.one_in(3);
        let tags = (0..self.random.below(4)).map(|_| self.tag()).collect();
        let (mut turn, end) = (self.socket_turn(), self.socket_turn());
        if self.random.one_in(3) {
            turn.ops.push(Op::AutoResponse(Some(self.auto())));
        }
        Talk::Open(self.object(), Accept { live, tags, turn, end })
    }

    fn send(&mut self) -> Talk {
        let bytes = match self.random.below(8) {
            0 => self.random.between(100, 600),
            _ => self.random.below(40),
        };
        let frames = if self.random.one_in(4) { self.random.between(2, 5) } else { 1 };
        let bytes = u16::try_from(bytes).expect("small");
        let frames = u8::try_from(frames).expect("few");
        Talk::Send(bytes, self.random.one_in(4), frames, self.socket_turn())
    }

    fn close(&mut self) -> Talk {
        let reason = u8::try_from(self.random.below(30)).expect("small");
        match self.random.below(4) {
            0 => Talk::Close(0, 0),
            1 => Talk::Close(1000, reason),
            _ => Talk::Close(self.code(), reason),
        }
    }

    fn code(&mut self) -> u16 {
        u16::try_from(self.random.between(4000, 4999)).expect("a code")
    }

    fn auto(&mut self) -> u8 {
        u8::try_from(self.random.below(AUTOS)).expect("few")
    }

    fn tag(&mut self) -> u8 {
        u8::try_from(self.random.below(TAGS)).expect("few")
    }

    /// What an object does in an event of a socket: most often it answers.
    fn socket_turn(&mut self) -> Turn {
        let mut ops: Vec<Op> =
            (0..self.random.below(4)).map(|_| self.op(1, Inside::Event)).collect();
        if !self.random.one_in(4) {
            ops.push(self.say(To::This));
        }
        let fate = match self.random.below(24) {
            0..2 if self.fates => Fate::Error,
            2 if self.fates => Fate::Abort,
            3 if self.fates => Fate::Panic,
            _ => Fate::Fine,
        };
        self.ending(ops, fate)
    }

    /// A turn that ends so. Some that reset their object say something before, of which one part may leave and
    /// the other must not: what waits for a write goes on as the turn does that waits for it, too.
    pub(super) fn ending(&mut self, mut ops: Vec<Op>, fate: Fate) -> Turn {
        if self.sockets && matches!(fate, Fate::Abort | Fate::Panic) && self.random.one_in(2) {
            let write = Op::Write(self.change());
            let (before, after) = (self.say(To::All), self.say(To::All));
            ops.extend([write, before, Op::Sync, after]);
        }
        Turn { ops, fate }
    }

    fn say(&mut self, to: To) -> Op {
        let bytes = match self.random.below(8) {
            0 => self.random.between(100, 600),
            _ => self.random.below(60),
        };
        Op::Say(to, u16::try_from(bytes).expect("small"), self.random.one_in(4))
    }

    fn to(&mut self) -> To {
        match self.random.below(4) {
            0..2 => To::This,
            2 => To::Tag(self.tag()),
            _ => To::All,
        }
    }

    /// What an object does with its sockets, in any event.
    pub(super) fn socket_op(&mut self) -> Op {
        let to = self.to();
        match self.random.below(12) {
            0 => Op::Shut(to, self.code()),
            1..4 => {
                let bytes = u16::try_from(self.random.below(100)).expect("small");
                Op::Attach(to, bytes, u8::try_from(self.random.below(26)).expect("small"))
            }
            4..6 => Op::AutoResponse((!self.random.one_in(6)).then(|| self.auto())),
            _ => self.say(to),
        }
    }
}
