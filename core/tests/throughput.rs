//! How fast one upload is, over round trip, loss and memory, and how soon a page is there, as tables in the repository: a
//! change of the TCP layer is reviewed as a diff of `throughput.txt`. `UPDATE=1` writes it anew.

use std::fmt::Write;
use std::path::Path;
use std::time::{Duration, Instant};

use portal_core::Kind;
use portal_sim::{HostId, Loss, Opening, Socket, TargetScript, World, agent_config, pattern, relay_config, service};

const ROUND_TRIPS: [u64; 3] = [2, 20, 100];
/// Out of a million.
const LOSSES: [u32; 3] = [0, 1_000, 10_000];
/// The memory budget of both ends in MiB, with nothing else to hold: how large the flow's buffers may grow.
const MEMORIES: [usize; 4] = [4, 8, 16, 256];
/// One upload ends after this much or this long, whichever comes first.
const MOST_BYTES: u64 = 4 << 20;
const LONGEST: Duration = Duration::from_secs(20);
/// A lossy cell is the mean of as many runs.
const LOSSY_RUNS: u64 = 8;
/// A page: what it names, so many at once, each asked for over a connection of its own.
const OBJECTS: usize = 24;
const AT_ONCE: usize = 6;
const REQUEST: usize = 400;
const OBJECT: usize = 50_000;

#[test]
fn the_tables_are_as_committed() {
    let mut table =
        String::from("One upload, kB/s. Memory of both ends in MiB across, round trip and loss (each way) down.\n\n");
    let heads = MEMORIES.iter().map(|memory| format!("{memory:>8}"));
    let heads: String = heads.collect();
    writeln!(table, "{:>7} {:>6}{heads}", "RTT", "loss").expect("a string takes all");
    for round_trip in ROUND_TRIPS {
        for loss in LOSSES {
            let cells = MEMORIES
                .iter()
                .map(|&memory| format!("{:>8}", kilobytes_per_second(round_trip, loss, memory << 20)));
            let cells: String = cells.collect();
            let percent = f64::from(loss) / 10_000.0;
            writeln!(table, "{round_trip:>4} ms {percent:>4} %{cells}").expect("a string takes all");
        }
    }
    table.push_str(
        "\nA page of 24 times 50 kB, six at once, each over a connection of its own: ms, and the same again.\n\n",
    );
    writeln!(table, "{:>7} {:>6}{:>8}{:>8}", "RTT", "loss", "first", "again").expect("a string takes all");
    for round_trip in ROUND_TRIPS {
        for loss in [0, 10_000] {
            let percent = f64::from(loss) / 10_000.0;
            let [first, again] = pages(round_trip, loss);
            writeln!(table, "{round_trip:>4} ms {percent:>4} %{first:>8}{again:>8}").expect("a string takes all");
        }
    }
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/throughput.txt");
    compare(&path, &table);
}

/// The speed of one upload.
fn kilobytes_per_second(round_trip: u64, loss: u32, memory: usize) -> u64 {
    let runs = if loss == 0 { 1 } else { LOSSY_RUNS };
    let (mut bytes, mut time) = (0, Duration::ZERO);
    for seed in 0..runs {
        let (moved, took) = upload(seed, Duration::from_millis(round_trip), loss, memory);
        bytes += moved;
        time += took;
    }
    (u128::from(bytes) * 1_000_000 / time.as_nanos()) as u64
}

/// How many milliseconds two pages take, one after the other.
fn pages(round_trip: u64, loss: u32) -> [u128; 2] {
    let runs = if loss == 0 { 1 } else { 4 * LOSSY_RUNS };
    let mut took = [Duration::ZERO; 2];
    for seed in 0..runs {
        let mut world = World::new(origin(), seed);
        world.add_relay(relay_config(0));
        world.add_agent(agent_config(0, 0, vec![service(Kind::Tcp, 3000)]), 0);
        world.agents[0].behaviour.targets = TargetScript::Keep;
        world.run_until("the lease", |world| world.public(0).is_some());
        world.impair(0, |link| {
            link.latency = Duration::from_millis(round_trip) / 2;
            link.loss = Loss::Random(loss);
        });
        for took in &mut took {
            *took += page(&mut world);
        }
    }
    took.map(|took| took.as_millis() / u128::from(runs))
}

fn page(world: &mut World) -> Duration {
    let object = pattern(OBJECT);
    let fetch = |world: &mut World| {
        let visitor = world.visit(world.public_port(0)).expect("accepted");
        world.say(visitor, &[7; REQUEST]);
        visitor
    };
    let start = world.now;
    let mut asked = AT_ONCE;
    let mut lanes: Vec<_> = (0..AT_ONCE).map(|_| fetch(world)).collect();
    while !lanes.is_empty() {
        world.step(start + 10 * LONGEST);
        // What is due at this instant happens before anybody looks.
        world.run(Duration::ZERO);
        let is_asked = |socket: &Socket| socket.received.len() == REQUEST && !socket.fin_to_send;
        let targets = world.agents[0].sockets.iter();
        let asked_now: Vec<_> = targets
            .filter(|(_, socket)| is_asked(socket))
            .map(|(id, _)| *id)
            .collect();
        for target in asked_now {
            let socket = world.socket(HostId::Agent(0), target);
            socket.to_send.extend(&object);
            socket.fin_to_send = true;
        }
        lanes.retain_mut(|visitor| {
            if world.visitor(*visitor).received.len() < OBJECT {
                return true;
            }
            world.visitor(*visitor).fin_to_send = true;
            asked += 1;
            if asked <= OBJECTS {
                *visitor = fetch(world);
            }
            asked <= OBJECTS
        });
    }
    world.now - start
}

/// How many bytes arrived, and how long it took.
fn upload(seed: u64, round_trip: Duration, loss: u32, memory: usize) -> (u64, Duration) {
    let mut world = World::new(origin(), seed);
    let (mut relay, mut agent) = (relay_config(0), agent_config(0, 0, vec![service(Kind::Tcp, 3000)]));
    relay.limits.memory = memory;
    agent.limits.memory = memory;
    world.add_relay(relay);
    world.add_agent(agent, 0);
    world.agents[0].behaviour.targets = TargetScript::Model { most: 0 };
    world.run_until("the lease", |world| world.public(0).is_some());
    world.impair(0, |link| link.latency = round_trip / 2);
    let (port, remote) = (world.public_port(0), ([198, 51, 100, 1], 1000).into());
    let visitor = world
        .visit_modelled(0, port, remote, &Opening::Raw, 3000, 0)
        .expect("accepted");
    world.run(Duration::from_secs(1));
    let side = world.visitor(visitor).side.expect("modelled");
    world.impair(0, |link| link.loss = Loss::Random(loss));
    let target = world
        .ledger
        .get(side)
        .and_then(|side| side.peer)
        .expect("it has reached its target");
    let arrived = |world: &World| world.ledger.get(target).expect("it is not forgotten").received;
    let (start, before) = (world.now, arrived(&world));
    world.visitor(visitor).left_to_send = MOST_BYTES;
    while arrived(&world) - before < MOST_BYTES && world.step(start + LONGEST) {}
    let counters = world.agents[0].machine.counters();
    assert!(
        loss > 0 || 2 * counters.packets_coalesced > counters.packets_opened,
        "packets that arrive together are taken in together: {counters:?}"
    );
    (arrived(&world) - before, world.now - start)
}

#[expect(
    clippy::disallowed_methods,
    reason = "the snapshot is a file, and whoever runs this may write it anew"
)]
fn compare(path: &Path, table: &str) {
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(path, table).expect("the snapshot can be written");
    }
    let committed = std::fs::read_to_string(path).expect("the snapshot can be read");
    assert!(
        committed == table,
        "the table has changed; if that is meant, UPDATE=1 cargo test -p portal-core --test throughput\n\
         committed:\n{committed}\nnow:\n{table}"
    );
}

/// An arbitrary origin for the virtual clock.
#[expect(clippy::disallowed_methods, reason = "never compared with another clock")]
fn origin() -> Instant {
    Instant::now()
}
