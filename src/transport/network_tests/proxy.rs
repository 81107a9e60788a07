//! What can happen on the way, to connections for snapshots alone.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::rc::Rc;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::spawn_local;

use super::super::handshake::{decode_greeting, Role};
use super::super::wire::{Header, Kind, HANDSHAKE_BYTES_MAX, HANDSHAKE_FORMAT, HEADER_LEN};

/// What happens on one connection; bytes are counted from behind the handshake.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Mishap {
    /// It breaks when so many bytes of the dialer have passed.
    Cut(usize),
    /// It breaks when so many bytes of the acceptor have passed.
    CutAnswers(usize),
    /// This bit of this byte of the dialer's is flipped.
    Flip(usize, u32),
    /// Nothing passes any more behind so many bytes of the dialer, and nobody is told.
    Stall(usize),
}

#[derive(Clone, Default)]
pub struct Mishaps(Rc<RefCell<(VecDeque<Mishap>, usize)>>);

impl Mishaps {
    /// Happens on the next connection for a snapshot that no other mishap is meant for.
    pub fn add(&self, mishap: Mishap) {
        self.0.borrow_mut().0.push_back(mishap);
    }

    fn next(&self) -> Option<Mishap> {
        let mut this = self.0.borrow_mut();
        this.1 += 1;
        this.0.pop_front()
    }

    /// Connections for snapshots since this was last asked.
    pub fn connections(&self) -> usize {
        std::mem::take(&mut self.0.borrow_mut().1)
    }
}

/// Stands before `target`. Returns its own address.
pub async fn before(target: SocketAddr, mishaps: Mishaps) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = listener.local_addr().unwrap();
    spawn_local(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let mishaps = mishaps.clone();
            spawn_local(async move {
                // A connection that ends is no failure of the proxy.
                let _ = pass(stream, target, mishaps).await;
            });
        }
    });
    at
}

async fn pass(dialer: TcpStream, target: SocketAddr, mishaps: Mishaps) -> std::io::Result<()> {
    let acceptor = TcpStream::connect(target).await?;
    dialer.set_nodelay(true)?;
    acceptor.set_nodelay(true)?;
    let (mut from_dialer, to_dialer) = dialer.into_split();
    let (mut from_acceptor, mut to_acceptor) = acceptor.into_split();
    let hello = frame(&mut from_dialer).await?;
    let role = decode_greeting(Kind::Hello, &hello[HEADER_LEN..]).map(|greeting| greeting.hello.role);
    to_acceptor.write_all(&hello).await?;
    let mut mishap = None;
    let mut to_dialer = to_dialer;
    if role == Ok(Role::Snapshot) {
        mishap = mishaps.next();
        let welcome = frame(&mut from_acceptor).await?;
        to_dialer.write_all(&welcome).await?;
        let confirm = frame(&mut from_dialer).await?;
        to_acceptor.write_all(&confirm).await?;
    }
    let stalled = Rc::new(RefCell::new(false));
    tokio::select! {
        ended = copy(&mut from_dialer, &mut to_acceptor, true, mishap, Rc::clone(&stalled)) => ended,
        ended = copy(&mut from_acceptor, &mut to_dialer, false, mishap, stalled) => ended,
    }
}

/// Copies until one side or a mishap ends it.
async fn copy(
    from: &mut OwnedReadHalf,
    to: &mut OwnedWriteHalf,
    is_dialers: bool,
    mishap: Option<Mishap>,
    stalled: Rc<RefCell<bool>>,
) -> std::io::Result<()> {
    let mut passed = 0;
    let mut buffer = vec![0; 64 << 10];
    loop {
        let count = from.read(&mut buffer).await?;
        if count == 0 {
            return Ok(());
        }
        let mut bytes = &mut buffer[..count];
        let mut is_end = false;
        match mishap {
            Some(Mishap::Cut(at)) if is_dialers && passed + count >= at => {
                bytes = &mut bytes[..at - passed];
                is_end = true;
            }
            Some(Mishap::CutAnswers(at)) if !is_dialers && passed + count >= at => {
                bytes = &mut bytes[..at - passed];
                is_end = true;
            }
            Some(Mishap::Flip(at, bit)) if is_dialers && (passed..passed + count).contains(&at) => {
                bytes[at - passed] ^= 1 << bit;
            }
            Some(Mishap::Stall(at)) if is_dialers && passed + count >= at => {
                bytes = &mut bytes[..at - passed];
                *stalled.borrow_mut() = true;
            }
            _ => {}
        }
        passed += bytes.len();
        to.write_all(bytes).await?;
        if is_end {
            return Ok(());
        }
        if *stalled.borrow() {
            // The sockets stay open.
            std::future::pending::<()>().await;
        }
    }
}

async fn frame(from: &mut OwnedReadHalf) -> std::io::Result<Vec<u8>> {
    let mut frame = vec![0; HEADER_LEN];
    from.read_exact(&mut frame).await?;
    let header = Header::decode(&frame, HANDSHAKE_FORMAT, HANDSHAKE_BYTES_MAX).unwrap().unwrap();
    frame.resize(HEADER_LEN + header.body_len, 0);
    from.read_exact(&mut frame[HEADER_LEN..]).await?;
    Ok(frame)
}
