//! The handshake over a socket, from both ends.

use std::io;
use std::net::IpAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::handshake::{
    check_admin, check_ends, decode_greeting, decode_refusal, encode_confirm, encode_greeting, encode_refusal, Gate,
    Greeting, Hello, Refusal, RefusalCode, Role,
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
    #[error("an operator's tool was turned away: {0}")]
    Tool(Refusal),
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
    let (from, role) = (greeting.hello.from, greeting.hello.role);
    let is_local = is_here(stream.peer_addr()?.ip(), stream.local_addr()?.ip());
    let by_us = |refusal| match role {
        role if role.is_tool() => GreetError::Tool(refusal),
        _ => GreetError::ByUs { peer: from, refusal },
    };
    let ours = || Hello { role: role.answered(), ..gate.hello(from) };
    let judged = match role {
        role if role.is_tool() => judge_tool(&ours(), &greeting, is_local, gate),
        _ => judge(&ours(), &greeting, gate).await,
    };
    match judged {
        Ok(version) => {
            let ours = ours();
            stream.write_all(&encode_greeting(Kind::Welcome, &Greeting::new(ours))?).await?;
            match read_frame(stream).await? {
                (Kind::Confirm, _) => {}
                (Kind::Refuse, body) if role.is_tool() => return Err(GreetError::Tool(decode_refusal(&body)?)),
                (Kind::Refuse, body) => {
                    return Err(GreetError::ByThem { peer: from, refusal: decode_refusal(&body)? });
                }
                (other, _) => return Err(WireError::Unexpected(other).into()),
            }
            // It took its time: the peer may have been removed meanwhile.
            let admitted = match role {
                role if role.is_tool() => gate.admit_admin(&greeting.hello, is_local),
                _ => gate.admit(&greeting.hello),
            };
            if let Err(refusal) = admitted {
                say_no(stream, &refusal).await;
                return Err(by_us(refusal));
            }
            Ok(Greeted { hello: greeting.hello, version })
        }
        Err(refusal) => {
            say_no(stream, &refusal).await;
            Err(by_us(refusal))
        }
    }
}

/// Whether the other end is on this machine: it has a loopback address, or the very address that it dialled (the kernel
/// takes no packet from outside that claims to come from an address of this machine).
fn is_here(theirs: IpAddr, dialled: IpAddr) -> bool {
    let theirs = theirs.to_canonical();
    theirs.is_loopback() || theirs == dialled.to_canonical()
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

fn judge_tool(ours: &Hello, theirs: &Greeting, is_local: bool, gate: &dyn Gate) -> Result<u8, Refusal> {
    let version = theirs.common_version()?;
    check_admin(ours.from, &theirs.hello)?;
    gate.admit_admin(&theirs.hello, is_local)?;
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

/// Sends the reason, and waits until the other side has read it.
pub(super) async fn say_no(stream: &mut TcpStream, refusal: &Refusal) {
    // Best effort: a stranger that does not listen is not worth more.
    let said = tokio::time::timeout(LAST_WORDS, stream.write_all(&encode_refusal(refusal))).await;
    if matches!(said, Ok(Ok(()))) {
        linger(stream).await;
    }
}

/// Waits until the other side has closed: closing over unread input would reset the connection and could take with it
/// what was written last.
pub(super) async fn linger(stream: &mut TcpStream) {
    let last_words = async {
        stream.shutdown().await?;
        let mut ignored = [0; 1024];
        while stream.read(&mut ignored).await? > 0 {}
        io::Result::Ok(())
    };
    // Whoever does not close is not waited for.
    let _ = tokio::time::timeout(LAST_WORDS, last_words).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_is_loopback_or_the_address_that_was_dialled() {
        let here = |theirs: &str, dialled: &str| is_here(theirs.parse().unwrap(), dialled.parse().unwrap());
        assert!(here("127.0.0.1", "127.0.0.1") && here("127.3.2.1", "127.0.0.1") && here("::1", "::1"));
        assert!(here("::ffff:127.0.0.1", "::ffff:127.0.0.1"));
        assert!(here("10.0.0.7", "10.0.0.7") && here("::ffff:10.0.0.7", "10.0.0.7") && here("fd00::7", "fd00::7"));
        assert!(!here("10.0.0.8", "10.0.0.7") && !here("::ffff:10.0.0.8", "::ffff:10.0.0.7"));
        assert!(!here("10.0.0.8", "127.0.0.1") && !here("fd00::8", "fd00::7") && !here("0.0.0.0", "10.0.0.7"));
    }
}
