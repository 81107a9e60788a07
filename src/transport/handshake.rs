//! Who may talk to whom: what two nodes tell each other before anything else.
//!
//! The dialer opens with its [`Hello`]; the acceptor answers with its own (a Welcome) or with a [`Refusal`]; the dialer
//! checks the Welcome, and confirms or refuses in turn. Both sides log a refusal.

use std::future::Future;
use std::pin::Pin;

use super::wire::{
    begin, cut, end, printable, put_string, put_words, Fields, Kind, WireError, HANDSHAKE_BYTES_MAX, HANDSHAKE_FORMAT,
    PROTOCOL_VERSION, PROTOCOL_VERSION_MIN,
};
use crate::engine::NodeId;
use crate::storage::snapshot::SnapshotName;

/// What a connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Role {
    /// A node of the cluster.
    Peer = 1,
    /// A client outside the cluster (no build serves them yet).
    Client = 2,
    /// An operator's tool, [`super::admin_messages`]. It is no node, so `from` is 0.
    Admin = 3,
    /// A node of the cluster that sends one snapshot, on a connection of its own.
    Snapshot = 4,
    /// Whoever wants to become a node of the cluster, and may ask for nothing else. It is no node yet, so `from` is 0.
    Join = 5,
}

impl Role {
    fn from_byte(byte: u8) -> Option<Self> {
        Some(match byte {
            1 => Self::Peer,
            2 => Self::Client,
            3 => Self::Admin,
            4 => Self::Snapshot,
            5 => Self::Join,
            _ => return None,
        })
    }

    /// It asks, and is no node.
    pub(super) fn is_tool(self) -> bool {
        matches!(self, Self::Admin | Self::Join)
    }

    /// In what role a node answers one who dials in this one; another one if it does not serve it.
    pub(super) fn answered(self) -> Self {
        match self {
            Self::Snapshot => Self::Snapshot,
            Self::Admin => Self::Admin,
            Self::Join => Self::Join,
            Self::Peer | Self::Client => Self::Peer,
        }
    }
}

/// What a node's disk held when it started. It is never less than what the node has said to anybody before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Held {
    /// Its term.
    pub term: u64,
    /// Whom it voted for in that term; 0 is nobody.
    pub vote: NodeId,
    /// The last index in its log.
    pub last_index: u64,
}

/// What a node says about itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hello {
    /// The cluster's name.
    pub cluster: String,
    /// The random number drawn when the cluster was formed; 0 while it is not.
    pub lineage: u128,
    /// Bumped by whatever replaces the cluster's membership by force (rule M3).
    pub incarnation: u64,
    /// Who speaks.
    pub from: NodeId,
    /// To whom it means to speak.
    pub to: NodeId,
    /// The random number of the speaker's data directory (rule M1).
    pub identity: u128,
    /// The speaker's boot counter (rule S2).
    pub boot: u64,
    /// The random number of this start (rule S2).
    pub nonce: u64,
    /// The nonces of the starts before, the latest first, as far as the speaker knows them (rule S2).
    pub earlier: Vec<u64>,
    /// What the connection is for.
    pub role: Role,
    /// Where the speaker says it can be dialled.
    pub advertise: String,
    /// The engine's own bytes about forming the cluster.
    pub formation: Vec<u8>,
    /// What its disk held when it started (rule S2).
    pub held: Held,
}

/// Why a connection is refused, for programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum RefusalCode {
    /// The handshake itself is damaged.
    Malformed,
    /// No protocol version in common.
    Version,
    /// Another cluster's name.
    Cluster,
    /// Another cluster of the same name.
    Lineage,
    /// One side belongs to a membership that was replaced by force.
    Incarnation,
    /// The dialled node has another id than the dialer thinks.
    WrongNode,
    /// Both ends are the same node, or claim to be.
    SelfConnection,
    /// Not, or no longer, a member.
    NotAMember,
    /// A known id with another data directory.
    Identity,
    /// An earlier boot, or the same boot of another start.
    Boot,
    /// The cluster is not formed the same way on both sides.
    Formation,
    /// A role that this node does not serve.
    Role,
    /// A later start, without what an earlier one had on its disk.
    Forgotten,
    /// A snapshot that is not wanted, or cannot be kept.
    Snapshot,
    /// Was a member, and was removed.
    Removed,
    /// So many others are served that there is no room.
    Busy,
    /// Any other reason.
    Other(u16),
}

impl RefusalCode {
    const NAMED: [Self; 16] = [
        Self::Malformed,
        Self::Version,
        Self::Cluster,
        Self::Lineage,
        Self::Incarnation,
        Self::WrongNode,
        Self::SelfConnection,
        Self::NotAMember,
        Self::Identity,
        Self::Boot,
        Self::Formation,
        Self::Role,
        Self::Forgotten,
        Self::Snapshot,
        Self::Removed,
        Self::Busy,
    ];

    fn number(self) -> u16 {
        match self {
            Self::Other(number) => number,
            named => Self::NAMED.iter().position(|code| *code == named).map_or(0, |at| at as u16 + 1),
        }
    }

    fn from_number(number: u16) -> Self {
        let at = usize::from(number).checked_sub(1);
        at.and_then(|at| Self::NAMED.get(at)).copied().unwrap_or(Self::Other(number))
    }
}

/// Why a connection is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct Refusal {
    /// For programs.
    pub code: RefusalCode,
    /// For people: what is wrong and what to do.
    pub reason: String,
}

impl Refusal {
    /// A refusal with its reason.
    pub fn new(code: RefusalCode, reason: impl Into<String>) -> Self {
        Self { code, reason: reason.into() }
    }
}

/// The policy, given by the driver. Asked on both sides of every connection, on the driver's thread, between two of
/// the driver's own turns (never while the driver calls into the network).
pub trait Gate {
    /// What this node says to `to`. To a node that dialled, this is asked before it is admitted: `to` is then only
    /// what it claims to be.
    fn hello(&self, to: NodeId) -> Hello;

    /// Whether the other side of a connection may talk to this node.
    ///
    /// # Errors
    /// Why not; the other side is told.
    fn admit(&self, hello: &Hello) -> Result<(), Refusal>;

    /// Whether an operator's tool may ask and command this node; it runs on this machine if `is_local`. It is asked instead
    /// of [`Gate::admit`]: a tool has no identity, and nothing of it is remembered.
    ///
    /// # Errors
    /// Why not; the tool is told.
    fn admit_admin(&self, hello: &Hello, is_local: bool) -> Result<(), Refusal>;

    /// Whether another member is reached where `peer` was: it has taken its place.
    fn is_replaced(&self, _peer: NodeId) -> bool {
        false
    }

    /// Ready when this node will know the admitted start of the other side again, even if it is started again itself.
    /// Nothing of the other side is answered before.
    fn remembered<'a>(&'a self, _hello: &'a Hello) -> Pin<Box<dyn Future<Output = ()> + 'a>> {
        Box::pin(std::future::ready(()))
    }

    /// Whether this node takes a snapshot of this name from `from`, which was admitted. Asked before any of it comes.
    ///
    /// # Errors
    /// Why not; `from` is told.
    fn admit_snapshot(&self, from: NodeId, name: &SnapshotName) -> Result<(), Refusal>;
}

/// A [`Hello`] with the protocol versions that its sender speaks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Greeting {
    /// Who speaks.
    pub hello: Hello,
    /// Oldest protocol version.
    pub version_min: u8,
    /// Newest protocol version.
    pub version_max: u8,
}

impl Greeting {
    /// This build's greeting.
    pub fn new(hello: Hello) -> Self {
        Self { hello, version_min: PROTOCOL_VERSION_MIN, version_max: PROTOCOL_VERSION }
    }

    /// The newest version that both this build and the greeting's sender speak.
    ///
    /// # Errors
    /// There is none.
    pub fn common_version(&self) -> Result<u8, Refusal> {
        let newest = self.version_max.min(PROTOCOL_VERSION);
        if newest >= self.version_min.max(PROTOCOL_VERSION_MIN) {
            return Ok(newest);
        }
        let (theirs_min, theirs_max) = (self.version_min, self.version_max);
        Err(Refusal::new(
            RefusalCode::Version,
            format!(
                "node {} speaks protocol versions {theirs_min} to {theirs_max} and this node {PROTOCOL_VERSION_MIN} to \
                 {PROTOCOL_VERSION}: upgrade the older one",
                self.hello.from
            ),
        ))
    }
}

/// Encodes a whole Hello or Welcome frame.
///
/// # Errors
/// It is larger than a handshake may be.
pub fn encode_greeting(kind: Kind, greeting: &Greeting) -> Result<Vec<u8>, WireError> {
    let hello = &greeting.hello;
    let mut buffer = Vec::with_capacity(256);
    let start = begin(&mut buffer, HANDSHAKE_FORMAT, kind, 0);
    buffer.extend_from_slice(&[greeting.version_min, greeting.version_max, hello.role as u8]);
    buffer.extend_from_slice(&hello.lineage.to_le_bytes());
    buffer.extend_from_slice(&hello.identity.to_le_bytes());
    for word in [hello.incarnation, hello.from, hello.to, hello.boot, hello.nonce] {
        buffer.extend_from_slice(&word.to_le_bytes());
    }
    put_string(&mut buffer, hello.cluster.as_bytes());
    put_string(&mut buffer, hello.advertise.as_bytes());
    put_string(&mut buffer, &hello.formation);
    for word in [hello.held.term, hello.held.vote, hello.held.last_index] {
        buffer.extend_from_slice(&word.to_le_bytes());
    }
    put_words(&mut buffer, &hello.earlier);
    end(&mut buffer, start, HANDSHAKE_BYTES_MAX)?;
    Ok(buffer)
}

/// Encodes a whole Confirm frame.
///
/// # Errors
/// There are none.
pub fn encode_confirm() -> Result<Vec<u8>, WireError> {
    let mut buffer = Vec::new();
    let start = begin(&mut buffer, HANDSHAKE_FORMAT, Kind::Confirm, 0);
    end(&mut buffer, start, 0)?;
    Ok(buffer)
}

/// Reads the body of a Hello or Welcome frame. Bytes behind the known fields are a newer build's and are ignored.
///
/// # Errors
/// Fields are missing or damaged.
pub fn decode_greeting(kind: Kind, body: &[u8]) -> Result<Greeting, WireError> {
    let read = || {
        let mut fields = Fields { rest: body };
        let (version_min, version_max, role) = (fields.u8()?, fields.u8()?, fields.u8()?);
        let Some(role) = Role::from_byte(role) else { return Some(Err(role)) };
        // In the order in which they stand there.
        let hello = Hello {
            role,
            lineage: fields.u128()?,
            identity: fields.u128()?,
            incarnation: fields.u64()?,
            from: fields.u64()?,
            to: fields.u64()?,
            boot: fields.u64()?,
            nonce: fields.u64()?,
            cluster: fields.text()?,
            advertise: fields.text()?,
            formation: fields.string()?.to_vec(),
            held: Held { term: fields.u64()?, vote: fields.u64()?, last_index: fields.u64()? },
            // An older build's ends here.
            earlier: if fields.rest.is_empty() { Vec::new() } else { fields.words()? },
        };
        Some(Ok(Greeting { hello, version_min, version_max }))
    };
    let damaged = |problem| WireError::Body { kind, problem };
    read()
        .ok_or_else(|| damaged("its fields do not fit its length".into()))?
        .map_err(|role| damaged(format!("this build knows no role {role}: upgrade it")))
}

/// Encodes a whole Refuse frame; a long reason is cut.
pub fn encode_refusal(refusal: &Refusal) -> Vec<u8> {
    let mut buffer = Vec::with_capacity(128);
    let start = begin(&mut buffer, HANDSHAKE_FORMAT, Kind::Refuse, 0);
    buffer.extend_from_slice(&refusal.code.number().to_le_bytes());
    put_string(&mut buffer, cut(&refusal.reason).as_bytes());
    // A cut reason fits.
    let _ = end(&mut buffer, start, HANDSHAKE_BYTES_MAX);
    buffer
}

/// Reads the body of a Refuse frame. The reason comes from outside: control characters are taken out of it.
///
/// # Errors
/// Fields are missing or damaged.
pub fn decode_refusal(body: &[u8]) -> Result<Refusal, WireError> {
    let read = || {
        let mut fields = Fields { rest: body };
        let code = RefusalCode::from_number(fields.u16()?);
        Some(Refusal { code, reason: printable(&fields.text()?) })
    };
    read().ok_or_else(|| WireError::Body { kind: Kind::Refuse, problem: "its fields do not fit its length".into() })
}

/// What no policy has to decide: whether the other side of a connection is another node, and the one that was meant.
///
/// # Errors
/// Why it is not.
pub fn check_ends(ours: &Hello, theirs: &Hello) -> Result<(), Refusal> {
    let me = ours.from;
    if theirs.from == me {
        let reason = if theirs.identity == ours.identity && theirs.nonce == ours.nonce {
            format!("node {me} lists itself under another address: correct its list of members")
        } else if theirs.identity == ours.identity {
            format!("another process runs as node {me} on a copy of its data directory: stop one of them")
        } else {
            format!("another node runs under id {me}: give each node an id of its own")
        };
        return Err(Refusal::new(RefusalCode::SelfConnection, reason));
    }
    if theirs.to != me {
        return Err(Refusal::new(
            RefusalCode::WrongNode,
            format!(
                "node {} means to talk to node {} and reached node {me}: correct the addresses in its list of members",
                theirs.from, theirs.to
            ),
        ));
    }
    if theirs.role != ours.role {
        let reason = format!("node {me} takes the connection for a {:?}'s, not a {:?}'s", ours.role, theirs.role);
        return Err(Refusal::new(RefusalCode::Role, reason));
    }
    Ok(())
}

/// The same where the other side is an operator's tool, which may leave open whom it means.
///
/// # Errors
/// It is none, or means another node.
pub fn check_admin(me: NodeId, theirs: &Hello) -> Result<(), Refusal> {
    if theirs.from != 0 {
        let reason =
            format!("node {} asks as an operator's tool, which is no node: it is to say that it is 0", theirs.from);
        return Err(Refusal::new(RefusalCode::Malformed, reason));
    }
    if theirs.to != 0 && theirs.to != me {
        let reason = format!("node {} was meant, and node {me} reached: correct the address", theirs.to);
        return Err(Refusal::new(RefusalCode::WrongNode, reason));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::wire::{Header, HEADER_LEN};
    use super::*;

    fn hello() -> impl Strategy<Value = Hello> {
        let role = prop_oneof![
            Just(Role::Peer),
            Just(Role::Client),
            Just(Role::Admin),
            Just(Role::Snapshot),
            Just(Role::Join)
        ];
        (any::<[u64; 8]>(), any::<[u128; 2]>(), role, ".{0,40}", ".{0,40}", any::<Vec<u8>>(), any::<Vec<u64>>())
            .prop_map(
                |(
                    [incarnation, from, to, boot, nonce, term, vote, last_index],
                    [lineage, identity],
                    role,
                    cluster,
                    advertise,
                    formation,
                    earlier,
                )| Hello {
                    cluster,
                    lineage,
                    incarnation,
                    from,
                    to,
                    identity,
                    boot,
                    nonce,
                    earlier,
                    role,
                    advertise,
                    formation,
                    held: Held { term, vote, last_index },
                },
            )
    }

    proptest! {
        #[test]
        fn greetings_survive_the_round_trip(hello in hello(), more in any::<Vec<u8>>()) {
            let greeting = Greeting::new(hello);
            let frame = encode_greeting(Kind::Hello, &greeting).map_err(|e| TestCaseError::fail(e.to_string()))?;
            let header = Header::decode(&frame, HANDSHAKE_FORMAT, HANDSHAKE_BYTES_MAX);
            prop_assert_eq!(header, Ok(Some(Header { body_len: frame.len() - HEADER_LEN, kind: Kind::Hello, group: 0 })));
            let mut body = frame[HEADER_LEN..].to_vec();
            prop_assert_eq!(decode_greeting(Kind::Hello, &body), Ok(greeting.clone()));
            // A newer build adds fields at the end, and an older one lacks the last.
            let older = body[..body.len() - 4 - 8 * greeting.hello.earlier.len()].to_vec();
            body.extend(more);
            prop_assert_eq!(decode_greeting(Kind::Hello, &body), Ok(greeting.clone()));
            let hello = Hello { earlier: Vec::new(), ..greeting.hello.clone() };
            prop_assert_eq!(decode_greeting(Kind::Hello, &older), Ok(Greeting { hello, ..greeting }));
        }

        #[test]
        fn refusals_survive_the_round_trip(number in any::<u16>(), reason in "[ -~]{0,200}") {
            let refusal = Refusal::new(RefusalCode::from_number(number), reason);
            prop_assert_eq!(refusal.code.number(), number);
            prop_assert_eq!(decode_refusal(&encode_refusal(&refusal)[HEADER_LEN..]), Ok(refusal));
        }

        #[test]
        fn garbage_is_answered_with_a_value_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = decode_greeting(Kind::Welcome, &bytes);
            let _ = decode_refusal(&bytes);
        }
    }

    fn one(from: NodeId, to: NodeId) -> Hello {
        Hello {
            cluster: "test".into(),
            lineage: 0,
            incarnation: 0,
            from,
            to,
            identity: u128::from(from),
            boot: 1,
            nonce: from,
            earlier: Vec::new(),
            role: Role::Peer,
            advertise: String::new(),
            formation: Vec::new(),
            held: Held::default(),
        }
    }

    #[test]
    fn only_the_node_that_was_meant_may_answer() {
        let code = |ours: Hello, theirs: Hello| check_ends(&ours, &theirs).map_err(|refusal| refusal.code);
        assert_eq!(code(one(1, 2), one(2, 1)), Ok(()));
        assert_eq!(code(one(1, 2), one(2, 3)), Err(RefusalCode::WrongNode));
        assert_eq!(code(one(1, 2), Hello { role: Role::Client, ..one(2, 1) }), Err(RefusalCode::Role));
        let snapshot = |hello| Hello { role: Role::Snapshot, ..hello };
        assert_eq!(code(snapshot(one(1, 2)), snapshot(one(2, 1))), Ok(()));
        assert_eq!(code(snapshot(one(1, 2)), one(2, 1)), Err(RefusalCode::Role));
        assert_eq!(code(one(1, 2), snapshot(one(2, 1))), Err(RefusalCode::Role));
        for (theirs, expected) in [
            (one(1, 2), "lists itself"),
            (Hello { nonce: 9, ..one(1, 2) }, "copy of its data directory"),
            (Hello { identity: 9, ..one(1, 2) }, "another node runs under id 1"),
        ] {
            let refusal = check_ends(&one(1, 1), &theirs).err().unwrap();
            assert!(refusal.reason.contains(expected), "{refusal}");
            assert_eq!(refusal.code, RefusalCode::SelfConnection);
        }
    }

    #[test]
    fn a_tool_is_no_node_and_may_leave_open_whom_it_means() {
        let code =
            |from, to| check_admin(2, &Hello { role: Role::Admin, ..one(from, to) }).map_err(|refusal| refusal.code);
        assert_eq!(code(0, 0), Ok(()));
        assert_eq!(code(0, 2), Ok(()));
        assert_eq!(code(0, 3), Err(RefusalCode::WrongNode));
        assert_eq!(code(1, 2), Err(RefusalCode::Malformed));
    }

    #[test]
    fn a_role_of_a_newer_build_is_refused_for_what_it_is() {
        let mut frame = encode_greeting(Kind::Hello, &Greeting::new(one(1, 2))).unwrap();
        frame[HEADER_LEN + 2] = 9;
        let error = decode_greeting(Kind::Hello, &frame[HEADER_LEN..]).err().unwrap().to_string();
        assert!(error.contains("role 9") && error.contains("upgrade"), "{error}");
    }

    #[test]
    fn builds_without_a_common_version_say_so() {
        let newer = Greeting { version_min: 2, version_max: 3, ..Greeting::new(one(2, 1)) };
        let refusal = newer.common_version().err().unwrap();
        assert_eq!(refusal.code, RefusalCode::Version);
        assert!(refusal.reason.contains("2 to 3"), "{refusal}");
        assert_eq!(Greeting { version_max: 3, ..Greeting::new(one(2, 1)) }.common_version(), Ok(1));
    }

    #[test]
    fn a_refusal_from_outside_cannot_write_its_own_log_lines() {
        let refusal = Refusal::new(RefusalCode::Other(7), "one\ntwo\x1b[0m");
        let read = decode_refusal(&encode_refusal(&refusal)[HEADER_LEN..]).unwrap();
        assert_eq!(read.reason, "one two [0m");
    }

    #[test]
    fn a_greeting_that_is_too_large_is_not_sent() {
        let hello = Hello { formation: vec![0; HANDSHAKE_BYTES_MAX], ..one(1, 2) };
        assert!(encode_greeting(Kind::Hello, &Greeting::new(hello)).is_err());
    }
}
