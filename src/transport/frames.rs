//! Whole frames off a socket, one at a time, for connections on which the two sides take turns.

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt};

use super::wire::{Header, WireError, HEADER_LEN};

/// Why there is no next frame.
#[derive(Debug, thiserror::Error)]
pub(super) enum FrameError {
    #[error("the connection broke: {0}")]
    Io(#[from] io::Error),
    #[error("{0}")]
    Wire(#[from] WireError),
}

/// Reads exactly one frame, its body into `body`.
pub(super) async fn read_frame(
    stream: &mut (impl AsyncRead + Unpin),
    version: u8,
    body_bytes_max: usize,
    body: &mut Vec<u8>,
) -> Result<Header, FrameError> {
    let mut front = [0; HEADER_LEN];
    stream.read_exact(&mut front).await?;
    let header = Header::decode_open(&front, version, body_bytes_max)?;
    let Some(header) = header else { return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()) };
    body.clear();
    body.resize(header.body_len, 0);
    stream.read_exact(body).await?;
    Ok(header)
}
