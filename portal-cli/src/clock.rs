//! Whether the system's clock can be right. Handshakes carry time stamps, and a relay refuses those that are older than
//! what it has seen of the same key; so an agent whose clock has fallen back is not answered, and nothing else says why.

use std::time::{Duration, SystemTime};

use crate::report;

/// When this version was made: 2026-11-01. No right clock is before it.
const RELEASED: Duration = Duration::from_secs(1_793_491_200);
/// How old this version may become: twenty years. A clock beyond is more likely wrong.
const LONGEST_USE: Duration = Duration::from_secs(20 * 365 * 86_400);

/// Says so if the clock is far off. Portal works all the same while nobody has seen a later time of this key.
pub(crate) fn check() {
    if let Some(warning) = warning(SystemTime::now()) {
        report::print_error(&warning);
    }
}

/// What to say about a clock that shows this time.
fn warning(now: SystemTime) -> Option<String> {
    let released = SystemTime::UNIX_EPOCH + RELEASED;
    let cause = if now < released {
        format!("before this version of portal was made ({})", date(released))
    } else if now > released + LONGEST_USE {
        "years ahead".to_owned()
    } else {
        return None;
    };
    Some(format!(
        "the system's clock shows {}, {cause}: handshakes carry time stamps, and a relay that has seen a later one of \
         the same key does not answer\n  help: set the clock, as with: sudo timedatectl set-ntp true",
        date(now)
    ))
}

/// The day, without the time of day.
fn date(at: SystemTime) -> String {
    let written = httpdate::HttpDate::from(at).to_string();
    // As in "Sun, 01 Nov 2026 00:00:00 GMT".
    written.get(5..16).unwrap_or(&written).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(after_release: i64) -> Option<String> {
        let release = i64::try_from(RELEASED.as_secs()).unwrap();
        let at = u64::try_from(release + after_release).unwrap();
        warning(SystemTime::UNIX_EPOCH + Duration::from_secs(at))
    }

    #[test]
    fn a_clock_before_the_release_or_far_ahead_is_named_with_the_mend() {
        let year = 365 * 86_400;
        for right in [0, 1, year, 19 * year] {
            assert_eq!(said(right), None, "{right}");
        }
        for (wrong, shown) in [(-1, "31 Oct 2026"), (21 * year, "27 Oct 2047")] {
            let warning = said(wrong).unwrap();
            assert!(
                warning.contains(shown) && warning.contains("timedatectl set-ntp true"),
                "{warning}"
            );
        }
        let epoch = warning(SystemTime::UNIX_EPOCH).unwrap();
        assert!(
            epoch.contains("01 Jan 1970") && epoch.contains("01 Nov 2026"),
            "{epoch}"
        );
    }
}
