//! A process of one core on a simulated machine.

use dormouse_engine::{Host, Limits, StoreLock};
use dormouse_scheduler::{Result, Topology};
use dormouse_sim::SimEnv;

/// Opens the store, or makes one of so many shards, and serves it on `core`, which keeps it locked; `ended`
/// gets how that ends.
pub(crate) async fn serve(
    core: &SimEnv,
    topology: &Topology,
    shards: u16,
    limits: Limits,
    ended: impl FnOnce(Result<()>) + 'static,
) {
    let lock = StoreLock::open_or_create(core, &limits, shards).await.expect("a store");
    let serving = topology.open(core, 0, lock.superblock(), limits).await.expect("a core");
    core.spawn("core", async move {
        ended(serving.serve().await);
        drop(lock);
    });
}
