//! The machine: its processor, and how much of it others used while we measured.

use std::fs::read_to_string;

/// Ticks of all processors together, in seconds.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Times {
    /// All time but idle, waiting and stolen.
    busy: f64,
    /// Time that the hypervisor gave to other machines.
    stolen: f64,
    all: f64,
}

/// Use of the processors since a moment.
pub(super) struct Watch {
    began: Times,
    own: f64,
}

/// Use of the processors by others.
pub(super) struct Others {
    /// Share of all processor time that other programs here had, 0 to 1.
    pub(super) programs: f64,
    /// Share that the hypervisor gave away.
    pub(super) stolen: f64,
    /// Load average of the last minute and of the last fifteen.
    pub(super) load: (f64, f64),
}

impl Watch {
    /// Begins.
    pub(super) fn start() -> Self {
        Self { began: times(), own: own() }
    }

    /// Use since the start.
    pub(super) fn others(&self) -> Others {
        let now = times();
        let all = (now.all - self.began.all).max(0.01);
        let programs = (now.busy - self.began.busy - (own() - self.own)).max(0.0);
        let load = read_to_string("/proc/loadavg").unwrap_or_default();
        let load: Vec<f64> = load.split(' ').filter_map(|word| word.parse().ok()).collect();
        Others {
            programs: programs / all,
            stolen: (now.stolen - self.began.stolen) / all,
            load: (load.first().copied().unwrap_or(f64::NAN), load.get(2).copied().unwrap_or(f64::NAN)),
        }
    }
}

fn times() -> Times {
    parse(&read_to_string("/proc/stat").unwrap())
}

/// First line of /proc/stat: user, nice, system, idle, iowait, irq, softirq, steal, in hundredths of a second.
fn parse(stat: &str) -> Times {
    let line = stat.lines().next().unwrap_or_default();
    let ticks: Vec<f64> = line.split_whitespace().skip(1).take(8).filter_map(|word| word.parse().ok()).collect();
    let at = |n: usize| ticks.get(n).copied().unwrap_or(0.0) / 100.0;
    let all = (0..8).map(at).sum();
    Times { busy: all - at(3) - at(4) - at(7), stolen: at(7), all }
}

/// CPU seconds of this process and all that it started, ended ones too.
fn own() -> f64 {
    crate::process::family(std::process::id()).into_iter().filter_map(crate::process::cpu_with_ended).sum()
}

/// Name of the processor, how many there are, and its widest vector unit.
pub(super) fn description() -> String {
    let info = read_to_string("/proc/cpuinfo").unwrap_or_default();
    let field = |name: &str| info.lines().find(|line| line.starts_with(name)).and_then(|line| line.split_once(": "));
    let model = field("model name").map_or("an unknown processor", |(_, model)| model);
    let flags = field("flags").map_or("", |(_, flags)| flags);
    let unit = [("amx_tile", "AMX"), ("avx512f", "AVX-512"), ("avx2", "AVX2")];
    let unit = unit.iter().find(|(flag, _)| flags.split(' ').any(|one| one == *flag)).map_or("", |(_, name)| name);
    let count = std::thread::available_parallelism().map_or(1, usize::from);
    let kernel = read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    format!("{count} processors of {model} ({unit}), Linux {}", kernel.trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_times_of_the_processors_are_told_apart() {
        let times = parse("cpu  100 50 30 700 20 1 9 90 0 0\ncpu0 1 1 1 1 1 1 1 1\n");
        assert_eq!(times, Times { busy: 1.9, stolen: 0.9, all: 10.0 });
    }
}
