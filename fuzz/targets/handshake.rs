//! Whatever a stranger says first: greetings, refusals, and the report on forming the cluster inside them.

#![no_main]

use aioraft::engine::formation::Report;
use aioraft::transport::handshake::{
    check_admin, check_ends, decode_greeting, decode_refusal, encode_greeting, encode_refusal,
};
use aioraft::transport::wire::{Header, Kind, HANDSHAKE_BYTES_MAX, HANDSHAKE_FORMAT, HEADER_LEN};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    // The front is read alone, before there is a body.
    let _ = Header::decode(&bytes[..bytes.len().min(HEADER_LEN)], HANDSHAKE_FORMAT, HANDSHAKE_BYTES_MAX);
    if let Ok(refusal) = decode_refusal(bytes) {
        assert!(!refusal.reason.chars().any(char::is_control));
        assert_eq!(decode_refusal(&encode_refusal(&refusal)[HEADER_LEN..]).unwrap(), refusal);
    }
    let Ok(greeting) = decode_greeting(Kind::Hello, bytes) else { return };
    let _ = greeting.common_version();
    let _ = check_ends(&greeting.hello, &greeting.hello);
    let _ = check_admin(1, &greeting.hello);
    if let Some(report) = Report::decode(&greeting.hello.formation) {
        assert_eq!(Report::decode(&report.encode()), Some(report));
    }
    if let Ok(frame) = encode_greeting(Kind::Hello, &greeting) {
        assert_eq!(decode_greeting(Kind::Hello, &frame[HEADER_LEN..]).unwrap(), greeting);
    }
});
