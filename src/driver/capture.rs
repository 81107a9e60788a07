//! A snapshot on its way from the application into its file.
//!
//! The application hands over its pieces from any of its threads, and a thread of the capture's own writes them
//! ([`Captures::begin`]). Between the two is a bounded queue, so that neither a slow disk nor a large state takes memory.
//! A capture ends exactly once, in an [`Outcome`] that the driver collects: whole and durable, or failed, by the
//! application, by the disk, because it was dropped, or because the node ends. None of these harms the node.

use std::collections::VecDeque;
use std::fmt;
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};

use parking_lot::{Condvar, Mutex};

use super::port::Wake;
use crate::engine::{GroupId, NodeId};
use crate::storage::snapshot::{Form, Head, SnapshotFile, SnapshotStore, SnapshotWriter};
use crate::storage::StorageError;

/// Bytes that wait for the disk, beyond which the application is to wait.
const QUEUE_BYTES_MAX: usize = 4 << 20;
/// It is asked for more once no more than this waits.
const QUEUE_BYTES_LOW: usize = QUEUE_BYTES_MAX / 2;
/// What a piece takes beside its bytes, so that many small ones are bounded as well.
const PIECE_OVERHEAD: usize = 128;
/// [`Form::Bytes`] is written in chunks of this size.
const CHUNK_BYTES: usize = 1 << 20;

/// Why a capture fails with its node.
const ENDED: &str = "the node ended first";

/// Bytes that the application has handed over, and that nobody changes.
pub type Piece = Box<dyn AsRef<[u8]> + Send>;

/// What became of a capture.
#[derive(Debug)]
pub struct Outcome {
    /// The index of its state.
    pub index: u64,
    /// The file, which is durable, or a sentence that says why there is none.
    pub result: Result<Arc<dyn SnapshotFile>, String>,
}

/// The captures of a node. Dropped, it ends those that are under way.
pub struct Captures(Arc<Shared>);

struct Shared {
    node: NodeId,
    /// Until the node ends: whoever still has a [`Capture`] then must not keep the data directory locked.
    store: Mutex<Option<Arc<dyn SnapshotStore>>>,
    driver: Box<dyn Wake>,
    dispatch: tracing::Dispatch,
    outcomes: Mutex<Vec<Outcome>>,
    under_way: Mutex<Vec<Weak<Job>>>,
    threads: AtomicUsize,
}

impl Shared {
    /// Nobody collects them any more, and a file may keep the store.
    fn let_go_of_files(&self) {
        self.outcomes.lock().retain(|outcome| outcome.result.is_err());
    }
}

impl Captures {
    /// Files go to `store`; `driver` is woken for each outcome, and when a thread has ended.
    pub fn new(
        node: NodeId,
        store: Arc<dyn SnapshotStore>,
        driver: Box<dyn Wake>,
        dispatch: tracing::Dispatch,
    ) -> Self {
        Self(Arc::new(Shared {
            node,
            store: Mutex::new(Some(store)),
            driver,
            dispatch,
            outcomes: Mutex::default(),
            under_way: Mutex::default(),
            threads: AtomicUsize::new(0),
        }))
    }

    /// Begins a capture of the state as of `index`; `meta` is the engine's part of it (rule C2).
    pub fn begin(&self, group: GroupId, index: u64, term: u64, meta: Vec<u8>) -> Arc<Capture> {
        let job = Arc::new(Job {
            shared: self.0.clone(),
            head: Head { group, index, term, form: Form::Bytes, meta },
            state: Mutex::default(),
            changed: Condvar::new(),
        });
        let mut under_way = self.0.under_way.lock();
        under_way.retain(|job| job.strong_count() > 0);
        under_way.push(Arc::downgrade(&job));
        Arc::new(Capture(job))
    }

    /// What has ended since the last call.
    pub fn take_outcomes(&self) -> Vec<Outcome> {
        std::mem::take(&mut *self.0.outcomes.lock())
    }

    /// Fails all that are under way: the node ends. Their threads end after the write in hand, and once
    /// [`Self::is_idle`] nothing of this holds the store any more.
    pub fn abandon(&self) {
        let store = self.0.store.lock().take();
        drop(store);
        let under_way = std::mem::take(&mut *self.0.under_way.lock());
        for job in under_way.iter().filter_map(Weak::upgrade) {
            job.fail(ENDED);
        }
        self.0.let_go_of_files();
    }

    /// Whether no thread writes any more.
    pub fn is_idle(&self) -> bool {
        self.0.threads.load(Ordering::Acquire) == 0
    }
}

impl Drop for Captures {
    fn drop(&mut self) {
        self.abandon();
    }
}

/// A capture, as the application has it. It may be used from any thread; dropped unfinished, it fails.
pub struct Capture(Arc<Job>);

struct Job {
    shared: Arc<Shared>,
    head: Head,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    stage: Stage,
    pieces: VecDeque<Piece>,
    /// Of the pieces, and of the one that is being written.
    bytes: usize,
    /// Woken once when there is room.
    waiting: Option<Arc<dyn Wake>>,
}

#[derive(Default)]
enum Stage {
    /// The application has not said what it returns.
    #[default]
    Asked,
    /// The thread writes what comes.
    Open,
    /// The thread writes what is left.
    Whole,
    /// The thread is to stop, for this reason.
    Failed(String),
    /// The outcome is told.
    Over,
}

impl State {
    fn takes_pieces(&self) -> bool {
        matches!(self.stage, Stage::Asked | Stage::Open)
    }
}

impl Capture {
    /// The index whose state is wanted.
    pub fn index(&self) -> u64 {
        self.0.head.index
    }

    /// What comes has this form: starts the thread that writes it. To be called once, before the first piece.
    pub fn open(&self, form: Form) {
        let mut state = self.0.state.lock();
        if !matches!(state.stage, Stage::Asked) {
            return;
        }
        state.stage = Stage::Open;
        drop(state);
        let shared = &self.0.shared;
        shared.threads.fetch_add(1, Ordering::AcqRel);
        let job = self.0.clone();
        let name = format!("aioraft-snapshot-{}", shared.node);
        let spawned = std::thread::Builder::new().name(name).spawn(move || {
            let dispatch = job.shared.dispatch.clone();
            tracing::dispatcher::with_default(&dispatch, || job.run(form));
        });
        if let Err(error) = spawned {
            shared.threads.fetch_sub(1, Ordering::AcqRel);
            self.0.end(Err(format!("no thread could be started to write it ({error})")));
        }
    }

    /// Hands over a piece: a chunk, or with [`Form::Bytes`] any part of the value. It is always taken; false if the
    /// caller should wait for room now.
    pub fn write(&self, piece: Piece) -> bool {
        let mut state = self.0.state.lock();
        if !state.takes_pieces() {
            drop(state);
            return true;
        }
        state.bytes += (*piece).as_ref().len() + PIECE_OVERHEAD;
        state.pieces.push_back(piece);
        self.0.changed.notify_all();
        state.bytes < QUEUE_BYTES_MAX
    }

    /// Whether there is room again, or no need for any.
    pub fn has_room(&self) -> bool {
        let state = self.0.state.lock();
        !state.takes_pieces() || state.bytes <= QUEUE_BYTES_LOW
    }

    /// Has `application` woken once [`Self::has_room`] holds. False if it does already.
    pub fn wake_at_room(&self, application: Arc<dyn Wake>) -> bool {
        let mut state = self.0.state.lock();
        let is_full = state.takes_pieces() && state.bytes > QUEUE_BYTES_LOW;
        if is_full {
            state.waiting = Some(application);
        }
        is_full
    }

    /// Blocks until [`Self::has_room`] holds.
    pub fn wait_room(&self) {
        let mut state = self.0.state.lock();
        while state.takes_pieces() && state.bytes > QUEUE_BYTES_LOW {
            self.0.changed.wait(&mut state);
        }
    }

    /// Whether further pieces are of no use: it has failed, or it was finished.
    pub fn is_over(&self) -> bool {
        !self.0.state.lock().takes_pieces()
    }

    /// That was the last piece. The file is durable when the outcome says so.
    pub fn finish(&self) {
        let mut state = self.0.state.lock();
        if matches!(state.stage, Stage::Open) {
            state.stage = Stage::Whole;
            self.0.changed.notify_all();
        }
    }

    /// The application has no snapshot, or no more of it.
    pub fn fail(&self, reason: &str) {
        self.0.fail(reason);
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        if !self.is_over() {
            self.0.fail("the application dropped it unfinished");
        }
    }
}

impl fmt::Debug for Capture {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Capture").field("index", &self.index()).finish_non_exhaustive()
    }
}

impl Job {
    /// Ends it, unless that has been done: at once where no thread writes, else when the thread has noticed.
    fn fail(&self, reason: &str) {
        let mut state = self.state.lock();
        match state.stage {
            Stage::Asked => {
                drop(state);
                self.end(Err(reason.to_owned()));
            }
            Stage::Open | Stage::Whole => {
                state.stage = Stage::Failed(reason.to_owned());
                drop(state);
                self.release();
            }
            Stage::Failed(_) | Stage::Over => {}
        }
    }

    /// Lets go of what waits to be written, and of whoever waits for room.
    fn release(&self) {
        let mut state = self.state.lock();
        let pieces = std::mem::take(&mut state.pieces);
        let waiting = state.waiting.take();
        self.changed.notify_all();
        drop(state);
        drop(pieces);
        if let Some(application) = waiting {
            application.wake();
        }
    }

    /// Tells the outcome, once.
    fn end(&self, result: Result<Arc<dyn SnapshotFile>, String>) {
        let mut state = self.state.lock();
        if matches!(std::mem::replace(&mut state.stage, Stage::Over), Stage::Over) {
            return;
        }
        drop(state);
        self.release();
        let index = self.head.index;
        let result =
            result.map_err(|reason| format!("the snapshot of index {index} failed, and the node goes on: {reason}"));
        self.shared.outcomes.lock().push(Outcome { index, result });
        self.shared.driver.wake();
    }

    fn run(&self, form: Form) {
        let written = catch_unwind(AssertUnwindSafe(|| self.write(form)));
        let result = written.unwrap_or_else(|_| Err("the thread that wrote it panicked; please report this".into()));
        // Whoever has failed it knows why, but nobody need be waiting for what the disk says.
        if let (Err(reason), false) = (&result, matches!(self.state.lock().stage, Stage::Failed(_))) {
            let (node, index) = (self.shared.node, self.head.index);
            tracing::error!(node, index, "the snapshot of index {index} failed, and the node goes on: {reason}");
        }
        self.end(result);
        if self.shared.store.lock().is_none() {
            self.shared.let_go_of_files();
        }
        self.shared.threads.fetch_sub(1, Ordering::AcqRel);
        self.shared.driver.wake();
    }

    fn write(&self, form: Form) -> Result<Arc<dyn SnapshotFile>, String> {
        let head = Head { form, ..self.head.clone() };
        let store = self.shared.store.lock().clone().ok_or(ENDED)?;
        let mut writer = store.create(&head).map_err(|error| sentence(&error))?;
        while let Some(piece) = self.next_piece()? {
            let bytes = (*piece).as_ref();
            match form {
                Form::Chunks => self.write_chunk(writer.as_mut(), bytes)?,
                Form::Bytes => {
                    bytes.chunks(CHUNK_BYTES).try_for_each(|part| self.write_chunk(writer.as_mut(), part))?
                }
            }
            self.written(bytes.len() + PIECE_OVERHEAD);
        }
        writer.finish().map_err(|error| sentence(&error))
    }

    /// The next piece, or `None` behind the last.
    fn next_piece(&self) -> Result<Option<Piece>, String> {
        let mut state = self.state.lock();
        loop {
            if let Stage::Failed(reason) = &state.stage {
                return Err(reason.clone());
            }
            if let Some(piece) = state.pieces.pop_front() {
                return Ok(Some(piece));
            }
            if matches!(state.stage, Stage::Whole) {
                return Ok(None);
            }
            self.changed.wait(&mut state);
        }
    }

    fn write_chunk(&self, writer: &mut dyn SnapshotWriter, chunk: &[u8]) -> Result<(), String> {
        // Looked at for each chunk, because one piece may be the whole of a large state.
        if let Stage::Failed(reason) = &self.state.lock().stage {
            return Err(reason.clone());
        }
        writer.write_chunk(chunk).map_err(|error| sentence(&error))
    }

    /// There is room for so much more.
    fn written(&self, bytes: usize) {
        let mut state = self.state.lock();
        state.bytes -= bytes;
        if state.bytes > QUEUE_BYTES_LOW {
            return;
        }
        let waiting = state.waiting.take();
        self.changed.notify_all();
        drop(state);
        if let Some(application) = waiting {
            application.wake();
        }
    }
}

/// What is wrong with the disk. What the error says of starting the node again is meant for its log, whose failure stops
/// it.
fn sentence(error: &StorageError) -> String {
    match error {
        StorageError::Io { path, operation, source } | StorageError::DiskFull { path, operation, source } => {
            format!("cannot {operation} {} ({source})", path.display())
        }
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests;
