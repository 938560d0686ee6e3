//! The cases. Each starts what it needs and leaves nothing behind.

use std::env;
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream, UdpSocket};
use std::os::unix::net::UnixListener;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use portal_core::{AgentEvent, Kind, RelayEvent, Service, Target};

use crate::world::{
    AgentEnd, Cable, PATIENCE, RelayEnd, echo, echoed, eventually, granted, host, patient, pattern, port_of, server,
    visit,
};
use crate::{Adapter, Case};

/// A relay and an agent with one service.
struct Pair {
    relay: RelayEnd,
    cable: Cable,
    agent: AgentEnd,
}

impl Pair {
    fn start(case: Case<impl Adapter, impl Adapter>, kind: Kind, target: Target) -> Self {
        let relay = RelayEnd::start(case.relay);
        let cable = Cable::new(relay.udp);
        let agent = AgentEnd::start(case.agent, cable.agents_side, kind, target);
        Self { relay, cable, agent }
    }

    /// Both ends are sound, and end well.
    fn end(self) {
        self.relay.end.call(|relay, _| relay.check_invariants());
        self.agent.end.call(|agent, _| agent.check_invariants());
        self.agent.end.shutdown();
        assert!(self.agent.end.ended(), "the agent finished");
        self.relay.end.shutdown();
        assert!(self.relay.end.ended(), "the relay finished");
        drop(self.cable);
    }
}

/// Megabytes, while others come the other way.
pub fn bytes_come_back_exactly_both_ways_at_once(case: Case<impl Adapter, impl Adapter>) {
    let pair = Pair::start(case, Kind::Tcp, server(echo));
    let bytes = pattern(8 << 20);
    let mut visitor = pair.agent.visit();
    echoed(&mut visitor, &bytes);
    visitor.shutdown(Shutdown::Write).unwrap();
    assert_eq!(visitor.read(&mut [0]).unwrap(), 0, "nothing follows");
    drop(visitor);
    pair.end();
}

/// A visitor that has said all still gets the answer; a target that has said all still gets the rest.
pub fn an_end_of_file_travels_alone(case: Case<impl Adapter, impl Adapter>) {
    let pair = Pair::start(
        case,
        Kind::Tcp,
        server(|mut stream| {
            // Its own end first, then all that comes, and its length back: but for that it is too late.
            stream.write_all(b"first").unwrap();
            stream.shutdown(Shutdown::Write).unwrap();
            let mut all = Vec::new();
            stream.read_to_end(&mut all).unwrap();
            assert_eq!(all, b"to you");
        }),
    );
    let mut visitor = pair.agent.visit();
    let mut said = String::new();
    visitor.read_to_string(&mut said).unwrap();
    assert_eq!(said, "first");
    visitor.write_all(b"to you").unwrap();
    visitor.shutdown(Shutdown::Write).unwrap();
    pair.end();

    let pair = Pair::start(
        case,
        Kind::Tcp,
        server(|mut stream| {
            let mut all = Vec::new();
            stream.read_to_end(&mut all).unwrap();
            stream.write_all(all.len().to_string().as_bytes()).unwrap();
        }),
    );
    let mut visitor = pair.agent.visit();
    visitor.write_all(&pattern(100_000)).unwrap();
    visitor.shutdown(Shutdown::Write).unwrap();
    let mut said = String::new();
    visitor.read_to_string(&mut said).unwrap();
    assert_eq!(said, "100000");
    drop(visitor);
    pair.end();
}

/// A side that breaks off is seen to break off by the other.
pub fn a_reset_travels_both_ways(case: Case<impl Adapter, impl Adapter>) {
    let pair = Pair::start(
        case,
        Kind::Tcp,
        server(|mut stream| {
            // Dropped with something unread: the kernel resets.
            let mut first = [0];
            stream.read_exact(&mut first).unwrap();
            stream.peek(&mut [0]).unwrap();
        }),
    );
    let mut visitor = pair.agent.visit();
    visitor.write_all(b"xy").unwrap();
    let broken = visitor.read(&mut [0]).unwrap_err();
    assert_eq!(broken.kind(), ErrorKind::ConnectionReset);
    drop(visitor);
    pair.end();

    static BROKEN: AtomicUsize = AtomicUsize::new(0);
    let before = BROKEN.load(Ordering::SeqCst);
    let pair = Pair::start(
        case,
        Kind::Tcp,
        server(|mut stream| {
            stream.write_all(b"xy").unwrap();
            let end = stream.read(&mut [0]);
            if end.is_err_and(|error| error.kind() == ErrorKind::ConnectionReset) {
                BROKEN.fetch_add(1, Ordering::SeqCst);
            }
        }),
    );
    let mut visitor = pair.agent.visit();
    visitor.read_exact(&mut [0]).unwrap();
    visitor.peek(&mut [0]).unwrap();
    drop(visitor);
    eventually("the reset", || (BROKEN.load(Ordering::SeqCst) > before).then_some(()));
    pair.end();
}

/// Who is not read from cannot write on for ever, and loses nothing.
pub fn a_reader_that_stops_stops_the_writer(case: Case<impl Adapter, impl Adapter>) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let pair = Pair::start(case, Kind::Tcp, host(listener.local_addr().unwrap()));
    let mut visitor = pair.agent.visit();
    let (mut target, _) = listener.accept().unwrap();
    patient(&target);
    visitor.set_write_timeout(Some(Duration::from_millis(500))).unwrap();
    // More than all the buffers on the way can hold.
    let bytes = pattern(128 << 20);
    let mut written = 0;
    let stopped = loop {
        match visitor.write(&bytes[written..]) {
            Ok(count) => written += count,
            Err(error) => break error,
        }
        assert!(written < bytes.len(), "somebody swallows it");
    };
    assert!(
        matches!(stopped.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut),
        "{stopped}"
    );
    let mut back = vec![0; written];
    target.read_exact(&mut back).unwrap();
    assert!(back == bytes[..written], "other bytes arrived");
    drop((visitor, target));
    pair.end();
}

/// Many at once, each with something to say now and later.
pub fn hundreds_of_connections_live_side_by_side(case: Case<impl Adapter, impl Adapter>) {
    let pair = Pair::start(case, Kind::Tcp, server(echo));
    let mut visitors: Vec<TcpStream> = (0..300).map(|_| pair.agent.visit()).collect();
    for round in 0..2u32 {
        for (number, visitor) in visitors.iter_mut().enumerate() {
            visitor.write_all(&[number as u8, round as u8, 1, 2]).unwrap();
        }
        for (number, visitor) in visitors.iter_mut().enumerate() {
            let mut back = [0; 4];
            visitor.read_exact(&mut back).unwrap();
            assert_eq!(back, [number as u8, round as u8, 1, 2]);
        }
    }
    drop(visitors);
    pair.end();
}

/// By its path.
pub fn a_unix_socket_is_a_target_like_any(case: Case<impl Adapter, impl Adapter>) {
    static NUMBER: AtomicUsize = AtomicUsize::new(0);
    let number = NUMBER.fetch_add(1, Ordering::SeqCst);
    let path = env::temp_dir().join(format!("portal-conformance-{}-{number}", std::process::id()));
    let listener = UnixListener::bind(&path).unwrap();
    let served = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut all = Vec::new();
        stream.read_to_end(&mut all).unwrap();
        stream.write_all(&all).unwrap();
    });
    let pair = Pair::start(case, Kind::Tcp, Target::Unix(path.clone()));
    let mut visitor = pair.agent.visit();
    visitor.write_all(b"by its path").unwrap();
    visitor.shutdown(Shutdown::Write).unwrap();
    let mut back = String::new();
    visitor.read_to_string(&mut back).unwrap();
    assert_eq!(back, "by its path");
    served.join().unwrap();
    std::fs::remove_file(&path).unwrap();
    drop(visitor);
    // Nothing listens there any more.
    let mut visitor = pair.agent.visit();
    let end = visitor.read(&mut [0]);
    assert!(!matches!(end, Ok(1..)), "{end:?}");
    pair.end();
}

/// By a page, over HTTP.
pub fn a_target_that_refuses_is_said_to_visitors(case: Case<impl Adapter, impl Adapter>) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let target = host(listener.local_addr().unwrap());
    drop(listener);
    let pair = Pair::start(case, Kind::Http, target);
    let page = |name: &str| {
        let mut visitor = visit(pair.relay.http.port());
        let request = format!("GET / HTTP/1.1\r\nHost: {name}\r\nConnection: close\r\n\r\n");
        visitor.write_all(request.as_bytes()).unwrap();
        let mut page = String::new();
        visitor.read_to_string(&mut page).unwrap();
        page
    };
    let name = pair.agent.public.trim_start_matches("http://");
    let name = name.split([':', '/']).next().unwrap();
    assert!(page(name).starts_with("HTTP/1.1 502 "));
    assert!(page("nobody.localhost").starts_with("HTTP/1.1 404 "));
    pair.end();
}

/// Looking a name up may take long, and concerns nobody else.
pub fn a_name_is_looked_up_while_others_are_served(case: Case<impl Adapter, impl Adapter>) {
    let target = server(echo);
    let pair = Pair::start(case, Kind::Tcp, target.clone());
    let mut steady = pair.agent.visit();
    echoed(&mut steady, b"before");

    // A name with an address, one without, and one that the system itself knows.
    let Target::Host { port, .. } = target else { panic!() };
    let named = |id: &str, name: &str| {
        let target = Target::Host {
            host: name.into(),
            port,
        };
        Service::new(id, Kind::Tcp, target)
    };
    let services = vec![
        Service::new("it", Kind::Tcp, target.clone()),
        named("localhost", "localhost"),
        named("nowhere", "nowhere.invalid"),
    ];
    pair.agent.end.call(move |agent, now| agent.set_services(now, services));
    let mut public = std::collections::BTreeMap::new();
    while public.len() < 2 {
        let (service, at) = pair.agent.end.told("the leases", |event| match event {
            AgentEvent::Granted { service, public, .. } => Some((service, public)),
            _ => None,
        });
        if service != "it" {
            public.insert(service, at);
        }
    }
    let mut nowhere = visit(port_of(&public["nowhere"]));
    let mut visitor = visit(port_of(&public["localhost"]));
    echoed(&mut visitor, b"by name");
    echoed(&mut steady, b"during");
    let end = nowhere.read(&mut [0]);
    assert!(!matches!(end, Ok(1..)), "{end:?}");
    let error = pair.agent.end.told("the failure", |event| match event {
        AgentEvent::TargetFailed { error, .. } => Some(error),
        _ => None,
    });
    assert_eq!(error, portal_core::DialError::Unresolved);
    echoed(&mut steady, b"after");
    drop((steady, visitor, nowhere));
    pair.end();
}

/// Each visitor has answers of its own; empty and large ones too.
pub fn datagrams_find_their_visitor(case: Case<impl Adapter, impl Adapter>) {
    let target = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    target.set_read_timeout(Some(PATIENCE)).unwrap();
    let pair = Pair::start(case, Kind::Udp, host(target.local_addr().unwrap()));
    let echo = thread::spawn(move || {
        let mut buffer = [0; 2048];
        while let Ok((len, from)) = target.recv_from(&mut buffer) {
            target.send_to(&buffer[..len], from).unwrap();
            if &buffer[..len] == b"end" {
                return;
            }
        }
    });
    let visitors: Vec<UdpSocket> = (0..3)
        .map(|_| {
            let visitor = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
            visitor.set_read_timeout(Some(PATIENCE)).unwrap();
            visitor.connect((Ipv4Addr::LOCALHOST, pair.agent.port())).unwrap();
            visitor
        })
        .collect();
    for (number, len) in [1, 0, 1200, 17, 600].into_iter().enumerate() {
        for (who, visitor) in visitors.iter().enumerate() {
            let payload = vec![(10 * who + number) as u8; len];
            visitor.send(&payload).unwrap();
            let mut back = [0xff; 2048];
            let count = visitor.recv(&mut back).expect("on loopback nothing is lost");
            assert_eq!(back[..count], payload);
        }
    }
    visitors[0].send(b"end").unwrap();
    echo.join().unwrap();
    pair.end();
}

/// What stays the same is not touched.
pub fn services_change_while_connections_go_on(case: Case<impl Adapter, impl Adapter>) {
    let target = server(echo);
    let pair = Pair::start(case, Kind::Tcp, target.clone());
    let mut visitor = pair.agent.visit();
    echoed(&mut visitor, b"before");
    let again = target.clone();
    pair.agent.end.call(move |agent, now| {
        let services = vec![
            Service::new("it", Kind::Tcp, again.clone()),
            Service::new("more", Kind::Tcp, again),
        ];
        agent.set_services(now, services);
    });
    let more = port_of(&pair.agent.end.told("the second lease", granted));
    assert_ne!(more, pair.agent.port());
    let mut second = visit(more);
    echoed(&mut second, b"of the second");
    echoed(&mut visitor, b"meanwhile");
    pair.agent.end.call(move |agent, now| {
        agent.set_services(now, vec![Service::new("it", Kind::Tcp, target)]);
    });
    eventually("the end of its port", || {
        TcpStream::connect((Ipv4Addr::LOCALHOST, more)).is_err().then_some(())
    });
    echoed(&mut visitor, b"after");
    drop((visitor, second));
    pair.end();
}

/// Without a goodbye.
pub fn an_agent_that_vanished_comes_back_to_its_lease(case: Case<impl Adapter, impl Adapter>) {
    let target = server(echo);
    let Pair {
        relay,
        cable,
        agent: first,
    } = Pair::start(case, Kind::Tcp, target.clone());
    echoed(&mut first.visit(), b"before");
    let public = first.public.clone();
    // Its goodbye does not arrive.
    cable.pull();
    first.end.kill();
    drop(cable);

    let cable = Cable::new(relay.udp);
    let start = Instant::now();
    let agent = AgentEnd::start(case.agent, cable.agents_side, Kind::Tcp, target);
    assert_eq!(agent.public, public);
    echoed(&mut agent.visit(), b"after");
    assert!(start.elapsed() < PATIENCE / 2, "a new hello takes over at once");
    Pair { relay, cable, agent }.end();
}

/// The agent calls until it is there, and gets its port.
pub fn a_relay_that_was_restarted_is_found_again(case: Case<impl Adapter, impl Adapter>) {
    let Pair {
        relay: first,
        cable,
        agent,
    } = Pair::start(case, Kind::Tcp, server(echo));
    echoed(&mut agent.visit(), b"before");
    let (udp, http, ports) = (first.udp, first.http, first.ports());
    let mut bindings = Vec::new();
    first.end.told("the binding", |event| match event {
        RelayEvent::Bound(binding) => {
            bindings.push(binding);
            Some(())
        }
        _ => None,
    });
    first.end.kill();
    let relay = RelayEnd::again(case.relay, udp, http, ports, bindings);
    relay.end.told("the lease", |event| {
        matches!(event, RelayEvent::Leased { .. }).then_some(())
    });
    echoed(&mut agent.visit(), b"after");
    Pair { relay, cable, agent }.end();
}

/// No byte is lost by either.
pub fn a_transfer_outlives_a_new_address_and_a_pulled_cable(case: Case<impl Adapter, impl Adapter>) {
    let pair = Pair::start(case, Kind::Tcp, server(echo));
    let mut visitor = pair.agent.visit();
    let bytes = pattern(4 << 20);
    echoed(&mut visitor, &bytes[..1000]);
    thread::scope(|scope| {
        scope.spawn(|| {
            thread::sleep(Duration::from_millis(50));
            pair.cable.rebind();
            thread::sleep(Duration::from_millis(50));
            pair.cable.pull();
            thread::sleep(Duration::from_millis(1500));
            pair.cable.put_back();
        });
        for piece in bytes.chunks(64 << 10) {
            echoed(&mut visitor, piece);
            thread::sleep(Duration::from_millis(5));
        }
    });
    drop(visitor);
    pair.end();
}

/// And says so.
pub fn a_shutdown_lets_a_transfer_end_and_nobody_in(case: Case<impl Adapter, impl Adapter>) {
    let Pair {
        relay,
        cable,
        agent: end,
    } = Pair::start(case, Kind::Tcp, server(echo));
    let mut visitor = end.visit();
    echoed(&mut visitor, b"before");
    let port = end.port();
    relay.end.shutdown();
    eventually("the closed door", || {
        TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_err().then_some(())
    });
    echoed(&mut visitor, &pattern(100_000));
    visitor.shutdown(Shutdown::Write).unwrap();
    assert_eq!(visitor.read(&mut [0]).unwrap(), 0);
    drop(visitor);
    assert!(relay.end.ended(), "everything was finished");
    end.end.shutdown();
    end.end.shutdown();
    end.end.ended();
    drop(cable);
}

/// Whatever is open.
pub fn a_second_shutdown_ends_at_once(case: Case<impl Adapter, impl Adapter>) {
    let Pair { relay, cable, agent } = Pair::start(case, Kind::Tcp, server(echo));
    let mut visitor = agent.visit();
    echoed(&mut visitor, b"before");
    relay.end.shutdown();
    relay.end.shutdown();
    assert!(!relay.end.ended(), "a visitor was still there");
    let end = visitor.read(&mut [0]);
    assert!(!matches!(end, Ok(1..)), "{end:?}");
    agent.end.kill();
    drop(cable);
}

/// Set in the process that runs under a low limit, to the port of the target.
const CHILD: &str = "PORTAL_CONFORMANCE_CHILD";
/// How many descriptors it has, and how many visitors come.
const DESCRIPTORS: usize = 60;
const VISITORS: usize = 100;

/// In a process of its own, under a low limit.
pub fn accepting_goes_on_once_descriptors_are_free(case: Case<impl Adapter, impl Adapter>) {
    if let Ok(port) = env::var(CHILD) {
        return run_out(case, port.parse().unwrap());
    }
    let Target::Host { port: target, .. } = server(echo) else {
        panic!("it has a port")
    };
    let command = format!(
        "ulimit -n {DESCRIPTORS} && exec \"$0\" --exact --nocapture {}",
        case.test
    );
    let spawned = Command::new("sh")
        .args(["-c", &command])
        .arg(env::current_exe().unwrap())
        .env(CHILD, target.to_string())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn();
    let Ok(mut child) = spawned else {
        eprintln!("skipped: no shell");
        return;
    };
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let port = loop {
        let line = lines.next().expect("the child lives").unwrap();
        if let Some((_, port)) = line.split_once("visit ") {
            break port.parse().unwrap();
        }
    };
    // In the order of arrival: those that were accepted make room for those that wait.
    let visitors: Vec<TcpStream> = (0..VISITORS).map(|_| visit(port)).collect();
    for mut visitor in visitors {
        // One for whom the agent had no descriptor is broken off; nobody is forgotten.
        if visitor.write_all(b"x").is_ok() {
            let end = visitor.read(&mut [0]);
            let broken = end
                .as_ref()
                .is_err_and(|error| error.kind() == ErrorKind::ConnectionReset);
            assert!(end.is_ok() || broken, "{end:?}");
        }
    }
    eventually("service as if nothing had been", || {
        let mut last = visit(port);
        last.write_all(b"y").ok()?;
        (last.read(&mut [0]).ok()? == 1).then_some(())
    });
    drop(child.stdin.take());
    assert!(child.wait().unwrap().success());
}

/// The relay and the agent of that process, until its input ends.
fn run_out(case: Case<impl Adapter, impl Adapter>, target: u16) {
    let target = host((Ipv4Addr::LOCALHOST, target).into());
    let pair = Pair::start(case, Kind::Tcp, target);
    println!("visit {}", pair.agent.port());
    std::io::stdin().read_to_end(&mut Vec::new()).unwrap();
    pair.end();
}
