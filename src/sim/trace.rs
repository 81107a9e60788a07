//! What happened, as a number that two runs must agree on, and on demand as text.

use super::clock::{Time, SECOND};

/// A run's trace.
#[derive(Debug, Default)]
pub struct Trace {
    hash: u64,
    lines: Option<Vec<String>>,
}

impl Trace {
    /// A trace that keeps its lines if they are wanted.
    pub fn new(record: bool) -> Self {
        Self { hash: 0, lines: record.then(Vec::new) }
    }

    /// Notes something: numbers that are the same in every run of the seed, and the words for them.
    pub fn note(&mut self, time: Time, numbers: &[u64], words: impl FnOnce() -> String) {
        self.mix(time);
        for number in numbers {
            self.mix(*number);
        }
        if let Some(lines) = &mut self.lines {
            lines.push(format!("{:>12.6}  {}", time as f64 / SECOND as f64, words()));
        }
    }

    /// The number.
    pub fn hash(&self) -> u64 {
        self.hash
    }

    /// The lines.
    pub fn into_lines(self) -> Vec<String> {
        self.lines.unwrap_or_default()
    }

    fn mix(&mut self, number: u64) {
        self.hash = (self.hash.rotate_left(5) ^ number).wrapping_mul(0x517c_c1b7_2722_0a95);
    }
}

/// A hash that is the same in every run.
pub fn hash_of(bytes: &[u8]) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64 ^ bytes.len() as u64;
    for chunk in bytes.chunks(8) {
        let mut word = [0; 8];
        word[..chunk.len()].copy_from_slice(chunk);
        hash = (hash.rotate_left(5) ^ u64::from_le_bytes(word)).wrapping_mul(0x517c_c1b7_2722_0a95);
    }
    hash ^ hash >> 29
}

/// Two numbers in one.
pub fn mixed(one: u64, other: u64) -> u64 {
    let mixed = (one.rotate_left(23) ^ other).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    mixed ^ mixed >> 32
}
