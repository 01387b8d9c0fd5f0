//! Random lives of objects with sockets: clients that send, close and vanish, while objects are
//! evicted and reset, and the process is killed.
//!
//! Checked, always: a handler sees its client's messages in order, none lost and none twice, over
//! evictions, by a count in the socket's attachment; what a client receives is what it sent, in
//! order where the handler does not sleep; what an echo says is stored is stored after a crash; at
//! most one close event for a socket, with what the client sent, and exactly one where nothing was
//! reset. In the end everything that is connected has all its echoes.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::time::Duration;

use dormouse_engine::Host;
use dormouse_scheduler::prelude::*;
use dormouse_scheduler::{ClientSocket, Received, Topology};
use dormouse_sim::random::Random;
use dormouse_sim::{DiskFaults, Process, SimEnv, World};
use futures_util::FutureExt;
use serde::{Deserialize, Serialize};

use super::{STEPS, start};

const LIVES: u64 = 150;
const STEPS_OF_A_LIFE: u64 = 200;
const OBJECTS: u64 = 3;

thread_local! {
    /// Close events by client, and what was wrong.
    static CLOSES: RefCell<BTreeMap<u64, Vec<Closed>>> = const { RefCell::new(BTreeMap::new()) };
    static WRONG: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
}

fn wrong(text: String) {
    WRONG.with_borrow_mut(|all| all.push(text));
}

struct Talker {
    state: State,
}

/// Of one socket.
#[derive(Serialize, Deserialize)]
struct Count {
    client: u64,
    next: u64,
}

impl DurableObject for Talker {
    fn new(state: State) -> Self {
        for socket in state.web_sockets(None) {
            if socket.attachment::<Count>().ok().flatten().is_none() {
                wrong("a socket without its attachment woke".to_owned());
            }
        }
        Self { state }
    }

    async fn fetch(&self, request: Request) -> Result<Response> {
        let upgrade = request.web_socket_upgrade()?.expect("a socket is asked for");
        let client = request.uri().path().trim_start_matches('/').to_owned();
        let socket = self.state.accept_web_socket(&upgrade, [client.clone()])?;
        socket.set_attachment(&Count { client: client.parse().expect("a number"), next: 0 })?;
        Ok(upgrade.into_response())
    }

    async fn web_socket_message(&self, socket: &WebSocket, message: Message) -> Result<()> {
        let (n, how) = message.as_text().and_then(|text| text.split_once(' ')).expect("two words");
        let n: u64 = n.parse().expect("a number");
        let mut count: Count = socket.attachment()?.expect("it has one");
        if count.next != n || socket.tags() != [count.client.to_string()] {
            wrong(format!("{count:?} had tags {:?} and got {n}", socket.tags()));
        }
        count.next = n + 1;
        socket.set_attachment(&count)?;
        let key = count.client.to_string();
        match how {
            "sleep" => self.state.sleep(Duration::from_millis(2)).await,
            "put" => self.state.storage().put(&key, &n).await?,
            "get" => drop(self.state.storage().get::<u64>(&key).await?),
            _ => {}
        }
        socket.send(message)
    }

    async fn web_socket_close(&self, socket: &WebSocket, closed: Closed) -> Result<()> {
        let count: Count = socket.attachment()?.expect("it has one");
        CLOSES.with_borrow_mut(|all| all.entry(count.client).or_default().push(closed.clone()));
        if !self.state.web_sockets(None).contains(socket) {
            wrong(format!("{count:?} was not listed while it closed"));
        }
        // Some are never answered: they have to go by themselves.
        let answer = closed.was_clean && closed.code.is_multiple_of(2);
        if answer { socket.close(closed.code, &closed.reason) } else { Ok(()) }
    }
}

impl std::fmt::Debug for Count {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "client {} at {}", self.client, self.next)
    }
}

struct Abort;
impl Handler<Abort> for Talker {
    type Reply = ();
    async fn handle(&self, _abort: Abort) -> Result<()> {
        match self.state.abort("as asked").await {}
    }
}

/// The clients of the sockets that the object lists.
struct Listed;
impl Handler<Listed> for Talker {
    type Reply = Vec<u64>;
    async fn handle(&self, _listed: Listed) -> Result<Vec<u64>> {
        let sockets = self.state.web_sockets(None).into_iter();
        sockets.map(|socket| Ok(socket.attachment::<Count>()?.map_or(0, |c| c.client))).collect()
    }
}

struct Stored(u64);
impl Handler<Stored> for Talker {
    type Reply = Option<u64>;
    async fn handle(&self, Stored(client): Stored) -> Result<Option<u64>> {
        self.state.storage().get(&client.to_string()).await
    }
}

struct Client {
    number: u64,
    object: u64,
    /// None once it has vanished.
    socket: Option<ClientSocket>,
    sent: Vec<&'static str>,
    /// The next echo of a handler that does not sleep; echoes of those that do.
    next: usize,
    slept: u64,
    /// The last number that an echo says is stored.
    stored: Option<u64>,
    closing: Option<(u16, bool)>,
    /// Its object was reset, or its process killed: it may have lost anything.
    cut: bool,
    over: bool,
}

impl Client {
    /// Takes what has come.
    fn take(&mut self) {
        let Some(socket) = &self.socket else { return };
        while let Some(received) = socket.recv().now_or_never() {
            match received {
                Some(Received::Message(message)) => {
                    let text = message.as_text().expect("a text").to_owned();
                    let (n, how) = text.split_once(' ').expect("two words");
                    let n: usize = n.parse().expect("a number");
                    assert_eq!(self.sent[n], how, "client {}", self.number);
                    if how == "sleep" {
                        self.slept += 1;
                        continue;
                    }
                    while self.sent[self.next] == "sleep" {
                        self.next += 1;
                    }
                    assert_eq!(n, self.next, "client {} in order", self.number);
                    self.next += 1;
                    if how == "put" {
                        self.stored = Some(n as u64);
                    }
                }
                Some(Received::Close(close)) => {
                    assert_eq!(close.code, self.closing.map(|(code, _)| code));
                }
                Some(other) => panic!("{other:?}"),
                None => {
                    assert!(self.cut || self.closing.is_some(), "client {} is lost", self.number);
                    self.over = true;
                    return;
                }
            }
        }
    }
}

struct Life {
    world: World,
    process: Process,
    env: SimEnv,
    topology: Topology,
    random: Random,
    clients: Vec<Client>,
}

fn topology() -> Topology {
    Topology::builder().namespace::<Talker>("talkers").build(|| 1)
}

impl Life {
    fn new(seed: u64) -> Self {
        // A third of the lives have a slow disk, half of them cores that stand still at times.
        let slow_io = if seed.is_multiple_of(3) { 20 } else { 0 };
        let world = World::new(seed, DiskFaults { slow_io, ..DiskFaults::default() });
        if seed.is_multiple_of(2) {
            world.set_stalls(100);
            world.set_late_wakes(5);
        }
        let topology = topology();
        let (process, env) = start(&world, &topology);
        let random = Random::new(seed ^ 0x50_c4e7);
        Self { world, process, env, topology, random, clients: Vec::new() }
    }

    fn run<T: 'static>(&self, future: impl Future<Output = T> + 'static) -> T {
        let value = self.world.block_on(&self.env, STEPS, future);
        assert_eq!(self.world.take_panics(), [] as [String; 0]);
        value.expect("an answer")
    }

    fn stub(&self, object: u64) -> Stub<Talker> {
        self.topology.namespace().get_by_name(&object.to_string())
    }

    fn connect(&mut self) {
        let (number, object) = (self.clients.len() as u64, self.random.below(OBJECTS));
        let request = Request::get(format!("/{number}")).body(()).expect("a request");
        let response = self.run(self.stub(object).fetch(request.with_web_socket_upgrade()));
        let socket = response.expect("accepted").take_web_socket();
        self.clients.push(Client {
            number,
            object,
            socket,
            sent: Vec::new(),
            next: 0,
            slept: 0,
            stored: None,
            closing: None,
            cut: false,
            over: false,
        });
    }

    /// One that is connected, and has not closed.
    fn some_client(&mut self) -> Option<&mut Client> {
        let is_open = |client: &&mut Client| {
            client.socket.is_some() && client.closing.is_none() && !client.cut
        };
        let open = self.clients.iter_mut().filter(is_open).count();
        let chosen = self.random.index(open.max(1));
        self.clients.iter_mut().filter(is_open).nth(chosen)
    }

    fn step(&mut self) {
        match self.random.below(40) {
            0..4 => self.connect(),
            4..6 => {
                let object = self.random.below(OBJECTS);
                let (topology, id) = (self.topology.clone(), self.stub(object).id().clone());
                self.env.spawn("evict", async move { topology.evict(&id).await });
            }
            6 => {
                let clean = self.random.one_in(2);
                let code = u16::try_from(self.random.between(4000, 4999)).expect("a code");
                let Some(client) = self.some_client() else { return };
                client.closing = Some((code, clean));
                match clean {
                    true => client.socket.as_ref().expect("open").close(code, "").expect("sent"),
                    false => client.socket = None,
                }
            }
            9 => {
                let closed = |client: &&mut Client| client.closing.is_some_and(|(_, clean)| clean);
                if let Some(client) = self.clients.iter_mut().rfind(closed) {
                    client.socket = None;
                }
            }
            7 if self.random.one_in(4) => self.abort(),
            8 if self.random.one_in(4) => self.crash(),
            _ => {
                let how = ["plain", "put", "get", "sleep"][self.random.index(4)];
                let Some(client) = self.some_client() else { return };
                let text = format!("{} {how}", client.sent.len());
                let socket = client.socket.as_ref().expect("open");
                if let Some(sent) = socket.send(text).now_or_never() {
                    sent.expect("it is connected");
                    client.sent.push(how);
                }
            }
        }
        for _ in 0..self.random.below(60) {
            self.world.step();
        }
        self.clients.iter_mut().for_each(Client::take);
    }

    fn abort(&mut self) {
        let object = self.random.below(OBJECTS);
        self.run(self.stub(object).call(Abort)).expect_err("it is reset");
        for client in self.clients.iter_mut().filter(|client| client.object == object) {
            client.cut = true;
        }
    }

    fn crash(&mut self) {
        self.process.kill();
        for client in &mut self.clients {
            client.cut = true;
            client.take();
            assert!(client.socket.is_none() || client.over, "{} goes on", client.number);
            client.socket = None;
        }
        self.topology = topology();
        (self.process, self.env) = start(&self.world, &self.topology);
        for client in &self.clients {
            let stored = self.run(self.stub(client.object).call(Stored(client.number)));
            let stored = stored.expect("an answer");
            assert!(stored >= client.stored, "client {}: {stored:?}", client.number);
        }
    }

    /// Lets everything come to its end, and looks at it.
    fn end(mut self) -> (usize, usize) {
        self.world.set_faults(DiskFaults::default());
        self.world.set_stalls(0);
        self.world.set_late_wakes(0);
        self.run(self.env.sleep(Duration::from_secs(20)));
        self.clients.iter_mut().for_each(Client::take);
        for object in 0..OBJECTS {
            let listed = self.run(self.stub(object).call(Listed)).expect("an answer");
            let open = self.clients.iter().rev().filter(|client| {
                client.object == object && client.closing.is_none() && !client.cut
            });
            assert_eq!(listed, open.map(|client| client.number).collect::<Vec<_>>());
        }
        let closes = CLOSES.take();
        let mut echoes = 0;
        for client in &mut self.clients {
            let number = client.number;
            let told = closes.get(&number).map_or(&[][..], |told| told);
            assert!(told.len() <= 1, "client {number} closed more than once: {told:?}");
            match (told.first(), client.closing) {
                (Some(told), Some((code, true))) => {
                    assert_eq!((told.code, told.was_clean), (code, true))
                }
                (Some(told), Some((_, false))) => {
                    assert_eq!((told.code, told.was_clean), (1006, false))
                }
                (Some(told), None) => panic!("client {number} did not close: {told:?}"),
                (None, Some(_)) => {
                    assert!(client.cut, "client {number} closed, and nobody was told")
                }
                (None, None) => {}
            }
            if client.closing.is_none() && !client.cut {
                let sleepers = client.sent.iter().filter(|how| **how == "sleep").count();
                let rest = client.sent[client.next..].iter().filter(|how| **how != "sleep").count();
                assert_eq!((client.slept, rest), (sleepers as u64, 0), "client {number} has all");
                echoes += client.sent.len();
            }
        }
        (echoes, closes.len())
    }
}

#[test]
fn nothing_is_lost_or_twice_in_random_lives() {
    let (mut echoes, mut closes) = (0, 0);
    for seed in 0..LIVES {
        let mut life = Life::new(seed);
        for _ in 0..STEPS_OF_A_LIFE {
            life.step();
        }
        let (echoed, closed) = life.end();
        assert_eq!(WRONG.take(), [] as [String; 0], "seed {seed}");
        (echoes, closes) = (echoes + echoed, closes + closed);
    }
    assert!(echoes > 1000 && closes > 100, "{echoes} echoes, {closes} closes");
}
