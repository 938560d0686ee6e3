//! The machine that the program runs on: how much memory it has.

use std::fs;
use std::path::{Component, Path};

/// The most that is taken without being told.
const MOST: u64 = 256 * 1024 * 1024;

/// The least that is worth running with.
const LEAST: u64 = 16 * 1024 * 1024;

/// What to use unless told: a quarter of what this machine, or the cgroup that we are in, has.
pub(crate) fn usual_memory() -> usize {
    let present = [Some(MOST * 4), of_machine(), of_cgroup()].into_iter().flatten().min();
    let share = present.unwrap_or(MOST * 4) / 4;
    usize::try_from(share.clamp(LEAST, MOST)).unwrap_or(usize::MAX)
}

fn of_machine() -> Option<u64> {
    total(&fs::read_to_string("/proc/meminfo").ok()?)
}

/// The lowest of the bounds of our cgroup and of those around it.
fn of_cgroup() -> Option<u64> {
    let groups = fs::read_to_string("/proc/self/cgroup").ok()?;
    groups
        .lines()
        .filter_map(place)
        .flat_map(|(root, group, file)| bounds(root, group, file))
        .min()
}

/// The line of /proc/meminfo that says how much there is.
fn total(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

/// Where a line of /proc/self/cgroup says that memory is bounded: the hierarchy, our group in it, and the file's name.
fn place(line: &str) -> Option<(&'static Path, &Path, &'static str)> {
    let mut fields = line.splitn(3, ':');
    let (number, controllers, group) = (fields.next()?, fields.next()?, fields.next()?);
    let (root, file) = if number == "0" && controllers.is_empty() {
        ("/sys/fs/cgroup", "memory.max")
    } else if controllers.split(',').any(|controller| controller == "memory") {
        ("/sys/fs/cgroup/memory", "memory.limit_in_bytes")
    } else {
        return None;
    };
    Some((Path::new(root), Path::new(group), file))
}

/// The bounds along a group's path. In a container the path may be the host's, and only the root is there.
fn bounds(root: &Path, group: &Path, file: &str) -> Vec<u64> {
    let mut at = root.to_owned();
    let mut bounds = vec![bound(&at.join(file))];
    for part in group.components() {
        if let Component::Normal(name) = part {
            at.push(name);
            bounds.push(bound(&at.join(file)));
        }
    }
    bounds.into_iter().flatten().collect()
}

/// A bound, if the file has one: `max` and numbers beyond any machine mean none.
fn bound(file: &Path) -> Option<u64> {
    fs::read_to_string(file).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_system_says_is_understood() {
        let meminfo = "MemTotal:         473088 kB\nMemFree:          1234 kB\n";
        assert_eq!(total(meminfo), Some(473_088 * 1024));
        assert_eq!(total("MemFree: 1 kB\n"), None);
        let v2 = place("0::/system.slice/portal.service").unwrap();
        assert_eq!((v2.0, v2.2), (Path::new("/sys/fs/cgroup"), "memory.max"));
        let v1 = place("4:cpu,memory:/docker/x:y").unwrap();
        assert_eq!((v1.1, v1.2), (Path::new("/docker/x:y"), "memory.limit_in_bytes"));
        assert_eq!(place("7:cpu:/"), None);
        assert_eq!(place("nonsense"), None);
    }

    #[test]
    fn the_lowest_bound_along_the_path_counts_and_none_is_none() {
        let root = tempfile::tempdir().unwrap();
        let inner = root.path().join("a/b");
        fs::create_dir_all(&inner).unwrap();
        fs::write(root.path().join("a/memory.max"), "100000000\n").unwrap();
        fs::write(inner.join("memory.max"), "max\n").unwrap();
        assert_eq!(bounds(root.path(), Path::new("/a/b"), "memory.max"), [100_000_000]);
        assert_eq!(
            bounds(root.path(), Path::new("/elsewhere/../c"), "memory.max"),
            [] as [u64; 0]
        );
        let usual = usual_memory() as u64;
        assert!((LEAST..=MOST).contains(&usual), "{usual}");
    }
}
