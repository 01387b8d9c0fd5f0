//! A simulated machine with one core that serves a topology.

use dormouse_engine::Limits;
use dormouse_scheduler::Topology;
use dormouse_sim::{DiskFaults, SimEnv, World};

/// Steps in which whatever is run must end.
const STEPS: u64 = 4_000_000;

pub(crate) struct Machine {
    pub(crate) world: World,
    pub(crate) env: SimEnv,
    pub(crate) topology: Topology,
}

impl Machine {
    pub(crate) fn new(seed: u64, topology: Topology) -> Self {
        let world = World::new(seed, DiskFaults::default());
        let process = world.process();
        let machine = Self { env: process.core(), world, topology };
        let (core, topology) = (process.core(), machine.topology.clone());
        machine.run(async move {
            crate::common::serve(&core, &topology, 1, Limits::TINY, drop).await;
        });
        machine
    }

    pub(crate) fn run<T: 'static>(&self, future: impl Future<Output = T> + 'static) -> T {
        let value = self.world.block_on(&self.env, STEPS, future);
        assert_eq!(self.world.take_panics(), [] as [String; 0]);
        value.expect("it ends")
    }
}
