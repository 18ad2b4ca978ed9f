//! Number of executor threads: the share of this machine that the process may use, by affinity, by the quota of its
//! control groups, by physical cores.

use std::collections::HashSet;
use std::num::NonZeroUsize;
use std::path::Path;

/// Cores that this process may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cores {
    /// Logical processors by affinity.
    pub logical: usize,
    /// Physical cores among them.
    pub physical: usize,
    /// Quota of the control groups, in whole cores; `None` without one.
    pub quota: Option<usize>,
}

impl Cores {
    /// Detects the cores of this machine.
    pub fn here() -> Self {
        let allowed = affinity();
        let logical = if allowed.is_empty() {
            std::thread::available_parallelism().map_or(1, NonZeroUsize::get)
        } else {
            allowed.len()
        };
        Self {
            logical,
            physical: physical(&allowed, Path::new("/sys/devices/system/cpu")).unwrap_or(logical),
            quota: quota(),
        }
    }

    /// Default number of threads: physical cores less one for the proxy, at least one.
    pub fn threads(&self) -> usize {
        let usable = self.quota.map_or(self.physical, |quota| quota.min(self.physical));
        usable.saturating_sub(1).max(1)
    }
}

/// Processors on which the system lets this process run; empty if unknown.
fn affinity() -> Vec<usize> {
    #[cfg(target_os = "linux")]
    {
        // SAFETY: an all-zero set is a valid one.
        let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
        // SAFETY: the set has the given size; 0 is the calling process.
        let failed = unsafe { libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), &raw mut set) } != 0;
        if failed {
            return Vec::new();
        }
        let most = usize::try_from(libc::CPU_SETSIZE).unwrap_or(0);
        // SAFETY: numbers below the size of the set.
        (0..most).filter(|cpu| unsafe { libc::CPU_ISSET(*cpu, &set) }).collect()
    }
    #[cfg(not(target_os = "linux"))]
    Vec::new()
}

/// Counts the physical cores of some processors: those with the same siblings are one. `None` if the topology is
/// unknown.
fn physical(allowed: &[usize], folder: &Path) -> Option<usize> {
    let siblings: Option<HashSet<String>> = allowed
        .iter()
        .map(|cpu| std::fs::read_to_string(folder.join(format!("cpu{cpu}/topology/thread_siblings_list"))).ok())
        .collect();
    siblings.map(|siblings| siblings.len()).filter(|cores| *cores > 0)
}

/// The smallest quota of the control groups that this process is in, rounded up to whole cores.
fn quota() -> Option<usize> {
    let groups = std::fs::read_to_string("/proc/self/cgroup").ok()?;
    quota_of(&groups, Path::new("/sys/fs/cgroup"))
}

fn quota_of(groups: &str, root: &Path) -> Option<usize> {
    groups
        .lines()
        .filter_map(|line| {
            let mut fields = line.splitn(3, ':');
            let (_, controllers, path) = (fields.next()?, fields.next()?, fields.next()?);
            let root = if controllers.is_empty() {
                root.to_owned()
            } else if controllers.split(',').any(|controller| controller == "cpu") {
                [controllers, "cpu"].iter().map(|name| root.join(name)).find(|folder| folder.is_dir())?
            } else {
                return None;
            };
            // The quota of every group above applies too. In a container the path may be that of the host: then only
            // the root exists, which the container sees as its own group.
            let own = root.join(path.trim_start_matches('/'));
            own.ancestors().take_while(|folder| folder.starts_with(&root)).filter_map(quota_in).min()
        })
        .min()
}

/// Quota of one control group, in cores.
fn quota_in(folder: &Path) -> Option<usize> {
    let read = |name: &str| std::fs::read_to_string(folder.join(name)).ok();
    let (quota, period) = if let Some(max) = read("cpu.max") {
        let mut fields = max.split_whitespace().map(|field| field.parse::<usize>().ok());
        (fields.next()??, fields.next()??)
    } else {
        (read("cpu.cfs_quota_us")?.trim().parse().ok()?, read("cpu.cfs_period_us")?.trim().parse().ok()?)
    };
    (period > 0).then(|| quota.div_ceil(period).max(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotas_of_both_kinds_of_control_groups_are_found_with_those_above_them() {
        let root = tempfile::tempdir().unwrap();
        let put = |path: &str, text: &str| {
            let path = root.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        put("pod/own/cpu.max", "max 100000\n");
        put("pod/cpu.max", "150000 100000\n");
        assert_eq!(quota_of("0::/pod/own\n", root.path()), Some(2));
        assert_eq!(quota_of("0::/elsewhere\n", root.path()), None);
        put("cpu.max", "50000 100000\n");
        assert_eq!(quota_of("0::/not/to/be/seen\n", root.path()), Some(1));
        put("cpu/one/cpu.cfs_quota_us", "-1\n");
        put("cpu/one/cpu.cfs_period_us", "100000\n");
        assert_eq!(quota_of("4:cpu,cpuacct:/one\n3:memory:/one\n", root.path()), None);
        put("cpu/one/cpu.cfs_quota_us", "400000\n");
        assert_eq!(quota_of("4:cpu,cpuacct:/one\n3:memory:/one\n", root.path()), Some(4));
    }

    #[test]
    fn siblings_count_once_and_one_core_is_left_to_the_proxy() {
        let root = tempfile::tempdir().unwrap();
        for (cpu, siblings) in [(0, "0,2"), (1, "1,3"), (2, "0,2"), (3, "1,3")] {
            let folder = root.path().join(format!("cpu{cpu}/topology"));
            std::fs::create_dir_all(&folder).unwrap();
            std::fs::write(folder.join("thread_siblings_list"), siblings).unwrap();
        }
        assert_eq!(physical(&[0, 1, 2, 3], root.path()), Some(2));
        assert_eq!(physical(&[0, 2], root.path()), Some(1));
        assert_eq!(physical(&[7], root.path()), None);
        let cores = Cores { logical: 16, physical: 8, quota: None };
        assert_eq!((cores.threads(), Cores { quota: Some(3), ..cores }.threads()), (7, 2));
        assert_eq!(Cores { quota: Some(1), ..cores }.threads(), 1);
        assert!(Cores::here().threads() >= 1);
    }
}
