//! Times the hot paths: engine, log, frames between nodes, and the queues of the bridge (`make bench`).

#![allow(clippy::expect_used, clippy::panic)] // a measurement that cannot go on ends

mod hot;

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput};

use hot::engines::Engines;
use hot::frames::Frames;
use hot::logs::{Bare, Log};
use hot::queues::Queues;

const BATCHES: [u64; 3] = [1, 64, 1024];

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    engine(&mut criterion);
    log(&mut criterion);
    frames(&mut criterion);
    bridge(&mut criterion);
    criterion.final_summary();
}

fn engine(criterion: &mut Criterion) {
    for (name, nodes) in [("engine, one node", 1), ("engine, three nodes in one thread", 3)] {
        let mut engines = Engines::new(nodes);
        in_batches(criterion, name, |count| engines.propose(count));
    }
}

fn log(criterion: &mut Criterion) {
    let mut log = Log::new();
    in_batches(criterion, "log: append, durable", |count| log.append(count));
    let mut bare = Bare::new();
    in_batches(criterion, "append + fdatasync of the same bytes", |count| bare.append(count));
}

fn frames(criterion: &mut Criterion) {
    for (name, decodes) in [("frames: encode", false), ("frames: decode", true)] {
        let mut of = BATCHES.map(|count| (count, Frames::new(count)));
        in_batches(criterion, name, |count| {
            let Some((_, frames)) = of.iter_mut().find(|(of, _)| *of == count) else { return };
            if decodes {
                black_box(frames.decode());
            } else {
                black_box(frames.encode());
            }
        });
    }
}

fn bridge(criterion: &mut Criterion) {
    let mut queues = Queues::new();
    in_batches(criterion, "bridge: both queues, without Python", |count| {
        black_box(queues.cross(count));
    });
}

fn in_batches(criterion: &mut Criterion, name: &str, mut run: impl FnMut(u64)) {
    let mut group = criterion.benchmark_group(name);
    for count in BATCHES {
        group.throughput(Throughput::Elements(count));
        group.bench_function(BenchmarkId::from_parameter(count), |bencher| bencher.iter(|| run(count)));
    }
    group.finish();
}
