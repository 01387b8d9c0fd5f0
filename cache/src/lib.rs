//! The actor cache: what an object remembers, what it still owes the disk, and its gates.
