//! Compiled `batch`: where files and batches are taken.

use std::sync::Arc;

use super::Route;
use crate::batch::Batches;

/// Where files and batches are taken.
pub struct BatchPlan {
    /// Route of the gateway's own, by which its requests are authenticated, limited and counted.
    pub route: Arc<Route>,
    /// Name of the listener that takes them; `None` for every listener.
    pub listener: Option<Box<str>>,
    /// Paths of files and of batches in the form in which paths of requests are compared.
    pub paths: [Box<str>; 2],
    /// Files and batches, kept over reloads.
    pub state: Arc<Batches>,
}

impl BatchPlan {
    /// True if a request for `path` at a listener is about files or batches. `path` has the form in which paths are compared.
    pub fn takes(&self, listener: &str, path: &str) -> bool {
        let is_at = |own: &str| path.strip_prefix(own).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
        self.paths.iter().any(|own| is_at(own)) && self.listener.as_deref().is_none_or(|own| own == listener)
    }
}
