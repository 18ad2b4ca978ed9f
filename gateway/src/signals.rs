//! Signals of the process. Owns every handler, from before the configuration is read to the end of the process: SIGTERM and
//! SIGINT end the process, SIGHUP reloads, SIGQUIT hands over to a new process. Every other signal whose default would end the process is ignored and logged,
//! except those that report a fault of the program itself (SIGSEGV, SIGABRT, SIGBUS, SIGFPE, SIGILL, SIGSYS, SIGTRAP).
//! SIGPIPE is ignored by Rust's runtime; a broken connection is an error of the write.

use std::future::poll_fn;
use std::task::Poll;

use tokio::signal::unix::{Signal, SignalKind};

use crate::telemetry::LogThrottle;

/// Signals that have no meaning for the gateway and would end it by default (signal(7)).
const MEANINGLESS: &[(libc::c_int, &str)] = &[
    (libc::SIGUSR1, "SIGUSR1"),
    (libc::SIGUSR2, "SIGUSR2"),
    (libc::SIGALRM, "SIGALRM"),
    (libc::SIGVTALRM, "SIGVTALRM"),
    (libc::SIGPROF, "SIGPROF"),
    // Sent again every second past the soft limit; the hard one kills.
    (libc::SIGXCPU, "SIGXCPU"),
    // A write past the limit of a file's size then fails with EFBIG, and is reported where it was made.
    (libc::SIGXFSZ, "SIGXFSZ"),
    #[cfg(target_os = "linux")]
    (libc::SIGIO, "SIGIO"),
    #[cfg(target_os = "linux")]
    (libc::SIGPWR, "SIGPWR"),
    #[cfg(target_os = "linux")]
    (libc::SIGSTKFLT, "SIGSTKFLT"),
];

/// Handlers of signals, installed by [`Signals::install`].
pub struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hang_up: Option<Signal>,
    quit: Option<Signal>,
}

impl Signals {
    /// Installs all handlers and starts the task that logs ignored signals. Needs the context of the runtime.
    pub fn install() -> std::io::Result<Self> {
        let handled = |kind| tokio::signal::unix::signal(kind);
        let signals = Self {
            terminate: handled(SignalKind::terminate())?,
            interrupt: handled(SignalKind::interrupt())?,
            hang_up: Some(handled(SignalKind::hangup())?),
            quit: Some(handled(SignalKind::quit())?),
        };
        let mut ignored = Vec::new();
        for (number, name) in meaningless() {
            // A signal that the system reserves cannot be handled, and keeps its default.
            if let Ok(signal) = handled(SignalKind::from_raw(number)) {
                ignored.push(Ignored { signal, name, log: LogThrottle::default() });
            }
        }
        tokio::spawn(report(ignored));
        Ok(signals)
    }

    /// Returns the receiver of SIGHUP; `None` if it was returned before.
    pub fn take_hang_up(&mut self) -> Option<Signal> {
        self.hang_up.take()
    }

    /// Returns the receiver of SIGQUIT; `None` if it was returned before.
    pub fn take_quit(&mut self) -> Option<Signal> {
        self.quit.take()
    }

    /// Waits for SIGTERM or SIGINT; returns the name of the signal.
    pub async fn end(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }

    /// Waits for a further SIGINT. A further SIGTERM is no reason to hurry: supervisors repeat and forward it.
    pub async fn end_at_once(&mut self) {
        self.interrupt.recv().await;
    }

    /// Runs `work` unless SIGTERM or SIGINT comes first.
    pub fn unless_ended<T>(&mut self, work: impl Future<Output = T>) -> impl Future<Output = Result<T, &'static str>> {
        // Boxed: starting is a large future.
        let mut work = Box::pin(work);
        async move {
            tokio::select! {
                biased;
                name = self.end() => Err(name),
                done = work.as_mut() => Ok(done),
            }
        }
    }
}

/// All signals that are ignored and logged, with their names.
fn meaningless() -> impl Iterator<Item = (libc::c_int, String)> {
    #[cfg(target_os = "linux")]
    let real_time = (libc::SIGRTMIN()..=libc::SIGRTMAX()).map(|n| (n, format!("SIGRTMIN+{}", n - libc::SIGRTMIN())));
    #[cfg(not(target_os = "linux"))]
    let real_time = std::iter::empty();
    MEANINGLESS.iter().map(|(number, name)| (*number, (*name).to_owned())).chain(real_time)
}

/// Signal that is ignored and logged.
struct Ignored {
    signal: Signal,
    name: String,
    log: LogThrottle,
}

/// Logs ignored signals: the first of each kind at once, further ones once a minute with their count. Deliveries that
/// come faster than this task runs count as one.
async fn report(mut ignored: Vec<Ignored>) {
    poll_fn(|cx| {
        for Ignored { signal, name, log } in &mut ignored {
            while let Poll::Ready(Some(())) = signal.poll_recv(cx) {
                log.add(1, |times| {
                    tracing::warn!(event = "signal_ignored", signal = %name, times, "the gateway has no use for it: SIGHUP reloads, SIGQUIT hands over to a new process, SIGTERM and SIGINT end it");
                });
            }
        }
        Poll::<()>::Pending
    })
    .await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_of_the_program_and_signals_with_a_meaning_are_left_alone() {
        let left = [
            libc::SIGSEGV,
            libc::SIGABRT,
            libc::SIGBUS,
            libc::SIGFPE,
            libc::SIGILL,
            libc::SIGSYS,
            libc::SIGTRAP,
            libc::SIGTERM,
            libc::SIGINT,
            libc::SIGHUP,
            libc::SIGQUIT,
            libc::SIGKILL,
            libc::SIGCHLD,
        ];
        assert!(meaningless().all(|(number, _)| !left.contains(&number)));
    }
}
