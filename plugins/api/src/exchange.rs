//! Exchange as hooks see it that compute a value of it. Nothing is looked up before a hook asks for it.

use http::HeaderName;

use crate::RequestView;

/// Exchange of a request, for hooks that are called with a server or an answer.
pub trait ExchangeView: Sync {
    /// The request as the caller sent it, behind what filters changed in its body.
    fn request(&self) -> RequestView<'_>;
    /// Version of the route's rollout whose target has the request: `stable`, `candidate`, or empty.
    fn version(&self) -> &'static str;
    /// True for a header of the request that may hold a credential of the caller: its value must not be copied elsewhere.
    fn is_secret(&self, name: &HeaderName) -> bool;
}

impl std::fmt::Debug for dyn ExchangeView + '_ {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ExchangeView")
    }
}
