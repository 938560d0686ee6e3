//! The whole path in memory: bytes through TCP, WireGuard and back, with both ends on one core.

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use portal_benches::Pair;

/// A megabyte over a warm connection, alone and among idle ones.
fn bulk(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("path");
    const BYTES: usize = 1 << 20;
    group.throughput(Throughput::Bytes(BYTES as u64));
    for idle in [0, 1000, 10_000] {
        let mut pair = Pair::new();
        let active = pair.connect();
        for _ in 0..idle {
            pair.connect();
        }
        pair.upload(active, 64 << 20);
        group.bench_function(BenchmarkId::new("upload 1 MiB among idle flows", idle), |bencher| {
            bencher.iter(|| pair.upload(active, BYTES));
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

criterion_group!(benches, bulk, connect);
criterion_main!(benches);
