//! Whatever a disk gives back: the records in the log, the tail guard, the newest file's batches, the node's record.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    aioraft::storage::disk::read_anything(bytes);
    aioraft::driver::read_node_record(bytes);
});
