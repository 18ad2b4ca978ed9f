//! Compiles the plans of rollouts, and finds the state of those that there are.

use std::sync::Arc;

use serde_json::Value;
use spillway_config::schema::{BackendRef, Config, Route};

use crate::rollout::{RolloutPlan, Versions};

/// Name of a route; the only one of a file may have none.
pub(super) fn route_name(written: &Route) -> String {
    written.name.clone().unwrap_or_else(|| "default".to_owned())
}

/// Plans of the routes of a configuration; adds to `errors` why one cannot be used.
pub(super) fn plans(config: &Config, errors: &mut Vec<String>) -> Vec<Arc<RolloutPlan>> {
    let mut plans = Vec::new();
    for route in &config.routes {
        let Some(rollout) = &route.rollout else { continue };
        let name = route_name(route);
        let candidate = candidate(config, route, &rollout.to);
        let versions = Versions { stable: stable(route, &rollout.to), candidate: &candidate };
        match RolloutPlan::new(&name, rollout, &versions) {
            Ok(plan) => plans.push(Arc::new(plan)),
            Err(e) => errors.push(format!("route `{name}`, rollout: {e}")),
        }
    }
    plans
}

/// True for the reference to a target.
pub(super) fn is_to(reference: &BackendRef, to: &str) -> bool {
    reference.name.as_deref().or(reference.model.as_deref()) == Some(to)
}

fn stable(route: &Route, to: &str) -> Vec<String> {
    let others = route.backend_refs.iter().filter(|reference| !is_to(reference, to));
    others.filter_map(|reference| reference.name.clone().or_else(|| reference.model.clone())).collect()
}

/// Configuration of a candidate. A value that cannot be written as JSON does not come from a file.
fn candidate(config: &Config, route: &Route, to: &str) -> Value {
    let is_model = route.backend_refs.iter().any(|reference| reference.model.as_deref() == Some(to));
    let written = if is_model {
        config.models.iter().find(|model| model.name == to).map(serde_json::to_value)
    } else {
        config.backends.iter().find(|backend| backend.name == to).map(serde_json::to_value)
    };
    written.and_then(Result::ok).unwrap_or_default()
}
