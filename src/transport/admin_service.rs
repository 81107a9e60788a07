//! The node's end of operators' tools: each has a connection of its own, which is never a route, and answers wait here
//! until it has read them.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::task::AbortHandle;
use tokio::time::{sleep_until, timeout, Instant};

use super::admin_messages::{
    decode_request, encode_response, Answer, Ask, Problem, ProblemKind, Response, REQUEST_BYTES_MAX,
};
use super::connection::configure;
use super::events::Event;
use super::frames::{read_frame, FrameError};
use super::greet::{linger, say_no, Greeted};
use super::handshake::{Refusal, RefusalCode, Role};
use super::peers::Peers;
use super::wire::{Kind, WireError};

/// The tools that are connected.
#[derive(Default)]
pub(super) struct Tools {
    /// Connections, counted up in this process.
    count: Cell<u64>,
    /// Oldest first.
    connected: RefCell<Vec<Entry>>,
    /// One of them has ended.
    left: Notify,
}

struct Entry {
    tool: Rc<Tool>,
    task: AbortHandle,
}

/// One tool's connection.
struct Tool {
    number: u64,
    version: u8,
    /// What it may ask.
    role: Role,
    /// Requests that are read and whose answers are not written.
    in_flight: Cell<usize>,
    /// There was a request.
    has_asked: Cell<bool>,
    /// Frames, in the order in which they were given.
    answers: RefCell<VecDeque<Vec<u8>>>,
    /// There is an answer to write, or it is to end.
    news: Notify,
    /// An answer is written.
    room: Notify,
    /// When it last asked something, or took an answer.
    active: Cell<Instant>,
    /// This node closes.
    parting: Cell<bool>,
}

/// Why a tool's connection ends.
enum End {
    /// The tool is gone, or as good as gone.
    Over(String),
    /// It is told why.
    Refused(Refusal),
}

impl From<FrameError> for End {
    fn from(error: FrameError) -> Self {
        match error {
            FrameError::Io(error) => Self::Over(error.to_string()),
            FrameError::Wire(error) => error.into(),
        }
    }
}

impl From<WireError> for End {
    fn from(error: WireError) -> Self {
        Self::Refused(Refusal::new(RefusalCode::Malformed, error.to_string()))
    }
}

/// Goes on with a connection whose handshake says that it is an operator's tool's.
pub(super) fn admit(peers: &Rc<Peers>, greeted: Greeted, mut stream: TcpStream, from: SocketAddr) {
    if peers.is_parting() || configure(&stream, peers.options.silence_timeout).is_err() {
        return;
    }
    if !peers.tools.make_room(peers) {
        let many = peers.options.admin_connections_max;
        let refusal = Refusal::new(
            RefusalCode::Busy,
            format!("{many} operators' tools wait for this node already: try again when one of them has its answer"),
        );
        peers.refused_tool(from, &refusal);
        // It ends by itself within a moment.
        peers.spawn(async move { say_no(&mut stream, &refusal).await });
        return;
    }
    tracing::debug!(node = peers.me, %from, "an operator's tool is connected");
    let number = peers.tools.count.get() + 1;
    peers.tools.count.set(number);
    let tool = Rc::new(Tool {
        number,
        version: greeted.version,
        role: greeted.hello.role,
        in_flight: Cell::new(0),
        has_asked: Cell::new(false),
        answers: RefCell::default(),
        news: Notify::new(),
        room: Notify::new(),
        active: Cell::new(Instant::now()),
        parting: Cell::new(false),
    });
    // A task does not run before this one rests, so it cannot end before it is remembered.
    if let Some(task) = peers.spawn(Rc::clone(&tool).run(Rc::clone(peers), stream)) {
        peers.tools.connected.borrow_mut().push(Entry { tool, task });
    }
}

impl Tools {
    /// Drops the oldest of too many that waits for nothing; `false` if there is none.
    fn make_room(&self, peers: &Peers) -> bool {
        let mut connected = self.connected.borrow_mut();
        if connected.len() < peers.options.admin_connections_max.max(1) {
            return true;
        }
        let Some(idle) = connected.iter().position(|entry| entry.tool.in_flight.get() == 0) else { return false };
        let entry = connected.remove(idle);
        entry.task.abort();
        entry.tool.tell_left(peers);
        true
    }

    /// Gives an answer to a tool, if it is still there.
    pub fn answer(&self, connection: u64, response: &Response) {
        let connected = self.connected.borrow();
        let Some(entry) = connected.iter().find(|entry| entry.tool.number == connection) else { return };
        let frame = encode_response(response).or_else(|error| {
            let problem = Problem::new(ProblemKind::Unknown, format!("the answer cannot be sent: {error}"));
            encode_response(&Response { number: response.number, answer: Some(Answer::Problem(problem)) })
        });
        // A sentence fits.
        entry.tool.answers.borrow_mut().push_back(frame.unwrap_or_default());
        entry.tool.news.notify_one();
    }

    /// Lets all go once they have read what is answered. Nothing more is read of them.
    pub async fn part(&self) {
        for entry in self.connected.borrow().iter() {
            entry.tool.parting.set(true);
            entry.tool.news.notify_one();
        }
        while !self.connected.borrow().is_empty() {
            // Nothing runs between the look and the wait: this thread is the only one.
            self.left.notified().await;
        }
    }

    fn remove(&self, number: u64) {
        self.connected.borrow_mut().retain(|entry| entry.tool.number != number);
        self.left.notify_one();
    }
}

impl Tool {
    async fn run(self: Rc<Self>, peers: Rc<Peers>, mut stream: TcpStream) {
        let (mut read, mut write) = stream.split();
        let end = tokio::select! {
            end = self.read(&peers, &mut read) => end,
            end = self.write(&mut write, peers.options.admin_idle) => end,
            end = self.watch(peers.options.admin_idle) => end,
        };
        if self.parting.get() {
            linger(&mut stream).await;
        }
        peers.tools.remove(self.number);
        self.tell_left(&peers);
        match end {
            End::Over(reason) => tracing::debug!(node = peers.me, %reason, "an operator's tool has left"),
            End::Refused(refusal) => {
                if let Ok(from) = stream.peer_addr() {
                    peers.refused_tool(from, &refusal);
                }
                say_no(&mut stream, &refusal).await;
            }
        }
    }

    /// The driver forgets whom to answer.
    fn tell_left(&self, peers: &Peers) {
        if self.has_asked.get() {
            peers.events.push(Event::ToolLeft { connection: self.number }, 0);
        }
    }

    async fn read(&self, peers: &Peers, from: &mut ReadHalf<'_>) -> End {
        loop {
            match self.read_one(peers, from).await {
                Ok(()) => {}
                Err(end) => return end,
            }
        }
    }

    async fn read_one(&self, peers: &Peers, from: &mut ReadHalf<'_>) -> Result<(), End> {
        let options = &peers.options;
        while self.parting.get() || self.in_flight.get() >= options.admin_in_flight_max.max(1) {
            self.room.notified().await;
        }
        peers.events.room(options.unread_bytes_max).await;
        let mut body = Vec::new();
        let limit = options.admin_request_bytes_max.min(REQUEST_BYTES_MAX);
        let header = read_frame(from, self.version, limit, &mut body).await?;
        match header.kind {
            Kind::AdminRequest => {}
            Kind::Goodbye | Kind::Refuse => return Err(End::Over("it said goodbye".into())),
            other => return Err(WireError::Unexpected(other).into()),
        }
        let mut request = decode_request(&body)?;
        if self.role == Role::Join && !matches!(request.ask, Some(Ask::Join(_))) {
            let reason = "whoever comes to join the cluster may ask for nothing else";
            return Err(End::Refused(Refusal::new(RefusalCode::Role, reason)));
        }
        let most = u64::try_from(options.admin_timeout_max.as_millis()).unwrap_or(u64::MAX);
        request.timeout_ms = request.timeout_ms.min(most);
        self.active.set(Instant::now());
        self.in_flight.set(self.in_flight.get() + 1);
        self.has_asked.set(true);
        peers.events.push(Event::Asked { connection: self.number, request }, body.len());
        Ok(())
    }

    /// Writes answers as they are given.
    async fn write(&self, to: &mut WriteHalf<'_>, patience: Duration) -> End {
        loop {
            let Some(frame) = self.next_answer() else {
                if self.parting.get() {
                    return End::Over("this node closes".into());
                }
                self.news.notified().await;
                continue;
            };
            match timeout(patience, to.write_all(&frame)).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => return End::Over(error.to_string()),
                Err(_) => return End::Over(format!("it did not read its answers for {patience:?}")),
            }
            self.active.set(Instant::now());
            self.in_flight.set(self.in_flight.get().saturating_sub(1));
            self.room.notify_one();
        }
    }

    fn next_answer(&self) -> Option<Vec<u8>> {
        self.answers.borrow_mut().pop_front()
    }

    /// Ends when nothing has happened for `idle`, and nothing is waited for. A request that comes in pieces is nothing.
    async fn watch(&self, idle: Duration) -> End {
        loop {
            sleep_until(self.active.get() + idle).await;
            if self.in_flight.get() > 0 {
                self.active.set(Instant::now());
            } else if self.active.get().elapsed() >= idle {
                return End::Over(format!("it asked nothing for {idle:?}"));
            }
        }
    }
}
