//! What the other end sees of a flow that moves and sleeps: one connection. Here the other end is a script of bare packets,
//! with none of the code that is tested.

use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{IpAddress, IpProtocol, Ipv6Packet, Ipv6Repr, TcpControl, TcpPacket, TcpRepr, TcpSeqNumber};

use super::*;

/// What the other end says of itself.
#[derive(Clone, Copy, Debug)]
struct Manners {
    scale: Option<u8>,
    mss: Option<u16>,
    sack: bool,
}

/// The other end of one connection.
struct Script {
    address: Ipv6Addr,
    port: u16,
    manners: Manners,
    /// The next number it sends.
    next: u32,
    /// Our number that it expects.
    expected: u32,
    /// Bytes it has sent and received.
    sent: usize,
    received: usize,
    /// How far it may send.
    edge: u32,
    /// What it told us to be its window, as it stood in the packets.
    window: u16,
    /// The last packet it got had a FIN.
    fin: bool,
}

/// One connection between a stack and a script.
struct Pair {
    now: Instant,
    end: End,
    script: Script,
    flow: FlowId,
}

const SCRIPT_PORT: u16 = 4000;
const LONG: Duration = Duration::from_secs(10);

/// The byte at a place of a stream.
fn byte(at: usize) -> u8 {
    (at % 251) as u8
}

impl Pair {
    /// A connection that the script opens, or the stack.
    fn new(script_opens: bool, manners: Manners) -> Self {
        let now = some_instant();
        let end = end(now, 1, 2, 1);
        let owner = Owner::Stream(StreamId::from_parts(0, 0));
        let script = Script {
            address: PublicKey::from_bytes([2; 32]).overlay_address(),
            port: SCRIPT_PORT,
            manners,
            // Close to where numbers wrap.
            next: u32::MAX - 1000,
            expected: 0,
            sent: 0,
            received: 0,
            edge: 0,
            window: u16::MAX,
            fin: false,
        };
        let mut pair = Self {
            now,
            end,
            script,
            flow: FlowId(crate::table::Key {
                index: 0,
                generation: 0,
            }),
        };
        if script_opens {
            pair.feed(TcpControl::Syn, None, &[]);
            let [syn_ack] = pair.packets().try_into().unwrap();
            pair.see_syn(&syn_ack);
            pair.feed(TcpControl::None, Some(pair.script.expected), &[]);
            pair.flow = *pair.end.touched().last().unwrap();
            pair.end.stack.set_owner(pair.flow, owner);
        } else {
            let End {
                stack, resources, peer, ..
            } = &mut pair.end;
            let (to, most) = (pair.script.address, BufferClass::LARGEST);
            pair.flow = stack
                .connect(now, *peer, to, SCRIPT_PORT, owner, most, resources)
                .unwrap();
            let [syn] = pair.packets().try_into().unwrap();
            pair.see_syn(&syn);
            pair.feed(TcpControl::Syn, Some(pair.script.expected), &[]);
        }
        pair.exchange();
        assert!(pair.end.stack.view(pair.flow).unwrap().established);
        pair
    }

    fn packets(&mut self) -> Vec<Vec<u8>> {
        self.end.packets(self.now)
    }

    /// Our SYN: a scale of 7 where we may, and no window beyond 64 KiB in it.
    fn see_syn(&mut self, packet: &[u8]) {
        let (own, _) = self.addresses();
        let repr = parse(packet, own, self.script.address);
        assert_eq!(repr.control, TcpControl::Syn);
        let scales = repr.ack_number.is_none() || self.script.manners.scale.is_some();
        assert_eq!(repr.window_scale, scales.then_some(7));
        assert_eq!(repr.max_seg_size, Some(1220));
        self.script.port = repr.dst_port;
        self.script.expected = (repr.seq_number.0 as u32).wrapping_add(1);
        self.script.edge = self.script.next.wrapping_add(u32::from(repr.window_len));
    }

    /// Both overlay addresses, and the port on our side.
    fn addresses(&self) -> (Ipv6Addr, u16) {
        let port = self
            .end
            .stack
            .flows
            .iter()
            .next()
            .map_or(PORT, |(_, flow)| flow.key.local_port);
        (self.end.stack.address, port)
    }

    /// The script sends a packet.
    fn feed(&mut self, control: TcpControl, ack: Option<u32>, payload: &[u8]) {
        let (own, port) = self.addresses();
        let script = &mut self.script;
        let syn = control == TcpControl::Syn;
        let repr = TcpRepr {
            src_port: script.port,
            dst_port: port,
            control,
            seq_number: TcpSeqNumber(script.next as i32),
            ack_number: ack.map(|ack| TcpSeqNumber(ack as i32)),
            window_len: script.window,
            window_scale: script.manners.scale.filter(|_| syn),
            max_seg_size: script.manners.mss.filter(|_| syn),
            sack_permitted: script.manners.sack && syn,
            sack_ranges: [None; 3],
            timestamp: None,
            payload,
        };
        let mut packet = vec![0; 40 + repr.buffer_len()];
        let ip = Ipv6Repr {
            src_addr: script.address,
            dst_addr: own,
            next_header: IpProtocol::Tcp,
            payload_len: repr.buffer_len(),
            hop_limit: 64,
        };
        let mut out = Ipv6Packet::new_unchecked(&mut packet[..]);
        ip.emit(&mut out);
        repr.emit(
            &mut TcpPacket::new_unchecked(out.payload_mut()),
            &IpAddress::Ipv6(script.address),
            &IpAddress::Ipv6(own),
            &ChecksumCapabilities::default(),
        );
        script.next = script
            .next
            .wrapping_add(payload.len() as u32 + u32::from(syn || control == TcpControl::Fin));
        let (peer, now) = (self.end.peer, self.now);
        self.end.stack.ingress(now, peer, &mut packet, &mut self.end.resources);
    }

    /// The script looks at every packet that we make, and acknowledges what it gets.
    fn exchange(&mut self) {
        loop {
            let packets = self.packets();
            if packets.is_empty() {
                return;
            }
            let (own, _) = self.addresses();
            for packet in packets {
                let repr = parse(&packet, own, self.script.address);
                let script = &mut self.script;
                assert!(
                    matches!(repr.control, TcpControl::None | TcpControl::Psh | TcpControl::Fin),
                    "{repr}"
                );
                assert_eq!(
                    repr.ack_number,
                    Some(TcpSeqNumber(script.next as i32)),
                    "all is acknowledged"
                );
                assert!(repr.payload.len() <= usize::from(script.manners.mss.filter(|&mss| mss > 0).unwrap_or(536)));
                let window = u32::from(repr.window_len) << script.manners.scale.map_or(0, |_| 7);
                script.edge = script.next.wrapping_add(window);
                let seq = repr.seq_number.0 as u32;
                if seq == script.expected.wrapping_sub(1) && repr.payload.len() == 1 {
                    self.feed(TcpControl::None, Some(self.script.expected), &[]);
                    continue;
                }
                assert_eq!(seq, script.expected, "in order, nothing again");
                for &got in repr.payload {
                    assert_eq!(got, byte(script.received));
                    script.received += 1;
                }
                script.fin |= repr.control == TcpControl::Fin;
                let occupies = repr.payload.len() as u32 + u32::from(repr.control == TcpControl::Fin);
                script.expected = script.expected.wrapping_add(occupies);
                if occupies > 0 {
                    self.feed(TcpControl::None, Some(self.script.expected), &[]);
                }
            }
        }
    }

    /// The script sends so many bytes, as fast as it may, and they are read at once.
    fn upload(&mut self, bytes: usize) {
        let goal = self.script.sent + bytes;
        let mut read = self.script.sent;
        while self.script.sent < goal {
            let room = self.script.edge.wrapping_sub(self.script.next);
            assert!(room > 0 && room < 1 << 30, "it may send: {room}");
            let len = (goal - self.script.sent).min(room as usize).min(1220);
            let payload: Vec<_> = (self.script.sent..).take(len).map(byte).collect();
            self.feed(TcpControl::Psh, Some(self.script.expected), &payload);
            self.script.sent += len;
            for got in self.end.read(self.flow) {
                assert_eq!(got, byte(read));
                read += 1;
            }
            let before = self.script.edge;
            self.exchange();
            let moved = self.script.edge.wrapping_sub(before) as i32;
            // What a scale of 7 cannot say.
            assert!(moved > -128, "the edge of the window moved by {moved}");
        }
        assert_eq!(read, goal, "all has arrived");
    }

    /// We send so many bytes, as fast as it goes.
    fn download(&mut self, bytes: usize) {
        let (mut at, goal) = (self.script.received, self.script.received + bytes);
        while self.script.received < goal {
            if self.end.stack.view(self.flow).unwrap().can_send && at < goal {
                let bytes: Vec<_> = (at..goal).map(byte).collect();
                at += self.end.stack.send(self.flow, &bytes);
            }
            let before = self.script.received;
            self.exchange();
            assert!(self.script.received > before || at < goal, "it goes on");
        }
    }

    fn wait(&mut self, duration: Duration) {
        let end = self.now + duration;
        while self.now < end {
            self.now += Duration::from_millis(500);
            self.end.stack.handle_timeout(self.now, &mut self.end.resources);
            self.exchange();
        }
    }

    fn buffers(&self) -> Option<Buffers> {
        let flow = self.end.stack.flows.get(self.flow.0).unwrap();
        flow.house.as_ref().map(|house| house.buffers)
    }

    fn check(&self) {
        assert_eq!(self.end.stack.check_invariants(), self.end.resources.budget.used());
    }
}

/// Reads a packet as its receiver would, checksum and all.
fn parse(packet: &[u8], from: Ipv6Addr, to: Ipv6Addr) -> TcpRepr<'_> {
    let ip = Ipv6Packet::new_checked(packet).unwrap();
    assert_eq!((ip.src_addr(), ip.dst_addr()), (from, to));
    let len = usize::from(ip.payload_len());
    let tcp = TcpPacket::new_checked(&packet[40..40 + len]).unwrap();
    let checksums = ChecksumCapabilities::default();
    TcpRepr::parse(&tcp, &IpAddress::Ipv6(from), &IpAddress::Ipv6(to), &checksums).expect("its checksum is right")
}

const MODERN: Manners = Manners {
    scale: Some(8),
    mss: Some(1220),
    sack: true,
};
const ANCIENT: Manners = Manners {
    scale: None,
    mss: None,
    sack: false,
};

#[test]
fn the_other_end_sees_one_connection() {
    let odd = Manners {
        scale: Some(0),
        mss: Some(1000),
        sack: false,
    };
    let mad = Manners {
        scale: Some(14),
        mss: Some(0),
        sack: true,
    };
    let tiny = Manners {
        scale: Some(2),
        mss: Some(50),
        sack: true,
    };
    for manners in [MODERN, ANCIENT, odd, mad, tiny] {
        for script_opens in [true, false] {
            let mut pair = Pair::new(script_opens, manners);
            let first = Buffers::both(BufferClass::FIRST);
            assert_eq!(pair.buffers(), Some(first));
            pair.upload(3_000_000);
            let after_upload = pair.buffers().unwrap();
            pair.download(3_000_000);
            let after_download = pair.buffers().unwrap();
            if manners.scale.is_some() {
                assert_eq!(after_upload.receive, 6 << 20, "{manners:?}");
            } else {
                assert_eq!(after_upload.receive, 65_535, "as much as can be told");
            }
            assert_eq!(after_upload.send, first.send, "nothing was sent");
            // The script's window is the limit where it does not scale.
            let large = if manners.scale == Some(8) { 1 << 20 } else { 128 << 10 };
            assert!(after_download.send >= large, "{after_download:?} with {manners:?}");
            pair.check();
            pair.wait(LONG);
            assert_eq!(pair.buffers(), None, "it sleeps");
            assert!(pair.end.resources.budget.used() < 1024);
            // Its edge was taken back, which is seen as a smaller window.
            pair.upload(100_000);
            pair.wait(LONG);
            assert_eq!(pair.buffers(), None);
            pair.download(100_000);
            pair.wait(LONG);
            assert_eq!(pair.buffers(), None);
            pair.end.stack.close(pair.flow);
            assert!(!pair.end.stack.view(pair.flow).unwrap().can_send);
            pair.exchange();
            assert!(pair.script.fin, "it wakes to say that it ends");
            pair.upload(50_000);
            pair.feed(TcpControl::Fin, Some(pair.script.expected), &[]);
            pair.exchange();
            assert!(pair.end.stack.view(pair.flow).unwrap().remote_fin);
            pair.end.stack.release(pair.flow, false, &mut pair.end.resources);
            pair.exchange();
            assert_eq!((pair.end.stack.flow_count(), pair.end.resources.budget.used()), (0, 0));
        }
    }
}

/// Both ends have lost what the other sent, and send it again at the same time: what is acknowledged stands in packets
/// whose bytes are old.
#[test]
fn an_acknowledgement_in_a_packet_that_is_sent_again_is_heard() {
    for manners in [MODERN, ANCIENT] {
        let mut pair = Pair::new(true, manners);
        pair.upload(1000);
        let bytes: Vec<_> = (0..1500).map(byte).collect();
        assert_eq!(pair.end.stack.send(pair.flow, &bytes), bytes.len());
        assert!(!pair.packets().is_empty());
        pair.script.expected = pair.script.expected.wrapping_add(1500);
        pair.script.next = pair.script.next.wrapping_sub(100);
        let again: Vec<_> = (900..1000).map(byte).collect();
        pair.feed(TcpControl::Psh, Some(pair.script.expected), &again);
        let flow = pair.end.stack.flows.get(pair.flow.0).unwrap();
        assert_eq!(flow.house.as_ref().unwrap().socket().send_queue(), 0);
        assert_eq!(pair.end.resources.counters.late_acknowledgements, 1);
        // And answered, by an acknowledgement of all that was sent.
        pair.exchange();
        pair.upload(5000);
        pair.check();
    }
}

/// Both ends probe a window that the other has shut: each packet is one byte beyond it.
#[test]
fn an_acknowledgement_in_a_packet_beyond_the_window_is_heard() {
    for manners in [MODERN, ANCIENT] {
        let mut pair = Pair::new(true, manners);
        let mut sent = 0;
        while pair.script.edge != pair.script.next {
            let room = pair.script.edge.wrapping_sub(pair.script.next).min(500) as usize;
            let bytes: Vec<_> = (sent..sent + room).map(byte).collect();
            sent += room;
            let acknowledged = pair.script.expected;
            pair.feed(TcpControl::Psh, Some(acknowledged), &bytes);
            pair.exchange();
        }
        let bytes: Vec<_> = (0..1500).map(byte).collect();
        assert_eq!(pair.end.stack.send(pair.flow, &bytes), bytes.len());
        assert!(!pair.packets().is_empty());
        pair.script.expected = pair.script.expected.wrapping_add(1500);
        let acknowledged = pair.script.expected;
        pair.feed(TcpControl::Psh, Some(acknowledged), &[byte(sent)]);
        let flow = pair.end.stack.flows.get(pair.flow.0).unwrap();
        assert_eq!(flow.house.as_ref().unwrap().socket().send_queue(), 0);
        assert_eq!(pair.end.resources.counters.late_acknowledgements, 1);
        pair.check();
    }
}

/// Both ends have bytes on their way that were lost before the windows shut: each is ahead of what the other takes, and the
/// window of one opens. The other, whose owner may wait for just that before it reads, must hear of it.
#[test]
fn a_window_that_opens_is_heard_of_in_a_packet_beyond_the_window() {
    for manners in [MODERN, ANCIENT] {
        let mut pair = Pair::new(true, manners);
        while pair.script.edge != pair.script.next {
            let room = pair.script.edge.wrapping_sub(pair.script.next).min(500) as usize;
            pair.feed(TcpControl::Psh, Some(pair.script.expected), &[7; 500][..room]);
            pair.exchange();
        }
        let open = std::mem::take(&mut pair.script.window);
        assert_eq!(pair.end.stack.send(pair.flow, &[1; 1000]), 1000);
        assert!(!pair.packets().is_empty());
        pair.feed(TcpControl::None, Some(pair.script.expected), &[]);
        assert_eq!(pair.end.stack.send(pair.flow, &[2; 1000]), 1000);
        assert!(pair.packets().is_empty(), "there is no room for it");
        // A few bytes too far, and nothing new but the window.
        pair.script.next = pair.script.next.wrapping_add(55);
        pair.script.window = open;
        for news in [1, 1] {
            pair.feed(TcpControl::None, Some(pair.script.expected), &[]);
            assert_eq!(pair.end.resources.counters.late_acknowledgements, news);
        }
        assert!(!pair.packets().is_empty(), "there is room again");
        pair.check();
    }
}

/// smoltcp keeps asking for a window although nothing is left to send, and after a FIN does so without end.
#[test]
fn an_other_end_whose_window_stays_shut_after_all_has_arrived_is_not_asked_again() {
    for manners in [MODERN, ANCIENT] {
        let mut pair = Pair::new(true, manners);
        let next = pair.script.expected;
        pair.end.stack.send(pair.flow, &[1; 1000]);
        assert!(!pair.packets().is_empty());
        pair.end.stack.send(pair.flow, &[2; 500]);
        pair.end.stack.close(pair.flow);
        assert!(!pair.packets().is_empty());
        pair.script.window = 0;
        pair.feed(TcpControl::None, Some(next.wrapping_add(1000)), &[]);
        pair.feed(TcpControl::None, Some(next.wrapping_add(1501)), &[]);
        assert_eq!(pair.end.state(pair.flow), Some(State::FinWait2));
        for _ in 0..30 {
            pair.now += Duration::from_secs(1);
            pair.end.stack.handle_timeout(pair.now, &mut pair.end.resources);
            assert!(pair.packets().is_empty());
        }
        pair.check();
    }
}

/// smoltcp takes what fits of a packet that reaches beyond the window, and its FIN as if the rest had come too.
#[test]
fn an_end_behind_bytes_that_do_not_fit_is_not_the_end() {
    for manners in [MODERN, ANCIENT] {
        let mut pair = Pair::new(true, manners);
        let room = |pair: &Pair| pair.script.edge.wrapping_sub(pair.script.next) as usize;
        while room(&pair) > 500 {
            let len = (room(&pair) - 300).min(1000);
            pair.feed(TcpControl::Psh, Some(pair.script.expected), &vec![7; len]);
            pair.exchange();
        }
        let (from, fits) = (pair.script.next, room(&pair));
        assert!(fits > 0);
        pair.feed(TcpControl::Fin, Some(pair.script.expected), &[8; 600]);
        assert!(
            !pair.end.stack.view(pair.flow).unwrap().remote_fin,
            "{fits} of 600 bytes fit"
        );
        let got = pair.end.read(pair.flow);
        // The socket may have somewhat more room than a scale of 7 can say.
        let taken = got.iter().rev().take_while(|&&byte| byte == 8).count();
        assert!((fits..600).contains(&taken));
        pair.packets();
        // The rest comes again, and now it is the end.
        pair.script.next = from.wrapping_add(taken as u32);
        pair.feed(TcpControl::Fin, Some(pair.script.expected), &vec![9; 600 - taken]);
        assert!(pair.end.stack.view(pair.flow).unwrap().remote_fin);
        assert_eq!(pair.end.read(pair.flow), vec![9; 600 - taken]);
    }
}

/// What was sent is acknowledged in part, the rest is lost, and the window has shut meanwhile: smoltcp would ask when it
/// opens, and forget that bytes are on their way.
#[test]
fn bytes_that_were_lost_before_the_window_shut_are_sent_again() {
    for manners in [MODERN, ANCIENT] {
        for last in [500, 1] {
            let mut pair = Pair::new(true, manners);
            let first = pair.script.expected;
            pair.end.stack.send(pair.flow, &[1; 500]);
            assert!(!pair.packets().is_empty());
            pair.end.stack.send(pair.flow, &vec![2; last]);
            assert!(!pair.packets().is_empty());
            let open = std::mem::take(&mut pair.script.window);
            pair.script.expected = first.wrapping_add(500);
            pair.feed(TcpControl::None, Some(pair.script.expected), &[]);
            let mut again = 0;
            for second in 0..120 {
                if second == 40 {
                    pair.script.window = open;
                    pair.feed(TcpControl::None, Some(pair.script.expected), &[]);
                }
                pair.now += Duration::from_secs(1);
                pair.end.stack.handle_timeout(pair.now, &mut pair.end.resources);
                for packet in pair.packets() {
                    let repr = parse(&packet, pair.addresses().0, pair.script.address);
                    let seq = repr.seq_number.0 as u32;
                    again += usize::from(seq == pair.script.expected && !repr.payload.is_empty() && second >= 40);
                }
            }
            assert!(again > 0, "{manners:?}: {last} bytes were sent again");
            pair.check();
        }
    }
}

#[test]
fn a_sleeper_answers_signs_of_life_without_waking_and_wakes_for_a_fin() {
    let mut pair = Pair::new(true, MODERN);
    pair.wait(LONG);
    assert_eq!(pair.buffers(), None);
    for payload in [&[][..], &[0]] {
        pair.script.next = pair.script.next.wrapping_sub(1);
        pair.feed(TcpControl::None, Some(pair.script.expected), payload);
        pair.script.next = pair.script.next.wrapping_add(1 - payload.len() as u32);
        let [answer] = pair.packets().try_into().unwrap();
        let repr = parse(&answer, pair.addresses().0, pair.script.address);
        assert_eq!(repr.seq_number.0 as u32, pair.script.expected);
        assert_eq!(repr.ack_number.unwrap().0 as u32, pair.script.next);
    }
    pair.feed(TcpControl::None, Some(pair.script.expected), &[]);
    assert!(pair.packets().is_empty(), "nothing is asked, nothing is said");
    assert_eq!(pair.buffers(), None);
    pair.feed(TcpControl::Fin, Some(pair.script.expected), &[]);
    pair.exchange();
    let view = pair.end.stack.view(pair.flow).unwrap();
    assert!(view.remote_fin && view.can_send && !view.broken);
}

#[test]
fn a_sleeper_asks_after_a_minute_and_gives_up_after_five() {
    let mut pair = Pair::new(false, MODERN);
    pair.wait(LONG);
    let asleep_since = pair.now;
    let mut asked = Vec::new();
    let mut said_reset = None;
    while said_reset.is_none() {
        pair.now += Duration::from_secs(1);
        pair.end.stack.handle_timeout(pair.now, &mut pair.end.resources);
        for packet in pair.packets() {
            let repr = parse(&packet, pair.addresses().0, pair.script.address);
            let at = pair.now.duration_since(asleep_since).as_secs();
            if repr.control == TcpControl::Rst {
                assert_eq!(repr.seq_number.0 as u32, pair.script.expected);
                said_reset = Some(at);
            } else {
                assert_eq!(repr.seq_number.0 as u32, pair.script.expected.wrapping_sub(1));
                asked.push(at);
            }
        }
        assert!(asked.len() < 10, "{asked:?}");
    }
    assert_eq!(asked.len(), 4, "{asked:?}");
    assert!((285..=300).contains(&said_reset.unwrap()), "{said_reset:?}");
    assert!(pair.end.stack.view(pair.flow).unwrap().broken);
    pair.end.stack.release(pair.flow, false, &mut pair.end.resources);
    pair.packets();
    assert_eq!(pair.end.resources.budget.used(), 0);
}

#[test]
fn a_sleeper_is_reset_from_either_side() {
    let mut pair = Pair::new(true, MODERN);
    pair.wait(LONG);
    pair.feed(TcpControl::Rst, None, &[]);
    assert!(pair.end.stack.view(pair.flow).unwrap().broken);

    let mut pair = Pair::new(true, MODERN);
    pair.wait(LONG);
    pair.end.stack.release(pair.flow, true, &mut pair.end.resources);
    let [reset] = pair.packets().try_into().unwrap();
    let repr = parse(&reset, pair.end.stack.address, pair.script.address);
    assert_eq!(repr.control, TcpControl::Rst);
    assert_eq!(repr.seq_number.0 as u32, pair.script.expected);
    assert_eq!((pair.end.stack.flow_count(), pair.end.resources.budget.used()), (0, 0));
}

/// A timer that is due again and again although nothing can be done would spin.
#[test]
fn a_flow_that_is_not_read_is_not_looked_at_again_and_again() {
    let mut ends = Ends::new();
    let (a, b) = ends.connect();
    ends.a.stack.send(a, b"nobody reads this");
    ends.exchange();
    let before = ends.a.stack.polls + ends.b.stack.polls;
    for _ in 0..60_000 {
        ends.wait(Duration::from_millis(5));
    }
    let polls = ends.a.stack.polls + ends.b.stack.polls - before;
    assert!(polls < 200, "{polls} in five minutes");
    assert_eq!(ends.b.read(b), b"nobody reads this");
    for _ in 0..10 {
        ends.wait(Duration::from_secs(1));
    }
    let asleep = |end: &End, flow: FlowId| end.stack.flows.get(flow.0).unwrap().house.is_none();
    assert!(asleep(&ends.a, a) && asleep(&ends.b, b));
    ends.check();
}

#[test]
fn growth_that_cannot_be_had_changes_nothing() {
    let mut pair = Pair::new(true, MODERN);
    // No more than a flow and little beside it.
    pair.end.resources.budget = crate::budget::Budget::new(50_000);
    let held = pair.end.stack.check_invariants();
    assert!(pair.end.resources.budget.charge(held));
    pair.upload(1_000_000);
    pair.download(1_000_000);
    assert_eq!(pair.buffers(), Some(Buffers::both(BufferClass::FIRST)));
    pair.check();
}

/// smoltcp takes the third acknowledgement that says the same for a sign that bytes were lost, has none to send again, and
/// forgets that its end may have been.
#[test]
fn an_end_that_is_lost_is_sent_again_whatever_is_acknowledged_before_it() {
    for manners in [MODERN, ANCIENT] {
        let mut pair = Pair::new(true, manners);
        let next = pair.script.expected;
        pair.end.stack.send(pair.flow, &[1; 1000]);
        pair.end.stack.close(pair.flow);
        assert!(!pair.packets().is_empty());
        for _ in 0..5 {
            pair.feed(TcpControl::None, Some(next.wrapping_add(1000)), &[]);
        }
        pair.now += Duration::from_secs(2);
        pair.end.stack.handle_timeout(pair.now, &mut pair.end.resources);
        let again = pair.packets();
        let (own, _) = pair.addresses();
        let last = parse(again.last().expect("it is sent again"), own, pair.script.address);
        assert_eq!((last.control, last.payload.len()), (TcpControl::Fin, 0));
        pair.check();
    }
}

/// smoltcp drops a packet of which it has all the bytes.
#[test]
fn an_end_behind_bytes_that_have_all_arrived_before_is_heard() {
    for manners in [MODERN, ANCIENT] {
        let mut pair = Pair::new(true, manners);
        pair.upload(1000);
        pair.script.next = pair.script.next.wrapping_sub(100);
        let again: Vec<_> = (900..1000).map(byte).collect();
        pair.feed(TcpControl::Fin, Some(pair.script.expected), &again);
        pair.exchange();
        assert!(pair.end.stack.view(pair.flow).unwrap().remote_fin);
        pair.check();
    }
}
