//! What runs a step, as the scheduler sees it: a model on an executor. It can be made again from the file after its
//! device has failed.

use crate::artifact::ModelFile;
use crate::exec::Batch;
use crate::model::{self, Loaded};
use crate::{EngineError, LoadError, LoadOptions};

/// Runs steps.
pub(crate) trait Runner: Send {
    /// One step: the logits of the picked rows, one after the other.
    fn forward(&mut self, batch: &Batch) -> Result<Vec<f32>, EngineError>;
    /// Copies all keys and values of a page to another. False where that cannot be done; the tokens are read again then.
    fn copy_page(&mut self, from: u32, to: u32) -> bool;
}

/// A runner and how to make another like it.
pub(crate) struct Rebuildable {
    pub(crate) runner: Box<dyn Runner>,
    pub(crate) rebuild: Box<dyn FnMut() -> Result<Box<dyn Runner>, LoadError> + Send>,
}

struct ModelRunner {
    loaded: Loaded,
}

impl Runner for ModelRunner {
    fn forward(&mut self, batch: &Batch) -> Result<Vec<f32>, EngineError> {
        self.loaded.model.forward(self.loaded.executor.as_mut(), batch)
    }
    fn copy_page(&mut self, from: u32, to: u32) -> bool {
        self.loaded.executor.copy_page(from, to)
    }
}

/// A loaded model that is loaded again from its file, with the same options, when its device has failed.
pub(crate) fn rebuildable(loaded: Loaded, options: &LoadOptions) -> Rebuildable {
    let (sizes, vocabulary, options) = (loaded.sizes, loaded.vocabulary, options.clone());
    let rebuild = move || {
        let file = ModelFile::open(&options.source)?;
        let loaded = model::load(&file, &options)?;
        if (loaded.sizes, loaded.vocabulary) != (sizes, vocabulary) {
            let path = options.source.clone();
            return Err(LoadError::Corrupt { path, reason: "it is another model than the one that was loaded".into() });
        }
        Ok(Box::new(ModelRunner { loaded }) as Box<dyn Runner>)
    };
    Rebuildable { runner: Box::new(ModelRunner { loaded }), rebuild: Box::new(rebuild) }
}
