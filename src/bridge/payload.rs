//! What Python proposes, copied once.

use pyo3::buffer::PyBuffer;
use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use super::errors::ProposalTooLargeError;
use crate::engine::command::Command;

/// Copies `data` (bytes, or anything with a buffer of bytes) behind a blank header.
pub fn copy(data: &Bound<'_, PyAny>, max_entry_bytes: u64) -> PyResult<Command> {
    if let Ok(bytes) = data.cast::<PyBytes>() {
        let bytes = bytes.as_bytes();
        check_size(bytes.len(), max_entry_bytes)?;
        return Ok(Command::new(bytes));
    }
    let buffer = PyBuffer::<u8>::get(data).map_err(|_| wrong_type(data))?;
    check_size(buffer.len_bytes(), max_entry_bytes)?;
    Ok(Command::new(&buffer.to_vec(data.py())?))
}

fn check_size(size: usize, max_entry_bytes: u64) -> PyResult<()> {
    if size as u64 > max_entry_bytes {
        return Err(ProposalTooLargeError::new_err(format!(
            "a proposal of {size} bytes is longer than Config.max_entry_bytes = {max_entry_bytes}: split it, or raise \
             the limit on every node"
        )));
    }
    Ok(())
}

fn wrong_type(data: &Bound<'_, PyAny>) -> PyErr {
    let found = data.get_type().name().map_or_else(|_| "another type".to_owned(), |name| name.to_string());
    let remedy = match found.as_str() {
        "memoryview" => "this one has items of another type: cast it first, with .cast(\"B\")",
        _ => "encode it first, such as with str.encode or json.dumps(...).encode()",
    };
    PyTypeError::new_err(format!("a proposal is bytes, a bytearray or a memoryview of bytes, not {found}: {remedy}"))
}
