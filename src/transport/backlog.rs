//! What a connection's socket would not take yet.

use std::collections::VecDeque;

/// Buffers up to this size are copied behind the last one instead of being kept whole.
const COPIED_MAX: usize = 64 << 10;

/// A buffer takes copies until it has this size.
const JOINED_MAX: usize = 256 << 10;

/// Unsent bytes, in order.
#[derive(Debug, Default)]
pub(super) struct Backlog {
    chunks: VecDeque<Vec<u8>>,
    /// How much of the first chunk is written.
    written: usize,
    bytes: usize,
}

impl Backlog {
    pub fn is_empty(&self) -> bool {
        self.chunks.is_empty()
    }

    /// Unsent bytes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Takes `buffer` from `start`; it comes back empty, with its memory if it was small.
    pub fn push(&mut self, buffer: &mut Vec<u8>, start: usize) {
        let Some(rest) = buffer.get(start..).filter(|rest| !rest.is_empty()) else { return buffer.clear() };
        self.bytes += rest.len();
        if rest.len() > COPIED_MAX {
            let mut whole = std::mem::take(buffer);
            if self.chunks.is_empty() {
                self.written = start;
            } else if start > 0 {
                whole.drain(..start);
            }
            self.chunks.push_back(whole);
            return;
        }
        match self.chunks.back_mut() {
            Some(last) if last.len() + rest.len() <= JOINED_MAX => last.extend_from_slice(rest),
            _ => self.chunks.push_back(rest.to_vec()),
        }
        buffer.clear();
    }

    /// The next bytes to write; empty when there are none.
    pub fn front(&self) -> &[u8] {
        self.chunks.front().and_then(|chunk| chunk.get(self.written..)).unwrap_or(&[])
    }

    /// `count` bytes of [`Backlog::front`] are written.
    pub fn advance(&mut self, count: usize) {
        self.written += count;
        self.bytes = self.bytes.saturating_sub(count);
        if self.chunks.front().is_some_and(|chunk| self.written >= chunk.len()) {
            self.chunks.pop_front();
            self.written = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn bytes_leave_in_the_order_they_came(
            pushes in proptest::collection::vec((0..200_000_usize, 0..1000_usize, 0..150_000_usize), 1..12),
        ) {
            let mut backlog = Backlog::default();
            let (mut came, mut left, mut next) = (Vec::new(), Vec::new(), 0_u8);
            for (length, start, drained) in pushes {
                let mut buffer: Vec<u8> = (0..length).map(|_| { next = next.wrapping_mul(5).wrapping_add(7); next }).collect();
                let start = start.min(length);
                came.extend_from_slice(&buffer[start..]);
                backlog.push(&mut buffer, start);
                prop_assert!(buffer.is_empty());
                let mut budget = drained;
                while budget > 0 && !backlog.is_empty() {
                    let count = backlog.front().len().min(budget);
                    left.extend_from_slice(&backlog.front()[..count]);
                    backlog.advance(count);
                    budget -= count;
                }
                prop_assert_eq!(backlog.bytes(), came.len() - left.len());
            }
            while !backlog.is_empty() {
                let count = backlog.front().len();
                left.extend_from_slice(backlog.front());
                backlog.advance(count);
            }
            prop_assert!(came == left);
        }
    }
}
