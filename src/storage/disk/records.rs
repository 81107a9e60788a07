//! How records stand in the log: a version, the group they belong to, and their bytes.
//!
//! | offset | bytes | field |
//! |---|---|---|
//! | 0 | 1 | format version, [`VERSION`] |
//! | 1 | 8 | group id, little-endian |
//! | 9 | .. | payload |
//!
//! The group stands in the record although the log knows it, so that a record in the wrong place is noticed.

use std::path::Path;

use prost::Message;
use raft::eraftpb::HardState;

use crate::engine::GroupId;
use crate::storage::{GroupState, StorageError, TermRun};

/// Key and value, as raft-engine keeps them.
pub(super) type Record = (Vec<u8>, Vec<u8>);

/// The format written by this build.
pub(super) const VERSION: u8 = 1;

/// Key of the bounds (truncated index, truncated term, last index); written with every change of them.
pub(super) const BOUNDS: &[u8] = b"b";
/// Key of the term runs; rewritten whenever they change, so that opening never reads entries.
pub(super) const TERMS: &[u8] = b"t";
/// Key of the hard state.
pub(super) const HARD_STATE: &[u8] = b"h";
/// Key of the sequence number of the batch.
pub(super) const SEQUENCE: &[u8] = b"s";
/// In front of the keys of all other records.
const RECORD: u8 = b'r';

const HEADER_LEN: usize = 9;

/// The key under which a record of the caller is kept.
pub(super) fn record_key(key: &[u8]) -> Vec<u8> {
    let mut full = Vec::with_capacity(key.len() + 1);
    full.push(RECORD);
    full.extend_from_slice(key);
    full
}

/// Puts version and group in front of a payload.
pub(super) fn seal(group: GroupId, payload: &[u8]) -> Vec<u8> {
    let mut record = Vec::with_capacity(HEADER_LEN + payload.len());
    record.push(VERSION);
    record.extend_from_slice(&group.to_le_bytes());
    record.extend_from_slice(payload);
    record
}

/// Checks version and group, and gives back the payload.
pub(super) fn unseal<'a>(place: &Path, group: GroupId, record: &'a [u8]) -> Result<&'a [u8], StorageError> {
    match record.split_first() {
        Some((&VERSION, rest)) if rest.get(..8) == Some(&group.to_le_bytes()[..]) => Ok(&record[HEADER_LEN..]),
        Some((&VERSION, _)) | None => {
            Err(StorageError::damaged(place, format!("a record of group {group} is short or belongs to another group")))
        }
        Some((&found, _)) => Err(StorageError::NewerFormat {
            path: place.to_path_buf(),
            found: u64::from(found),
            supported: u64::from(VERSION),
        }),
    }
}

/// The bounds of a group's log, sealed.
pub(super) fn bounds(group: GroupId, state: &GroupState) -> Vec<u8> {
    seal(group, &words([state.truncated.0, state.truncated.1, state.last_index]))
}

/// The term runs of a group, sealed.
pub(super) fn terms(group: GroupId, state: &GroupState) -> Vec<u8> {
    seal(group, &words(state.terms.iter().flat_map(|run| [run.first_index, run.term])))
}

/// The hard state of a group, sealed.
pub(super) fn hard_state(group: GroupId, state: &GroupState) -> Vec<u8> {
    seal(group, &state.hard_state.encode_to_vec())
}

/// A single number, sealed.
pub(super) fn number(group: GroupId, number: u64) -> Vec<u8> {
    seal(group, &number.to_le_bytes())
}

/// Reads a single number.
pub(super) fn read_number(place: &Path, group: GroupId, record: &[u8]) -> Result<u64, StorageError> {
    match read_words(unseal(place, group, record)?).as_deref() {
        Some([number]) => Ok(*number),
        _ => Err(StorageError::damaged(place, "a number in the log does not have eight bytes")),
    }
}

/// All records of a group, as they were found.
pub(super) fn read_group(place: &Path, group: GroupId, records: &[Record]) -> Result<GroupState, StorageError> {
    let damaged = |what: &str| StorageError::damaged(place, format!("the {what} of group {group} cannot be read"));
    let mut state = GroupState::default();
    let mut bounds = false;
    for (key, record) in records {
        let payload = unseal(place, group, record)?;
        match key.as_slice() {
            BOUNDS => match read_words(payload).as_deref() {
                Some([index, term, last]) if index <= last => {
                    state.truncated = (*index, *term);
                    state.last_index = *last;
                    bounds = true;
                }
                _ => return Err(damaged("bounds")),
            },
            TERMS => {
                let words = read_words(payload).filter(|words| words.len() % 2 == 0).ok_or_else(|| damaged("terms"))?;
                state.terms =
                    words.chunks_exact(2).map(|pair| TermRun { first_index: pair[0], term: pair[1] }).collect();
            }
            HARD_STATE => state.hard_state = HardState::decode(payload).map_err(|_| damaged("hard state"))?,
            [RECORD, key @ ..] => {
                state.records.insert(key.to_vec(), payload.to_vec());
            }
            _ => return Err(damaged("unknown record")),
        }
    }
    if !bounds {
        return Err(damaged("missing record of its bounds"));
    }
    state.trim_terms();
    let first = state.truncated.0.saturating_add(1);
    let sorted = state.terms.windows(2).all(|pair| pair[0].first_index < pair[1].first_index);
    let covered = state.last_index < first
        || (state.terms.first().is_some_and(|run| run.first_index == first)
            && state.terms.last().is_some_and(|run| run.first_index <= state.last_index));
    if !sorted || !covered {
        return Err(damaged("terms"));
    }
    Ok(state)
}

/// All records of a group, under their keys.
pub(super) fn write_group(group: GroupId, state: &GroupState) -> Vec<Record> {
    let mut all = vec![
        (BOUNDS.to_vec(), bounds(group, state)),
        (TERMS.to_vec(), terms(group, state)),
        (HARD_STATE.to_vec(), hard_state(group, state)),
    ];
    all.extend(state.records.iter().map(|(key, value)| (record_key(key), seal(group, value))));
    all
}

fn words(words: impl IntoIterator<Item = u64>) -> Vec<u8> {
    words.into_iter().flat_map(u64::to_le_bytes).collect()
}

fn read_words(bytes: &[u8]) -> Option<Vec<u64>> {
    let words = bytes.chunks_exact(8);
    words
        .remainder()
        .is_empty()
        .then(|| words.map(|word| word.iter().rev().fold(0, |n, b| n << 8 | u64::from(*b))).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> GroupState {
        GroupState {
            hard_state: HardState { term: 4, vote: 2, commit: 9 },
            truncated: (5, 3),
            last_index: 11,
            terms: vec![TermRun { first_index: 6, term: 3 }, TermRun { first_index: 9, term: 4 }],
            records: [(b"name".to_vec(), b"value".to_vec()), (Vec::new(), Vec::new())].into(),
        }
    }

    #[test]
    fn a_group_survives_the_round_trip() {
        let place = Path::new("log");
        assert_eq!(read_group(place, 7, &write_group(7, &sample())).unwrap(), sample());
    }

    #[test]
    fn records_that_are_short_foreign_or_newer_are_refused() {
        let place = Path::new("log");
        for at in 0..write_group(7, &sample()).len() {
            let mut foreign = write_group(7, &sample());
            foreign[at].1[1] = 8;
            let error = read_group(place, 7, &foreign).unwrap_err();
            assert!(matches!(error, StorageError::Damaged { .. }), "{error}");

            let mut newer = write_group(7, &sample());
            newer[at].1[0] = 2;
            let error = read_group(place, 7, &newer).unwrap_err();
            assert!(matches!(error, StorageError::NewerFormat { found: 2, supported: 1, .. }), "{error}");
        }
        for missing in 0..2 {
            let mut less = write_group(7, &sample());
            less.remove(missing);
            assert!(read_group(place, 7, &less).is_err(), "{missing}");
            let mut short = write_group(7, &sample());
            short[missing].1.pop();
            assert!(read_group(place, 7, &short).is_err(), "{missing}");
        }
    }

    #[test]
    fn runs_that_an_older_record_still_holds_are_trimmed() {
        let mut state = sample();
        state.terms.insert(0, TermRun { first_index: 2, term: 1 });
        state.terms[1].first_index = 4;
        let read = read_group(Path::new("log"), 7, &write_group(7, &state)).unwrap();
        assert_eq!(read.terms, sample().terms);
    }
}
