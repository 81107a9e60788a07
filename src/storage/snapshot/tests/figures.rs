//! How fast, and in how much memory.

use std::time::{Duration, Instant};

use super::*;

/// A figure of this process's memory.
fn memory_kib(which: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with(which)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// `cargo test --release --no-default-features --lib -- --ignored --nocapture figures_of_a_gibibyte`
#[test]
#[ignore = "a measurement, of the whole process's memory"]
fn figures_of_a_gibibyte_of_chunks() {
    const CHUNK_BYTES: usize = 4 << 20;
    const CHUNKS: usize = 256;
    let dir = tempfile::tempdir_in(".").unwrap();
    let other = tempfile::tempdir_in(".").unwrap();
    let (store, to) = (on_disk(dir.path()), on_disk(other.path()));
    let mut chunk: Vec<u8> = (0..CHUNK_BYTES).map(|at| (at * 7 + at / 255) as u8).collect();
    let before = memory_kib("VmRSS");
    let mut most = 0;
    let mut say = |what: &str, took: Duration| {
        most = memory_kib("VmHWM") - before;
        let speed = (CHUNK_BYTES * CHUNKS) as f64 / took.as_secs_f64() / f64::from(1 << 20);
        println!("{what}: {speed:.0} MiB/s, memory grew by {most} KiB at most so far");
    };

    let start = Instant::now();
    let mut slowest = Duration::ZERO;
    let mut writer = store.create(&head(1, Form::Chunks)).unwrap();
    for number in 0..CHUNKS {
        chunk[0] = number as u8;
        let start = Instant::now();
        writer.write_chunk(&chunk).unwrap();
        slowest = slowest.max(start.elapsed());
    }
    let last = Instant::now();
    let file = writer.finish().unwrap();
    println!("the slowest chunk took {slowest:?}, the end {:?}", last.elapsed());
    say("taken, synced", start.elapsed());

    let start = Instant::now();
    let mut count = 0;
    for read in file.clone().chunks() {
        assert_eq!(read.unwrap()[0], count as u8);
        count += 1;
    }
    assert_eq!(count, CHUNKS);
    say("read and checked", start.elapsed());

    let start = Instant::now();
    let mut receiver = to.receive(file.name()).unwrap();
    loop {
        let bytes = file.read_at(receiver.offset(), 256 << 10).unwrap();
        if bytes.is_empty() {
            break;
        }
        receiver.write(&bytes).unwrap();
    }
    drop(receiver);
    say("read and received", start.elapsed());
    let start = Instant::now();
    let receiver = to.receive(file.name()).unwrap();
    assert_eq!(receiver.offset(), file.name().bytes);
    receiver.finish().unwrap();
    say("checked again and finished", start.elapsed());
    let start = Instant::now();
    to.open(file.name()).unwrap();
    println!("opened in {:?}", start.elapsed());
    assert!(most < 64 << 10, "memory grew by {most} KiB");
}
