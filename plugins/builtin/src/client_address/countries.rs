//! Countries of addresses, from a database in MaxMind's format
//! ([specification](https://maxmind.github.io/MaxMind-DB/)).

use std::net::IpAddr;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;

use maxminddb::{PathElement, Reader, WithinOptions};
use spillway_filter::SharedStates;

/// Codes of ISO 3166-1 alpha-2 that stand for countries, and `XK`, which databases use for Kosovo.
const CODES: &str = "AD AE AF AG AI AL AM AO AQ AR AS AT AU AW AX AZ BA BB BD BE BF BG BH BI BJ BL BM BN BO BQ BR BS BT BV BW BY BZ CA \
                     CC CD CF CG CH CI CK CL CM CN CO CR CU CV CW CX CY CZ DE DJ DK DM DO DZ EC EE EG EH ER ES ET FI FJ FK FM FO FR GA \
                     GB GD GE GF GG GH GI GL GM GN GP GQ GR GS GT GU GW GY HK HM HN HR HT HU ID IE IL IM IN IO IQ IR IS IT JE JM JO JP \
                     KE KG KH KI KM KN KP KR KW KY KZ LA LB LC LI LK LR LS LT LU LV LY MA MC MD ME MF MG MH MK ML MM MN MO MP MQ MR MS \
                     MT MU MV MW MX MY MZ NA NC NE NF NG NI NL NO NP NR NU NZ OM PA PE PF PG PH PK PL PM PN PR PS PT PW PY QA RE RO RS \
                     RU RW SA SB SC SD SE SG SH SI SJ SK SL SM SN SO SR SS ST SV SX SY SZ TC TD TF TG TH TJ TK TL TM TN TO TR TT TV TW \
                     TZ UA UG UM US UY UZ VA VC VE VG VI VN VU WF WS XK YE YT ZA ZM ZW";
/// Records of a database that are looked at to see whether it is one of countries.
const LOOKED_AT: usize = 1000;

/// Code of a country, two capital letters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Code([u8; 2]);

impl Code {
    /// Reads a code.
    ///
    /// # Errors
    ///
    /// A message where it is none of ISO 3166-1.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let is_one = CODES.split_ascii_whitespace().any(|code| code == text);
        let hint = match text {
            "UK" => ": the United Kingdom is GB",
            "EL" => ": Greece is GR",
            _ if CODES.split_ascii_whitespace().any(|code| code.eq_ignore_ascii_case(text)) => ": use capital letters",
            _ => "",
        };
        let code = Self::of(text).filter(|_| is_one);
        code.ok_or_else(|| format!("`{text}` is no code of a country in ISO 3166-1, such as DE{hint}"))
    }

    /// Code as a database has it.
    fn of(text: &str) -> Option<Self> {
        text.as_bytes().try_into().ok().map(Self)
    }
}

/// Database of the countries of addresses, in memory.
pub(super) struct Database {
    reader: Reader<Vec<u8>>,
}

/// Paths under which records have the code of a country: those of MaxMind and DB-IP, and flat ones of others.
const PATHS: [&[PathElement<'static>]; 3] = [
    &[PathElement::Key("country"), PathElement::Key("iso_code")],
    &[PathElement::Key("country_code")],
    &[PathElement::Key("country")],
];

impl Database {
    /// Reads a database.
    ///
    /// # Errors
    ///
    /// A message where the file cannot be read or is no database of countries.
    pub(super) fn open(path: &Path) -> Result<Self, String> {
        let bytes = spillway_config::read_bytes(path).map_err(|error| format!("cannot read the file: {error}"))?;
        let reader = Reader::from_source(bytes)
            .map_err(|error| format!("not a database in MaxMind's format, or cut short: {error}"))?;
        let database = Self { reader };
        if database.has_countries()? {
            return Ok(database);
        }
        let kind = &database.reader.metadata().database_type;
        Err(format!(
            "found a database of the type `{kind}` without codes of countries; expected one such as GeoLite2-Country"
        ))
    }

    fn has_countries(&self) -> Result<bool, String> {
        let broken = |error| format!("the database is damaged: {error}");
        for found in self.reader.networks(WithinOptions::default()).map_err(broken)?.take(LOOKED_AT) {
            let found = found.map_err(broken)?;
            for path in PATHS {
                // A name, such as `Germany`, is no code.
                if matches!(found.decode_path::<&str>(path), Ok(Some(code)) if Code::parse(code).is_ok()) {
                    return Ok(true);
                }
            }
        }
        Ok(false)
    }

    /// Country of an address; `None` where the database knows none.
    ///
    /// # Errors
    ///
    /// Where the record of the address cannot be read.
    fn country(&self, address: IpAddr) -> Result<Option<Code>, maxminddb::MaxMindDbError> {
        let address = address.to_canonical();
        if address.is_ipv6() && self.reader.metadata().ip_version == 4 {
            return Ok(None);
        }
        let found = self.reader.lookup(address)?;
        if !found.has_data() {
            return Ok(None);
        }
        for path in PATHS {
            // A record of another shape has something else under the path.
            if let Ok(Some(code)) = found.decode_path::<&str>(path) {
                return Ok(Code::of(code));
            }
        }
        Ok(None)
    }
}

/// Entry of a file among the states that filters share.
type Shared = Result<Arc<Database>, String>;

/// Countries of a filter.
pub(super) struct Countries {
    database: Arc<Database>,
    allow: Vec<Code>,
    deny: Vec<Code>,
    /// Keeps the entry alive for the other filters.
    _shared: Arc<Shared>,
}

impl Countries {
    /// Countries by the database of a file, which all filters share while the file stays as it is: one has several megabytes.
    ///
    /// # Errors
    ///
    /// As [`Database::open`].
    pub(super) fn new(states: &SharedStates, path: &Path, allow: Vec<Code>, deny: Vec<Code>) -> Result<Self, String> {
        let file = std::fs::metadata(path).map_err(|error| format!("cannot read the file: {error}"))?;
        let version = (file.dev(), file.ino(), file.len(), file.mtime(), file.mtime_nsec(), file.ctime_nsec());
        let name = format!("countries {version:?} {}", path.display());
        let shared = states.get_or_insert(&name, || -> Shared { Database::open(path).map(Arc::new) });
        Ok(Self { database: shared.as_ref().clone()?, allow, deny, _shared: shared })
    }

    /// True if the country of an address lets it call. `is_listed` is true for an address that may call whatever its country, if
    /// that is not denied.
    pub(super) fn may_call(&self, address: IpAddr, is_listed: bool) -> bool {
        match self.database.country(address) {
            Ok(Some(country)) => !self.deny.contains(&country) && (is_listed || self.allow.contains(&country)),
            Ok(None) => is_listed,
            // Of a damaged record nobody knows what it denies.
            Err(_) => is_listed && self.deny.is_empty(),
        }
    }
}

#[cfg(test)]
pub(super) mod tests;
