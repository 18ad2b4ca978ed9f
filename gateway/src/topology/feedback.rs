//! Compiled `feedback`: where labels are taken, and from whom.

use std::sync::Arc;

use super::Route;
use crate::feedback::Feedback;

/// Where labels of answers are taken, and from whom.
pub struct FeedbackPlan {
    /// Route of the gateway's own, by which its requests are authenticated, limited and counted.
    pub route: Arc<Route>,
    /// Name of the listener that takes labels; `None` for every listener.
    pub listener: Option<Box<str>>,
    /// Path in the form in which paths of requests are compared.
    pub path: Box<str>,
    /// Scopes, one of which lets a caller label the requests of others.
    pub scopes: Box<[Box<str>]>,
    /// True if comments are written to the log.
    pub logs_comments: bool,
    /// Memory and figures, kept over reloads.
    pub state: Arc<Feedback>,
}

impl FeedbackPlan {
    /// True if a request for `path` at a listener is a label. `path` has the form in which paths are compared.
    pub fn takes(&self, listener: &str, path: &str) -> bool {
        *self.path == *path && self.listener.as_deref().is_none_or(|own| own == listener)
    }
}
