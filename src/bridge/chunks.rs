//! `Chunks`: what `restore` reads.

use parking_lot::Mutex;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use super::errors::FatalError;
use crate::storage::StorageError;

type Reader = Box<dyn Iterator<Item = Result<Vec<u8>, StorageError>> + Send>;

/// The chunks of a snapshot, read one at a time as they are asked for. Private: see `aioraft._snapshots`.
#[pyclass(frozen, module = "aioraft._core")]
pub struct Chunks(Mutex<Reading>);

enum Reading {
    Open(Reader),
    /// What was found instead of a chunk.
    Failed(String),
    /// `restore` has returned.
    Closed,
}

impl Chunks {
    /// Reads from `reader`.
    pub fn new(reader: Reader) -> Self {
        Self(Mutex::new(Reading::Open(reader)))
    }

    /// Closes the file; what was wrong with it, if anything was.
    pub fn close(&self) -> Option<String> {
        match std::mem::replace(&mut *self.0.lock(), Reading::Closed) {
            Reading::Failed(reason) => Some(reason),
            Reading::Open(_) | Reading::Closed => None,
        }
    }

    fn read(&self) -> PyResult<Option<Vec<u8>>> {
        let mut reading = self.0.lock();
        match &mut *reading {
            Reading::Open(reader) => match reader.next().transpose() {
                Ok(chunk) => return Ok(chunk),
                Err(error) => *reading = Reading::Failed(error.to_string()),
            },
            Reading::Failed(_) => {}
            Reading::Closed => {
                return Err(PyValueError::new_err(
                    "restore has returned, and its chunks with it: read all of them inside restore",
                ))
            }
        }
        // The node stops for it, whatever `restore` makes of this.
        Err(FatalError::new_err("the snapshot cannot be read"))
    }
}

#[pymethods]
impl Chunks {
    /// Itself.
    fn __iter__(slf: PyRef<'_, Self>) -> PyRef<'_, Self> {
        slf
    }

    /// The next chunk. Raises `FatalError` if the file is damaged, and ValueError once `restore` has returned.
    fn __next__<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyBytes>>> {
        let chunk = py.detach(|| self.read())?;
        Ok(chunk.map(|chunk| PyBytes::new(py, &chunk)))
    }
}
