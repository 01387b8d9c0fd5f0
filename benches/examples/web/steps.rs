//! A round: what is done to each server, one after the other, before the next thing is done.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use tokio::runtime::Runtime;

use crate::client::{Connection, get_all};
use crate::generator::{self, MANY};
use crate::report::{Figures, summarize};
use crate::rows::{FLOORS, LOADS, Load, ROWS};
use crate::servers::{Kind, Server};
use crate::sockets::{self, Client};
use crate::{Args, Result};

/// Operations of a request that repeats one inside the object; worker.js has the same.
pub(crate) const REPEATED: usize = 100_000;
/// The object that most loads are about.
pub(crate) const HOT: &str = "/objects/hot";
/// Objects that are made one after the other, and then woken.
const CREATED: usize = 200;
/// How long it takes, some more, until an object that does nothing has left memory: 10 s with both.
const ASLEEP: Duration = Duration::from_secs(12);
/// Sockets that are opened at once, before and after memory is looked at.
const SOCKETS: usize = 500;

/// Objects that are made for the sake of memory: enough for a figure, and in a time in which none leaves.
fn live(kind: Kind) -> usize {
    if kind == Kind::Dormouse { 10_000 } else { 100 }
}

/// All that a round needs.
pub(crate) struct Round<'a> {
    pub(crate) runtime: &'a Runtime,
    pub(crate) args: &'a Args,
    /// In the order in which they are measured.
    pub(crate) servers: &'a [Server],
    pub(crate) figures: &'a mut Figures,
    pub(crate) step: &'a mut dyn FnMut(&str),
}

impl Round<'_> {
    fn wanted(&self, id: &str) -> bool {
        self.args.wanted(id)
    }

    fn objects(&self) -> impl Iterator<Item = &'_ Server> + use<'_> {
        self.servers.iter().filter(|server| server.kind != Kind::Floor)
    }

    /// All steps.
    pub(crate) fn run(&mut self) -> Result<()> {
        (self.step)("filling");
        for server in self.objects() {
            self.runtime.block_on(fill(server, self.wanted("increment-many")))?;
        }
        let made = self.make()?;
        self.loads()?;
        self.cached()?;
        self.echoes()?;
        self.wake(&made)
    }

    /// Makes objects: how long that takes, and what each takes in memory. Gives when the last was made.
    fn make(&mut self) -> Result<BTreeMap<Kind, Instant>> {
        let mut made = BTreeMap::new();
        if !["create", "live", "cold"].iter().any(|id| self.wanted(id)) {
            return Ok(made);
        }
        for server in self.servers.iter().filter(|server| server.kind != Kind::Floor) {
            (self.step)("making objects");
            let taken = self.runtime.block_on(create(server))?;
            if self.args.wanted("create") {
                self.figures.add("create", "p50", server.kind, median_ms(&taken)?);
            }
            if self.args.wanted("live") {
                let before = server.resident_bytes()?;
                let count = live(server.kind);
                let began = Instant::now();
                let paths = (0..count).map(|n| format!("/objects/live-{n}/put")).collect();
                self.runtime.block_on(get_all(server.address, paths, 64))?;
                let bytes = server.resident_bytes()?.saturating_sub(before);
                // After that some have left already.
                if began.elapsed() < Duration::from_secs(9) {
                    self.figures.add("live", "each", server.kind, bytes as f64 / count as f64);
                }
            }
            made.insert(server.kind, Instant::now());
        }
        Ok(made)
    }

    /// The loads, and the floors that are shown beside them.
    fn loads(&mut self) -> Result<()> {
        for floor in FLOORS {
            if ROWS.iter().any(|row| row.floor == Some(floor.id) && self.wanted(row.id)) {
                self.load(floor, |kind| kind == Kind::Floor)?;
            }
        }
        for load in LOADS {
            if self.wanted(load.id) {
                self.load(load, |kind| kind != Kind::Floor)?;
            }
        }
        Ok(())
    }

    fn load(&mut self, load: Load, of: impl Fn(Kind) -> bool) -> Result<()> {
        for server in self.servers.iter().filter(|server| of(server.kind)) {
            (self.step)(load.id);
            let (warm, measure) = (self.args.warm(), self.args.measure());
            let found = generator::run(self.runtime, server.address, load, warm, measure)?;
            self.figures.add(load.id, "rate", server.kind, found.rate);
            self.figures.add(load.id, "p50", server.kind, found.p50_us);
            self.figures.add(load.id, "p99", server.kind, found.p99_us);
        }
        Ok(())
    }

    /// Operations inside the object: so many in one request that the request does not count.
    fn cached(&mut self) -> Result<()> {
        for id in ["cached-get", "cached-put"] {
            for server in self.servers.iter().filter(|server| server.kind != Kind::Floor) {
                if self.args.wanted(id) {
                    (self.step)(id);
                    let path = format!("{HOT}/{id}");
                    let taken = self.runtime.block_on(async {
                        let mut connection = Connection::open(server.address).await?;
                        connection.get(&path).await?;
                        Result::Ok([connection.timed(&path).await?, connection.timed(&path).await?])
                    })?;
                    let each = taken.iter().sum::<Duration>().as_secs_f64() / 2.0 / REPEATED as f64;
                    self.figures.add(id, "each", server.kind, each * 1e6);
                }
            }
        }
        Ok(())
    }

    fn echoes(&mut self) -> Result<()> {
        for server in self.servers.iter().filter(|server| server.kind != Kind::Floor) {
            if self.args.wanted("echo") {
                (self.step)("echo");
                let (warm, measure) = (self.args.warm(), self.args.measure());
                let taken = sockets::echoes(server.address, warm, measure)?;
                self.figures.add("echo", "p50", server.kind, median_ms(&taken)? * 1e3);
            }
        }
        Ok(())
    }

    /// Wakes objects that have left memory.
    fn wake(&mut self, made: &BTreeMap<Kind, Instant>) -> Result<()> {
        if !self.wanted("cold") {
            return Ok(());
        }
        for server in self.servers.iter().filter(|server| server.kind != Kind::Floor) {
            (self.step)("cold");
            let made = made.get(&server.kind).ok_or("its objects were made")?;
            std::thread::sleep(ASLEEP.saturating_sub(made.elapsed()));
            let (first, second) = self.runtime.block_on(wake(server))?;
            let cold = median_ms(&first)? - median_ms(&second)?;
            self.figures.add("cold", "p50", server.kind, cold);
        }
        Ok(())
    }
}

/// What a socket takes whose object sleeps, by servers that did nothing else. Some are there before, so that what
/// their objects left is used again by those that count.
pub(crate) fn sleeping_sockets(servers: &[Server], figures: &mut Figures) -> Result<()> {
    let mut before = BTreeMap::new();
    let mut open: Vec<Client> = Vec::new();
    for batch in ["a", "b"] {
        for server in servers {
            for number in 0..SOCKETS {
                open.push(sockets::open(server.address, &format!("{batch}-{number}"))?);
            }
        }
        std::thread::sleep(ASLEEP);
        for server in servers {
            let bytes = server.resident_bytes()?;
            if let Some(before) = before.insert(server.kind, bytes) {
                let each = bytes.saturating_sub(before) as f64 / SOCKETS as f64;
                figures.add("sleeping", "each", server.kind, each);
            }
        }
    }
    Ok(())
}

/// Puts what the loads are about, and has the server do each thing once.
async fn fill(server: &Server, many: bool) -> Result<()> {
    let mut connection = Connection::open(server.address).await?;
    for operation in ["put", "get", "increment", "puts"] {
        connection.get(&format!("{HOT}/{operation}")).await?;
    }
    connection.get("/objects/listed/fill").await?;
    let many = if many { MANY } else { 0 };
    let paths = (0..many).map(|n| format!("/objects/many-{n}/increment")).collect();
    get_all(server.address, paths, 64).await
}

async fn create(server: &Server) -> Result<Vec<Duration>> {
    let mut connection = Connection::open(server.address).await?;
    let mut taken = Vec::with_capacity(CREATED);
    for number in 0..CREATED {
        taken.push(connection.timed(&format!("/objects/created-{number}/put")).await?);
    }
    Ok(taken)
}

/// The first and the second request of each object that was created.
async fn wake(server: &Server) -> Result<(Vec<Duration>, Vec<Duration>)> {
    let mut connection = Connection::open(server.address).await?;
    for _ in 0..100 {
        connection.get(&format!("{HOT}/get")).await?;
    }
    let (mut first, mut second) = (Vec::new(), Vec::new());
    for number in 0..CREATED {
        let path = format!("/objects/created-{number}/get");
        first.push(connection.timed(&path).await?);
        second.push(connection.timed(&path).await?);
    }
    Ok((first, second))
}

fn median_ms(taken: &[Duration]) -> Result<f64> {
    let taken: Vec<_> = taken.iter().map(|taken| taken.as_secs_f64() * 1e3).collect();
    Ok(summarize(&taken).ok_or("nothing was done in time")?.median)
}
