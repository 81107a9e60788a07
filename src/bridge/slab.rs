//! Values under tokens that are never confused.

use crate::driver::port::{Token, DRIVER_TOKEN};

/// Generations leave out the bit that marks the driver's own tokens.
const GENERATIONS: u32 = (DRIVER_TOKEN >> 32) as u32 - 1;

/// Values by token. A token holds a slot and the slot's generation, so that a late completion cannot meet the slot's
/// next tenant.
pub struct Slab<T> {
    slots: Vec<Slot<T>>,
    free: Vec<u32>,
}

struct Slot<T> {
    generation: u32,
    value: Option<T>,
}

impl<T> Default for Slab<T> {
    fn default() -> Self {
        Self { slots: Vec::new(), free: Vec::new() }
    }
}

impl<T> Slab<T> {
    /// Keeps `value`; its token is valid until [`Self::remove`].
    pub fn insert(&mut self, value: T) -> Token {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot { generation: 0, value: None });
            (self.slots.len() - 1) as u32
        });
        let entry = &mut self.slots[slot as usize];
        entry.value = Some(value);
        Token::from(entry.generation) << 32 | Token::from(slot)
    }

    /// The value under `token`, if it is still there.
    pub fn get_mut(&mut self, token: Token) -> Option<&mut T> {
        let slot = self.slots.get_mut(token as u32 as usize)?;
        if u64::from(slot.generation) != token >> 32 {
            return None;
        }
        slot.value.as_mut()
    }

    /// Takes the value under `token` out, if it is still there.
    pub fn remove(&mut self, token: Token) -> Option<T> {
        let number = token as u32;
        let slot = self.slots.get_mut(number as usize)?;
        if u64::from(slot.generation) != token >> 32 {
            return None;
        }
        let value = slot.value.take()?;
        slot.generation = (slot.generation + 1) & GENERATIONS;
        self.free.push(number);
        Some(value)
    }

    /// All values, in no order.
    pub fn iter(&self) -> impl Iterator<Item = &T> {
        self.slots.iter().filter_map(|slot| slot.value.as_ref())
    }

    /// Takes all values out; every token ends.
    pub fn take_all(&mut self) -> Vec<T> {
        let mut taken = Vec::new();
        for (number, slot) in self.slots.iter_mut().enumerate() {
            if let Some(value) = slot.value.take() {
                slot.generation = (slot.generation + 1) & GENERATIONS;
                self.free.push(number as u32);
                taken.push(value);
            }
        }
        taken
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_dies_with_its_value() {
        let mut slab = Slab::default();
        let first = slab.insert("first");
        let second = slab.insert("second");
        assert_eq!(slab.remove(first), Some("first"));
        assert_eq!(slab.remove(first), None);
        let third = slab.insert("third");
        assert_ne!(first, third);
        assert_eq!(slab.remove(first), None);
        assert_eq!(slab.get_mut(first), None);
        assert_eq!(slab.get_mut(third), Some(&mut "third"));
        assert_eq!(slab.remove(second), Some("second"));
        assert_eq!(slab.take_all(), ["third"]);
        assert_eq!(slab.remove(third), None);
        assert_eq!(slab.remove(u64::MAX), None);
    }

    #[test]
    fn no_token_is_ever_one_of_the_drivers() {
        let mut slab = Slab::default();
        let first = slab.insert(());
        slab.remove(first);
        slab.slots[0].generation = GENERATIONS;
        let last = slab.insert(());
        assert_eq!(last & DRIVER_TOKEN, 0);
        assert_eq!(slab.remove(last), Some(()));
        assert_eq!(slab.insert(()), first, "it begins anew after two thousand million tenants");
    }
}
