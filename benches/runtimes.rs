//! Both runtimes over loopback: a visitor's bytes through relay and agent to a target and back, each of the two ends on a
//! thread of its own.

#[path = "../runtime-mio/tests/shipped/mod.rs"]
mod shipped;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use portal_conformance::Adapter;
use portal_conformance::world::{AgentEnd, RelayEnd, echo, echoed, pattern, server};
use portal_core::Kind;

use shipped::{Mio, Tokio};

fn runtimes(criterion: &mut Criterion) {
    echoes(criterion, "mio", Mio);
    echoes(criterion, "tokio", Tokio);
}

/// A small request as it waits for its answer, and bulk both ways at once.
fn echoes(criterion: &mut Criterion, name: &str, adapter: impl Adapter) {
    let relay = RelayEnd::start(adapter);
    let agent = AgentEnd::start(adapter, relay.udp, Kind::Tcp, server(echo));
    let mut visitor = agent.visit();
    let mut group = criterion.benchmark_group("runtime");
    for bytes in [128, 4 << 20] {
        let sent = pattern(bytes);
        group.throughput(Throughput::Bytes(bytes as u64));
        group.bench_function(BenchmarkId::new(format!("{name}, echoed bytes"), bytes), |bencher| {
            bencher.iter(|| echoed(&mut visitor, &sent));
        });
    }
    group.finish();
    drop(visitor);
    agent.end.shutdown();
    assert!(agent.end.ended(), "the agent finished");
    relay.end.shutdown();
    assert!(relay.end.ended(), "the relay finished");
}

criterion_group!(benches, runtimes);
criterion_main!(benches);
