//! Databases of the countries of addresses.

use std::collections::BTreeMap;
use std::path::Path;

use maxminddb_writer::Database;
use maxminddb_writer::metadata::IpVersion;
use maxminddb_writer::paths::IpAddrWithMask;

/// Writes a database in MaxMind's format: networks of IPv4 and the codes of their countries.
pub fn write_countries(path: &Path, networks: &[(&str, &str)]) {
    let mut database = Database::default();
    database.metadata.ip_version = IpVersion::V4;
    database.metadata.binary_format_major_version = 2;
    database.metadata.database_type = "Test-Country".to_owned();
    for (network, code) in networks {
        let record = BTreeMap::from([("country", BTreeMap::from([("iso_code", *code)]))]);
        let record = database.insert_value(record).unwrap();
        database.insert_node(network.parse::<IpAddrWithMask>().unwrap(), record);
    }
    database.write_to(std::fs::File::create(path).unwrap()).unwrap();
}
