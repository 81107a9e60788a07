//! What a node remembers of a peer, so that it knows the peer's data directory again: one that was rolled back, or copied,
//! has forgotten something (rule S2).
//!
//! A node speaks only for what is durable, so its disk can never hold less than what it has said. A peer that starts
//! again tells in its handshake what its disk holds ([`Held`]); whoever remembers more than that refuses it.

use raft::eraftpb::{Message, MessageType};

use crate::engine::formation::Identity;
use crate::engine::NodeId;
use crate::mutants::{self, Mutant};
use crate::transport::{Hello, Refusal, RefusalCode};

/// What is known of one peer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Witness {
    /// Its data directory: all else is true of this one only.
    pub identity: Identity,
    /// The last start of it that was let in.
    pub boot: u64,
    /// That start's nonce.
    pub nonce: u64,
    /// The highest term in which it spoke: its disk holds a term no lower.
    pub term: u64,
    /// The last term in which it gave this node its vote.
    pub voted_term: u64,
    /// Its disk holds everything committed up to this index. That is never cut off again (Raft paper 5.4, leader
    /// completeness), while what it holds beyond may be.
    pub index: u64,
}

impl Witness {
    /// Whether `hello` can come from the peer that is remembered. `me` is this node.
    ///
    /// # Errors
    /// Why it cannot; the other side is told.
    pub fn check(&self, me: NodeId, hello: &Hello) -> Result<(), Refusal> {
        if hello.identity != self.identity || mutants::on(Mutant::AdmitOldCopy) {
            // Before the cluster is formed a directory may be replaced: it has acknowledged nothing (rule M1).
            return Ok(());
        }
        let Hello { from, boot, nonce, .. } = *hello;
        if boot < self.boot {
            let reason = format!(
                "node {from} comes with boot {boot}, but boot {} was seen of it: its data directory was rolled back or copied",
                self.boot
            );
            return Err(Refusal::new(RefusalCode::Boot, reason));
        }
        let ago = usize::try_from(boot - self.boot).unwrap_or(usize::MAX);
        if ago > 0 && hello.earlier.get(ago - 1).is_some_and(|earlier| *earlier != self.nonce) {
            let reason = format!(
                "node {from} comes with boot {boot}, but its boot {} was another than the one that was seen: its data \
                 directory was rolled back or copied; let a new node take its place",
                self.boot
            );
            return Err(Refusal::new(RefusalCode::Forgotten, reason));
        }
        if ago == 0 && nonce != self.nonce {
            let reason = format!("two processes run as node {from}, from copies of one data directory");
            return Err(Refusal::new(RefusalCode::Boot, reason));
        }
        if ago == 0 {
            return Ok(());
        }
        self.check_held(me, hello).map_err(|forgotten| {
            let reason = format!(
                "node {from} starts without what it had on its disk before ({forgotten}): its data directory was rolled \
                 back, or copied while it ran; let a new node take its place"
            );
            Refusal::new(RefusalCode::Forgotten, reason)
        })
    }

    fn check_held(&self, me: NodeId, hello: &Hello) -> Result<(), String> {
        let held = hello.held;
        if held.term < self.term {
            return Err(format!("it spoke in term {}, and its log knows of term {}", self.term, held.term));
        }
        if held.term == self.voted_term && held.vote != me {
            return Err(format!("its vote for node {me} in term {}", self.voted_term));
        }
        if held.last_index < self.index {
            return Err(format!("it acknowledged entry {}, and its log ends at {}", self.index, held.last_index));
        }
        Ok(())
    }

    /// Takes in that this start was let in. Returns whether that is news, which must be durable before the peer is
    /// answered.
    pub fn let_in(&mut self, hello: &Hello) -> bool {
        if hello.identity != self.identity {
            *self = Self { identity: hello.identity, ..Self::default() };
        }
        let is_news = (hello.boot, hello.nonce) != (self.boot, self.nonce);
        (self.boot, self.nonce) = (hello.boot, hello.nonce);
        is_news
    }

    /// Takes in that the peer spoke. Returns whether that is news.
    pub fn heard(&mut self, spoken: Spoken) -> bool {
        let before = *self;
        self.term = self.term.max(spoken.term);
        if spoken.is_vote {
            self.voted_term = self.voted_term.max(spoken.term);
        }
        *self != before
    }

    /// Takes in that the peer holds everything committed up to `index`. Returns whether that is news.
    pub fn acknowledged(&mut self, index: u64) -> bool {
        let is_news = index > self.index;
        self.index = self.index.max(index);
        is_news
    }
}

/// What a Raft message says about its sender's disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Spoken {
    /// Its disk holds a term no lower; 0 if the message does not say.
    pub term: u64,
    /// It has voted for this node in that term.
    pub is_vote: bool,
}

impl Spoken {
    /// Looks at a message that the engine admits.
    pub fn of(message: &Message) -> Self {
        match MessageType::from_i32(message.msg_type) {
            // Their term is the one that the election would be about; nobody is in it yet (Raft thesis 9.6).
            None | Some(MessageType::MsgRequestPreVote | MessageType::MsgRequestPreVoteResponse) => Self::default(),
            Some(kind) => {
                let is_vote = kind == MessageType::MsgRequestVoteResponse && !message.reject;
                Self { term: message.term, is_vote }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transport::{Held, Role};

    const ME: NodeId = 1;

    fn witness() -> Witness {
        Witness { identity: 20, boot: 5, nonce: 50, term: 7, voted_term: 7, index: 100 }
    }

    fn hello(boot: u64, nonce: u64, held: Held) -> Hello {
        Hello {
            cluster: "shop".into(),
            lineage: 1,
            incarnation: 1,
            from: 2,
            to: ME,
            identity: 20,
            boot,
            nonce,
            earlier: Vec::new(),
            role: Role::Peer,
            advertise: String::new(),
            formation: Vec::new(),
            held,
        }
    }

    fn held(term: u64, vote: NodeId, last_index: u64) -> Held {
        Held { term, vote, last_index }
    }

    #[test]
    fn s2_a_later_start_without_what_the_peer_had_is_refused() {
        let check = |held| witness().check(ME, &hello(6, 60, held)).map_err(|refusal| (refusal.code, refusal.reason));
        assert_eq!(check(held(7, ME, 100)), Ok(()));
        assert_eq!(check(held(8, 3, 100)), Ok(()), "a vote in a later term");
        assert_eq!(check(held(9, 0, 300)), Ok(()));
        for (held, says) in [
            (held(6, 0, 100), "it spoke in term 7, and its log knows of term 6"),
            (held(7, 0, 100), "its vote for node 1 in term 7"),
            (held(7, 3, 100), "its vote for node 1 in term 7"),
            (held(7, ME, 99), "it acknowledged entry 100, and its log ends at 99"),
        ] {
            let (code, reason) = check(held).unwrap_err();
            assert_eq!(code, RefusalCode::Forgotten);
            assert!(reason.contains(says) && reason.contains("rolled back"), "{reason}");
        }
    }

    #[test]
    fn s2_a_copy_from_before_a_start_that_was_seen_is_refused_however_often_it_was_started_since() {
        let after = |earlier: &[u64]| Hello { earlier: earlier.to_vec(), ..hello(8, 80, held(9, 0, 300)) };
        let check =
            |earlier: &[u64]| witness().check(ME, &after(earlier)).map_err(|refusal| (refusal.code, refusal.reason));
        assert_eq!(check(&[70, 60, 50, 40]), Ok(()));
        assert_eq!(check(&[70, 60]), Ok(()), "it does not know any more");
        let (code, reason) = check(&[71, 61, 51, 40]).unwrap_err();
        assert_eq!(code, RefusalCode::Forgotten);
        assert!(reason.contains("boot 8") && reason.contains("boot 5") && reason.contains("rolled back"), "{reason}");
    }

    #[test]
    fn a_start_that_goes_on_may_hold_less_than_what_it_has_acknowledged_since() {
        assert_eq!(witness().check(ME, &hello(5, 50, held(1, 0, 1))), Ok(()), "it tells of its beginning");
    }

    #[test]
    fn m1_a_directory_that_was_replaced_before_the_cluster_was_formed_starts_anew() {
        let replaced = Hello { identity: 21, ..hello(1, 11, held(1, 0, 1)) };
        let mut witness = witness();
        assert_eq!(witness.check(ME, &replaced), Ok(()));
        assert!(witness.let_in(&replaced));
        assert_eq!(witness, Witness { identity: 21, boot: 1, nonce: 11, ..Default::default() });
        assert!(!witness.let_in(&replaced));
    }

    #[test]
    fn only_what_must_be_durable_is_remembered() {
        let spoken = |kind: MessageType, reject| {
            let mut message = Message { term: 9, reject, ..Default::default() };
            message.set_msg_type(kind);
            Spoken::of(&message)
        };
        use MessageType::*;
        for kind in [MsgRequestPreVote, MsgRequestPreVoteResponse] {
            assert_eq!(spoken(kind, false), Spoken::default(), "{kind:?}");
        }
        for kind in [MsgAppend, MsgHeartbeat, MsgRequestVote, MsgAppendResponse, MsgHeartbeatResponse] {
            assert_eq!(spoken(kind, false), Spoken { term: 9, is_vote: false }, "{kind:?}");
        }
        assert!(spoken(MsgRequestVoteResponse, false).is_vote);
        assert!(!spoken(MsgRequestVoteResponse, true).is_vote);

        let mut witness = witness();
        assert!(!witness.heard(Spoken { term: 6, is_vote: true }));
        assert!(witness.heard(Spoken { term: 8, is_vote: false }));
        assert_eq!((witness.term, witness.voted_term), (8, 7));
        assert!(witness.heard(Spoken { term: 8, is_vote: true }));
        assert!(!witness.acknowledged(100) && witness.acknowledged(101));
        assert_eq!((witness.voted_term, witness.index), (8, 101));
    }
}
