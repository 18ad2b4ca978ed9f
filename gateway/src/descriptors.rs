//! File descriptors of the process. A connection is one, and a client costs nothing to open many, so the last of them are
//! kept: client connections stop first, connections to servers next, and the rest is for the admin address, files,
//! names and stores.
//!
//! The system gives the lowest free number to a new descriptor (POSIX, `open`), so the number of a new connection says
//! how many are open at least, without anything being counted.

use std::fs::File;
use std::io;
use std::num::NonZeroU32;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::atomic::{AtomicI32, AtomicU64, Ordering};

/// First number that no client connection may have. Process-wide, as RLIMIT_NOFILE is.
static FIRST_NOT_FOR_CLIENTS: AtomicI32 = AtomicI32::new(RawFd::MAX);
/// First number that no connection to a server may have.
static FIRST_NOT_FOR_SERVERS: AtomicI32 = AtomicI32::new(RawFd::MAX);

/// Smallest and largest reserve where the configuration names none, in descriptors.
const DEFAULT_RESERVE: (u64, u64) = (16, 1024);
/// Part of the limit that is the reserve where the configuration names none: one in eight.
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
    /// Every side, for metrics.
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

    /// Counts a connection for which there was no descriptor.
    pub fn count_shortage(self) {
        self.shortages().fetch_add(1, Ordering::Relaxed);
    }

    /// Connections since start for which there was no descriptor.
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

/// True if an error says that the process (EMFILE) or the system (ENFILE) has no descriptor left.
pub fn is_shortage(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE))
}

/// Keeps so many descriptors from connections of clients and servers; gives the number kept. At most a quarter of the
/// limit is kept, so that a limit below what the configuration expects leaves some for clients.
pub fn reserve(written: Option<NonZeroU32>) -> u64 {
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

/// RLIMIT_NOFILE of the process; `None` where the system does not say.
pub fn limit() -> Option<u64> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the call gets a pointer to a `rlimit` that lives until it returns.
    let told = unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) } == 0;
    told.then_some(limit.rlim_cur)
}

/// A descriptor that is held to be given away: where none is left, one connection can still be accepted, and closed or
/// answered. Without it the kernel keeps the connection, and every further attempt to accept fails at once.
#[derive(Debug, Default)]
pub struct Spare(Option<File>);

impl Spare {
    /// Opens one, unless there is none.
    pub fn new() -> Self {
        let mut spare = Self::default();
        spare.refill();
        spare
    }

    /// Opens it again where it was given away and one is left.
    pub fn refill(&mut self) {
        if self.0.is_none() {
            self.0 = File::open("/dev/null").ok();
        }
    }

    /// Gives it away; false where it is gone already.
    pub fn release(&mut self) -> bool {
        self.0.take().is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
