//! `compression`: answers in gzip, Brotli or Zstandard for clients that accept one. The filter says which answers; the gateway
//! negotiates and compresses.

use std::collections::HashSet;
use std::num::{NonZeroU8, NonZeroU32};
use std::sync::Arc;

use http::header::{self, HeaderValue};
use schemars::JsonSchema;
use serde::Deserialize;
use spillway_config::values::Size;
use spillway_filter::{
    BuildContext, CodingSpec, CompressionSpec, ContentCoding, CounterSpec, EventSplitter, FieldError, Fields, Filter,
    FilterFactory, define,
};

const ANSWERS: CounterSpec = CounterSpec {
    name: "spillway_filter_compression_answers",
    help: "Answers that were compressed, by coding; `none` counts those that were not because too many were at the time",
    labels: &["coding"],
};
const BYTES: CounterSpec = CounterSpec {
    name: "spillway_filter_compression_bytes",
    help: "Bytes of compressed answers, before (`plain`) and after (`compressed`)",
    labels: &["form"],
};

/// Media types that are compressed where the file lists none.
const TYPES: [&str; 6] =
    ["text/*", "application/json", "application/javascript", "application/xml", "application/*+json", "*/*+xml"];

/// Compresses answers for clients that accept it. Answers of servers, built-in models and filters are compressed alike, once
/// everything else is done with them: limits, costs, caches and guards see plain text, and a caller pays the same either way.
/// Answers that have a `Content-Encoding`, are a part of the whole (206) or forbid it (`Cache-Control: no-transform`) pass as they
/// are, and so does all of gRPC.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Compression {
    /// Codings, the preferred first. A client that prefers one of them by its `q` gets that.
    #[serde(default = "codings")]
    #[schemars(length(min = 1))]
    codings: Vec<Coding>,
    /// Level of each coding: more is smaller and slower.
    #[serde(default)]
    levels: Levels,
    /// Shortest body that is compressed, where its length is known from the start.
    #[serde(default = "min_length")]
    min_length: Size,
    /// Media types that are compressed: whole names, `text/*`, or names that end with a suffix (`application/*+json`, `*/*+xml`).
    #[serde(default = "types")]
    #[schemars(length(min = 1))]
    types: Vec<String>,
    /// Compresses event streams and JSON in lines too. Each event is flushed as it comes, which costs a part of the gain.
    #[serde(default)]
    streams: bool,
    /// Most answers that are compressed at the same time; further ones pass as they are. Each takes up to 3 MiB of memory.
    #[serde(default = "max_in_flight")]
    #[schemars(range(min = 1, max = 100_000))]
    max_in_flight: NonZeroU32,
}

/// Coding by its name in `Content-Encoding`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
enum Coding {
    /// RFC 1952: known to every client.
    Gzip,
    /// Brotli (RFC 7932).
    Br,
    /// Zstandard (RFC 8878).
    Zstd,
}

/// Levels. Answers are compressed by the threads that serve requests, so that higher ones are for files that are compressed once.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct Levels {
    /// Of gzip, 1 to 7.
    #[schemars(range(min = 1, max = 7))]
    gzip: NonZeroU8,
    /// Of Brotli, 1 to 5.
    #[schemars(range(min = 1, max = 5))]
    br: NonZeroU8,
    /// Of Zstandard, 1 to 6.
    #[schemars(range(min = 1, max = 6))]
    zstd: NonZeroU8,
}

/// Highest levels. Measured on texts that were written for it, a slice takes up to 8 ms at these, and gzip 13 and 56 ms at the next two.
/// An encoder takes up to 2.6 MB, and 10 MB at Zstandard's level 9.
const HIGHEST: [(&str, u8); 3] = [("gzip", 7), ("br", 5), ("zstd", 6)];

impl Default for Levels {
    fn default() -> Self {
        let level = |level: u8| NonZeroU8::MIN.saturating_add(level - 1);
        Self { gzip: level(5), br: level(4), zstd: level(3) }
    }
}

fn codings() -> Vec<Coding> {
    vec![Coding::Zstd, Coding::Br, Coding::Gzip]
}
fn min_length() -> Size {
    Size::kib(1)
}
fn types() -> Vec<String> {
    TYPES.map(str::to_owned).into()
}
fn max_in_flight() -> NonZeroU32 {
    NonZeroU32::MIN.saturating_add(255)
}

pub(crate) fn factory() -> Box<dyn FilterFactory> {
    define("compression", check, build)
}

fn check(config: &Compression) -> Vec<FieldError> {
    let mut errors = Vec::new();
    if config.codings.is_empty() {
        errors.push(FieldError::at(["codings"], "found none; expected some of `zstd`, `br`, `gzip`"));
    }
    if config.types.is_empty() {
        errors
            .push(FieldError::at(["types"], "found none; expected media types such as `application/json` or `text/*`"));
    }
    let Levels { gzip, br, zstd } = &config.levels;
    for (level, (name, highest)) in [gzip, br, zstd].into_iter().zip(HIGHEST) {
        if level.get() > highest {
            let message = format!(
                "found {level}; expected 1 to {highest}: a higher one holds up other requests, or takes much more memory"
            );
            errors.push(FieldError::at(["levels", name], message));
        }
    }
    let mut seen = HashSet::new();
    for (place, coding) in config.codings.iter().enumerate() {
        if !seen.insert(*coding) {
            errors.push(FieldError::at(["codings", &place.to_string()], "listed twice; list each coding once"));
        }
    }
    for (place, written) in config.types.iter().enumerate() {
        if TypePattern::parse(written).is_none() {
            let message = format!(
                "found `{written}`; expected a media type such as `application/json`, `text/*` or `application/*+json`, without \
                 parameters"
            );
            errors.push(FieldError::at(["types", &place.to_string()], message));
        }
    }
    errors
}

fn build(config: Compression, cx: &BuildContext<'_>) -> Result<Arc<dyn Filter>, FieldError> {
    let codings = config.codings.iter().map(|coding| {
        let (coding, level) = match coding {
            Coding::Gzip => (ContentCoding::Gzip, config.levels.gzip),
            Coding::Br => (ContentCoding::Brotli, config.levels.br),
            Coding::Zstd => (ContentCoding::Zstd, config.levels.zstd),
        };
        let answers = cx.counter(ANSWERS, &[coding.as_str()])?;
        Ok(CodingSpec { coding, level: level.get().into(), answers })
    });
    Ok(Arc::new(Compressed {
        spec: CompressionSpec {
            codings: codings.collect::<Result<_, FieldError>>()?,
            max_in_flight: config.max_in_flight.get(),
            read: cx.counter(BYTES, &["plain"])?,
            written: cx.counter(BYTES, &["compressed"])?,
            refused: cx.counter(ANSWERS, &["none"])?,
        },
        min_length: config.min_length.0,
        types: config.types.iter().filter_map(|written| TypePattern::parse(written)).collect(),
        streams: config.streams,
    }))
}

struct Compressed {
    spec: CompressionSpec,
    min_length: u64,
    types: Vec<TypePattern>,
    streams: bool,
}

impl Filter for Compressed {
    fn only_declares(&self) -> bool {
        true
    }
    fn compression(&self) -> Option<&CompressionSpec> {
        Some(&self.spec)
    }
    fn compresses(&self, answer: &Fields) -> bool {
        let length = answer.get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
        if length.is_some_and(|length| length < self.min_length) {
            return false;
        }
        let content_type = answer.get(header::CONTENT_TYPE);
        if EventSplitter::of(content_type).is_some() {
            return self.streams;
        }
        let essence = content_type.map(HeaderValue::as_bytes).unwrap_or_default();
        let essence = essence.split(|byte| *byte == b';').next().unwrap_or_default().trim_ascii();
        self.types.iter().any(|pattern| pattern.matches(essence))
    }
}

/// Pattern of media types.
#[derive(Debug, PartialEq, Eq)]
struct TypePattern {
    /// Type, in small letters; `None` for any.
    kind: Option<Box<[u8]>>,
    /// Subtype.
    subtype: Subtype,
}

#[derive(Debug, PartialEq, Eq)]
enum Subtype {
    Any,
    /// Whole name.
    Named(Box<[u8]>),
    /// Names with this end, its `+` included.
    EndsWith(Box<[u8]>),
}

impl TypePattern {
    /// `None` for a text that is no pattern.
    fn parse(written: &str) -> Option<Self> {
        let (kind, subtype) = written.split_once('/')?;
        let bytes = |text: &str| text.to_ascii_lowercase().into_bytes().into_boxed_slice();
        let is_name = |text: &str| {
            // RFC 9110, 8.3.1 and 5.6.2; `*` is a wildcard here.
            !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"!#$%&'+-.^_`|~".contains(&b))
        };
        let subtype = match subtype.strip_prefix('*') {
            Some("") => Subtype::Any,
            Some(end) => Subtype::EndsWith(bytes(end.starts_with('+').then_some(end).filter(|end| is_name(end))?)),
            None => Subtype::Named(bytes(Some(subtype).filter(|name| is_name(name))?)),
        };
        let kind = match kind {
            "*" if subtype == Subtype::Any => return None,
            "*" => None,
            kind => Some(bytes(Some(kind).filter(|name| is_name(name))?)),
        };
        Some(Self { kind, subtype })
    }

    fn matches(&self, essence: &[u8]) -> bool {
        let Some(slash) = essence.iter().position(|byte| *byte == b'/') else { return false };
        let (kind, subtype) = (essence.get(..slash).unwrap_or_default(), essence.get(slash + 1..).unwrap_or_default());
        self.kind.as_ref().is_none_or(|own| own.eq_ignore_ascii_case(kind))
            && match &self.subtype {
                Subtype::Any => true,
                Subtype::Named(name) => name.eq_ignore_ascii_case(subtype),
                Subtype::EndsWith(end) => {
                    let at = subtype.len().checked_sub(end.len());
                    at.and_then(|at| subtype.get(at..)).is_some_and(|rest| rest.eq_ignore_ascii_case(end))
                }
            }
    }
}

#[cfg(test)]
mod tests {
    use spillway_filter::testing::FilterBuilder;

    use super::*;

    fn filter(config: serde_json::Value) -> Arc<dyn Filter> {
        assert_eq!(factory().check(&config), []);
        FilterBuilder::new().build(&*factory(), &config)
    }

    fn compresses(filter: &dyn Filter, content_type: &str, length: Option<u64>) -> bool {
        let mut headers = Fields::default();
        if !content_type.is_empty() {
            headers.insert(header::CONTENT_TYPE, HeaderValue::from_str(content_type).unwrap());
        }
        if let Some(length) = length {
            headers.insert(header::CONTENT_LENGTH, HeaderValue::from(length));
        }
        filter.compresses(&headers)
    }

    #[test]
    fn texts_of_some_length_are_compressed() {
        let filter = filter(serde_json::json!({}));
        for text in [
            "text/html; charset=utf-8",
            "TEXT/Plain",
            "application/json",
            "Application/Problem+JSON",
            "image/svg+xml",
            "application/xml ;q=1",
        ] {
            assert!(compresses(&*filter, text, None), "{text}");
            assert!(compresses(&*filter, text, Some(1024)), "{text}");
            assert!(!compresses(&*filter, text, Some(1023)), "{text}");
        }
        for other in
            ["", "text", "image/png", "application/octet-stream", "application/grpc", "application/grpc-web+proto"]
        {
            assert!(!compresses(&*filter, other, None), "{other}");
        }
    }

    #[test]
    fn streams_are_compressed_only_where_asked() {
        let silent = filter(serde_json::json!({}));
        let asked = filter(serde_json::json!({"streams": true, "types": ["text/html"]}));
        for stream in ["text/event-stream", "application/x-ndjson; charset=utf-8"] {
            assert!(!compresses(&*silent, stream, None));
            assert!(compresses(&*asked, stream, None));
        }
        assert!(!compresses(&*asked, "text/plain", None));
    }

    #[test]
    fn a_level_that_holds_up_other_requests_is_refused() {
        for (name, highest) in HIGHEST {
            let told = |level: u8| factory().check(&serde_json::json!({"levels": {name: level}}));
            assert_eq!(told(highest), [], "{name}");
            let errors = told(highest + 1);
            assert_eq!(errors[0].path, ["levels", name]);
            assert!(errors[0].message.contains(&format!("found {}; expected 1 to {highest}", highest + 1)));
        }
    }

    #[test]
    fn patterns_are_media_types() {
        for good in ["text/*", "application/json", "application/*+json", "*/*+xml", "application/vnd.a-b.c+json"] {
            assert!(TypePattern::parse(good).is_some(), "{good}");
        }
        for bad in [
            "",
            "text",
            "*/*",
            "text/",
            "/json",
            "text/*json",
            "*json/x",
            "text/html; charset=utf-8",
            "a/b/c",
            "text/h*",
        ] {
            assert!(TypePattern::parse(bad).is_none(), "{bad}");
        }
    }

    #[test]
    fn mistakes_are_told_with_their_place() {
        let errors = factory().check(&serde_json::json!({"codings": ["gzip", "gzip"], "types": ["*/*"]}));
        let places: Vec<_> = errors.iter().map(|error| error.path.join(".")).collect();
        assert_eq!(places, ["codings.1", "types.0"]);
        let errors = factory().check(&serde_json::json!({"codings": [], "types": []}));
        assert_eq!(errors.len(), 2);
    }
}
