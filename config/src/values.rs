//! The scalar values of the language: durations, sizes, rates, secrets. Each has one parser, used by decoding, by the
//! position-aware checker and (as a `format`) by the JSON Schema. Nothing here knows the place of a value in a
//! document.

use std::borrow::Cow;
use std::ffi::OsStr;
use std::fmt;
use std::num::NonZeroU32;
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// Implements `Deserialize`, `Serialize` (through `FromStr` and `Display`) and `JsonSchema` (a string with a `format`
/// that the checker knows) for a value written as a string.
macro_rules! string_value {
    ($type:ident, $format:literal, $example:literal, $doc:literal) => {
        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = Cow::<'de, str>::deserialize(deserializer)?;
                text.parse().map_err(de::Error::custom)
            }
        }
        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }
        impl JsonSchema for $type {
            fn schema_name() -> Cow<'static, str> {
                stringify!($type).into()
            }
            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!({ "type": "string", "format": $format, "description": $doc, "examples": [$example] })
            }
        }
    };
}

/// Fault of a scalar, as a message for the person who wrote it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ValueError(pub String);

/// A length of time, written `250ms`, `30s`, `5m`, `1h30m`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Duration(pub std::time::Duration);

impl Duration {
    /// A duration of whole seconds.
    pub const fn seconds(s: u64) -> Self {
        Self(std::time::Duration::from_secs(s))
    }
    /// A duration of whole milliseconds.
    pub const fn millis(ms: u64) -> Self {
        Self(std::time::Duration::from_millis(ms))
    }
}

/// Longest duration that the language accepts: ten years, so that deadline arithmetic cannot overflow.
const MAX_SECONDS: f64 = 10.0 * 366.0 * 86_400.0;

impl FromStr for Duration {
    type Err = ValueError;
    fn from_str(text: &str) -> Result<Self, ValueError> {
        let wrong = || {
            ValueError(format!(
                "`{text}` is not a duration: write a number and a unit, such as 250ms, 30s, 5m or 1h30m"
            ))
        };
        let mut rest = text.trim();
        let mut seconds = 0.0f64;
        if rest.is_empty() {
            return Err(wrong());
        }
        while !rest.is_empty() {
            let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(wrong)?;
            let (number, tail) = rest.split_at(digits);
            let end = tail.find(|c: char| c.is_ascii_digit()).unwrap_or(tail.len());
            let (unit, tail) = tail.split_at(end);
            let scale = match unit {
                "us" | "µs" => 1e-6,
                "ms" => 1e-3,
                "s" => 1.0,
                "m" => 60.0,
                "h" => 3_600.0,
                "d" => 86_400.0,
                _ => return Err(wrong()),
            };
            seconds += number.parse::<f64>().map_err(|_| wrong())? * scale;
            rest = tail;
        }
        if !seconds.is_finite() || seconds > MAX_SECONDS {
            return Err(ValueError(format!("`{text}` is too long; expected at most ten years (3660d)")));
        }
        Ok(Self(std::time::Duration::from_secs_f64(seconds)))
    }
}

impl fmt::Display for Duration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let micros = self.0.as_micros();
        for (unit, size) in [("h", 3_600_000_000), ("m", 60_000_000), ("s", 1_000_000), ("ms", 1_000)] {
            if micros >= size && micros.is_multiple_of(size) {
                return write!(f, "{}{unit}", micros / size);
            }
        }
        if micros == 0 { f.write_str("0s") } else { write!(f, "{micros}us") }
    }
}

string_value!(Duration, "duration", "30s", "A length of time: a number and a unit (us, ms, s, m, h, d).");

/// A number of bytes, written `64KiB`, `20MiB`, `1GiB`, `512B`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Size(pub u64);

impl Size {
    /// `n` MiB.
    pub const fn mib(n: u64) -> Self {
        Self(n << 20)
    }
    /// `n` KiB.
    pub const fn kib(n: u64) -> Self {
        Self(n << 10)
    }
}

impl FromStr for Size {
    type Err = ValueError;
    fn from_str(text: &str) -> Result<Self, ValueError> {
        let wrong = || {
            ValueError(format!("`{text}` is not a size: write a number and a unit, such as 512B, 64KiB, 20MiB or 1GiB"))
        };
        let trimmed = text.trim();
        let digits = trimmed.find(|c: char| !c.is_ascii_digit()).ok_or_else(wrong)?;
        let (number, unit) = trimmed.split_at(digits);
        let scale: u64 = match unit {
            "B" => 1,
            "KiB" => 1 << 10,
            "MiB" => 1 << 20,
            "GiB" => 1 << 30,
            "kB" | "KB" => 1_000,
            "MB" => 1_000_000,
            "GB" => 1_000_000_000,
            _ => return Err(wrong()),
        };
        let number: u64 = number.parse().map_err(|_| wrong())?;
        number.checked_mul(scale).map(Self).ok_or_else(wrong)
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (unit, size) in [("GiB", 1u64 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)] {
            if self.0 >= size && self.0.is_multiple_of(size) {
                return write!(f, "{}{unit}", self.0 / size);
            }
        }
        write!(f, "{}B", self.0)
    }
}

string_value!(Size, "size", "20MiB", "A number of bytes: a number and a unit (B, KiB, MiB, GiB).");

/// Count in a period, written `100/s`, `1000/min`, `5/h`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// Count in the period.
    pub count: NonZeroU32,
    /// Length of the period.
    pub period: std::time::Duration,
}

impl FromStr for Rate {
    type Err = ValueError;
    fn from_str(text: &str) -> Result<Self, ValueError> {
        let wrong = || {
            ValueError(format!(
                "`{text}` is not a rate: write a whole number above zero and a period, such as 100/s, 1000/min or 5/h"
            ))
        };
        let (count, period) = text.trim().split_once('/').ok_or_else(wrong)?;
        let count = count.trim().parse::<NonZeroU32>().map_err(|_| wrong())?;
        let seconds = match period.trim() {
            "s" | "sec" | "second" => 1,
            "m" | "min" | "minute" => 60,
            "h" | "hour" => 3_600,
            "d" | "day" => 86_400,
            _ => return Err(wrong()),
        };
        Ok(Self { count, period: std::time::Duration::from_secs(seconds) })
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let unit = match self.period.as_secs() {
            1 => "s",
            60 => "min",
            3_600 => "h",
            _ => "d",
        };
        write!(f, "{}/{unit}", self.count)
    }
}

string_value!(Rate, "rate", "100/s", "So many in a period: a whole number and a unit (s, min, h, d).");

/// An address to listen on: IP and port, `127.0.0.1:8080`, `[::1]:8080`; port 0 takes a free one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ListenAddress(pub std::net::SocketAddr);

impl FromStr for ListenAddress {
    type Err = ValueError;
    fn from_str(text: &str) -> Result<Self, ValueError> {
        text.parse().map(Self).map_err(|_| {
            ValueError(format!(
                "`{text}` is not an address to listen on: write IP:PORT, such as 127.0.0.1:8080 or [::]:8080"
            ))
        })
    }
}

impl fmt::Display for ListenAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

string_value!(ListenAddress, "listen-address", "127.0.0.1:8080", "IP and port to listen on; port 0 takes a free one.");

/// Address of a server, `http://HOST[:PORT]` or `https://HOST[:PORT]`, without path, query or user.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ServerUrl {
    /// True for TLS.
    pub https: bool,
    /// Host name or IP literal (IPv6 without brackets).
    pub host: String,
    /// TCP port; 80 or 443 when the URL names none.
    pub port: u16,
}

/// Text of a URL as messages quote it. A text with `@` or `?` may hold a password or a key, wherever it stands in what is no
/// URL, and is not quoted.
pub fn quoted_url(text: &str) -> String {
    if text.contains(['@', '?']) {
        return "this text, which may hold a password and is not shown,".to_owned();
    }
    format!("`{text}`")
}

/// True for a URL with a user or a password.
pub(crate) fn has_login(url: &url::Url) -> bool {
    !url.username().is_empty() || url.password().is_some()
}

impl FromStr for ServerUrl {
    type Err = ValueError;
    fn from_str(text: &str) -> Result<Self, ValueError> {
        let url = url::Url::parse(text).map_err(|e| {
            let quoted = quoted_url(text);
            ValueError(format!("{quoted} is not the URL of a server ({e}): write http://HOST:PORT"))
        })?;
        let refuse = |why: &str| {
            let quoted = quoted_url(text);
            Err(ValueError(format!("{}: {why}", quoted.trim_end_matches(','))))
        };
        let https = match url.scheme() {
            "http" => false,
            "https" => true,
            _ => return refuse("the scheme of a server must be http or https"),
        };
        if has_login(&url) {
            return refuse("a server URL must not carry a user or password: write them as `credentials`");
        }
        let origin = url.origin().ascii_serialization();
        if url.query().is_some() || url.fragment().is_some() {
            return refuse(&format!("a server URL is scheme, host and port only, without a query: write {origin}"));
        }
        match url.path().trim_end_matches('/') {
            "" => {}
            // The base URL of a client, as vendors document it.
            path if path.ends_with("/v1") && path.matches('/').count() == 1 => {
                return refuse(&format!(
                    "a server URL has no path: that of the request, which begins with {path} too, is put behind it and {path} \
                     would come twice; write {origin}"
                ));
            }
            path => {
                return refuse(&format!(
                    "a server URL has no path, because that of the request is put behind it: write {origin}, and for servers \
                     that are below {path} the filter `urlRewrite: {{replacePrefix: {path}}}` on the route"
                ));
            }
        }
        let host = match url.host() {
            Some(url::Host::Domain(name)) => name.to_owned(),
            Some(url::Host::Ipv4(ip)) => ip.to_string(),
            Some(url::Host::Ipv6(ip)) => ip.to_string(),
            None => return refuse("the host is missing: write http://HOST:PORT"),
        };
        Ok(Self { https, host, port: url.port().unwrap_or(if https { 443 } else { 80 }) })
    }
}

impl fmt::Display for ServerUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.https { "https" } else { "http" };
        if self.host.contains(':') {
            write!(f, "{scheme}://[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{scheme}://{}:{}", self.host, self.port)
        }
    }
}

/// Address of a DNS server, with its port where that is not 53.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DnsServer(pub std::net::SocketAddr);

impl FromStr for DnsServer {
    type Err = ValueError;
    fn from_str(text: &str) -> Result<Self, ValueError> {
        let with_port = || text.parse::<std::net::IpAddr>().map(|ip| std::net::SocketAddr::new(ip, 53));
        text.parse().or_else(|_| with_port()).map(Self).map_err(|_| {
            ValueError(format!(
                "`{text}` is not the address of a DNS server: write 10.0.0.53, 10.0.0.53:5353 or [fd00::53]:53"
            ))
        })
    }
}

impl fmt::Display for DnsServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

string_value!(DnsServer, "dns-server", "10.0.0.53", "Address of a DNS server, with its port where that is not 53.");

/// IP address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HostAddress(pub std::net::IpAddr);

impl FromStr for HostAddress {
    type Err = ValueError;
    fn from_str(text: &str) -> Result<Self, ValueError> {
        text.parse().map(Self).map_err(|_| ValueError(format!("`{text}` is no IP address: write 0.0.0.0 or ::")))
    }
}

impl fmt::Display for HostAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

string_value!(HostAddress, "host-address", "0.0.0.0", "IP address, without a port.");

string_value!(ServerUrl, "server-url", "http://10.0.0.11:8000", "Address of a server: scheme, host and port.");

/// Addresses: one, or all of a network in CIDR form; `10.0.0.0/8`, `2001:db8::/32`, `203.0.113.7`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Network(pub ipnet::IpNet);

impl Network {
    /// True if the address is in the network. An IPv4 address inside IPv6 (`::ffff:10.0.0.1`) counts as the IPv4 one.
    pub fn contains(&self, address: std::net::IpAddr) -> bool {
        self.0.contains(&address.to_canonical())
    }
}

impl FromStr for Network {
    type Err = ValueError;
    fn from_str(text: &str) -> Result<Self, ValueError> {
        let network = text.parse::<ipnet::IpNet>().or_else(|_| text.parse::<std::net::IpAddr>().map(Into::into));
        let network = network.map_err(|_| {
            ValueError(format!("`{text}` is not a network: write ADDRESS/PREFIX, such as 10.0.0.0/8, or one address"))
        })?;
        if network.trunc() != network {
            return Err(ValueError(format!(
                "`{text}` has bits set behind its prefix: the network is {}",
                network.trunc()
            )));
        }
        Ok(Self(network))
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.prefix_len() == self.0.max_prefix_len() { self.0.addr().fmt(f) } else { self.0.fmt(f) }
    }
}

string_value!(Network, "network", "10.0.0.0/8", "A network in CIDR form, or one address.");

/// SHA-256 digest of an API key, as 64 hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct KeyDigest(pub [u8; 32]);

impl FromStr for KeyDigest {
    type Err = ValueError;
    fn from_str(text: &str) -> Result<Self, ValueError> {
        let mut digest = [0u8; 32];
        let wrong = || {
            ValueError(
                "this is not a SHA-256 digest; expected 64 hexadecimal digits, as `spillway key new` prints them"
                    .to_owned(),
            )
        };
        if text.len() != 64 || !text.is_ascii() {
            return Err(wrong());
        }
        for (byte, pair) in digest.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
            let pair = std::str::from_utf8(pair).map_err(|_| wrong())?;
            *byte = u8::from_str_radix(pair, 16).map_err(|_| wrong())?;
        }
        Ok(Self(digest))
    }
}

impl fmt::Display for KeyDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

string_value!(
    KeyDigest,
    "sha256",
    "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
    "SHA-256 digest of an API key in hexadecimal, as `spillway key new` prints it."
);

/// Day of the calendar, `2027-01-01`: its beginning in UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Date(time::Date);

impl Date {
    /// Seconds from 1970 to its beginning.
    pub fn unix_seconds(self) -> u64 {
        u64::try_from(self.0.midnight().assume_utc().unix_timestamp()).unwrap_or(0)
    }
}

impl FromStr for Date {
    type Err = ValueError;
    fn from_str(text: &str) -> Result<Self, ValueError> {
        let wrong = || ValueError(format!("`{text}` is not a day: write 2027-01-31"));
        let mut parts = text.split('-');
        let mut part = |digits: usize| {
            let part = parts.next().filter(|p| p.len() == digits && p.bytes().all(|b| b.is_ascii_digit()));
            part.and_then(|p| p.parse::<u16>().ok()).ok_or_else(wrong)
        };
        let (year, month, day) = (part(4)?, part(2)?, part(2)?);
        if parts.next().is_some() || year < 1970 {
            return Err(wrong());
        }
        let small = |n: u16| u8::try_from(n).map_err(|_| wrong());
        let month = time::Month::try_from(small(month)?).map_err(|_| wrong())?;
        time::Date::from_calendar_date(i32::from(year), month, small(day)?).map(Self).map_err(|_| wrong())
    }
}

impl fmt::Display for Date {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04}-{:02}-{:02}", self.0.year(), u8::from(self.0.month()), self.0.day())
    }
}

string_value!(Date, "date", "2027-01-01", "A day, YYYY-MM-DD; stands for its beginning in UTC.");

/// Threshold of a metric: `+0.02`, `-0.05`, `1.3x`, `0.8x` or `0.2`. A plain number may stand without quotes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Threshold(pub spillway_statistics::Threshold);

impl FromStr for Threshold {
    type Err = ValueError;
    fn from_str(text: &str) -> Result<Self, ValueError> {
        text.parse().map(Self).map_err(|e: spillway_statistics::ThresholdError| ValueError(e.to_string()))
    }
}

impl fmt::Display for Threshold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl<'de> Deserialize<'de> for Threshold {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match serde_json::Value::deserialize(deserializer)? {
            serde_json::Value::String(text) => text.parse().map_err(de::Error::custom),
            serde_json::Value::Number(number) => number.to_string().parse().map_err(de::Error::custom),
            _ => Err(de::Error::custom("expected a threshold such as +0.02, 1.3x or 0.2")),
        }
    }
}

impl Serialize for Threshold {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl JsonSchema for Threshold {
    fn schema_name() -> Cow<'static, str> {
        "Threshold".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": ["string", "number"], "format": "threshold", "examples": ["1.3x"],
            "description": "A difference from the stable version (+0.02, -0.05), a ratio to it (1.3x, 0.8x), or a limit (0.2)."
        })
    }
}

/// Pause of a rollout: `true` until a person resumes it, or a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pause {
    /// Until a person resumes; `false` is refused by validation.
    Person(bool),
    /// For a time.
    Time(Duration),
}

impl<'de> Deserialize<'de> for Pause {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match serde_json::Value::deserialize(deserializer)? {
            serde_json::Value::Bool(is_person) => Ok(Self::Person(is_person)),
            serde_json::Value::String(text) => text.parse().map(Self::Time).map_err(de::Error::custom),
            _ => Err(de::Error::custom("expected `true` or a duration such as 1h")),
        }
    }
}

impl Serialize for Pause {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Person(is_person) => serializer.serialize_bool(*is_person),
            Self::Time(time) => time.serialize(serializer),
        }
    }
}

impl JsonSchema for Pause {
    fn schema_name() -> Cow<'static, str> {
        "Pause".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": ["string", "boolean"], "format": "pause", "examples": ["1h"],
            "description": "`true`, until a person resumes, or a duration."
        })
    }
}

/// Hours of each day, `09:00-17:00`; the second is not part of them. `22:00-06:00` reaches into the next day.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DailyHours {
    /// First minute, from midnight on.
    pub from: u16,
    /// Minute behind the last, from midnight on; 1440 for the end of the day.
    pub to: u16,
}

impl FromStr for DailyHours {
    type Err = ValueError;
    fn from_str(text: &str) -> Result<Self, ValueError> {
        let wrong = || ValueError(format!("`{text}` are no hours of a day: write HH:MM-HH:MM, such as 09:00-17:00"));
        let minutes = |part: &str| {
            let (hour, minute) = part.split_once(':').filter(|(hour, minute)| hour.len() == 2 && minute.len() == 2)?;
            let digits = |text: &str| text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse::<u16>().ok())?;
            let (hour, minute) = (digits(hour)?, digits(minute)?);
            ((hour < 24 && minute < 60) || (hour == 24 && minute == 0)).then_some(hour * 60 + minute)
        };
        let (from, to) = text.split_once('-').ok_or_else(wrong)?;
        let (from, to) = (minutes(from).ok_or_else(wrong)?, minutes(to).ok_or_else(wrong)?);
        if from == to || from == 24 * 60 || to == 0 {
            return Err(ValueError(format!(
                "`{text}` are no hours: expected an end behind the beginning, up to 24:00"
            )));
        }
        Ok(Self { from, to })
    }
}

impl fmt::Display for DailyHours {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { from, to } = self;
        write!(f, "{:02}:{:02}-{:02}:{:02}", from / 60, from % 60, to / 60, to % 60)
    }
}

string_value!(DailyHours, "hours", "09:00-17:00", "Hours of a day, from one time to another.");

/// Implements the type of a path in the file: a string, of which [`crate::load()`] makes an absolute path.
macro_rules! path_value {
    ($(#[$doc:meta])* $type:ident, $format:literal, $example:literal, $description:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, Hash, Deserialize, Serialize)]
        #[serde(transparent)]
        pub struct $type(PathBuf);

        impl From<PathBuf> for $type {
            fn from(path: PathBuf) -> Self {
                Self(path)
            }
        }
        impl Deref for $type {
            type Target = Path;
            fn deref(&self) -> &Path {
                &self.0
            }
        }
        impl AsRef<OsStr> for $type {
            fn as_ref(&self) -> &OsStr {
                self.0.as_os_str()
            }
        }
        impl JsonSchema for $type {
            fn schema_name() -> Cow<'static, str> {
                stringify!($type).into()
            }
            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!({
                    "type": "string", "format": $format, "description": $description, "examples": [$example]
                })
            }
        }
    };
}

path_value!(
    /// Path of a file that the gateway reads. The file must exist, and is read again when it changes.
    FilePath,
    "file-path",
    "certs/server.pem",
    "Path of a file, relative to the folder of the configuration. It is read again when it changes."
);

path_value!(
    /// Path of a model: a file, or a folder with several. It must exist, and its files are watched.
    ModelPath,
    "model-path",
    "models/qwen3-0.6b-q8_0.gguf",
    "Path of a model's file or folder, relative to the folder of the configuration."
);

path_value!(
    /// Path of a file or folder that the gateway writes, and creates where it does not exist. It is not watched.
    StatePath,
    "state-path",
    "state/budgets.db",
    "Path of a file or folder that the gateway writes, relative to `$SPILLWAY_STATE_DIR`, or to the folder of the configuration."
);

/// Secret, never written in the file itself: taken from the environment or from a file.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub enum Secret {
    /// Name of an environment variable, read at start.
    Env(String),
    /// Path of a file whose content, without the final newline, is the secret.
    File(FilePath),
}

impl Secret {
    /// Reads the secret. `env` reads environment variables.
    pub fn resolve(&self, env: &dyn Fn(&str) -> Option<String>) -> Result<String, ValueError> {
        match self {
            Self::Env(name) => env(name).filter(|value| !value.is_empty()).ok_or_else(|| {
                ValueError(format!("the environment variable `{name}`, which holds a secret, is not set: set it, or name a file with `file`"))
            }),
            Self::File(path) => {
                let wrong = |why: &dyn fmt::Display| ValueError(format!("the secret in {}: {why}", path.display()));
                let text = crate::files::read_text(path).map_err(|e| wrong(&e))?;
                let secret = text.strip_suffix('\n').unwrap_or(&text);
                let secret = secret.strip_suffix('\r').unwrap_or(secret);
                if secret.is_empty() { Err(wrong(&"the file is empty: write the secret into it")) } else { Ok(secret.to_owned()) }
            }
        }
    }
}

/// HTTP status code, 100 to 599.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Deserialize, Serialize)]
#[serde(try_from = "u16", into = "u16")]
pub struct Status(pub u16);

impl TryFrom<u16> for Status {
    type Error = ValueError;
    fn try_from(code: u16) -> Result<Self, ValueError> {
        if (100..600).contains(&code) {
            Ok(Self(code))
        } else {
            Err(ValueError(format!("{code} is not an HTTP status; expected 100 to 599")))
        }
    }
}

impl From<Status> for u16 {
    fn from(status: Status) -> u16 {
        status.0
    }
}

impl JsonSchema for Status {
    fn schema_name() -> Cow<'static, str> {
        "Status".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "integer", "minimum": 100, "maximum": 599, "description": "An HTTP status code." })
    }
}
