//! Each impairment by itself.

use super::*;

/// An arbitrary origin, never compared with another clock.
#[expect(clippy::disallowed_methods, reason = "tests need some instant to start from")]
fn origin() -> Instant {
    Instant::now()
}

/// Sends `count` datagrams of 100 bytes, `gap` apart, and returns which arrived when (since the first was sent).
fn cross(link: &mut Netem<u32>, count: u32, gap: Duration) -> Vec<(u32, Duration)> {
    let start = origin();
    let mut arrived = Vec::new();
    let mut take = |link: &mut Netem<u32>, until: Option<Instant>| {
        while let Some(at) = link.poll_timeout().filter(|&at| until.is_none_or(|until| at <= until)) {
            assert!(
                link.poll_datagram(at - Duration::from_nanos(1)).is_none(),
                "not before its time"
            );
            arrived.push((link.poll_datagram(at).expect("due"), at - start));
        }
    };
    for number in 0..count {
        let now = start + gap * number;
        take(link, Some(now));
        link.handle_datagram(now, 100, number);
    }
    take(link, None);
    arrived
}

fn link(impairments: Impairments) -> Netem<u32> {
    Netem::new(impairments, 7)
}

const MS: Duration = Duration::from_millis(1);

#[test]
fn latency_delays_each_by_the_same() {
    let mut link = link(Impairments {
        latency: 20 * MS,
        ..Impairments::default()
    });
    let arrived = cross(&mut link, 10, MS);
    let expected: Vec<_> = (0..10).map(|number| (number, 20 * MS + MS * number)).collect();
    assert_eq!(arrived, expected);
    assert_eq!((link.counts().delivered, link.in_flight()), (10, 0));
}

#[test]
fn jitter_spreads_without_reordering() {
    let mut link = link(Impairments {
        latency: 20 * MS,
        jitter: 10 * MS,
        ..Impairments::default()
    });
    let arrived = cross(&mut link, 1000, 4 * MS);
    assert!(arrived.iter().map(|(number, _)| number).is_sorted());
    let late = |(number, at): &(u32, Duration)| *at - 4 * MS * *number;
    assert!(arrived.iter().all(|entry| (20 * MS..=30 * MS).contains(&late(entry))));
    let (least, most) = (arrived.iter().map(late).min(), arrived.iter().map(late).max());
    assert!(most.unwrap() - least.unwrap() > 5 * MS);
}

#[test]
fn random_loss_loses_its_share() {
    let mut link = link(Impairments {
        loss: Loss::Random(50_000),
        ..Impairments::default()
    });
    let arrived = cross(&mut link, 10_000, MS).len() as u64;
    assert!((9_300..9_700).contains(&arrived), "{arrived} of 10,000 at 5 %");
    assert_eq!(arrived + link.counts().lost, 10_000);
}

#[test]
fn bursts_lose_neighbours() {
    let mut link = link(Impairments {
        loss: Loss::Bursts {
            worsen: 10_000,
            recover: 200_000,
            in_good: 0,
            in_bad: 1_000_000,
        },
        ..Impairments::default()
    });
    let arrived = cross(&mut link, 20_000, MS);
    let lost = link.counts().lost;
    assert!((500..1_700).contains(&lost), "{lost} of 20,000, 952 expected");
    let gaps = arrived.windows(2).filter(|pair| pair[1].0 > pair[0].0 + 1).count() as u64;
    assert!(lost > 3 * gaps, "{lost} lost in {gaps} bursts: 5 each expected");
}

#[test]
fn duplicates_are_the_same_datagram_again() {
    let mut link = link(Impairments {
        duplicate: 100_000,
        ..Impairments::default()
    });
    let mut arrived: Vec<_> = cross(&mut link, 1000, MS)
        .into_iter()
        .map(|(number, _)| number)
        .collect();
    assert_eq!(arrived.len() as u64, 1000 + link.counts().duplicated);
    assert!((70..130).contains(&link.counts().duplicated));
    arrived.sort_unstable();
    arrived.dedup();
    assert_eq!(arrived.len(), 1000);
}

#[test]
fn the_held_back_are_overtaken() {
    let mut link = link(Impairments {
        reorder: 50_000,
        reorder_by: 5 * MS,
        ..Impairments::default()
    });
    let arrived = cross(&mut link, 1000, MS);
    assert_eq!(arrived.len(), 1000);
    let overtaken = arrived.windows(2).filter(|pair| pair[1].0 < pair[0].0).count() as u64;
    assert!(overtaken > 0 && overtaken <= link.counts().reordered);
}

#[test]
fn a_rate_spaces_out_and_a_full_queue_drops_the_tail() {
    let slow = Impairments {
        rate: 100_000,
        queue: 1000,
        ..Impairments::default()
    };
    let mut link = Netem::new(slow.clone(), 1);
    let arrived = cross(&mut link, 50, Duration::ZERO);
    let expected: Vec<_> = (0..10).map(|number| (number, MS * (number + 1))).collect();
    assert_eq!(arrived, expected, "the first 1,000 bytes, a millisecond for each 100");
    assert_eq!(link.counts().queue_full, 40);
    let arrived = cross(&mut Netem::new(slow, 1), 50, MS);
    assert_eq!(arrived.len(), 50, "at the rate nothing is dropped");
}

#[test]
fn what_exceeds_the_path_mtu_vanishes() {
    let mut link = link(Impairments {
        mtu: 100,
        ..Impairments::default()
    });
    let now = origin();
    link.handle_datagram(now, 101, 0);
    link.handle_datagram(now, 100, 1);
    assert_eq!(link.poll_datagram(now), Some(1));
    assert_eq!((link.poll_datagram(now), link.counts().too_long), (None, 1));
}

#[test]
fn a_partition_stops_what_comes_later_and_heals() {
    let mut link = link(Impairments {
        latency: MS,
        ..Impairments::default()
    });
    let now = origin();
    link.handle_datagram(now, 100, 0);
    link.impairments_mut().partitioned = true;
    link.handle_datagram(now, 100, 1);
    link.impairments_mut().partitioned = false;
    link.handle_datagram(now, 100, 2);
    let arrived: Vec<_> = std::iter::from_fn(|| link.poll_datagram(now + MS)).collect();
    assert_eq!((arrived, link.counts().cut), (vec![0, 2], 1));
}

#[test]
fn equal_seeds_do_the_same() {
    let bad = Impairments {
        latency: 5 * MS,
        jitter: 3 * MS,
        loss: Loss::Random(100_000),
        duplicate: 50_000,
        reorder: 50_000,
        ..Impairments::default()
    };
    let run = |seed| cross(&mut Netem::new(bad.clone(), seed), 500, MS);
    assert_eq!(run(1).len(), run(1).len());
    assert_eq!(run(1), run(1));
    assert_ne!(run(1), run(2));
}
