//! Checks of `notifications`.

use std::time::Duration;

use super::{Context, at};
use crate::schema::Notification;

/// Longest `timeout` of an attempt: one that hangs holds a connection.
const MAX_TIMEOUT: Duration = Duration::from_secs(60);
/// Shortest `retry.base`: a receiver that refuses is not asked without pause.
const MIN_BASE: Duration = Duration::from_millis(10);
/// Longest `retry.giveUpAfter`: events wait in memory.
const MAX_AGE: Duration = Duration::from_secs(7 * 86_400);

pub(super) fn all(cx: &mut Context<'_>) {
    for (n, written) in cx.config.notifications.iter().enumerate() {
        one(cx, n, written);
    }
}

fn one(cx: &mut Context<'_>, n: usize, written: &Notification) {
    let webhook = &written.webhook;
    let url = url::Url::parse(&webhook.url);
    // The URL may hold a secret, so no message quotes it.
    match &url {
        Ok(url) if !matches!(url.scheme(), "http" | "https") || !url.has_host() => {
            cx.error(
                at!["notifications", n, "webhook", "url"],
                "the scheme is neither http nor https; expected https://HOST/PATH",
            );
        }
        Ok(_) => super::without_login(cx, at!["notifications", n, "webhook", "url"], &webhook.url),
        Err(e) => {
            let message = format!("not the URL of a receiver ({e}); expected https://HOST/PATH");
            cx.error(at!["notifications", n, "webhook", "url"], message);
        }
    }
    let earlier = cx.config.notifications.iter().take(n);
    if let Some(first) = earlier.clone().position(|other| other.webhook.url == webhook.url) {
        let message = format!("the same URL as notifications[{first}]; it would receive every event twice: remove one");
        cx.error(at!["notifications", n, "webhook", "url"], message);
    }
    if let Some(file) = &webhook.ca_file {
        if url.is_ok_and(|url| url.scheme() == "http") {
            cx.error(
                at!["notifications", n, "webhook", "caFile"],
                "no effect without TLS: write https:// in `url`, or remove this",
            );
        }
        super::listeners::authorities(cx, at!["notifications", n, "webhook", "caFile"], file);
    }
    if written.events.is_empty() {
        cx.error(at!["notifications", n, "events"], "no event is sent; expected at least one, such as [rollout]");
    }
    for (place, event) in written.events.iter().enumerate() {
        if written.events.iter().take(place).any(|other| other == event) {
            cx.error(at!["notifications", n, "events", place], "the same event twice: remove one");
        }
    }
    if webhook.timeout.0.is_zero() || webhook.timeout.0 > MAX_TIMEOUT {
        let message = format!("found {}; expected above zero and at most 60s", webhook.timeout);
        cx.error(at!["notifications", n, "webhook", "timeout"], message);
    }
    let retry = &webhook.retry;
    if retry.base.0 < MIN_BASE {
        let message = format!("found {}; expected at least 10ms, to spare the receiver", retry.base);
        cx.error(at!["notifications", n, "webhook", "retry", "base"], message);
    }
    if retry.max < retry.base {
        let message = format!("found {}; expected at least `base`, {}", retry.max, retry.base);
        cx.error(at!["notifications", n, "webhook", "retry", "max"], message);
    }
    if retry.give_up_after.0.is_zero() || retry.give_up_after.0 > MAX_AGE {
        let message = format!("found {}; expected above zero and at most 7d", retry.give_up_after);
        cx.error(at!["notifications", n, "webhook", "retry", "giveUpAfter"], message);
    }
}
