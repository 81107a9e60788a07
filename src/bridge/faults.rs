//! `Faults`: what goes wrong on purpose between the nodes of a test.

use pyo3::prelude::*;

use super::errors::ConfigError;
use super::settings::duration;
use crate::driver::faults;

/// Faults of the network between nodes of one process, put in by tests. Private: use `aioraft.testing.Cluster`.
///
/// Made once for all nodes of a cluster, and given to each `Core`. May be called from any thread.
#[pyclass(frozen, module = "aioraft._core")]
pub struct Faults(pub(super) faults::Faults);

#[pymethods]
impl Faults {
    #[new]
    #[pyo3(signature = (seed: "int"))]
    fn new(seed: u64) -> Self {
        Self(faults::Faults::new(seed))
    }

    /// Nothing arrives at node `target` from node `source` any more, or it does again; connections stay up.
    #[pyo3(signature = (source: "int", target: "int", is_cut: "bool" = true))]
    fn cut(&self, source: u64, target: u64, is_cut: bool) {
        self.0.cut(source, target, is_cut);
    }

    /// What node `target` gets from node `source` arrives `seconds` later, in its order.
    #[pyo3(signature = (source: "int", target: "int", seconds: "float"))]
    fn delay(&self, source: u64, target: u64, seconds: f64) -> PyResult<()> {
        let by = duration(seconds)
            .ok_or_else(|| ConfigError::new_err(format!("a delay of {seconds}: it must be a number of seconds")))?;
        self.0.delay(source, target, by);
        Ok(())
    }

    /// This share of the messages from node `source` to node `target`, between 0 and 1, does not arrive.
    #[pyo3(signature = (source: "int", target: "int", share: "float"))]
    fn drop(&self, source: u64, target: u64, share: f64) {
        self.0.drop(source, target, share);
    }

    /// Every way is whole, quick and reliable again.
    fn heal(&self) {
        self.0.heal();
    }

    /// This node ends within a moment as if its process were killed; its calls fail with `FatalError`.
    #[pyo3(signature = (node: "int"))]
    fn crash(&self, node: u64) {
        self.0.crash(node);
    }

    /// The application of this node hangs, or goes on: meanwhile it hears of nothing, and applies nothing.
    #[pyo3(signature = (node: "int", hangs: "bool"))]
    fn hang(&self, node: u64, hangs: bool) {
        self.0.hang(node, hangs);
    }
}
