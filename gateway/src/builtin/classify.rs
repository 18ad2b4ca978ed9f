//! Classification of texts for filters, by a built-in model. Owns nothing: texts come from filters, which bound their length.

use std::sync::Arc;
use std::time::{Duration, Instant};

use spillway_engine::{EmbedInput, Engine};
use spillway_filter::{Classifier, Classifying, Judgement, NotClassified};

use super::{LoadedEngine, LoadedModel};

/// Tokens that two windows of a long text have in common: a sentence that one of them cuts is whole in the other.
const OVERLAP: usize = 64;
/// Windows of one request to the engine, which serves its requests in turn, and of one turn among the texts of filters: those of one long
/// text delay no other text for long.
pub(super) const WINDOWS: usize = 4;
/// Bytes of texts that are turned into tokens on a thread of the proxy: some hundred microseconds.
const ON_LOOP: usize = 8 << 10;

/// Classifications for filters by a built-in model: of few texts at a time. Others wait, within their own time.
pub struct FilterClassifier(Arc<LoadedModel>);

impl FilterClassifier {
    /// Classifier of a model for classification; `None` where its scores are no probabilities.
    pub fn new(model: Arc<LoadedModel>) -> Option<Self> {
        model.has_probabilities().then_some(Self(model))
    }
}

impl Classifier for FilterClassifier {
    fn labels(&self) -> &[String] {
        self.0.labels()
    }

    fn classify(&self, texts: Vec<String>, timeout: Duration) -> Classifying {
        let (model, deadline) = (self.0.clone(), Instant::now() + timeout);
        Box::pin(async move {
            let work = classify(&model, texts, deadline, true);
            tokio::time::timeout_at(deadline.into(), work).await.unwrap_or(Err(NotClassified::TooLate))
        })
    }

    fn classify_later(&self, texts: Vec<String>, timeout: Duration, done: Box<dyn FnOnce(Judgement) + Send>) {
        let (model, deadline) = (self.0.clone(), Instant::now() + timeout);
        let Some(permit) = model.filter_permit() else { return done(Err(NotClassified::TooMany)) };
        tokio::spawn(async move {
            let work = classify(&model, texts, deadline, false);
            let judged = tokio::time::timeout_at(deadline.into(), work).await;
            drop(permit);
            done(judged.unwrap_or(Err(NotClassified::TooLate)));
        });
    }
}

/// Highest probability of each label in any window of the texts. With `takes_turns` some windows at a time wait for their turn among the
/// texts of filters; otherwise the caller has one for all.
async fn classify(model: &Arc<LoadedModel>, texts: Vec<String>, deadline: Instant, takes_turns: bool) -> Judgement {
    let engine = model.engine(deadline).await.map_err(|_| NotClassified::Failed)?;
    let scoring = engine.info().scoring.ok_or(NotClassified::Failed)?;
    let mut highest = vec![0.0_f32; model.labels().len()];
    let mut windows = windows(&engine, texts).await?.into_iter();
    loop {
        let some: Vec<EmbedInput> = windows.by_ref().take(WINDOWS).collect();
        if some.is_empty() {
            return Ok(highest);
        }
        let turn = if takes_turns {
            let turn = model.filter_permits().clone().acquire_owned().await;
            Some(turn.map_err(|_| NotClassified::Failed)?)
        } else {
            None
        };
        let scores = engine.classify_inputs(some).await;
        drop(turn);
        for scores in scores.map_err(|_| NotClassified::Failed)? {
            let probabilities = scoring.probabilities(&scores.logits);
            // Comparisons with what is no number are all false: such a text would pass.
            let is_sound = probabilities.len() == highest.len() && probabilities.iter().all(|p| p.is_finite());
            if !is_sound || scores.truncated {
                return Err(NotClassified::Failed);
            }
            for (highest, p) in highest.iter_mut().zip(probabilities) {
                *highest = highest.max(p);
            }
        }
    }
}

/// Windows of the texts, on a thread of their own where there are many.
pub(super) async fn windows(engine: &LoadedEngine, texts: Vec<String>) -> Result<Vec<EmbedInput>, NotClassified> {
    fn all(engine: &Engine, texts: &[String]) -> Result<Vec<EmbedInput>, NotClassified> {
        let mut windows = Vec::new();
        for text in texts {
            windows.append(&mut engine.windows(text, OVERLAP).map_err(|_| NotClassified::Failed)?);
        }
        Ok(windows)
    }
    if texts.iter().map(String::len).sum::<usize>() <= ON_LOOP {
        return all(engine, &texts);
    }
    let engine = engine.clone();
    let work = tokio::task::spawn_blocking(move || all(&engine, &texts));
    work.await.unwrap_or(Err(NotClassified::Failed))
}
