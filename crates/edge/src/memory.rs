//! How much memory the process uses, and how much more it may have: from the system, or from its control group (v2),
//! whichever has less to give.

use std::fs;
use std::path::{Path, PathBuf};

/// Bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Memory {
    pub(crate) used: u64,
    pub(crate) free: u64,
}

impl Memory {
    /// Whether there is little left: a quarter of what is used already, so that four fifths of all the process may have are
    /// in use. Once it is short it is so until there is half as much again.
    ///
    /// Where others use up the memory and the process itself uses little, turning its clients away would help nobody.
    pub(crate) fn is_short(self, was_short: bool) -> bool {
        let least = if was_short { self.used / 8 * 3 } else { self.used / 4 };
        self.free < least
    }
}

/// None where neither can be read.
pub(crate) fn read() -> Option<Memory> {
    read_under(Path::new("/"))
}

fn read_under(root: &Path) -> Option<Memory> {
    let text = |path: &str| fs::read_to_string(root.join(path)).ok();
    let used = kib(&text("proc/self/status")?, "VmRSS:")?;
    let available = text("proc/meminfo").and_then(|meminfo| kib(&meminfo, "MemAvailable:"));
    let group = text("proc/self/cgroup").and_then(|groups| left_in_group(root, &groups));
    Some(Memory { used, free: [available, group].into_iter().flatten().min()? })
}

/// A line such as `VmRSS:     1234 kB`, in bytes.
fn kib(text: &str, key: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(key))?;
    line.trim().strip_suffix(" kB")?.parse::<u64>().ok()?.checked_mul(1024)
}

/// What the group, or one above it, lets its processes have yet; none where no limit is set.
fn left_in_group(root: &Path, groups: &str) -> Option<u64> {
    let own = groups.lines().find_map(|line| line.strip_prefix("0::/"))?;
    let top = root.join("sys/fs/cgroup");
    let mut folder = top.join(own);
    let mut left = None;
    while folder.starts_with(&top) {
        left = [left, left_in(&folder)].into_iter().flatten().min();
        folder = folder.parent().map_or_else(PathBuf::new, Path::to_owned);
    }
    left
}

fn left_in(folder: &Path) -> Option<u64> {
    let text = |name: &str| fs::read_to_string(folder.join(name)).ok();
    let number = |text: String| text.trim().parse::<u64>().ok();
    // "max" is no number, and no limit.
    let most = text("memory.max").and_then(number)?;
    let all = text("memory.current").and_then(number)?;
    // What is only a copy of files is given up before anything comes to harm.
    let stat = text("memory.stat")?;
    let of = |key: &str| {
        let line = stat.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' '));
        line.and_then(|number| number.parse::<u64>().ok()).unwrap_or(0)
    };
    let cached = of("inactive_file") + of("active_file") + of("slab_reclaimable");
    Some(most.saturating_sub(all.saturating_sub(cached)))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may stop at the first surprise")]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn root(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        root
    }

    const STATUS: (&str, &str) = ("proc/self/status", "Name:\tforegate\nVmRSS:\t  102400 kB\nThreads:\t4\n");
    const MEMINFO: (&str, &str) = ("proc/meminfo", "MemTotal: 8388608 kB\nMemAvailable:    4194304 kB\n");

    #[test]
    fn the_tightest_limit_counts() {
        let plain = root(&[STATUS, MEMINFO]);
        assert_eq!(read_under(plain.path()), Some(Memory { used: 100 * MIB, free: 4096 * MIB }));
        let group = |of_own: &str, of_parent: &str| {
            let stat = "anon 1\ninactive_file 31457280\nactive_file 20971520\nslab_reclaimable 0\n";
            let root = root(&[
                STATUS,
                MEMINFO,
                ("proc/self/cgroup", "0::/system.slice/foregate.service\n"),
                ("sys/fs/cgroup/system.slice/foregate.service/memory.max", of_own),
                ("sys/fs/cgroup/system.slice/foregate.service/memory.current", "157286400\n"),
                ("sys/fs/cgroup/system.slice/foregate.service/memory.stat", stat),
                ("sys/fs/cgroup/system.slice/memory.max", of_parent),
                ("sys/fs/cgroup/system.slice/memory.current", "524288000\n"),
                ("sys/fs/cgroup/system.slice/memory.stat", "inactive_file 0\n"),
            ]);
            read_under(root.path()).unwrap().free / MIB
        };
        assert_eq!(group("max\n", "max\n"), 4096);
        assert_eq!(group("268435456\n", "max\n"), 256 - 150 + 50, "files in the cache are not in the way");
        assert_eq!(group("268435456\n", "536870912\n"), 12);
        assert_eq!(group("1000\n", "max\n"), 0);
        assert_eq!(read_under(root(&[STATUS]).path()), None, "nothing is known");
    }

    #[test]
    fn this_process_uses_some_and_has_some_left() {
        let memory = read().unwrap();
        assert!(memory.used > MIB && memory.free > MIB, "{memory:?}");
    }

    #[test]
    fn it_is_short_at_four_fifths_and_until_there_is_more() {
        let short = |used, free, before| Memory { used, free }.is_short(before);
        assert!(!short(800, 200, false) && short(804, 196, false));
        assert!(short(780, 220, true) && !short(720, 280, true));
        assert!(!short(50 * MIB, 20 * MIB, false), "others use it");
    }
}
