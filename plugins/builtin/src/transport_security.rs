//! `strictTransportSecurity`: makes browsers use TLS only (RFC 6797).

use std::sync::Arc;

use http::header::{self, HeaderValue};
use schemars::JsonSchema;
use serde::Deserialize;
use spillway_config::values::Duration;
use spillway_filter::{FieldError, Filter, FilterFactory, Headers, Stage, Variables, define};

/// Least `maxAge` of the browsers' preload list (hstspreload.org): one year.
const PRELOAD_SECONDS: u64 = 365 * 86_400;

/// Makes browsers use TLS only. Sent over TLS only, since browsers ignore it otherwise.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct StrictTransportSecurity {
    /// Time that a browser remembers the rule; 0 makes it forget.
    max_age: Duration,
    /// Includes all subdomains of the host.
    include_subdomains: bool,
    /// Allows the host on the browsers' preload list.
    preload: bool,
}

impl Default for StrictTransportSecurity {
    fn default() -> Self {
        Self { max_age: Duration::seconds(PRELOAD_SECONDS), include_subdomains: false, preload: false }
    }
}

pub(crate) fn factory() -> Box<dyn FilterFactory> {
    let check = |c: &StrictTransportSecurity| {
        if c.preload && !(c.include_subdomains && c.max_age.0.as_secs() >= PRELOAD_SECONDS) {
            let why = "`preload` needs `includeSubdomains: true` and a `maxAge` of at least 365d";
            return vec![FieldError::at(["preload"], why)];
        }
        Vec::new()
    };
    define("strictTransportSecurity", check, |c: StrictTransportSecurity, _| {
        let mut value = format!("max-age={}", c.max_age.0.as_secs());
        for (wanted, directive) in [(c.include_subdomains, "; includeSubDomains"), (c.preload, "; preload")] {
            if wanted {
                value.push_str(directive);
            }
        }
        let value = HeaderValue::from_str(&value).map_err(|e| FieldError::at([], e.to_string()))?;
        Ok(Arc::new(Strict(value)) as Arc<dyn Filter>)
    })
}

struct Strict(HeaderValue);

impl Filter for Strict {
    fn stage(&self) -> Stage {
        Stage::Guard
    }

    fn on_response(&self, headers: &mut dyn Headers, variables: &Variables<'_>) {
        if variables.secure {
            headers.set(&header::STRICT_TRANSPORT_SECURITY, self.0.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use spillway_filter::testing::{FilterBuilder, variables};

    use super::*;

    #[test]
    fn only_answers_over_tls_carry_it() {
        let json = serde_json::json!({"maxAge": "730d", "includeSubdomains": true, "preload": true});
        let filter = FilterBuilder::new().build(&*factory(), &json);
        for (secure, value) in [(true, Some("max-age=63072000; includeSubDomains; preload")), (false, None)] {
            let mut headers = spillway_filter::Fields::default();
            filter.on_response(&mut headers, &Variables { secure, ..variables() });
            assert_eq!(headers.get(header::STRICT_TRANSPORT_SECURITY).map(|v| v.to_str().unwrap()), value);
        }
        assert_eq!(factory().check(&serde_json::json!({"preload": true})).len(), 1);
    }
}
