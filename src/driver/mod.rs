//! The real world round the engine: a tokio thread that runs its effects, and a thread that keeps its log.

pub mod clock;
pub mod port;
