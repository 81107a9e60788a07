//! The handshake over a socket, from both ends.

use std::io;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::handshake::{
    check_ends, decode_greeting, decode_refusal, encode_confirm, encode_greeting, encode_refusal, Gate, Greeting,
    Hello, Refusal, RefusalCode, Role,
};
use super::wire::{Header, Kind, WireError, HANDSHAKE_BYTES_MAX, HANDSHAKE_FORMAT, HEADER_LEN};
use crate::engine::NodeId;

/// How long a refused dialer gets to read the reason before the connection closes.
const LAST_WORDS: Duration = Duration::from_millis(500);

/// A handshake that succeeded.
#[derive(Debug)]
pub(super) struct Greeted {
    /// The other side.
    pub hello: Hello,
    /// The protocol version agreed on.
    pub version: u8,
}

/// Why a handshake failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum GreetError {
    #[error("the connection broke during the handshake: {0}")]
    Io(#[from] io::Error),
    #[error("{0}")]
    Wire(#[from] WireError),
    #[error("this node refused node {peer}: {refusal}")]
    ByUs { peer: NodeId, refusal: Refusal },
    #[error("node {peer} refused this node: {refusal}")]
    ByThem { peer: NodeId, refusal: Refusal },
}

/// The dialer's end of a connection that is for `role`.
pub(super) async fn dial(
    stream: &mut TcpStream,
    peer: NodeId,
    role: Role,
    gate: &dyn Gate,
) -> Result<Greeted, GreetError> {
    let ours = Hello { role, ..gate.hello(peer) };
    stream.write_all(&encode_greeting(Kind::Hello, &Greeting::new(ours.clone()))?).await?;
    let (kind, body) = read_frame(stream).await?;
    match kind {
        Kind::Refuse => Err(GreetError::ByThem { peer, refusal: decode_refusal(&body)? }),
        Kind::Welcome => {
            let greeting = decode_greeting(kind, &body)?;
            let judged = match check_dialled(peer, &greeting.hello) {
                Ok(()) => judge(&ours, &greeting, gate).await,
                Err(refusal) => Err(refusal),
            };
            match judged {
                Ok(version) => {
                    stream.write_all(&encode_confirm()?).await?;
                    Ok(Greeted { hello: greeting.hello, version })
                }
                Err(refusal) => {
                    say_no(stream, &refusal).await;
                    Err(GreetError::ByUs { peer, refusal })
                }
            }
        }
        other => Err(WireError::Unexpected(other).into()),
    }
}

/// The acceptor's end.
pub(super) async fn answer(stream: &mut TcpStream, gate: &dyn Gate) -> Result<Greeted, GreetError> {
    let greeting = match read_hello(stream).await {
        Ok(greeting) => greeting,
        Err(GreetError::Wire(error)) => {
            say_no(stream, &Refusal::new(RefusalCode::Malformed, error.to_string())).await;
            return Err(error.into());
        }
        Err(error) => return Err(error),
    };
    let from = greeting.hello.from;
    let ours = || Hello { role: greeting.hello.role.answered(), ..gate.hello(from) };
    match judge(&ours(), &greeting, gate).await {
        Ok(version) => {
            let ours = ours();
            stream.write_all(&encode_greeting(Kind::Welcome, &Greeting::new(ours))?).await?;
            match read_frame(stream).await? {
                (Kind::Confirm, _) => {}
                (Kind::Refuse, body) => {
                    return Err(GreetError::ByThem { peer: from, refusal: decode_refusal(&body)? });
                }
                (other, _) => return Err(WireError::Unexpected(other).into()),
            }
            // It took its time: the peer may have been removed meanwhile.
            if let Err(refusal) = gate.admit(&greeting.hello) {
                say_no(stream, &refusal).await;
                return Err(GreetError::ByUs { peer: from, refusal });
            }
            Ok(Greeted { hello: greeting.hello, version })
        }
        Err(refusal) => {
            say_no(stream, &refusal).await;
            Err(GreetError::ByUs { peer: from, refusal })
        }
    }
}

fn check_dialled(peer: NodeId, theirs: &Hello) -> Result<(), Refusal> {
    if theirs.from == peer {
        return Ok(());
    }
    let reason = format!("node {} answered where node {peer} was dialled: correct the list of members", theirs.from);
    Err(Refusal::new(RefusalCode::WrongNode, reason))
}

async fn judge(ours: &Hello, theirs: &Greeting, gate: &dyn Gate) -> Result<u8, Refusal> {
    let version = theirs.common_version()?;
    check_ends(ours, &theirs.hello)?;
    gate.admit(&theirs.hello)?;
    gate.remembered(&theirs.hello).await;
    // A later start of the same node may have come meanwhile.
    gate.admit(&theirs.hello)?;
    Ok(version)
}

async fn read_hello(stream: &mut TcpStream) -> Result<Greeting, GreetError> {
    match read_frame(stream).await? {
        (Kind::Hello, body) => Ok(decode_greeting(Kind::Hello, &body)?),
        (other, _) => Err(WireError::Unexpected(other).into()),
    }
}

/// Reads exactly one frame: what follows belongs to the connection's reader.
async fn read_frame(stream: &mut TcpStream) -> Result<(Kind, Vec<u8>), GreetError> {
    let mut front = [0; HEADER_LEN];
    stream.read_exact(&mut front).await?;
    let header = Header::decode(&front, HANDSHAKE_FORMAT, HANDSHAKE_BYTES_MAX)?;
    let Some(header) = header else { return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()) };
    let mut body = vec![0; header.body_len];
    stream.read_exact(&mut body).await?;
    Ok((header.kind, body))
}

/// Sends the reason, and waits until the other side has closed: closing over unread input would reset the connection
/// and could take the reason with it.
pub(super) async fn say_no(stream: &mut TcpStream, refusal: &Refusal) {
    let last_words = async {
        stream.write_all(&encode_refusal(refusal)).await?;
        stream.shutdown().await?;
        let mut ignored = [0; 1024];
        while stream.read(&mut ignored).await? > 0 {}
        io::Result::Ok(())
    };
    // Best effort: a stranger that does not listen is not worth more.
    let _ = tokio::time::timeout(LAST_WORDS, last_words).await;
}
