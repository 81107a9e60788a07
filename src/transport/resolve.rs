//! Looking up addresses.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;

/// A look-up under way.
pub type Lookup<'a> = Pin<Box<dyn Future<Output = io::Result<Vec<SocketAddr>>> + 'a>>;

/// Turns `host:port` into addresses; asked again at each attempt to connect, since names move.
pub trait Resolve {
    /// Looks up `address`.
    fn resolve<'a>(&'a self, address: &'a str) -> Lookup<'a>;
}

/// The operating system's resolver, on tokio's pool of blocking threads.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemResolver;

impl Resolve for SystemResolver {
    fn resolve<'a>(&'a self, address: &'a str) -> Lookup<'a> {
        Box::pin(async move { Ok(tokio::net::lookup_host(address).await?.collect()) })
    }
}
