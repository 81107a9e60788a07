//! The tool's end: one request to one node, over a connection of its own. It blocks, and needs no runtime.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use socket2::{SockRef, TcpKeepalive};

use super::admin_messages::{decode_response, encode_request, Answer, Ask, Problem, Request, RESPONSE_BYTES_MAX};
use super::handshake::{
    decode_greeting, decode_refusal, encode_confirm, encode_greeting, Greeting, Held, Hello, Refusal, Role,
};
use super::wire::{printable, Header, Kind, WireError, HANDSHAKE_BYTES_MAX, HANDSHAKE_FORMAT, HEADER_LEN};

/// How long a node gets beyond the request's own time to say that this has passed.
const GRACE: Duration = Duration::from_secs(1);

/// How long connecting and shaking hands may take at most, of the request's time.
const HANDSHAKE: Duration = Duration::from_secs(5);

/// How often a call looks whether it was given up.
const LOOK: Duration = Duration::from_millis(50);

/// How often a silent node's machine is probed.
const PROBE: Duration = Duration::from_secs(5);

/// Why a call has no answer.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum CallError {
    /// There is no way to the node, or what answers there is none; nothing was asked.
    #[error("{0}")]
    Unreachable(String),
    /// It takes no requests from this tool; nothing was asked.
    #[error("{0}")]
    TurnedAway(Refusal),
    /// The request was on its way, and no answer came: it may have been done.
    #[error("{0}")]
    Lost(String),
    /// The node says why it did not do it, or does not know.
    #[error("{}", .0.reason)]
    Problem(Problem),
}

/// One request to one node.
#[derive(Clone, Debug)]
pub struct Call {
    /// Where the node listens, `host:port`.
    pub address: String,
    /// The cluster's name; a node of another one turns the call away.
    pub cluster: String,
    /// What is asked.
    pub ask: Ask,
    /// How long it may take.
    pub timeout: Duration,
}

impl Call {
    /// Asks, and waits for the answer. Ends within a moment once `is_given_up` is set, unless it is looking up a name or
    /// connecting.
    ///
    /// # Errors
    /// There is no answer.
    pub fn run(&self, is_given_up: &AtomicBool) -> Result<Answer, CallError> {
        let now = Instant::now();
        let end = now.checked_add(self.timeout).unwrap_or(now);
        let dialled_by = end.min(now + HANDSHAKE);
        let unreachable = |problem: String| CallError::Unreachable(format!("{}: {problem}", self.address));
        let stream = connect(&self.address, dialled_by)
            .map_err(|error| unreachable(format!("it cannot be connected to ({error}): does a node run there?")))?;
        let mut line = Line { stream, until: dialled_by, is_given_up };
        let version = self.greet(&mut line)?;
        let timeout_ms = u64::try_from(end.saturating_duration_since(Instant::now()).as_millis()).unwrap_or(u64::MAX);
        let request = Request { number: 1, timeout_ms: timeout_ms.max(1), ask: Some(self.ask.clone()) };
        let frame = encode_request(&request).map_err(|error| unreachable(error.to_string()))?;
        line.until = end.checked_add(GRACE).unwrap_or(end);
        let lost =
            |problem: &dyn std::fmt::Display| CallError::Lost(format!("{}: no answer came: {problem}", self.address));
        line.write_all(&frame).map_err(|error| lost(&error))?;
        loop {
            let (header, body) = line.frame(version, RESPONSE_BYTES_MAX).map_err(|error| lost(&error))?;
            match header.kind {
                Kind::AdminResponse => {}
                Kind::Refuse => {
                    let refusal = decode_refusal(&body).map_err(|error| lost(&error))?;
                    return Err(match refusal.code {
                        // It is said before anything is read.
                        super::RefusalCode::Busy => CallError::TurnedAway(refusal),
                        _ => lost(&refusal),
                    });
                }
                other => return Err(lost(&WireError::Unexpected(other))),
            }
            let response = decode_response(&body).map_err(|error| lost(&error))?;
            if response.number != request.number {
                continue;
            }
            return match response.answer {
                Some(Answer::Problem(problem)) => {
                    Err(CallError::Problem(Problem { reason: printable(&problem.reason), ..problem }))
                }
                Some(answer) => Ok(answer),
                None => Err(lost(&"the node is of a newer version, whose answer this one does not know: upgrade it")),
            };
        }
    }

    /// Shakes hands; returns the protocol version agreed on.
    fn greet(&self, line: &mut Line<'_>) -> Result<u8, CallError> {
        let broken = |problem: &dyn std::fmt::Display| {
            CallError::Unreachable(format!("{}: is it the port of an aioraft node? {problem}", self.address))
        };
        let hello = encode_greeting(Kind::Hello, &Greeting::new(self.hello())).map_err(|error| broken(&error))?;
        line.write_all(&hello).map_err(|error| broken(&error))?;
        let (header, body) = line.frame(HANDSHAKE_FORMAT, HANDSHAKE_BYTES_MAX).map_err(|error| broken(&error))?;
        let greeting = match header.kind {
            Kind::Welcome => decode_greeting(header.kind, &body).map_err(|error| broken(&error))?,
            Kind::Refuse => {
                return Err(CallError::TurnedAway(decode_refusal(&body).map_err(|error| broken(&error))?));
            }
            other => return Err(broken(&WireError::Unexpected(other))),
        };
        let version = greeting.common_version().map_err(CallError::TurnedAway)?;
        if greeting.hello.role != self.role() {
            return Err(broken(&"it takes this tool for a node: upgrade it"));
        }
        line.write_all(&encode_confirm().map_err(|error| broken(&error))?).map_err(|error| broken(&error))?;
        Ok(version)
    }

    fn role(&self) -> Role {
        match self.ask {
            Ask::Join(_) => Role::Join,
            _ => Role::Admin,
        }
    }

    /// A tool is no node, and means whoever listens there.
    fn hello(&self) -> Hello {
        Hello {
            cluster: self.cluster.clone(),
            lineage: 0,
            incarnation: 0,
            from: 0,
            to: 0,
            identity: 0,
            boot: 0,
            nonce: 0,
            earlier: Vec::new(),
            role: self.role(),
            advertise: String::new(),
            formation: Vec::new(),
            held: Held::default(),
        }
    }
}

fn connect(address: &str, until: Instant) -> io::Result<TcpStream> {
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    let places: Vec<SocketAddr> = address.to_socket_addrs()?.collect();
    for place in places {
        match TcpStream::connect_timeout(&place, left(until)?) {
            Ok(stream) => {
                stream.set_nodelay(true)?;
                // A machine that is gone is noticed, however long the request may take.
                let keepalive = TcpKeepalive::new().with_time(PROBE).with_interval(PROBE).with_retries(3);
                SockRef::from(&stream).set_tcp_keepalive(&keepalive)?;
                return Ok(stream);
            }
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// What is left of the time; an error once nothing is.
fn left(until: Instant) -> io::Result<Duration> {
    let left = until.saturating_duration_since(Instant::now());
    match left.is_zero() {
        true => Err(io::Error::new(io::ErrorKind::TimedOut, "it did not answer in time")),
        false => Ok(left),
    }
}

/// A stream that is read and written until a moment at most.
struct Line<'a> {
    stream: TcpStream,
    until: Instant,
    is_given_up: &'a AtomicBool,
}

/// Why there is no next frame.
#[derive(Debug, thiserror::Error)]
enum LineError {
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("{0}")]
    Wire(#[from] WireError),
}

impl Line<'_> {
    /// The next frame.
    fn frame(&mut self, version: u8, body_bytes_max: usize) -> Result<(Header, Vec<u8>), LineError> {
        let mut front = [0; HEADER_LEN];
        self.read_exact(&mut front)?;
        let header = Header::decode_open(&front, version, body_bytes_max)?;
        let Some(header) = header else { return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()) };
        let mut body = vec![0; header.body_len];
        self.read_exact(&mut body)?;
        Ok((header, body))
    }

    /// Tries it again and again, until it is done or there is no time left.
    fn patiently<T>(&mut self, mut attempt: impl FnMut(&mut TcpStream) -> io::Result<T>) -> io::Result<T> {
        loop {
            if self.is_given_up.load(Ordering::Relaxed) {
                return Err(io::Error::new(io::ErrorKind::TimedOut, "it was given up"));
            }
            let slice = left(self.until)?.min(LOOK);
            self.stream.set_read_timeout(Some(slice))?;
            self.stream.set_write_timeout(Some(slice))?;
            match attempt(&mut self.stream) {
                Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {}
                other => return other,
            }
        }
    }
}

impl Read for Line<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self.patiently(|stream| stream.read(buffer))? {
            0 if !buffer.is_empty() => {
                Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the connection was closed by the other side"))
            }
            count => Ok(count),
        }
    }
}

impl Write for Line<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.patiently(|stream| stream.write(bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
