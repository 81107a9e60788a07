//! Whatever stands in a snapshot's file, or is sent as one, in any slices.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| aioraft::storage::snapshot::parse_anything(bytes));
