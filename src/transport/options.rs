//! What can be set about the network.

use std::rc::Rc;
use std::time::Duration;

use super::admin_messages::REQUEST_BYTES_MAX;
use super::resolve::{Resolve, SystemResolver};
use super::snapshot_frames::PIECE_BYTES_MAX;

/// Limits and times; the defaults are what one runs in production.
#[derive(Clone)]
pub struct Options {
    /// The largest frame's body, and what it may take in memory. The same on all nodes.
    pub frame_bytes_max: usize,
    /// A connection with more unsent bytes than this is dropped.
    pub backlog_bytes_max: usize,
    /// Readers wait while the driver has not taken more than this many bytes.
    pub unread_bytes_max: usize,
    /// Inbound connections without a handshake at once; the oldest is dropped for the next one.
    pub handshakes_max: usize,
    /// Of these, from one address (an IPv6 network of 64 bits counts as one).
    pub handshakes_per_address_max: usize,
    /// Inbound connections of one peer at once; the oldest is dropped for the next one.
    pub inbound_per_peer_max: usize,
    /// How long a handshake may take, on either side.
    pub handshake_timeout: Duration,
    /// How long looking up a name, or connecting to an address, may take.
    pub connect_timeout: Duration,
    /// The first pause before dialling again.
    pub redial_min: Duration,
    /// The longest pause before dialling again.
    pub redial_max: Duration,
    /// A connection is given up when its peer has acknowledged nothing for so long.
    pub silence_timeout: Duration,
    /// Bytes of snapshots that are sent in a second, to all peers together.
    pub snapshot_bytes_per_s: u64,
    /// Bytes of a snapshot in one frame; at most 128 KiB, and less where few may be sent in a second.
    pub snapshot_piece_bytes: usize,
    /// A snapshot that did not get on for so long is given up.
    pub snapshot_patience: Duration,
    /// Connections of operators' tools at once; of those that wait for nothing, the oldest makes room for the next.
    pub admin_connections_max: usize,
    /// The largest request of a tool.
    pub admin_request_bytes_max: usize,
    /// Requests of one tool that are under way at once; it is not read on meanwhile.
    pub admin_in_flight_max: usize,
    /// A tool that waits for nothing and asks nothing for so long, or does not read its answers, is cut off.
    pub admin_idle: Duration,
    /// The longest that a request of a tool is worked on, whatever it says.
    pub admin_timeout_max: Duration,
    /// Looks up addresses.
    pub resolver: Rc<dyn Resolve>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            frame_bytes_max: 64 << 20,
            backlog_bytes_max: 64 << 20,
            unread_bytes_max: 16 << 20,
            handshakes_max: 256,
            handshakes_per_address_max: 64,
            inbound_per_peer_max: 4,
            handshake_timeout: Duration::from_secs(5),
            connect_timeout: Duration::from_secs(3),
            redial_min: Duration::from_millis(50),
            redial_max: Duration::from_secs(2),
            silence_timeout: Duration::from_secs(5),
            snapshot_bytes_per_s: 64 << 20,
            snapshot_piece_bytes: PIECE_BYTES_MAX,
            snapshot_patience: Duration::from_secs(30),
            admin_connections_max: 16,
            admin_request_bytes_max: REQUEST_BYTES_MAX,
            admin_in_flight_max: 8,
            admin_idle: Duration::from_secs(60),
            admin_timeout_max: Duration::from_secs(3600),
            resolver: Rc::new(SystemResolver),
        }
    }
}
