//! Gathers proposals that are made together, so that the driver gets them as one batch.
//!
//! Handing each over by itself would wake the driver for each: a system call that costs more than the rest of
//! `propose`, and a batch (an append, an fsync, a message a peer) of one. So, when a drain has resolved several
//! futures, what their tasks propose next is kept until all of them have run, which is where the loop calls the flush.
//! A lone proposal goes out at once.

use crate::driver::port::Proposal;

/// As many are handed over even before the flush.
const FULL: usize = 256;

/// Proposals on their way to the inbox.
#[derive(Default)]
pub struct Outbox {
    kept: Vec<Proposal>,
    is_gathering: bool,
    has_sent: bool,
}

/// What to do now.
#[derive(Debug)]
pub enum Next {
    /// Nothing: a flush is on its way.
    Wait,
    /// Have the loop call the flush.
    Schedule,
    /// Hand this one over.
    Send(Proposal),
    /// Hand these over.
    SendAll(Vec<Proposal>),
}

impl Outbox {
    /// Takes a proposal.
    pub fn put(&mut self, proposal: Proposal) -> Next {
        if self.is_gathering {
            self.kept.push(proposal);
            return if self.kept.len() < FULL { Next::Wait } else { Next::SendAll(std::mem::take(&mut self.kept)) };
        }
        // The first since the last drain may well be alone. The second shows that it was not.
        if !std::mem::replace(&mut self.has_sent, true) {
            return Next::Send(proposal);
        }
        self.is_gathering = true;
        self.kept.push(proposal);
        Next::Schedule
    }

    /// A drain is over; `expects_more` if it resolved several futures. True if the loop is to call the flush.
    pub fn drained(&mut self, expects_more: bool) -> bool {
        self.has_sent = false;
        expects_more && !std::mem::replace(&mut self.is_gathering, true)
    }

    /// Ends the gathering; what was kept is to be handed over.
    pub fn flush(&mut self) -> Vec<Proposal> {
        self.is_gathering = false;
        self.has_sent = false;
        std::mem::take(&mut self.kept)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::command::Command;

    fn proposal(token: u64) -> Proposal {
        Proposal { token, command: Command::new(b""), deadline_ns: None }
    }

    #[test]
    fn a_lone_proposal_goes_out_at_once() {
        let mut outbox = Outbox::default();
        for token in 0..3 {
            assert!(matches!(outbox.put(proposal(token)), Next::Send(sent) if sent.token == token));
            assert!(!outbox.drained(false));
        }
    }

    #[test]
    fn the_second_since_the_last_drain_starts_a_batch() {
        let mut outbox = Outbox::default();
        assert!(matches!(outbox.put(proposal(0)), Next::Send(_)));
        assert!(matches!(outbox.put(proposal(1)), Next::Schedule));
        assert!(matches!(outbox.put(proposal(2)), Next::Wait));
        assert!(!outbox.drained(true), "a flush is on its way already");
        assert_eq!(outbox.flush().iter().map(|kept| kept.token).collect::<Vec<_>>(), [1, 2]);
        assert!(matches!(outbox.put(proposal(3)), Next::Send(_)));
    }

    #[test]
    fn what_follows_a_drain_of_several_is_one_batch() {
        let mut outbox = Outbox::default();
        assert!(outbox.drained(true));
        for token in 1..FULL as u64 {
            assert!(matches!(outbox.put(proposal(token)), Next::Wait));
        }
        assert!(matches!(outbox.put(proposal(0)), Next::SendAll(all) if all.len() == FULL));
        assert!(outbox.flush().is_empty());
    }
}
