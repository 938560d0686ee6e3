//! Each stage of the path by itself: what WireGuard's ciphers cost, what TCP costs, and what is read of a visitor's first
//! bytes. What `path` measures is made of these.

use std::hint::black_box;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use boringtun::noise::{Tunn, TunnResult};
use boringtun::x25519::{PublicKey, StaticSecret};
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use portal_core::fuzzing::{Connection, StackEnd};
use portal_core::proxy::ProxyHeader;
use portal_core::{http, proxy, sni};

/// A full packet of a tunnel with the usual MTU.
const PACKET: usize = 1420;
/// Packets of one sample: a train.
const TRAIN: usize = 44;
/// What a datagram of data has more than its packet, and room for any other message.
const ROOM: usize = PACKET + 148;

/// The ciphers, as the library does them: the floor under everything.
fn wireguard(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("wireguard");
    let (mut here, mut there) = session();
    let packet = vec![0x60; PACKET];
    let mut room = vec![0; ROOM];
    group.throughput(Throughput::Bytes(PACKET as u64));
    group.bench_function("seal", |bencher| {
        bencher.iter(|| sealed(&mut here, &packet, &mut room));
    });
    group.throughput(Throughput::Bytes((TRAIN * PACKET) as u64));
    group.bench_function("open a train", |bencher| {
        let train = || -> Vec<Vec<u8>> {
            (0..TRAIN)
                .map(|_| {
                    let mut datagram = vec![0; ROOM];
                    let len = sealed(&mut here, &packet, &mut datagram);
                    datagram.truncate(len);
                    datagram
                })
                .collect()
        };
        bencher.iter_batched(
            train,
            |train| {
                for datagram in &train {
                    // A packet that is none: it is opened all the same, and then not taken.
                    black_box(there.decapsulate(None, datagram, &mut room));
                }
            },
            BatchSize::LargeInput,
        );
    });
    group.finish();
    criterion.bench_function("wireguard/handshake", |bencher| {
        bencher.iter_batched(ends, |(here, there)| shake_hands(here, there), BatchSize::SmallInput);
    });
}

/// Two ends that do not know each other yet.
fn ends() -> (Tunn, Tunn) {
    let (here, there) = (StaticSecret::from([1; 32]), StaticSecret::from([2; 32]));
    let (of_here, of_there) = (PublicKey::from(&here), PublicKey::from(&there));
    (
        Tunn::new(here, of_there, None, None, 1, None),
        Tunn::new(there, of_here, None, None, 2, None),
    )
}

fn session() -> (Tunn, Tunn) {
    let (here, there) = ends();
    shake_hands(here, there)
}

/// Initiation, response, and the packet that confirms.
fn shake_hands(mut here: Tunn, mut there: Tunn) -> (Tunn, Tunn) {
    let (mut one, mut other) = (vec![0; ROOM], vec![0; ROOM]);
    let initiation = here.format_handshake_initiation(&mut one, false);
    let response = there.decapsulate(None, to_send(initiation), &mut other);
    let confirmation = here.decapsulate(None, to_send(response), &mut one);
    there.decapsulate(None, to_send(confirmation), &mut other);
    (here, there)
}

fn to_send<'a>(result: TunnResult<'a>) -> &'a [u8] {
    match result {
        TunnResult::WriteToNetwork(datagram) => datagram,
        other => panic!("nothing to send: {other:?}"),
    }
}

fn sealed(tunn: &mut Tunn, packet: &[u8], room: &mut [u8]) -> usize {
    to_send(tunn.encapsulate(packet, room)).len()
}

/// Bytes of one sample, and when the next one begins: so few and so seldom that the flow wants no other buffers.
const BYTES: usize = 8_000;
const PAUSE: Duration = Duration::from_millis(10);

/// TCP inside the tunnel, without ciphers.
fn stack(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("stack");
    group.throughput(Throughput::Bytes(BYTES as u64));
    for (name, stage) in [("cut segments", 0), ("take segments", 1), ("take acknowledgements", 2)] {
        group.bench_function(name, |bencher| {
            bencher.iter_custom(|rounds| {
                let mut ends = Stacks::new();
                (0..rounds).map(|_| ends.round()[stage]).sum()
            });
        });
    }
    group.finish();
}

/// Two stacks with a connection.
struct Stacks {
    now: Instant,
    here: StackEnd,
    there: StackEnd,
    from: Connection,
    to: Connection,
}

impl Stacks {
    fn new() -> Self {
        let now = Instant::now();
        let keys = [1, 2].map(|byte| portal_core::identity::SecretKey::from_bytes([byte; 32]).public_key());
        let (mut here, mut there) = (
            StackEnd::new(now, keys[0], keys[1], false),
            StackEnd::new(now, keys[1], keys[0], true),
        );
        there.serve(80);
        let from = here.connect(now, 80).expect("room for one");
        while carry(now, &mut here, &mut there) + carry(now, &mut there, &mut here) > 0 {}
        let (to, _) = there.poll_touched().expect("it was accepted");
        Self {
            now,
            here,
            there,
            from,
            to,
        }
    }

    /// Moves some bytes, and says how long it took to make segments of them, to take those in, and to hear of that.
    fn round(&mut self) -> [Duration; 3] {
        self.now += PAUSE;
        let sent = self.here.send(self.from, &[0x5a; BYTES]);
        assert_eq!(sent, BYTES, "all was acknowledged");
        let start = Instant::now();
        let segments = packets(self.now, &mut self.here);
        let cut = start.elapsed();
        let start = Instant::now();
        for segment in &segments {
            self.there.handle_packet(self.now, segment);
        }
        let taken = start.elapsed();
        assert_eq!(self.there.read(self.to, usize::MAX).len(), BYTES);
        let acknowledgements = packets(self.now, &mut self.there);
        let start = Instant::now();
        for acknowledgement in &acknowledgements {
            self.here.handle_packet(self.now, acknowledgement);
        }
        let heard = start.elapsed();
        [cut, taken, heard]
    }
}

fn packets(now: Instant, end: &mut StackEnd) -> Vec<Vec<u8>> {
    std::iter::from_fn(|| end.poll_packet(now)).collect()
}

fn carry(now: Instant, from: &mut StackEnd, to: &mut StackEnd) -> usize {
    let packets = packets(now, from);
    for packet in &packets {
        to.handle_packet(now, packet);
    }
    packets.len()
}

/// What is read of a visitor's first bytes, and what an agent tells its target of them.
fn first_bytes(criterion: &mut Criterion) {
    let hello = portal_sim::client_hello("files.tunnel.example.org", 7);
    criterion.bench_function("first bytes/ClientHello", |bencher| {
        bencher.iter(|| sni::parse(black_box(&hello)).expect("it is one"));
    });
    let head =
        b"GET /index.html HTTP/1.1\r\nHost: files.tunnel.example.org\r\nUser-Agent: curl/7.88.1\r\nAccept: */*\r\n\r\n";
    criterion.bench_function("first bytes/HTTP head", |bencher| {
        bencher.iter(|| http::parse(black_box(head)).expect("it is one"));
    });
    let header = ProxyHeader {
        source: SocketAddr::from(([192, 0, 2, 1], 40_000)),
        destination: SocketAddr::from(([198, 51, 100, 1], 443)),
        authority: Some("files.tunnel.example.org".into()),
        alpn: Some(b"h2".to_vec()),
        unique_id: Some(vec![7; 16]),
    };
    let mut encoded = Vec::new();
    header.encode(&mut encoded);
    criterion.bench_function("first bytes/PROXY header, written", |bencher| {
        let mut out = Vec::with_capacity(encoded.len());
        bencher.iter(|| {
            out.clear();
            black_box(&header).encode(&mut out);
        });
    });
    criterion.bench_function("first bytes/PROXY header, read", |bencher| {
        bencher.iter(|| proxy::parse(black_box(&encoded)).expect("it is one"));
    });
}

criterion_group!(benches, wireguard, stack, first_bytes);
criterion_main!(benches);
