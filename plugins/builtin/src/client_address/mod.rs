//! `clientAddress`: filters by client address. Behind a trusted proxy of the listener, the address is the caller's.

mod countries;
mod ranges;

use std::net::IpAddr;
use std::sync::Arc;

use http::StatusCode;
use schemars::JsonSchema;
use serde::Deserialize;
use spillway_config::values::{FilePath, Network};
use spillway_filter::{
    BuildContext, ErrorKind, FieldError, Filter, FilterFactory, Flow, Refusal, RequestView, Stage, define,
};

use crate::list_file;
use countries::{Code, Countries, Database};
use ranges::Ranges;

/// Restricts the addresses that may call: those that a key named `allow` or `allowFiles` has, all if there is none, except those
/// that one named `deny` or `denyFiles` has.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct ClientAddress {
    /// Networks that may call.
    allow: Vec<Network>,
    /// Files with further networks that may call, one on each line. Lines that begin with `#` or `;`, and what stands behind a network,
    /// are comments.
    allow_files: Vec<FilePath>,
    /// Networks that may not call, whatever `allow` says.
    deny: Vec<Network>,
    /// Files with further networks that may not call, in the form of `allowFiles`.
    deny_files: Vec<FilePath>,
    /// Countries of addresses.
    countries: Option<InCountries>,
}

/// Countries by their codes in ISO 3166-1, such as `DE`. An address that the database does not know is in none.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct InCountries {
    /// Database of the countries of addresses, in MaxMind's format (`.mmdb`), of at most 64 MiB: GeoLite2, DB-IP, IPinfo and others.
    database: FilePath,
    /// Countries whose addresses may call.
    #[serde(default)]
    allow: Vec<String>,
    /// Countries whose addresses may not call, whatever any `allow` says.
    #[serde(default)]
    deny: Vec<String>,
}

/// Sets of a checked configuration, without what the database holds.
struct Lists {
    /// Sets of `allow` and its files, `None` where none is written.
    allow: Option<Ranges>,
    deny: Ranges,
    allowed_countries: Vec<Code>,
    denied_countries: Vec<Code>,
}

fn networks(key: &str, written: &[Network], files: &[FilePath], errors: &mut Vec<FieldError>) -> Ranges {
    let mut all = written.to_vec();
    for (n, text) in list_file::texts(key, files, errors) {
        list_file::read(key, n, &text, errors, |line| {
            let network = line.split([' ', '\t', ';', '#']).next().unwrap_or(line);
            all.push(network.parse::<Network>().map_err(|why| why.to_string())?);
            Ok(())
        });
    }
    Ranges::new(&all)
}

fn codes(key: &str, written: &[String], errors: &mut Vec<FieldError>) -> Vec<Code> {
    let mut all = Vec::new();
    for (n, text) in written.iter().enumerate() {
        match Code::parse(text) {
            Ok(code) => all.push(code),
            Err(why) => errors.push(FieldError::at(["countries", key, &n.to_string()], why)),
        }
    }
    all
}

fn compile(written: &ClientAddress) -> Result<Lists, Vec<FieldError>> {
    let mut errors = Vec::new();
    let ClientAddress { allow, allow_files, deny, deny_files, countries } = written;
    let has_lists = [allow.len(), allow_files.len(), deny.len(), deny_files.len()].iter().any(|length| *length > 0);
    if !has_lists && countries.is_none() {
        let why = "no effect: every address may call; list networks under `allow` or `deny`, files under `allowFiles` or `denyFiles`, or \
                   countries";
        errors.push(FieldError::at([], why));
    }
    let (mut allowed_countries, mut denied_countries) = (Vec::new(), Vec::new());
    if let Some(InCountries { allow, deny, database: _ }) = countries {
        if allow.is_empty() && deny.is_empty() {
            errors.push(FieldError::at(["countries"], "no effect: list codes such as DE under `allow` or `deny`"));
        }
        allowed_countries = codes("allow", allow, &mut errors);
        denied_countries = codes("deny", deny, &mut errors);
    }
    let limits = !allow.is_empty() || !allow_files.is_empty() || !allowed_countries.is_empty();
    let allowed = networks("allowFiles", allow, allow_files, &mut errors);
    let deny = networks("denyFiles", deny, deny_files, &mut errors);
    let allow = limits.then_some(allowed);
    if errors.is_empty() { Ok(Lists { allow, deny, allowed_countries, denied_countries }) } else { Err(errors) }
}

pub(crate) fn factory() -> Box<dyn FilterFactory> {
    let check = |written: &ClientAddress| {
        let mut errors = compile(written).err().unwrap_or_default();
        if let Some(InCountries { database, .. }) = &written.countries {
            // A file that is not there is reported by itself.
            if database.exists() {
                errors.extend(Database::open(database).err().map(|why| FieldError::at(["countries", "database"], why)));
            }
        }
        errors
    };
    define("clientAddress", check, |written: ClientAddress, cx: &BuildContext<'_>| {
        let lists = compile(&written).map_err(|mut errors| errors.swap_remove(0))?;
        let countries = match &written.countries {
            None => None,
            Some(countries) => {
                let wrong = |why| FieldError::at(["countries", "database"], why);
                let (allow, deny) = (lists.allowed_countries, lists.denied_countries);
                Some(Countries::new(cx.states, &countries.database, allow, deny).map_err(wrong)?)
            }
        };
        Ok(Arc::new(Addresses { allow: lists.allow, deny: lists.deny, countries }) as Arc<dyn Filter>)
    })
}

/// Filter with its sets.
struct Addresses {
    /// `None` where every address may call that is not denied.
    allow: Option<Ranges>,
    deny: Ranges,
    countries: Option<Countries>,
}

impl Addresses {
    fn may_call(&self, address: IpAddr) -> bool {
        if self.deny.contains(address) {
            return false;
        }
        let is_listed = self.allow.as_ref().is_none_or(|allow| allow.contains(address));
        self.countries.as_ref().map_or(is_listed, |countries| countries.may_call(address, is_listed))
    }
}

impl Filter for Addresses {
    fn stage(&self) -> Stage {
        Stage::Guard
    }

    fn on_request(&self, x: &mut RequestView<'_>) -> Flow {
        if self.may_call(x.client) {
            return Flow::Continue;
        }
        Flow::Refuse(Box::new(Refusal::new(
            StatusCode::FORBIDDEN,
            ErrorKind::Permission,
            "address_not_allowed",
            "requests from this address are not allowed here",
        )))
    }
}

#[cfg(test)]
mod tests;
