//! Compression of answers on their way to clients, as a filter declares it.

use crate::Counter;

/// Coding in which answers are compressed (RFC 9110, 8.4.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ContentCoding {
    /// RFC 1952.
    Gzip,
    /// RFC 7932.
    Brotli,
    /// RFC 8878.
    Zstd,
}

impl ContentCoding {
    /// Name in `Accept-Encoding` and `Content-Encoding`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Gzip => "gzip",
            Self::Brotli => "br",
            Self::Zstd => "zstd",
        }
    }
}

/// Coding of a [`CompressionSpec`].
#[derive(Debug, Clone)]
pub struct CodingSpec {
    /// The coding.
    pub coding: ContentCoding,
    /// Level on the scale of the coding: more is smaller and slower.
    pub level: u32,
    /// Counts the answers in it.
    pub answers: Counter,
}

/// Compression of the answers of a route, whoever made them. The gateway compresses behind everything else that changes,
/// counts or keeps an answer, in a coding that the client accepts, where the answer has none and may be changed.
#[derive(Debug, Clone)]
pub struct CompressionSpec {
    /// Codings, that of choice first where a client has none.
    pub codings: Vec<CodingSpec>,
    /// Most answers that are compressed at the same time; further ones go out as they are.
    pub max_in_flight: u32,
    /// Counts the bytes of bodies before they were compressed.
    pub read: Counter,
    /// Counts the bytes of bodies after they were compressed.
    pub written: Counter,
    /// Counts the answers beyond `max_in_flight`.
    pub refused: Counter,
}
