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

    fn family(&self) -> Vec<u32> {
        let own = self.0.id();
        let children = std::fs::read_to_string(format!("/proc/{own}/task/{own}/children")).unwrap_or_default();
        std::iter::once(own).chain(children.split_whitespace().filter_map(|pid| pid.parse().ok())).collect()
    }

    /// CPU seconds of the program and its children.
    pub(crate) fn cpu(&self) -> f64 {
        let of = |pid: u32| {
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
            let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
            // utime and stime, in ticks of a hundredth of a second.
            Some((fields[11].parse::<f64>().ok()? + fields[12].parse::<f64>().ok()?) / 100.0)
        };
        self.family().into_iter().filter_map(of).sum()
    }

    /// Resident memory in MiB.
    pub(crate) fn resident(&self) -> f64 {
        let of = |pid: u32| {
            let statm = std::fs::read_to_string(format!("/proc/{pid}/statm")).ok()?;
            statm.split_whitespace().nth(1)?.parse::<f64>().ok()
        };
        self.family().into_iter().filter_map(of).sum::<f64>() * 4096.0 / f64::from(1 << 20)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = Command::new("kill").arg(self.0.id().to_string()).status();
        let started = Instant::now();
        while started.elapsed() < Duration::from_secs(3) {
            if matches!(self.0.try_wait(), Ok(Some(_))) {
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
