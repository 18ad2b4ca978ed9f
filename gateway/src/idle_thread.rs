//! Threads for work that no request waits for.

use std::thread::{Builder, JoinHandle};

/// Niceness added to such a thread: what serves requests goes first.
#[cfg(target_os = "linux")]
const NICENESS: i32 = 10;

/// Starts a thread that yields to those which serve requests.
///
/// # Errors
/// The system has no thread.
pub fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> std::io::Result<JoinHandle<()>> {
    Builder::new().name(name.to_owned()).spawn(move || {
        // SAFETY: changes the niceness of the calling thread, which on Linux has one of its own, and touches no memory.
        #[cfg(target_os = "linux")]
        let _ = unsafe { libc::nice(NICENESS) };
        work();
    })
}
