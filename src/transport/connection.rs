//! One authenticated connection: the shared handle, and its two tasks.

use std::cell::{Cell, RefCell};
use std::io;
use std::rc::Rc;
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::io::AsyncReadExt;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::task::AbortHandle;

use super::backlog::Backlog;
use super::events::Event;
use super::handshake::{decode_refusal, encode_refusal, Hello, Refusal, RefusalCode};
use super::peers::Peers;
use super::wire::{self, Header, Kind, WireError, HEADER_LEN};
use crate::engine::NodeId;

/// Room for reading that a connection starts with, and keeps.
const READ_BYTES_MIN: usize = 64 << 10;

/// A larger read buffer is given back once its frame is read.
const READ_BYTES_KEPT_MAX: usize = 1 << 20;

/// A writer task lets others run after this many bytes.
const WRITE_SLICE_BYTES: usize = 256 << 10;

/// Sets what every connection of the transport has set.
pub(super) fn configure(stream: &TcpStream, silence: Duration) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let socket = SockRef::from(stream);
    let probe = (silence / 4).max(Duration::from_secs(1));
    socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(probe).with_interval(probe).with_retries(3))?;
    #[cfg(target_os = "linux")]
    socket.set_tcp_user_timeout(Some(silence))?;
    Ok(())
}

/// Why a connection ends.
#[derive(Clone, Debug)]
pub(super) struct End {
    /// One sentence.
    pub reason: String,
    /// The peer said goodbye.
    pub in_order: bool,
}

impl From<String> for End {
    fn from(reason: String) -> Self {
        Self { reason, in_order: false }
    }
}

impl From<&str> for End {
    fn from(reason: &str) -> Self {
        reason.to_owned().into()
    }
}

/// The handle that routes, tasks and dialers share.
pub(super) struct Connection {
    /// Its number, counted up in this process.
    pub epoch: u64,
    /// Who is at the other end.
    pub peer: NodeId,
    /// What the other end said about itself.
    pub hello: Rc<Hello>,
    /// We dialled it.
    pub dialled: bool,
    write: OwnedWriteHalf,
    backlog: RefCell<Backlog>,
    /// There is a backlog.
    behind: Notify,
    open: Cell<bool>,
    said_goodbye: Cell<bool>,
    closing: Notify,
    tasks: RefCell<Vec<AbortHandle>>,
}

impl Connection {
    pub fn new(epoch: u64, peer: NodeId, hello: Hello, dialled: bool, write: OwnedWriteHalf) -> Self {
        Self {
            epoch,
            peer,
            hello: Rc::new(hello),
            dialled,
            write,
            backlog: RefCell::default(),
            behind: Notify::new(),
            open: Cell::new(true),
            said_goodbye: Cell::new(false),
            closing: Notify::new(),
            tasks: RefCell::default(),
        }
    }

    /// Ends with the connection.
    pub fn owns(&self, task: AbortHandle) {
        self.tasks.borrow_mut().push(task);
    }

    pub fn is_open(&self) -> bool {
        self.open.get()
    }

    /// Waits for the connection's end.
    pub async fn closed(&self) {
        while self.open.get() {
            self.closing.notified().await;
        }
    }

    /// Ends both tasks and the socket; `false` if that was done before.
    pub fn close(&self) -> bool {
        if !self.open.replace(false) {
            return false;
        }
        for task in self.tasks.borrow_mut().drain(..) {
            task.abort();
        }
        // The tasks let go of the socket at their next turn; the peer should know now. It fails if the peer was first.
        let _ = SockRef::from(self.write.as_ref()).shutdown(std::net::Shutdown::Both);
        self.closing.notify_waiters();
        true
    }

    /// Tells the peer, once, that this is a good end; it hangs up then.
    pub fn say_goodbye(&self) {
        if self.said_goodbye.replace(true) {
            return;
        }
        let mut frame = Vec::new();
        let start = wire::begin(&mut frame, wire::PROTOCOL_VERSION, Kind::Goodbye, 0);
        if wire::end(&mut frame, start, 0).is_ok() {
            // It fails if the peer was first.
            let _ = self.send(&mut frame, usize::MAX);
        }
    }

    /// Writes `buffer` at once as far as the socket takes it; the writer task gets the rest. `buffer` comes back empty.
    ///
    /// # Errors
    /// Why the connection has to be closed.
    pub fn send(&self, buffer: &mut Vec<u8>, backlog_bytes_max: usize) -> Result<(), String> {
        let mut backlog = self.backlog.borrow_mut();
        let mut written = 0;
        if backlog.is_empty() {
            while let Some(rest) = buffer.get(written..).filter(|rest| !rest.is_empty()) {
                match self.write.try_write(rest) {
                    Ok(0) => return Err("the socket takes nothing any more".to_owned()),
                    Ok(count) => written += count,
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(error) => return Err(format!("writing to it failed: {error}")),
                }
            }
        }
        if written == buffer.len() {
            buffer.clear();
            return Ok(());
        }
        backlog.push(buffer, written);
        if backlog.bytes() > backlog_bytes_max {
            return Err(format!(
                "{} bytes are unsent where at most {backlog_bytes_max} may be: the peer or the network is too slow",
                backlog.bytes()
            ));
        }
        self.behind.notify_one();
        Ok(())
    }

    /// The writer task: finishes what [`Connection::send`] could not write.
    pub async fn run_writer(self: Rc<Self>, peers: Rc<Peers>) {
        let error = loop {
            self.behind.notified().await;
            if let Err(error) = self.write_backlog().await {
                break error;
            }
        };
        peers.close(&self, format!("writing to it failed: {error}").into());
    }

    async fn write_backlog(&self) -> io::Result<()> {
        loop {
            let result = {
                let backlog = self.backlog.borrow();
                let front = backlog.front();
                if front.is_empty() {
                    return Ok(());
                }
                self.write.try_write(front.get(..WRITE_SLICE_BYTES).unwrap_or(front))
            };
            match result {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => {
                    self.backlog.borrow_mut().advance(count);
                    // A fast receiver must not keep the driver, on the same thread, from its turn.
                    tokio::task::yield_now().await;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.write.writable().await?,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// The reader task: turns the stream into events.
    pub async fn run_reader(self: Rc<Self>, version: u8, mut read: OwnedReadHalf, peers: Rc<Peers>) {
        let mut reader = Reader { connection: Rc::clone(&self), version, buffer: Vec::new(), start: 0 };
        let end: End = loop {
            if !peers.is_parting() {
                peers.events.room(peers.options.unread_bytes_max).await;
            }
            reader.make_room();
            let room = reader.buffer.capacity() - reader.buffer.len();
            match read.read_buf(&mut reader.buffer).await {
                Ok(0) => break "the peer closed the connection".into(),
                // Only the end of the stream is waited for.
                Ok(_) if peers.is_parting() => reader.buffer.clear(),
                Ok(count) => {
                    if let Err(end) = reader.take_frames(&peers) {
                        break end;
                    }
                    if count == room {
                        // There is more; the driver's turn comes first.
                        tokio::task::yield_now().await;
                    }
                }
                Err(error) => break format!("reading from it failed: {error}").into(),
            }
        };
        peers.close(&self, end);
    }
}

struct Reader {
    connection: Rc<Connection>,
    version: u8,
    buffer: Vec<u8>,
    /// Where the first frame not taken yet begins.
    start: usize,
}

impl Reader {
    /// Makes room for the next read: memory follows what has come, not what was announced.
    fn make_room(&mut self) {
        if self.start == self.buffer.len() {
            self.buffer.clear();
            if self.buffer.capacity() > READ_BYTES_KEPT_MAX {
                self.buffer = Vec::new();
            }
        } else if self.start > 0 {
            self.buffer.drain(..self.start);
        }
        self.start = 0;
        if self.buffer.capacity() - self.buffer.len() < READ_BYTES_MIN / 2 {
            self.buffer.reserve_exact(self.buffer.len().max(READ_BYTES_MIN));
        }
    }

    fn take_frames(&mut self, peers: &Peers) -> Result<(), End> {
        let limit = peers.options.frame_bytes_max;
        loop {
            let rest = self.buffer.get(self.start..).unwrap_or(&[]);
            let header = Header::decode_open(rest, self.version, limit).map_err(|error| self.tell(&error))?;
            let Some(header) = header else { return Ok(()) };
            let Some(body) = rest.get(HEADER_LEN..).and_then(|rest| rest.get(..header.body_len)) else {
                return Ok(());
            };
            if let Some(end) = self.frame(header, body, peers).map_err(|error| self.tell(&error))? {
                return Err(end);
            }
            self.start += HEADER_LEN + header.body_len;
        }
    }

    /// A peer that breaks the protocol hears why the connection ends.
    fn tell(&self, error: &WireError) -> End {
        let refusal = Refusal::new(RefusalCode::Malformed, error.to_string());
        // Best effort: the connection ends in any case.
        let _ = self.connection.send(&mut encode_refusal(&refusal), usize::MAX);
        refusal.reason.into()
    }

    /// Takes one frame in. Returns why the connection ends, if that is what the frame says.
    fn frame(&self, header: Header, body: &[u8], peers: &Peers) -> Result<Option<End>, WireError> {
        let from = self.connection.peer;
        let weight_max = peers.options.frame_bytes_max;
        match header.kind {
            Kind::Raft => {
                let (mut messages, weight) = wire::decode_raft(body, weight_max)?;
                let all = messages.len();
                messages.retain(|message| message.from == from);
                if messages.len() < all {
                    peers.dropped(from, header.group, "it sent Raft messages in another node's name");
                }
                if !messages.is_empty() {
                    peers.events.push_raft(from, header.group, messages, weight);
                }
            }
            Kind::Propose => {
                let proposed = wire::decode_propose(body, weight_max)?;
                if let Some(error) = proposed.unreadable {
                    peers.dropped(from, header.group, &format!("it forwarded a command that cannot be read: {error}"));
                }
                if !proposed.commands.is_empty() {
                    let event = Event::Propose { from, group: header.group, commands: proposed.commands };
                    peers.events.push(event, proposed.weight);
                }
            }
            Kind::Rejected => {
                let rejected = wire::decode_rejected(body)?;
                peers.events.push(Event::Rejected { from, group: header.group, rejected }, body.len());
            }
            Kind::Formation => peers.events.push(Event::Formation { from, body: body.to_vec() }, body.len()),
            Kind::Dropped => {
                let reason = wire::decode_dropped(body)?;
                peers.events.push(Event::Dropped { from, group: header.group, reason }, body.len());
            }
            Kind::Durable => {
                let index = wire::decode_durable(body)?;
                peers.events.push(Event::Durable { from, group: header.group, index }, body.len());
            }
            Kind::Goodbye => return Ok(Some(End { reason: "the peer closed in good order".into(), in_order: true })),
            Kind::Refuse => {
                let refusal = decode_refusal(body)?;
                peers.refused(from, false, &refusal);
                return Ok(Some(format!("it refused this node: {refusal}").into()));
            }
            Kind::Hello
            | Kind::Welcome
            | Kind::Confirm
            | Kind::SnapshotBegin
            | Kind::SnapshotOffset
            | Kind::SnapshotData
            | Kind::SnapshotWait
            | Kind::SnapshotDone
            | Kind::AdminRequest
            | Kind::AdminResponse => return Err(WireError::Unexpected(header.kind)),
        }
        Ok(None)
    }
}
