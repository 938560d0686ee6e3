//! The paper's rules, one at a time, with its numbers written out here: "WireGuard: Next Generation Kernel Network Tunnel",
//! sections 5 and 6. The list in the docs of `wg` names each test, and where boringtun does something else.

use super::*;

/// What the paper calls them (section 6.1), in seconds.
const REKEY_AFTER_TIME: u64 = 120;
const REJECT_AFTER_TIME: u64 = 180;
const REKEY_ATTEMPT_TIME: u64 = 90;
const REKEY_TIMEOUT: u64 = 5;
const KEEPALIVE_TIMEOUT: u64 = 10;
const COOKIE_LIFE: u64 = 120;
/// And what only the text says: how much a retry may be late.
const JITTER: Duration = Duration::from_millis(333);

/// The types of messages (section 5.4).
const INITIATION: u8 = 1;
const RESPONSE: u8 = 2;
const COOKIE: u8 = 3;
const DATA: u8 = 4;

/// How late a timer may be: that of a session is looked at once a second.
const LATE: Duration = Duration::from_millis(1250);

/// Prints the list in the docs of `wg`; each test in it must exist.
#[test]
fn the_list_of_rules_names_tests_that_exist() {
    let tests = [
        include_str!("rules.rs"),
        include_str!("../tests.rs"),
        include_str!("../../../tests/plain_peers.rs"),
    ];
    let exists = |name: &str| {
        let found = |text: &&str| text.contains(&format!("#[test]\nfn {name}("));
        tests.iter().any(found)
    };
    let docs = include_str!("../mod.rs");
    let rows = docs.lines().filter_map(|line| line.strip_prefix("//! | "));
    let mut count = 0;
    for row in rows.skip(1) {
        let cells: Vec<_> = row.trim_end_matches(" |").split(" | ").collect();
        let [rule, test, verdict] = cells[..] else {
            panic!("{row} has not three cells");
        };
        println!("{rule}: {verdict} ({})", test.trim_matches('`'));
        assert!(exists(test.trim_matches('`')), "there is no {test}");
        count += 1;
    }
    assert!(count > 20, "{count} rules");
}

fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// Messages with the time since the start.
type Sent = Vec<(Duration, Vec<u8>)>;

impl Ends {
    /// Lets time pass for both ends and returns what each sends meanwhile, with the time since the start. Nothing arrives.
    fn pass(&mut self, duration: Duration) -> (Sent, Sent) {
        let (start, end) = (self.now, self.now + duration);
        let (mut of_agent, mut of_relay) = (Vec::new(), Vec::new());
        while self.now < end {
            self.agent.tick(self.now);
            self.relay.tick(self.now);
            let since = self.now - start;
            of_agent.extend(self.agent.control().into_iter().map(|(_, message)| (since, message)));
            of_relay.extend(self.relay.control().into_iter().map(|(_, message)| (since, message)));
            let due = [self.agent.wg.poll_timeout(), self.relay.wg.poll_timeout()];
            self.now = due.into_iter().flatten().min().map_or(end, |due| due.min(end));
        }
        (of_agent, of_relay)
    }

    /// A packet of the agent's, sealed.
    fn sealed(&mut self) -> Vec<u8> {
        let packet = self.packet();
        self.agent.seal(self.now, self.to_relay, &packet).expect("a session")
    }

    /// A packet of the agent's goes to the relay, or one of the relay's to the agent.
    fn send_up(&mut self) {
        let sealed = self.sealed();
        assert!(self.relay.open(self.now, self.agent.path, &sealed).is_some());
    }

    fn send_down(&mut self) {
        let (peer, packet) = (self.to_agent(), self.packet_down());
        let sealed = self.relay.seal(self.now, peer, &packet).expect("a session");
        assert!(self.agent.open(self.now, self.relay.path, &sealed).is_some());
    }

    fn packet_down(&self) -> Vec<u8> {
        packet(
            secret(1).public_key().overlay_address(),
            secret(2).public_key().overlay_address(),
        )
    }

    /// A new first message of the agent's.
    fn initiation(&mut self) -> Vec<u8> {
        self.agent.wg.call(self.now, self.to_relay, true);
        let (_, message) = self.agent.control().pop().expect("a message");
        assert_eq!(message[0], INITIATION);
        message
    }
}

/// Which of these messages are of a type.
fn of_type(messages: &[(Duration, Vec<u8>)], kind: u8) -> Vec<Duration> {
    let found = messages.iter().filter(|(_, message)| message[0] == kind);
    found.map(|&(since, _)| since).collect()
}

#[test]
fn who_began_a_session_renews_it_when_it_sends_after_120_seconds() {
    let mut ends = Ends::connected();
    ends.pass(secs(REKEY_AFTER_TIME - 2));
    ends.send_up();
    ends.send_down();
    assert_eq!(of_type(&ends.pass(secs(1)).0, INITIATION), [], "not before");
    ends.pass(secs(1));
    ends.send_up();
    ends.send_down();
    let (agent, relay) = ends.pass(LATE);
    assert_eq!(of_type(&agent, INITIATION).len(), 1);
    assert_eq!(of_type(&relay, INITIATION), [], "the other end leaves it to who began");
}

/// boringtun renews a session in which data was sent, if only at its start.
#[test]
fn a_session_that_only_kept_alive_is_not_renewed_and_one_that_was_used_once_is() {
    let mut ends = Ends::connected();
    let (agent, relay) = ends.pass(secs(REJECT_AFTER_TIME - 1));
    assert_eq!(of_type(&agent, INITIATION), []);
    assert_eq!(of_type(&relay, INITIATION), []);

    let mut ends = Ends::connected();
    ends.pass(secs(1));
    ends.send_up();
    ends.send_down();
    let (agent, _) = ends.pass(secs(REKEY_AFTER_TIME) + LATE);
    assert_eq!(
        of_type(&agent, INITIATION).len(),
        1,
        "one handshake more than the paper's"
    );
}

#[test]
fn who_began_a_session_and_only_hears_renews_it_after_165_seconds() {
    let mut ends = Ends::connected();
    ends.pass(secs(REJECT_AFTER_TIME - KEEPALIVE_TIMEOUT - REKEY_TIMEOUT - 2));
    ends.send_down();
    assert_eq!(of_type(&ends.pass(secs(1)).0, INITIATION), [], "not before");
    ends.pass(secs(1));
    ends.send_down();
    assert_eq!(of_type(&ends.pass(LATE).0, INITIATION).len(), 1);
}

/// Within its 180 s no session comes near 2^60 messages; boringtun does not count them. What is sent can come with any
/// count, and boringtun adds to it.
#[test]
fn no_message_is_taken_beyond_the_last_that_may_be_counted() {
    const REJECT_AFTER_MESSAGES: u64 = 18_446_744_073_709_543_423;
    let mut ends = Ends::connected();
    let mut message = ends.sealed();
    let with_counter = |message: &mut Vec<u8>, count: u64| message[8..16].copy_from_slice(&count.to_le_bytes());
    with_counter(&mut message, REJECT_AFTER_MESSAGES - 1);
    assert_eq!(counter(&message), REJECT_AFTER_MESSAGES - 1);
    assert!(counter(&message) < super::super::REJECT_AFTER_MESSAGES);
    for count in [REJECT_AFTER_MESSAGES, u64::MAX] {
        with_counter(&mut message, count);
        assert!(counter(&message) >= super::super::REJECT_AFTER_MESSAGES);
        let before = ends.relay.resources.counters.drop_unauthentic;
        assert_eq!(ends.relay.open(ends.now, ends.agent.path, &message), None);
        assert_eq!(ends.relay.resources.counters.drop_unauthentic, before + 1);
    }
}

#[test]
fn nothing_is_opened_on_a_session_older_than_180_seconds() {
    let mut ends = Ends::connected();
    ends.wait(secs(REJECT_AFTER_TIME - 1));
    let (young, old) = (ends.sealed(), ends.sealed());
    assert!(ends.relay.open(ends.now, ends.agent.path, &young).is_some());
    ends.wait(secs(2));
    assert_eq!(ends.relay.open(ends.now, ends.agent.path, &old), None);
}

#[test]
fn a_handshake_is_tried_again_after_5_seconds_with_jitter_and_given_up_after_90() {
    let mut ends = Ends::new();
    ends.agent.wg.call(ends.now, ends.to_relay, false);
    let (sent, _) = ends.pass(secs(600));
    let at = of_type(&sent, INITIATION);
    let gaps: Vec<_> = at.windows(2).map(|pair| pair[1] - pair[0]).collect();
    assert_eq!(at[0], Duration::ZERO);
    for gap in &gaps {
        assert!(
            (secs(REKEY_TIMEOUT)..=secs(REKEY_TIMEOUT) + JITTER).contains(gap),
            "{gap:?}"
        );
    }
    let (shortest, longest) = (gaps.iter().min().unwrap(), gaps.iter().max().unwrap());
    assert!(
        *longest - *shortest > JITTER / 3,
        "between {shortest:?} and {longest:?}"
    );
    let last = *at.last().unwrap();
    assert!(
        (secs(REKEY_ATTEMPT_TIME - 6)..secs(REKEY_ATTEMPT_TIME)).contains(&last),
        "{last:?}"
    );
    assert_eq!(ends.agent.wg.poll_timeout(), None, "nothing more is due");
    ends.initiation();
}

#[test]
fn data_is_answered_by_a_keepalive_after_10_seconds_of_silence() {
    let mut ends = Ends::connected();
    ends.pass(secs(1));
    ends.send_down();
    ends.pass(secs(1));
    ends.send_up();
    let (agent, relay) = ends.pass(secs(60));
    // The agent sent after it had heard, and the relay did not: the relay owes a sign of life, and only one.
    assert_eq!(of_type(&agent, DATA), []);
    let at = of_type(&relay, DATA);
    assert_eq!(at.len(), 1);
    // boringtun counts from the last packet sent, which was a second before.
    assert!(
        (secs(KEEPALIVE_TIMEOUT - 1)..=secs(KEEPALIVE_TIMEOUT) + LATE).contains(&at[0]),
        "{at:?}"
    );
    let keepalive = relay.iter().find(|(_, message)| message[0] == DATA).unwrap();
    assert_eq!(keepalive.1.len(), DATA_OVERHEAD, "it is empty");
}

/// boringtun counts from the last packet sent, not from the one heard, and on a clock that stands still for 250 ms.
#[test]
fn after_a_silence_the_keepalive_comes_at_once_and_after_an_answer_within_250_ms_not_at_all() {
    let mut ends = Ends::connected();
    ends.pass(secs(1));
    ends.send_down();
    ends.send_up();
    assert_eq!(of_type(&ends.pass(secs(60)).1, DATA), [], "one packet fewer");

    let mut ends = Ends::connected();
    ends.pass(secs(30));
    ends.send_up();
    let at = of_type(&ends.pass(secs(5)).1, DATA);
    assert_eq!(at.len(), 1, "one packet earlier than the paper's");
    assert!(at[0] <= LATE);
}

#[test]
fn data_that_draws_nothing_for_15_seconds_starts_a_handshake() {
    let mut ends = Ends::connected();
    ends.pass(secs(1));
    ends.send_down();
    ends.pass(secs(1));
    ends.sealed();
    let (agent, _) = ends.pass(secs(60));
    let first = of_type(&agent, INITIATION)[0];
    let expected = secs(KEEPALIVE_TIMEOUT + REKEY_TIMEOUT);
    // boringtun counts from the last packet heard, which was a second before.
    assert!((expected - secs(1)..=expected + LATE).contains(&first), "{first:?}");
}

#[test]
fn keys_are_erased_after_540_seconds() {
    let mut ends = Ends::connected();
    ends.pass(secs(1));
    let initiation = ends.initiation();
    ends.relay.open(ends.now, ends.agent.path, &initiation);
    let (_, response) = ends.relay.control().pop().unwrap();
    assert_eq!(response[0], RESPONSE);
    let is_erased = |ends: &Ends| ends.agent.wg.peers.get(ends.to_relay.0).unwrap().tunn.is_expired();
    ends.pass(secs(60));
    assert!(!is_erased(&ends));
    // The handshake that got no answer is given up before, and takes the keys with it.
    ends.pass(secs(3 * REJECT_AFTER_TIME - 60));
    assert!(is_erased(&ends));
    assert_eq!(ends.agent.open(ends.now, ends.relay.path, &response), None);
    assert!(!ends.agent.wg.is_ready(ends.to_relay));

    let mut ends = Ends::connected();
    ends.pass(secs(3 * REJECT_AFTER_TIME - 1));
    assert!(!is_erased(&ends), "not before");
    ends.pass(TICK_DORMANT + secs(1));
    assert!(is_erased(&ends), "a minute late at most");
}

#[test]
fn a_packet_is_padded_to_16_bytes_within_the_mtu_and_the_padding_is_taken_off() {
    let mtu = 1420;
    assert_eq!(
        [0, 1, 16, 17, 1408, 1409, 1420].map(|len| padded(len, mtu)),
        [0, 16, 16, 32, 1408, 1420, 1420]
    );
    let mut ends = Ends::connected();
    let mut packet = ends.packet();
    packet.truncate(41);
    packet[5] = 1;
    let mut room = packet.clone();
    room.resize(padded(packet.len(), mtu), 0);
    let sealed = ends.agent.seal(ends.now, ends.to_relay, &room).unwrap();
    assert_eq!(sealed.len(), 48 + 32);
    assert_eq!(ends.relay.open(ends.now, ends.agent.path, &sealed), Some(packet));
}

/// The paper wants about 2,000 packets, and says what becomes of each.
#[test]
fn a_packet_is_opened_once_and_only_within_the_window() {
    const WINDOW: usize = 1024;
    let mut ends = Ends::connected();
    let sealed: Vec<_> = (0..3 * WINDOW).map(|_| ends.sealed()).collect();
    let opens = |ends: &mut Ends, number: usize| ends.relay.open(ends.now, ends.agent.path, &sealed[number]).is_some();
    // The first packet of a session is the keepalive that confirms it: numbers here are one less than the counters.
    let newest = 2 * WINDOW;
    assert!(opens(&mut ends, 0));
    assert!(opens(&mut ends, newest));
    for (number, is_opened) in [
        (newest, false),
        (newest - 1, true),
        (newest - 1, false),
        (newest - (WINDOW - 1), true),
        (newest - (WINDOW - 1), false),
        (newest - WINDOW, false),
        (newest - WINDOW - 1, false),
        (0, false),
        (newest + 1, true),
        // The window has moved on by one.
        (newest - (WINDOW - 2), true),
        (newest - (WINDOW - 1), false),
        (newest, false),
        (newest + WINDOW - 1, true),
        (newest + 2, true),
        (newest + 1, false),
        (newest, false),
    ] {
        assert_eq!(opens(&mut ends, number), is_opened, "{number} with {newest}");
    }
}

#[test]
fn a_first_message_must_be_later_than_the_one_before() {
    let mut ends = Ends::new();
    let first = ends.initiation();
    ends.wait(secs(1));
    let second = ends.initiation();
    let answers = |ends: &mut Ends, message: &[u8]| {
        ends.relay.open(ends.now, ends.agent.path, message);
        ends.relay.control().len()
    };
    assert_eq!(answers(&mut ends, &second), 1);
    assert_eq!(answers(&mut ends, &first), 0, "an earlier one");
    assert_eq!(answers(&mut ends, &second), 0, "the same again");
    assert_eq!(ends.relay.resources.counters.drop_unauthentic, 2);
    ends.wait(secs(1));
    let third = ends.initiation();
    assert_eq!(answers(&mut ends, &third), 1);
}

#[test]
fn who_answers_sends_nothing_before_the_session_is_confirmed() {
    let mut ends = Ends::new();
    let initiation = ends.initiation();
    ends.relay.open(ends.now, ends.agent.path, &initiation);
    let (to_agent, packet) = (ends.to_agent(), ends.packet_down());
    assert_eq!(ends.relay.seal(ends.now, to_agent, &packet), None);
    ends.exchange();
    assert!(ends.relay.seal(ends.now, to_agent, &packet).is_some());
}

/// Ends with a session, of which the agent got a cookie when the relay was so old, and a message that the relay has had
/// before.
fn ends_with_a_cookie(age: u64) -> (Ends, Vec<u8>) {
    let mut ends = Ends::new();
    ends.wait(secs(age - 1));
    let old = ends.initiation();
    ends.exchange();
    ends.relay.open(ends.now, ends.agent.path, &old);
    ends.relay.control();
    ends.wait(secs(1));
    load(&mut ends, &old);
    let initiation = ends.initiation();
    assert!(!has_mac2(&initiation));
    ends.relay.open(ends.now, ends.agent.path, &initiation);
    let (_, cookie) = ends.relay.control().pop().unwrap();
    assert_eq!((cookie[0], cookie.len()), (COOKIE, 64));
    ends.agent.open(ends.now, ends.relay.path, &cookie);
    let initiation = ends.initiation();
    assert!(has_mac2(&initiation));
    ends.relay.open(ends.now, ends.agent.path, &initiation);
    let (_, response) = ends.relay.control().pop().unwrap();
    assert_eq!(response[0], RESPONSE);
    ends.agent.open(ends.now, ends.relay.path, &response);
    ends.exchange();
    (ends, old)
}

/// More messages in this second than are answered without a cookie.
fn load(ends: &mut Ends, initiation: &[u8]) {
    for n in 0..600u32 {
        let [_, _, high, low] = n.to_be_bytes();
        let remote = SocketAddr::from(([10, 0, high, low], 500));
        let from = Path { remote, local_ip: None };
        ends.relay.open(ends.now, from, initiation);
    }
    ends.relay.control();
}

fn has_mac2(initiation: &[u8]) -> bool {
    initiation[132..] != [0; 16]
}

#[test]
fn a_cookie_is_used_for_120_seconds() {
    let (mut ends, _) = ends_with_a_cookie(3);
    ends.pass(secs(COOKIE_LIFE - 1));
    assert!(has_mac2(&ends.initiation()));
    ends.pass(secs(2));
    assert!(!has_mac2(&ends.initiation()));
}

/// boringtun changes the secret of its cookies every 128 s.
#[test]
fn a_cookie_is_honoured_for_as_long_as_its_secret_which_is_128_seconds() {
    for (used, answer) in [(119, RESPONSE), (127, RESPONSE), (129, COOKIE)] {
        let (mut ends, old) = ends_with_a_cookie(100);
        ends.pass(secs(used - 100));
        let initiation = ends.initiation();
        assert!(has_mac2(&initiation));
        load(&mut ends, &old);
        ends.relay.open(ends.now, ends.agent.path, &initiation);
        assert_eq!(ends.relay.control().pop().unwrap().1[0], answer, "after {used} s");
    }
}

/// The paper's cookie is for an address and a port; boringtun's is for the address.
#[test]
fn a_cookie_is_of_use_at_its_own_address_only() {
    let (mut ends, old) = ends_with_a_cookie(3);
    ends.pass(secs(1));
    load(&mut ends, &old);
    let initiation = ends.initiation();
    assert!(has_mac2(&initiation));
    ends.relay.open(ends.now, path("198.51.100.7:40000"), &initiation);
    assert_eq!(ends.relay.control().pop().unwrap().1[0], COOKIE, "elsewhere");
    ends.relay.open(ends.now, path("192.0.2.7:40001"), &initiation);
    assert_eq!(ends.relay.control().pop().unwrap().1[0], RESPONSE, "another port");
}
