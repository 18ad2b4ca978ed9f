use std::collections::BTreeMap;

use maxminddb_writer::Database as Writer;
use maxminddb_writer::metadata::IpVersion;
use maxminddb_writer::paths::IpAddrWithMask;

use super::*;

/// File of a database in which networks have the records of `make`.
pub(crate) fn database<T: serde::Serialize>(
    version: IpVersion,
    networks: &[(&str, &str)],
    make: impl Fn(&str) -> T,
) -> tempfile::NamedTempFile {
    let mut writer = Writer::default();
    writer.metadata.ip_version = version;
    writer.metadata.binary_format_major_version = 2;
    writer.metadata.database_type = "Test-Country".to_owned();
    for (network, country) in networks {
        let record = writer.insert_value(make(country)).unwrap();
        writer.insert_node(network.parse::<IpAddrWithMask>().unwrap(), record);
    }
    let mut file = tempfile::NamedTempFile::new().unwrap();
    writer.write_to(&mut file).unwrap();
    file
}

/// Record as MaxMind writes it.
pub(crate) fn nested(code: &str) -> BTreeMap<&'static str, BTreeMap<&'static str, String>> {
    let registered = BTreeMap::from([("iso_code", "US".to_owned())]);
    let mut record = BTreeMap::from([("registered_country", registered)]);
    if !code.is_empty() {
        record.insert("country", BTreeMap::from([("iso_code", code.to_owned())]));
    }
    record
}

fn flat(key: &'static str) -> impl Fn(&str) -> BTreeMap<&'static str, String> {
    move |code| BTreeMap::from([(key, code.to_owned())])
}

fn country(database: &Database, address: &str) -> Option<String> {
    let code = database.country(address.parse().unwrap()).unwrap();
    code.map(|Code(letters)| String::from_utf8(letters.to_vec()).unwrap())
}

#[test]
fn countries_are_found_in_the_records_of_each_maker() {
    let networks = [("203.0.113.0/24", "DE"), ("198.51.100.0/25", "FR")];
    let files = [
        database(IpVersion::V4, &networks, nested),
        database(IpVersion::V4, &networks, flat("country_code")),
        database(IpVersion::V4, &networks, flat("country")),
    ];
    for file in &files {
        let read = Database::open(file.path()).unwrap();
        for (address, wanted) in [
            ("203.0.113.255", Some("DE")),
            ("::ffff:203.0.113.7", Some("DE")),
            ("198.51.100.127", Some("FR")),
            ("198.51.100.128", None),
            ("127.0.0.1", None),
            ("2001:db8::1", None),
        ] {
            assert_eq!(country(&read, address).as_deref(), wanted, "{address}");
        }
    }
}

#[test]
fn a_record_without_a_country_has_none_whatever_is_registered() {
    let file = database(IpVersion::V4, &[("203.0.113.0/24", ""), ("198.51.100.0/24", "DE")], nested);
    let read = Database::open(file.path()).unwrap();
    assert_eq!(country(&read, "203.0.113.1"), None);
    assert_eq!(country(&read, "198.51.100.1").as_deref(), Some("DE"));
}

#[test]
fn what_is_no_database_of_countries_is_told() {
    let told = |bytes: &[u8]| {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), bytes).unwrap();
        Database::open(file.path()).err().unwrap()
    };
    assert!(told(b"country,code").contains("not a database in MaxMind's format, or cut short"));
    let good = std::fs::read(database(IpVersion::V4, &[("203.0.113.0/24", "DE")], nested).path()).unwrap();
    for length in 0..good.len() {
        let why = told(&good[..length]);
        assert!(
            why.contains("cut short") || why.contains("damaged") || why.contains("without codes of countries"),
            "{length}: {why}"
        );
    }
    let others = [
        database(IpVersion::V4, &[("203.0.113.0/24", "DE")], flat("autonomous_system_organization")),
        database(IpVersion::V4, &[("203.0.113.0/24", "Germany")], flat("country")),
    ];
    for file in others {
        let why = Database::open(file.path()).err().unwrap();
        assert!(
            why.contains("`Test-Country` without codes of countries; expected one such as GeoLite2-Country"),
            "{why}"
        );
    }
}

/// Damage of the data behind a sound head is an error or another answer, and never more.
#[test]
fn a_damaged_database_does_no_harm() {
    let networks = [("203.0.113.0/24", "DE"), ("198.51.100.0/24", "FR"), ("0.0.0.0/2", "US")];
    let good = std::fs::read(database(IpVersion::V4, &networks, nested).path()).unwrap();
    let file = tempfile::NamedTempFile::new().unwrap();
    for at in 0..good.len() {
        for value in [0x00, 0x20, 0xe0, 0xff] {
            let mut bytes = good.clone();
            bytes[at] = value;
            std::fs::write(file.path(), &bytes).unwrap();
            if let Ok(read) = Database::open(file.path()) {
                for address in ["203.0.113.1", "198.51.100.1", "1.2.3.4", "255.255.255.255", "2001:db8::1"] {
                    let _: Result<_, _> = read.country(address.parse().unwrap());
                }
            }
        }
    }
}

#[test]
fn a_code_is_one_of_the_standard_and_common_mistakes_get_a_hint() {
    assert!(["DE", "GB", "XK", "ZW", "AD"].iter().all(|code| Code::parse(code).is_ok()));
    for (text, hint) in [
        ("UK", "the United Kingdom is GB"),
        ("EL", "Greece is GR"),
        ("de", "capital letters"),
        ("D", ""),
        ("", ""),
        ("XX", ""),
    ] {
        let why = Code::parse(text).unwrap_err();
        assert!(why.starts_with(&format!("`{text}` is no code of a country")) && why.contains(hint), "{why}");
    }
    assert_eq!(CODES.split_ascii_whitespace().count(), 250);
    assert!(CODES.split_ascii_whitespace().is_sorted());
}

#[test]
fn filters_share_a_database_while_its_file_stays_as_it_is() {
    let states = SharedStates::default();
    let file = database(IpVersion::V4, &[("203.0.113.0/24", "DE")], nested);
    let new = || Countries::new(&states, file.path(), vec![Code::of("DE").unwrap()], Vec::new()).unwrap();
    let (first, second) = (new(), new());
    assert!(Arc::ptr_eq(&first.database, &second.database));
    let other = database(IpVersion::V4, &[("198.51.100.0/24", "DE")], nested);
    std::fs::copy(other.path(), file.path()).unwrap();
    let third = new();
    assert!(!Arc::ptr_eq(&first.database, &third.database));
    let address = "198.51.100.1".parse().unwrap();
    assert!(!first.may_call(address, false) && third.may_call(address, false));
}
