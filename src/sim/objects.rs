//! The replicated state machine of the simulated application: registers, counters and queues, and what can be done to
//! them. The same code says what is right when a history is judged.

use std::collections::{BTreeMap, VecDeque};

/// Names an object; its kind follows from it.
pub type Key = u64;

/// What an operation on an object answers.
pub type Answer = Option<u64>;

/// What can be done to an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// Sets a register; answers what it was before.
    Write(u64),
    /// Sets a register if it holds this; answers what it was before.
    CompareAndSet(Option<u64>, u64),
    /// Adds to a counter; answers what it is then.
    Add(u64),
    /// Appends to a queue; answers its length.
    Push(u64),
    /// Takes from a queue; answers what it took.
    Pop,
    /// Answers the register's value, the counter's value, or the queue's front.
    Read,
}

/// An operation on an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Operation {
    /// Which object.
    pub key: Key,
    /// What.
    pub action: Action,
}

/// The kinds of objects, in the order in which keys take turns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Holds one value.
    Register,
    /// Counts.
    Counter,
    /// First in, first out.
    Queue,
}

/// The kind of the object with this key.
pub fn kind(key: Key) -> Kind {
    match key % 3 {
        0 => Kind::Register,
        1 => Kind::Counter,
        _ => Kind::Queue,
    }
}

/// One object.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Object {
    /// See [`Kind::Register`].
    Register(Option<u64>),
    /// See [`Kind::Counter`].
    Counter(u64),
    /// See [`Kind::Queue`].
    Queue(VecDeque<u64>),
}

impl Object {
    /// As it is before anything was done to it.
    pub fn new(key: Key) -> Self {
        match kind(key) {
            Kind::Register => Self::Register(None),
            Kind::Counter => Self::Counter(0),
            Kind::Queue => Self::Queue(VecDeque::new()),
        }
    }

    /// Does it.
    pub fn act(&mut self, action: Action) -> Answer {
        match (self, action) {
            (Self::Register(value), Action::Write(new)) => value.replace(new),
            (Self::Register(value), Action::CompareAndSet(expected, new)) => {
                let before = *value;
                if before == expected {
                    *value = Some(new);
                }
                before
            }
            (Self::Register(value), Action::Read) => *value,
            (Self::Counter(value), Action::Add(by)) => {
                *value += by;
                Some(*value)
            }
            (Self::Counter(value), Action::Read) => Some(*value),
            (Self::Queue(queue), Action::Push(value)) => {
                queue.push_back(value);
                Some(queue.len() as u64)
            }
            (Self::Queue(queue), Action::Pop) => queue.pop_front(),
            (Self::Queue(queue), Action::Read) => queue.front().copied(),
            // No client asks for it.
            _ => None,
        }
    }
}

/// All objects of one replica.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Objects(BTreeMap<Key, Object>);

impl Objects {
    /// Does it.
    pub fn act(&mut self, operation: Operation) -> Answer {
        self.0.entry(operation.key).or_insert_with(|| Object::new(operation.key)).act(operation.action)
    }
}

impl Objects {
    /// Writes all of it as words.
    pub fn put(&self, words: &mut Vec<u64>) {
        words.push(self.0.len() as u64);
        for (key, object) in &self.0 {
            words.push(*key);
            match object {
                Object::Register(value) => words.extend([u64::from(value.is_some()), value.unwrap_or(0)]),
                Object::Counter(value) => words.push(*value),
                Object::Queue(queue) => {
                    words.push(queue.len() as u64);
                    words.extend(queue);
                }
            }
        }
    }

    /// Reads what [`Self::put`] wrote, and nothing may follow.
    pub fn take(words: &mut impl Iterator<Item = u64>) -> Option<Self> {
        let mut objects = BTreeMap::new();
        for _ in 0..words.next()? {
            let key = words.next()?;
            let object = match kind(key) {
                Kind::Register => {
                    let (is_set, value) = (words.next()?, words.next()?);
                    Object::Register((is_set == 1).then_some(value))
                }
                Kind::Counter => Object::Counter(words.next()?),
                Kind::Queue => {
                    let len = words.next()?;
                    Object::Queue((0..len).map(|_| words.next()).collect::<Option<_>>()?)
                }
            };
            objects.insert(key, object);
        }
        words.next().is_none().then_some(Self(objects))
    }
}

/// Bytes of a command without its padding.
pub const LEN: usize = 40;

/// A command as it stands in the log: the call that it came from, the operation, and padding.
pub fn encode(call: u64, operation: Operation, padding: usize) -> Vec<u8> {
    let (kind, first, second) = match operation.action {
        Action::Write(value) => (0, value, 0),
        Action::CompareAndSet(expected, new) => (1, expected.map_or(0, |it| it + 1), new),
        Action::Add(by) => (2, by, 0),
        Action::Push(value) => (3, value, 0),
        Action::Pop => (4, 0, 0),
        Action::Read => (5, 0, 0),
    };
    let mut bytes = Vec::with_capacity(LEN + padding);
    for word in [call, operation.key, kind, first, second] {
        bytes.extend_from_slice(&u64::to_le_bytes(word));
    }
    bytes.resize(LEN + padding, 0);
    bytes
}

/// Reads what [`encode`] wrote.
pub fn decode(bytes: &[u8]) -> Option<(u64, Operation)> {
    let word = |at: usize| bytes.get(8 * at..8 * at + 8)?.try_into().ok().map(u64::from_le_bytes);
    let (call, key, kind, first, second) = (word(0)?, word(1)?, word(2)?, word(3)?, word(4)?);
    let action = match kind {
        0 => Action::Write(first),
        1 => Action::CompareAndSet(first.checked_sub(1), second),
        2 => Action::Add(first),
        3 => Action::Push(first),
        4 => Action::Pop,
        5 => Action::Read,
        _ => return None,
    };
    Some((call, Operation { key, action }))
}
