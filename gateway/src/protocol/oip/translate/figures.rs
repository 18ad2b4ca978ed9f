//! Values of the tensors of calls and answers, for figures about them. Reads leniently: a member or a value that is of no known
//! form is left out, and missing values count as such.

use std::borrow::Cow;
use std::fmt;

use serde::de::{Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, de};
use serde_json::value::RawValue;
use spillway_filter::Fields;

use super::message::{MOST_DIMENSIONS, MOST_TENSORS, Tensor};
use super::protobuf;
use crate::protocol::oip::grpc::request::message;
use crate::protocol::oip::json::split;
use crate::protocol::oip::tensor::{DataType, element};
use crate::protocol::oip::values::Few;

/// Elements of a tensor that are read; of more, as many at even distances in binary form, the first ones in JSON.
const MOST_ELEMENTS: usize = 4096;
/// Bytes of a text that are read.
const MOST_TEXT: usize = 64;

/// Values of a tensor.
#[derive(Debug, Clone, PartialEq)]
pub struct TensorValues {
    /// Name.
    pub name: String,
    /// Dimensions.
    pub shape: Vec<i64>,
    /// Elements in their order.
    pub elements: TensorElements,
    /// True if all elements are there, so that their places say their column.
    pub is_whole: bool,
}

/// Elements of a tensor.
#[derive(Debug, Clone, PartialEq)]
pub enum TensorElements {
    /// Measures; what is not there or no number is NaN.
    Numbers(Vec<f64>),
    /// Whole numbers and truth values, which may name classes.
    Names(Vec<String>),
    /// Texts.
    Texts(Vec<String>),
}

/// Reads the tensors of a call, or of an answer; `None` for a body that has none in a known form. `headers` has the length of
/// its JSON, if any.
pub fn read_values(is_grpc: bool, is_answer: bool, headers: &Fields, body: &[u8]) -> Option<Vec<TensorValues>> {
    if is_grpc {
        let message = message(body).ok()?;
        let read = if is_answer { protobuf::read_answer(message) } else { protobuf::read_call(message) };
        return Some(read.ok()?.tensors.into_iter().map(of_message).collect());
    }
    let (head, mut binary) = split(headers, body).ok()?;
    let tensors = if is_answer {
        serde_json::from_slice::<Answer<'_>>(head).ok()?.outputs.0
    } else {
        serde_json::from_slice::<Call<'_>>(head).ok()?.inputs.0
    };
    Some(tensors.into_iter().filter_map(|tensor| tensor.read(&mut binary)).collect())
}

fn of_message(tensor: Tensor<'_>) -> TensorValues {
    let Tensor { name, datatype, shape, data, .. } = tensor;
    let (elements, is_whole) = of_bytes(datatype, &data);
    TensorValues { name: name.into_owned(), shape, elements, is_whole }
}

/// Number of a half-precision float.
fn half(bits: u16) -> f64 {
    let (exponent, fraction) = (i32::from((bits >> 10) & 0x1f), f64::from(bits & 0x3ff));
    let magnitude = match exponent {
        0 => fraction * 2f64.powi(-24),
        31 if fraction == 0.0 => f64::INFINITY,
        31 => f64::NAN,
        _ => (1.0 + fraction / 1024.0) * 2f64.powi(exponent - 15),
    };
    if bits >> 15 == 1 { -magnitude } else { magnitude }
}

/// Elements in binary form, and whether they are all.
fn of_bytes(datatype: DataType, bytes: &[u8]) -> (TensorElements, bool) {
    let Some(size) = datatype.size() else {
        let (mut names, mut rest) = (Vec::new(), bytes);
        while names.len() < MOST_ELEMENTS
            && let Some((text, after)) = element(rest)
        {
            names.push(String::from_utf8_lossy(text.get(..text.len().min(MOST_TEXT)).unwrap_or_default()).into_owned());
            rest = after;
        }
        return (TensorElements::Texts(names), rest.is_empty());
    };
    let number = bytes.len() / size;
    let step = number.div_ceil(MOST_ELEMENTS).max(1);
    let all = || bytes.chunks_exact(size).step_by(step);
    macro_rules! read {
        ($kind:ty) => {
            all().filter_map(|element| Some(<$kind>::from_le_bytes(element.try_into().ok()?)))
        };
    }
    let names = |texts: Vec<String>| TensorElements::Names(texts);
    let elements = match datatype {
        DataType::Bool => names(read!(u8).map(|value| (value != 0).to_string()).collect()),
        DataType::Uint8 => names(read!(u8).map(|value| value.to_string()).collect()),
        DataType::Uint16 => names(read!(u16).map(|value| value.to_string()).collect()),
        DataType::Uint32 => names(read!(u32).map(|value| value.to_string()).collect()),
        DataType::Uint64 => names(read!(u64).map(|value| value.to_string()).collect()),
        DataType::Int8 => names(read!(i8).map(|value| value.to_string()).collect()),
        DataType::Int16 => names(read!(i16).map(|value| value.to_string()).collect()),
        DataType::Int32 => names(read!(i32).map(|value| value.to_string()).collect()),
        DataType::Int64 => names(read!(i64).map(|value| value.to_string()).collect()),
        DataType::Fp16 => TensorElements::Numbers(read!(u16).map(half).collect()),
        DataType::Bf16 => {
            TensorElements::Numbers(read!(u16).map(|bits| f64::from(f32::from_bits(u32::from(bits) << 16))).collect())
        }
        DataType::Fp32 => TensorElements::Numbers(read!(f32).map(f64::from).collect()),
        DataType::Fp64 => TensorElements::Numbers(read!(f64).collect()),
        DataType::Bytes => names(Vec::new()),
    };
    (elements, step == 1)
}

#[derive(Deserialize)]
struct Call<'a> {
    #[serde(borrow)]
    inputs: Few<Written<'a>, MOST_TENSORS>,
}

#[derive(Deserialize)]
struct Answer<'a> {
    #[serde(borrow)]
    outputs: Few<Written<'a>, MOST_TENSORS>,
}

/// Tensor as JSON has it.
#[derive(Deserialize)]
struct Written<'a> {
    #[serde(borrow)]
    name: Cow<'a, str>,
    shape: Few<i64, MOST_DIMENSIONS>,
    #[serde(borrow)]
    datatype: Cow<'a, str>,
    #[serde(borrow, default)]
    data: Option<&'a RawValue>,
    #[serde(default)]
    parameters: Option<BinarySize>,
}

impl Written<'_> {
    fn read(self, binary: &mut &[u8]) -> Option<TensorValues> {
        let datatype = DataType::of(&self.datatype)?;
        let size = self.parameters.and_then(|parameters| parameters.0);
        let (elements, is_whole) = match (self.data, size) {
            (None, Some(size)) => {
                let (data, rest) = binary.split_at_checked(size)?;
                *binary = rest;
                of_bytes(datatype, data)
            }
            (Some(data), _) => {
                let is_measure = matches!(datatype, DataType::Fp16 | DataType::Bf16 | DataType::Fp32 | DataType::Fp64);
                let is_text = datatype == DataType::Bytes;
                let mut flat = Flat { is_measure, is_text, numbers: Vec::new(), names: Vec::new(), is_whole: true };
                let mut reader = serde_json::Deserializer::from_str(data.get());
                de::DeserializeSeed::deserialize(&mut flat, &mut reader).ok()?;
                let Flat { numbers, names, is_whole, .. } = flat;
                let elements = match datatype {
                    _ if is_measure => TensorElements::Numbers(numbers),
                    DataType::Bytes => TensorElements::Texts(names),
                    _ => TensorElements::Names(names),
                };
                (elements, is_whole)
            }
            (None, None) => return None,
        };
        Some(TensorValues { name: self.name.into_owned(), shape: self.shape.0, elements, is_whole })
    }
}

/// Parameter with the bytes of the binary data of a tensor.
struct BinarySize(Option<usize>);

impl<'de> Deserialize<'de> for BinarySize {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Read;
        impl<'de> Visitor<'de> for Read {
            type Value = BinarySize;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("parameters")
            }
            fn visit_unit<E: Error>(self) -> Result<BinarySize, E> {
                Ok(BinarySize(None))
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<BinarySize, A::Error> {
                let mut size = None;
                while let Some((name, value)) = map.next_entry::<Cow<'de, str>, &'de RawValue>()? {
                    if name == crate::protocol::oip::json::BINARY_DATA_SIZE {
                        size = value.get().parse().ok();
                    }
                }
                Ok(BinarySize(size))
            }
        }
        deserializer.deserialize_any(Read)
    }
}

/// Elements of nested lists in their order.
struct Flat {
    is_measure: bool,
    /// True for a tensor of texts; in any other one a text is no element, and is not kept.
    is_text: bool,
    numbers: Vec<f64>,
    names: Vec<String>,
    is_whole: bool,
}

impl Flat {
    fn add(&mut self, number: f64, name: impl FnOnce() -> String) {
        if self.numbers.len() + self.names.len() >= MOST_ELEMENTS {
            self.is_whole = false;
        } else if self.is_measure {
            self.numbers.push(number);
        } else {
            self.names.push(name());
        }
    }
}

impl<'de> de::DeserializeSeed<'de> for &mut Flat {
    type Value = ();
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

#[allow(clippy::cast_precision_loss, reason = "the precision of a measure is enough for its figures")]
impl<'de> Visitor<'de> for &mut Flat {
    type Value = ();
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("elements")
    }
    fn visit_bool<E: Error>(self, value: bool) -> Result<(), E> {
        self.add(f64::from(u8::from(value)), || value.to_string());
        Ok(())
    }
    fn visit_i64<E: Error>(self, value: i64) -> Result<(), E> {
        self.add(value as f64, || value.to_string());
        Ok(())
    }
    fn visit_u64<E: Error>(self, value: u64) -> Result<(), E> {
        self.add(value as f64, || value.to_string());
        Ok(())
    }
    fn visit_f64<E: Error>(self, value: f64) -> Result<(), E> {
        self.add(value, || value.to_string());
        Ok(())
    }
    fn visit_unit<E: Error>(self) -> Result<(), E> {
        self.add(f64::NAN, || "missing".to_owned());
        Ok(())
    }
    fn visit_str<E: Error>(self, text: &str) -> Result<(), E> {
        let kept =
            if self.is_text { text.get(..text.floor_char_boundary(MOST_TEXT)).unwrap_or_default() } else { "other" };
        self.add(f64::NAN, || kept.to_owned());
        Ok(())
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<(), A::Error> {
        while list.next_element_seed(&mut *self)?.is_some() {}
        Ok(())
    }
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while map.next_entry::<de::IgnoredAny, de::IgnoredAny>()?.is_some() {}
        self.add(f64::NAN, || "other".to_owned());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;
    use crate::protocol::oip::json::INFERENCE_HEADER_CONTENT_LENGTH;

    #[test]
    fn values_are_read_from_json_nested_missing_and_unknown_members_included() {
        let body = br#"{"x":1,"inputs":[{"name":"a","shape":[2,2],"datatype":"FP32","data":[[1,2.5],[null,"x"]],"y":{}},
            {"name":"b","shape":[2],"datatype":"INT64","data":[7,8]},{"name":"c","shape":[1],"datatype":"BYTES","data":["red"]}],"outputs":[{"name":"o"}]}"#;
        let read = read_values(false, false, &Fields::default(), body).unwrap();
        let TensorElements::Numbers(numbers) = &read[0].elements else { panic!("{read:?}") };
        assert!(numbers[..2] == [1.0, 2.5] && numbers[2].is_nan() && numbers[3].is_nan());
        assert_eq!(read[1].elements, TensorElements::Names(vec!["7".into(), "8".into()]));
        assert_eq!(read[2].elements, TensorElements::Texts(vec!["red".into()]));
        // A text in a tensor of numbers is no element, whatever it says.
        let secret = br#"{"inputs":[{"name":"b","shape":[2],"datatype":"INT64","data":[7,"alice@example.com"]}]}"#;
        let read = read_values(false, false, &Fields::default(), secret).unwrap();
        assert_eq!(read[0].elements, TensorElements::Names(vec!["7".into(), "other".into()]));
        assert!(read_values(false, true, &Fields::default(), body).is_none());
        assert!(read_values(true, false, &Fields::default(), body).is_none());
    }

    #[test]
    fn values_are_read_from_binary_data() {
        let head = br#"{"outputs":[{"name":"a","shape":[2],"datatype":"FP32","parameters":{"binary_data_size":8}},{"name":"h","shape":[1],"datatype":"FP16","parameters":{"binary_data_size":2}}]}"#;
        let data = [1.0f32, -2.0].into_iter().flat_map(f32::to_le_bytes).chain(0xc500_u16.to_le_bytes());
        let body: Vec<u8> = head.iter().copied().chain(data).collect();
        let mut headers = Fields::default();
        headers.insert(INFERENCE_HEADER_CONTENT_LENGTH.clone(), HeaderValue::from(head.len()));
        let read = read_values(false, true, &headers, &body).unwrap();
        assert_eq!(read[0].elements, TensorElements::Numbers(vec![1.0, -2.0]));
        assert_eq!(read[1].elements, TensorElements::Numbers(vec![-5.0]));
    }
}
