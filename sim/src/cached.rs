//! A client that goes through the actor cache, as an object will.
//!
//! The reference is told what the client *meant*, not what the cache made of it; a turn counts as
//! acknowledged when the output gate opens, for then an object's answer would leave.

use std::cell::RefCell;
use std::rc::Rc;

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use dormouse_cache::{ActorCache, AlarmToo, Backing, CacheLimits, List, Read, Write};
use dormouse_engine::{Batch, Contents, ObjectId, Resident, Shard, Ticket};

use crate::life::Shared;
use crate::random::Random;
use crate::world::SimEnv;

/// The engine beneath one object's cache; tells the reference when a turn's commit is submitted.
struct Submitting {
    shard: Shard<SimEnv>,
    id: ObjectId,
    shared: Rc<Shared>,
    meant: Rc<RefCell<Option<Batch>>>,
}

impl Backing for Submitting {
    type Ticket = Ticket;

    fn commit(&self, batch: &Batch, resident: &dyn Resident) -> dormouse_engine::Result<Ticket> {
        let ticket = self.shard.commit(&self.id, batch, Some(resident))?;
        if let Some(meant) = self.meant.borrow_mut().take() {
            self.shared.submitted(self.id, meant, ticket.version());
        }
        Ok(ticket)
    }
}

/// Some turns of one object, from its activation on.
pub(crate) async fn turns(
    env: &SimEnv,
    shard: &Shard<SimEnv>,
    id: ObjectId,
    shared: &Rc<Shared>,
    random: &mut Random,
    key_count: u64,
) -> Result<()> {
    let contents = shard.load(&id).await.context("activating")?;
    shared.observed(&id, &contents)?;
    let meant: Rc<RefCell<Option<Batch>>> = Rc::default();
    let backing =
        Submitting { shard: shard.clone(), id, shared: shared.clone(), meant: meant.clone() };
    let cache = ActorCache::new(env, backing, contents, CacheLimits::TINY);
    for _ in 0..random.between(1, 6) {
        let batch = turn(&cache, random, key_count).await?;
        *meant.borrow_mut() = Some(batch);
        cache.output_gate().wait().await.context("waiting at the output gate")?;
        // Nothing was committed if the turn changed nothing; the reference sees that it did not.
        if let Some(unchanged) = meant.borrow_mut().take() {
            shared.submitted(id, unchanged, cache.version());
        }
        shared.acknowledged(&id, cache.version());
        shared.count(true);
        let stored = shard.load(&id).await.context("reading what was flushed")?;
        shared.observed(&id, &stored)?;
        same(&cache, &stored).await?;
        shared.count(false);
    }
    Ok(())
}

/// One turn: some writes without a pause, each also noted in the batch that is returned.
async fn turn(
    cache: &ActorCache<SimEnv, Submitting>,
    random: &mut Random,
    key_count: u64,
) -> Result<Batch> {
    let mut meant = Batch::new();
    for _ in 0..random.between(1, 6) {
        let key = format!("key-{}", random.below(key_count));
        match random.below(12) {
            0 => {
                drop(cache.delete_all(AlarmToo::Keep, Write::default()));
                meant = meant.delete_all();
            }
            1 => {
                let at = random.between(1, 1 << 40);
                drop(cache.set_alarm(Some(at), Write::default()));
                meant = meant.set_alarm(at);
            }
            2 => {
                drop(cache.set_alarm(None, Write::default()));
                meant = meant.delete_alarm();
            }
            3..6 => {
                drop(cache.delete(key.as_bytes(), Write::default()));
                meant = meant.delete(key);
            }
            _ => {
                let fill = u8::try_from(random.below(4)).expect("below 4");
                let value = Bytes::from(vec![fill; random.index(60)]);
                drop(cache.put(key.as_bytes(), value.clone(), Write::default()));
                meant = meant.put(&key, &value);
                let read = cache.get(key.as_bytes(), Read::default()).await?;
                ensure!(read == Some(value), "{key}: a write is not seen in its own turn");
            }
        }
    }
    Ok(meant)
}

/// The cache shows what the engine holds.
async fn same(cache: &ActorCache<SimEnv, Submitting>, stored: &Contents) -> Result<()> {
    let pairs = cache.list(&List::all(), Read::default()).await.context("listing")?;
    let equal = pairs.len() == stored.map.len()
        && pairs.iter().zip(&stored.map).all(|((key, value), pair)| (key, value) == pair);
    ensure!(equal, "the cache lists {} keys, the engine {}", pairs.len(), stored.map.len());
    let alarm = cache.get_alarm(Read::default()).await?;
    ensure!(alarm == stored.alarm, "alarm {alarm:?} cached, {:?} stored", stored.alarm);
    Ok(())
}
