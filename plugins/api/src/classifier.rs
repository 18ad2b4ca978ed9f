//! Classification of texts for filters, by built-in models. The gateway provides them, so that a filter knows no engine.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

/// Probability of each label, in the order of [`Classifier::labels`], or the reason why there are none.
pub type Judgement = Result<Vec<f32>, NotClassified>;

/// A pending judgement.
pub type Classifying = Pin<Box<dyn Future<Output = Judgement> + Send>>;

/// Reason why texts were not classified.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotClassified {
    /// The model had not answered in time: it is loading, or reads other texts.
    TooLate,
    /// As many texts as may wait in the background already did.
    TooMany,
    /// The model is not loaded, failed, or has no tokens for a text.
    Failed,
}

impl NotClassified {
    /// Reason in words, for logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::TooLate => "the classifier has not answered in time",
            Self::TooMany => "too many texts wait for the classifier in the background",
            Self::Failed => "the classifier is not loaded or failed",
        }
    }
}

/// Built-in model that classifies texts.
pub trait Classifier: Send + Sync {
    /// Names of the labels.
    fn labels(&self) -> &[String];
    /// Highest probability of each label in any of the texts, within `timeout`. A text longer than the context of the model is
    /// read whole, in windows that overlap. Dropping it cancels.
    fn classify(&self, texts: Vec<String>, timeout: Duration) -> Classifying;
    /// As [`Self::classify`], in the background: `done` is called once there is a judgement. Few run at a time; what more come
    /// are not classified.
    fn classify_later(&self, texts: Vec<String>, timeout: Duration, done: Box<dyn FnOnce(Judgement) + Send>);
}

/// Built-in models of a configuration that classify texts.
pub trait Classifiers {
    /// Model of this name.
    ///
    /// # Errors
    /// No model has the name, or the one that has it is for something else: a sentence that says what to do.
    fn classifier(&self, model: &str) -> Result<Arc<dyn Classifier>, String>;
}

/// No models; for checks and tests.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoClassifiers;

impl Classifiers for NoClassifiers {
    fn classifier(&self, model: &str) -> Result<Arc<dyn Classifier>, String> {
        Err(format!("no built-in model is called `{model}`; add it to `models`"))
    }
}
