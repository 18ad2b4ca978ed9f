//! `spillway keys`: keys of consumers that are made while the gateway runs, through the admin address.

use std::process::ExitCode;

use clap::{Args, Subcommand};
use http::StatusCode;
use serde::Deserialize;
use serde_json::json;
use spillway_config::values::{Duration, Rate};

use super::admin::{ClientError, PageArguments, segment};
use super::{FAILED, WRONG, block_on, fail};
use crate::identity::KEY_PREFIX;

#[derive(Subcommand)]
pub(super) enum KeysCommand {
    /// Make a key for a consumer; print it, once.
    Create {
        /// The consumer, as in the configuration.
        consumer: String,
        /// Time from which on the key is refused, such as 2027-01-31T00:00:00Z.
        #[arg(long, value_name = "TIME")]
        expires: Option<String>,
        #[command(flatten)]
        limits: Box<Limits>,
        #[command(flatten)]
        shared: PageArguments,
    },
    /// List the keys.
    List {
        #[command(flatten)]
        shared: PageArguments,
    },
    /// Give a key a new secret; print it, once.
    Rotate {
        #[command(flatten)]
        key: KeyId,
        /// Time for which the secret before is accepted too, such as 1h; at most 30 days.
        #[arg(long, value_name = "TIME")]
        grace: Option<Duration>,
        #[command(flatten)]
        shared: PageArguments,
    },
    /// Remove a key: it is refused from now on.
    Revoke {
        #[command(flatten)]
        key: KeyId,
        #[command(flatten)]
        shared: PageArguments,
    },
    /// End a key, now or at a time; it stays in the list.
    Expire {
        #[command(flatten)]
        key: KeyId,
        /// Time from which on the key is refused, such as 2027-01-31T00:00:00Z; now when left out.
        #[arg(long, value_name = "TIME")]
        at: Option<String>,
        #[command(flatten)]
        shared: PageArguments,
    },
}

/// Key that is meant.
#[derive(Args)]
pub(super) struct KeyId {
    /// Id of the key, as `spillway keys list` shows it; never the key itself.
    id: String,
}

/// Limits of a key, beside those of its consumer.
#[derive(Args)]
pub(super) struct Limits {
    /// Requests in a period, such as 100/min.
    #[arg(long, value_name = "RATE")]
    requests: Option<Rate>,
    /// Tokens, read and written, in a period.
    #[arg(long, value_name = "RATE")]
    tokens: Option<Rate>,
    /// Requests that may run at the same time.
    #[arg(long, value_name = "COUNT")]
    concurrency: Option<u32>,
    /// Budget in tokens.
    #[arg(long, value_name = "COUNT")]
    budget_tokens: Option<u64>,
    /// Budget in US dollars, by the prices of the configuration.
    #[arg(long, value_name = "SUM")]
    budget_usd: Option<f64>,
    /// Period of the budget: day or month.
    #[arg(long, value_name = "PERIOD", default_value = "month", value_parser = ["day", "month"])]
    per: String,
}

/// Parts of an answer that are shown.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Key {
    id: String,
    state: String,
    #[serde(default)]
    key: Option<String>,
    #[serde(default)]
    consumer: Option<String>,
    #[serde(default)]
    created_at: Option<String>,
    #[serde(default)]
    expires: Option<String>,
    #[serde(default)]
    previous_until: Option<String>,
    #[serde(default)]
    limits: Option<serde_json::Value>,
}

#[derive(Deserialize)]
struct List {
    keys: Vec<Key>,
}

impl Limits {
    /// Limits as the admin API reads them; `None` without any.
    fn json(&self) -> Option<serde_json::Value> {
        let mut limits = serde_json::Map::new();
        let mut set = |name: &str, value: Option<serde_json::Value>| {
            if let Some(value) = value {
                limits.insert(name.to_owned(), value);
            }
        };
        set("requests", self.requests.map(|rate| json!(rate)));
        set("tokens", self.tokens.map(|rate| json!(rate)));
        set("concurrency", self.concurrency.map(|count| json!(count)));
        let has_budget = self.budget_tokens.is_some() || self.budget_usd.is_some();
        let budget = json!({"tokens": self.budget_tokens, "usd": self.budget_usd, "per": self.per});
        set("budget", has_budget.then_some(budget));
        (!limits.is_empty()).then(|| limits.into())
    }
}

/// Runs a command about keys.
pub(super) fn run(command: KeysCommand) -> ExitCode {
    let id = match &command {
        KeysCommand::Rotate { key, .. } | KeysCommand::Revoke { key, .. } | KeysCommand::Expire { key, .. } => {
            key.id.as_str()
        }
        KeysCommand::Create { .. } | KeysCommand::List { .. } => "",
    };
    if id.starts_with(KEY_PREFIX) {
        return fail(WRONG, &"this is a key itself; expected its id, as `spillway keys list` shows it");
    }
    block_on(async {
        match carry_out(command).await {
            Ok(()) => ExitCode::SUCCESS,
            Err(e) => fail(code_of(&e), &e),
        }
    })
}

/// Exit code of a failed request: a key or consumer that is not there is wrong usage.
fn code_of(e: &ClientError) -> u8 {
    match e {
        ClientError::Refused { status, .. } if matches!(*status, StatusCode::NOT_FOUND | StatusCode::BAD_REQUEST) => {
            WRONG
        }
        _ => FAILED,
    }
}

async fn carry_out(command: KeysCommand) -> Result<(), ClientError> {
    let path_of = |key: &KeyId| format!("/api/keys/{}", segment(&key.id));
    match command {
        KeysCommand::Create { consumer, expires, limits, shared } => {
            let body = json!({"consumer": consumer, "expires": expires, "limits": limits.json()});
            let page = shared.admin.post_json("/api/keys", &body).await?;
            print(&shared, &page)
        }
        KeysCommand::List { shared } => {
            let page = shared.admin.get("/api/keys").await?;
            if shared.json {
                println!("{}", String::from_utf8_lossy(&page));
                return Ok(());
            }
            let list: List = shared.admin.parse(&page)?;
            for key in &list.keys {
                println!("{}", line(key));
            }
            Ok(())
        }
        KeysCommand::Rotate { key, grace, shared } => {
            let page = shared.admin.post_json(&format!("{}/rotate", path_of(&key)), &json!({ "grace": grace })).await?;
            print(&shared, &page)
        }
        KeysCommand::Revoke { key, shared } => {
            let page = shared.admin.delete(&path_of(&key)).await?;
            if shared.json {
                println!("{}", String::from_utf8_lossy(&page));
            } else {
                println!("{}: revoked", key.id);
            }
            Ok(())
        }
        KeysCommand::Expire { key, at, shared } => {
            let page = shared.admin.post_json(&format!("{}/expire", path_of(&key)), &json!({ "at": at })).await?;
            print(&shared, &page)
        }
    }
}

/// Prints a key; its secret, where the answer has it, on a line of its own.
fn print(shared: &PageArguments, page: &[u8]) -> Result<(), ClientError> {
    if shared.json {
        println!("{}", String::from_utf8_lossy(page));
        return Ok(());
    }
    let key: Key = shared.admin.parse(page)?;
    println!("{}", line(&key));
    if let Some(secret) = &key.key {
        println!("key: {secret}");
        eprintln!("Give the key to the caller; it is not shown again.");
    }
    Ok(())
}

/// Line about a key.
fn line(key: &Key) -> String {
    let mut line = format!("{}  {}  {}", key.id, key.state, key.consumer.as_deref().unwrap_or("-"));
    for (name, value) in
        [("made", &key.created_at), ("ends", &key.expires), ("secret before until", &key.previous_until)]
    {
        if let Some(value) = value {
            line.push_str(&format!("  {name} {value}"));
        }
    }
    if let Some(serde_json::Value::Object(limits)) = &key.limits {
        // That a request over a limit is refused goes without saying.
        let set = limits.iter().filter(|(_, value)| *value != "reject");
        let set: Vec<String> = set.map(|(name, value)| format!("{name} {}", plain(value))).collect();
        line.push_str(&format!("  limits {}", set.join(", ")));
    }
    line
}

fn plain(value: &serde_json::Value) -> String {
    match value {
        serde_json::Value::String(text) => text.clone(),
        serde_json::Value::Object(entries) => {
            let set = entries.iter().filter(|(_, value)| *value != "reject");
            set.map(|(name, value)| format!("{name} {}", plain(value))).collect::<Vec<_>>().join(" ")
        }
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_names_what_is_set_and_never_the_key() {
        let page = json!({
            "id": "key-1", "state": "active", "key": "sk-spillway-secret", "consumer": "acme",
            "createdAt": "2026-12-01T00:00:00.000Z",
            "limits": {"requests": "5/min", "onExceeded": "reject"},
        });
        let key: Key = serde_json::from_value(page).unwrap();
        assert_eq!(line(&key), "key-1  active  acme  made 2026-12-01T00:00:00.000Z  limits requests 5/min");
    }
}
