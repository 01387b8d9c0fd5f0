//! Every bound of the engine, in one value: [`Limits::PRODUCTION`] for use, [`Limits::TINY`] to
//! make tests pass through every edge within milliseconds.

use std::time::Duration;

use crate::format::checkpoint::NAMESPACE_BYTES;

/// Bounds of one store. Those marked *format* are fixed when a store is created.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of a key.
    pub key_bytes_max: usize,
    /// Bytes of a value.
    pub value_bytes_max: usize,
    /// Bytes of operations in one commit; above it nothing is written.
    pub commit_bytes_max: usize,
    /// Bytes that one object may hold: a commit that brings something, after which there would be more, is refused
    /// (`NoSpace`, `object-full`); [`u64::MAX`] for no bound. Of an object whose keys the caller holds all
    /// ([`crate::Resident`], as the actor cache does for its objects) these are the bytes of keys and values and 7 for each key,
    /// after the commit. Of another they are those of the frames of the log that it needs before the commit, and of
    /// the commit's operations: so what was overwritten counts until the object is written as one image,
    /// which begins when a commit is refused for it.
    pub object_bytes_max: u64,
    /// Bytes of one batch, header and tables included. A larger commit is written in parts.
    pub batch_bytes_max: usize,
    /// Bytes of keys and values up to which an object is written as one image; a larger one is a tree.
    pub image_bytes_max: usize,
    /// Bytes of a page of a tree, but for a single large entry. A value of more than a quarter lies in a
    /// frame of its own.
    pub page_bytes: usize,
    /// Bytes of operations that wait in the root of a tree before they go into its pages.
    pub root_ops_bytes: usize,
    /// Bytes of pages and values of a tree that are written anew at a time, and what is begun: core and queue are others' too.
    pub rewrite_bytes_max: usize,
    /// Bytes of frames that wait for the device; above it commits are refused (`Overloaded`).
    pub queue_bytes_max: usize,
    /// Bytes of the first segments of a shard.
    pub segment_bytes_min: u32,
    /// Bytes that segments double up to as the shard grows.
    pub segment_bytes_max: u32,
    /// Bytes in front of the log that are written over before small batches go there.
    pub ahead_bytes: u32,
    /// Full segments of a shard that are open at most; others are opened when they are read.
    pub open_segments_max: usize,
    /// Alignment and unit of batches in bytes (*format*). At least what the disk needs.
    pub block_bytes: usize,
    /// Bytes of the log after which a checkpoint is made.
    pub checkpoint_bytes: u64,
    /// Bytes of the log behind the last checkpoint above which it waits for the next one, if one is
    /// being made: what recovery replays at most, and a batch or two.
    pub replay_bytes_max: u64,
    /// Bytes of each slot of a new manifest: it bounds the segments that a shard may have.
    pub manifest_slot_bytes: usize,
    /// Runs of about one size that are merged into one: the more, the less is written over and over, and
    /// the more runs there are to look into.
    pub merge_runs: usize,
    /// Runs at most; the youngest are merged whatever their size where there would be more, and checkpoints wait
    /// for that.
    pub runs_max: usize,
    /// Bytes of full segments for 100 live bytes above which the cleaner works in a lull.
    pub space_percent: u64,
    /// Bytes of full segments that there may be beyond.
    pub space_slack_bytes: u64,
    /// Likewise, but above which it works beside commits too.
    pub busy_space_percent: u64,
    /// Likewise.
    pub busy_space_slack_bytes: u64,
    /// A lull is a time as long as this in which less than [`Limits::lull_bytes`] were committed.
    pub lull: Duration,
    /// See [`Limits::lull`].
    pub lull_bytes: u64,
    /// How long commits stay in the log, whatever becomes of their objects, so that history shows them: a
    /// segment goes, and what is live in it moves, only when its newest commit is older.
    pub retention: Duration,
    /// How long the log stays quiet before a close record vouches for its end.
    pub quiet: Duration,
    /// How long opening waits for the locks of another or dead process (E8).
    pub lock_wait: Duration,
}

/// Bytes of a frame but for its payload, at most, and of the batch that it is in.
pub(crate) const FRAME_BYTES_MAX: usize = 6656;

impl Limits {
    /// For use.
    pub const PRODUCTION: Self = Self {
        key_bytes_max: 2048,
        value_bytes_max: 131_072,
        commit_bytes_max: 48 << 20,
        object_bytes_max: u64::MAX,
        batch_bytes_max: 512 << 10,
        image_bytes_max: 128 << 10,
        page_bytes: 4 << 10,
        root_ops_bytes: 32 << 10,
        rewrite_bytes_max: 8 << 20,
        queue_bytes_max: 128 << 20,
        // With two shards, of two segments each, an empty store stays below 4 MiB.
        segment_bytes_min: 896 << 10,
        segment_bytes_max: 64 << 20,
        ahead_bytes: 1 << 20,
        open_segments_max: 256,
        block_bytes: 4096,
        checkpoint_bytes: 1 << 20,
        replay_bytes_max: 2 << 20,
        manifest_slot_bytes: 64 << 10,
        merge_runs: 4,
        runs_max: 32,
        space_percent: 135,
        space_slack_bytes: 8 << 20,
        busy_space_percent: 200,
        busy_space_slack_bytes: 64 << 20,
        lull: Duration::from_millis(100),
        lull_bytes: 64 << 10,
        retention: Duration::ZERO,
        quiet: Duration::from_millis(10),
        lock_wait: Duration::from_secs(10),
    };

    /// For tests: a handful of batches fill a segment, a few keys fill a batch.
    pub const TINY: Self = Self {
        key_bytes_max: 64,
        value_bytes_max: 512,
        commit_bytes_max: 64 << 10,
        object_bytes_max: u64::MAX,
        batch_bytes_max: 8 << 10,
        image_bytes_max: 1 << 10,
        page_bytes: 256,
        root_ops_bytes: 512,
        rewrite_bytes_max: 4 << 10,
        queue_bytes_max: 256 << 10,
        segment_bytes_min: 16 << 10,
        segment_bytes_max: 64 << 10,
        ahead_bytes: 8 << 10,
        open_segments_max: 3,
        block_bytes: 512,
        checkpoint_bytes: 12 << 10,
        replay_bytes_max: 32 << 10,
        manifest_slot_bytes: 8 << 10,
        merge_runs: 2,
        runs_max: 4,
        space_percent: 135,
        space_slack_bytes: 16 << 10,
        busy_space_percent: 150,
        busy_space_slack_bytes: 24 << 10,
        lull: Duration::from_micros(500),
        lull_bytes: 2 << 10,
        retention: Duration::ZERO,
        quiet: Duration::from_millis(10),
        lock_wait: Duration::from_secs(1),
    };

    /// Namespaces of a shard whose bytes are counted: more would not fit a quarter of a manifest's slot. An object
    /// of a further one counts for none, and no bound holds it.
    pub(crate) const fn namespaces_max(&self) -> usize {
        self.manifest_slot_bytes / 4 / NAMESPACE_BYTES
    }

    /// Checks the relations between the bounds that the code relies on.
    ///
    /// # Panics
    /// If one does not hold.
    pub const fn check(&self) {
        assert!(self.block_bytes.is_power_of_two());
        assert!(self.block_bytes >= 512 && self.block_bytes <= 4096);
        assert!(self.batch_bytes_max.is_multiple_of(self.block_bytes));
        assert!((self.segment_bytes_min as usize).is_multiple_of(self.block_bytes));
        // The header block, and a largest batch.
        assert!(self.segment_bytes_min as usize >= self.block_bytes + self.batch_bytes_max);
        assert!(self.segment_bytes_min <= self.segment_bytes_max);
        assert!(self.segment_bytes_max.is_power_of_two());
        assert!(self.ahead_bytes > 0);
        assert!(self.key_bytes_max <= u16::MAX as usize);
        // Any one operation fits in a batch, beside everything else that a frame may carry.
        assert!(
            self.key_bytes_max + self.value_bytes_max + FRAME_BYTES_MAX <= self.batch_bytes_max
        );
        // So does an image, and the root of a tree with twice the operations that may wait there.
        assert!(self.image_bytes_max + FRAME_BYTES_MAX <= self.batch_bytes_max);
        let root = self.page_bytes + 2 * self.key_bytes_max + 2 * self.root_ops_bytes;
        assert!(root + FRAME_BYTES_MAX <= self.batch_bytes_max);
        assert!(self.page_bytes >= 256 && self.page_bytes <= self.image_bytes_max);
        assert!(self.rewrite_bytes_max > 0);
        assert!(self.checkpoint_bytes <= self.replay_bytes_max);
        assert!(self.manifest_slot_bytes.is_multiple_of(4096) && self.manifest_slot_bytes > 0);
        assert!(self.merge_runs > 1 && self.runs_max > 2 && self.open_segments_max > 0);
        assert!(self.space_percent > 100 && self.busy_space_percent >= self.space_percent);
        assert!(self.commit_bytes_max <= self.queue_bytes_max);
    }
}

const _: () = Limits::PRODUCTION.check();
const _: () = Limits::TINY.check();
