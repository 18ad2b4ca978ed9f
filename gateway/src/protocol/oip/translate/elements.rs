//! Elements of tensors between JSON, the typed contents of gRPC, and binary form. Each reader knows the number of elements of
//! the shape before it reads, and refuses a shape that the bytes at hand could not fill before it reserves memory.

use std::borrow::Cow;

use bytes::Bytes;
use serde_json::value::RawValue;

use super::contents::TypedContents;
use crate::protocol::oip::grpc::wire::{Malformed, Value, fields, varint};
use crate::protocol::oip::tensor::{DataType, element};
use crate::protocol::text_end::text_end;

/// Reason why elements cannot be read, or not be written in another form.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Fault {
    #[error("has a shape with too many elements, or a negative dimension")]
    Shape,
    #[error("has {found} elements; its shape has {expected}")]
    Count { found: usize, expected: usize },
    #[error("has fewer elements than its shape, which has {0}")]
    TooFew(usize),
    #[error("has more elements than its shape, which has {0}")]
    TooMany(usize),
    #[error("has {found} bytes; expected {expected} elements of {size} bytes each")]
    Bytes { found: usize, expected: usize, size: usize },
    #[error("ends within one of its elements, or has bytes behind the last one")]
    Texts,
    #[error("has an element that is not {}", .0.as_str())]
    Kind(DataType),
    #[error("is {}, which only binary data and raw contents can hold", .0.as_str())]
    BinaryOnly(DataType),
    #[error("has no list of elements in `data`")]
    NoList,
    #[error("has an element that JSON cannot express")]
    NotJson,
    #[error("has contents that are no message of the protocol")]
    Malformed,
}

impl From<Malformed> for Fault {
    fn from(Malformed: Malformed) -> Self {
        Self::Malformed
    }
}

/// Number of elements of a shape.
pub(super) fn count(shape: &[i64]) -> Result<usize, Fault> {
    let lengths = shape.iter().map(|length| usize::try_from(*length).ok());
    let product = lengths.into_iter().try_fold(1usize, |product, length| product.checked_mul(length?));
    product.ok_or(Fault::Shape)
}

/// Checks that elements in binary form fill their shape and their bytes.
pub(super) fn check(datatype: DataType, count: usize, bytes: &[u8]) -> Result<(), Fault> {
    if let Some(size) = datatype.size() {
        return match count.checked_mul(size) {
            Some(length) if length == bytes.len() => Ok(()),
            _ => Err(Fault::Bytes { found: bytes.len(), expected: count, size }),
        };
    }
    let mut rest = bytes;
    for _ in 0..count {
        (_, rest) = element(rest).ok_or(Fault::Texts)?;
    }
    if rest.is_empty() { Ok(()) } else { Err(Fault::Texts) }
}

/// Writer of elements in binary form, of which the shape allows so many.
struct Elements {
    datatype: DataType,
    expected: usize,
    found: usize,
    out: Vec<u8>,
}

impl Elements {
    /// Begins with room for `expected` elements, which the `source` bytes could hold at one element a byte.
    fn new(datatype: DataType, expected: usize, source: usize) -> Result<Self, Fault> {
        if expected > source {
            return Err(Fault::TooFew(expected));
        }
        let room = expected.saturating_mul(datatype.size().unwrap_or(0));
        Ok(Self { datatype, expected, found: 0, out: Vec::with_capacity(room) })
    }

    fn add(&mut self, bytes: &[u8]) -> Result<(), Fault> {
        if self.found == self.expected {
            return Err(Fault::TooMany(self.expected));
        }
        self.found += 1;
        self.out.extend_from_slice(bytes);
        Ok(())
    }

    /// Adds an integer, which must be in the range of the datatype.
    fn integer(&mut self, value: i128) -> Result<(), Fault> {
        macro_rules! within {
            ($kind:ty) => {
                match <$kind>::try_from(value) {
                    Ok(value) => self.add(&value.to_le_bytes()),
                    Err(_) => Err(Fault::Kind(self.datatype)),
                }
            };
        }
        match self.datatype {
            DataType::Uint8 => within!(u8),
            DataType::Uint16 => within!(u16),
            DataType::Uint32 => within!(u32),
            DataType::Uint64 => within!(u64),
            DataType::Int8 => within!(i8),
            DataType::Int16 => within!(i16),
            DataType::Int32 => within!(i32),
            DataType::Int64 => within!(i64),
            DataType::Bool if value == 0 || value == 1 => self.add(&[u8::from(value == 1)]),
            _ => Err(Fault::Kind(self.datatype)),
        }
    }

    fn text(&mut self, text: &[u8]) -> Result<(), Fault> {
        let length = u32::try_from(text.len()).map_err(|_| Fault::Kind(self.datatype))?;
        self.add(&length.to_le_bytes())?;
        self.out.extend_from_slice(text);
        Ok(())
    }

    /// Adds the element that is written so in JSON, other than a text.
    fn json(&mut self, word: &str) -> Result<(), Fault> {
        let wrong = Fault::Kind(self.datatype);
        match self.datatype {
            DataType::Bool => match word {
                "true" | "1" => self.add(&[1]),
                "false" | "0" => self.add(&[0]),
                _ => Err(wrong),
            },
            // A number out of the range would become infinite.
            DataType::Fp32 => {
                let value = word.parse::<f32>().ok().filter(|value| value.is_finite());
                self.add(&value.filter(|_| is_number(word)).ok_or(wrong)?.to_le_bytes())
            }
            DataType::Fp64 => {
                let value = word.parse::<f64>().ok().filter(|value| value.is_finite());
                self.add(&value.filter(|_| is_number(word)).ok_or(wrong)?.to_le_bytes())
            }
            DataType::Bytes => Err(wrong),
            DataType::Fp16 | DataType::Bf16 => Err(Fault::BinaryOnly(self.datatype)),
            _ => self.integer(word.parse::<i128>().map_err(|_| wrong)?),
        }
    }

    fn finish(self) -> Result<Vec<u8>, Fault> {
        if self.found == self.expected {
            Ok(self.out)
        } else {
            Err(Fault::Count { found: self.found, expected: self.expected })
        }
    }
}

/// True for a word of JSON that is a number: the other words begin with a letter.
fn is_number(word: &str) -> bool {
    word.starts_with(|first: char| first == '-' || first.is_ascii_digit())
}

/// Reads `data`, nested or flat, row by row. The value is JSON: only its elements are judged.
pub(super) fn from_json(data: &RawValue, datatype: DataType, count: usize) -> Result<Vec<u8>, Fault> {
    let mut rest = data.get().as_bytes();
    if rest.first() != Some(&b'[') {
        return Err(Fault::NoList);
    }
    if count > 0 && matches!(datatype, DataType::Fp16 | DataType::Bf16) {
        return Err(Fault::BinaryOnly(datatype));
    }
    let mut elements = Elements::new(datatype, count, rest.len())?;
    while let Some((first, after)) = rest.split_first() {
        rest = match first {
            b'[' | b']' | b',' | b' ' | b'\t' | b'\n' | b'\r' => after,
            b'"' => {
                let (text, behind) = text_of(rest).ok_or(Fault::Kind(datatype))?;
                if datatype != DataType::Bytes {
                    return Err(Fault::Kind(datatype));
                }
                elements.text(text.as_bytes())?;
                behind
            }
            b'{' => return Err(Fault::Kind(datatype)),
            _ => {
                let ends = |byte: &u8| matches!(byte, b',' | b']' | b' ' | b'\t' | b'\n' | b'\r');
                let end = rest.iter().position(ends).unwrap_or(rest.len());
                let (word, behind) = rest.split_at(end);
                elements.json(std::str::from_utf8(word).map_err(|_| Fault::Kind(datatype))?)?;
                behind
            }
        };
    }
    elements.finish()
}

/// First text of JSON that begins with its quote, and the rest behind it.
fn text_of(json: &[u8]) -> Option<(Cow<'_, str>, &[u8])> {
    let mut end = 1;
    loop {
        end += text_end::<false>(json.get(end..)?);
        match json.get(end)? {
            b'"' => break,
            // An escape: the byte behind the backslash ends nothing.
            _ => end += 2,
        }
    }
    let (text, rest) = json.split_at_checked(end + 1)?;
    let inner = text.get(1..end)?;
    if inner.contains(&b'\\') {
        return Some((Cow::Owned(serde_json::from_slice(text).ok()?), rest));
    }
    Some((Cow::Borrowed(std::str::from_utf8(inner).ok()?), rest))
}

/// True if JSON can express elements in binary form, which fill their bytes.
pub(super) fn fits_json(datatype: DataType, bytes: &[u8]) -> bool {
    match datatype {
        DataType::Fp16 | DataType::Bf16 => bytes.is_empty(),
        DataType::Fp32 => bytes.as_chunks::<4>().0.iter().all(|element| f32::from_le_bytes(*element).is_finite()),
        DataType::Fp64 => bytes.as_chunks::<8>().0.iter().all(|element| f64::from_le_bytes(*element).is_finite()),
        DataType::Bytes => texts(bytes).all(|text| std::str::from_utf8(text).is_ok()),
        _ => true,
    }
}

/// Bytes of JSON from which on it matters how many times longer it is than the elements.
const LONG: usize = 64 << 10;

/// Bytes of a text in JSON, with its quotes.
fn text_length(text: &[u8]) -> usize {
    let of_byte = |byte: &u8| match byte {
        b'"' | b'\\' | 8 | 9 | 10 | 12 | 13 => 2,
        0..0x20 => "\\u0000".len(),
        _ => 1,
    };
    text.iter().map(of_byte).fold(2, usize::saturating_add)
}

/// Bytes that elements in binary form take in JSON: exact for `BYTES` and `BOOL`, and at most so many for numbers.
pub(super) fn json_length(datatype: DataType, bytes: &[u8]) -> usize {
    // The longest number of each kind, and its comma.
    let most = |size: usize, longest: &str| (bytes.len() / size).saturating_mul(longest.len() + 1);
    let of_elements = match datatype {
        DataType::Bool => bytes.iter().map(|element| if *element == 0 { "false,".len() } else { "true,".len() }).sum(),
        DataType::Uint8 => most(1, "255"),
        DataType::Uint16 => most(2, "65535"),
        DataType::Uint32 => most(4, "4294967295"),
        DataType::Uint64 => most(8, "18446744073709551615"),
        DataType::Int8 => most(1, "-128"),
        DataType::Int16 => most(2, "-32768"),
        DataType::Int32 => most(4, "-2147483648"),
        DataType::Int64 => most(8, "-9223372036854775808"),
        DataType::Fp32 => most(4, "-1.17549435e-38"),
        DataType::Fp64 => most(8, "-2.2250738585072014e-308"),
        DataType::Bytes => texts(bytes).map(|text| text_length(text).saturating_add(1)).fold(0, usize::saturating_add),
        DataType::Fp16 | DataType::Bf16 => 0,
    };
    of_elements.saturating_add("[]".len())
}

/// True if the length of elements in JSON is exact, and not that of the longest numbers ([`json_length`]).
pub(super) fn is_exact(datatype: DataType) -> bool {
    matches!(datatype, DataType::Bool | DataType::Bytes)
}

/// True for elements that JSON makes much longer: truth values, and texts of control characters, quotes or backslashes.
pub(super) fn swells(datatype: DataType, bytes: &[u8]) -> bool {
    if !is_exact(datatype) {
        return false;
    }
    let length = json_length(datatype, bytes);
    length > LONG && length / 3 > bytes.len() / 2
}

/// Elements of `BYTES` in binary form, which fill their bytes.
fn texts(bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        let (text, after) = element(rest)?;
        rest = after;
        Some(text)
    })
}

/// Appends elements in binary form that fit JSON ([`fits_json`]) as a flat list.
pub(super) fn write_json(datatype: DataType, bytes: &[u8], out: &mut Vec<u8>) {
    out.push(b'[');
    macro_rules! numbers {
        ($kind:ty, $size:literal) => {
            for element in bytes.as_chunks::<$size>().0 {
                put(out, &<$kind>::from_le_bytes(*element));
            }
        };
    }
    match datatype {
        DataType::Bool => bytes.iter().for_each(|element| put(out, &(*element != 0))),
        DataType::Uint8 => numbers!(u8, 1),
        DataType::Uint16 => numbers!(u16, 2),
        DataType::Uint32 => numbers!(u32, 4),
        DataType::Uint64 => numbers!(u64, 8),
        DataType::Int8 => numbers!(i8, 1),
        DataType::Int16 => numbers!(i16, 2),
        DataType::Int32 => numbers!(i32, 4),
        DataType::Int64 => numbers!(i64, 8),
        DataType::Fp32 => numbers!(f32, 4),
        DataType::Fp64 => numbers!(f64, 8),
        DataType::Bytes => {
            for text in texts(bytes) {
                put(out, &std::str::from_utf8(text).unwrap_or_default());
            }
        }
        DataType::Fp16 | DataType::Bf16 => {}
    }
    if out.last() == Some(&b',') {
        out.pop();
    }
    out.push(b']');
}

/// Appends an element of a list, with a comma behind it.
fn put(out: &mut Vec<u8>, element: &impl serde::Serialize) {
    // A write to memory cannot fail, and these values always serialize.
    let _ = serde_json::to_writer(&mut *out, element);
    out.push(b',');
}

/// Field of `InferTensorContents` with elements of a datatype; `None` where there is none.
fn field_of(datatype: DataType) -> Option<u32> {
    Some(match datatype {
        DataType::Bool => 1,
        DataType::Int8 | DataType::Int16 | DataType::Int32 => 2,
        DataType::Int64 => 3,
        DataType::Uint8 | DataType::Uint16 | DataType::Uint32 => 4,
        DataType::Uint64 => 5,
        DataType::Fp32 => 6,
        DataType::Fp64 => 7,
        DataType::Bytes => 8,
        DataType::Fp16 | DataType::Bf16 => return None,
    })
}

/// Reads `InferTensorContents`.
pub(super) fn from_typed(contents: &[u8], datatype: DataType, count: usize) -> Result<Vec<u8>, Fault> {
    let Some(expected) = field_of(datatype) else {
        return if count == 0 && contents.is_empty() { Ok(Vec::new()) } else { Err(Fault::BinaryOnly(datatype)) };
    };
    let mut elements = Elements::new(datatype, count, contents.len())?;
    for field in fields(contents) {
        let field = field?;
        if field.number != expected {
            return Err(Fault::Kind(datatype));
        }
        match (datatype, field.value) {
            (DataType::Bytes, Value::Bytes(text)) => elements.text(text)?,
            (DataType::Fp32, Value::Fixed32(value)) => elements.add(&value)?,
            (DataType::Fp64, Value::Fixed64(value)) => elements.add(&value)?,
            (DataType::Fp32, Value::Bytes(packed)) => packed_floats::<4>(packed, &mut elements)?,
            (DataType::Fp64, Value::Bytes(packed)) => packed_floats::<8>(packed, &mut elements)?,
            (DataType::Bytes | DataType::Fp32 | DataType::Fp64, _) => return Err(Fault::Kind(datatype)),
            (_, Value::Varint(value)) => elements.integer(of_varint(datatype, value))?,
            (_, Value::Bytes(mut packed)) => {
                while !packed.is_empty() {
                    let (value, rest) = varint(packed).ok_or(Fault::Malformed)?;
                    elements.integer(of_varint(datatype, value))?;
                    packed = rest;
                }
            }
            (_, Value::Fixed32(_) | Value::Fixed64(_)) => return Err(Fault::Kind(datatype)),
        }
    }
    elements.finish()
}

/// Integer that a varint of a datatype's field stands for. Those of signed fields have the bits of an `i64`; of the narrower
/// fields protobuf keeps the lower half.
#[allow(clippy::cast_possible_truncation, reason = "as protobuf's readers do")]
fn of_varint(datatype: DataType, value: u64) -> i128 {
    match datatype {
        DataType::Int64 => i128::from(value.cast_signed()),
        DataType::Int8 | DataType::Int16 | DataType::Int32 => i128::from(value as u32 as i32),
        DataType::Uint8 | DataType::Uint16 | DataType::Uint32 => i128::from(value as u32),
        DataType::Bool => i128::from(value != 0),
        _ => i128::from(value),
    }
}

fn packed_floats<const SIZE: usize>(packed: &[u8], elements: &mut Elements) -> Result<(), Fault> {
    let (floats, rest) = packed.as_chunks::<SIZE>();
    if !rest.is_empty() {
        return Err(Fault::Malformed);
    }
    floats.iter().try_for_each(|element| elements.add(element))
}

/// Writes elements in binary form as typed contents; `None` for a datatype without those.
pub(super) fn to_typed(datatype: DataType, bytes: &[u8]) -> Option<TypedContents> {
    let mut typed = TypedContents::default();
    macro_rules! numbers {
        ($field:ident, $kind:ty, $size:literal) => {
            typed.$field =
                bytes.as_chunks::<$size>().0.iter().map(|element| <$kind>::from_le_bytes(*element).into()).collect()
        };
    }
    match datatype {
        DataType::Bool => typed.bools = bytes.iter().map(|element| *element != 0).collect(),
        DataType::Int8 => numbers!(ints, i8, 1),
        DataType::Int16 => numbers!(ints, i16, 2),
        DataType::Int32 => numbers!(ints, i32, 4),
        DataType::Int64 => numbers!(int64s, i64, 8),
        DataType::Uint8 => numbers!(uints, u8, 1),
        DataType::Uint16 => numbers!(uints, u16, 2),
        DataType::Uint32 => numbers!(uints, u32, 4),
        DataType::Uint64 => numbers!(uint64s, u64, 8),
        DataType::Fp32 => numbers!(fp32s, f32, 4),
        DataType::Fp64 => numbers!(fp64s, f64, 8),
        DataType::Bytes => typed.texts = texts(bytes).map(Bytes::copy_from_slice).collect(),
        DataType::Fp16 | DataType::Bf16 => return None,
    }
    Some(typed)
}
