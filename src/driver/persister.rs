//! The thread that keeps the log: it drains its whole queue into one atomic batch, fsyncs once, and answers.

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use tokio::sync::Notify;

use crate::engine::Persist;
use crate::mutants::{self, Mutant};
use crate::storage::snapshot::SnapshotName;
use crate::storage::{Batch, Figures, LogWriter, StorageError};

/// What the thread is asked to write.
pub enum Task {
    /// A Ready of the engine.
    Ready(Persist),
    /// A record of the node itself; answered by its number.
    NodeRecord {
        /// Given back in [`Answer::node_record`].
        number: u64,
        /// Key and value.
        record: (Vec<u8>, Vec<u8>),
    },
}

/// What has become durable since the last look.
#[derive(Default)]
pub struct Answer {
    /// The highest Ready.
    pub ready: Option<u64>,
    /// The highest node record.
    pub node_record: Option<u64>,
    /// The snapshot that the log names.
    pub snapshot: Option<SnapshotName>,
    /// The log failed: nothing is answered any more.
    pub failure: Option<StorageError>,
    /// Figures as of the last write.
    pub figures: Figures,
}

#[derive(Default)]
struct Queue {
    tasks: Vec<Task>,
    stop: Option<End>,
}

/// How the thread ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// It writes what it has, and leaves the log as a good end does.
    InOrder,
    /// It writes nothing more, and leaves the files as they are.
    Abandoned,
}

struct Shared {
    queue: Mutex<Queue>,
    work: Condvar,
    answer: Mutex<Answer>,
    /// Since when the thread has been writing, or doing the log's housekeeping.
    busy_since: Mutex<Option<Instant>>,
    driver: Arc<Notify>,
}

/// The driver's handle on the persist thread.
pub struct Persister {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Persister {
    /// Starts the thread; it notifies `driver` of every answer.
    pub fn start(
        writer: Box<dyn LogWriter>,
        driver: Arc<Notify>,
        name: String,
        dispatch: tracing::Dispatch,
    ) -> std::io::Result<Self> {
        let shared = Arc::new(Shared {
            queue: Mutex::default(),
            work: Condvar::new(),
            answer: Mutex::new(Answer { figures: writer.figures(), ..Default::default() }),
            busy_since: Mutex::new(None),
            driver,
        });
        let theirs = Arc::clone(&shared);
        let thread = std::thread::Builder::new().name(name).spawn(move || {
            let _logging = tracing::dispatcher::set_default(&dispatch);
            run(writer, &theirs);
        })?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// Hands tasks over, in order; `tasks` is left empty.
    pub fn write(&self, tasks: &mut Vec<Task>) {
        if tasks.is_empty() {
            return;
        }
        self.shared.queue.lock().tasks.append(tasks);
        self.shared.work.notify_one();
    }

    /// Takes what has been answered since the last call.
    pub fn take_answer(&self) -> Answer {
        let mut answer = self.shared.answer.lock();
        let figures = answer.figures;
        std::mem::replace(&mut *answer, Answer { figures, ..Default::default() })
    }

    /// How long the disk has kept the thread waiting by now.
    pub fn busy_for(&self) -> Duration {
        self.shared.busy_since.lock().map_or(Duration::ZERO, |since| since.elapsed())
    }

    /// Asks the thread to end, after the batch in hand.
    pub fn stop(&mut self, end: End) {
        self.shared.queue.lock().stop.get_or_insert(end);
        self.shared.work.notify_one();
    }

    /// The thread has ended, and with it the hold on the data directory.
    pub fn is_stopped(&self) -> bool {
        self.thread.as_ref().is_none_or(JoinHandle::is_finished)
    }
}

impl Drop for Persister {
    fn drop(&mut self) {
        self.stop(End::InOrder);
    }
}

fn run(mut writer: Box<dyn LogWriter>, shared: &Shared) {
    let mut housekeeping = Some(Duration::ZERO);
    loop {
        let (tasks, stop) = next_tasks(shared, housekeeping);
        if stop == Some(End::Abandoned) {
            writer.abandon();
            shared.driver.notify_one();
            return;
        }
        *shared.busy_since.lock() = Some(Instant::now());
        let outcome = if tasks.is_empty() { Ok(()) } else { write(writer.as_mut(), tasks, shared) };
        let outcome = outcome.and_then(|()| writer.maintain());
        *shared.busy_since.lock() = None;
        match outcome {
            Ok(next) => housekeeping = next,
            // A failed write or fsync left the disk in an unknown state: nothing is answered any more, not even what
            // comes next and might succeed (design decision 3).
            Err(error) => {
                shared.answer.lock().failure = Some(error);
                shared.driver.notify_one();
                return;
            }
        }
        if stop.is_some() {
            drop(writer);
            shared.driver.notify_one();
            return;
        }
    }
}

/// Waits for tasks, or until housekeeping is due.
fn next_tasks(shared: &Shared, housekeeping: Option<Duration>) -> (Vec<Task>, Option<End>) {
    let mut queue = shared.queue.lock();
    if queue.tasks.is_empty() && queue.stop.is_none() {
        match housekeeping {
            Some(pause) => {
                shared.work.wait_for(&mut queue, pause);
            }
            None => shared.work.wait(&mut queue),
        }
    }
    (std::mem::take(&mut queue.tasks), queue.stop)
}

/// Tasks that are written, and answered, together.
#[derive(Default)]
pub struct Gathered {
    /// What is written.
    pub batch: Batch,
    /// The highest Ready in it.
    pub ready: Option<u64>,
    /// The highest node record in it.
    pub node_record: Option<u64>,
    /// The last snapshot that it names.
    pub snapshot: Option<SnapshotName>,
}

/// One batch of all these tasks, in order.
pub fn gather(mut tasks: Vec<Task>) -> Gathered {
    if mutants::on(Mutant::PersistOutOfOrder) {
        tasks.reverse();
    }
    let mut gathered = Gathered::default();
    for task in tasks {
        let batch = &mut gathered.batch;
        match task {
            Task::Ready(persist) => {
                gathered.ready = gathered.ready.max(Some(persist.number));
                gathered.snapshot = persist.snapshot.or(gathered.snapshot);
                batch.sync |= persist.sync;
                batch.groups.push(persist.into_write());
            }
            Task::NodeRecord { number, record } => {
                gathered.node_record = Some(number);
                batch.sync = true;
                batch.node_records.push(record);
            }
        }
    }
    gathered
}

fn write(writer: &mut dyn LogWriter, tasks: Vec<Task>, shared: &Shared) -> Result<(), StorageError> {
    let Gathered { batch, ready, node_record, snapshot } = gather(tasks);
    writer.write(batch)?;
    let mut answer = shared.answer.lock();
    answer.ready = answer.ready.max(ready);
    answer.node_record = answer.node_record.max(node_record);
    answer.snapshot = snapshot.or(answer.snapshot);
    answer.figures = writer.figures();
    drop(answer);
    shared.driver.notify_one();
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{channel, Receiver, Sender};
    use std::time::Instant;

    use super::*;

    /// A log that tells what it is asked to write, and does so when the test says how it ends.
    struct Scripted {
        asked: Sender<Batch>,
        outcomes: Receiver<Result<(), StorageError>>,
    }

    impl LogWriter for Scripted {
        fn write(&mut self, batch: Batch) -> Result<(), StorageError> {
            self.asked.send(batch).unwrap();
            self.outcomes.recv_timeout(Duration::from_secs(20)).unwrap()
        }

        fn maintain(&mut self) -> Result<Option<Duration>, StorageError> {
            Ok(None)
        }

        fn abandon(self: Box<Self>) {}

        fn figures(&self) -> Figures {
            Figures::default()
        }
    }

    struct Rig {
        persister: Persister,
        asked: Receiver<Batch>,
        outcomes: Sender<Result<(), StorageError>>,
    }

    impl Rig {
        fn new() -> Self {
            let ((asked_in, asked), (outcomes, outcomes_out)) = (channel(), channel());
            let writer = Box::new(Scripted { asked: asked_in, outcomes: outcomes_out });
            let driver = Arc::new(Notify::new());
            let persister = Persister::start(writer, driver, "test".into(), tracing::Dispatch::none()).unwrap();
            Self { persister, asked, outcomes }
        }

        fn write(&self, tasks: impl IntoIterator<Item = Task>) {
            self.persister.write(&mut tasks.into_iter().collect());
        }

        /// What the log is asked to write.
        fn asked(&self) -> Batch {
            self.asked.recv_timeout(Duration::from_secs(20)).unwrap()
        }

        /// The next answer with something in it.
        fn answer(&self) -> Answer {
            let deadline = Instant::now() + Duration::from_secs(20);
            loop {
                let answer = self.persister.take_answer();
                if answer.ready.is_some() || answer.node_record.is_some() || answer.failure.is_some() {
                    return answer;
                }
                assert!(Instant::now() < deadline, "no answer");
                std::thread::yield_now();
            }
        }

        fn stopped(&self) {
            let deadline = Instant::now() + Duration::from_secs(20);
            while !self.persister.is_stopped() {
                assert!(Instant::now() < deadline, "the thread goes on");
                std::thread::yield_now();
            }
        }
    }

    fn ready(number: u64, sync: bool) -> Task {
        Task::Ready(Persist { number, sync, ..Default::default() })
    }

    fn record(number: u64) -> Task {
        Task::NodeRecord { number, record: (vec![], vec![]) }
    }

    #[test]
    fn p1_whatever_must_be_durable_makes_its_whole_batch_so_and_nothing_is_answered_before() {
        let rig = Rig::new();
        for (tasks, sync, answered) in [
            (vec![ready(1, true)], true, (Some(1), None)),
            (vec![ready(2, false)], false, (Some(2), None)),
            (vec![ready(3, false), ready(4, true), ready(5, false)], true, (Some(5), None)),
            (vec![record(6)], true, (None, Some(6))),
            (vec![record(7), ready(8, false)], true, (Some(8), Some(7))),
        ] {
            let groups = tasks.iter().filter(|task| matches!(task, Task::Ready(_))).count();
            rig.write(tasks);
            let batch = rig.asked();
            assert_eq!((batch.sync, batch.groups.len()), (sync, groups), "{answered:?}");
            let early = rig.persister.take_answer();
            assert_eq!((early.ready, early.node_record), (None, None), "{answered:?}");
            rig.outcomes.send(Ok(())).unwrap();
            let answer = rig.answer();
            assert_eq!((answer.ready, answer.node_record), answered);
        }
    }

    #[test]
    fn after_a_failure_nothing_is_answered_any_more() {
        let rig = Rig::new();
        rig.write([ready(1, true)]);
        rig.asked();
        rig.write([ready(2, true), record(1)]);
        rig.outcomes.send(Err(StorageError::Poisoned { reason: "no space".into() })).unwrap();
        // The next write would succeed; the thread may have ended before it hears so.
        let _ = rig.outcomes.send(Ok(()));
        let answer = rig.answer();
        assert_eq!((answer.ready, answer.node_record), (None, None));
        assert!(answer.failure.unwrap().to_string().contains("no space"));
        rig.write([ready(3, false)]);
        rig.stopped();
        let answer = rig.persister.take_answer();
        assert_eq!((answer.ready, answer.node_record), (None, None));
        assert!(rig.asked.try_recv().is_err(), "nothing is written behind a failure");
    }

    #[test]
    fn what_is_queued_is_written_before_the_end() {
        let mut rig = Rig::new();
        rig.outcomes.send(Ok(())).unwrap();
        rig.outcomes.send(Ok(())).unwrap();
        rig.write([ready(1, true)]);
        rig.persister.stop(End::InOrder);
        rig.stopped();
        assert_eq!(rig.persister.take_answer().ready, Some(1));
    }

    #[test]
    fn an_abandoned_log_is_not_written_any_more() {
        let mut rig = Rig::new();
        rig.write([ready(1, true)]);
        rig.asked();
        rig.write([ready(2, true)]);
        rig.persister.stop(End::Abandoned);
        rig.outcomes.send(Ok(())).unwrap();
        rig.stopped();
        assert!(rig.asked.try_recv().is_err());
        assert_eq!(rig.persister.take_answer().ready, Some(1), "the batch in hand was finished");
    }
}
