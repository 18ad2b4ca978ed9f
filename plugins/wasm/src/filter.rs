//! The filter: asks its module about a request.

use std::sync::Arc;

use spillway_filter::{Filter, Flow, HttpClient, RequestView};

use crate::factory::Kept;
use crate::failure::Failure;
use crate::pool::Pool;
use crate::stream::{Stream, Verdict, failed};

/// Filter `wasm`.
pub(crate) struct WasmFilter {
    pub(crate) pool: Arc<Pool>,
    pub(crate) http: Arc<dyn HttpClient>,
    pub(crate) request_body: bool,
    pub(crate) response_body: bool,
    /// Holds the instances for the filter that a reload makes of the same configuration.
    pub(crate) _kept: Arc<Kept>,
}

impl WasmFilter {
    fn failed(&self, failure: &Failure) -> Flow {
        // By a wait, because the metrics count the failures of those.
        Flow::Wait(Box::pin(std::future::ready(failed(&self.pool, failure))))
    }
}

impl Filter for WasmFilter {
    fn needs_body(&self) -> bool {
        self.request_body && self.pool.hooks().request_body
    }

    fn on_request(&self, view: &mut RequestView<'_>) -> Flow {
        match Stream::begin(&self.pool, view, self.needs_body()) {
            Ok((_, Verdict::Answer(answer))) => Flow::Answer(answer),
            Ok((stream, Verdict::Wait(calls))) => {
                Flow::Wait(Box::pin(stream.wait(calls, self.http.clone(), self.response_body)))
            }
            Ok((stream, Verdict::Pass)) => match stream.follow(self.response_body) {
                Ok(rewrite) if rewrite.is_empty() => Flow::Continue,
                Ok(rewrite) => Flow::Rewrite(Box::new(rewrite)),
                Err(failure) => self.failed(&failure),
            },
            Err(failure) => self.failed(&failure),
        }
    }
}
