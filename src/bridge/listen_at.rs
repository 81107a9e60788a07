//! The `listen` argument.

use std::os::fd::BorrowedFd;

use pyo3::prelude::*;

use super::errors::ConfigError;
use super::start::Listen;

/// Where to listen, as Python says it.
#[derive(FromPyObject)]
pub enum ListenAt {
    /// The descriptor of a bound socket.
    Descriptor(i32),
    /// "host:port".
    Address(String),
}

impl ListenAt {
    /// What the driver is given; a descriptor is duplicated.
    pub fn resolve(self) -> PyResult<Listen> {
        match self {
            Self::Address(address) => Ok(Listen::Address(address)),
            Self::Descriptor(number) if number < 0 => {
                Err(ConfigError::new_err("listen is a closed socket: give a bound one"))
            }
            Self::Descriptor(number) => {
                // SAFETY: the caller keeps the descriptor open during this call; it is only duplicated.
                let borrowed = unsafe { BorrowedFd::borrow_raw(number) };
                let owned = borrowed.try_clone_to_owned().map_err(|error| {
                    ConfigError::new_err(format!(
                        "listen = {number} cannot be duplicated ({error}): give a bound socket"
                    ))
                })?;
                Ok(Listen::Socket(owned.into()))
            }
        }
    }
}
