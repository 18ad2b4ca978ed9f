//! Codings of bodies (`Content-Encoding`), and the decoder of each, which reads a body in parts as they arrive. A decoder
//! holds the window of its coding and no part of the body. Inputs are a head and the bytes of its body.

use brotli::enc::StandardAlloc;
use brotli::{BrotliDecompressStream, BrotliResult, BrotliState};
use flate2::{Decompress, FlushDecompress, Status};
use http::header::{self, HeaderName, HeaderValue};
use zstd::stream::raw::{DParameter, Operation};

use spillway_filter::Fields;

/// Names of the codings, as `Accept-Encoding` of a refusal has them.
pub const ACCEPTED: &str = "gzip, deflate, br, zstd";

/// Names of the codings of a message of gRPC, as `grpc-accept-encoding` has them.
pub const GRPC_ACCEPTED: &str = "identity, deflate, gzip";

/// Fields that describe the bytes of a body, beside its coding (RFC 9530; RFC 1864): they are others once the body is.
pub static DIGESTS: [HeaderName; 3] = [
    HeaderName::from_static("content-digest"),
    HeaderName::from_static("content-md5"),
    HeaderName::from_static("repr-digest"),
];

/// Coding of the messages of a gRPC call.
pub static GRPC_ENCODING: HeaderName = HeaderName::from_static("grpc-encoding");

/// Bytes of decoded text that are passed on at a time.
const OUT: usize = 8 << 10;

/// Largest window of gzip as a power of two, the only one that RFC 1952 has: 32 KiB.
const GZIP_WINDOW: u8 = 15;

/// Largest window of Zstandard as a power of two: the 8 MiB that RFC 9659 allows for this coding.
const ZSTD_WINDOW: u32 = 23;

/// Entry of a list such as `Accept-Encoding` or `Accept`: its name, and its weight in thousandths, which is 1000 where it has none and 0
/// where what it has is none (RFC 9110, 12.4.2).
pub fn weighed(entry: &[u8]) -> (&[u8], u16) {
    let mut parts = entry.split(|byte| *byte == b';').map(<[u8]>::trim_ascii);
    let name = parts.next().unwrap_or_default();
    for parameter in parts {
        let Some(value) = parameter.strip_prefix(b"q").or_else(|| parameter.strip_prefix(b"Q")) else { continue };
        // Blanks around the `=` are a mistake of the client, which meant a weight.
        let Some(value) = value.trim_ascii_start().strip_prefix(b"=") else { continue };
        let number = std::str::from_utf8(value.trim_ascii_start()).ok();
        let number = number.filter(|text| text.len() <= 5 && text.starts_with(['0', '1', '.']));
        let number: Option<f32> =
            number.and_then(|text| text.parse().ok()).filter(|number| (0.0..=1.0).contains(number));
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "from 0 to 1000")]
        return (name, number.map_or(0, |number| (number * 1000.0).round() as u16));
    }
    (name, 1000)
}

/// Coding of a body (RFC 9110, 8.4.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Coding {
    /// None, or one that changes nothing.
    Identity,
    /// RFC 1952; several members in a row are one body.
    Gzip,
    /// RFC 1950, or RFC 1951 alone, as some senders write it.
    Deflate,
    /// RFC 7932.
    Brotli,
    /// RFC 8878.
    Zstd,
    /// Several codings, or an unknown one.
    Unknown,
}

impl Coding {
    /// The coding that a head, as it came, names.
    pub fn of(headers: &Fields) -> Self {
        // A transfer coding was not requested, and a client would read its bytes as the body.
        let is_chunked = |value: &HeaderValue| value.as_bytes().trim_ascii().eq_ignore_ascii_case(b"chunked");
        if !headers.get_all(header::TRANSFER_ENCODING).iter().all(is_chunked) {
            return Self::Unknown;
        }
        let values = headers.get_all(header::CONTENT_ENCODING).iter();
        let names = values.flat_map(|value| value.as_bytes().split(|byte| *byte == b',')).map(<[u8]>::trim_ascii);
        let mut names = names.filter(|name| !name.is_empty() && !name.eq_ignore_ascii_case(b"identity"));
        let Some(name) = names.next() else { return Self::Identity };
        if names.next().is_some() {
            return Self::Unknown;
        }
        match name.to_ascii_lowercase().as_slice() {
            b"gzip" | b"x-gzip" => Self::Gzip,
            b"deflate" => Self::Deflate,
            b"br" => Self::Brotli,
            b"zstd" => Self::Zstd,
            _ => Self::Unknown,
        }
    }

    /// The coding that `grpc-encoding` names for the messages of a call. `deflate` has the frame of zlib there, too.
    pub fn of_messages(headers: &Fields) -> Self {
        let mut values = headers.get_all(&GRPC_ENCODING).iter();
        match (values.next().map(HeaderValue::as_bytes), values.next()) {
            (None | Some(b"identity"), None) => Self::Identity,
            (Some(b"gzip"), None) => Self::Gzip,
            (Some(b"deflate"), None) => Self::Deflate,
            _ => Self::Unknown,
        }
    }

    /// Decodes a whole body to `most` bytes at most.
    ///
    /// # Errors
    /// The body is not in the coding, is cut, or decodes to more.
    pub fn decode(self, body: &[u8], most: usize) -> Result<Vec<u8>, NotDecoded> {
        match self {
            // Of an unknown coding nothing was read.
            Self::Unknown => return Err(NotDecoded::Malformed),
            _ if body.is_empty() => return Ok(Vec::new()),
            Self::Identity => return Ok(body.to_vec()),
            Self::Gzip | Self::Deflate | Self::Brotli | Self::Zstd => {}
        }
        let (mut decoder, mut out) = (Decoder::new(self).ok_or(NotDecoded::Malformed)?, Vec::new());
        let collect = |plain: &[u8]| {
            out.extend_from_slice(plain);
            out.len() <= most
        };
        let decoded = decoder.decode(body, collect);
        match decoded {
            _ if out.len() > most => Err(NotDecoded::TooLong),
            Ok(()) if decoder.is_at_end => Ok(out),
            _ => Err(NotDecoded::Malformed),
        }
    }

    /// Decoded beginning of a body that may be cut anywhere, `most` bytes at most; `None` where the coding is another.
    pub fn decode_beginning(self, body: &[u8], most: usize) -> Option<Vec<u8>> {
        let (mut decoder, mut out) = (Decoder::new(self)?, Vec::new());
        let collect = |plain: &[u8]| {
            let room = most - out.len();
            out.extend_from_slice(plain.get(..room.min(plain.len())).unwrap_or_default());
            out.len() < most
        };
        // The beginning ends before a fault, at the end of the bytes, or where it is long enough.
        let _ = decoder.decode(body, collect);
        Some(out)
    }
}

/// Reason for which a whole body was not decoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotDecoded {
    /// The body is in another coding than it names, or is cut.
    Malformed,
    /// More comes out than is wanted.
    TooLong,
}

/// Error of bytes that are not in the coding of their body, or decode to more than is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Undecodable;

/// Brotli's state, without the windows above 16 MiB that only its large variant has.
type BrotliDecoder = BrotliState<StandardAlloc, StandardAlloc, StandardAlloc>;

enum DecoderState {
    Gzip(Decompress),
    /// Deflate, with the frame of zlib as in the RFC, or without, as some servers write it and clients accept it. The first
    /// byte of the body tells which: `None` before it.
    Deflate(Option<Decompress>),
    Brotli(Box<BrotliDecoder>),
    Zstd(zstd::stream::raw::Decoder<'static>),
}

/// Decoder of one body.
pub struct Decoder {
    state: DecoderState,
    /// True if the body may end here.
    pub is_at_end: bool,
    /// Bytes of the body that were read.
    pub read: u64,
}

impl Decoder {
    /// Decoder of a coding; `None` for one that it does not know, and where no memory is left for its window.
    pub fn new(coding: Coding) -> Option<Self> {
        let state = match coding {
            Coding::Identity | Coding::Unknown => return None,
            Coding::Gzip => DecoderState::Gzip(Decompress::new_gzip(GZIP_WINDOW)),
            Coding::Deflate => DecoderState::Deflate(None),
            Coding::Brotli => {
                let alloc = StandardAlloc::default;
                DecoderState::Brotli(Box::new(BrotliDecoder::new_strict(alloc(), alloc(), alloc())))
            }
            Coding::Zstd => {
                let mut decoder = zstd::stream::raw::Decoder::new().ok()?;
                decoder.set_parameter(DParameter::WindowLogMax(ZSTD_WINDOW)).ok()?;
                DecoderState::Zstd(decoder)
            }
        };
        Some(Self { state, is_at_end: false, read: 0 })
    }

    /// Decodes the next part of the body. Each piece of it goes to `take`, which returns false to end the decoding.
    pub fn decode(&mut self, part: &[u8], mut take: impl FnMut(&[u8]) -> bool) -> Result<(), Undecodable> {
        let (mut rest, mut out) = (part, [0; OUT]);
        loop {
            let (read, written) = self.step(rest, &mut out)?;
            rest = rest.get(read..).unwrap_or_default();
            self.read = self.read.saturating_add(u64::try_from(read).unwrap_or(u64::MAX));
            let plain = out.get(..written).unwrap_or_default();
            if !plain.is_empty() && !take(plain) {
                return Err(Undecodable);
            }
            // More than fits may wait in the decoder, also when it has read everything.
            let has_more = written == out.len() || !rest.is_empty();
            if !has_more || (read == 0 && written == 0) {
                return Ok(());
            }
        }
    }

    /// Decodes as many bytes as there are, or fit. Returns how many bytes were read and written.
    fn step(&mut self, part: &[u8], out: &mut [u8]) -> Result<(usize, usize), Undecodable> {
        if self.is_at_end && part.is_empty() {
            return Ok((0, 0));
        }
        match &mut self.state {
            DecoderState::Gzip(decoder) => {
                if self.is_at_end {
                    // A body may be several members.
                    *decoder = Decompress::new_gzip(GZIP_WINDOW);
                    self.is_at_end = false;
                }
                inflate(decoder, part, out, &mut self.is_at_end)
            }
            // What follows the end is no part of the body.
            DecoderState::Deflate(_) | DecoderState::Brotli(_) if self.is_at_end => Ok((part.len(), 0)),
            DecoderState::Deflate(decoder) => {
                let Some(first) = part.first() else { return Ok((0, 0)) };
                // The low half of zlib's first byte is 8. As the first byte of a bare block, that would be padding with a
                // bit set.
                let decoder = decoder.get_or_insert_with(|| Decompress::new(first & 0x0F == 8));
                inflate(decoder, part, out, &mut self.is_at_end)
            }
            DecoderState::Brotli(state) => {
                let (mut unread, mut read, mut room, mut written) = (part.len(), 0, out.len(), 0);
                let mut total = 0;
                let result = BrotliDecompressStream(
                    &mut unread,
                    &mut read,
                    part,
                    &mut room,
                    &mut written,
                    out,
                    &mut total,
                    state,
                );
                match result {
                    BrotliResult::ResultSuccess => self.is_at_end = true,
                    BrotliResult::NeedsMoreInput | BrotliResult::NeedsMoreOutput => {}
                    BrotliResult::ResultFailure => return Err(Undecodable),
                }
                Ok((read, written))
            }
            DecoderState::Zstd(decoder) => {
                let status = decoder.run_on_buffers(part, out).map_err(|_| Undecodable)?;
                let (read, written) = (status.bytes_read, status.bytes_written);
                if read > 0 || written > 0 {
                    self.is_at_end = status.remaining == 0;
                }
                Ok((read, written))
            }
        }
    }
}

fn inflate(
    decoder: &mut Decompress,
    part: &[u8],
    out: &mut [u8],
    is_at_end: &mut bool,
) -> Result<(usize, usize), Undecodable> {
    let (read, written) = (decoder.total_in(), decoder.total_out());
    match decoder.decompress(part, out, FlushDecompress::None) {
        Ok(Status::StreamEnd) => *is_at_end = true,
        Ok(Status::Ok | Status::BufError) => {}
        Err(_) => return Err(Undecodable),
    }
    let moved = |now: u64, before: u64| usize::try_from(now.saturating_sub(before)).unwrap_or(0);
    Ok((moved(decoder.total_in(), read), moved(decoder.total_out(), written)))
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use flate2::Compression;
    use flate2::write::{DeflateEncoder, GzEncoder, ZlibEncoder};

    use http::HeaderName;

    use super::*;

    const MOST: usize = 256 << 10;

    fn gzip(text: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
        encoder.write_all(text).unwrap();
        encoder.finish().unwrap()
    }

    fn encoded(text: &[u8]) -> Vec<(Coding, Vec<u8>)> {
        let mut zlib = ZlibEncoder::new(Vec::new(), Compression::default());
        zlib.write_all(text).unwrap();
        let mut deflate = DeflateEncoder::new(Vec::new(), Compression::default());
        deflate.write_all(text).unwrap();
        let mut brotli = brotli::CompressorWriter::new(Vec::new(), 4096, 5, 22);
        brotli.write_all(text).unwrap();
        vec![
            (Coding::Gzip, gzip(text)),
            (Coding::Gzip, [gzip(&text[..text.len() / 2]), gzip(&text[text.len() / 2..])].concat()),
            (Coding::Deflate, zlib.finish().unwrap()),
            (Coding::Deflate, deflate.finish().unwrap()),
            (Coding::Brotli, brotli.into_inner()),
            (Coding::Zstd, zstd::encode_all(text, 3).unwrap()),
            (Coding::Identity, text.to_vec()),
        ]
    }

    #[test]
    fn a_body_that_was_cut_is_decoded_as_far_as_it_goes() {
        // Random letters, so that no coding packs everything into its last bytes.
        let text: Vec<u8> = (0..200_000_u64).map(|n| b'a' + (n.wrapping_mul(n) >> 7) as u8 % 26).collect();
        for (coding, body) in encoded(&text).into_iter().filter(|(coding, _)| *coding != Coding::Identity) {
            let cut = &body[..body.len() * 3 / 4];
            assert_eq!(coding.decode(cut, MOST), Err(NotDecoded::Malformed), "{coding:?}");
            let begun = coding.decode_beginning(cut, MOST).unwrap();
            // Zstandard is decoded by blocks of up to 128 KiB, of which the cut one gives nothing.
            assert!(begun.len() > 1000 || coding == Coding::Zstd, "{coding:?}: {}", begun.len());
            assert!(text.starts_with(&begun), "{coding:?}");
            assert_eq!(coding.decode_beginning(&body, 100).unwrap(), &text[..100], "{coding:?}");
            assert_eq!(coding.decode_beginning(&body, MOST).unwrap(), text, "{coding:?}");
        }
        assert_eq!(Coding::Unknown.decode_beginning(b"x", MOST), None);
    }

    #[test]
    fn the_coding_of_a_head_is_one_or_none_that_is_known() {
        for (fields, coding) in [
            (&[][..], Coding::Identity),
            (&[("transfer-encoding", "Chunked")], Coding::Identity),
            (&[("content-encoding", "identity")], Coding::Identity),
            (&[("content-encoding", "")], Coding::Identity),
            (&[("content-encoding", "GZip")], Coding::Gzip),
            (&[("content-encoding", " x-gzip , identity")], Coding::Gzip),
            (&[("content-encoding", "deflate")], Coding::Deflate),
            (&[("content-encoding", "br")], Coding::Brotli),
            (&[("content-encoding", "zstd")], Coding::Zstd),
            (&[("content-encoding", "gzip, br")], Coding::Unknown),
            (&[("content-encoding", "gzip"), ("content-encoding", "gzip")], Coding::Unknown),
            (&[("content-encoding", "compress")], Coding::Unknown),
            (&[("transfer-encoding", "gzip, chunked")], Coding::Unknown),
            (&[("transfer-encoding", "gzip"), ("transfer-encoding", "chunked")], Coding::Unknown),
        ] {
            let mut headers = Fields::default();
            for (name, value) in fields {
                headers.append(HeaderName::from_static(name), HeaderValue::from_static(value));
            }
            assert_eq!(Coding::of(&headers), coding, "{fields:?}");
        }
    }

    #[test]
    fn every_coding_is_decoded_and_what_is_cut_or_spoiled_is_not() {
        let text: Vec<u8> = (0..20_000_u32).flat_map(|n| (n * n).to_string().into_bytes()).take(50_000).collect();
        for (coding, body) in encoded(&text) {
            assert!(coding.decode(&body, MOST).is_ok_and(|plain| plain == text), "{coding:?}");
            assert_eq!(coding.decode(&[], MOST), Ok(Vec::new()), "{coding:?}");
            if coding == Coding::Identity {
                continue;
            }
            for cut in [1, 2, 10, body.len() / 2, body.len() - 1] {
                assert_ne!(coding.decode(&body[..cut], MOST).as_deref(), Ok(&text[..]), "{coding:?} cut at {cut}");
            }
            assert_eq!(coding.decode(b"\xff\xffno coding at all", MOST), Err(NotDecoded::Malformed), "{coding:?}");
        }
        assert_eq!(Coding::Unknown.decode(b"text", MOST), Err(NotDecoded::Malformed));
    }

    #[test]
    fn what_grows_too_large_is_not_decoded() {
        let compressed =
            |length: usize| encoded(&vec![b'x'; length]).into_iter().filter(|(c, _)| *c != Coding::Identity);
        for (coding, body) in compressed(MOST) {
            assert_eq!(coding.decode(&body, MOST).map(|plain| plain.len()), Ok(MOST), "{coding:?}");
        }
        for (coding, body) in compressed(MOST + 1) {
            assert_eq!(coding.decode(&body, MOST), Err(NotDecoded::TooLong), "{coding:?}");
        }
        let bomb = gzip(&vec![0; 40 << 20]);
        assert!(bomb.len() < 64 << 10, "{} bytes", bomb.len());
        assert_eq!(Coding::Gzip.decode(&bomb, MOST), Err(NotDecoded::TooLong));
        // A window that is larger than the coding may have.
        let mut encoder = zstd::Encoder::new(Vec::new(), 3).unwrap();
        encoder.window_log(24).unwrap();
        encoder.write_all(b"short").unwrap();
        assert_eq!(Coding::Zstd.decode(&encoder.finish().unwrap(), MOST), Err(NotDecoded::Malformed));
    }

    #[test]
    fn a_body_is_decoded_alike_in_parts_of_any_length() {
        let text: Vec<u8> = (0..3_000_u32).flat_map(|n| (n * n).to_string().into_bytes()).collect();
        for (coding, body) in encoded(&text).into_iter().filter(|(coding, _)| *coding != Coding::Identity) {
            for length in [1, 2, 7, 1000, body.len()] {
                let (mut decoder, mut out) = (Decoder::new(coding).unwrap(), Vec::new());
                for part in body.chunks(length) {
                    let collect = |plain: &[u8]| {
                        out.extend_from_slice(plain);
                        true
                    };
                    decoder.decode(part, collect).unwrap();
                }
                assert!(decoder.is_at_end && out == text, "{coding:?} in parts of {length}");
            }
        }
    }

    #[test]
    fn what_was_flushed_can_be_read_at_once() {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
        let mut decoder = Decoder::new(Coding::Gzip).unwrap();
        for n in 0..5 {
            encoder.write_all(b"data: {}\n\n").unwrap();
            encoder.flush().unwrap();
            let mut out = Vec::new();
            let part = std::mem::take(encoder.get_mut());
            decoder
                .decode(&part, |plain| {
                    out.extend_from_slice(plain);
                    true
                })
                .unwrap();
            assert_eq!(out, b"data: {}\n\n", "event {n}");
        }
    }

    #[test]
    fn a_decoder_stops_where_it_is_told_to() {
        for (coding, body) in
            encoded(&vec![b'x'; 1 << 20]).into_iter().filter(|(coding, _)| *coding != Coding::Identity)
        {
            let mut seen = 0;
            let stopped = Decoder::new(coding).unwrap().decode(&body, |plain| {
                seen += plain.len();
                seen < 100_000
            });
            assert_eq!(stopped, Err(Undecodable), "{coding:?}");
            assert!(seen < 100_000 + OUT, "{coding:?}: {seen}");
        }
    }
}
