//! `admin`: the address for operators.

use std::num::NonZeroU32;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::values::{Duration, FilePath, ListenAddress, Secret};

/// Address for operators: the dashboard, `/metrics`, `/healthz`, `/readyz`, `/api`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Admin {
    /// IP and port; on loopback no token is needed.
    pub address: ListenAddress,
    /// Bearer token that everything but `/healthz`, `/readyz`, `/auth` and the files of the dashboard asks for. This or `oidc` is needed
    /// when the address is not loopback.
    #[serde(default)]
    pub token: Option<Secret>,
    /// Login of persons through an issuer by OpenID Connect. With it everything asks for a session or the token, on loopback too.
    #[serde(default)]
    pub oidc: Option<AdminLogin>,
    /// Further values of `Host` that are accepted on loopback.
    #[serde(default)]
    pub hosts: Vec<String>,
    /// Playground of the dashboard: chats with routes through the gateway, as the caller whose key is typed in. Allowed on
    /// loopback when left out, and nowhere else.
    #[serde(default)]
    pub playground: Option<bool>,
    /// Address of a trace, to which the dashboard links requests: http or https, with `{trace_id}` in it. It is shown to
    /// operators: no place for a secret.
    #[serde(default)]
    pub traces_url: Option<String>,
    /// Most open connections, of which one address off loopback may have a quarter. A new connection is always
    /// accepted: at the limit, the least used one is closed for it, silent ones first
    /// (`spillway_admin_connections_dropped_total`).
    #[serde(default = "max_connections")]
    pub max_connections: NonZeroU32,
}

impl Admin {
    /// True if chats through the admin address are allowed.
    pub fn allows_playground(&self) -> bool {
        self.playground.unwrap_or_else(|| self.address.0.ip().is_loopback())
    }
}

/// Login of operators by OpenID Connect: the authorization code flow with PKCE.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AdminLogin {
    /// Issuer, exactly as its tokens name it; its endpoints and keys are found through `ISSUER/.well-known/openid-configuration`.
    pub issuer: String,
    /// Name of the gateway at the issuer.
    pub client_id: String,
    /// Secret of the gateway at the issuer; left out for a public client, which PKCE alone protects.
    #[serde(default)]
    pub client_secret: Option<Secret>,
    /// Origin at which browsers reach this address: https, or http on loopback, without a path. `PUBLICURL/auth/callback` is the
    /// redirect URI to register at the issuer.
    pub public_url: String,
    /// Scopes that are asked for besides `openid`.
    #[serde(default = "scopes")]
    pub scopes: Vec<String>,
    /// Persons who may log in: those whose id token fits one of these.
    pub allow: Vec<AllowedClaim>,
    /// Claim that names a person in the audit log; `sub` where a token has none.
    #[serde(default = "person")]
    pub name: String,
    /// Authorities that are trusted for the issuer's servers, in PEM; those of the system when left out.
    #[serde(default)]
    pub ca_file: Option<FilePath>,
    /// Sessions of persons who have logged in.
    #[serde(default)]
    pub sessions: LoginSessions,
}

/// Claim of an id token and the values that let its person in.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AllowedClaim {
    /// Name of the claim: a text, or a list of texts. `email` counts only with `email_verified`.
    pub claim: String,
    /// Values of which the claim must have one, exactly.
    pub values: Vec<String>,
}

/// Sessions of persons who have logged in.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct LoginSessions {
    /// Time after which a person has to log in again: 8 hours, a day of work.
    pub lifetime: Duration,
    /// Time without a request after which a session ends. The dashboard asks every two seconds while it is seen.
    pub idle: Duration,
    /// Most sessions; at the limit, the one that was used least recently ends.
    pub most: NonZeroU32,
}

impl Default for LoginSessions {
    fn default() -> Self {
        Self {
            lifetime: Duration::seconds(8 * 3600),
            idle: Duration::seconds(3600),
            most: NonZeroU32::MIN.saturating_add(999),
        }
    }
}

fn scopes() -> Vec<String> {
    vec!["profile".to_owned(), "email".to_owned()]
}

fn person() -> String {
    "email".to_owned()
}

/// Operators, scrapers and probes are few.
pub(super) fn max_connections() -> NonZeroU32 {
    NonZeroU32::MIN.saturating_add(63)
}
