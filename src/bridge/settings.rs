//! What `aioraft.Config` says.

use std::time::Duration;

use pyo3::prelude::*;

use super::errors::ConfigError;
use super::start::{AdminFrom, Tuning};

/// The fields of a `Config` that the core needs.
pub struct Settings {
    /// For the driver.
    pub tuning: Tuning,
    /// `full` from this many unresolved proposals on.
    pub max_pending_proposals: usize,
    /// `full` from this many bytes of unresolved proposals on.
    pub max_pending_bytes: usize,
}

impl Settings {
    /// Reads the attributes of `config`, which has checked its values.
    pub fn read(config: &Bound<'_, PyAny>) -> PyResult<Self> {
        Ok(Self {
            tuning: Tuning {
                election_timeout: seconds(config, "election_timeout")?,
                heartbeat_interval: seconds(config, "heartbeat_interval")?,
                max_entry_bytes: config.getattr("max_entry_bytes")?.extract()?,
                max_message_bytes: config.getattr("max_message_bytes")?.extract()?,
                max_inflight_messages: config.getattr("max_inflight_messages")?.extract()?,
                max_uncommitted_bytes: config.getattr("max_uncommitted_bytes")?.extract()?,
                max_unapplied_bytes: config.getattr("max_unapplied_bytes")?.extract()?,
                entry_cache_bytes: config.getattr("entry_cache_bytes")?.extract()?,
                snapshot_entries: count_or_never(config, "snapshot_entries")?,
                snapshot_bytes: count_or_never(config, "snapshot_bytes")?,
                snapshot_trail: config.getattr("snapshot_trail")?.extract()?,
                snapshot_rate: config.getattr("snapshot_rate")?.extract()?,
                insecure: config.getattr("insecure")?.extract()?,
                admin_from: admin_from(config)?,
            },
            max_pending_proposals: config.getattr("max_pending_proposals")?.extract()?,
            max_pending_bytes: config.getattr("max_pending_bytes")?.extract()?,
        })
    }
}

/// A count that no log reaches stands for None.
fn count_or_never(config: &Bound<'_, PyAny>, field: &str) -> PyResult<u64> {
    let value: Option<u64> = config.getattr(field)?.extract()?;
    Ok(value.unwrap_or(u64::MAX))
}

fn admin_from(config: &Bound<'_, PyAny>) -> PyResult<AdminFrom> {
    match config.getattr("admin_from")?.extract::<String>()?.as_str() {
        "localhost" => Ok(AdminFrom::Localhost),
        "anywhere" => Ok(AdminFrom::Anywhere),
        other => Err(ConfigError::new_err(format!(
            "Config.admin_from = {other:?}: it must be \"localhost\" or \"anywhere\""
        ))),
    }
}

fn seconds(config: &Bound<'_, PyAny>, field: &str) -> PyResult<Duration> {
    let value: f64 = config.getattr(field)?.extract()?;
    duration(value)
        .ok_or_else(|| ConfigError::new_err(format!("Config.{field} = {value}: it must be a number of seconds")))
}

/// `seconds` as a duration; `None` if it is negative, not a number or beyond all bounds.
pub fn duration(seconds: f64) -> Option<Duration> {
    Duration::try_from_secs_f64(seconds).ok()
}
