//! The names of the files, in hexadecimal digits, so that they sort by group and index:
//!
//! | name | what it is |
//! |---|---|
//! | `GROUP-INDEX-TERM-BYTES-CHECKSUM.snapshot` | a whole file |
//! | `GROUP-INDEX-TERM-BYTES-CHECKSUM.part` | one that is being received, as far as it has come |
//! | `GROUP-INDEX-TERM.part` | one that is being taken here: its length and its checksum are not known yet |
//!
//! All of a [`SnapshotName`] stands in them. Two nodes may have different files for the same index; one never takes the
//! place of the other, which the log may name.

use super::{Head, SnapshotName};

/// What a file's name says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FileName {
    Whole(SnapshotName),
    Received(SnapshotName),
    Taken { group: u64, index: u64, term: u64 },
}

impl FileName {
    /// The file of a snapshot that is taken here.
    pub fn taken(head: &Head) -> Self {
        Self::Taken { group: head.group, index: head.index, term: head.term }
    }

    /// Reads a name; `None` if it is not one of ours.
    pub fn parse(text: &str) -> Option<Self> {
        let (stem, suffix) = text.split_once('.')?;
        let fields: Vec<u64> =
            stem.split('-').map(|field| u64::from_str_radix(field, 16).ok()).collect::<Option<_>>()?;
        let name = match (fields.as_slice(), suffix) {
            (&[group, index, term], "part") => Self::Taken { group, index, term },
            (&[group, index, term, bytes, checksum], _) => {
                let name = SnapshotName { group, index, term, bytes, checksum: u32::try_from(checksum).ok()? };
                match suffix {
                    "snapshot" => Self::Whole(name),
                    "part" => Self::Received(name),
                    _ => return None,
                }
            }
            _ => return None,
        };
        // Other digits for the same numbers are somebody else's.
        (name.to_string() == text).then_some(name)
    }
}

impl std::fmt::Display for FileName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (name, suffix) = match self {
            Self::Whole(name) => (name, "snapshot"),
            Self::Received(name) => (name, "part"),
            Self::Taken { group, index, term } => return write!(f, "{group:016x}-{index:016x}-{term:016x}.part"),
        };
        let SnapshotName { group, index, term, bytes, checksum } = name;
        write!(f, "{group:016x}-{index:016x}-{term:016x}-{bytes:016x}-{checksum:08x}.{suffix}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_as_they_were_written_and_no_others_are_ours() {
        let name = SnapshotName { group: 1, index: u64::MAX, term: 3, bytes: 400, checksum: 0xabc };
        let all = [FileName::Whole(name), FileName::Received(name), FileName::Taken { group: 1, index: 2, term: 3 }];
        for name in all {
            assert_eq!(FileName::parse(&name.to_string()), Some(name));
            for foreign in [
                name.to_string().to_uppercase(),
                format!("{name}~"),
                format!("0{name}"),
                name.to_string().replacen("0", "", 1),
                name.to_string().replacen("0", "+", 1),
                name.to_string().replace(".", ".old."),
            ] {
                assert_eq!(FileName::parse(&foreign), None, "{foreign}");
            }
        }
    }

    #[test]
    fn names_sort_by_group_and_index() {
        let text = |group, index| FileName::Whole(SnapshotName { group, index, ..Default::default() }).to_string();
        let mut names = [text(2, 1), text(1, 1 << 40), text(1, 9), text(1, 10)];
        names.sort();
        assert_eq!(names, [text(1, 9), text(1, 10), text(1, 1 << 40), text(2, 1)]);
    }
}
