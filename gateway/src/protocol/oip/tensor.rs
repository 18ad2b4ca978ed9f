//! Tensors of the protocol: their datatypes, shapes and lengths. All inputs of a caller are checked here against each other:
//! the elements of a shape, the bytes of a datatype, the bytes that are there.

use spillway_filter::Refusal;

use crate::protocol::refusals::shown;

/// Most texts in one tensor, as many as a request for embeddings may have.
pub(super) const MOST_TEXTS: usize = 2048;
/// Bytes of the length before each element of [`DataType::Bytes`].
const LENGTH: usize = 4;

/// Datatype of the elements of a tensor ("Tensor Data Types" of the protocol; `BF16` is Triton's).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum DataType {
    Bool,
    Uint8,
    Uint16,
    Uint32,
    Uint64,
    Int8,
    Int16,
    Int32,
    Int64,
    Fp16,
    Bf16,
    Fp32,
    Fp64,
    Bytes,
}

impl DataType {
    pub(super) const ALL: [Self; 14] = [
        Self::Bool,
        Self::Uint8,
        Self::Uint16,
        Self::Uint32,
        Self::Uint64,
        Self::Int8,
        Self::Int16,
        Self::Int32,
        Self::Int64,
        Self::Fp16,
        Self::Bf16,
        Self::Fp32,
        Self::Fp64,
        Self::Bytes,
    ];

    /// Name in messages of the protocol.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Bool => "BOOL",
            Self::Uint8 => "UINT8",
            Self::Uint16 => "UINT16",
            Self::Uint32 => "UINT32",
            Self::Uint64 => "UINT64",
            Self::Int8 => "INT8",
            Self::Int16 => "INT16",
            Self::Int32 => "INT32",
            Self::Int64 => "INT64",
            Self::Fp16 => "FP16",
            Self::Bf16 => "BF16",
            Self::Fp32 => "FP32",
            Self::Fp64 => "FP64",
            Self::Bytes => "BYTES",
        }
    }

    /// Datatype of this name.
    pub(super) fn of(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|known| known.as_str() == name)
    }

    /// Bytes of an element; `None` where each has its own length.
    pub(super) fn size(self) -> Option<usize> {
        match self {
            Self::Bool | Self::Uint8 | Self::Int8 => Some(1),
            Self::Uint16 | Self::Int16 | Self::Fp16 | Self::Bf16 => Some(2),
            Self::Uint32 | Self::Int32 | Self::Fp32 => Some(4),
            Self::Uint64 | Self::Int64 | Self::Fp64 => Some(8),
            Self::Bytes => None,
        }
    }

    /// True for a datatype that JSON and typed contents of gRPC have no form for.
    fn is_binary_only(self) -> bool {
        matches!(self, Self::Fp16 | Self::Bf16)
    }
}

/// Elements of an input, as a request carries them.
pub(super) enum Elements<'a> {
    /// Bytes in the form of the binary extension and of `raw_input_contents`.
    Raw(&'a [u8]),
    /// Elements that were read one by one: texts, of which one more than [`MOST_TEXTS`] is kept at most, or values of another
    /// kind.
    Read {
        /// Texts.
        texts: Vec<String>,
        /// Elements, texts included.
        count: usize,
        /// True if one of them is no text.
        has_others: bool,
    },
}

/// Input of a call whose lengths agree.
#[derive(Debug)]
pub(super) struct Input {
    pub(super) name: String,
    pub(super) datatype: DataType,
    pub(super) shape: Vec<u64>,
    /// Elements of [`DataType::Bytes`]; empty for any other, whose values no built-in model reads.
    pub(super) texts: Vec<String>,
}

/// Refusal of an input.
pub(super) fn wrong(name: &str, what: impl std::fmt::Display) -> Refusal {
    let name = shown(name);
    Refusal::invalid("invalid_tensor", format!("The input `{name}` {what}.")).param(name)
}

impl Input {
    /// Checks an input and reads its texts.
    ///
    /// # Errors
    /// Refuses a datatype that does not exist, a shape that is too large, and elements that do not fill it or are no UTF-8.
    pub(super) fn new(name: String, datatype: &str, shape: Vec<u64>, elements: Elements<'_>) -> Result<Self, Refusal> {
        let Some(datatype) = DataType::of(datatype) else {
            return Err(wrong(&name, format_args!("has an unknown datatype `{}`", shown(datatype))));
        };
        let product = shape.iter().try_fold(1u64, |product, length| product.checked_mul(*length));
        let count = product.and_then(|count| usize::try_from(count).ok());
        let Some(count) = count else { return Err(wrong(&name, "has a shape with too many elements")) };
        let texts = match elements {
            Elements::Raw(bytes) => raw(&name, datatype, count, bytes)?,
            Elements::Read { texts, count: found, has_others } => {
                if datatype.is_binary_only() {
                    return Err(wrong(
                        &name,
                        format_args!("is {}, which only binary data can hold", datatype.as_str()),
                    ));
                }
                if found != count {
                    return Err(wrong(&name, format_args!("has {found} elements; its shape has {count}")));
                }
                if has_others == (datatype == DataType::Bytes) && count > 0 {
                    return Err(wrong(&name, format_args!("has elements that are not {}", datatype.as_str())));
                }
                if datatype == DataType::Bytes { texts } else { Vec::new() }
            }
        };
        if texts.len() > MOST_TEXTS {
            return Err(wrong(&name, format_args!("has {count} texts; expected at most {MOST_TEXTS}")));
        }
        Ok(Self { name, datatype, shape, texts })
    }
}

/// Reads elements in binary form, which must fill the bytes.
fn raw(name: &str, datatype: DataType, count: usize, bytes: &[u8]) -> Result<Vec<String>, Refusal> {
    if let Some(size) = datatype.size() {
        return match count.checked_mul(size) {
            Some(length) if length == bytes.len() => Ok(Vec::new()),
            _ => Err(wrong(
                name,
                format_args!("has {} bytes; expected {count} elements of {size} bytes each", bytes.len()),
            )),
        };
    }
    if count > MOST_TEXTS {
        return Err(wrong(name, format_args!("has {count} texts; expected at most {MOST_TEXTS}")));
    }
    let (mut rest, mut texts) = (bytes, Vec::with_capacity(count));
    for n in 0..count {
        let (text, after) =
            element(rest).ok_or_else(|| wrong(name, format_args!("ends within its element {n} of {count}")))?;
        let text = std::str::from_utf8(text).map_err(|_| wrong(name, format_args!("has no UTF-8 in element {n}")))?;
        texts.push(text.to_owned());
        rest = after;
    }
    if !rest.is_empty() {
        return Err(wrong(name, format_args!("has {} bytes behind its last element", rest.len())));
    }
    Ok(texts)
}

/// First element of [`DataType::Bytes`] in binary form, and the rest behind it.
pub(super) fn element(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = bytes.split_at_checked(LENGTH)?;
    let length = u32::from_le_bytes(length.try_into().ok()?);
    rest.split_at_checked(usize::try_from(length).ok()?)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn binary(texts: &[&str]) -> Vec<u8> {
        let element = |text: &&str| [&u32::try_from(text.len()).unwrap().to_le_bytes()[..], text.as_bytes()].concat();
        texts.iter().flat_map(element).collect()
    }

    fn read(datatype: &str, shape: &[u64], elements: Elements<'_>) -> Result<Vec<String>, String> {
        let input = Input::new("x".to_owned(), datatype, shape.to_vec(), elements);
        input.map(|input| input.texts).map_err(|refusal| refusal.message.into_owned())
    }

    #[test]
    fn binary_elements_must_fill_their_shape_and_their_bytes() {
        let two = binary(&["ab", "é"]);
        let raw = |datatype: &str, shape: &[u64], bytes: &[u8]| read(datatype, shape, Elements::Raw(bytes));
        assert_eq!(raw("BYTES", &[2], &two), Ok(vec!["ab".to_owned(), "é".to_owned()]));
        assert_eq!(raw("BYTES", &[2, 1], &two).map(|texts| texts.len()), Ok(2));
        assert_eq!(raw("BYTES", &[0], &[]), Ok(Vec::new()));
        for (datatype, shape, bytes, message) in [
            ("BYTES", &[1][..], &two[..], "has 6 bytes behind its last element"),
            ("BYTES", &[3], &two, "ends within its element 2 of 3"),
            ("BYTES", &[2], &two[..11], "ends within its element 1 of 2"),
            ("BYTES", &[1], &[0xFF, 0xFF, 0xFF, 0xFF, 0], "ends within its element 0 of 1"),
            ("BYTES", &[1], &[1, 0, 0, 0, 0xE9], "has no UTF-8 in element 0"),
            ("BYTES", &[4096], &[], "has 4096 texts; expected at most 2048"),
            ("BYTES", &[u64::MAX, 2], &[], "has a shape with too many elements"),
            ("FP16", &[3], &[0; 5], "has 5 bytes; expected 3 elements of 2 bytes each"),
            ("BF16", &[3], &[0; 12], "has 12 bytes; expected 3 elements of 2 bytes each"),
            ("INT64", &[u64::MAX], &[0; 8], &format!("has 8 bytes; expected {} elements of 8 bytes each", u64::MAX)),
            ("STRING", &[1], &[], "has an unknown datatype `STRING`"),
        ] {
            assert_eq!(raw(datatype, shape, bytes), Err(format!("The input `x` {message}.")), "{datatype} {shape:?}");
        }
        for datatype in DataType::ALL {
            if let Some(size) = datatype.size() {
                assert_eq!(raw(datatype.as_str(), &[2, 3], &vec![0; 6 * size]), Ok(Vec::new()), "{datatype:?}");
            }
        }
    }

    #[test]
    fn elements_that_were_read_must_be_of_their_datatype() {
        let texts = |texts: &[&str], has_others, count| Elements::Read {
            texts: texts.iter().map(|text| (*text).to_owned()).collect(),
            count,
            has_others,
        };
        assert_eq!(read("BYTES", &[2, 1], texts(&["a", "b"], false, 2)), Ok(vec!["a".to_owned(), "b".to_owned()]));
        assert_eq!(read("FP32", &[2], texts(&[], true, 2)), Ok(Vec::new()));
        for (datatype, elements, message) in [
            ("BYTES", texts(&["a"], false, 1), "has 1 elements; its shape has 2"),
            ("BYTES", texts(&["a"], true, 2), "has elements that are not BYTES"),
            ("FP32", texts(&["a", "b"], false, 2), "has elements that are not FP32"),
            ("FP16", texts(&[], true, 2), "is FP16, which only binary data can hold"),
        ] {
            assert_eq!(read(datatype, &[2], elements), Err(format!("The input `x` {message}.")));
        }
    }

    proptest! {
        #[test]
        fn texts_survive_their_binary_form(texts in prop::collection::vec(".{0,20}", 0..20)) {
            let written: Vec<&str> = texts.iter().map(String::as_str).collect();
            let count = u64::try_from(texts.len()).unwrap();
            prop_assert_eq!(read("BYTES", &[count], Elements::Raw(&binary(&written))), Ok(texts));
        }

        #[test]
        fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..64), shape in prop::collection::vec(0u64..5, 0..4)) {
            let count: u64 = shape.iter().product();
            if let Ok(texts) = read("BYTES", &shape, Elements::Raw(&bytes)) {
                let length: usize = texts.iter().map(|text| text.len() + 4).sum();
                prop_assert_eq!((texts.len(), length), (usize::try_from(count).unwrap(), bytes.len()));
            }
        }
    }
}
