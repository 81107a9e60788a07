//! `recover`: a cluster goes on from one data directory.

use std::path::PathBuf;

use pyo3::prelude::*;
use pyo3::types::PyDict;

use super::errors::RaftError;
use super::hints::Figures;
use crate::driver::recover::{foresee as look_ahead, recover as recover_directory, Recovery};

/// Makes the node of a data directory the only member of its cluster, or tells what that would do if `foresee`: under the
/// keys of `aioraft recover --json`. Private: use `aioraft recover`.
///
/// Without the GIL. Raises RaftError if it cannot be done; nothing has changed then.
#[pyfunction]
#[pyo3(signature = (data_dir: "str", *, foresee: "bool"))]
pub fn recover<'py>(py: Python<'py>, data_dir: PathBuf, foresee: bool) -> PyResult<Figures<'py>> {
    let done = py.detach(|| if foresee { look_ahead(&data_dir) } else { recover_directory(&data_dir) });
    let Recovery { id, cluster, lost, commit, last_index, last_term, last_wall_ns, copy } =
        done.map_err(|error| RaftError::new_err(error.to_string()))?;
    let dict = PyDict::new(py);
    dict.set_item("id", id)?;
    dict.set_item("cluster", cluster)?;
    dict.set_item("lost", lost)?;
    dict.set_item("commit", commit)?;
    dict.set_item("last_index", last_index)?;
    dict.set_item("last_term", last_term)?;
    dict.set_item("last_wall_ns", (last_wall_ns > 0).then_some(last_wall_ns))?;
    dict.set_item("copy", copy.map(|copy| copy.display().to_string()))?;
    Ok(Figures(dict))
}
