//! Changes of a new snapshot to state that outlives it, deferred until every part of the snapshot is accepted.
//! Compiling a snapshot changes nothing that another one uses. The module owns the steps and runs them once, in the
//! order in which they were added; dropping them changes nothing. A step cannot fail: whatever can fail is done while
//! the snapshot is compiled.

use parking_lot::Mutex;

type Step = Box<dyn FnOnce() + Send>;

/// Deferred steps of one snapshot.
#[derive(Default)]
pub struct CommitSteps(Mutex<Vec<Step>>);

impl std::fmt::Debug for CommitSteps {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "CommitSteps({} steps)", self.0.lock().len())
    }
}

impl CommitSteps {
    /// Defers a step until the snapshot is adopted.
    pub fn add(&self, step: impl FnOnce() + Send + 'static) {
        self.0.lock().push(Box::new(step));
    }

    /// Runs the deferred steps, once.
    pub fn run(&self) {
        let steps = std::mem::take(&mut *self.0.lock());
        for step in steps {
            step();
        }
    }
}
