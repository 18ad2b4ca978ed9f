//! Statuses as the API server keeps them. Conditions of others stay, and the time of a condition changes only when the
//! condition does: an object whose status is as it should be is not written.

use serde_json::{Value, json};

use super::objects::{Kind, ObjectKey, Objects};
use super::translate::{
    CONTROLLER, Condition, GatewayStatus, ListenerStatus, PolicyStatus, PoolStatus, RouteStatus, Statuses,
};

/// Longest message of a condition that the API server takes, in characters.
const MAX_MESSAGE: usize = 1_024;
/// Most parents of a status that the API server takes.
const MAX_PARENTS: usize = 32;
/// Most ancestors of a status that the API server takes.
const MAX_ANCESTORS: usize = 16;

/// Status to be written.
#[derive(Debug, Clone, PartialEq)]
pub struct StatusWrite {
    /// Kind of the object.
    pub kind: Kind,
    /// Object.
    pub key: ObjectKey,
    /// Version of the object that the status was made for.
    pub version: String,
    /// Whole status.
    pub status: Value,
}

/// Statuses that differ from those of the objects. `now` is the time in RFC 3339, `addresses` those of Gateways.
pub fn differing(objects: &Objects, wanted: &Statuses, addresses: &[String], now: &str) -> Vec<StatusWrite> {
    let mut writes = Vec::new();
    let mut add = |kind: Kind, key: &ObjectKey, make: &dyn Fn(&Value) -> Value| {
        let Some(object) = objects.get(kind, key) else { return };
        let before = object.get("status").cloned().unwrap_or_else(|| json!({}));
        let status = make(&before);
        if status != before {
            let version = object.pointer("/metadata/resourceVersion").and_then(Value::as_str).unwrap_or_default();
            writes.push(StatusWrite { kind, key: key.clone(), version: version.to_owned(), status });
        }
    };
    for class in &wanted.classes {
        add(Kind::GatewayClass, &class.key, &|before| {
            with(before, "conditions", conditions(before, &[&class.accepted], class.generation, now))
        });
    }
    for gateway in &wanted.gateways {
        add(Kind::Gateway, &gateway.key, &|before| of_gateway(before, gateway, addresses, now));
    }
    for route in &wanted.routes {
        add(route.kind, &route.key, &|before| of_route(before, route, now));
    }
    for kind in [Kind::HttpRoute, Kind::GrpcRoute] {
        for (key, object) in objects.of(kind) {
            // A route that has left its Gateways keeps no status of theirs.
            let has_status = wanted.routes.iter().any(|route| route.kind == kind && route.key == *key);
            let is_ours = |one: &Value| one.get("controllerName").and_then(Value::as_str) == Some(CONTROLLER);
            let parents = object.pointer("/status/parents").and_then(Value::as_array);
            if !has_status && parents.into_iter().flatten().any(is_ours) {
                let none =
                    RouteStatus { kind, key: key.clone(), generation: 0, parents: Vec::new(), parts: Vec::new() };
                add(kind, key, &|before| of_route(before, &none, now));
            }
        }
    }
    for pool in &wanted.pools {
        add(Kind::InferencePool, &pool.key, &|before| of_pool(before, pool, now));
    }
    for policy in &wanted.policies {
        add(Kind::BackendTlsPolicy, &policy.key, &|before| of_policy(before, policy, now));
    }
    writes
}

fn with(status: &Value, key: &str, value: Value) -> Value {
    let mut status = status.clone();
    if let Some(entries) = status.as_object_mut() {
        entries.insert(key.to_owned(), value);
    }
    status
}

/// Conditions of a status with those that are wanted in the places of the ones of their types.
fn conditions(before: &Value, wanted: &[&Condition], generation: i64, now: &str) -> Value {
    let mut all: Vec<Value> = before.get("conditions").and_then(Value::as_array).cloned().unwrap_or_default();
    for condition in wanted {
        let is_same = |one: &Value| one.get("type").and_then(Value::as_str) == Some(condition.kind);
        let known = all.iter().position(is_same);
        let status = if condition.holds { "True" } else { "False" };
        let since = known
            .and_then(|n| all.get(n))
            .filter(|one| one.get("status").and_then(Value::as_str) == Some(status))
            .and_then(|one| one.get("lastTransitionTime").cloned());
        let message: String = condition.message.chars().take(MAX_MESSAGE).collect();
        let written = json!({
            "type": condition.kind,
            "status": status,
            "reason": condition.reason,
            "message": message,
            "observedGeneration": generation,
            "lastTransitionTime": since.unwrap_or_else(|| now.into()),
        });
        match known.and_then(|n| all.get_mut(n)) {
            Some(known) if *known == written => {}
            Some(known) => *known = written,
            None => all.push(written),
        }
    }
    all.into()
}

fn of_gateway(before: &Value, gateway: &GatewayStatus, addresses: &[String], now: &str) -> Value {
    let own = conditions(before, &[&gateway.accepted, &gateway.programmed()], gateway.generation, now);
    let known = |name: &str| {
        let listeners = before.get("listeners").and_then(Value::as_array).into_iter().flatten();
        listeners.into_iter().find(|one| one.get("name").and_then(Value::as_str) == Some(name)).cloned()
    };
    let listener = |listener: &ListenerStatus| {
        let before = known(&listener.name).unwrap_or_else(|| json!({}));
        let wanted = [&listener.accepted, &listener.resolved, &listener.conflicted, &listener.programmed()];
        let kinds: Vec<Value> =
            listener.kinds.iter().map(|one| json!({"group": one.group, "kind": one.kind})).collect();
        json!({
            "name": listener.name,
            "supportedKinds": kinds,
            "attachedRoutes": listener.attached,
            "conditions": conditions(&before, &wanted, gateway.generation, now),
        })
    };
    let mut status = with(before, "conditions", own);
    status = with(&status, "listeners", gateway.listeners.iter().map(listener).collect());
    let address = |text: &String| {
        let kind = if text.parse::<std::net::IpAddr>().is_ok() { "IPAddress" } else { "Hostname" };
        json!({"type": kind, "value": text})
    };
    if !addresses.is_empty() || before.get("addresses").is_some() {
        status = with(&status, "addresses", addresses.iter().map(address).collect());
    }
    status
}

fn of_route(before: &Value, route: &RouteStatus, now: &str) -> Value {
    let parents: Vec<&Value> = before.get("parents").and_then(Value::as_array).into_iter().flatten().collect();
    let is_ours = |one: &Value| one.get("controllerName").and_then(Value::as_str) == Some(CONTROLLER);
    let mut all: Vec<Value> = parents.iter().filter(|one| !is_ours(one)).map(|one| (*one).clone()).collect();
    for parent in &route.parents {
        let known = parents.iter().find(|one| is_ours(one) && one.get("parentRef") == Some(&parent.parent));
        let before = known.map_or_else(|| json!({}), |one| (*one).clone());
        let conditions = conditions(&before, &[&parent.accepted, &parent.resolved], route.generation, now);
        all.push(json!({"parentRef": parent.parent, "controllerName": CONTROLLER, "conditions": conditions}));
    }
    all.truncate(MAX_PARENTS);
    with(before, "parents", all.into())
}

fn of_pool(before: &Value, pool: &PoolStatus, now: &str) -> Value {
    let parents: Vec<&Value> = before.get("parents").and_then(Value::as_array).into_iter().flatten().collect();
    // Entries of Gateways of other classes are those of their controllers.
    let is_ours = |one: &Value| one.get("controllerName").and_then(Value::as_str) == Some(CONTROLLER);
    let mut all: Vec<Value> = parents.iter().filter(|one| !is_ours(one)).map(|one| (*one).clone()).collect();
    for gateway in &pool.parents {
        let reference = json!({
            "group": super::objects::GATEWAY_GROUP, "kind": "Gateway", "namespace": gateway.namespace, "name": gateway.name,
        });
        let known = parents.iter().find(|one| is_ours(one) && one.get("parentRef") == Some(&reference));
        let before = known.map_or_else(|| json!({}), |one| (*one).clone());
        let conditions = conditions(&before, &[&pool.accepted, &pool.resolved], pool.generation, now);
        all.push(json!({"parentRef": reference, "controllerName": CONTROLLER, "conditions": conditions}));
    }
    all.truncate(MAX_PARENTS);
    with(before, "parents", all.into())
}

fn of_policy(before: &Value, policy: &PolicyStatus, now: &str) -> Value {
    let ancestors: Vec<&Value> = before.get("ancestors").and_then(Value::as_array).into_iter().flatten().collect();
    let is_ours = |one: &Value| one.get("controllerName").and_then(Value::as_str) == Some(CONTROLLER);
    // A policy that no Gateway of ours uses is nobody's here.
    if policy.ancestors.is_empty() && !ancestors.iter().any(|one| is_ours(one)) {
        return before.clone();
    }
    let mut all: Vec<Value> = ancestors.iter().filter(|one| !is_ours(one)).map(|one| (*one).clone()).collect();
    for gateway in &policy.ancestors {
        let reference = json!({
            "group": super::objects::GATEWAY_GROUP, "kind": "Gateway", "namespace": gateway.namespace, "name": gateway.name,
        });
        let known = ancestors.iter().find(|one| is_ours(one) && one.get("ancestorRef") == Some(&reference));
        let before = known.map_or_else(|| json!({}), |one| (*one).clone());
        let conditions = conditions(&before, &[&policy.accepted, &policy.resolved], policy.generation, now);
        all.push(json!({"ancestorRef": reference, "controllerName": CONTROLLER, "conditions": conditions}));
    }
    all.truncate(MAX_ANCESTORS);
    with(before, "ancestors", all.into())
}
