//! File descriptors of the process. A connection needs one, and clients can open many, so the last descriptors are reserved:
//! client connections are refused first, connections to servers next. The rest is for the admin address, files, DNS and
//! stores.
//!
//! The system gives the lowest free number to a new descriptor (POSIX, `open`). So the number of a new connection is a lower
//! bound of the open descriptors, without counting.

use std::fs::File;
use std::io;
use std::num::NonZeroU32;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::atomic::{AtomicI32, AtomicU64, Ordering};

use spillway_config::schema::Config;

/// First number that client connections may not have; process-wide, as RLIMIT_NOFILE is.
static FIRST_NOT_FOR_CLIENTS: AtomicI32 = AtomicI32::new(RawFd::MAX);
/// First number that connections to servers may not have.
static FIRST_NOT_FOR_SERVERS: AtomicI32 = AtomicI32::new(RawFd::MAX);

/// Smallest and largest default reserve, in descriptors.
const DEFAULT_RESERVE: (u64, u64) = (16, 1024);
/// Part of the limit that is the default reserve: one in eight.
const DEFAULT_PART: u64 = 8;

/// Purpose of a file descriptor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// Connections of clients.
    Clients,
    /// Connections to servers.
    Servers,
    /// Connections to the admin address.
    Admin,
}

impl Side {
    /// All sides, for metrics.
    pub const ALL: [Self; 3] = [Self::Clients, Self::Servers, Self::Admin];

    /// Name in metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Clients => "clients",
            Self::Servers => "servers",
            Self::Admin => "admin",
        }
    }

    fn shortages(self) -> &'static AtomicU64 {
        static SHORTAGES: [AtomicU64; 3] = [const { AtomicU64::new(0) }; 3];
        let [clients, servers, admin] = &SHORTAGES;
        match self {
            Self::Clients => clients,
            Self::Servers => servers,
            Self::Admin => admin,
        }
    }

    /// Counts a connection that was refused for want of a descriptor.
    pub fn count_shortage(self) {
        self.shortages().fetch_add(1, Ordering::Relaxed);
    }

    /// Connections since start that were refused for want of a descriptor.
    pub fn shortages_so_far(self) -> u64 {
        self.shortages().load(Ordering::Relaxed)
    }

    /// True if a new connection may keep its descriptor; counts a shortage otherwise.
    pub fn may_keep(self, connection: &impl AsRawFd) -> bool {
        let first_not = match self {
            Self::Clients => FIRST_NOT_FOR_CLIENTS.load(Ordering::Relaxed),
            Self::Servers => FIRST_NOT_FOR_SERVERS.load(Ordering::Relaxed),
            Self::Admin => RawFd::MAX,
        };
        let may = connection.as_raw_fd() < first_not;
        if !may {
            self.count_shortage();
        }
        may
    }
}

/// True if an error reports that the process (EMFILE) or the system (ENFILE) has no descriptor left.
pub fn is_shortage(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE))
}

/// True if a connection waits to be accepted. Linux reports a shortage before it looks for one (`accept4` takes its
/// descriptor first), so the error alone does not say that a client is there.
pub fn is_client_waiting(listener: &impl AsRawFd) -> bool {
    let mut polled = libc::pollfd { fd: listener.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    // SAFETY: the call gets a pointer to one `pollfd` that lives until it returns, and does not wait.
    unsafe { libc::poll(&raw mut polled, 1, 0) > 0 }
}

/// Reserves descriptors as a configuration says, and logs where the limit of open files leaves clients fewer connections than
/// its listeners may take.
pub fn adopt(config: &Config) {
    let reserve = reserve(config.limits.reserved_descriptors);
    let Some(limit) = limit() else { return };
    let wanted: u64 = config.listeners.iter().map(|listener| u64::from(listener.limits.max_connections.get())).sum();
    let left = limit.saturating_sub(reserve.saturating_mul(2));
    // Said once, and again when an edit changes it.
    static SAID: AtomicU64 = AtomicU64::new(0);
    let is_short = wanted > left;
    let is_said = SAID.swap(if is_short { wanted } else { 0 }, Ordering::Relaxed) == wanted;
    if is_short && !is_said {
        tracing::warn!(
            event = "descriptors_limited",
            limit,
            clients = left,
            wanted,
            "open files (`ulimit -n`) run out before `limits.maxConnections` of the listeners: raise the limit to twice that and some, or lower `maxConnections`"
        );
    }
}

/// Reserves descriptors from connections of clients and servers; returns the number reserved. At most a quarter of the limit
/// is reserved, so that a limit below the configured reserve leaves some for clients.
fn reserve(written: Option<NonZeroU32>) -> u64 {
    let Some(limit) = limit() else { return 0 };
    let reserve = reserve_of(limit, written.map(|reserve| u64::from(reserve.get())));
    let first = |kept: u64| RawFd::try_from(limit.saturating_sub(kept)).unwrap_or(RawFd::MAX);
    FIRST_NOT_FOR_CLIENTS.store(first(reserve.saturating_mul(2)), Ordering::Relaxed);
    FIRST_NOT_FOR_SERVERS.store(first(reserve), Ordering::Relaxed);
    reserve
}

fn reserve_of(limit: u64, written: Option<u64>) -> u64 {
    let (least, most) = DEFAULT_RESERVE;
    written.unwrap_or_else(|| (limit / DEFAULT_PART).clamp(least, most)).min(limit / 4)
}

/// RLIMIT_NOFILE of the process; `None` if the system does not report it.
pub fn limit() -> Option<u64> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the call gets a pointer to a `rlimit` that lives until it returns.
    let ok = unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) } == 0;
    ok.then_some(limit.rlim_cur)
}

/// Spare descriptor: if no other is left, releasing it lets one connection be accepted, and then closed or answered. Without
/// it the kernel keeps the connection, and every further attempt to accept fails at once.
#[derive(Debug, Default)]
pub struct Spare(Option<File>);

impl Spare {
    /// Opens the spare descriptor, unless none is left.
    pub fn new() -> Self {
        let mut spare = Self::default();
        spare.refill();
        spare
    }

    /// Opens the spare descriptor again if it was released and one is left; false if it is still missing.
    pub fn refill(&mut self) -> bool {
        if self.0.is_none() {
            self.0 = File::open("/dev/null").ok();
        }
        self.0.is_some()
    }

    /// Releases the spare descriptor; false if it was released before.
    pub fn release(&mut self) -> bool {
        self.0.take().is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_is_seen_before_it_is_accepted_and_not_when_there_is_none() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        assert!(!is_client_waiting(&listener));
        let client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        assert!(is_client_waiting(&listener));
        drop(listener.accept().unwrap());
        assert!(!is_client_waiting(&listener));
        drop(client);
    }

    #[test]
    fn the_reserve_leaves_clients_half_of_a_small_limit_and_most_of_a_large_one() {
        for (limit, written, reserve) in [
            (1 << 20, None, 1024),
            (1024, None, 128),
            (64, None, 16),
            (20, None, 5),
            (1024, Some(10), 10),
            (1024, Some(100_000), 256),
        ] {
            assert_eq!(reserve_of(limit, written), reserve, "{limit} {written:?}");
        }
    }
}
