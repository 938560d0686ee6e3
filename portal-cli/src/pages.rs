//! What of the program's file and of its libraries' is mapped.
//!
//! The start of a program takes other parts of it than its work: parsing a command line, reading files, making tables. What
//! was touched stays mapped, in 64 KiB around each place, and counts as the process's own for as long as it runs. Who serves
//! for months does without: what is let go stays in the system's cache for as long as there is room, and comes back when it
//! is touched.

use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::ops::Range;
use std::ptr;

use rustix::mm::{Advice, madvise};

/// Lets go of all pages of code and constants. Costs the ones in use a fault each; takes about a tenth of a millisecond.
pub(crate) fn let_go() {
    if let Err(error) = mappings().and_then(let_go_of) {
        tracing::debug!(%error, "letting go of pages");
    }
}

/// What the system says of this process's memory. Read piece by piece: as a whole it would take as much as it frees.
fn mappings() -> io::Result<impl BufRead> {
    Ok(BufReader::with_capacity(4096, File::open("/proc/self/smaps")?))
}

fn let_go_of(smaps: impl BufRead) -> io::Result<()> {
    for range in unchanged(smaps)? {
        let start = ptr::with_exposed_provenance_mut(range.start);
        // SAFETY: the range is mapped from a file, nobody can write to it, and no page of it was ever written to: who reads
        // there reads the same as before, from the file.
        #[allow(unsafe_code)]
        unsafe {
            madvise(start, range.len(), Advice::LinuxDontNeed)?;
        }
    }
    Ok(())
}

/// Where in memory files are that can only be read, and have in no place been changed, as addresses of the linker are.
fn unchanged(mut smaps: impl BufRead) -> io::Result<Vec<Range<usize>>> {
    let (mut ranges, mut mapping) = (Vec::new(), None);
    let mut line = String::new();
    while smaps.read_line(&mut line)? > 0 {
        if let Some(found) = header(&line) {
            mapping = Some(found);
        } else if line.split_whitespace().eq(["Anonymous:", "0", "kB"])
            && let Some((range, true)) = mapping.take()
        {
            ranges.push(range);
        }
        line.clear();
    }
    Ok(ranges)
}

/// The first line on a mapping: where it is, and whether it is a file's that can only be read.
fn header(line: &str) -> Option<(Range<usize>, bool)> {
    let mut fields = line.split_whitespace();
    let (start, end) = fields.next()?.split_once('-')?;
    let address = |text| usize::from_str_radix(text, 16).ok();
    let range = address(start)?..address(end)?;
    let access = fields.next()?;
    let inode: u64 = fields.nth(2)?.parse().ok()?;
    Some((range, inode != 0 && matches!(access, "r--p" | "r-xp")))
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[test]
    fn only_what_can_be_read_again_from_its_file_is_let_go() {
        let mapping = |place: &str, anonymous: u32| {
            format!(
                "{place}\nSize: 8 kB\nRss: 4 kB\nAnonymous: {anonymous} kB\nAnonHugePages: 0 kB\nVmFlags: rd mr mw me\n"
            )
        };
        let smaps = [
            mapping("1000-3000 r--p 00000000 fd:00 42                 /usr/bin/portal", 0),
            mapping(
                "3000-7000 r-xp 00002000 fd:00 42                 /usr/bin/portal (deleted)",
                0,
            ),
            mapping("7000-8000 r--p 00006000 fd:00 42                 /usr/bin/portal", 4),
            mapping("8000-9000 rw-p 00007000 fd:00 42                 /usr/bin/portal", 0),
            mapping("a000-b000 r--p 00000000 00:00 0", 0),
            mapping("b000-c000 r--s 00000000 fd:00 43                 /var/lib/shared", 0),
            mapping(
                "7f000000d000-7f0000010000 r-xp 00001000 fd:00 44  /usr/lib/libc.so.6",
                0,
            ),
            mapping("ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0  [vsyscall]", 0),
        ];
        let found = unchanged(smaps.concat().as_bytes()).unwrap();
        assert_eq!(
            found,
            [0x1000..0x3000, 0x3000..0x7000, 0x7f00_0000_d000..0x7f00_0001_0000]
        );
        let broken = "1000-3000 r--p\nAnonymous: 0 kB\nnonsense";
        assert_eq!(unchanged(broken.as_bytes()).unwrap(), []);
    }

    #[test]
    fn the_program_goes_on_without_what_it_has_touched() {
        static CHANGED: AtomicUsize = AtomicUsize::new(1);
        CHANGED.store(2, Ordering::Relaxed);
        let ranges = unchanged(mappings().unwrap()).unwrap();
        let holds = |address: usize| ranges.iter().any(|range| range.contains(&address));
        assert!(holds(let_go as *const () as usize), "code");
        assert!(!holds(ptr::from_ref(&CHANGED).addr()), "a variable");
        let_go();
        assert_eq!(CHANGED.load(Ordering::Relaxed), 2);
    }
}
