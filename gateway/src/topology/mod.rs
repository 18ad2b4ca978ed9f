//! Routes, targets and backends, compiled from the configuration for requests. They are immutable, and hold references to
//! state that outlives them (endpoints, models, limits) without owning it.

mod backend;
mod batch;
mod feedback;
mod named_filter;
mod route;
mod spill_rule;

pub use backend::{Backend, Target, TargetKind};
pub use batch::BatchPlan;
pub use feedback::FeedbackPlan;
pub use named_filter::NamedFilter;
pub use route::{Answerers, Fallback, HedgePlan, ListedModel, MirrorPlan, RetryPlan, Route, RouteRollout, ShadowPlan};
pub use spill_rule::SpillRule;
