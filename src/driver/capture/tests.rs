use std::sync::mpsc::{channel, Receiver, Sender};
use std::time::Duration;

use super::*;
use crate::engine::APPLICATION_GROUP;
use crate::storage::snapshot::{SnapshotName, SnapshotReceiver};

const DEADLINE: Duration = Duration::from_secs(20);

/// Says on a channel that it was rung.
struct Bell(Mutex<Sender<()>>);

impl Wake for Bell {
    fn wake(&self) {
        let _ = self.0.lock().send(());
    }
}

fn bell() -> (Bell, Receiver<()>) {
    let (sender, receiver) = channel();
    (Bell(Mutex::new(sender)), receiver)
}

/// A store whose writer takes a chunk for each permit it is given, and fails or panics when told.
struct Store {
    permits: Mutex<Receiver<Permit>>,
    written: Arc<Mutex<Vec<Vec<u8>>>>,
}

enum Permit {
    Write,
    Fail,
    Panic,
}

impl SnapshotStore for Arc<Store> {
    fn create(&self, head: &Head) -> Result<Box<dyn SnapshotWriter>, StorageError> {
        Ok(Box::new(Writer { store: self.clone(), head: head.clone() }))
    }

    fn receive(&self, _: &SnapshotName) -> Result<Box<dyn SnapshotReceiver>, StorageError> {
        unimplemented!()
    }

    fn open(&self, _: &SnapshotName) -> Result<Arc<dyn SnapshotFile>, StorageError> {
        unimplemented!()
    }

    fn retain(&self, _: &[SnapshotName]) -> Result<(), StorageError> {
        unimplemented!()
    }
}

struct Writer {
    store: Arc<Store>,
    head: Head,
}

impl SnapshotWriter for Writer {
    fn write_chunk(&mut self, chunk: &[u8]) -> Result<(), StorageError> {
        match self.store.permits.lock().recv_timeout(DEADLINE).unwrap_or(Permit::Write) {
            Permit::Write => self.store.written.lock().push(chunk.to_vec()),
            Permit::Fail => return Err(StorageError::Poisoned { reason: "told to".into() }),
            Permit::Panic => panic!("told to"),
        }
        Ok(())
    }

    fn finish(self: Box<Self>) -> Result<Arc<dyn SnapshotFile>, StorageError> {
        let Head { group, index, term, .. } = self.head;
        let name = SnapshotName { group, index, term, bytes: 0, checksum: 0 };
        Ok(Arc::new(File { name, head: self.head }))
    }
}

#[derive(Debug)]
struct File {
    name: SnapshotName,
    head: Head,
}

impl SnapshotFile for File {
    fn name(&self) -> &SnapshotName {
        &self.name
    }

    fn head(&self) -> &Head {
        &self.head
    }

    fn read_at(&self, _: u64, _: usize) -> Result<Vec<u8>, StorageError> {
        unimplemented!()
    }

    fn chunks(self: Arc<Self>) -> Box<dyn Iterator<Item = Result<Vec<u8>, StorageError>> + Send> {
        unimplemented!()
    }
}

struct World {
    captures: Captures,
    woken: Receiver<()>,
    permits: Sender<Permit>,
    written: Arc<Mutex<Vec<Vec<u8>>>>,
    store: Weak<Store>,
}

impl World {
    fn new() -> Self {
        let (permits, receiver) = channel();
        let written = Arc::new(Mutex::new(Vec::new()));
        let store = Arc::new(Store { permits: Mutex::new(receiver), written: written.clone() });
        let (driver, woken) = bell();
        let weak = Arc::downgrade(&store);
        let captures = Captures::new(1, Arc::new(store), Box::new(driver), tracing::Dispatch::none());
        Self { captures, woken, permits, written, store: weak }
    }

    fn begin(&self) -> Arc<Capture> {
        self.captures.begin(APPLICATION_GROUP, 7, 3, b"meta".to_vec())
    }

    fn permit(&self, permits: usize) {
        (0..permits).for_each(|_| self.permits.send(Permit::Write).unwrap());
    }

    /// The outcome that must come, and no second one.
    fn outcome(&self) -> Result<Arc<dyn SnapshotFile>, String> {
        let mut outcomes = Vec::new();
        while outcomes.is_empty() || !self.captures.is_idle() {
            self.woken.recv_timeout(DEADLINE).unwrap();
            outcomes.extend(self.captures.take_outcomes());
        }
        assert_eq!(outcomes.len(), 1, "{outcomes:?}");
        let Outcome { index, result } = outcomes.remove(0);
        assert_eq!(index, 7);
        result
    }

    fn failure(&self) -> String {
        self.outcome().unwrap_err()
    }
}

#[test]
fn chunks_keep_their_boundaries_and_the_head_its_parts() {
    let world = World::new();
    world.permit(3);
    let capture = world.begin();
    capture.open(Form::Chunks);
    for chunk in ["one", "", "three"] {
        assert!(capture.write(Box::new(chunk)));
    }
    capture.finish();
    assert!(capture.is_over());
    let file = world.outcome().unwrap();
    let head = Head { group: APPLICATION_GROUP, index: 7, term: 3, form: Form::Chunks, meta: b"meta".to_vec() };
    assert_eq!(file.head(), &head);
    assert_eq!(*world.written.lock(), [&b"one"[..], b"", b"three"]);
}

#[test]
fn a_single_value_is_cut() {
    let world = World::new();
    world.permit(6);
    let value: Vec<u8> = (0..5 * CHUNK_BYTES + 1).map(|at| (at % 251) as u8).collect();
    let capture = world.begin();
    capture.open(Form::Bytes);
    assert!(!capture.write(Box::new(value.clone())), "there is no room for more");
    capture.finish();
    world.outcome().unwrap();
    assert_eq!(world.written.lock().len(), 6);
    assert_eq!(world.written.lock().concat(), value);
}

#[test]
fn what_waits_is_bounded_also_if_it_is_many_small_pieces() {
    for (size, most) in [(1 << 20, 4), (0, QUEUE_BYTES_MAX / PIECE_OVERHEAD)] {
        let world = World::new();
        let capture = world.begin();
        capture.open(Form::Chunks);
        let mut pieces = 1;
        while capture.write(Box::new(vec![0; size])) {
            pieces += 1;
        }
        assert!(pieces <= most, "{pieces} of {size} bytes");
        assert!(!capture.has_room());
        let (application, rung) = bell();
        assert!(capture.wake_at_room(Arc::new(application)));
        rung.try_recv().unwrap_err();
        world.permit(pieces);
        rung.recv_timeout(DEADLINE).unwrap();
        assert!(capture.has_room());
        capture.wait_room();
        capture.finish();
        world.outcome().unwrap();
    }
}

#[test]
fn whoever_blocks_for_room_goes_on_when_it_is_over() {
    let world = World::new();
    let capture = world.begin();
    capture.open(Form::Chunks);
    assert!(!capture.write(Box::new(vec![0; QUEUE_BYTES_MAX])));
    let waiting = {
        let capture = capture.clone();
        std::thread::spawn(move || capture.wait_room())
    };
    capture.fail("enough");
    waiting.join().unwrap();
    world.permit(1);
    assert!(world.failure().ends_with("the node goes on: enough"));
}

#[test]
fn it_fails_once_however_it_fails() {
    let ways: [fn(&World, Arc<Capture>); 8] = [
        |_, capture| capture.fail("said so"),
        |_, capture| drop(capture),
        |world, _| world.captures.abandon(),
        |_, capture| {
            capture.open(Form::Chunks);
            drop(capture);
        },
        |world, capture| {
            capture.open(Form::Chunks);
            world.captures.abandon();
            capture.fail("again");
        },
        |world, capture| {
            world.permits.send(Permit::Fail).unwrap();
            capture.open(Form::Chunks);
            capture.write(Box::new("x"));
            capture.finish();
            // Held until the outcome is there.
            std::mem::forget(capture);
        },
        |world, capture| {
            world.permits.send(Permit::Panic).unwrap();
            capture.open(Form::Chunks);
            capture.write(Box::new("x"));
            std::mem::forget(capture);
        },
        |world, capture| {
            world.permits.send(Permit::Fail).unwrap();
            capture.open(Form::Bytes);
            capture.write(Box::new(vec![0; 10 * CHUNK_BYTES]));
            capture.finish();
            world.captures.abandon();
        },
    ];
    for way in ways {
        let world = World::new();
        way(&world, world.begin());
        let failure = world.failure();
        assert!(failure.starts_with("the snapshot of index 7 failed, and the node goes on: "), "{failure}");
    }
}

#[test]
fn after_its_end_it_takes_everything_and_keeps_nothing() {
    let world = World::new();
    let capture = world.begin();
    capture.fail("said so");
    world.failure();
    capture.open(Form::Chunks);
    let piece = Arc::new(vec![0; QUEUE_BYTES_MAX]);
    struct Shared(Arc<Vec<u8>>);
    impl AsRef<[u8]> for Shared {
        fn as_ref(&self) -> &[u8] {
            &self.0
        }
    }
    assert!(capture.write(Box::new(Shared(piece.clone()))));
    assert_eq!(Arc::strong_count(&piece), 1);
    assert!(capture.has_room());
    capture.finish();
    assert!(world.captures.take_outcomes().is_empty());
    assert!(world.captures.is_idle());
}

#[test]
fn whoever_holds_a_capture_does_not_keep_the_store() {
    let world = World::new();
    let (kept, whole) = (world.begin(), world.begin());
    kept.open(Form::Chunks);
    whole.open(Form::Chunks);
    whole.finish();
    world.captures.abandon();
    while !world.captures.is_idle() {
        world.woken.recv_timeout(DEADLINE).unwrap();
    }
    assert_eq!(world.store.strong_count(), 0);
    assert!(world.captures.take_outcomes().iter().all(|outcome| outcome.result.is_err()));
}

#[test]
fn the_end_of_the_node_ends_what_is_under_way() {
    let World { captures, permits, .. } = World::new();
    let capture = captures.begin(APPLICATION_GROUP, 7, 3, Vec::new());
    capture.open(Form::Chunks);
    drop(captures);
    drop(permits);
    assert!(capture.is_over());
    assert!(capture.has_room());
}
