//! The hot paths, set up as small as they can be: `hot_paths` times them, `instructions` counts what they take.
//!
//! Each is driven in batches, as the driver drives it: what came in since the last round is one batch.

#![allow(dead_code)] // each of the two uses a part

pub mod engines;
pub mod frames;
pub mod logs;
pub mod queues;

/// Bytes of a value.
pub const VALUE: [u8; 64] = [0x5a; 64];
