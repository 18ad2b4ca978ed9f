//! Codings of bodies (`Content-Encoding`), as clients and servers apply them.

use std::io::{Read, Write};

/// Text in a coding: `gzip`, `deflate`, `br` or `zstd`; as it is for any other name.
pub fn encoded(coding: &str, text: &[u8]) -> Vec<u8> {
    match coding {
        "gzip" => {
            let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
            encoder.write_all(text).unwrap();
            encoder.finish().unwrap()
        }
        "deflate" => {
            let mut encoder = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::default());
            encoder.write_all(text).unwrap();
            encoder.finish().unwrap()
        }
        "br" => {
            let mut encoder = brotli::CompressorWriter::new(Vec::new(), 4096, 5, 22);
            encoder.write_all(text).unwrap();
            encoder.into_inner()
        }
        "zstd" => zstd::encode_all(text, 3).unwrap(),
        // Several, in the order in which they were applied (RFC 9110, 8.4).
        _ if coding.contains(", ") => coding.split(", ").fold(text.to_vec(), |text, one| encoded(one, &text)),
        _ => text.to_vec(),
    }
}

/// Plain bytes of a body of which all so far, or the whole, came in a coding; as it is for any other name.
pub fn decoded(coding: &str, bytes: &[u8]) -> Vec<u8> {
    let mut plain = Vec::new();
    let mut reader: Box<dyn Read + '_> = match coding {
        "gzip" => Box::new(flate2::read::GzDecoder::new(bytes)),
        "br" => Box::new(brotli::Decompressor::new(bytes, 4096)),
        "zstd" => Box::new(zstd::stream::read::Decoder::new(bytes).unwrap()),
        _ => Box::new(bytes),
    };
    // A body that goes on is an error at its end here.
    let mut part = [0; 4096];
    while let Ok(length @ 1..) = reader.read(&mut part) {
        plain.extend_from_slice(&part[..length]);
    }
    plain
}
