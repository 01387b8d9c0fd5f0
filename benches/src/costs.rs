//! The operations whose costs are counted: those of which a program's life consists.

use std::str::FromStr;

use dormouse_engine::real::{DiskChoice, RealEnv};

use crate::counted::CountedEnv;
use crate::engine::{LIMITS, on_core, with_shard};
use crate::rounds::{Rounds, Span};
use crate::{cache, engine, scheduler};

/// Tasks of [`Op::Commit64`].
const CLIENTS: u64 = 64;
/// Keys of the hot object.
const KEYS: u32 = 100;

/// An operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// A durable commit of one key, by one task on the shard's core.
    Commit,
    /// The same by each of 64 tasks: a round is 64 of them.
    Commit64,
    /// Ten puts to a hot object in one turn, durable.
    Turn,
    /// An object of four keys that is not in memory, read whole.
    Activation,
    /// A get of a key of a hot object.
    Get,
    /// A call from one object to another on its core, and the reply.
    Call,
}

impl Op {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::Commit, Self::Commit64, Self::Turn, Self::Activation, Self::Get, Self::Call];

    /// As it is printed, and named on a command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Commit => "commit",
            Self::Commit64 => "commit-64",
            Self::Turn => "turn",
            Self::Activation => "activation",
            Self::Get => "get",
            Self::Call => "call",
        }
    }

    /// Operations in one round.
    pub const fn in_round(self) -> u64 {
        match self {
            Self::Commit64 => CLIENTS,
            _ => 1,
        }
    }

    /// Does rounds of it on a core and a store of its own; `read` runs on that core.
    pub fn run<R: Send + 'static>(
        self,
        disk: DiskChoice,
        rounds: Rounds,
        read: fn() -> R,
    ) -> Span<R> {
        match self {
            Self::Call => scheduler::calls(1, disk, rounds, read),
            _ => on_core(disk, move |env| self.run_on(env, rounds, read)),
        }
    }

    async fn run_on<R: 'static>(self, env: RealEnv, rounds: Rounds, read: fn() -> R) -> Span<R> {
        let env = CountedEnv::new(env);
        match self {
            Self::Activation => engine::activations(&env, rounds, read).await,
            Self::Turn => {
                let turns = async |cache: &_| cache::turns(cache, rounds, read).await;
                cache::with_cache(&env, LIMITS, KEYS, turns).await
            }
            Self::Get => {
                let gets = async |cache: &_| cache::gets(cache, KEYS / 2, rounds, read).await;
                cache::with_cache(&env, LIMITS, KEYS, gets).await
            }
            Self::Commit | Self::Commit64 | Self::Call => {
                let clients = self.in_round();
                let commits =
                    async |shard: &_| engine::commits(&env, shard, clients, rounds, read).await;
                with_shard(&env, LIMITS, commits).await
            }
        }
    }
}

impl FromStr for Op {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let known = || Self::ALL.map(Self::name).join(", ");
        let found = Self::ALL.into_iter().find(|op| op.name() == name);
        found.ok_or_else(|| format!("no such operation; there are {}", known()))
    }
}
