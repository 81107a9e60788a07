//! What the simulated application's state machine holds, and how it stands in a snapshot.

use super::objects::Objects;

/// The state of one replica.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct State {
    /// What the operations act on.
    pub objects: Objects,
    /// Mixed from everything applied.
    pub digest: u64,
}

impl State {
    /// For a snapshot.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut words = vec![self.digest];
        self.objects.put(&mut words);
        words.iter().flat_map(|word| word.to_le_bytes()).collect()
    }

    /// Out of a snapshot.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let words = bytes.chunks_exact(8);
        let is_whole = words.remainder().is_empty();
        let mut words = words.filter_map(|word| word.try_into().ok().map(u64::from_le_bytes));
        let digest = words.next().filter(|_| is_whole)?;
        Some(Self { digest, objects: Objects::take(&mut words)? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sim::objects::{Action, Operation};

    #[test]
    fn a_state_survives_its_snapshot() {
        let mut state = State { digest: 7, ..Default::default() };
        for (key, action) in [
            (0, Action::Write(5)),
            (3, Action::CompareAndSet(Some(1), 2)),
            (1, Action::Add(9)),
            (2, Action::Push(4)),
            (2, Action::Push(6)),
            (5, Action::Pop),
        ] {
            state.objects.act(Operation { key, action });
        }
        let bytes = state.to_bytes();
        assert_eq!(State::from_bytes(&bytes), Some(state));
        assert!((0..bytes.len()).all(|end| State::from_bytes(&bytes[..end]).is_none()), "part of one is none");
    }
}
