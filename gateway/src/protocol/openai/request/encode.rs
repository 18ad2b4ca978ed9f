//! Reader of requests for embeddings (OpenAI) and reranking (Jina, Cohere, vLLM). A body is read in one pass, and nothing is
//! kept of fields that are not used.

use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use spillway_filter::Refusal;

use super::findings::Findings;
use super::inputs::TextOrTokens;
use super::object;
use super::values::{BorrowedText, Flat, Probe, Skip, SkipVisitor};
use crate::protocol::chat::{Encode, EncodeInput, EncodeRequest};
use crate::protocol::refusals::{duplicate, shown};

/// Most texts in one request, as many as OpenAI accepts.
const MAX_TEXTS: usize = 2048;

/// Texts of a request.
#[derive(Debug, Default)]
struct Texts {
    texts: Vec<String>,
    /// True if an entry was no text.
    other: bool,
    many: bool,
}

impl Texts {
    fn add(&mut self, value: Probe<'_>) {
        let text = match value {
            Probe::Text(text) => Some(text.into_owned()),
            // A document in Cohere's shape.
            Probe::Object(..) => match value.field("text") {
                Some(Flat::Text(text)) => Some(text.clone().into_owned()),
                _ => None,
            },
            _ => None,
        };
        match text {
            Some(_) if self.texts.len() >= MAX_TEXTS => self.many = true,
            Some(text) => self.texts.push(text),
            None => self.other = true,
        }
    }

    /// Returns the texts; reports to `findings` if the field `param` has none, too many, or anything but texts.
    fn validate(self, param: &'static str, findings: &mut Findings) -> Vec<String> {
        if self.other {
            findings.wrong("invalid_type", param, "must be text or a list of texts");
        } else if self.many {
            findings.wrong("array_above_max_length", param, format!("must have at most {MAX_TEXTS} texts"));
        } else if self.texts.is_empty() {
            findings.wrong("empty_array", param, "must have at least one text");
        } else if self.texts.iter().any(String::is_empty) {
            findings.wrong("invalid_value", param, "must have no empty text");
        }
        self.texts
    }
}

impl<'de> Deserialize<'de> for Texts {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct TextsVisitor;
        impl<'de> Visitor<'de> for TextsVisitor {
            type Value = Texts;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a value")
            }
            fn visit_unit<E>(self) -> Result<Texts, E> {
                Ok(Texts::default())
            }
            fn visit_bool<E>(self, _: bool) -> Result<Texts, E> {
                Ok(Texts { other: true, ..Texts::default() })
            }
            fn visit_u64<E>(self, _: u64) -> Result<Texts, E> {
                Ok(Texts { other: true, ..Texts::default() })
            }
            fn visit_i64<E>(self, _: i64) -> Result<Texts, E> {
                Ok(Texts { other: true, ..Texts::default() })
            }
            fn visit_f64<E>(self, _: f64) -> Result<Texts, E> {
                Ok(Texts { other: true, ..Texts::default() })
            }
            fn visit_str<E>(self, text: &str) -> Result<Texts, E> {
                Ok(Texts { texts: vec![text.to_owned()], ..Texts::default() })
            }
            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Texts, A::Error> {
                SkipVisitor.visit_map(map)?;
                Ok(Texts { other: true, ..Texts::default() })
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Texts, A::Error> {
                let mut texts = Texts::default();
                while let Some(value) = list.next_element::<Probe<'de>>()? {
                    texts.add(value);
                }
                Ok(texts)
            }
        }
        deserializer.deserialize_any(TextsVisitor)
    }
}

/// Returns the texts and tokens of `input`; reports to `findings` if there are none, too many, or anything else.
fn inputs(written: TextOrTokens, findings: &mut Findings) -> Vec<EncodeInput> {
    let list = match written {
        TextOrTokens::Many(list) => list,
        one => vec![one],
    };
    if list.is_empty() {
        findings.wrong("empty_array", "input", "must have at least one text");
    } else if list.len() > MAX_TEXTS {
        findings.wrong("array_above_max_length", "input", format!("must have at most {MAX_TEXTS} texts"));
    }
    let mut inputs = Vec::with_capacity(list.len());
    for input in list {
        match input {
            TextOrTokens::Text(text) if !text.is_empty() => inputs.push(EncodeInput::Text(text)),
            TextOrTokens::Tokens(tokens) if !tokens.is_empty() => inputs.push(EncodeInput::Tokens(tokens)),
            TextOrTokens::Text(_) | TextOrTokens::Tokens(_) => {
                findings.wrong("invalid_value", "input", "must have no empty text");
            }
            _ => findings.wrong("invalid_type", "input", "must be text, tokens, or a list of either"),
        }
    }
    inputs
}

/// Reads a request for a model that encodes texts. An error names the field at fault.
pub(in crate::protocol::openai) fn encode(body: &[u8], what: Encode) -> Result<EncodeRequest, Refusal> {
    let mut reader = EncodeReader {
        what,
        request: EncodeRequest { return_documents: true, ..EncodeRequest::default() },
        inputs: None,
        texts: None,
        seen: Vec::new(),
        findings: Findings::default(),
    };
    object(body, &mut reader)?;
    let EncodeReader { mut request, inputs: written, texts, mut findings, .. } = reader;
    match (what, written, texts) {
        (Encode::Embeddings, Some(written), _) if written != TextOrTokens::Nothing => {
            request.inputs = inputs(written, &mut findings);
        }
        (Encode::Embeddings, ..) => findings.wrong("missing_required_parameter", "input", "is missing"),
        (Encode::Rerank, _, Some(texts)) => request.texts = texts.validate("documents", &mut findings),
        (Encode::Rerank, ..) => findings.wrong("missing_required_parameter", "documents", "is missing"),
    }
    if what == Encode::Rerank && request.query.is_none() {
        findings.wrong("missing_required_parameter", "query", "is missing");
    }
    request.ignored = std::mem::take(&mut findings.ignored);
    match findings.first() {
        Some(refusal) => Err(refusal),
        None => Ok(request),
    }
}

struct EncodeReader {
    what: Encode,
    request: EncodeRequest,
    inputs: Option<TextOrTokens>,
    texts: Option<Texts>,
    seen: Vec<String>,
    findings: Findings,
}

impl<'a> Visitor<'a> for &mut EncodeReader {
    type Value = ();
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON object")
    }
    fn visit_map<A: MapAccess<'a>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(BorrowedText(key)) = map.next_key()? {
            if self.seen.iter().any(|seen| *seen == *key) {
                self.findings.refuse(duplicate(&shown(&key)));
                map.next_value::<Skip>()?;
                continue;
            }
            // A body with more names than the API has fields has unknown ones, of which the first is reported.
            if self.seen.len() < 32 {
                self.seen.push(key.clone().into_owned());
            }
            match (self.what, &*key) {
                (Encode::Embeddings, "input") => self.inputs = Some(map.next_value()?),
                (Encode::Rerank, "documents") => self.texts = Some(map.next_value()?),
                (_, "user") | (Encode::Rerank, "truncate_prompt_tokens" | "priority") => {
                    map.next_value::<Skip>()?;
                }
                (what, name) => {
                    let value: Probe<'a> = map.next_value()?;
                    if value != Probe::Null {
                        self.field(what, name, value);
                    }
                }
            }
        }
        Ok(())
    }
}

impl EncodeReader {
    fn field(&mut self, what: Encode, name: &str, value: Probe<'_>) {
        match (what, name) {
            (_, "model") => match value {
                Probe::Text(model) => self.request.model = Some(model.into_owned()),
                _ => self.findings.wrong("invalid_type", "model", "must be a string"),
            },
            (Encode::Embeddings, "encoding_format") => match value {
                Probe::Text(format) if format == "float" => {}
                Probe::Text(format) if format == "base64" => self.request.base64 = true,
                _ => self.findings.wrong("invalid_value", "encoding_format", "must be float or base64"),
            },
            (Encode::Embeddings, "dimensions") => self.request.dimensions = self.count("dimensions", &value),
            (Encode::Rerank, "query") => match value {
                Probe::Text(query) if !query.is_empty() => self.request.query = Some(query.into_owned()),
                _ => self.findings.wrong("invalid_value", "query", "must be a text"),
            },
            (Encode::Rerank, "top_n") => self.request.top_n = self.count("top_n", &value),
            (Encode::Rerank, "return_documents") => match value {
                Probe::Bool(wanted) => self.request.return_documents = wanted,
                _ => self.findings.wrong("invalid_type", "return_documents", "must be true or false"),
            },
            // Forms of the vectors, of vLLM and others.
            (Encode::Embeddings, "add_special_tokens" | "normalize") if value == Probe::Bool(true) => {}
            (Encode::Embeddings, "embed_dtype") if matches!(&value, Probe::Text(kind) if kind == "float32") => {}
            (Encode::Embeddings, "endianness") if matches!(&value, Probe::Text(order) if order == "little") => {}
            (Encode::Embeddings, "add_special_tokens" | "normalize" | "embed_dtype" | "endianness" | "messages") => {
                let why = "the built-in model does not implement this value";
                self.findings.unsupported("unsupported_value", name.to_owned(), why);
            }
            _ => self.findings.ignore(shown(name)),
        }
    }

    fn count(&mut self, name: &'static str, value: &Probe<'_>) -> Option<u32> {
        match value {
            // A larger one is above what any model has; the model says so.
            Probe::Unsigned(count) if *count > 0 => Some(u32::try_from(*count).unwrap_or(u32::MAX)),
            _ => {
                self.findings.wrong("invalid_value", name, "must be a whole number above 0");
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn embed(body: &str) -> Result<EncodeRequest, Refusal> {
        encode(body.as_bytes(), Encode::Embeddings)
    }

    #[test]
    fn what_is_to_be_encoded_is_read() {
        let one = embed(r#"{"model":"m","input":"a","encoding_format":"base64","dimensions":3,"user":"u"}"#).unwrap();
        let text = |text: &str| EncodeInput::Text(text.into());
        assert_eq!((one.inputs, one.base64, one.dimensions), (vec![text("a")], true, Some(3)));
        assert_eq!(embed(r#"{"input":"a","frobnicate":1}"#).unwrap().ignored.first(), Some("frobnicate"));
        assert_eq!(embed(r#"{"input":["a","b"],"encoding_format":"float"}"#).unwrap().inputs, [text("a"), text("b")]);
        let tokens = |tokens: &[u32]| EncodeInput::Tokens(tokens.into());
        assert_eq!(embed(r#"{"input":[1,2,3]}"#).unwrap().inputs, [tokens(&[1, 2, 3])]);
        assert_eq!(embed(r#"{"input":[[1,2],"a",[3]]}"#).unwrap().inputs, [tokens(&[1, 2]), text("a"), tokens(&[3])]);
        let body = br#"{"model":"m","query":"q","documents":["a",{"text":"b"}],"top_n":1,"return_documents":false}"#;
        let rank = encode(body, Encode::Rerank).unwrap();
        assert_eq!((rank.query.as_deref(), rank.texts.len(), rank.top_n), (Some("q"), 2, Some(1)));
        assert!(!rank.return_documents && rank.model.as_deref() == Some("m"));
    }

    #[test]
    fn what_is_wrong_is_refused_with_its_field() {
        let many = format!(r#"{{"input":[{}]}}"#, vec!["\"a\""; 2049].join(","));
        for (body, param) in [
            ("{}", "input"),
            (r#"{"input":[]}"#, "input"),
            (r#"{"input":""}"#, "input"),
            (r#"{"input":["a",""]}"#, "input"),
            (r#"{"input":7}"#, "input"),
            (r#"{"input":{"a":1}}"#, "input"),
            (r#"{"input":null}"#, "input"),
            (r#"{"input":[1,"a"]}"#, "input"),
            (r#"{"input":[1,-2]}"#, "input"),
            (r#"{"input":[4294967296]}"#, "input"),
            (r#"{"input":[[1.5]]}"#, "input"),
            (r#"{"input":[[]]}"#, "input"),
            (many.as_str(), "input"),
            (r#"{"input":"a","encoding_format":"hex"}"#, "encoding_format"),
            (r#"{"input":"a","dimensions":0}"#, "dimensions"),
            (r#"{"input":"a","dimensions":-8}"#, "dimensions"),
            (r#"{"input":"a","dimensions":2.5}"#, "dimensions"),
            (r#"{"input":"a","dimensions":"8"}"#, "dimensions"),
            (r#"{"input":"a","dimensions":99999999999999999999999}"#, "dimensions"),
            (r#"{"input":"a","normalize":false}"#, "normalize"),
            (r#"{"input":"a","input":"b"}"#, "input"),
            (r#"{"input":"a","model":1}"#, "model"),
        ] {
            let refusal = embed(body).expect_err(body);
            assert_eq!((refusal.status.as_u16(), refusal.param.as_deref()), (400, Some(param)), "{body}");
        }
        let rank = |body: &str| encode(body.as_bytes(), Encode::Rerank).unwrap_err().param.unwrap();
        assert_eq!(rank(r#"{"query":"q"}"#), "documents");
        assert_eq!(rank(r#"{"documents":["a"]}"#), "query");
        assert_eq!(rank(r#"{"query":"q","documents":[{"title":"a"}]}"#), "documents");
        for top_n in ["-1", "0", "1.5", "\"1\"", "1e30"] {
            assert_eq!(rank(&format!(r#"{{"query":"q","documents":["a"],"top_n":{top_n}}}"#)), "top_n");
        }
        // Above what any model has, and more than there are documents.
        let huge = embed(r#"{"input":"a","dimensions":1000000000000}"#).unwrap();
        assert_eq!(huge.dimensions, Some(u32::MAX));
        let all = encode(br#"{"query":"q","documents":["a"],"top_n":1000000000000}"#, Encode::Rerank).unwrap();
        assert_eq!(all.top_n, Some(u32::MAX));
    }
}
