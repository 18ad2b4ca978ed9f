//! Checks of `consumers`, `authentication`, `prices` and `state`.

use std::collections::{HashMap, HashSet};

use crate::ModelPattern;
use crate::schema::{
    BackendRef, CacheRedis, Config, Consumer, ConsumerLimits, Jwks, JwtIssuer, RedisState, StateStore,
};
use crate::values::{Duration, FilePath, quoted_url};

use super::index::Index;
use super::{Context, Segment, at};

/// Longest `leeway`, seconds: clocks of servers differ by less.
const MAX_LEEWAY: u64 = 300;

pub(super) fn all(cx: &mut Context<'_>) {
    consumers(cx);
    tenants(cx);
    authentication(cx);
    prices(cx);
    state(cx);
}

/// True if any caller could be identified.
pub(super) fn anybody(cx: &Context<'_>) -> bool {
    let config = cx.config;
    (makes_keys(config) && !config.consumers.is_empty())
        || config
            .consumers
            .iter()
            .any(|c| !c.keys.is_empty() || c.keys_file.is_some() || c.jwt.is_some() || c.mtls.is_some())
        || config.authentication.iter().any(|a| a.jwt.iter().any(|issuer| issuer.claims.is_some()))
}

/// True if keys of consumers can be made at run time.
fn makes_keys(config: &Config) -> bool {
    config.authentication.iter().any(|authentication| authentication.keys_by_api.is_some())
}

fn with(at: &[Segment], more: &[&str]) -> Vec<Segment> {
    at.iter().cloned().chain(more.iter().map(|key| Segment::from(*key))).collect()
}

fn consumers(cx: &mut Context<'_>) {
    let config = cx.config;
    let mut digests = HashMap::new();
    let mut subjects = HashMap::new();
    let mut identities = HashMap::new();
    for (n, consumer) in config.consumers.iter().enumerate() {
        let has_key = !consumer.keys.is_empty() || consumer.keys_file.is_some();
        if !has_key && !makes_keys(config) && consumer.jwt.is_none() && consumer.mtls.is_none() {
            cx.warn(
                at!["consumers", n],
                "this consumer has neither key, token nor certificate, and nobody can call as it: give it `keys`",
            );
        }
        for (k, key) in consumer.keys.iter().enumerate() {
            if let Some(first) = digests.insert(key.sha256, &consumer.name) {
                cx.error(
                    at!["consumers", n, "keys", k, "sha256"],
                    format!("duplicate key, first of consumer `{first}`: remove it from one of them"),
                );
            }
        }
        let keys_file = consumer.keys_file.as_deref().filter(|file| file.is_file());
        if let Some(Err(e)) = keys_file.map(crate::read_keys) {
            cx.outside(at!["consumers", n, "keysFile"], e);
        }
        if consumer.models.as_ref().is_some_and(Vec::is_empty) {
            cx.error(at!["consumers", n, "models"], "an empty list allows no model at all; leave it out to allow all");
        }
        aliases(cx, n, consumer);
        token(cx, n, consumer, &mut subjects);
        certificates(cx, n, consumer, &mut identities);
        limits(cx, at!["consumers", n, "limits"], &consumer.limits);
        for (backend, written) in &consumer.credentials {
            super::backends::credentials(cx, at!["consumers", n, "credentials", backend.as_str()], written);
            if !cx.index.backends.contains_key(backend.as_str()) {
                let known: Vec<&str> = config.backends.iter().map(|b| b.name.as_str()).collect();
                cx.unknown(at!["consumers", n, "credentials", backend.as_str()], "backend", backend, &known);
            }
        }
    }
}

/// Checks the names of a consumer's own for models: each must be one that it may send, for a model that it may use.
fn aliases(cx: &mut Context<'_>, n: usize, consumer: &Consumer) {
    let allowed: Option<Vec<ModelPattern>> =
        consumer.models.as_ref().map(|models| models.iter().map(|name| ModelPattern::new(name)).collect());
    let may_use = |name: &str| allowed.as_ref().is_none_or(|models| models.iter().any(|model| model.matches(name)));
    for (name, served) in &consumer.model_alias {
        let place = at!["consumers", n, "modelAlias", name.as_str()];
        if name.is_empty() || served.is_empty() {
            cx.error(place, "an empty name is no model; expected `NAME: MODEL`");
        } else if name.contains('*') || served.contains('*') {
            cx.error(place, "`*` has no meaning here: an alias is one name for one model; write both out");
        } else if name == served {
            cx.error(place, format!("`{name}` stands for itself: remove it, or name another model"));
        } else if consumer.model_alias.contains_key(served) {
            let message = format!("`{served}` is an alias too, and none stands for another: name the model itself");
            cx.error(place, message);
        } else if let Some(name) = [name, served].into_iter().find(|name| !may_use(name)) {
            let message = format!(
                "`models` of this consumer does not allow `{name}`, so every such request is 404: both the alias and its \
                 model must be in that list"
            );
            cx.error(place, message);
        } else if !is_served(cx.config, cx.index, served) {
            let message = format!(
                "no route has a target that serves `{served}`, so every such request is 404: name a model that one serves"
            );
            cx.error(place, message);
        }
    }
}

/// True if a route may take a request for a model: one of its matches accepts the name, and one of its targets serves it.
fn is_served(config: &Config, index: &Index<'_>, name: &str) -> bool {
    let accepts = |pattern: &str| ModelPattern::new(pattern).matches(name);
    config.routes.iter().any(|route| {
        let is_matched = route.matches.is_empty()
            || route.matches.iter().any(|written| written.model.as_deref().is_none_or(&accepts));
        let serves = |reference: &BackendRef| match (&reference.name, &reference.model) {
            (Some(backend), _) => index.backends.get(backend.as_str()).is_none_or(|backend| {
                backend.models.as_ref().is_none_or(|models| models.iter().any(|model| accepts(model)))
            }),
            (None, model) => model.as_deref() == Some(name) || route.model_alias.contains_key(name),
        };
        is_matched && route.backend_refs.iter().any(serves)
    })
}

fn tenants(cx: &mut Context<'_>) {
    let config = cx.config;
    let mut seen = HashMap::new();
    let from_claims = config.authentication.iter().flat_map(|a| &a.jwt).any(|issuer| issuer.claims.is_some());
    for (n, tenant) in config.tenants.iter().enumerate() {
        let here = at!["tenants", n];
        if let Some(first) = seen.insert(tenant.name.as_str(), n) {
            cx.error(
                with(&here, &["name"]),
                format!("duplicate name `{}`, first of tenants[{first}]: remove one", tenant.name),
            );
        }
        if !from_claims && !cx.index.tenants.contains(tenant.name.as_str()) {
            let known: Vec<&str> = config.consumers.iter().filter_map(|consumer| consumer.tenant.as_deref()).collect();
            cx.unknown(with(&here, &["name"]), "consumer of tenant", &tenant.name, &known);
        }
        if tenant.limits == ConsumerLimits::default() {
            cx.error(
                with(&here, &["limits"]),
                "no limit is set, so the tenant has no effect: set one, or remove the tenant",
            );
        }
        limits(cx, with(&here, &["limits"]), &tenant.limits);
    }
}

fn token<'c>(
    cx: &mut Context<'_>,
    n: usize,
    consumer: &'c Consumer,
    subjects: &mut HashMap<(&'c str, &'c str), &'c str>,
) {
    let Some(token) = &consumer.jwt else { return };
    let issuers: Vec<&str> =
        cx.config.authentication.iter().flat_map(|a| &a.jwt).map(|issuer| issuer.issuer.as_str()).collect();
    if !issuers.contains(&token.issuer.as_str()) {
        cx.unknown(at!["consumers", n, "jwt", "issuer"], "issuer in authentication.jwt", &token.issuer, &issuers);
    }
    if let Some(first) = subjects.insert((&token.issuer, &token.subject), &consumer.name) {
        let message = format!("duplicate subject, first of consumer `{first}`: remove it from one of them");
        cx.error(at!["consumers", n, "jwt", "subject"], message);
    }
}

fn certificates<'c>(
    cx: &mut Context<'_>,
    n: usize,
    consumer: &'c Consumer,
    identities: &mut HashMap<&'c str, &'c str>,
) {
    let Some(mtls) = &consumer.mtls else { return };
    if cx.config.authentication.as_ref().is_none_or(|a| a.mtls.is_none()) {
        let message = "no effect without `authentication.mtls`, which says what part of a certificate identifies a caller: add that";
        cx.error(at!["consumers", n, "mtls"], message);
    }
    if mtls.identities.is_empty() {
        cx.error(
            at!["consumers", n, "mtls", "identities"],
            "an empty list matches no certificate; expected identities such as spiffe://example/name",
        );
    }
    for (i, identity) in mtls.identities.iter().enumerate() {
        if let Some(first) = identities.insert(identity, &consumer.name) {
            let message = format!("duplicate identity, first of consumer `{first}`: remove it from one of them");
            cx.error(at!["consumers", n, "mtls", "identities", i], message);
        }
    }
}

fn limits(cx: &mut Context<'_>, at: Vec<Segment>, limits: &ConsumerLimits) {
    for (key, message) in limits.faults(cx.index.spills, cx.config.has_prices()) {
        cx.error(with(&at, key), message);
    }
}

fn authentication(cx: &mut Context<'_>) {
    let Some(authentication) = &cx.config.authentication else { return };
    for (n, header) in authentication.api_key.headers.iter().enumerate() {
        header_name(cx, at!["authentication", "apiKey", "headers", n], header);
    }
    let asks =
        |listener: &crate::schema::Listener| listener.tls.as_ref().is_some_and(|tls| tls.client_certificates.is_some());
    if authentication.mtls.is_some() && !cx.config.listeners.iter().any(asks) {
        let message = "no effect, because no listener has `tls.clientCertificates`: add that";
        cx.error(at!["authentication", "mtls"], message);
    }
    keys_by_api(cx);
    let identity = &authentication.identity_headers;
    for (key, header) in [("consumer", &identity.consumer), ("tenant", &identity.tenant)] {
        if let Some(header) = header {
            header_name(cx, at!["authentication", "identityHeaders", key], header);
        }
    }
    let mut seen = HashSet::new();
    for (n, issuer) in authentication.jwt.iter().enumerate() {
        if !seen.insert(issuer.issuer.as_str()) {
            cx.error(at!["authentication", "jwt", n, "issuer"], "duplicate issuer: remove one");
        }
        one_issuer(cx, n, issuer);
    }
}

/// Checks the keys that are made at run time: whose they could be, and where they could be made.
fn keys_by_api(cx: &mut Context<'_>) {
    let config = cx.config;
    if !makes_keys(config) {
        return;
    }
    let here = at!["authentication", "keysByApi"];
    if config.consumers.is_empty() {
        cx.error(here, "no effect: there are no `consumers` whose keys could be made; add one, or remove this");
    } else if config.admin.is_none() && matches!(config.state.store, StateStore::File(_)) {
        cx.error(here, "no effect without `admin`, where keys are made: add that, or remove this");
    } else if config.authentication.iter().any(|authentication| authentication.api_key.headers.is_empty()) {
        cx.error(here, "no effect, because `authentication.apiKey.headers` names no header that holds a key: add one");
    }
}

fn header_name(cx: &mut Context<'_>, at: Vec<Segment>, name: &str) {
    if http::HeaderName::from_bytes(name.as_bytes()).is_err() {
        cx.error(at, format!("`{name}` is not a header name"));
    }
}

fn is_http_url(text: &str) -> bool {
    url::Url::parse(text).is_ok_and(|url| matches!(url.scheme(), "http" | "https") && url.has_host())
}

fn one_issuer(cx: &mut Context<'_>, n: usize, issuer: &JwtIssuer) {
    let here = at!["authentication", "jwt", n];
    // Budgets of such an issuer's consumers would be those of tenants and keys, whose accounts begin with these words.
    if matches!(issuer.issuer.as_str(), "tenant" | "key") {
        let message = format!(
            "`{}` stands for the gateway's own; expected the `iss` of the tokens, such as https://id.example.com",
            issuer.issuer
        );
        cx.error(with(&here, &["issuer"]), message);
    }
    if issuer.audiences.is_empty() {
        let message = "at least one audience is needed: without one, tokens made for other services would be accepted";
        cx.error(with(&here, &["audiences"]), message);
    }
    if issuer.algorithms.is_empty() {
        cx.error(
            with(&here, &["algorithms"]),
            "an empty list accepts no token; expected algorithms such as RS256, or leave it out",
        );
    }
    if issuer.leeway.0.as_secs() > MAX_LEEWAY {
        cx.error(
            with(&here, &["leeway"]),
            format!(
                "{} is too long; expected at most 5m, because more only lengthens the life of tokens",
                issuer.leeway
            ),
        );
    }
    match &issuer.jwks {
        None if !is_http_url(&issuer.issuer) => {
            let message = "not a URL at which keys can be found: give `jwks: {url: ...}` or `jwks: {file: ...}`";
            cx.error(with(&here, &["issuer"]), message);
        }
        None => super::without_login(cx, with(&here, &["issuer"]), &issuer.issuer),
        Some(Jwks { url: Some(url), file: None, refresh }) => {
            super::without_login(cx, with(&here, &["jwks", "url"]), url);
            if !is_http_url(url) {
                cx.error(
                    with(&here, &["jwks", "url"]),
                    format!("{} is not a URL of a key set; expected one with http:// or https://", quoted_url(url)),
                );
            }
            if refresh.0.as_secs() < 10 {
                cx.error(
                    with(&here, &["jwks", "refresh"]),
                    format!("{refresh} is too short; expected at least 10s between two fetches"),
                );
            }
        }
        Some(Jwks { url: None, file: Some(_), .. }) => {}
        Some(_) => cx.error(with(&here, &["jwks"]), "found both or none; expected exactly one of `url` and `file`"),
    }
    if let Some(file) = &issuer.ca_file {
        let asked = match &issuer.jwks {
            None => Some(issuer.issuer.as_str()),
            Some(jwks) => jwks.url.as_deref(),
        };
        if !asked.is_some_and(|url| url.starts_with("https:")) {
            cx.error(with(&here, &["caFile"]), "no effect, because the keys are not fetched over https: remove it");
        }
        super::listeners::authorities(cx, with(&here, &["caFile"]), file);
    }
    let is_consumers = |c: &Consumer| c.jwt.as_ref().is_some_and(|token| token.issuer == issuer.issuer);
    let plan = issuer.claims.as_ref().and_then(|claims| claims.plan.as_ref());
    if issuer.claims.is_none() {
        if !cx.config.consumers.iter().any(is_consumers) {
            let message = "no consumer has a token of this issuer, and there is no `claims`, so no token would be accepted: add one of them";
            cx.error(here.clone(), message);
        }
        if issuer.limits != ConsumerLimits::default() {
            cx.error(
                with(&here, &["limits"]),
                "no effect without `claims`, whose callers these limit: add that, or remove this",
            );
        }
    }
    if plan.is_none() && !issuer.plans.is_empty() {
        cx.error(
            with(&here, &["plans"]),
            "no effect without `claims.plan`, which says what claim names a plan: add that, or remove this",
        );
    }
    if plan.is_some() && issuer.plans.is_empty() {
        cx.error(with(&here, &["claims", "plan"]), "no effect without `plans`: add some, or remove this");
    }
    limits(cx, with(&here, &["limits"]), &issuer.limits);
    for (name, plan) in &issuer.plans {
        limits(cx, with(&here, &["plans", name]), plan);
    }
}

fn prices(cx: &mut Context<'_>) {
    let config = cx.config;
    for (n, price) in config.prices.iter().enumerate() {
        if price.model.is_empty() {
            cx.error(at!["prices", n, "model"], "an empty model name matches nothing; expected a name, or `*` for any");
        }
        if let Some(first) = config.prices.iter().take(n).position(|other| other.model == price.model) {
            cx.error(
                at!["prices", n, "model"],
                format!("duplicate price of model `{}`, first in prices[{first}]: remove one", price.model),
            );
        }
    }
}

fn state(cx: &mut Context<'_>) {
    let state = &cx.config.state;
    if let Some(limits) = &state.limits {
        redis(cx, at!["state", "limits", "redis"], (&limits.redis).into());
    }
    if let Some(cache) = &state.cache {
        redis(cx, at!["state", "cache", "redis"], (&cache.redis).into());
        if cache.redis.max_pending_bytes.0 == 0 {
            let message = "found 0 bytes; expected more, such as 32MiB: no answer would ever be written";
            cx.error(at!["state", "cache", "redis", "maxPendingBytes"], message);
        }
    }
    if let StateStore::Shared(shared) = &state.store {
        redis(cx, at!["state", "store", "redis"], (&shared.redis).into());
    }
}

/// Keys that every server has that several gateways share.
struct SharedServer<'c> {
    url: &'c str,
    ca_file: Option<&'c FilePath>,
    timeout: Duration,
    key_prefix: &'c str,
}

impl<'c> From<&'c RedisState> for SharedServer<'c> {
    fn from(written: &'c RedisState) -> Self {
        let RedisState { url, ca_file, timeout, key_prefix, .. } = written;
        Self { url, ca_file: ca_file.as_ref(), timeout: *timeout, key_prefix }
    }
}

impl<'c> From<&'c CacheRedis> for SharedServer<'c> {
    fn from(written: &'c CacheRedis) -> Self {
        let CacheRedis { url, ca_file, timeout, key_prefix, .. } = written;
        Self { url, ca_file: ca_file.as_ref(), timeout: *timeout, key_prefix }
    }
}

/// Checks a server that several gateways share.
fn redis(cx: &mut Context<'_>, here: Vec<Segment>, server: SharedServer<'_>) {
    let url = url::Url::parse(server.url);
    if !url.as_ref().is_ok_and(|url| matches!(url.scheme(), "redis" | "rediss") && url.has_host()) {
        let message = format!(
            "{} is not the URL of a Redis server: write redis://HOST:PORT/0, or rediss:// for TLS",
            quoted_url(server.url)
        );
        cx.error(with(&here, &["url"]), message);
    } else if url.is_ok_and(|url| url.password().is_some()) {
        cx.error(
            with(&here, &["url"]),
            "unexpected password in the URL, which would be readable in the file: write password: {env: NAME}",
        );
    }
    if let Some(file) = server.ca_file {
        if server.url.starts_with("redis:") {
            cx.error(with(&here, &["caFile"]), "no effect without TLS: write rediss:// in `url`, or remove this");
        }
        super::listeners::authorities(cx, with(&here, &["caFile"]), file);
    }
    if server.timeout.0.is_zero() || server.timeout.0.as_secs() >= 2 {
        cx.error(
            with(&here, &["timeout"]),
            format!("found {}; expected above zero and below 2s, the longest wait of a request", server.timeout),
        );
    }
    let prefix = server.key_prefix;
    if prefix.is_empty() || prefix.chars().any(|c| c.is_whitespace() || matches!(c, '{' | '}')) {
        cx.error(
            with(&here, &["keyPrefix"]),
            "not valid as a prefix; expected at least one character, and neither spaces nor braces",
        );
    }
}
