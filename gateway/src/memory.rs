//! Memory that the allocator keeps for itself after a configuration was read and compiled: many times what the compiled
//! configuration holds, and needed again only at the next edit. The file owns no state.

/// Returns freed memory of this thread, and of threads that have ended, to the system. Takes milliseconds: for the end of
/// work that is done seldom, on the thread that did it.
pub fn give_back() {
    // SAFETY: the call takes no pointer and may come at any time on any thread.
    unsafe { libmimalloc_sys::mi_collect(true) }
}
