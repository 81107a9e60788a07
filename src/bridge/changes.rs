//! Changes of the members, as Python gives them.

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use crate::engine::membership::{Change, Member, Metadata};
use crate::engine::NodeId;

/// What is done, to whom, and what is known of it.
pub type ChangeOf = (String, NodeId, String, Option<Metadata>);

/// Reads them. ValueError names what is none.
pub fn read(changes: Vec<ChangeOf>) -> PyResult<Vec<Change>> {
    let changes = changes.into_iter().map(|(action, id, address, metadata)| match action.as_str() {
        "add" => {
            let metadata = metadata.unwrap_or_default();
            Ok(Change::AddLearner { id, member: Member { address, metadata, ..Default::default() } })
        }
        "promote" => Ok(Change::Promote(id)),
        "demote" => Ok(Change::Demote(id)),
        "remove" => Ok(Change::Remove(id)),
        "update" => Ok(Change::Update { id, identity: 0, address, metadata }),
        other => Err(PyValueError::new_err(format!("{other:?} is no change of the members"))),
    });
    changes.collect()
}
