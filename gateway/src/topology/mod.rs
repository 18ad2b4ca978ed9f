//! What is compiled from the configuration for requests: routes, targets, backends. Immutable once made; it holds references
//! to state that outlives it (endpoints, models, limits) and owns none of it.

mod backend;
mod route;
mod spill_rule;

pub use backend::{Backend, Target, TargetKind};
pub use route::{Fallback, HedgePlan, ListedModel, MirrorPlan, NamedFilter, RetryPlan, Route};
pub use spill_rule::SpillRule;
