//! Policies of TLS towards the servers of services (`BackendTLSPolicy`). A service with a policy is never spoken to without TLS:
//! requests for one whose policy does not hold are refused.

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;
use serde_json::Value;
use spillway_config::schema::{BackendTls, PemAuthorities};

use super::matching::Unsupported;
use super::{Condition, Input, PolicyStatus, Translation};
use crate::discovery::objects::{Kind, Metadata, ObjectKey, PolicyTarget, PolicyValidation, Reference};
use crate::tls::{check_authorities_pem, is_server_name};

/// Kind, group, namespace and name of an object that policies are about.
type Subject = (String, String, ObjectKey);

/// Policy with its outcome.
struct Policy {
    status: PolicyStatus,
    /// TLS that it asks for; `None` where it cannot be served.
    tls: Option<BackendTls>,
}

/// All policies, the older ones first.
pub(super) struct Policies {
    all: Vec<Policy>,
    /// Policies of an object by the name of the port that they are about, `None` for all, in the order of precedence.
    of: BTreeMap<Subject, BTreeMap<Option<String>, Vec<usize>>>,
}

fn subject(group: &str, kind: &str, key: &ObjectKey) -> Subject {
    (kind.to_owned(), group.to_owned(), key.clone())
}

impl Policies {
    /// Reads and judges all policies. Of several about one port of one service the older one wins, then the first by name.
    pub(super) fn read(input: &Input<'_>) -> Self {
        let mut found: Vec<(Metadata, &ObjectKey, &Value)> = Vec::new();
        for (key, value) in input.objects.of(Kind::BackendTlsPolicy) {
            let metadata = value.get("metadata").and_then(|metadata| Metadata::deserialize(metadata).ok());
            found.push((metadata.unwrap_or_default(), key, value));
        }
        found.sort_by(|(a, one, _), (b, other, _)| (&a.creation_timestamp, one).cmp(&(&b.creation_timestamp, other)));
        let mut this = Self { all: Vec::new(), of: BTreeMap::new() };
        for (metadata, key, value) in found {
            this.add(input, key, metadata.generation, value);
        }
        this
    }

    fn add(&mut self, input: &Input<'_>, key: &ObjectKey, generation: i64, value: &Value) {
        let number = self.all.len();
        let written = value.pointer("/spec/targetRefs").and_then(Value::as_array).into_iter().flatten();
        let targets: Vec<PolicyTarget> = written.filter_map(|target| PolicyTarget::deserialize(target).ok()).collect();
        let mut judged = judge(input, key, value);
        let mut refuse = |reason, message: String| {
            if judged.accepted.holds {
                judged.accepted = Condition::no("Accepted", reason, message);
            }
        };
        for target in targets {
            let object = ObjectKey::new(&key.namespace, &target.name);
            let section = target.section_name.filter(|name| !name.is_empty());
            let of_object = self.of.entry(subject(&target.group, &target.kind, &object)).or_default();
            let known = of_object.entry(section.clone()).or_default();
            if !(target.group.is_empty() && target.kind == "Service") {
                refuse(
                    "Invalid",
                    format!("`targetRefs` names a {} of {:?}; expected a Service", target.kind, target.group),
                );
            } else if let Some(name) = section.as_deref().filter(|name| !has_port(input, &object, name)) {
                refuse("TargetNotFound", format!("service {object} has no port with the name {name}"));
            } else if let Some(first) = known.first().filter(|first| **first != number) {
                let first = self.all.get(*first).map(|policy| policy.status.key.to_string()).unwrap_or_default();
                let port = section.as_deref().map(|name| format!("port {name} of ")).unwrap_or_default();
                refuse("Conflicted", format!("policy {first} is about {port}service {object} too, and comes before"));
            }
            known.push(number);
        }
        let Judged { accepted, resolved, tls } = judged;
        let status = PolicyStatus { key: key.clone(), generation, ancestors: BTreeSet::new(), accepted, resolved };
        self.all.push(Policy { status, tls });
    }

    /// True if a policy is about a port of a service.
    pub(super) fn has(&self, service: &ObjectKey, port: &str) -> bool {
        self.of_service(service, port).is_some()
    }

    /// Policy of a port of a service: one about this port comes before one about all.
    fn of_service(&self, service: &ObjectKey, port: &str) -> Option<&Policy> {
        let all = self.of.get(&subject("", "Service", service))?;
        let first = all.get(&Some(port.to_owned())).or_else(|| all.get(&None))?.first();
        self.all.get(*first?)
    }

    /// TLS of a port of a service; `None` where no policy asks for it.
    ///
    /// # Errors
    /// The policy does not hold.
    pub(super) fn tls(&self, service: &ObjectKey, port: &str) -> Result<Option<&BackendTls>, Unsupported> {
        let Some(policy) = self.of_service(service, port) else { return Ok(None) };
        let broken = || format!("BackendTLSPolicy {} of service {service} does not hold", policy.status.key);
        policy.tls.as_ref().map(Some).ok_or_else(broken)
    }

    /// True if a policy is about another object than a service, where none can be served.
    pub(super) fn is_about(&self, group: &str, kind: &str, object: &ObjectKey) -> bool {
        self.of.contains_key(&subject(group, kind, object))
    }

    /// Notes that a route of a Gateway uses an object.
    pub(super) fn use_object(&mut self, (group, kind): (&str, &str), object: &ObjectKey, gateway: &ObjectKey) {
        let all = self.of.get(&subject(group, kind, object)).into_iter().flat_map(BTreeMap::values);
        for number in all.flatten() {
            if let Some(policy) = self.all.get_mut(*number) {
                policy.status.ancestors.insert(gateway.clone());
            }
        }
    }

    /// Writes the statuses.
    pub(super) fn finish(self, out: &mut Translation) {
        out.statuses.policies.extend(self.all.into_iter().map(|policy| policy.status));
    }
}

/// True if a service has a port of this name, or is not known: then nothing is said of its ports.
fn has_port(input: &Input<'_>, service: &ObjectKey, name: &str) -> bool {
    let Some(object) = input.objects.get(Kind::Service, service) else { return true };
    let ports = object.pointer("/spec/ports").and_then(Value::as_array).into_iter().flatten();
    ports.into_iter().any(|port| port.get("name").and_then(Value::as_str) == Some(name))
}

/// Outcome of a policy by itself.
struct Judged {
    accepted: Condition,
    resolved: Condition,
    tls: Option<BackendTls>,
}

fn judge(input: &Input<'_>, key: &ObjectKey, value: &Value) -> Judged {
    let resolved = Condition::yes("ResolvedRefs", "ResolvedRefs");
    let invalid = |message: String| Judged {
        accepted: Condition::no("Accepted", "Invalid", message),
        resolved: Condition::yes("ResolvedRefs", "ResolvedRefs"),
        tls: None,
    };
    let written = value.pointer("/spec/validation").unwrap_or(&Value::Null);
    let written = match PolicyValidation::deserialize(written) {
        Ok(written) => written,
        Err(e) => return invalid(format!("`validation` cannot be read: {e}")),
    };
    let has_options = value.pointer("/spec/options").and_then(Value::as_object).is_some_and(|all| !all.is_empty());
    if has_options {
        return invalid("`options` is not supported: remove it".to_owned());
    }
    if !written.subject_alt_names.is_empty() {
        let message = "`validation.subjectAltNames` is not supported: the certificate must have `validation.hostname`";
        return invalid(message.to_owned());
    }
    if !is_server_name(&written.hostname) {
        let message = format!("`validation.hostname` is {:?}; expected the name of a host", written.hostname);
        return invalid(message);
    }
    let tls = |authorities| BackendTls { sni: Some(written.hostname.clone()), authorities, ..BackendTls::default() };
    match (written.ca_certificate_refs.as_slice(), written.well_known_ca_certificates.as_deref()) {
        ([], Some("System")) => {
            Judged { accepted: Condition::yes("Accepted", "Accepted"), resolved, tls: Some(tls(None)) }
        }
        ([], Some(other)) if !other.is_empty() => {
            invalid(format!("`validation.wellKnownCACertificates` is {other:?}; expected System"))
        }
        ([], _) => invalid(
            "`validation` names no authorities: expected `caCertificateRefs`, or `wellKnownCACertificates: System`"
                .to_owned(),
        ),
        (_, Some(other)) if !other.is_empty() => {
            invalid("`validation` has both `caCertificateRefs` and `wellKnownCACertificates`: expected one".to_owned())
        }
        (references, _) => {
            let (mut pem, mut fault) = (Vec::new(), None);
            for reference in references {
                match authorities(input, key, reference) {
                    Ok(found) => {
                        pem.extend_from_slice(found.as_bytes());
                        pem.push(b'\n');
                    }
                    Err(found) => fault = fault.or(Some(found)),
                }
            }
            let accepted = if pem.is_empty() {
                let why = fault.as_ref().map(|fault| fault.message.as_str()).unwrap_or_default();
                Condition::no("Accepted", "NoValidCACertificate", format!("no authority can be used: {why}"))
            } else {
                Condition::yes("Accepted", "Accepted")
            };
            let given = (!pem.is_empty())
                .then(|| PemAuthorities { name: format!("the authorities of policy {key}"), pem: pem.into() });
            let tls = given.map(|given| tls(Some(given)));
            Judged { accepted, resolved: fault.unwrap_or(resolved), tls }
        }
    }
}

/// Authorities of a reference.
fn authorities<'i>(input: &Input<'i>, policy: &ObjectKey, reference: &Reference) -> Result<&'i str, Condition> {
    let (group, kind) =
        (reference.group.as_deref().unwrap_or_default(), reference.kind.as_deref().unwrap_or("ConfigMap"));
    if !group.is_empty() || kind != "ConfigMap" {
        let message =
            format!("`caCertificateRefs` names the {kind} {} of {group:?}; expected a ConfigMap", reference.name);
        return Err(Condition::no("ResolvedRefs", "InvalidKind", message));
    }
    let key = ObjectKey::new(&policy.namespace, &reference.name);
    let bad = |message: String| Condition::no("ResolvedRefs", "InvalidCACertificateRef", message);
    if !input.settings.ca_config_maps {
        let message = "ConfigMaps are not read: the configuration of the gateway lacks `caConfigMaps: true`";
        return Err(bad(message.to_owned()));
    }
    let map = input.objects.get(Kind::ConfigMap, &key).ok_or_else(|| bad(format!("there is no ConfigMap {key}")))?;
    let text = map.pointer("/data/ca.crt").and_then(Value::as_str);
    let text = text.ok_or_else(|| bad(format!("the ConfigMap {key} has no `ca.crt`")))?;
    let given = PemAuthorities { name: format!("`ca.crt` of ConfigMap {key}"), pem: text.as_bytes().into() };
    check_authorities_pem(&given).map_err(|e| bad(e.to_string()))?;
    Ok(text)
}
