//! The model finds out each way in which bytes can go wrong.

use super::*;

/// A visitor and a target, with what the visitor sends.
fn connection() -> (Ledger, SideId, SideId, Vec<u8>) {
    let mut ledger = Ledger::default();
    let visitor = ledger.open(Role::Visitor, 3000, &Opening::Http("web.tunnel.test".into()));
    let target = ledger.open(Role::Target, 3000, &Opening::Raw);
    let mut bytes = vec![0; 300];
    ledger.send(visitor, &mut bytes);
    (ledger, visitor, target, bytes)
}

#[test]
fn right_bytes_in_any_pieces_pass() {
    let (mut ledger, visitor, target, bytes) = connection();
    for piece in bytes.chunks(7) {
        ledger.receive(target, piece);
    }
    ledger.send_fin(visitor);
    ledger.receive_fin(target);
    assert_eq!(ledger.get(visitor).unwrap().peer, Some(target));
    let mut answer = vec![0; 30];
    ledger.send(target, &mut answer);
    ledger.receive(visitor, &answer);
    ledger.send_fin(target);
    ledger.receive_fin(visitor);
    ledger.closed(visitor);
    ledger.closed(target);
    ledger.check_quiet();
    ledger.forget_ended();
    assert_eq!((ledger.verified(), ledger.whole(), ledger.iter().count()), (330, 1, 0));
}

#[test]
fn an_answer_of_the_relay_is_nobodys() {
    let (mut ledger, visitor, ..) = connection();
    ledger.receive(visitor, b"HTTP/1.1 502 Bad Gateway\r\n\r\n");
    ledger.receive_fin(visitor);
    assert!(ledger.get(visitor).unwrap().answered);
}

#[test]
#[should_panic(expected = "received other bytes")]
fn a_repeated_piece_is_found() {
    let (mut ledger, _, target, bytes) = connection();
    ledger.receive(target, &bytes[..100]);
    ledger.receive(target, &bytes[90..100]);
}

#[test]
#[should_panic(expected = "300 that")]
fn more_than_was_sent_is_found() {
    let (mut ledger, _, target, bytes) = connection();
    ledger.receive(target, &bytes);
    ledger.receive(target, b"!");
}

#[test]
#[should_panic(expected = "before all the bytes")]
fn an_early_fin_is_found() {
    let (mut ledger, visitor, target, bytes) = connection();
    ledger.send_fin(visitor);
    ledger.receive(target, &bytes[..299]);
    ledger.receive_fin(target);
}

#[test]
#[should_panic(expected = "for port")]
fn the_wrong_target_is_found() {
    let (mut ledger, _, _, bytes) = connection();
    let other = ledger.open(Role::Target, 3001, &Opening::Raw);
    ledger.receive(other, &bytes);
}

#[test]
#[should_panic(expected = "does not know")]
fn a_reset_that_does_not_travel_is_found() {
    let (mut ledger, visitor, target, bytes) = connection();
    ledger.receive(target, &bytes);
    ledger.broke(visitor);
    ledger.check_quiet();
}
