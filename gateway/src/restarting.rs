//! Threads that begin again after a panic, which is a defect: at a bounded rate, and never in silence.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

/// Pause before a thread begins again; each further panic within [`CALM`] doubles it.
pub(crate) const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// Longest such pause.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// Time without a panic after which the pause is the first one again.
const CALM: Duration = Duration::from_secs(600);

/// Runs `life` until it ends without a panic. `panicked` gets the words of each panic and the pause that follows it.
pub(crate) fn until_end(first_pause: Duration, mut life: impl FnMut(), panicked: impl Fn(&str, Duration)) {
    let mut pause = first_pause;
    loop {
        let began = Instant::now();
        let Err(panic) = catch_unwind(AssertUnwindSafe(&mut life)) else { return };
        if began.elapsed() >= CALM {
            pause = first_pause;
        }
        panicked(message(&*panic), pause);
        std::thread::sleep(pause);
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// Words of a panic.
fn message(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("no reason told")
}

#[cfg(test)]
mod tests {
    use std::cell::{Cell, RefCell};

    use super::*;

    #[test]
    fn a_thread_begins_again_after_growing_pauses_until_it_ends_well() {
        let (lives, told) = (Cell::new(0), RefCell::new(Vec::new()));
        let life = || {
            lives.set(lives.get() + 1);
            match lives.get() {
                1 => panic!("one"),
                2 => panic!("{}", "two".to_owned()),
                3 => std::panic::panic_any(3),
                _ => {}
            }
        };
        let first = Duration::from_micros(1);
        until_end(first, life, |reason, pause| told.borrow_mut().push((reason.to_owned(), pause)));
        let expected = [("one", 1), ("two", 2), ("no reason told", 4)];
        assert_eq!(*told.borrow(), expected.map(|(reason, pause)| (reason.to_owned(), pause * first)));
        assert_eq!(lives.get(), 4);
    }
}
