//! Answers that last longer than a connection of the admin address otherwise may: a live tail, an answer of the playground.
//! Each has an end of its own; its connection takes no further request, and lives until then.

use std::sync::Arc;

use tokio::sync::watch;

/// Lasting answers of one connection; clones share them.
#[derive(Debug, Clone)]
pub(super) struct LastingAnswers(Arc<watch::Sender<usize>>);

impl Default for LastingAnswers {
    fn default() -> Self {
        Self(Arc::new(watch::Sender::new(0)))
    }
}

impl LastingAnswers {
    /// Begins an answer, which lasts until what is returned is dropped.
    pub(super) fn begin(&self) -> LastingAnswer {
        self.0.send_modify(|count| *count += 1);
        LastingAnswer(self.0.clone())
    }

    /// Waits until there is none.
    pub(super) async fn end(&self) {
        // The sender lives as long as this.
        let _ = self.0.subscribe().wait_for(|count| *count == 0).await;
    }
}

/// Answer under way.
#[derive(Debug)]
pub struct LastingAnswer(Arc<watch::Sender<usize>>);

impl Drop for LastingAnswer {
    fn drop(&mut self) {
        self.0.send_modify(|count| *count = count.saturating_sub(1));
    }
}
