//! What people and programs are told while a machine runs: results on stdout, all else on stderr.
//!
//! The lines are made by [`agent`] and [`relay`] out of events, and printed by a [`Console`] on a thread of its own: a
//! terminal that is stopped, or a log that nobody reads, must not hold up the thread that moves bytes.

pub(crate) mod agent;
mod qr;
pub(crate) mod relay;

use std::io::{self, Write as _};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use crate::cli::Output;

/// Lines that may wait for the terminal.
const QUEUE: usize = 1024;
/// How long the end waits for the terminal.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// The longest text that is taken from the other end into a line.
const MAX_FOREIGN: usize = 300;

/// Something to say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Say {
    /// What was asked for: as text, and as JSON.
    Result(String, serde_json::Value),
    /// What happened, for those who follow it: a note as text, a line of its own as JSON.
    Record(String, serde_json::Value),
    /// A text for the camera of a phone, if there is a terminal to show it.
    Code(String),
    /// Good to know.
    Note(String),
    /// Something is wrong; said even if notes are not wanted.
    Problem(String),
}

/// Prints without ever waiting.
#[derive(Clone, Debug)]
pub(crate) struct Console {
    output: Output,
    queue: SyncSender<Line>,
    lost: Arc<AtomicU64>,
}

#[derive(Debug)]
enum Line {
    Out(String),
    Err(String),
    End(Sender<()>),
}

impl Console {
    /// Starts the thread that prints.
    pub(crate) fn new(output: Output) -> Self {
        let (queue, lines) = sync_channel(QUEUE);
        let lost = Arc::new(AtomicU64::new(0));
        let counted = Arc::clone(&lost);
        // Without a thread nothing is printed, which `send` counts as lost; there is nobody to tell.
        let _ = thread::Builder::new()
            .name("console".into())
            .spawn(move || print(&lines, &counted));
        Self { output, queue, lost }
    }

    /// Says it, if it is wanted.
    pub(crate) fn say(&self, say: Say) {
        match say {
            Say::Result(_, json) if self.output.json => self.send(Line::Out(json.to_string())),
            Say::Result(text, _) => self.send(Line::Out(text)),
            Say::Record(..) | Say::Code(_) | Say::Note(_) if self.output.quiet => {}
            Say::Record(_, json) if self.output.json => self.send(Line::Out(json.to_string())),
            Say::Code(_) if self.output.json => {}
            Say::Code(text) => {
                if let Some(code) = qr::room().and_then(|room| qr::draw(&text, room)) {
                    self.send(Line::Err(code));
                }
            }
            Say::Record(text, _) | Say::Note(text) | Say::Problem(text) => self.send(Line::Err(text)),
        }
    }

    /// Says something good to know.
    pub(crate) fn note(&self, text: impl Into<String>) {
        self.say(Say::Note(text.into()));
    }

    /// Says that something is wrong.
    pub(crate) fn problem(&self, text: impl Into<String>) {
        self.say(Say::Problem(text.into()));
    }

    /// Waits until all is printed, but not for long.
    pub(crate) fn finish(&self) {
        let (done, finished) = channel();
        if self.queue.try_send(Line::End(done)).is_ok() {
            let _ = finished.recv_timeout(LAST_WORDS);
        }
    }

    fn send(&self, line: Line) {
        if self.queue.try_send(line).is_err() {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Prints the result of a command that ends with it.
pub(crate) fn print_result(output: Output, text: &str, json: &serde_json::Value) {
    let line = if output.json { json.to_string() } else { text.to_owned() };
    write_out(&line);
}

/// Prints a line, or several, of a command's result.
pub(crate) fn print_line(text: &str) {
    write_out(text);
}

/// Prints what a command has to say beside its result.
pub(crate) fn print_note(output: Output, text: &str) {
    if !output.quiet {
        print_error(text);
    }
}

/// Prints to stderr. If that is closed, there is nobody to tell.
pub(crate) fn print_error(text: &str) {
    let _ = writeln!(io::stderr(), "{text}");
}

/// Where operators are answered.
fn admin_at(local: SocketAddr) -> String {
    format!("metrics and health are at http://{local}/metrics, /healthz, /readyz and /status")
}

/// The machine says it at most once a minute.
fn memory_short(refused: u64) -> Say {
    let refused = match refused {
        1 => "one was refused".to_owned(),
        many => format!("{many} were refused"),
    };
    Say::Problem(format!(
        "the memory for connections is used up: {refused} since this was last said; what is open goes on, and --memory \
         gives more"
    ))
}

/// Makes a text that came over the network fit to be printed: no control characters, no more than a few lines' worth.
pub(crate) fn foreign(text: &str) -> String {
    let mut clean: String = text
        .chars()
        .take(MAX_FOREIGN)
        .map(|c| if c.is_control() || is_format(c) { '\u{fffd}' } else { c })
        .collect();
    if text.chars().nth(MAX_FOREIGN).is_some() {
        clean.push('…');
    }
    clean
}

/// Lets one thing be said once in a while.
#[derive(Clone, Debug)]
pub(crate) struct Throttle {
    every: Duration,
    last: Option<Instant>,
    skipped: u64,
}

impl Throttle {
    /// At most once in this time.
    pub(crate) fn new(every: Duration) -> Self {
        Self {
            every,
            last: None,
            skipped: 0,
        }
    }

    /// Whether it may be said now, and how often it was not since the last time.
    pub(crate) fn admit(&mut self, now: Instant) -> Option<u64> {
        if self
            .last
            .is_some_and(|last| now.saturating_duration_since(last) < self.every)
        {
            self.skipped += 1;
            return None;
        }
        self.last = Some(now);
        Some(std::mem::take(&mut self.skipped))
    }

    /// Forgets the last time: the next one is news.
    pub(crate) fn reset(&mut self) {
        self.last = None;
        self.skipped = 0;
    }
}

fn print(lines: &Receiver<Line>, lost: &AtomicU64) {
    for line in lines {
        match line {
            Line::Out(text) => write_out(&text),
            Line::Err(text) => print_error(&text),
            Line::End(done) => drop(done.send(())),
        }
        let lost = lost.swap(0, Ordering::Relaxed);
        if lost > 0 {
            print_error(&format!("({lost} lines were not printed: nobody read them in time)"));
        }
    }
}

fn write_out(text: &str) {
    let mut stdout = io::stdout().lock();
    let _ = writeln!(stdout, "{text}").and_then(|()| stdout.flush());
}

/// Characters that turn the direction of a line or hide in it.
fn is_format(c: char) -> bool {
    matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{feff}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn foreign_text_cannot_play_tricks() {
        assert_eq!(foreign("a\x1b[2Jb\nc\u{202e}d"), "a\u{fffd}[2Jb\u{fffd}c\u{fffd}d");
        assert_eq!(foreign(&"ä".repeat(1000)).chars().count(), MAX_FOREIGN + 1);
        assert_eq!(foreign("grün 3000"), "grün 3000");
    }

    #[test]
    fn a_throttle_counts_what_it_holds_back() {
        let start = Instant::now();
        let mut throttle = Throttle::new(Duration::from_secs(5));
        assert_eq!(throttle.admit(start), Some(0));
        assert_eq!(throttle.admit(start + Duration::from_secs(1)), None);
        assert_eq!(throttle.admit(start + Duration::from_secs(4)), None);
        assert_eq!(throttle.admit(start + Duration::from_secs(5)), Some(2));
        throttle.reset();
        assert_eq!(throttle.admit(start + Duration::from_secs(5)), Some(0));
    }
}
