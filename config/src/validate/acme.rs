//! Checks of `listeners[].tls.acme`.

use crate::values::quoted_url;

use super::{Context, at, listeners};
use crate::schema::{Acme, AcmeChallenge, ListenerProtocol};

/// Names of one certificate; what Let's Encrypt takes.
const MAX_DOMAINS: usize = 100;

pub(super) fn check(cx: &mut Context<'_>, n: usize, acme: &Acme) {
    let below = |key: &str| at!["listeners", n, "tls", "acme", key];
    let directory = url::Url::parse(&acme.directory);
    if !directory.is_ok_and(|url| url.scheme() == "https" && url.has_host()) {
        let message = format!(
            "{} is not the URL of an authority's directory; expected one with https://",
            quoted_url(&acme.directory)
        );
        cx.error(below("directory"), message);
    }
    super::without_login(cx, below("directory"), &acme.directory);
    if acme.domains.is_empty() || acme.domains.len() > MAX_DOMAINS {
        cx.error(
            below("domains"),
            format!("{} names; expected 1 to {MAX_DOMAINS} for a certificate", acme.domains.len()),
        );
    }
    for (d, domain) in acme.domains.iter().enumerate() {
        let here = at!["listeners", n, "tls", "acme", "domains", d];
        if domain.starts_with("*.") {
            let why = "a name with a star needs a challenge by DNS, which is not supported: list the names, or put a \
                       certificate from elsewhere into `certificates`";
            cx.error(here, why);
        } else if !is_name(domain) {
            cx.error(here, format!("`{domain}` is not a DNS name; expected one such as api.example.com"));
        } else if acme.domains.iter().take(d).any(|other| other.eq_ignore_ascii_case(domain)) {
            cx.error(here, format!("duplicate name `{domain}`: remove one"));
        }
    }
    if acme.email.as_ref().is_some_and(|email| !is_email(email)) {
        cx.error(below("email"), "this is not the address of one mailbox; expected one such as ops@example.com");
    }
    if acme.challenge == AcmeChallenge::Http01
        && !cx.config.listeners.iter().any(|listener| listener.protocol == ListenerProtocol::Http)
    {
        cx.error(
            below("challenge"),
            "the authority asks port 80 of each name without TLS, and no listener has `protocol: http`: add one",
        );
    }
    if acme.renew_before.is_some_and(|before| before.0.is_zero()) {
        cx.error(
            below("renewBefore"),
            "a certificate that is renewed when it has ended comes too late; expected more than 0s",
        );
    }
    if acme.retry.base.0.is_zero() || acme.retry.max < acme.retry.base {
        cx.error(
            below("retry"),
            format!(
                "found {} and {}; expected `base` above zero and `max` no shorter",
                acme.retry.base, acme.retry.max
            ),
        );
    }
    shared(cx, n, acme);
    if let Some(file) = &acme.ca_file {
        listeners::authorities(cx, below("caFile"), file);
    }
}

/// Checks that listeners agree which order the same certificate, or use the same account, of an authority and folder.
fn shared(cx: &mut Context<'_>, n: usize, acme: &Acme) {
    let before = cx.config.listeners.iter().take(n).filter_map(|listener| {
        let other = listener.tls.as_ref()?.acme.as_ref()?;
        let same_place = other.storage == acme.storage && other.directory.eq_ignore_ascii_case(&acme.directory);
        same_place.then(|| (listener.shown_name(), other))
    });
    for (name, other) in before.collect::<Vec<_>>() {
        let lower = |acme: &Acme| acme.domains.iter().map(|name| name.to_ascii_lowercase()).collect::<Vec<_>>();
        if other != acme && lower(other) == lower(acme) {
            let message = format!(
                "listener `{name}` asks for a certificate for the same names with other settings, and both would be stored \
                 in one file: write the same in both places, or give each a `storage` of its own"
            );
            return cx.error(at!["listeners", n, "tls", "acme"], message);
        }
        if other.email != acme.email || other.external_account != acme.external_account {
            let message = format!(
                "listener `{name}` has another `email` or `externalAccount`, and there is one account for a directory and \
                 a `storage`: write the same in both places, or give each a `storage` of its own"
            );
            return cx.error(at!["listeners", n, "tls", "acme"], message);
        }
    }
}

/// True for a DNS name of at least one label that is no address (RFC 1123, 2.1).
fn is_name(text: &str) -> bool {
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    text.len() <= 253 && text.split('.').all(label) && text.parse::<std::net::IpAddr>().is_err()
}

/// Enough of RFC 5321 to tell an address from a list, a URL or a header.
fn is_email(text: &str) -> bool {
    let sound = |c: char| c.is_ascii_graphic() && !matches!(c, '<' | '>' | ',' | '"' | '?' | '%' | ':');
    text.chars().all(sound)
        && text.split_once('@').is_some_and(|(name, host)| !name.is_empty() && is_name(host) && host.contains('.'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_addresses_of_mailboxes_are_told_from_what_is_none() {
        for good in ["a.test", "API.example.com", "xn--bcher-kva.example", "localhost"] {
            assert!(is_name(good), "{good}");
        }
        for bad in ["", ".", "a..b", "-a.test", "a-.test", "a_b.test", "127.0.0.1", "bücher.example", "a.test."] {
            assert!(!is_name(bad), "{bad}");
        }
        assert!(is_email("ops@example.com") && is_email("a+b.c@x.example.com"));
        for bad in ["ops", "@example.com", "a@b", "a@b.c,d@e.f", "a b@c.d", "mailto:a@b.c", "a@b@c.d"] {
            assert!(!is_email(bad), "{bad}");
        }
    }
}
