//! Frames over TCP between the nodes of a cluster.
//!
//! | module | what it is |
//! |---|---|
//! | [`wire`] | the codec: pure functions over byte slices |
//! | [`batch`] | one peer's frames of one round, encoded into one buffer |
//! | [`handshake`] | who may talk to whom: [`Hello`], [`Refusal`], the [`Gate`] that the driver provides |
//! | [`events`] | what the network tells the driver |
//! | [`quiet`] | saying the same thing only so often |
//! | [`snapshots`] | snapshots, each on a connection of its own |
//! | [`admin_messages`], [`admin_client`] | what operators' tools ask, and how they do; `admin_service` answers them |
//! | [`network`] | [`Network`]: the listener, one dialer per peer, the routes |
//!
//! All of one node's network runs on one thread, the driver's: every task is a local task, nothing is locked.
//!
//! The fast path: the driver encodes messages into each peer's [`batch::Batch`] and ends its round with
//! [`Network::flush`], which writes each batch at once from the driver's own turn. Only when a socket would block does
//! that connection's writer task finish the rest. No message has a task of its own, so a connection is one ordered
//! stream.

pub mod admin_client;
pub mod admin_messages;
mod admin_service;
mod backlog;
pub mod batch;
mod checked;
mod connection;
mod dialer;
pub mod events;
mod frames;
mod greet;
pub mod handshake;
mod listener;
pub mod network;
#[cfg(test)]
mod network_tests;
pub mod options;
mod peers;
pub mod quiet;
mod rate;
pub mod resolve;
pub mod snapshot_frames;
mod snapshot_receiver;
mod snapshot_sender;
pub mod snapshots;
pub mod wire;

pub use events::{Event, Events};
pub use handshake::{Gate, Held, Hello, Refusal, RefusalCode, Role};
pub use network::Network;
pub use options::Options;
pub use quiet::Quiet;
pub use resolve::Resolve;
pub use wire::Rejected;
