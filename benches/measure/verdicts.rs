//! What is asked of the builds, held against what `benches/compare` has printed. Most bounds are made of what another tunnel did
//! in the same run: machines differ, and each has its days.

use std::fs;
use std::io;

use crate::figures::number;
use crate::{distance, fairness, flows, speed};

/// What it is called on the command line.
pub(crate) const NAME: &str = "verdicts";

/// Names in the tables' first column: what they begin with, and what else they have.
type Name = &'static [&'static str];
const OURS: Name = &["portal "];
const NOISE: Name = &["rathole", "Noise"];
const PLAIN: Name = &["rathole", "plain TCP"];
const WIREGUARD_GO: Name = &["wireguard-go"];
const ONETUN: Name = &["onetun"];

/// One figure and its two bounds.
struct Demand {
    figure: &'static str,
    /// The column's title, and what else the row must have in the columns after its name.
    title: &'static str,
    keys: &'static [&'static str],
    /// The name of the row, where it is not a build's.
    row: Option<&'static str>,
    is_better_below: bool,
    least: Bound,
    aim: Bound,
}

#[derive(Clone, Copy)]
enum Bound {
    Unbounded,
    Is(f64),
    /// So many times what another tunnel has there.
    Times(f64, Name),
}

impl Demand {
    const fn above(figure: &'static str, title: &'static str, least: Bound, aim: Bound) -> Self {
        Self {
            figure,
            title,
            keys: &[],
            row: None,
            is_better_below: false,
            least,
            aim,
        }
    }

    const fn below(figure: &'static str, title: &'static str, most: Bound, aim: Bound) -> Self {
        Self {
            is_better_below: true,
            ..Self::above(figure, title, most, aim)
        }
    }

    const fn keys(self, keys: &'static [&'static str]) -> Self {
        Self { keys, ..self }
    }

    const fn row(self, row: &'static str) -> Self {
        Self { row: Some(row), ..self }
    }
}

const fn of_speed(kind: usize) -> &'static str {
    speed::KINDS[kind].title
}

const DEMANDS: [Demand; 16] = {
    use Bound::{Is, Times, Unbounded};
    let (down, up) = (of_speed(speed::DOWN), of_speed(speed::UP));
    [
        Demand::above("1 stream down, Mbit/s", down, Times(1.2, NOISE), Times(1.6, NOISE)),
        Demand::above("1 stream up, Mbit/s", up, Times(1.2, NOISE), Times(1.6, NOISE)),
        Demand::above(
            "1 stream down beside wireguard-go, Mbit/s",
            down,
            Times(5.0, WIREGUARD_GO),
            Times(8.0, WIREGUARD_GO),
        ),
        Demand::above(
            "1 stream up beside wireguard-go, Mbit/s",
            up,
            Times(5.0, WIREGUARD_GO),
            Times(8.0, WIREGUARD_GO),
        ),
        Demand::above(
            "1 stream down beside onetun, Mbit/s",
            down,
            Times(5.0, ONETUN),
            Times(8.0, ONETUN),
        ),
        Demand::above(
            "1 stream up beside onetun, Mbit/s",
            up,
            Times(5.0, ONETUN),
            Times(8.0, ONETUN),
        ),
        Demand::below(
            "CPU s a GB, both ends",
            of_speed(speed::CPU),
            Times(1.0, NOISE),
            Is(2.6),
        ),
        Demand::above(
            "new connections a second, 32 at once",
            of_speed(speed::NEW),
            Times(2.0, NOISE),
            Times(1.0, PLAIN),
        ),
        Demand::below("their p99, µs", of_speed(speed::NEW_P99), Unbounded, Is(7_000.0)),
        Demand::below(
            "connect to first byte, one at a time, p50, µs",
            of_speed(speed::FIRST_BYTE),
            Times(1.0, NOISE),
            Times(1.0, PLAIN),
        ),
        Demand::above(
            "kept-alive requests a second, 32 connections",
            of_speed(speed::KEPT_ALIVE),
            Times(1.0, NOISE),
            Times(1.0, PLAIN),
        ),
        Demand::above(
            "1 stream over 20 ms without loss, Mbit/s",
            distance::ONE,
            Is(300.0),
            Is(1_000.0),
        )
        .keys(&["20", "0"]),
        Demand::above(
            "1 stream over 100 ms without loss, Mbit/s",
            distance::ONE,
            Is(100.0),
            Is(400.0),
        )
        .keys(&["100", "0"]),
        Demand::below(
            "time a packet at 10,000 connections to that at 1",
            flows::TIMES,
            Is(flows::MOST),
            Is(1.2),
        )
        .row("10000"),
        Demand::below(
            "p99 of small requests beside bulk in the same tunnel, to that with nothing else",
            fairness::TO_IDLE,
            Is(3.0),
            Unbounded,
        ),
        Demand::below(
            "the same, to that beside bulk in another tunnel",
            fairness::TO_ANOTHER,
            Is(3.0),
            Unbounded,
        ),
    ]
};

/// Prints the table of what is in this file; whether nothing was missed.
pub(crate) fn print(file: &str) -> io::Result<bool> {
    let text = fs::read_to_string(file).map_err(|error| io::Error::other(format!("{file}: {error}")))?;
    let tables = tables(&text);
    let builds = names(&tables, OURS);
    println!("| | {} | must be | aim |", builds.join(" | "));
    println!("|---|{}---|---|", "---|".repeat(builds.len()));
    let mut held = true;
    for demand in &DEMANDS {
        let mut cells = vec![demand.figure.to_owned()];
        let [least, aim] = [demand.least, demand.aim].map(|bound| demand.bound(&tables, bound));
        let mut digits = 0;
        for build in &builds {
            let Some(cell) = find(&tables, &[demand.row.unwrap_or(build)], demand.keys, demand.title) else {
                cells.push("–".to_owned());
                continue;
            };
            let said = cell.split(' ').next().unwrap_or_default();
            digits = said.split_once('.').map_or(0, |(_, behind)| behind.len());
            let verdict = demand.verdict(number(cell), least, aim);
            held &= verdict != MISSED;
            cells.push(format!("{said}: {verdict}"));
        }
        for (bound, value) in [(demand.least, least), (demand.aim, aim)] {
            cells.push(demand.says(bound, value, digits));
        }
        println!("| {} |", cells.join(" | "));
    }
    println!();
    Ok(held)
}

const MISSED: &str = "**missed**";

impl Demand {
    /// A bound's value, if what it is made of was measured.
    fn bound(&self, tables: &[Table<'_>], bound: Bound) -> Option<f64> {
        match bound {
            Bound::Unbounded => None,
            Bound::Is(value) => Some(value),
            Bound::Times(times, whose) => {
                let cell = find(tables, whose, self.keys, self.title)?;
                number(cell).map(|value| value * times)
            }
        }
    }

    fn verdict(&self, value: Option<f64>, least: Option<f64>, aim: Option<f64>) -> &'static str {
        let Some(value) = value else { return "not measured" };
        let holds = |bound: f64| {
            if self.is_better_below {
                value <= bound
            } else {
                value >= bound
            }
        };
        match (least.map(holds), aim.map(holds)) {
            (Some(false), _) => MISSED,
            (_, Some(true)) => "aim reached",
            (Some(true), _) => "held",
            (None, Some(false)) => "aim not reached",
            (None, None) => "nothing to hold it against",
        }
    }

    fn says(&self, bound: Bound, value: Option<f64>, digits: usize) -> String {
        let sign = if self.is_better_below { "≤" } else { "≥" };
        let value = value.map(|value| format!("{sign} {value:.digits$}"));
        match (bound, value) {
            (Bound::Unbounded, _) => "–".to_owned(),
            (Bound::Is(_), value) => value.unwrap_or_default(),
            (Bound::Times(times, whose), Some(value)) => format!("{value} ({times} × {})", whose.join(", ")),
            (Bound::Times(times, whose), None) => format!("{times} × {}, not measured", whose.join(", ")),
        }
    }
}

/// Rows of cells, the titles first.
type Table<'a> = Vec<Vec<&'a str>>;

fn tables(text: &str) -> Vec<Table<'_>> {
    let mut tables = vec![Table::new()];
    for line in text.lines() {
        match line.strip_prefix('|').and_then(|line| line.strip_suffix('|')) {
            Some(row) => tables.last_mut().unwrap().push(row.split('|').map(str::trim).collect()),
            None => tables.push(Table::new()),
        }
    }
    tables.retain(|table| !table.is_empty());
    tables
}

/// Names like this one, each once.
fn names<'a>(tables: &[Table<'a>], name: &[&str]) -> Vec<&'a str> {
    let mut names: Vec<&str> = Vec::new();
    for row in tables.iter().flatten() {
        if is_called(row[0], name) && !names.contains(&row[0]) {
            names.push(row[0]);
        }
    }
    names
}

/// The cell under the first column of this title, in the first row of this name with these keys behind it.
fn find<'a>(tables: &[Table<'a>], name: &[&str], keys: &[&str], title: &str) -> Option<&'a str> {
    tables.iter().find_map(|table| {
        let column = table[0].iter().position(|has| *has == title)?;
        let is_it = |row: &&Vec<&str>| is_called(row[0], name) && row[1..].starts_with(keys);
        table.iter().find(is_it)?.get(column).copied()
    })
}

fn is_called(row: &str, name: &[&str]) -> bool {
    name.first().is_some_and(|first| row.starts_with(first)) && name.iter().all(|word| row.contains(word))
}
