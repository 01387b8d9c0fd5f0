//! WebSockets and the output gate on the simulated machine: what a client sees is durable, in every
//! order that the seeds find (semantics.md §7.3; scenarios T-168, T-169, T-170, T-181).

mod common;
#[path = "sockets/lives.rs"]
mod lives;

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use dormouse_engine::{Host, Limits};
use dormouse_scheduler::prelude::*;
use dormouse_scheduler::{Call, ClientSocket, Received, SocketLimits, StackLimits, Topology};
use dormouse_sim::{DiskFaults, Process, SimEnv, World};
use futures_util::FutureExt;

const STEPS: u64 = 1_000_000;
const SEEDS: u64 = 60;

thread_local! {
    /// The number of the last write that an object made, and of the last that is durable.
    static WRITTEN: Cell<u64> = const { Cell::new(0) };
    static DURABLE: Cell<u64> = const { Cell::new(0) };
    /// Instances that were built.
    static BUILT: Cell<u64> = const { Cell::new(0) };
}

/// Writes a number, and says it.
struct Writer {
    state: State,
}

impl DurableObject for Writer {
    fn new(state: State) -> Self {
        BUILT.set(BUILT.get() + 1);
        Self { state }
    }

    async fn fetch(&self, request: Request) -> Result<Response> {
        let socket = request.web_socket_upgrade()?.expect("a socket is asked for");
        self.state.accept_web_socket(&socket, [""; 0])?;
        Ok(socket.into_response())
    }

    async fn web_socket_message(&self, socket: &WebSocket, message: Message) -> Result<()> {
        socket.send(message)
    }
}

impl Writer {
    /// Begins to write `n`.
    fn write(&self, n: u64) {
        drop(self.state.storage().put("n", &n));
        let state = self.state.clone();
        self.state.wait_until(async move {
            if state.storage().sync().await.is_ok() {
                DURABLE.set(n);
            }
        });
        WRITTEN.set(n);
    }
}

enum Do {
    /// Writes the number, sends it to all, and goes on at once.
    WriteAndSend(u64),
    /// The same, and closes with this code.
    WriteAndClose(u64, u16),
    Write(u64),
    Read,
    Send(&'static str),
    Auto(&'static str, &'static str),
}

impl Handler<Do> for Writer {
    type Reply = u64;

    async fn handle(&self, what: Do) -> Result<u64> {
        let sockets = self.state.web_sockets(None);
        match what {
            Do::WriteAndSend(n) => {
                self.write(n);
                sockets.iter().try_for_each(|socket| socket.send(n.to_string()))?;
                sockets.iter().try_for_each(|socket| socket.send("ungated"))?;
            }
            Do::WriteAndClose(n, code) => {
                self.write(n);
                sockets.iter().try_for_each(|socket| socket.close(code, ""))?;
            }
            Do::Write(n) => self.write(n),
            Do::Read => return Ok(self.state.storage().get("n").await?.unwrap_or(0)),
            Do::Send(text) => sockets.iter().try_for_each(|socket| socket.send(text))?,
            Do::Auto(request, response) => {
                self.state.set_web_socket_auto_response(Some((request, response)))?;
            }
        }
        Ok(sockets.len() as u64)
    }
}

/// A process of one core, which serves this topology.
fn start(world: &World, topology: &Topology) -> (Process, SimEnv) {
    let process = world.process();
    let env = process.core();
    let (core_env, serving) = (env.clone(), topology.clone());
    let opened = world.block_on(&env, STEPS, async move {
        common::serve(&core_env, &serving, 1, Limits::PRODUCTION, |ended| {
            ended.expect("closed in order")
        })
        .await;
    });
    opened.expect("the store opens");
    (process, env)
}

/// A machine with one process of one core.
struct Rig {
    world: World,
    process: Process,
    env: SimEnv,
    topology: Topology,
}

impl Rig {
    fn new(seed: u64) -> Self {
        Self::with(World::new(seed, DiskFaults::default()), SocketLimits::PRODUCTION)
    }

    fn with(world: World, sockets: SocketLimits) -> Self {
        WRITTEN.set(0);
        DURABLE.set(0);
        let limits = StackLimits { sockets, ..StackLimits::PRODUCTION };
        let topology =
            Topology::builder().namespace::<Writer>("writers").limits(limits).build(|| 1);
        let (process, env) = start(&world, &topology);
        Self { world, process, env, topology }
    }

    /// SIGKILL, and another process on the same disk.
    fn crash(self) -> Self {
        self.process.kill();
        Self::with(self.world, SocketLimits::PRODUCTION)
    }

    fn stub(&self, name: &str) -> Stub<Writer> {
        self.topology.namespace().get_by_name(name)
    }

    fn run<T: 'static>(&self, future: impl Future<Output = T> + 'static) -> T {
        let value = self.world.block_on(&self.env, STEPS, future);
        assert_eq!(self.world.take_panics(), [] as [String; 0]);
        value.expect("an answer")
    }

    fn connect(&self, name: &str) -> Rc<ClientSocket> {
        let request = Request::get("/").body(()).expect("a request").with_web_socket_upgrade();
        let response = self.run(self.stub(name).fetch(request)).expect("accepted");
        Rc::new(response.take_web_socket().expect("the client's end"))
    }

    fn call(&self, what: Do) -> u64 {
        self.run(self.stub("o").call(what)).expect("done")
    }

    fn recv(&self, client: &Rc<ClientSocket>) -> Option<Received> {
        let client = client.clone();
        self.run(async move { client.recv().await })
    }

    fn send(&self, client: &Rc<ClientSocket>, text: &'static str) {
        let client = client.clone();
        self.run(async move { client.send(text).await }).expect("sent");
    }

    fn evict(&self, name: &str) {
        let (topology, id) = (self.topology.clone(), self.stub(name).id().clone());
        self.run(async move { topology.evict(&id).await });
    }

    fn pass(&self, ms: u64) {
        self.run(self.env.sleep(Duration::from_millis(ms)));
    }

    /// Makes a call, and steps until the object's turn has written this number; it is not durable
    /// then.
    fn call_until_written(&self, what: Do, n: u64) -> Call<u64> {
        let call = self.stub("o").call(what);
        for _ in 0..STEPS {
            if WRITTEN.get() == n {
                return call;
            }
            self.world.step();
        }
        panic!("the object was not called");
    }
}

fn text(text: &str) -> Option<Received> {
    Some(Received::Message(text.into()))
}

/// T-169: whenever the process dies, what a client saw is there.
#[test]
fn a_frame_leaves_when_what_was_written_before_it_is_durable() {
    for seed in 0..SEEDS {
        let rig = Rig::new(seed);
        let client = rig.connect("o");
        let call = rig.call_until_written(Do::WriteAndSend(7), 7);
        assert_eq!(client.recv().now_or_never(), None, "seed {seed}: it is held");
        drop(call);
        assert_eq!(rig.recv(&client), text("7"));
        let rig = rig.crash();
        assert_eq!(rig.call(Do::Read), 7, "seed {seed}");
    }
}

/// T-169: a close frame waits as well, and all keep the order of the calls.
#[test]
fn frames_and_closes_keep_the_order_of_the_calls_behind_a_gate() {
    for seed in 0..SEEDS {
        let rig = Rig::new(seed);
        let client = rig.connect("o");
        let calls = [
            Do::WriteAndSend(1),
            Do::Send("between"),
            Do::WriteAndSend(2),
            Do::WriteAndClose(3, 4000),
        ];
        let calls = calls.map(|what| rig.stub("o").call(what));
        for expected in ["1", "ungated", "between", "2", "ungated"] {
            assert_eq!(rig.recv(&client), text(expected), "seed {seed}");
        }
        let Some(Received::Close(close)) = rig.recv(&client) else { panic!("a close frame") };
        assert_eq!(close.code, Some(4000));
        drop(calls);
        let rig = rig.crash();
        assert_eq!(rig.call(Do::Read), 3, "seed {seed}");
    }
}

/// T-168.
#[test]
fn an_auto_response_passes_a_closed_gate_but_no_frame_that_waits_at_it() {
    let mut before_the_write = 0;
    for seed in 0..SEEDS {
        let rig = Rig::new(seed);
        let client = rig.connect("o");
        rig.call(Do::Auto("ping", "pong"));
        let call = rig.call_until_written(Do::Write(1), 1);
        rig.send(&client, "ping");
        assert_eq!(rig.recv(&client), text("pong"));
        before_the_write += u64::from(DURABLE.get() == 0);
        rig.run(call).expect("done");

        let call = rig.call_until_written(Do::WriteAndSend(2), 2);
        rig.send(&client, "ping");
        for expected in ["2", "ungated", "pong"] {
            assert_eq!(rig.recv(&client), text(expected), "seed {seed}");
        }
        rig.run(call).expect("done");
    }
    assert!(before_the_write > 0, "the gate was never closed when it was passed");
}

/// T-170.
#[test]
fn a_failed_write_disconnects_and_what_waited_for_it_never_leaves() {
    for seed in 0..SEEDS {
        let rig = Rig::new(seed);
        let client = rig.connect("o");
        rig.world.set_faults(DiskFaults { write_error: 1, ..DiskFaults::default() });
        let call = rig.stub("o").call(Do::WriteAndSend(7));
        assert_eq!(rig.recv(&client), None, "seed {seed}");
        assert!(rig.run(call).expect_err("reset").reset());
        rig.world.set_faults(DiskFaults::default());
        let rig = rig.crash();
        assert_eq!(rig.call(Do::Send("nobody is there")), 0);
    }
}

/// an object that can't be read again loses its sockets, and nothing waits for ever.
#[test]
fn a_sleeping_object_that_cannot_be_read_is_disconnected() {
    for seed in 0..SEEDS {
        let rig = Rig::new(seed);
        let client = rig.connect("o");
        rig.call(Do::Write(7));
        rig.evict("o");
        rig.world.set_faults(DiskFaults { read_error: 1, ..DiskFaults::default() });
        rig.send(&client, "wake up");
        assert_eq!(rig.recv(&client), None, "seed {seed}");
        rig.world.set_faults(DiskFaults::default());
        assert_eq!(rig.call(Do::Read), 7, "the object itself is well");
        assert_eq!(rig.call(Do::Send("nobody is there")), 0);
    }
}

/// T-181: with a client that takes nothing for a while.
#[test]
fn a_response_that_waits_for_its_client_is_the_one_that_was_set_then() {
    let limits = SocketLimits { outgoing_bytes: 200, ..SocketLimits::PRODUCTION };
    let rig = Rig::with(World::new(1, DiskFaults::default()), limits);
    let client = rig.connect("o");
    rig.call(Do::Auto("ping", "old"));
    for _ in 0..4 {
        rig.send(&client, "ping");
    }
    rig.pass(10);
    rig.call(Do::Auto("ping", "new"));
    rig.send(&client, "ping");
    for expected in ["old", "old", "old", "old", "new"] {
        assert_eq!(rig.recv(&client), text(expected));
    }
}

/// T-158, T-159: ten seconds without an event, counted anew with each.
#[test]
fn a_frame_restarts_the_time_after_which_an_object_sleeps() {
    let rig = Rig::new(2);
    BUILT.set(0);
    let client = rig.connect("o");
    for (pass_ms, built) in [(9_900, 1), (9_900, 1), (9_900, 1), (10_100, 2), (9_900, 2)] {
        rig.pass(pass_ms);
        rig.send(&client, "x");
        assert_eq!(rig.recv(&client), text("x"));
        assert_eq!(BUILT.get(), built, "after {pass_ms} ms");
    }
}

/// The process dies: a client sees nothing more, and the next life knows of no socket.
#[test]
fn a_crash_ends_all_sockets() {
    let rig = Rig::new(3);
    let client = rig.connect("o");
    let rig = rig.crash();
    assert_eq!(rig.recv(&client), None);
    assert_eq!(rig.call(Do::Send("x")), 0);
}
