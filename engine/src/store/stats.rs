//! [`StoreStats`]: counters of a whole store, shard by shard and together.

use crate::shard::ShardStats;

/// Counters of a store: one message to each core and a few additions.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct StoreStats {
    /// The sums over all shards.
    pub total: ShardStats,
    /// Each shard's, by its number.
    pub shards: Vec<ShardStats>,
    /// Objects that are kept in memory.
    pub cached_objects: usize,
    /// Their bytes, of at most [`Options::cache_bytes`](super::Options::cache_bytes).
    pub cached_bytes: usize,
}

/// What one core knows of it.
pub(super) struct CoreStats {
    /// Its shards: each core has one in as many as there are cores.
    pub(super) shards: Vec<ShardStats>,
    pub(super) cached_objects: usize,
    pub(super) cached_bytes: usize,
}

impl StoreStats {
    /// Puts together what the cores say, in their order.
    pub(super) fn new(cores: &[CoreStats]) -> Self {
        let mut stats = Self::default();
        let count: usize = cores.iter().map(|core| core.shards.len()).sum();
        for number in 0..count {
            let shard = cores[number % cores.len()].shards[number / cores.len()].clone();
            stats.total.add(&shard);
            stats.shards.push(shard);
        }
        for core in cores {
            stats.cached_objects += core.cached_objects;
            stats.cached_bytes += core.cached_bytes;
        }
        stats
    }
}

impl ShardStats {
    fn add(&mut self, other: &Self) {
        // Whole, so that a new counter can't be forgotten here.
        let Self {
            objects,
            log_bytes,
            segments,
            segment_bytes,
            live_bytes,
            full_segment_bytes,
            cleaning,
            cleaned_bytes,
            segments_cleaned,
            moves_overtaken,
            trees_searched,
            trees_updated,
            segments_freed,
            segments_recycled,
            checkpoints,
            runs,
            reserve_bytes,
            full,
            recovery,
        } = other;
        self.objects += objects;
        self.log_bytes += log_bytes;
        self.segments += segments;
        self.segment_bytes += segment_bytes;
        self.live_bytes += live_bytes;
        self.full_segment_bytes += full_segment_bytes;
        self.cleaning |= cleaning;
        self.cleaned_bytes += cleaned_bytes;
        self.segments_cleaned += segments_cleaned;
        self.moves_overtaken += moves_overtaken;
        self.trees_searched += trees_searched;
        self.trees_updated += trees_updated;
        self.segments_freed += segments_freed;
        self.segments_recycled += segments_recycled;
        self.checkpoints += checkpoints;
        self.runs += runs;
        self.reserve_bytes += reserve_bytes;
        self.full |= full;
        self.recovery.add(recovery);
    }
}
