//! What a new snapshot does to state that outlives it, put off until every part of the snapshot has been accepted: making a
//! snapshot changes nothing that another one uses. It owns the steps and runs them once, in the order in which they came;
//! dropping them leaves all as it was. A step cannot fail: whatever can is done while the snapshot is made.

use parking_lot::Mutex;

type Step = Box<dyn FnOnce() + Send>;

/// Steps that are put off.
#[derive(Default)]
pub struct Adoptions(Mutex<Vec<Step>>);

impl std::fmt::Debug for Adoptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Adoptions({} steps)", self.0.lock().len())
    }
}

impl Adoptions {
    /// Puts a step off.
    pub fn add(&self, step: impl FnOnce() + Send + 'static) {
        self.0.lock().push(Box::new(step));
    }

    /// Does what was put off, once.
    pub fn run(&self) {
        let steps = std::mem::take(&mut *self.0.lock());
        for step in steps {
            step();
        }
    }
}
