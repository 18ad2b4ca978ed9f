//! Measured programs: start, CPU time and memory from /proc, end.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Running program with its children.
pub(crate) struct Process(Child);

impl Process {
    pub(crate) fn start(command: &mut Command) -> Self {
        Self(
            command
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .expect("the program starts"),
        )
    }

    /// Starts an nginx that answers every request on a port with 200 and `ok`; its files are in `folder`.
    pub(crate) fn answering(folder: &Path, port: u16) -> Self {
        let config = folder.join("upstream.conf");
        let text = format!(
            "daemon off; worker_processes 1; pid {pid}; error_log /dev/null; events {{ worker_connections 1024; }}
http {{ access_log off; keepalive_requests 1000000000; server {{ listen 127.0.0.1:{port}; location / {{ return 200 'ok'; }} }} }}",
            pid = folder.join("upstream.pid").display()
        );
        std::fs::write(&config, text).unwrap();
        let nginx = Self::start(Command::new("nginx").arg("-c").arg(config));
        wait_for(port);
        nginx
    }

    /// CPU seconds of the program and its children.
    pub(crate) fn cpu(&self) -> f64 {
        family(self.0.id()).into_iter().filter_map(|pid| Some(cpu(pid)?.0)).sum()
    }

    /// Resident memory in MiB. Pages that processes share count for each.
    pub(crate) fn resident(&self) -> f64 {
        family(self.0.id()).into_iter().filter_map(|pid| memory(pid, "VmRSS:")).sum()
    }

    /// Most resident memory since the start, in MiB, of the processes that run now.
    pub(crate) fn peak(&self) -> f64 {
        family(self.0.id()).into_iter().filter_map(|pid| memory(pid, "VmHWM:")).sum()
    }

    /// True once the program has ended by itself.
    pub(crate) fn has_ended(&mut self) -> bool {
        matches!(self.0.try_wait(), Ok(Some(_)))
    }
}

/// A process and all that descend from it.
pub(crate) fn family(pid: u32) -> Vec<u32> {
    let mut all = vec![pid];
    let mut next = 0;
    while let Some(pid) = all.get(next) {
        let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
        let children = tasks.filter_map(|task| std::fs::read_to_string(task.path().join("children")).ok());
        let pids: Vec<u32> = children
            .flat_map(|line| line.split_whitespace().filter_map(|pid| pid.parse().ok()).collect::<Vec<_>>())
            .collect();
        all.extend(pids);
        next += 1;
    }
    all
}

/// CPU seconds of a process, and of its children that have ended.
fn cpu(pid: u32) -> Option<(f64, f64)> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    // utime, stime, cutime and cstime, in ticks of a hundredth of a second.
    let seconds = |n: usize| Some(fields.get(n)?.parse::<f64>().ok()? / 100.0);
    Some((seconds(11)? + seconds(12)?, seconds(13)? + seconds(14)?))
}

/// CPU seconds of a process with its children that have ended.
pub(crate) fn cpu_with_ended(pid: u32) -> Option<f64> {
    let (own, ended) = cpu(pid)?;
    Some(own + ended)
}

/// Line of /proc/PID/status, from KiB to MiB.
fn memory(pid: u32, label: &str) -> Option<f64> {
    Some(status(pid, label)? / 1024.0)
}

/// Number in a line of /proc/PID/status; memory is in KiB.
pub(crate) fn status(pid: u32, label: &str) -> Option<f64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(label))?;
    line.split_whitespace().next()?.parse().ok()
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.has_ended() {
            return;
        }
        let _ = Command::new("kill").arg(self.0.id().to_string()).status();
        let started = Instant::now();
        while started.elapsed() < Duration::from_secs(3) {
            if self.has_ended() {
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Returns a port that is free now.
pub(crate) fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// Waits until a server listens on the port.
pub(crate) fn wait_for(port: u16) {
    let started = Instant::now();
    while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
        assert!(started.elapsed() < Duration::from_secs(60), "nothing listens on port {port}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Path of a program or file from an environment variable.
pub(crate) fn named(variable: &str) -> PathBuf {
    std::env::var_os(variable)
        .map(PathBuf::from)
        .unwrap_or_else(|| panic!("{variable} is not set: `make bench` sets it"))
}
