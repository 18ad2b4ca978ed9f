//! A planted secret is found nowhere. Every place of the configuration and of a request that may hold a secret gets one of
//! its own, requests and edits meet every kind of success and fault, and all that the gateway wrote is searched for them.
//!
//! The log is read at its level `debug`, and where little happens at `trace`.
//!
//! Not tried here: memory (a dump of the process holds what the process uses), and a panic, which no request is known to
//! cause.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::{Command, Output};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use bytes::Bytes;
use serde_json::{Value, json};
use spillway_tests::{
    Answer, Authority, Client, Collector, Gateway, Issuer, IssuerKey, Pebble, Planted, Redis, Secure, Sighting,
    Upstream, binary, eventually, free_port, new_key, plain_module, reply,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// Strings of the configuration that may hold a secret: through `${NAME}`, or as a part of a URL. Strings of the type
/// `Secret` and digests of keys are found by their type.
const MAY_HOLD_SECRETS: &[&str] = &[
    "listeners[].tls.acme.directory",
    "backends[].healthCheck.http.path",
    "backends[].capacity.queueDepth.metricsPath",
    "authentication.jwt[].jwks.url",
    "routes[].matches[].headers[].exact",
    "routes[].matches[].headers[].regex",
    "routes[].matches[].queryParams[].exact",
    "routes[].matches[].queryParams[].regex",
    "routes[].matches[].when",
    "signals{}.keywords[]",
    "routes[].filters[].authorize",
    "routes[].filters[].cel.deny",
    "routes[].filters[].fault.when",
    "routes[].filters[].guard.patterns[].regex",
    "routes[].filters[].promptTemplate.variables{}",
    "routes[].filters[].transform.when",
    "routes[].filters[].transform.request.prependSystem",
    "routes[].filters[].transform.request.appendSystem",
    "routes[].filters[].externalAuthorization.url",
    "routes[].filters[].rateLimit.by.value",
    "routes[].filters[].requestHeaders.set{}",
    "routes[].filters[].requestHeaders.add{}",
    "routes[].filters[].respond.body",
    "routes[].filters[].respond.headers{}",
    "routes[].filters[].responseHeaders.set{}",
    "routes[].filters[].responseHeaders.add{}",
    "routes[].filters[].urlRewrite.replacePrefix",
    "routes[].filters[].wasm.calls{}",
    "routes[].backendRefs[].filters[].requestHeaders.set{}",
    "routes[].backendRefs[].filters[].requestHeaders.add{}",
    "routes[].backendRefs[].filters[].responseHeaders.set{}",
    "routes[].backendRefs[].filters[].responseHeaders.add{}",
    "routes[].filters[].requestHeaders.set{}.value",
    "routes[].filters[].requestHeaders.add{}.value",
    "routes[].filters[].responseHeaders.set{}.value",
    "routes[].filters[].responseHeaders.add{}.value",
    "routes[].backendRefs[].filters[].requestHeaders.set{}.value",
    "routes[].backendRefs[].filters[].requestHeaders.add{}.value",
    "routes[].backendRefs[].filters[].responseHeaders.set{}.value",
    "routes[].backendRefs[].filters[].responseHeaders.add{}.value",
    "routes[].filters[].cache.key",
    "routes[].filters[].cache.when",
    "routes[].filters[].guard.when",
    "routes[].filters[].mirror.when",
    "routes[].filters[].rateLimit.cost",
    "routes[].spill.when",
    "telemetry.logs.fields[].value",
    "telemetry.tracing.attributes[].value",
    "notifications[].webhook.url",
    "routes[].rollout.steps[].gate.url",
    "telemetry.tracing.otlp.endpoint",
    "telemetry.logs.otlp.endpoint",
];

/// Files of the configuration whose content is secret.
const SECRET_FILES: &[&str] = &[
    "listeners[].tls.certificates[].keyFile",
    "backends[].tls.clientCertificate.keyFile",
    "consumers[].keysFile",
    "routes[].filters[].promptTemplate.file",
    "routes[].filters[].basicAuth.usersFile",
];

/// Strings and files of the configuration that hold no secret: names, which logs and metrics show, words of HTTP, words of
/// the language, paths of files, and files that are public.
const NO_SECRETS: &[&str] = &[
    "include[]",
    "batch.listener",
    "batch.store",
    "discovery.kubernetes.gatewayClass",
    "discovery.kubernetes.namespaces[]",
    "discovery.kubernetes.spillTo",
    "discovery.kubernetes.address",
    "discovery.kubernetes.publishedAddresses[]",
    // Its content goes to the client of the API server alone.
    "discovery.kubernetes.kubeconfig",
    "discovery.kubernetes.leaderElection.namespace",
    "discovery.kubernetes.leaderElection.name",
    "listeners[].name",
    "listeners[].healthPath",
    "listeners[].tls.certificates[].certFile",
    "listeners[].tls.acme.domains[]",
    "listeners[].tls.acme.email",
    "listeners[].tls.acme.storage",
    "listeners[].tls.acme.caFile",
    "listeners[].tls.acme.externalAccount.keyId",
    "listeners[].tls.clientCertificates.caFile",
    "admin.hosts[]",
    "admin.oidc.issuer",
    "admin.oidc.clientId",
    "admin.oidc.publicUrl",
    "admin.oidc.scopes[]",
    "admin.oidc.allow[].claim",
    "admin.oidc.allow[].values[]",
    "admin.oidc.name",
    "admin.oidc.caFile",
    "admin.tracesUrl",
    "telemetry.logs.headers[]",
    "telemetry.logs.redactHeaders[]",
    "backends[].name",
    "backends[].endpoints[].url",
    "backends[].endpointsFile",
    "backends[].model",
    "backends[].credentials.header",
    "backends[].dropFields[]",
    "backends[].models[]",
    "backends[].modelList.path",
    "backends[].loadBalancing.hashOn.header",
    "backends[].loadBalancing.hashOn.cookie",
    "backends[].healthCheck.grpc.service",
    "backends[].healthCheck.completion.model",
    "backends[].capacity.queueDepth.metric",
    "backends[].capacity.kvCache.metric",
    "backends[].tls.sni",
    "consumers[].credentials{}.header",
    "backends[].tls.caFile",
    "backends[].tls.clientCertificate.certFile",
    "models[].name",
    "models[].source",
    "models[].device.name",
    "consumers[].name",
    "consumers[].tenant",
    "consumers[].jwt.issuer",
    "consumers[].jwt.subject",
    "consumers[].mtls.identities[]",
    "consumers[].models[]",
    "consumers[].modelAlias{}",
    "tenants[].name",
    "authentication.apiKey.headers[]",
    "authentication.jwt[].issuer",
    "authentication.jwt[].audiences[]",
    "authentication.jwt[].jwks.file",
    "authentication.jwt[].caFile",
    "authentication.jwt[].claims.consumer",
    "authentication.jwt[].claims.tenant",
    "authentication.jwt[].claims.plan",
    "authentication.identityHeaders.consumer",
    "authentication.identityHeaders.tenant",
    "prices[].model",
    "feedback.listener",
    "feedback.path",
    "feedback.scopes[]",
    // Texts as callers write them; the model that reads them is not loaded here.
    "signals{}.examples[]",
    "signals{}.examples{}[]",
    "signals{}.model",
    "signals{}.classifier.model",
    "signals{}.classifier.labels[]",
    "routes[].name",
    "routes[].listeners[]",
    "routes[].hostnames[]",
    "routes[].matches[].path.exact",
    "routes[].matches[].path.prefix",
    "routes[].matches[].path.regex",
    "routes[].matches[].method",
    "routes[].matches[].headers[].name",
    "routes[].matches[].queryParams[].name",
    "routes[].matches[].model",
    "routes[].access.consumers[]",
    "routes[].access.tenants[]",
    "routes[].access.scopes[]",
    "routes[].filters[].basicAuth.realm",
    "routes[].filters[].cel.message",
    "routes[].filters[].clientAddress.allowFiles[]",
    "routes[].filters[].clientAddress.denyFiles[]",
    "routes[].filters[].clientAddress.countries.database",
    "routes[].filters[].clientAddress.countries.allow[]",
    "routes[].filters[].clientAddress.countries.deny[]",
    "routes[].filters[].userAgent.deny[]",
    "routes[].filters[].userAgent.denyFiles[]",
    "routes[].filters[].userAgent.except[]",
    "routes[].filters[].compression.types[]",
    "routes[].filters[].cors.allowOrigins[]",
    "routes[].filters[].cors.allowMethods[]",
    "routes[].filters[].cors.allowHeaders[]",
    "routes[].filters[].cors.exposeHeaders[]",
    "routes[].filters[].externalAuthorization.forwardHeaders[]",
    "routes[].filters[].externalProcessing.url",
    "routes[].filters[].externalProcessing.hiddenHeaders[]",
    "routes[].filters[].externalProcessing.requestAttributes[]",
    "routes[].filters[].externalAuthorization.copyToRequest[]",
    "routes[].filters[].externalAuthorization.copyToAnswer[]",
    "routes[].filters[].guard.patterns[].name",
    "routes[].filters[].guard.classifier.model",
    "routes[].filters[].methods.jsonRpc.allow[]",
    "routes[].filters[].methods.jsonRpc.tools[]",
    "routes[].filters[].validate.request.file",
    "routes[].filters[].validate.response.file",
    "routes[].filters[].transform.request.move{}",
    "routes[].filters[].transform.request.remove[]",
    "routes[].filters[].transform.response.move{}",
    "routes[].filters[].transform.response.remove[]",
    "routes[].filters[].mirror.backend",
    "routes[].filters[].cache.semantic.model",
    "routes[].filters[].publicLocation.host",
    "routes[].filters[].publicLocation.internal[]",
    "routes[].filters[].rateLimit.by.header",
    "routes[].filters[].redirect.hostname",
    "routes[].filters[].redirect.path",
    "routes[].filters[].redirect.replacePrefix",
    "routes[].filters[].requestHeaders.remove[]",
    "routes[].filters[].responseHeaders.remove[]",
    "routes[].filters[].urlRewrite.hostname",
    "routes[].filters[].urlRewrite.path",
    "routes[].filters[].urlRewrite.path.regex",
    "routes[].filters[].urlRewrite.path.replacement",
    "routes[].filters[].wasm.module",
    "routes[].filters[].wasm.rootId",
    "routes[].backendRefs[].name",
    "routes[].backendRefs[].model",
    "routes[].backendRefs[].filters[].requestHeaders.remove[]",
    "routes[].backendRefs[].filters[].responseHeaders.remove[]",
    "routes[].modelAlias{}",
    "routes[].sticky.header",
    "routes[].whenSaturated.spillTo",
    "routes[].whenUnavailable.spillTo",
    "routes[].upgrades[]",
    "routes[].retry.on[]",
    "routes[].quality.reference.file",
    "routes[].quality.embedding",
    "routes[].quality.probes.file",
    "routes[].quality.probes.embedding",
    "routes[].spill.models[]",
    "telemetry.logs.fields[].name",
    "telemetry.tracing.attributes[].name",
    "routes[].spill.tenants[]",
    "notifications[].webhook.caFile",
    "routes[].rollout.to",
    "routes[].rollout.within.timeZone",
    "routes[].rollout.abortWhen.costPerRequest",
    "routes[].rollout.abortWhen.errorRate",
    "routes[].rollout.abortWhen.feedback",
    "routes[].rollout.abortWhen.firstTokenMean",
    "routes[].rollout.abortWhen.firstTokenP50",
    "routes[].rollout.abortWhen.firstTokenP95",
    "routes[].rollout.abortWhen.firstTokenP99",
    "routes[].rollout.abortWhen.latencyMean",
    "routes[].rollout.abortWhen.latencyP50",
    "routes[].rollout.abortWhen.latencyP95",
    "routes[].rollout.abortWhen.latencyP99",
    "routes[].rollout.abortWhen.outputDrift",
    "routes[].rollout.abortWhen.outputTokens",
    "routes[].rollout.abortWhen.refusalRate",
    "routes[].rollout.abortWhen.shadowDifference",
    "routes[].rollout.abortWhen.spillRate",
    "routes[].rollout.abortWhen.structuredOutputErrors",
    "routes[].rollout.abortWhen.tokensPerSecond",
    "routes[].rollout.abortWhen.toolCallErrors",
    "routes[].rollout.abortWhen.truncationRate",
    "routes[].rollout.shadow.embedding",
    "routes[].rollout.steps[].pause",
    "routes[].rollout.within.hours",
    "state.store",
    "state.store.redis.url",
    "state.store.redis.caFile",
    "state.store.redis.keyPrefix",
    "state.budgets.sqlite",
    "state.quality.folder",
    "state.cache.redis.url",
    "state.cache.redis.caFile",
    "state.cache.redis.keyPrefix",
    "state.limits.redis.url",
    "state.limits.redis.caFile",
    "state.limits.redis.keyPrefix",
];

/// Sightings that are meant: a prefix of the secret's place, a prefix of the output's name, and the reason.
const ALLOWED: &[(&str, &str, &str)] = &[
    ("backends[].credentials.bearer", "server x", "the server gets the credential of its backend"),
    ("backends[].credentials.secret", "server copies", "the server gets the credential of its backend"),
    ("consumers[].credentials{}.bearer", "server x", "the server gets the credential of the consumer"),
    ("backends[].healthCheck.http.path", "server x", "the server gets its health check"),
    ("backends[].capacity.queueDepth.metricsPath", "server x", "the server's metrics are asked for"),
    ("routes[].filters[].requestHeaders.", "server x", "the server gets the headers that are set for it"),
    ("routes[].filters[].requestHeaders.", "server copies", "so does the server of copies"),
    ("routes[].backendRefs[].filters[].requestHeaders.", "server x", "the server gets the headers that are set for it"),
    ("routes[].backendRefs[].filters[].responseHeaders.", "answers", "the caller gets the headers that are set for it"),
    ("routes[].filters[].urlRewrite.replacePrefix", "server x", "the server gets the path that is written for it"),
    ("routes[].filters[].urlRewrite.replacePrefix", "server copies", "so does the server of copies"),
    ("routes[].rollout.steps[].gate.url", "server x", "the gate is asked at its URL"),
    ("notifications[].webhook.url", "server x", "the receiver is called at its URL"),
    ("routes[].filters[].externalAuthorization.url", "server judge", "the server that judges is asked at its URL"),
    ("routes[].filters[].respond.", "answers", "the caller gets the answer that the file has for it"),
    ("routes[].filters[].responseHeaders.", "answers", "the caller gets the headers that are set for it"),
    ("variable OTEL_EXPORTER_OTLP_HEADERS", "collector", "the collector gets its headers"),
    ("caller: query", "server x", "the server gets the caller's query"),
    ("caller: query", "server judge", "the server that judges sees the query"),
    ("caller: query", "server copies", "the server of copies gets the query"),
    ("caller: body", "server x", "the server gets the caller's body"),
    ("caller: body", "server copies", "the server of copies gets the body"),
    ("caller: cookie", "server x", "the server gets the caller's cookie"),
    ("caller: trailer", "server x", "the server gets the caller's trailers"),
    ("caller: header", "server x", "the server gets the caller's other headers"),
    ("caller: header", "server copies", "the server of copies gets them"),
    ("caller: header", "answers", "the server repeats them in an error"),
    ("routes[].matches[].headers[].exact", "server", "the caller sent it in a header"),
    ("routes[].matches[].headers[].exact", "answers", "the server repeats it in an error"),
    ("caller: authorization", "server judge", "`forwardHeaders` has it by default"),
    ("server: ", "answers", "the caller gets the server's answer"),
    (
        "key that the gateway made for ACME",
        "file acme/",
        "the folder holds the account and the certificate with their keys",
    ),
];

/// Everything that is planted, and what a process needs for it.
struct Bed {
    planted: Planted,
    variables: Vec<(String, String)>,
    folder: tempfile::TempDir,
    outputs: Vec<(String, Vec<u8>)>,
}

impl Bed {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        Self { planted: Planted::default(), variables: Vec::new(), folder, outputs: Vec::new() }
    }

    /// Plants a secret in a variable and returns the variable's name.
    fn variable(&mut self, place: &str) -> String {
        let value = self.planted.plant(place);
        self.set(value)
    }

    fn set(&mut self, value: String) -> String {
        let name = format!("PLANTED_{}", self.variables.len());
        self.variables.push((name.clone(), value));
        name
    }

    /// The secret that was planted first in a place.
    fn secret(&self, place: &str) -> String {
        self.planted.all().iter().find(|secret| secret.place == place).unwrap().value.clone()
    }

    /// A secret of the type `Secret`, by a variable.
    fn env(&mut self, place: &str) -> Value {
        json!({"env": self.variable(place)})
    }

    /// A secret of the type `Secret`, by a file.
    fn file(&mut self, place: &str) -> Value {
        let value = self.planted.plant(place);
        // The one that is written in base64url.
        let value = if place.ends_with(".hmacKey") { URL_SAFE_NO_PAD.encode(value) } else { value };
        let name = format!("secret-{}", self.planted.places().count());
        std::fs::write(self.folder.path().join(&name), format!("{value}\n")).unwrap();
        json!({"file": name})
    }

    /// A reference to a variable, for a string.
    fn reference(&mut self, place: &str) -> String {
        format!("${{{}}}", self.variable(place))
    }

    /// A certificate with its key, whose lines are secret.
    fn certificate(&mut self, authority: &Authority, place: &str, name: &str) -> (String, String) {
        let made = authority.server(&["secure.test", "127.0.0.1"]);
        made.write(self.folder.path(), name);
        self.pem(place, &made.key);
        (format!("{name}.pem"), format!("{name}.key"))
    }

    /// Adds the lines of a PEM file that are long enough to be found.
    fn pem(&mut self, place: &str, text: &str) {
        // The first line of a key has its type, which is the same in all of them.
        for line in text.lines().filter(|line| line.len() >= 40 && !line.starts_with('-')).skip(1) {
            self.planted.add(place, line);
        }
    }

    fn keep(&mut self, output: &str, bytes: impl Into<Vec<u8>>) {
        self.outputs.push((output.to_owned(), bytes.into()));
    }

    /// Keeps an answer that a caller got for what it did.
    fn answer(&mut self, what: &str, answer: &Answer) {
        let head = format!("{} {:?}\n", answer.status, answer.headers).into_bytes();
        self.keep(&format!("answers: {what}"), [head, answer.body.to_vec()].concat());
    }

    /// Keeps what the admin address answered.
    fn answer_of_admin(&mut self, what: &str, answer: &Answer) {
        self.keep(&format!("admin: {what}"), format!("{answer:?} {}", answer.text()));
    }

    /// Value of a secret that was planted in a variable or a file.
    fn value(&self, secret: &Value) -> String {
        match secret["env"].as_str() {
            Some(name) => self.variables.iter().find(|(known, _)| known == name).unwrap().1.clone(),
            None => std::fs::read_to_string(self.folder.path().join(secret["file"].as_str().unwrap()))
                .unwrap()
                .trim()
                .to_owned(),
        }
    }

    /// Keeps what a server saw, and its name.
    fn server(&mut self, name: &str, server: &Upstream) {
        let seen = server.seen.lock().unwrap().clone();
        for seen in seen {
            let head = format!("{} {} {:?} {:?}\n", seen.method, seen.path, seen.headers, seen.trailers).into_bytes();
            self.keep(&format!("server {name}"), [head, seen.body.to_vec()].concat());
        }
    }

    /// Runs the program in a folder and keeps what it prints.
    fn run(&mut self, folder: &Path, arguments: &[&str], variables: &[(&str, &str)]) -> Output {
        let mut command = Command::new(binary());
        command.args(arguments).current_dir(folder).envs(self.variables.clone()).env("SPILLWAY_LOG", "debug");
        let out = command.envs(variables.iter().copied()).stdin(std::process::Stdio::null()).output().unwrap();
        let what = format!("printed: {}", arguments.join(" "));
        self.keep(&what, [out.stdout.clone(), out.stderr.clone()].concat());
        out
    }

    /// Starts the gateway with its standard error in a file.
    async fn start(&mut self, document: &Value, level: &str) -> Gateway {
        let mut command = Command::new("sh");
        command.args(["-c", "exec \"$0\" \"$@\" 2>>standard-error"]).arg(binary());
        command.envs(self.variables.clone()).env("SPILLWAY_LOG", level);
        let folder = std::mem::replace(&mut self.folder, tempfile::tempdir().unwrap());
        std::fs::write(folder.path().join("spillway.yaml"), yaml(document)).unwrap();
        let judged = self.run(folder.path(), &["check", "spillway.yaml"], &[]);
        assert!(judged.status.success(), "{}", String::from_utf8_lossy(&judged.stderr));
        Gateway::start_by(command, folder, &yaml(document)).await
    }

    /// Asserts that nothing was seen that is not allowed, and that everything was seen that is.
    fn judge(&self, is_complete: bool) {
        let (mut unused, mut wrong): (BTreeSet<_>, Vec<&Sighting>) = (ALLOWED.iter().collect(), Vec::new());
        let sightings = self.planted.search(&self.outputs);
        for sighting in &sightings {
            let meant =
                |row: &&&(&str, &str, &str)| sighting.place.starts_with(row.0) && sighting.output.starts_with(row.1);
            match ALLOWED.iter().find(|row| meant(&row)) {
                Some(row) => _ = unused.remove(row),
                None => wrong.push(sighting),
            }
        }
        let seen: Vec<String> = wrong.iter().map(|sighting| format!("{sighting:?}")).collect();
        assert!(wrong.is_empty(), "{} sightings of secrets:\n{}", seen.len(), seen.join("\n"));
        assert!(!is_complete || unused.is_empty(), "nothing was seen of what is allowed: {unused:?}");
    }
}

/// A document in YAML: each key at the top with its value in flow style, over several lines.
fn yaml(document: &Value) -> String {
    let mut text = String::new();
    for (key, value) in document.as_object().unwrap() {
        let value = serde_json::to_string_pretty(value).unwrap().replace('\n', "\n  ");
        text.push_str(&format!("{key}:\n  {value}\n"));
    }
    text
}

/// Kinds of strings in the schema, by their paths.
fn strings() -> BTreeMap<String, String> {
    let out = Command::new(binary()).arg("schema").output().unwrap();
    let schema: Value = serde_json::from_slice(&out.stdout).unwrap();
    let mut found = BTreeMap::new();
    walk(&schema, &schema, "", &mut found);
    found
}

fn walk(root: &Value, schema: &Value, path: &str, found: &mut BTreeMap<String, String>) {
    if let Some(reference) = schema["$ref"].as_str() {
        let name = reference.rsplit('/').next().unwrap();
        if name == "Secret" {
            found.insert(path.to_owned(), "secret".to_owned());
            return;
        }
        return walk(root, &root["$defs"][name], path, found);
    }
    for branch in ["oneOf", "anyOf"].iter().flat_map(|key| schema[key].as_array().into_iter().flatten()) {
        walk(root, branch, path, found);
    }
    let kind = &schema["type"];
    let is_string = kind == "string" || kind.as_array().is_some_and(|kinds| kinds.contains(&json!("string")));
    if is_string && schema["enum"].is_null() && schema["const"].is_null() {
        found.insert(path.to_owned(), schema["format"].as_str().unwrap_or("text").to_owned());
    }
    for (key, property) in schema["properties"].as_object().into_iter().flatten() {
        let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
        walk(root, property, &path, found);
    }
    if schema["items"].is_object() {
        walk(root, &schema["items"], &format!("{path}[]"), found);
    }
    if schema["additionalProperties"].is_object() {
        walk(root, &schema["additionalProperties"], &format!("{path}{{}}"), found);
    }
}

/// Paths of a document, written as those of the schema, with the JSON pointers to their values.
fn paths(value: &Value, path: &str, pointer: &str, found: &mut Vec<(String, String)>) {
    found.push((path.to_owned(), pointer.to_owned()));
    match value {
        Value::Array(items) => {
            for (n, item) in items.iter().enumerate() {
                paths(item, &format!("{path}[]"), &format!("{pointer}/{n}"), found);
            }
        }
        Value::Object(entries) => {
            for (key, value) in entries {
                let pointer = format!("{pointer}/{}", key.replace('~', "~0").replace('/', "~1"));
                let named = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                paths(value, &named, &pointer, found);
                // A mapping from names, as the schema writes it.
                paths(value, &format!("{path}{{}}"), &pointer, found);
            }
        }
        _ => {}
    }
}

fn places(document: &Value) -> Vec<(String, String)> {
    let mut found = Vec::new();
    paths(document, "", "", &mut found);
    found
}

/// Values of this path that hold something planted: a reference, a secret, a digest.
fn has_planted(document: &Value, bed: &Bed, path: &str) -> bool {
    let values = places(document).into_iter().filter(|(at, _)| at == path);
    let mut texts = values.map(|(_, pointer)| document.pointer(&pointer).unwrap().to_string());
    let is_file = SECRET_FILES.contains(&path) && bed.planted.places().any(|place| place == path);
    texts.any(|text| is_file || text.contains("PLANTED_") || text.contains("secret-") || bed.planted.is_in(&text))
}

/// Servers of the working configuration.
struct World {
    server: Upstream,
    copies: Upstream,
    judge: Upstream,
    issuer: Issuer,
    signing: IssuerKey,
    collector: Collector,
    redis: Redis,
    pebble: Pebble,
    nobody: String,
    ports: (u16, u16),
    digest: String,
}

impl World {
    async fn start(bed: &mut Bed) -> Self {
        let (cookie, body) = (bed.planted.plant("server: cookie"), bed.planted.plant("server: body"));
        let server = Upstream::start(move |seen| {
            let (cookie, body) = (format!("session={cookie}"), body.clone());
            async move {
                let asked = seen.headers.get("x-want").map_or("", |value| value.to_str().unwrap());
                let told = seen.headers.get("authorization").map_or("", |value| value.to_str().unwrap());
                // Every header comes back in an error, as frameworks print requests that they cannot serve.
                let mut repeated = format!("cannot serve {told}");
                for (name, value) in seen.headers.iter().filter(|(name, _)| *name != "cookie") {
                    repeated.push_str(&format!("; {name}: {}", String::from_utf8_lossy(value.as_bytes())));
                }
                match asked {
                    "error" => Some(reply(500, &[("x-repeated", told), ("content-type", "text/plain")], repeated)),
                    "full" => Some(reply(429, &[("content-type", "text/plain")], repeated)),
                    "nothing" => None,
                    _ => Some(reply(200, &[("set-cookie", &cookie)], format!("waiting 1\n{body}"))),
                }
            }
        })
        .await;
        let asked = AtomicUsize::new(0);
        let judge = Upstream::start(move |_| {
            let status = [200, 200, 200, 403, 500][asked.fetch_add(1, Ordering::Relaxed) % 5];
            async move { Some(reply(status, &[], "judged")) }
        })
        .await;
        let (issuer, signing) = (Issuer::start().await, IssuerKey::new("one"));
        issuer.shows(&[&signing]);
        let password = bed.planted.plant("state.limits.redis.password");
        let redis = Redis::start_with_password(&password);
        bed.set(password);
        // An authority that takes challenges at a port of its own.
        let ports = (free_port(), free_port());
        let raw = bed.planted.plant("listeners[].tls.acme.externalAccount.hmacKey");
        let key = URL_SAFE_NO_PAD.encode(raw);
        let mut pebble = Pebble::new(ports.0, ports.1, 86_400, Some(("customer", &key)));
        pebble.run().await;
        bed.set(key);
        let (key, digest) = new_key();
        bed.planted.add("caller: key", &key);
        bed.planted.add("consumers[].keys[].sha256", &digest);
        Self {
            server,
            copies: Upstream::fixed(200, "copied").await,
            judge,
            issuer,
            signing,
            collector: Collector::start().await,
            redis,
            pebble,
            nobody: Upstream::nobody().await,
            ports,
            digest,
        }
    }
}

/// `admin.oidc` with this issuer and this secret at it.
fn login(issuer: &str, secret: Value) -> Value {
    json!({
        "issuer": issuer, "clientId": "spillway", "clientSecret": secret, "publicUrl": "http://127.0.0.1:9901",
        "allow": [{"claim": "groups", "values": ["operators"]}],
    })
}

/// A configuration that works, with a secret in every place that may hold one.
fn working(bed: &mut Bed, world: &World, authority: &Authority) -> Value {
    // The two that the servers had to know first.
    let (redis, hmac) = (bed.variables[0].0.clone(), bed.variables[1].0.clone());
    let (server, client) = files_of_the_configuration(bed, world, authority);
    let (asked, answers) = routes_with_secrets(bed, world);
    let route = |name: &str, backend: &str| json!({"name": name, "matches": [{"path": {"prefix": format!("/{name}")}}], "backendRefs": [{"name": backend}]});
    let keys = format!("{}/keys?key={}", world.issuer.url(), bed.reference("authentication.jwt[].jwks.url"));
    let probe = format!("/health?key={}", bed.reference("backends[].healthCheck.http.path"));
    let metrics = format!("/metrics?key={}", bed.reference("backends[].capacity.queueDepth.metricsPath"));
    json!({
        "include": ["routes.d/*.yaml"],
        "listeners": [
            {"name": "plain", "address": "127.0.0.1:0"},
            {"name": "secure", "address": "127.0.0.1:0", "protocol": "https", "tls": {
                "certificates": [{"certFile": server.0, "keyFile": server.1}],
                "clientCertificates": {"caFile": "ca.pem", "mode": "optional"},
            }},
            {"name": "challenges", "address": format!("127.0.0.1:{}", world.ports.0)},
            {"name": "ordered", "address": format!("127.0.0.1:{}", world.ports.1), "protocol": "https", "tls": {"acme": {
                "directory": world.pebble.directory, "caFile": "pebble-ca.pem", "domains": ["a.test"], "storage": "acme",
                "externalAccount": {"keyId": "customer", "hmacKey": {"env": hmac}}, "retry": {"base": "300ms", "max": "2s"},
            }}},
        ],
        "admin": {"address": "127.0.0.1:0", "token": bed.env("admin.token"), "playground": true,
            "oidc": login(&world.issuer.url(), bed.env("admin.oidc.clientSecret"))},
        "backends": [
            {"name": "x", "protocol": "openai", "endpoints": [{"url": world.server.url()}],
             "credentials": {"bearer": bed.env("backends[].credentials.bearer")},
             "outlierDetection": {"consecutiveErrors": 1000, "errorRate": 0},
             "capacity": {"queueDepth": {"metricsPath": metrics, "metric": "waiting", "max": 1000, "interval": "1s"}, "statuses": []},
             "healthCheck": {"http": {"path": probe}, "interval": "1s"}},
            {"name": "far", "endpoints": [{"url": world.nobody.replace("http:", "https:")}],
             "credentials": {"header": "x-far-token", "secret": bed.file("backends[].credentials.secret of a file")}, "tls": {
                "caFile": "ca.pem", "clientCertificate": {"certFile": client.0, "keyFile": client.1}}},
            {"name": "gone", "endpoints": [{"url": world.nobody}], "credentials": {"bearer": bed.file("backends[].credentials.bearer of a file")}},
            {"name": "copies", "endpoints": [{"url": world.copies.url()}],
             "credentials": {"header": "x-copies-token", "secret": bed.env("backends[].credentials.secret")}},
        ],
        "consumers": [
            {"name": "acme", "keys": [{"sha256": world.digest}], "limits": {"requests": "10000/s"}},
            {"name": "other", "keysFile": "acme.keys", "credentials": {
                "x": {"bearer": bed.file("consumers[].credentials{}.bearer")},
                "far": {"header": "x-far-token", "secret": bed.file("consumers[].credentials{}.secret")},
            }},
        ],
        "authentication": {"jwt": [{
            "issuer": world.issuer.url(), "audiences": ["spillway"], "claims": {"consumer": "sub"}, "jwks": {"url": keys},
        }]},
        "notifications": [{"webhook": {
            "url": format!("{}/hook/{}", world.server.url(), bed.reference("notifications[].webhook.url")),
            "secret": bed.env("notifications[].webhook.secret"), "retry": {"base": "100ms"},
        }, "events": ["rollout"]}],
        "state": {
            "limits": {"redis": {
                "url": format!("redis://127.0.0.1:{}", world.redis.port), "password": {"env": redis}, "timeout": "500ms",
            }},
            // The same server, which has one password.
            "cache": {"redis": {"url": format!("redis://127.0.0.1:{}", world.redis.port), "password": {"env": redis}}},
            "store": {"redis": {"url": format!("redis://127.0.0.1:{}", world.redis.port), "password": {"env": redis}}},
        },
        "telemetry": {
            "tracing": {"otlp": {"endpoint": world.collector.url()},
                "attributes": [{"name": "odd", "value": compared(bed, "telemetry.tracing.attributes[].value")}]},
            "audit": {"perAddress": "6000/min"},
            "logs": {"headers": ["authorization", "x-api-key", "api-key", "cookie", "user-agent"],
                "fields": [{"name": "odd", "value": compared(bed, "telemetry.logs.fields[].value")}],
                "otlp": {"endpoint": world.collector.url()}},
        },
        "signals": {"planted": {"keywords": [bed.reference("signals{}.keywords[]")], "reads": "conversation"}},
        "routes": [asked, answers, login_of_people(bed), route("gone", "gone"), route("far", "far"), moving(bed, "gone", &world.server.url()), {"name": "rest", "backendRefs": [{"name": "x"}]}],
    })
}

/// Expression that compares with a planted text, whose value tells nothing of it.
fn compared(bed: &mut Bed, place: &str) -> String {
    format!("request.path == '{}'", bed.reference(place))
}

/// Value of a header by such an expression.
fn computed(bed: &mut Bed, place: &str) -> Value {
    json!({"value": format!("{} ? 'a' : 'b'", compared(bed, &format!("routes[].{place}.value")))})
}

/// A route whose rollout asks a gate at this server first, of which receivers of notifications are told.
fn moving(bed: &mut Bed, candidate: &str, server: &str) -> Value {
    let gate = format!("{server}/gate/{}", bed.reference("routes[].rollout.steps[].gate.url"));
    json!({
        "name": "moving", "matches": [{"path": {"prefix": "/moving"}}], "backendRefs": [{"name": "x"}, {"name": candidate}],
        "rollout": {"to": candidate, "steps": [{"gate": {"url": gate}}, {"weight": 1, "hold": {"for": "1h"}}]},
    })
}

/// Files that the configuration names; returns the certificates and keys of the listener and of the gateway as a client.
fn files_of_the_configuration(
    bed: &mut Bed,
    world: &World,
    authority: &Authority,
) -> ((String, String), (String, String)) {
    authority.write(bed.folder.path());
    let pebble = bed.folder.path().join("pebble-ca.pem");
    std::fs::write(pebble, &world.pebble.authority.pem).unwrap();
    let server = bed.certificate(authority, "listeners[].tls.certificates[].keyFile", "server");
    let client = bed.certificate(authority, "backends[].tls.clientCertificate.keyFile", "client");
    let (key, digest) = new_key();
    bed.planted.add("caller: authorization, key of a file", &key);
    bed.planted.add("consumers[].keysFile", &digest);
    std::fs::write(bed.folder.path().join("acme.keys"), format!("{digest} 2099-01-01\n")).unwrap();
    std::fs::create_dir(bed.folder.path().join("routes.d")).unwrap();
    let included = bed.reference("routes[].filters[].requestHeaders.set{}");
    let route = format!(
        "routes: [{{name: included, matches: [{{path: {{prefix: /included}}}}], filters: [{{requestHeaders: {{set: \
         {{x-included-token: \"{included}\"}}}}}}], backendRefs: [{{name: x}}]}}]\n"
    );
    std::fs::write(bed.folder.path().join("routes.d/one.yaml"), route).unwrap();
    (server, client)
}

/// Routes whose filters have secrets: one that asks everybody, and one that answers by itself.
fn routes_with_secrets(bed: &mut Bed, world: &World) -> (Value, Value) {
    let text = |bed: &mut Bed, place: &str| bed.reference(&format!("routes[].{place}"));
    let asked = json!({
        "name": "asked",
        "matches": [{
            "path": {"prefix": "/asked"},
            "headers": [{"name": "x-match", "exact": text(bed, "matches[].headers[].exact")}],
            "when": format!(
                "request.headers['x-match'] != '{}' && (!has(signals.planted) || !signals.planted)",
                text(bed, "matches[].when")
            ),
        }, {
            "path": {"prefix": "/asked/otherwise"},
            "headers": [{"name": "x-pattern", "regex": text(bed, "matches[].headers[].regex")}],
            "queryParams": [
                {"name": "a", "exact": text(bed, "matches[].queryParams[].exact")},
                {"name": "b", "regex": text(bed, "matches[].queryParams[].regex")},
            ],
        }],
        "authentication": "optional",
        "whenSaturated": {"spillTo": "copies"},
        "spill": {"when": compared(bed, "routes[].spill.when")},
        "filters": [
            {"rateLimit": {"by": {"value": format!("request.path + '{}'", text(bed, "filters[].rateLimit.by.value"))}, "requests": "10000/s",
                "cost": format!("{} ? 2 : 1", compared(bed, "routes[].filters[].rateLimit.cost"))}},
            {"externalAuthorization": {"url": format!("http://{}/{}", world.judge.address, text(bed, "filters[].externalAuthorization.url")), "timeout": "5s"}},
            {"authorize": format!("request.headers['x-match'] != '{}'", text(bed, "filters[].authorize"))},
            {"cel": {"deny": format!("request.headers['x-match'] == '{}'", text(bed, "filters[].cel.deny")), "status": 403, "message": "no"}},
            {"mirror": {"backend": "copies", "percent": 100, "when": format!("!({})", compared(bed, "routes[].filters[].mirror.when"))}},
            {"requestHeaders": {
                "set": {"x-set-token": text(bed, "filters[].requestHeaders.set{}"), "x-computed": computed(bed, "filters[].requestHeaders.set{}")},
                "add": {"x-add-token": text(bed, "filters[].requestHeaders.add{}"), "x-computed-more": computed(bed, "filters[].requestHeaders.add{}")},
            }},
            {"responseHeaders": {
                "set": {"x-told": text(bed, "filters[].responseHeaders.set{}"), "x-computed": computed(bed, "filters[].responseHeaders.set{}")},
                "add": {"x-added": text(bed, "filters[].responseHeaders.add{}"), "x-computed-more": computed(bed, "filters[].responseHeaders.add{}")},
            }},
            {"urlRewrite": {"replacePrefix": format!("/bot/{}", text(bed, "filters[].urlRewrite.replacePrefix"))}},
        ],
        "backendRefs": [{"name": "x", "filters": [
            {"requestHeaders": {
                "set": {"x-target-token": text(bed, "backendRefs[].filters[].requestHeaders.set{}"), "x-computed": computed(bed, "backendRefs[].filters[].requestHeaders.set{}")},
                "add": {"x-target-more": text(bed, "backendRefs[].filters[].requestHeaders.add{}"), "x-computed-more": computed(bed, "backendRefs[].filters[].requestHeaders.add{}")},
            }},
            {"responseHeaders": {
                "set": {"x-target-told": text(bed, "backendRefs[].filters[].responseHeaders.set{}"), "x-computed": computed(bed, "backendRefs[].filters[].responseHeaders.set{}")},
                "add": {"x-target-added": text(bed, "backendRefs[].filters[].responseHeaders.add{}"), "x-computed-more": computed(bed, "backendRefs[].filters[].responseHeaders.add{}")},
            }},
        ]}],
    });
    let module = bed.folder.path().join("plain.wasm");
    std::fs::write(&module, plain_module()).unwrap();
    let answers = json!({
        "name": "answers",
        "matches": [{"path": {"prefix": "/answers"}}],
        "authentication": "none",
        "filters": [
            {"fault": {"when": format!("request.path == '{}'", text(bed, "filters[].fault.when")), "abort": 503}},
            {"transform": {
                "when": format!("request.path == '{}'", text(bed, "filters[].transform.when")),
                "request": {
                    "prependSystem": text(bed, "filters[].transform.request.prependSystem"),
                    "appendSystem": text(bed, "filters[].transform.request.appendSystem"),
                },
            }},
            {"promptTemplate": {"file": prompts(bed), "version": 1, "variables": {
                "word": format!("request.path == '{}' ? 'a' : 'b'", text(bed, "filters[].promptTemplate.variables{}")),
            }}},
            {"guard": {
                "patterns": [{"name": "own", "regex": text(bed, "filters[].guard.patterns[].regex")}],
                "when": compared(bed, "routes[].filters[].guard.when"),
            }},
            {"cache": {"exact": true, "when": compared(bed, "routes[].filters[].cache.when"), "key": compared(bed, "routes[].filters[].cache.key")}},
            {"wasm": {
                "module": module,
                "calls": {"judge": format!("http://127.0.0.1:1/{}", text(bed, "filters[].wasm.calls{}"))},
            }},
            {"respond": {
                "headers": {"x-told": text(bed, "filters[].respond.headers{}")},
                "body": text(bed, "filters[].respond.body"),
            }},
        ],
    });
    (asked, answers)
}

/// A route that asks for a name and a password.
fn login_of_people(bed: &mut Bed) -> Value {
    let hash = "$2y$04$abcdefghijklmnopqrstuuoD8yw7MmybLKVooaTGGZAt3HXugv2.a";
    bed.planted.add("routes[].filters[].basicAuth.usersFile", hash);
    std::fs::write(bed.folder.path().join("users.htpasswd"), format!("ann:{hash}\n")).unwrap();
    json!({
        "name": "people", "matches": [{"path": {"prefix": "/people"}}], "authentication": "none",
        "filters": [{"basicAuth": {"usersFile": "users.htpasswd"}}], "backendRefs": [{"name": "x"}],
    })
}

/// A file of prompts; returns its name.
fn prompts(bed: &mut Bed) -> &'static str {
    let secret = bed.planted.plant("routes[].filters[].promptTemplate.file");
    let text = format!("---\nversion: 1\n---\n{secret} {{{{word}}}}\n");
    std::fs::write(bed.folder.path().join("prompts.md"), text).unwrap();
    "prompts.md"
}

/// A configuration whose servers are all away, with secrets in their URLs.
fn away(bed: &mut Bed, nobody: &str) -> Value {
    let host = nobody.trim_start_matches("http://").to_owned();
    let url = |bed: &mut Bed, scheme: &str, path: &str, place: &str| {
        format!("{scheme}://{host}/{path}?key={}", bed.reference(place))
    };
    let redis = format!("redis://{host}");
    let endpoint = format!("http://{host}/{}", bed.reference("telemetry.tracing.otlp.endpoint"));
    let of_logs = format!("http://{host}/{}", bed.reference("telemetry.logs.otlp.endpoint"));
    let judge = format!("http://{host}/{}", bed.reference("routes[].filters[].externalAuthorization.url"));
    json!({
        "listeners": [
            {"name": "plain", "address": "127.0.0.1:0"},
            {"name": "ordered", "address": "127.0.0.1:0", "protocol": "https", "tls": {"acme": {
                "directory": url(bed, "https", "dir", "listeners[].tls.acme.directory"), "domains": ["a.test"],
                "externalAccount": {"keyId": "customer", "hmacKey": bed.file("listeners[].tls.acme.externalAccount.hmacKey")},
                "retry": {"base": "300ms", "max": "2s"},
            }}},
        ],
        "admin": {"address": "127.0.0.1:0", "token": bed.file("admin.token"),
            "oidc": login("http://127.0.0.1:1", bed.file("admin.oidc.clientSecret"))},
        "backends": [{"name": "x", "endpoints": [{"url": nobody}], "credentials": {"bearer": bed.file("backends[].credentials.bearer")},
            "healthCheck": {"http": {"path": format!("/?key={}", bed.reference("backends[].healthCheck.http.path"))}, "interval": "100ms"}},
            {"name": "y", "endpoints": [{"url": nobody}],
             "credentials": {"header": "x-far-token", "secret": bed.file("backends[].credentials.secret")}}],
        "consumers": [{"name": "acme", "keys": [{"sha256": "0".repeat(64)}], "limits": {"requests": "1000/s"},
            "credentials": {"x": {"bearer": bed.env("consumers[].credentials{}.bearer")},
                "y": {"header": "x-far-token", "secret": bed.env("consumers[].credentials{}.secret")}}}],
        "authentication": {"jwt": [{
            "issuer": "http://127.0.0.1:1", "audiences": ["spillway"], "claims": {"consumer": "sub"},
            "jwks": {"url": url(bed, "http", "keys", "authentication.jwt[].jwks.url")},
        }]},
        "notifications": [{"webhook": {
            "url": format!("http://{host}/hook?key={}", bed.reference("notifications[].webhook.url")),
            "secret": bed.file("notifications[].webhook.secret"), "retry": {"base": "100ms"},
        }, "events": ["rollout"]}],
        "state": {
            "limits": {"redis": {"url": redis, "password": bed.file("state.limits.redis.password")}},
            "cache": {"redis": {"url": redis, "password": bed.file("state.cache.redis.password")}},
            "store": {"redis": {"url": "redis://127.0.0.1:1", "password": bed.file("state.store.redis.password")}},
        },
        "telemetry": {"tracing": {"otlp": {"endpoint": endpoint}}, "logs": {"otlp": {"endpoint": of_logs}}},
        "routes": [
            {"name": "judged", "matches": [{"path": {"prefix": "/judged"}}], "authentication": "none",
             "filters": [{"externalAuthorization": {"url": judge, "timeout": "1s"}}], "backendRefs": [{"name": "x"}]},
            moving(bed, "y", nobody),
            {"name": "open", "matches": [{"path": {"prefix": "/open"}}], "authentication": "none", "backendRefs": [{"name": "x"}]},
            {"name": "rest", "backendRefs": [{"name": "x"}]},
        ],
    })
}

/// Credentials of callers: the name of each, and its headers.
fn credentials(bed: &mut Bed, world: &World) -> Vec<(&'static str, Vec<(&'static str, String)>)> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let claims = |ends: u64| json!({"iss": world.issuer.url(), "aud": "spillway", "sub": "mia", "exp": ends});
    let good = world.signing.token(&claims(now + 600));
    let forged = IssuerKey::new("one").token(&claims(now + 601));
    let ended = world.signing.token(&claims(now - 600));
    for (name, token) in [("good", &good), ("forged", &forged), ("ended", &ended)] {
        bed.planted.add(&format!("caller: authorization, {name} token"), token.rsplit('.').next().unwrap());
    }
    let (key, of_file) = (bed.secret("caller: key"), bed.secret("caller: authorization, key of a file"));
    let mut wrong = |place: &str| bed.planted.plant(place);
    let basic = STANDARD.encode(format!("user:{}", wrong("caller: authorization, refused password")));
    let proxy = STANDARD.encode(format!("user:{}", wrong("caller: refused proxy-authorization")));
    vec![
        ("key", vec![("x-api-key", key.clone())]),
        ("key of a file", vec![("authorization", format!("Bearer {of_file}"))]),
        ("token", vec![("authorization", format!("Bearer {good}"))]),
        ("two", vec![("x-api-key", key), ("authorization", format!("Bearer {good}"))]),
        ("forged token", vec![("authorization", format!("Bearer {forged}"))]),
        ("ended token", vec![("authorization", format!("Bearer {ended}"))]),
        ("unknown key", vec![("x-api-key", wrong("caller: refused x-api-key"))]),
        ("unknown key again", vec![("api-key", wrong("caller: refused api-key"))]),
        ("unknown bearer", vec![("authorization", format!("Bearer {}", wrong("caller: authorization, refused")))]),
        ("basic", vec![("authorization", format!("Basic {basic}")), ("proxy-authorization", format!("Basic {proxy}"))]),
        ("none", vec![]),
    ]
}

/// Requests that bring secrets of callers, by a way that the gateway passes on or refuses.
async fn call(bed: &mut Bed, world: &World, gateway: &Gateway) {
    let client = Client::new(gateway.listener("plain"));
    let credentials = credentials(bed, world);
    let (query, api_key) = (bed.planted.plant("caller: query key"), bed.planted.plant("caller: query api_key"));
    let cookie = format!("session={}", bed.planted.plant("caller: cookie"));
    let (header, body) = (bed.planted.plant("caller: header"), bed.planted.plant("caller: body"));
    let matched = bed.secret("routes[].matches[].headers[].exact");
    let chat = json!({"model": "m", "messages": [{"role": "user", "content": body}], "stream": true}).to_string();
    let bodies = [("json", chat.clone()), ("broken json", format!("{chat}{{")), ("no json", format!("\u{1}{body}"))];
    let wants = ["", "error", "full", "nothing"];
    for path in ["/v1/chat/completions", "/asked/it", "/included", "/answers", "/gone", "/far", "/plain", "//../x"] {
        // One body tells all of it where the body is not read.
        let bodies = if path.starts_with("/v1") { &bodies[..] } else { &bodies[..1] };
        for ((who, own), want) in credentials.iter().flat_map(|own| wants.map(|want| (own, want))) {
            for (form, body) in bodies {
                let mut headers = vec![("content-type", "application/json"), ("x-want", want), ("x-match", &matched)];
                headers.extend([("cookie", cookie.as_str()), ("x-own", header.as_str())]);
                headers.extend(own.iter().map(|(name, value)| (*name, value.as_str())));
                let path = format!("{path}?key={query}&api_key={api_key}");
                let asked = client.request("POST", &path, &headers, body.clone());
                if let Ok(answer) = client.try_send(asked).await {
                    bed.answer(&format!("{who} {want} {form}"), &answer);
                }
            }
        }
    }
    let key = bed.secret("caller: key");
    call_badly(bed, gateway, &key).await;
}

/// Requests that break rules of HTTP beside a secret.
async fn call_badly(bed: &mut Bed, gateway: &Gateway, key: &str) {
    let (trailer, bad) = (bed.planted.plant("caller: trailer"), bed.planted.plant("bad request"));
    let long = "x".repeat(40_000);
    let chunk = "4\r\nbody\r\n0\r\n";
    let head = "HTTP/1.1\r\nHost: a\r\nConnection: close\r\n";
    for (what, text) in [
        (
            "trailer",
            format!(
                "POST /included {head}x-api-key: {key}\r\nTransfer-Encoding: chunked\r\n\r\n{chunk}x-end: {trailer}\r\n\r\n"
            ),
        ),
        (
            "bad trailer",
            format!(
                "POST /included {head}x-api-key: {key}\r\nTransfer-Encoding: chunked\r\n\r\n{chunk}x-end {trailer}\r\n\r\n"
            ),
        ),
        ("bad chunk", format!("POST /included {head}x-api-key: {key}\r\nTransfer-Encoding: chunked\r\n\r\n{bad}\r\n")),
        ("bad header", format!("GET / {head}x-api-key {bad}\r\n\r\n")),
        ("bad character", format!("GET / {head}x-api-key: {bad}\u{1}\r\n\r\n")),
        ("long header", format!("GET / {head}authorization: Bearer {bad}{long}\r\n\r\n")),
        ("bad version", format!("GET /?key={bad} HTTP/7.1\r\nx-api-key: {bad}\r\n\r\n")),
        ("bad length", format!("POST / {head}Content-Length: {bad}\r\n\r\n")),
        ("bad host", format!("GET /?key={bad} HTTP/1.1\r\nHost: a b\r\nauthorization: {bad}\r\n\r\n")),
        ("two hosts", format!("GET /?key={bad} HTTP/1.1\r\nHost: a\r\nHost: b\r\nauthorization: {bad}\r\n\r\n")),
        ("user of a URL", format!("GET http://user:{bad}@a/ {head}\r\n")),
        ("not TLS", format!("{bad}\r\n\r\n")),
    ] {
        let listener = if what == "not TLS" { "secure" } else { "plain" };
        let mut stream = tokio::net::TcpStream::connect(gateway.listener(listener)).await.unwrap();
        stream.write_all(text.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        let _ = tokio::time::timeout(Duration::from_secs(20), stream.read_to_end(&mut answer)).await;
        bed.keep(&format!("answers: {what}"), answer);
    }
}

/// Everything that the admin address shows, to those who may look and to others.
async fn look(bed: &mut Bed, gateway: &Gateway, token: &str) {
    let admin = Client::new(gateway.admin);
    let wrong = bed.planted.plant("refused admin token");
    let (right, wrong) = (format!("Bearer {token}"), format!("Bearer {wrong}"));
    for path in [
        "/",
        "/healthz",
        "/readyz",
        "/metrics",
        "/api/config",
        "/api/backends",
        "/api/rollouts",
        "/api/rollouts/moving",
        "/api/config/history",
        "/api/requests/recent",
        "/api/overview",
        "/api/history?window=3h",
        "/api/models",
        "/api/consumers",
        "/nothing?key=",
    ] {
        for (who, header) in [("operator", &right), ("stranger", &wrong)] {
            let answer = admin
                .send(admin.request(
                    "GET",
                    &format!("{path}{}", if path.ends_with('=') { &wrong[7..] } else { "" }),
                    &[("authorization", header)],
                    Bytes::new(),
                ))
                .await;
            bed.answer_of_admin(&format!("{path} {who}"), &answer);
        }
    }
    let drain = "/api/backends/x/endpoints/127.0.0.1:1/drain";
    for header in [&right, &wrong] {
        let headers = [("authorization", header.as_str()), ("x-spillway-admin", "1")];
        bed.answer_of_admin("drain", &admin.post(drain, &headers, "").await);
    }
}

/// The live tail until it has told of twenty requests, and of some that it left out.
async fn watch(admin: std::net::SocketAddr, token: String) -> Vec<u8> {
    let admin = Client::new(admin);
    let authorization = format!("Bearer {token}");
    let request = admin.request("GET", "/api/requests", &[("authorization", &authorization)], Bytes::new());
    let mut stream = admin.stream(request).await.unwrap();
    let mut seen = Vec::new();
    loop {
        seen.extend_from_slice(&stream.part().await.unwrap().unwrap());
        let has = |text: &str| String::from_utf8_lossy(&seen).contains(text);
        if has("event: missed") && String::from_utf8_lossy(&seen).matches("event: request").count() >= 20 {
            return seen;
        }
    }
}

/// A chat of an operator, as a caller whose key is typed in, and one with a key that nobody has.
async fn chat(bed: &mut Bed, gateway: &Gateway, token: &str) {
    let admin = Client::new(gateway.admin);
    let authorization = format!("Bearer {token}");
    let body = json!({"model": "m", "messages": [{"role": "user", "content": bed.secret("caller: body")}]}).to_string();
    for key in [bed.secret("caller: key"), bed.planted.plant("caller: refused key of the playground")] {
        let headers =
            [("authorization", authorization.as_str()), ("x-spillway-admin", "1"), ("x-spillway-playground-key", &key)];
        let answer = admin.post("/api/playground/rest", &headers, body.clone()).await;
        bed.answer("playground", &answer);
    }
}

/// Documents whose mistake stands beside each planted value, or takes its place. Literals are planted where the file would
/// have a reference.
fn broken(bed: &mut Bed, document: &Value) -> Vec<(String, String)> {
    let mut documents = Vec::new();
    for (path, pointer) in places(document) {
        let value = document.pointer(&pointer).unwrap();
        let is_secret = value.is_object()
            && value.as_object().unwrap().len() == 1
            && (value["env"].is_string() || value["file"].is_string());
        let is_reference = value.as_str().is_some_and(|text| text.contains("PLANTED_"));
        if path.contains("{}") || !(is_secret || is_reference && !path.ends_with(".env")) {
            continue;
        }
        let literal = bed.planted.plant(&format!("literal at {path}"));
        let url = format!("http://user:{literal}@host/?x={literal}");
        let mut with = |what: &str, new: Value| {
            let mut changed = document.clone();
            *changed.pointer_mut(&pointer).unwrap() = new;
            documents.push((format!("{path} {what}"), yaml(&changed)));
        };
        with("a list", json!([value]));
        if is_secret {
            with("a literal", json!(literal));
            with("a list of a literal", json!([literal]));
            with("another key", json!({"value": literal}));
        } else {
            with("a mapping", json!({"value": value}));
        }
        if value.as_str().is_some_and(|text| text.contains("://")) {
            with("a URL of no scheme", json!(url.replace("http:", "gopher:")));
            with("a URL of no port", json!(url.replace("@host/", "@host:port/")));
        }
        // A file that ends in the middle, and one with a quote too many.
        let text = yaml(document);
        let written = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        let place =
            text.find(written.split_once("PLANTED_").map_or(written.as_str(), |(before, _)| before)).unwrap_or(0);
        documents.push((format!("{path} cut"), text[..text.floor_char_boundary(place + 20)].to_owned()));
    }
    // Users of URLs that may have none.
    let mut text = yaml(document);
    for (from, scheme) in [("redis://", "redis"), ("\"url\": \"http://", "\"url\": \"http")] {
        let literal = bed.planted.plant(&format!("literal as the user of {scheme}"));
        text = text.replacen(from, &format!("{scheme}://user:{literal}@"), 1);
    }
    documents.push(("users of URLs".to_owned(), text));
    documents
}

#[test]
fn every_string_of_the_configuration_is_judged() {
    let found = strings();
    let public = ["duration", "size", "rate", "date", "listen-address", "dns-server", "network", "secret", "sha256"];
    let judged: BTreeSet<&str> = MAY_HOLD_SECRETS.iter().chain(SECRET_FILES).chain(NO_SECRETS).copied().collect();
    let open: Vec<_> =
        found.iter().filter(|(_, kind)| !public.contains(&kind.as_str())).map(|(path, _)| path.as_str()).collect();
    let unjudged: Vec<_> = open.iter().filter(|path| !judged.contains(**path)).collect();
    assert!(unjudged.is_empty(), "say of these whether they may hold a secret: {unjudged:?}");
    let gone: Vec<_> = judged.iter().filter(|path| !open.contains(*path)).collect();
    assert!(gone.is_empty(), "these are no strings of the configuration: {gone:?}");
}

/// Asserts that every place of the configuration that may hold a secret has a planted one in a document, by its type: one of
/// the type `Secret` by a variable and by a file.
fn assert_all_are_planted(bed: &Bed, documents: [&Value; 2]) {
    for (path, kind) in strings() {
        if kind == "secret" {
            let secrets: Vec<&Value> = documents
                .iter()
                .flat_map(|document| places(document).into_iter().map(|place| (*document, place)))
                .filter(|(_, (at, _))| *at == path)
                .map(|(document, (_, pointer))| document.pointer(&pointer).unwrap())
                .collect();
            for form in ["env", "file"] {
                assert!(secrets.iter().any(|secret| secret[form].is_string()), "{path}: none by `{form}` is planted");
            }
        } else if kind == "sha256" || [MAY_HOLD_SECRETS, SECRET_FILES].concat().contains(&path.as_str()) {
            let is_planted = documents.iter().any(|document| has_planted(document, bed, &path));
            assert!(is_planted, "{path}: no secret is planted");
        }
    }
}

/// Adds the keys that the gateway made for itself to obtain a certificate.
fn note_keys_of_acme(bed: &mut Bed, folder: &Path) {
    let place = "key that the gateway made for ACME";
    for entry in std::fs::read_dir(folder).unwrap() {
        let text = std::fs::read_to_string(entry.unwrap().path()).unwrap();
        if let Some(at) = text.find("PRIVATE KEY-----") {
            bed.pem(place, &text[at..]);
        }
        if let Ok(account) = serde_json::from_str::<Value>(&text) {
            bed.planted.add(place, account["credentials"]["key_pkcs8"].as_str().unwrap());
        }
    }
    assert!(bed.planted.places().filter(|at| *at == place).count() >= 2, "the keys of the account and the certificate");
}

/// Runs every command that reads the configuration or the admin address.
fn run_commands(bed: &mut Bed, gateway: &Gateway, token: &str) {
    let admin = format!("http://{}", gateway.admin);
    let folder = gateway.folder();
    bed.run(folder, &["top", "--once", "--admin", &admin], &[("SPILLWAY_ADMIN_TOKEN", token)]);
    bed.run(folder, &["rollout", "status", "moving", "--admin", &admin], &[("SPILLWAY_ADMIN_TOKEN", token)]);
    let wrong = bed.planted.plant("wrong admin token of a command");
    for arguments in [&["top", "--once"][..], &["drain", "x", "127.0.0.1:1"]] {
        let arguments = [arguments, &["--admin", &admin]].concat();
        assert!(!bed.run(folder, &arguments, &[("SPILLWAY_ADMIN_TOKEN", &wrong)]).status.success());
    }
    bed.run(folder, &["check", "spillway.yaml"], &[]);
    bed.run(folder, &["models", "list", "-c", "spillway.yaml"], &[]);
    // Its ports are taken.
    assert!(!bed.run(folder, &["serve", "-c", "spillway.yaml"], &[]).status.success());
}

/// Edits that are kept out: `check` judges each of them, and the gateway some.
async fn edit_badly(bed: &mut Bed, gateway: &Gateway, document: &Value, token: &str) {
    for (n, (what, text)) in broken(bed, document).iter().enumerate() {
        std::fs::write(gateway.folder().join("broken.yaml"), text).unwrap();
        let out = bed.run(gateway.folder(), &["check", "broken.yaml"], &[]);
        assert_eq!(out.status.code(), Some(2), "{what}: {}", String::from_utf8_lossy(&out.stderr));
        if n % 8 == 0 {
            let before = gateway.edits();
            std::fs::write(gateway.config(), text).unwrap();
            assert_eq!(gateway.reloads(before).await["event"], "config_rejected", "{what}");
            look(bed, gateway, token).await;
        }
    }
    let before = gateway.edits();
    std::fs::write(gateway.config(), yaml(document)).unwrap();
    assert_eq!(gateway.reloads(before).await["event"], "config_reloaded");
    for name in ["acme.keys", "server.key", "client.key"] {
        spoil(bed, gateway, name).await;
    }
    let file = gateway.folder().join("routes.d/one.yaml");
    let included = std::fs::read_to_string(&file).unwrap();
    let literal = bed.planted.plant("literal in routes.d/one.yaml");
    let unknown = format!("set: {{authorization: \"Bearer {literal}\", x-own-token: {literal}}}, st: ");
    let open = format!("authorization: \"Bearer {literal}\", x-included-token: \"");
    for text in [included.replace("set: ", &unknown), included.replace("x-included-token: ", &open)] {
        std::fs::write(&file, text).unwrap();
        assert_eq!(bed.run(gateway.folder(), &["check", "spillway.yaml"], &[]).status.code(), Some(2));
    }
    std::fs::write(file, included).unwrap();
}

#[tokio::test]
async fn a_planted_secret_is_seen_only_where_it_is_sent() {
    let mut bed = Bed::new();
    let world = World::start(&mut bed).await;
    let authority = Authority::default();
    let document = working(&mut bed, &world, &authority);
    assert_all_are_planted(&bed, [&document, &away(&mut Bed::new(), &world.nobody)]);
    let header = bed.planted.plant("variable OTEL_EXPORTER_OTLP_HEADERS");
    let header = format!("x-collector-key={}", header.replace('+', "%2B").replace('=', "%3D"));
    bed.variables.push(("OTEL_EXPORTER_OTLP_HEADERS".to_owned(), header));
    let unrelated = bed.planted.plant("variable that nothing names");
    bed.variables.push(("DATABASE_PASSWORD".to_owned(), unrelated));

    let token = bed.value(&document["admin"]["token"]);
    let gateway = bed.start(&document, "debug").await;
    eventually("a certificate is issued", || async { gateway.events("certificate_issued").first().cloned() }).await;
    note_keys_of_acme(&mut bed, &gateway.folder().join("acme"));
    let watching = tokio::spawn(watch(gateway.admin, token.clone()));
    call(&mut bed, &world, &gateway).await;
    chat(&mut bed, &gateway, &token).await;
    let secure = Secure::new(gateway.listener("secure"), &authority);
    let answer = secure.get("secure.test", "secure.test", "/v1/models?key=x").await.unwrap();
    bed.answer("over TLS", &answer);
    look(&mut bed, &gateway, &token).await;
    let seen = tokio::time::timeout(Duration::from_secs(30), watching).await.unwrap().unwrap();
    bed.keep("admin: live tail", seen);
    run_commands(&mut bed, &gateway, &token);
    edit_badly(&mut bed, &gateway, &document, &token).await;
    look(&mut bed, &gateway, &token).await;

    eventually("spans and the log are exported", || async {
        let bytes = world.collector.bytes();
        let has = |service: &str| bytes.windows(service.len()).any(|window| window == service.as_bytes());
        (has("TraceService/Export") && has("LogsService/Export")).then_some(())
    })
    .await;
    keep_end(&mut bed, gateway).await;
    bed.keep("collector", world.collector.bytes());
    for (name, server) in [("x", &world.server), ("copies", &world.copies), ("judge", &world.judge)] {
        bed.server(name, server);
    }
    bed.judge(true);
}

/// Spoils a file that the configuration names, with a secret in it, and mends it.
async fn spoil(bed: &mut Bed, gateway: &Gateway, name: &str) {
    let file = gateway.folder().join(name);
    let literal = bed.planted.plant(&format!("literal in {name}"));
    let good = std::fs::read_to_string(&file).unwrap();
    let digest = good.split(' ').next().unwrap();
    for spoiled in [
        format!("{literal}\n"),
        format!("{digest} {literal}\n"),
        format!("{digest} 2099-01-01 {literal}\n"),
        format!("key: {literal}\nsha256: {digest}\n"),
        format!("-----BEGIN PRIVATE KEY-----\n{literal}\n-----END PRIVATE KEY-----\n"),
        format!("{good}\u{0}{literal}"),
    ] {
        std::fs::write(&file, spoiled).unwrap();
        bed.run(gateway.folder(), &["check", "spillway.yaml"], &[]);
    }
    let before = gateway.edits();
    std::fs::write(&file, format!("{digest} {literal}\n")).unwrap();
    edit_ends(gateway, before, "config_rejected").await;
    let before = gateway.edits();
    std::fs::write(&file, good).unwrap();
    edit_ends(gateway, before, "config_reloaded").await;
}

/// Waits until an edit has ended so. One that was under way may end first, in either way.
async fn edit_ends(gateway: &Gateway, mut before: usize, event: &str) {
    while gateway.reloads(before).await["event"] != event {
        before = gateway.edits();
    }
}

#[tokio::test]
async fn a_planted_secret_is_not_told_where_its_server_is_away() {
    let mut bed = Bed::new();
    let nobody = Upstream::nobody().await;
    let document = away(&mut bed, &nobody);
    let token = bed.value(&document["admin"]["token"]);
    let gateway = bed.start(&document, "trace").await;
    let client = gateway.client();
    let key = bed.planted.plant("caller: key");
    let claims = json!({"iss": "http://127.0.0.1:1", "aud": "spillway", "sub": "mia", "exp": 4_000_000_000u64});
    let bearer = IssuerKey::new("one").token(&claims);
    bed.planted.add("caller: token", bearer.rsplit('.').next().unwrap());
    for path in ["/judged", "/open", "/rest"] {
        for header in [("x-api-key", key.clone()), ("authorization", format!("Bearer {bearer}"))] {
            let answer = client.post(&format!("{path}?key={key}"), &[(header.0, &header.1)], key.clone()).await;
            bed.answer(path, &answer);
        }
    }
    for event in ["acme_failed", "limit_store_unreachable", "jwks_failed", "traces_not_sent"] {
        eventually(event, || async { gateway.events(event).first().cloned() }).await;
    }
    look(&mut bed, &gateway, &token).await;
    let folder = gateway.folder().to_owned();
    bed.run(&folder, &["check", "spillway.yaml"], &[]);
    for (n, (_, text)) in broken(&mut bed, &document).iter().enumerate() {
        std::fs::write(folder.join("broken.yaml"), text).unwrap();
        // What keeps it from starting is told by `serve` in the same words.
        let arguments = if n % 4 == 0 { ["serve", "-c", "broken.yaml"] } else { ["check", "--offline", "broken.yaml"] };
        assert_eq!(bed.run(&folder, &arguments, &[]).status.code(), Some(2), "{text}");
    }
    // The same lines in words.
    let mut in_words = document.clone();
    in_words["telemetry"]["logs"]["format"] = json!("text");
    std::fs::write(folder.join("words.yaml"), yaml(&in_words)).unwrap();
    let (out, errors) = (folder.join("words.out"), folder.join("words.err"));
    let mut child = Command::new(binary())
        .args(["serve", "-c", "words.yaml"])
        .current_dir(&folder)
        .envs(bed.variables.clone())
        .env("SPILLWAY_LOG", "trace")
        .stdout(std::fs::File::create(&out).unwrap())
        .stderr(std::fs::File::create(&errors).unwrap())
        .spawn()
        .unwrap();
    eventually("words about an authority that is away", || async {
        std::fs::read_to_string(&out).unwrap().contains("acme_failed").then_some(())
    })
    .await;
    child.kill().unwrap();
    child.wait().unwrap();
    bed.keep("log in words", std::fs::read(&out).unwrap());
    bed.keep("errors beside words", std::fs::read(&errors).unwrap());
    keep_end(&mut bed, gateway).await;
    bed.judge(false);
}

/// Ends the gateway and keeps its log and the files that it wrote.
async fn keep_end(bed: &mut Bed, gateway: Gateway) {
    gateway.signal("TERM");
    eventually("the gateway stops", || async { gateway.events("stopped").first().cloned() }).await;
    bed.keep("log", gateway.log());
    let mut folders = vec![gateway.folder().join("state"), gateway.folder().join("acme")];
    let mut files = vec![gateway.folder().join("standard-error")];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).into_iter().flatten() {
            let path = entry.unwrap().path();
            if path.is_dir() { folders.push(path) } else { files.push(path) }
        }
    }
    for file in files {
        let name = file.strip_prefix(gateway.folder()).unwrap().display().to_string();
        bed.keep(&format!("file {name}"), std::fs::read(&file).unwrap());
    }
}
