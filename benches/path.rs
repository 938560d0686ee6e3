//! The whole path in memory: bytes through TCP, WireGuard and back, with both ends on one core.

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use portal_benches::Pair;

/// Connections that there are.
const FLOWS: [usize; 3] = [1, 100, 10_000];

/// A megabyte over a warm connection, alone and among idle ones.
fn bulk(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("path");
    const BYTES: usize = 1 << 20;
    group.throughput(Throughput::Bytes(BYTES as u64));
    for flows in FLOWS {
        let (mut pair, connections) = Pair::with_connections(flows);
        pair.upload(connections[0], 64 << 20);
        group.bench_function(BenchmarkId::new("upload 1 MiB, flows", flows), |bencher| {
            bencher.iter(|| pair.upload(connections[0], BYTES));
        });
    }
    group.finish();
}

/// A message on each flow in turn, so that none has what it needs in the caches.
fn messages(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("path");
    for flows in FLOWS {
        let (mut pair, connections) = Pair::with_connections(flows);
        let mut next = connections.iter().cycle();
        group.bench_function(BenchmarkId::new("128 bytes on each in turn, flows", flows), |bencher| {
            bencher.iter(|| pair.upload(*next.next().expect("it goes round"), 128));
        });
    }
    group.finish();
}

/// A visitor's connection, from accept to the dial of its target.
fn connect(criterion: &mut Criterion) {
    criterion.bench_function("path/connect", |bencher| {
        let mut pair = Pair::new();
        let mut made = 0;
        bencher.iter(|| {
            made += 1;
            if made % 1000 == 0 {
                pair = Pair::new();
            }
            pair.connect()
        });
    });
}

criterion_group!(benches, bulk, messages, connect);
criterion_main!(benches);
