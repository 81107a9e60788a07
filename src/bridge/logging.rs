//! tracing and slog events, on their way to Python's `logging`.
//!
//! Any thread may emit. A record whose level Python would drop costs one atomic load; the others wait in a bounded
//! queue until the loop's thread hands them to the logger `aioraft.<subsystem>`.

use std::borrow::Cow;
use std::collections::{HashMap, VecDeque};
use std::fmt::{self, Write as _};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicU8, Ordering};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyTuple};
use tracing::field::{Field, Visit};
use tracing::span;
use tracing::subscriber::Interest;

use super::bell::Bell;
use crate::driver::clock;

/// Records that wait at most; more are counted and dropped.
const CAPACITY: usize = 1_000;

/// How often Python's levels are looked up, at most.
const REFRESH: Duration = Duration::from_millis(100);

/// Loggers with levels of their own; everything else follows the last.
const SUBSYSTEMS: [&str; 6] = ["driver", "engine", "raft", "storage", "transport", "aioraft"];

/// A field's value.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// A signed integer.
    Int(i64),
    /// An unsigned integer.
    Uint(u64),
    /// A float.
    Float(f64),
    /// A truth value.
    Bool(bool),
    /// Anything else, formatted.
    Text(String),
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Int(value) => write!(f, "{value}"),
            Self::Uint(value) => write!(f, "{value}"),
            Self::Float(value) => write!(f, "{value}"),
            Self::Bool(value) => write!(f, "{value}"),
            Self::Text(value) => f.write_str(value),
        }
    }
}

/// One event.
#[derive(Clone, Debug, PartialEq)]
pub struct LogRecord {
    /// Python's level number.
    pub level: u8,
    /// What follows `aioraft.` in the logger's name.
    pub target: String,
    /// The event's message.
    pub message: String,
    /// Its other fields.
    pub fields: Vec<(Cow<'static, str>, Value)>,
    file: Option<Cow<'static, str>>,
    line: u32,
    wall_ns: u64,
}

/// The records that wait for the loop.
pub struct LogQueue {
    records: Mutex<VecDeque<LogRecord>>,
    dropped: AtomicU64,
    has_rung: AtomicBool,
    thresholds: [AtomicU8; SUBSYSTEMS.len()],
    bell: Arc<Bell>,
    node_id: u64,
}

// Its locks are not poisoned by a panic, and nothing in it is left half done by one; slog asks for the promise.
impl std::panic::UnwindSafe for LogQueue {}
impl std::panic::RefUnwindSafe for LogQueue {}

impl LogQueue {
    /// An empty queue that rings `bell`, for the records of one node.
    pub fn new(bell: Arc<Bell>, node_id: u64) -> Self {
        Self {
            records: Mutex::default(),
            dropped: AtomicU64::new(0),
            has_rung: AtomicBool::new(false),
            thresholds: std::array::from_fn(|_| AtomicU8::new(u8::MAX)),
            bell,
            node_id,
        }
    }

    /// Whether Python wants records of `level` from `target`.
    pub fn wants(&self, target: &str, level: u8) -> bool {
        level >= self.thresholds[place(target)].load(Ordering::Relaxed)
    }

    /// Every record names its node, also those of what knows nothing of nodes.
    fn push(&self, mut record: LogRecord) {
        if record.fields.iter().all(|(name, _)| name != "node") {
            record.fields.insert(0, (Cow::Borrowed("node"), Value::Uint(self.node_id)));
        }
        let mut records = self.records.lock();
        if records.len() >= CAPACITY {
            drop(records);
            self.dropped.fetch_add(1, Ordering::Relaxed);
            return;
        }
        records.push_back(record);
        drop(records);
        if !self.has_rung.swap(true, Ordering::AcqRel) {
            self.bell.ring();
        }
    }

    /// Says that the loop is awake; to be called before it looks at the queue for the last time.
    pub fn acknowledge(&self) {
        self.has_rung.store(false, Ordering::Release);
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.records.lock().is_empty()
    }

    /// The oldest record, or word of those that were dropped.
    fn pop(&self) -> Option<LogRecord> {
        if let Some(record) = self.records.lock().pop_front() {
            return Some(record);
        }
        let dropped = self.dropped.swap(0, Ordering::Relaxed);
        (dropped > 0).then(|| LogRecord {
            level: 30,
            target: "driver".to_owned(),
            message: format!("{dropped} log records were dropped: the event loop was too busy to take them"),
            fields: vec![
                (Cow::Borrowed("node"), Value::Uint(self.node_id)),
                (Cow::Borrowed("dropped"), Value::Uint(dropped)),
            ],
            file: None,
            line: 0,
            wall_ns: clock::wall_ns(),
        })
    }
}

fn place(target: &str) -> usize {
    SUBSYSTEMS.iter().position(|name| *name == target).unwrap_or(SUBSYSTEMS.len() - 1)
}

/// "aioraft::driver::peers" is the subsystem "driver", "rustls::conn" is "rustls".
fn subsystem(target: &str) -> &str {
    let mut parts = target.split("::");
    match (parts.next(), parts.next()) {
        (Some("aioraft"), Some(inner)) => inner,
        (Some(outer), _) => outer,
        (None, _) => target,
    }
}

/// A tracing subscriber for the driver's threads. Spans carry nothing and are not kept.
pub struct Subscriber(pub Arc<LogQueue>);

fn tracing_level(level: tracing::Level) -> u8 {
    match level {
        tracing::Level::ERROR => 40,
        tracing::Level::WARN => 30,
        tracing::Level::INFO => 20,
        tracing::Level::DEBUG => 10,
        tracing::Level::TRACE => 5,
    }
}

impl tracing::Subscriber for Subscriber {
    fn register_callsite(&self, _: &'static tracing::Metadata<'static>) -> Interest {
        // Never `always` or `never`: the thresholds move while the program runs.
        Interest::sometimes()
    }

    fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
        metadata.is_event() && self.0.wants(subsystem(metadata.target()), tracing_level(*metadata.level()))
    }

    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }

    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}

    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}

    fn event(&self, event: &tracing::Event<'_>) {
        let metadata = event.metadata();
        let mut collected = Collected::default();
        event.record(&mut collected);
        self.0.push(LogRecord {
            level: tracing_level(*metadata.level()),
            target: subsystem(metadata.target()).to_owned(),
            message: collected.message,
            fields: collected.fields,
            file: metadata.file().map(Cow::Borrowed),
            line: metadata.line().unwrap_or(0),
            wall_ns: clock::wall_ns(),
        });
    }

    fn enter(&self, _: &span::Id) {}

    fn exit(&self, _: &span::Id) {}
}

#[derive(Default)]
struct Collected {
    message: String,
    fields: Vec<(Cow<'static, str>, Value)>,
}

impl Collected {
    fn put(&mut self, field: &Field, value: Value) {
        if field.name() == "message" {
            self.message = value.to_string();
        } else {
            self.fields.push((Cow::Borrowed(field.name()), value));
        }
    }
}

impl Visit for Collected {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.put(field, Value::Text(format!("{value:?}")));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.put(field, Value::Text(value.to_owned()));
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.put(field, Value::Int(value));
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.put(field, Value::Uint(value));
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.put(field, Value::Float(value));
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.put(field, Value::Bool(value));
    }
}

/// A slog drain for raft-rs, under the logger `aioraft.raft`.
pub struct RaftDrain(pub Arc<LogQueue>);

const RAFT: &str = "raft";

/// What raft-rs tells as news is for those who look into it: the driver logs itself who leads and who is connected.
fn slog_level(level: slog::Level) -> u8 {
    match level {
        slog::Level::Critical => 50,
        slog::Level::Error => 40,
        slog::Level::Warning => 30,
        slog::Level::Info => 10,
        slog::Level::Debug | slog::Level::Trace => 5,
    }
}

impl slog::Drain for RaftDrain {
    type Ok = ();
    type Err = slog::Never;

    fn log(&self, record: &slog::Record<'_>, values: &slog::OwnedKVList) -> Result<(), slog::Never> {
        use slog::KV as _;
        let level = slog_level(record.level());
        if !self.0.wants(RAFT, level) {
            return Ok(());
        }
        let mut fields = SlogFields(Vec::new());
        // The serializer below never fails.
        let _ = record.kv().serialize(record, &mut fields);
        let _ = values.serialize(record, &mut fields);
        self.0.push(LogRecord {
            level,
            target: RAFT.to_owned(),
            message: record.msg().to_string(),
            fields: fields.0,
            file: Some(Cow::Borrowed(record.file())),
            line: record.line(),
            wall_ns: clock::wall_ns(),
        });
        Ok(())
    }

    fn is_enabled(&self, level: slog::Level) -> bool {
        self.0.wants(RAFT, slog_level(level))
    }
}

struct SlogFields(Vec<(Cow<'static, str>, Value)>);

impl SlogFields {
    // slog's keys may be owned or static, by one of its features; a copy fits both.
    fn put(&mut self, key: slog::Key, value: Value) -> slog::Result {
        self.0.push((Cow::Owned(key.to_string()), value));
        Ok(())
    }
}

impl slog::Serializer for SlogFields {
    fn emit_arguments(&mut self, key: slog::Key, value: &fmt::Arguments<'_>) -> slog::Result {
        self.put(key, Value::Text(value.to_string()))
    }

    fn emit_u64(&mut self, key: slog::Key, value: u64) -> slog::Result {
        self.put(key, Value::Uint(value))
    }

    fn emit_i64(&mut self, key: slog::Key, value: i64) -> slog::Result {
        self.put(key, Value::Int(value))
    }

    fn emit_usize(&mut self, key: slog::Key, value: usize) -> slog::Result {
        self.put(key, Value::Uint(value as u64))
    }

    fn emit_bool(&mut self, key: slog::Key, value: bool) -> slog::Result {
        self.put(key, Value::Bool(value))
    }
}

/// Python's side: the loggers, and when their levels were last looked up. On the loop's thread only.
pub struct Loggers {
    get_logger: Py<PyAny>,
    known: Mutex<HashMap<String, Py<PyAny>>>,
    refreshed: Mutex<Option<Instant>>,
}

impl Loggers {
    /// Imports `logging`.
    pub fn new(py: Python<'_>) -> PyResult<Self> {
        let get_logger = py.import("logging")?.getattr("getLogger")?.unbind();
        Ok(Self { get_logger, known: Mutex::default(), refreshed: Mutex::default() })
    }

    /// Takes over the levels of Python's loggers into `queue`, unless that was done a moment ago.
    pub fn refresh(&self, py: Python<'_>, queue: &LogQueue) {
        let now = Instant::now();
        if self.refreshed.lock().replace_if(|last| now.duration_since(last) >= REFRESH, now) {
            for (name, threshold) in SUBSYSTEMS.iter().zip(&queue.thresholds) {
                let level = self.get(py, name).and_then(|logger| logger.call_method0("getEffectiveLevel")?.extract());
                // What cannot be read is an error of the application's logging: it gets warnings.
                threshold.store(level.map_or(30, |level: i64| level.clamp(0, 255) as u8), Ordering::Relaxed);
            }
        }
    }

    /// Hands at most `limit` records to Python.
    pub fn emit(&self, py: Python<'_>, queue: &LogQueue, limit: usize) {
        for _ in 0..limit {
            let Some(record) = queue.pop() else { return };
            if let Err(error) = self.handle(py, &record) {
                error.write_unraisable(py, None);
            }
        }
    }

    /// Logs that `apply` raised for an entry that nobody here waits for.
    pub fn apply_failed(&self, py: Python<'_>, index: u64, error: &PyErr) {
        let logged = self.get(py, "apply").and_then(|logger| {
            let arguments = PyDict::new(py);
            arguments.set_item("exc_info", error.value(py))?;
            let fields = PyDict::new(py);
            fields.set_item("index", index)?;
            let extra = PyDict::new(py);
            extra.set_item("aioraft", fields)?;
            arguments.set_item("extra", extra)?;
            let message = "apply raised for the entry at index %d; the entry counts as applied";
            logger.call_method("error", (message, index), Some(&arguments))
        });
        if let Err(error) = logged {
            error.write_unraisable(py, None);
        }
    }

    fn get<'py>(&self, py: Python<'py>, target: &str) -> PyResult<Bound<'py, PyAny>> {
        if let Some(logger) = self.known.lock().get(target) {
            return Ok(logger.bind(py).clone());
        }
        let name = if target == "aioraft" { target.to_owned() } else { format!("aioraft.{target}") };
        let logger = self.get_logger.bind(py).call1((name,))?;
        self.known.lock().insert(target.to_owned(), logger.clone().unbind());
        Ok(logger)
    }

    fn handle(&self, py: Python<'_>, record: &LogRecord) -> PyResult<()> {
        let logger = self.get(py, &record.target)?;
        if !logger.call_method1("isEnabledFor", (record.level,))?.is_truthy()? {
            return Ok(());
        }
        let mut text = record.message.clone();
        let fields = PyDict::new(py);
        for (name, value) in &record.fields {
            // Writing to a string cannot fail.
            let _ = write!(text, " {name}={value}");
            match value {
                Value::Int(value) => fields.set_item(name, value)?,
                Value::Uint(value) => fields.set_item(name, value)?,
                Value::Float(value) => fields.set_item(name, value)?,
                Value::Bool(value) => fields.set_item(name, value)?,
                Value::Text(value) => fields.set_item(name, value)?,
            }
        }
        let extra = PyDict::new(py);
        extra.set_item("aioraft", fields)?;
        let file = record.file.as_deref().unwrap_or("aioraft");
        // The logger's own `log` would name the event loop as the caller, and now as the time.
        let made = logger.call_method1(
            "makeRecord",
            (
                logger.getattr("name")?,
                record.level,
                file,
                record.line,
                text,
                PyTuple::empty(py),
                py.None(),
                py.None(),
                extra,
            ),
        )?;
        let created = record.wall_ns as f64 / 1e9;
        made.setattr("created", created)?;
        made.setattr("msecs", (record.wall_ns / 1_000_000 % 1_000) as f64)?;
        logger.call_method1("handle", (made,))?;
        Ok(())
    }
}

trait ReplaceIf<T> {
    fn replace_if(&mut self, is_due: impl FnOnce(T) -> bool, value: T) -> bool;
}

impl<T: Copy> ReplaceIf<T> for Option<T> {
    /// Puts `value` in if there was none, or if `is_due` says so of the old one; true if it did.
    fn replace_if(&mut self, is_due: impl FnOnce(T) -> bool, value: T) -> bool {
        let is_replaced = self.is_none_or(is_due);
        if is_replaced {
            *self = Some(value);
        }
        is_replaced
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn queue(level: u8) -> Arc<LogQueue> {
        let queue = LogQueue::new(Arc::new(Bell::new().unwrap()), 7);
        for threshold in &queue.thresholds {
            threshold.store(level, Ordering::Relaxed);
        }
        Arc::new(queue)
    }

    #[test]
    fn a_tracing_event_keeps_its_fields() {
        let queue = queue(20);
        tracing::subscriber::with_default(Subscriber(Arc::clone(&queue)), || {
            tracing::info!(target: "aioraft::driver::peers", peer = 3_u64, up = true, who = "x", "connected");
            tracing::debug!("not wanted");
            let _span = tracing::info_span!("ignored").entered();
        });
        let record = queue.pop().unwrap();
        assert_eq!((record.level, record.target.as_str(), record.message.as_str()), (20, "driver", "connected"));
        let fields: Vec<_> = record.fields.iter().map(|(name, value)| format!("{name}={value}")).collect();
        assert_eq!(fields, ["node=7", "peer=3", "up=true", "who=x"]);
        assert_eq!(queue.pop(), None);
    }

    #[test]
    fn a_slog_record_keeps_its_fields_and_its_news_is_for_debugging() {
        let queue = queue(10);
        let logger = slog::Logger::root(RaftDrain(Arc::clone(&queue)), slog::o!("raft_id" => 7));
        slog::info!(logger, "became leader at term {}", 5; "term" => 5);
        slog::debug!(logger, "not wanted");
        let record = queue.pop().unwrap();
        assert_eq!(
            (record.level, record.target.as_str(), record.message.as_str()),
            (10, "raft", "became leader at term 5")
        );
        let fields: Vec<_> = record.fields.iter().map(|(name, value)| format!("{name}={value}")).collect();
        assert_eq!(fields, ["node=7", "term=5", "raft_id=7"]);
        assert_eq!(queue.pop(), None);
    }

    #[test]
    fn what_does_not_fit_is_counted() {
        let queue = queue(0);
        tracing::subscriber::with_default(Subscriber(Arc::clone(&queue)), || {
            for number in 0..CAPACITY + 5 {
                tracing::warn!(number, "again");
            }
        });
        for _ in 0..CAPACITY {
            assert_eq!(queue.pop().unwrap().message, "again");
        }
        assert!(queue.pop().unwrap().message.starts_with("5 log records were dropped"));
        assert_eq!(queue.pop(), None);
    }

    #[test]
    fn targets_name_their_subsystem() {
        assert_eq!(subsystem("aioraft::driver::peers"), "driver");
        assert_eq!(subsystem("aioraft"), "aioraft");
        assert_eq!(subsystem("rustls::conn"), "rustls");
    }
}
