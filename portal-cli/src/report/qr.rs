//! A QR code on the terminal, to be read by a phone's camera.

use std::io;

use qrcode::render::unicode::Dense1x2;
use qrcode::{EcLevel, QrCode};
use rustix::termios::tcgetwinsize;

/// Black on white, whatever the terminal's own colours are: cameras want the code dark and its margin light.
const COLOURS: &str = "\x1b[38;5;16;48;5;231m";
const RESET: &str = "\x1b[0m";

/// Columns and lines.
pub(super) type Room = (usize, usize);

/// How much room there is on stderr; `None` if that is no terminal, or one that cannot or shall not show colours.
pub(super) fn room() -> Option<Room> {
    let set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    if set("NO_COLOR") || !set("TERM") || std::env::var_os("TERM").is_some_and(|term| term == "dumb") {
        return None;
    }
    let size = tcgetwinsize(io::stderr()).ok()?;
    Some((size.ws_col.into(), size.ws_row.into()))
}

/// The code for a text, two modules a character; `None` if it does not fit.
///
/// A line that wraps or scrolls away is no code any more.
pub(super) fn draw(text: &str, (columns, lines): Room) -> Option<String> {
    // The lowest level of correction: nothing smears on a screen, and the code is smaller.
    let code = QrCode::with_error_correction_level(text, EcLevel::L).ok()?;
    let drawn = code.render::<Dense1x2>().module_dimensions(1, 1).build();
    let rows: Vec<_> = drawn.lines().map(|row| format!("{COLOURS}{row}{RESET}")).collect();
    let width = drawn.lines().map(|row| row.chars().count()).max()?;
    // One line is left for what comes below.
    (width <= columns && rows.len() < lines).then(|| rows.join("\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads a drawn code as a camera does, with eight pixels a module.
    fn read(drawn: &str) -> String {
        const MODULE: usize = 8;
        let mut modules = Vec::new();
        for row in drawn.lines() {
            let row = row.strip_prefix(COLOURS).unwrap().strip_suffix(RESET).unwrap();
            let halves = |upper: bool| -> Vec<bool> {
                row.chars()
                    .map(|half| match half {
                        '\u{2588}' => true,
                        '\u{2580}' => upper,
                        '\u{2584}' => !upper,
                        ' ' => false,
                        other => panic!("{other:?}"),
                    })
                    .collect()
            };
            modules.extend([halves(true), halves(false)]);
        }
        let (width, height) = (modules[0].len() * MODULE, modules.len() * MODULE);
        let mut image = rqrr::PreparedImage::prepare_from_greyscale(width, height, |x, y| {
            if modules[y / MODULE][x / MODULE] { 0 } else { 255 }
        });
        let grids = image.detect_grids();
        assert_eq!(grids.len(), 1);
        grids[0].decode().unwrap().1
    }

    #[test]
    fn what_is_drawn_is_what_was_meant() {
        for text in [
            "http://a.localhost:8080/",
            "https://k7d2m5q9x3b8f4.tunnel.example.com/",
            "https://a-name-of-the-greatest-length-there-can-be-for-one-dns-label-x.a-long-domain.example.com:8443/",
        ] {
            assert_eq!(read(&draw(text, (200, 60)).unwrap()), text);
        }
    }

    #[test]
    fn where_it_does_not_fit_there_is_none() {
        let text = "https://k7d2m5q9x3b8f4.tunnel.example.com/";
        let drawn = draw(text, (80, 24)).expect("it fits an ordinary terminal");
        let (width, height) = (
            drawn.lines().next().unwrap().chars().count() - COLOURS.len() - RESET.len(),
            drawn.lines().count(),
        );
        assert!(draw(text, (width, height + 1)).is_some());
        assert_eq!(draw(text, (width - 1, height + 1)), None);
        assert_eq!(draw(text, (width, height)), None);
        assert_eq!(draw(text, (0, 0)), None, "some terminals do not say");
        assert_eq!(draw(&"x".repeat(5_000), (1_000, 1_000)), None);
    }
}
