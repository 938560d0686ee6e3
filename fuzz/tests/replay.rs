//! Every committed input still holds, and so do some that are made of them. Runs on the stable toolchain, without libFuzzer.

use std::fs;
use std::panic::catch_unwind;
use std::path::Path;
use std::time::{Duration, Instant};

use portal_fuzz::TARGETS;
use portal_sim::Random;

#[test]
fn every_corpus_holds() {
    for (name, target) in TARGETS {
        let inputs = corpus(name);
        for (file, bytes) in &inputs {
            let held = catch_unwind(|| target(bytes));
            assert!(held.is_ok(), "{name}/{file} does not hold");
        }
        println!("{name}: {} inputs hold", inputs.len());
    }
}

/// A second for each target, or what `PORTAL_FUZZ_SECONDS` says. libFuzzer, which sees what an input reaches, finds more.
#[test]
fn changed_inputs_hold() {
    let seconds = std::env::var("PORTAL_FUZZ_SECONDS").map_or(1, |text| text.parse().expect("a number of seconds"));
    for (name, target) in TARGETS {
        let inputs = corpus(name);
        let mut random = Random::new(1);
        let end = Instant::now() + Duration::from_secs(seconds);
        let mut count = 0;
        while Instant::now() < end {
            let bytes = changed(&inputs, &mut random);
            let held = catch_unwind(|| target(&bytes));
            if held.is_err() {
                let path = std::env::temp_dir().join(format!("portal-fuzz-{name}"));
                fs::write(&path, &bytes).expect("a place for what was found");
                panic!("{name} does not hold for what is in {}", path.display());
            }
            count += 1;
        }
        println!("{name}: {count} changed inputs hold");
    }
}

/// The inputs of a target by their names.
fn corpus(name: &str) -> Vec<(String, Vec<u8>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(name);
    let entries = fs::read_dir(folder).unwrap_or_else(|error| panic!("the corpus of {name}: {error}"));
    let mut inputs: Vec<_> = entries
        .map(|entry| {
            let entry = entry.expect("a readable folder");
            let bytes = fs::read(entry.path()).expect("a readable input");
            (entry.file_name().to_string_lossy().into_owned(), bytes)
        })
        .collect();
    inputs.sort();
    assert!(!inputs.is_empty(), "the corpus of {name} is empty");
    inputs
}

/// The front of an input and the back of another, with some bytes changed, put in and taken away.
fn changed(inputs: &[(String, Vec<u8>)], random: &mut Random) -> Vec<u8> {
    let below = |bound: usize, random: &mut Random| usize::try_from(random.below(bound as u64)).unwrap_or(0);
    let (_, front) = &inputs[below(inputs.len(), random)];
    let (_, back) = &inputs[below(inputs.len(), random)];
    let mut bytes = front[..below(front.len() + 1, random)].to_vec();
    bytes.extend_from_slice(&back[below(back.len() + 1, random)..]);
    for _ in 0..below(8, random) {
        let at = below(bytes.len() + 1, random);
        let byte = random.below(256) as u8;
        match random.below(4) {
            0 => bytes.insert(at, byte),
            1 => bytes
                .splice(at..at, (0..byte).map(|_| random.below(256) as u8))
                .for_each(drop),
            2 if at < bytes.len() => drop(bytes.remove(at)),
            _ if at < bytes.len() => bytes[at] ^= byte,
            _ => {}
        }
    }
    bytes
}
