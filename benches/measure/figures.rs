//! Figures of several runs, and their tables.

use std::io;

use crate::tunnel::Peer;

/// One measured quantity.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Kind {
    pub(crate) title: &'static str,
    pub(crate) digits: usize,
}

impl Kind {
    pub(crate) const fn new(title: &'static str, digits: usize) -> Self {
        Self { title, digits }
    }
}

/// What one run of one subject gave, in the order of its kinds; `None` where it could not be had.
pub(crate) type Run = Vec<Option<f64>>;

/// All runs of one subject.
#[derive(Clone, Debug, Default)]
pub(crate) struct Subject {
    pub(crate) name: String,
    pub(crate) runs: Vec<Run>,
}

impl Subject {
    /// One for each, without runs.
    pub(crate) fn all(peers: &[&dyn Peer]) -> Vec<Self> {
        let name = |peer: &&dyn Peer| Self {
            name: peer.name(),
            runs: Vec::new(),
        };
        peers.iter().map(name).collect()
    }
}

/// Runs all peers so often, one after the other; the table. A run that fails is said, and gives no figures.
pub(crate) async fn in_turn(
    peers: &[&dyn Peer],
    runs: usize,
    kinds: &[Kind],
    once: impl AsyncFn(&dyn Peer) -> io::Result<Run>,
) -> String {
    let mut subjects = Subject::all(peers);
    for run in 0..runs {
        for index in there_and_back(run, peers.len()) {
            match once(peers[index]).await {
                Ok(run) => subjects[index].runs.push(run),
                Err(error) => eprintln!("{}: {error}", peers[index].name()),
            }
        }
    }
    table(kinds, &subjects)
}

/// In which order so many are run in a run: from the first to the last and back, so that none always has the same one before
/// it, whose heat or rest it would have.
pub(crate) fn there_and_back(run: usize, count: usize) -> impl Iterator<Item = usize> {
    (0..count).map(move |place| {
        if run.is_multiple_of(2) {
            place
        } else {
            count - 1 - place
        }
    })
}

/// A row for each subject: medians, with the spread from the least to the most.
pub(crate) fn table(kinds: &[Kind], subjects: &[Subject]) -> String {
    let titles: Vec<&str> = kinds.iter().map(|kind| kind.title).collect();
    let mut text = format!("| | {} |\n|---|{}\n", titles.join(" | "), "---|".repeat(kinds.len()));
    for subject in subjects {
        let cells: Vec<String> = kinds
            .iter()
            .enumerate()
            .map(|(index, kind)| cell(*kind, &subject.runs, index))
            .collect();
        text += &format!("| {} | {} |\n", subject.name, cells.join(" | "));
    }
    text
}

fn cell(kind: Kind, runs: &[Run], index: usize) -> String {
    let values = runs.iter().filter_map(|run| run.get(index).copied().flatten());
    with_spread(values, kind.digits)
}

/// The median and the spread, as a table's cell.
pub(crate) fn with_spread(values: impl Iterator<Item = f64>, digits: usize) -> String {
    match spread(values) {
        None => "–".to_owned(),
        Some([least, median, most]) => format!("{median:.digits$} ({least:.digits$}–{most:.digits$})"),
    }
}

/// The figure that a cell begins with, if it has one.
pub(crate) fn number(cell: &str) -> Option<f64> {
    cell.split(' ').next()?.parse().ok()
}

/// The least, the median and the most.
pub(crate) fn spread(values: impl Iterator<Item = f64>) -> Option<[f64; 3]> {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    Some([*values.first()?, values[values.len() / 2], *values.last()?])
}
