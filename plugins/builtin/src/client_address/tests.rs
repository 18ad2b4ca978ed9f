use std::net::IpAddr;

use maxminddb_writer::metadata::IpVersion;
use serde_json::{Value, json};
use spillway_filter::testing::{FilterBuilder, TestRequest};

use super::*;

fn filter(config: &Value) -> Arc<dyn Filter> {
    FilterBuilder::new().build(&*factory(), config)
}

/// Addresses that may call.
fn pass<'a>(config: &Value, addresses: &[&'a str]) -> Vec<&'a str> {
    let filter = filter(config);
    let passes = |address: &&&str| {
        let request = TestRequest::get("/").client(address.parse::<IpAddr>().unwrap());
        matches!(request.decide(&*filter), Flow::Continue)
    };
    addresses.iter().filter(passes).copied().collect()
}

fn told(config: &Value) -> Vec<String> {
    factory().check(config).iter().map(|error| format!("{error:?}")).collect()
}

const ALL: [&str; 5] = ["203.0.113.1", "203.0.113.99", "198.51.100.1", "192.0.2.1", "2001:db8::1"];

#[test]
fn networks_may_stand_in_files_as_lists_are_published() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        std::fs::write(folder.path().join(name), text).unwrap();
        folder.path().join(name)
    };
    let drop = file("drop.txt", "; a list\n198.51.100.0/24 ; SBL1\n2001:db8::/32\n");
    let more = file("more.txt", "# ours\n203.0.113.99\t# a\n\n");
    assert_eq!(pass(&json!({"denyFiles": [drop, more]}), &ALL), ["203.0.113.1", "192.0.2.1"]);
    assert_eq!(pass(&json!({"allow": ["192.0.2.0/24"], "allowFiles": [more]}), &ALL), ["203.0.113.99", "192.0.2.1"]);
    let empty = file("empty.txt", "# nobody\n");
    assert!(pass(&json!({"allowFiles": [empty]}), &ALL).is_empty(), "an empty list lets nobody in");
    assert_eq!(pass(&json!({"denyFiles": [empty]}), &ALL), ALL);

    let wrong = file("wrong.txt", "10.0.0.0/8\n10.0.0.1/8\n");
    let told = told(&json!({"denyFiles": [wrong]}));
    assert!(told[0].contains("line 2 of the file: `10.0.0.1/8` has bits set behind its prefix"), "{told:?}");
}

#[test]
fn countries_add_to_what_is_allowed_and_denied_by_network() {
    let networks = [("203.0.113.0/24", "DE"), ("198.51.100.0/24", "FR")];
    let file = countries::tests::database(IpVersion::V4, &networks, countries::tests::nested);
    let countries = |allow: &[&str], deny: &[&str]| json!({"database": file.path(), "allow": allow, "deny": deny});

    let germany = json!({"countries": countries(&["DE"], &[])});
    assert_eq!(pass(&germany, &ALL), ["203.0.113.1", "203.0.113.99"]);
    let not_france = json!({"countries": countries(&[], &["FR"])});
    assert_eq!(pass(&not_france, &ALL), ["203.0.113.1", "203.0.113.99", "192.0.2.1", "2001:db8::1"]);
    let and_an_office =
        json!({"allow": ["192.0.2.0/24"], "deny": ["203.0.113.99"], "countries": countries(&["DE"], &[])});
    assert_eq!(pass(&and_an_office, &ALL), ["203.0.113.1", "192.0.2.1"]);
    let an_office_of = json!({"allow": ["192.0.2.0/24", "198.51.100.0/24"], "countries": countries(&[], &["FR"])});
    assert_eq!(pass(&an_office_of, &ALL), ["192.0.2.1"], "what is denied wins");

    for (wrong, why) in [
        (json!({"countries": countries(&[], &[])}), "no effect: list codes such as DE"),
        (json!({"countries": countries(&["UK"], &[])}), "the United Kingdom is GB"),
        (json!({}), "no effect: every address may call"),
        (json!({"countries": {"database": "/dev/null", "deny": ["DE"]}}), "not a regular file"),
    ] {
        let told = told(&wrong);
        assert!(told.iter().any(|told| told.contains(why)), "{wrong}: {told:?}");
    }
    let missing = json!({"countries": {"database": "/none.mmdb", "deny": ["DE"]}});
    assert!(told(&missing).is_empty(), "missing files are reported by the configuration");
    assert!(FilterBuilder::new().try_build(&*factory(), &missing).is_err());
}
