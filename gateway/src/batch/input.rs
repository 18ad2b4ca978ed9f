//! Lines of an input file: each is a JSON object with a request. The file is read on a thread of its own, in pieces; nothing of it is
//! kept but the places of its lines.

use std::collections::HashSet;
use std::io::{BufRead, BufReader, Read};

use serde::Deserialize;
use serde_json::value::RawValue;

use super::record::InputFault;
use super::store::Line;

/// Paths that lines may have.
pub const ENDPOINTS: [&str; 8] = [
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/embeddings",
    "/v1/responses",
    "/v1/moderations",
    "/v1/images/generations",
    "/v1/messages",
    "/v1/rerank",
];

/// Mistakes of a file that are told.
const MOST_FAULTS: usize = 50;
/// Longest `custom_id`, bytes.
const MAX_CUSTOM_ID: usize = 512;

/// Bounds of a file.
#[derive(Debug, Clone, Copy)]
pub(super) struct InputBounds {
    pub(super) lines: u32,
    pub(super) line_bytes: u64,
}

/// Line as it is written.
#[derive(Deserialize)]
struct Written<'a> {
    custom_id: Option<String>,
    method: Option<String>,
    url: Option<String>,
    #[serde(borrow)]
    body: Option<&'a RawValue>,
}

/// Parts of a request that tell which lines go well together.
#[derive(Deserialize)]
struct Body<'a> {
    model: Option<String>,
    stream: Option<bool>,
    #[serde(borrow)]
    messages: Option<Vec<&'a RawValue>>,
    #[serde(borrow)]
    instructions: Option<&'a RawValue>,
    #[serde(borrow)]
    system: Option<&'a RawValue>,
}

/// Request of a line.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct LineRequest {
    pub(super) custom_id: String,
    /// JSON object, as it was written.
    pub(super) body: String,
}

/// Lines of a file that was read whole.
#[derive(Debug)]
pub(super) struct Input {
    pub(super) lines: u64,
    pub(super) model: Option<String>,
}

/// Reading of a file that ended.
#[derive(Debug)]
pub(super) enum Unread {
    /// The file has mistakes.
    Faults(Vec<InputFault>),
    /// The disk or the taker failed.
    Failed(String),
}

/// Reads one line for its request.
pub(super) fn request(line: &[u8], endpoint: &str) -> Result<LineRequest, InputFault> {
    let written: Written<'_> = serde_json::from_slice(line).map_err(|e| {
        fault("invalid_json_line", format!("The line is no JSON object with the request of a batch: {e}."), None)
    })?;
    let custom_id = written.custom_id.filter(|id| !id.is_empty()).ok_or_else(|| missing("custom_id"))?;
    if custom_id.len() > MAX_CUSTOM_ID {
        let message = format!("`custom_id` has {} bytes; expected at most {MAX_CUSTOM_ID}.", custom_id.len());
        return Err(fault("string_above_max_length", message, Some("custom_id")));
    }
    match written.method.as_deref() {
        Some("POST") => {}
        Some(_) => return Err(fault("invalid_method", "`method` is not POST.".to_owned(), Some("method"))),
        None => return Err(missing("method")),
    }
    match written.url.as_deref() {
        Some(url) if url == endpoint => {}
        Some(_) => {
            let message = format!("`url` is not `{endpoint}`, the `endpoint` of the batch.");
            return Err(fault("invalid_url", message, Some("url")));
        }
        None => return Err(missing("url")),
    }
    let body = written.body.filter(|body| body.get() != "null").ok_or_else(|| missing("body"))?;
    if !body.get().starts_with('{') {
        return Err(fault("invalid_type", "`body` is no JSON object.".to_owned(), Some("body")));
    }
    Ok(LineRequest { custom_id, body: body.get().to_owned() })
}

fn fault(code: &str, message: String, param: Option<&str>) -> InputFault {
    InputFault { code: code.to_owned(), message, param: param.map(str::to_owned), line: None }
}

fn missing(param: &str) -> InputFault {
    fault("missing_required_parameter", format!("`{param}` is missing."), Some(param))
}

/// Reads a file to its end and gives its lines to `take`, many at a time. Stops at `MOST_FAULTS` mistakes.
pub(super) fn read(
    file: impl Read,
    endpoint: &str,
    bounds: InputBounds,
    chunk: usize,
    mut take: impl FnMut(Vec<Line>) -> Result<(), String>,
) -> Result<Input, Unread> {
    let mut file = BufReader::with_capacity(1 << 20, file);
    let hasher = ahash::RandomState::new();
    let (mut ids, mut faults, mut ready) = (HashSet::new(), Vec::new(), Vec::new());
    let (mut number, mut at, mut lines, mut model) = (0u64, 0u64, 0u64, None);
    let mut text = Vec::new();
    loop {
        text.clear();
        // One byte more than a line may have, and its line feed, tell that it is too long.
        let most = bounds.line_bytes.saturating_add(2);
        let read = (&mut file).take(most).read_until(b'\n', &mut text);
        let read = u64::try_from(read.map_err(|e| Unread::Failed(e.to_string()))?).unwrap_or(u64::MAX);
        if read == 0 {
            break;
        }
        number += 1;
        let (begins, line) = (at, text.trim_ascii_end());
        at = at.saturating_add(read);
        if line.is_empty() {
            continue;
        }
        let length = u64::try_from(line.len()).unwrap_or(u64::MAX);
        if length > bounds.line_bytes {
            let message = format!("The line has more than {} bytes (`batch.maxLine`).", bounds.line_bytes);
            faults.push(InputFault { line: Some(number), ..fault("line_too_long", message, None) });
            // Where the next line begins is not worth the reading of it.
            break;
        }
        if lines >= u64::from(bounds.lines) {
            let message = format!("The file has more than {} lines (`batch.maxLines`).", bounds.lines);
            faults.push(InputFault { line: Some(number), ..fault("too_many_lines", message, None) });
            break;
        }
        lines += 1;
        let judged = judge(line, endpoint).and_then(|judged| {
            let is_new = ids.insert(hasher.hash_one(&judged.custom_id));
            let message = || "`custom_id` is that of an earlier line.".to_owned();
            is_new.then_some(judged).ok_or_else(|| fault("duplicate_custom_id", message(), Some("custom_id")))
        });
        match judged {
            Ok(judged) => {
                if lines == 1 {
                    model = judged.model;
                }
                ready.push(Line { number, at: begins, length, rank: judged.rank, tries: 0 });
            }
            Err(fault) => faults.push(InputFault { line: Some(number), ..fault }),
        }
        if faults.len() >= MOST_FAULTS {
            break;
        }
        if ready.len() >= chunk && faults.is_empty() {
            take(std::mem::take(&mut ready)).map_err(Unread::Failed)?;
        }
    }
    if lines == 0 && faults.is_empty() {
        faults.push(fault("empty_file", "The file has no line.".to_owned(), None));
    }
    if !faults.is_empty() {
        return Err(Unread::Faults(faults));
    }
    take(ready).map_err(Unread::Failed)?;
    Ok(Input { lines, model })
}

/// Line without a mistake.
struct Judged {
    custom_id: String,
    model: Option<String>,
    rank: i64,
}

fn judge(line: &[u8], endpoint: &str) -> Result<Judged, InputFault> {
    let LineRequest { custom_id, body } = request(line, endpoint)?;
    let read: Body<'_> = serde_json::from_str(&body)
        .map_err(|e| fault("invalid_value", format!("`body` cannot be read: {e}."), Some("body")))?;
    if read.stream == Some(true) {
        let message = "`stream` is true, and nobody reads the stream of a line: leave it out.".to_owned();
        return Err(fault("unsupported_parameter", message, Some("body.stream")));
    }
    let first = read.messages.as_ref().and_then(|messages| messages.first()).map(|first| first.get());
    let begin = read.instructions.or(read.system).map(RawValue::get).or(first).unwrap_or_default();
    Ok(Judged { rank: rank(read.model.as_deref().unwrap_or_default(), begin), custom_id, model: read.model })
}

/// Rank of a line: lines of one model have neighbouring ranks, and those whose prompts begin alike the same one, so that a server
/// which keeps prompts reads the common part once. The store keeps it, so it is the same in every process.
fn rank(model: &str, begin: &str) -> i64 {
    use std::hash::{Hash, Hasher};
    let hash = |text: &str| {
        let mut hasher = siphasher::sip::SipHasher13::new();
        text.hash(&mut hasher);
        hasher.finish()
    };
    let (model, begin) = (hash(model) >> 32, hash(begin) >> 32);
    i64::from_be_bytes(((model << 32) | begin).to_be_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHAT: &str = "/v1/chat/completions";
    const BOUNDS: InputBounds = InputBounds { lines: 4, line_bytes: 300 };

    fn line(id: &str, system: &str) -> String {
        format!(
            r#"{{"custom_id":"{id}","method":"POST","url":"{CHAT}","body":{{"model":"m","messages":[{{"role":"system","content":"{system}"}}]}}}}"#
        )
    }

    fn read_all(text: &str) -> Result<(Input, Vec<Line>), Vec<InputFault>> {
        let mut all = Vec::new();
        let read = read(text.as_bytes(), CHAT, BOUNDS, 2, |lines| {
            all.extend(lines);
            Ok(())
        });
        match read {
            Ok(input) => Ok((input, all)),
            Err(Unread::Faults(faults)) => Err(faults),
            Err(Unread::Failed(reason)) => panic!("{reason}"),
        }
    }

    #[test]
    fn lines_are_found_where_they_are() {
        let text = format!("{}\r\n\n{}\n{}", line("a", "s"), line("b", "t"), line("c", "s"));
        let (input, lines) = read_all(&text).unwrap();
        assert_eq!((input.lines, input.model.as_deref()), (3, Some("m")));
        assert_eq!(lines.iter().map(|line| line.number).collect::<Vec<_>>(), [1, 3, 4]);
        for (place, id) in lines.iter().zip(["a", "b", "c"]) {
            let (at, length) = (usize::try_from(place.at).unwrap(), usize::try_from(place.length).unwrap());
            assert_eq!(request(&text.as_bytes()[at..at + length], CHAT).unwrap().custom_id, id);
        }
        assert_eq!(lines[0].rank, lines[2].rank);
        assert_ne!(lines[0].rank, lines[1].rank);
    }

    #[test]
    fn each_mistake_is_told_with_its_line() {
        let good = line("a", "s");
        for (text, code, at) in [
            ("", "empty_file", None),
            ("\n \n", "empty_file", None),
            ("{", "invalid_json_line", Some(1)),
            ("[]", "invalid_json_line", Some(1)),
            (&good.replace("\"custom_id\":\"a\",", ""), "missing_required_parameter", Some(1)),
            (&good.replace("\"a\"", "\"\""), "missing_required_parameter", Some(1)),
            (&good.replace("\"a\"", "7"), "invalid_json_line", Some(1)),
            (&good.replace("\"a\"", &format!("\"{}\"", "x".repeat(513))), "line_too_long", Some(1)),
            (&good.replace("POST", "GET"), "invalid_method", Some(1)),
            (&good.replace("/v1/chat/completions", "/v1/embeddings"), "invalid_url", Some(1)),
            (&good.replace("\"model\"", "\"stream\":true,\"model\""), "unsupported_parameter", Some(1)),
            (&good.replace("\"model\":\"m\"", "\"model\":7"), "invalid_value", Some(1)),
            (&good.replace("\"custom_id\"", "\"custom_id\":\"b\",\"custom_id\""), "invalid_json_line", Some(1)),
            (&format!("{good}\n{good}"), "duplicate_custom_id", Some(2)),
            (&format!("{good}\n\n{{\n"), "invalid_json_line", Some(3)),
            (&line("a", &"x".repeat(300)), "line_too_long", Some(1)),
            (&["a", "b", "c", "d", "e"].map(|id| line(id, "s")).join("\n"), "too_many_lines", Some(5)),
        ] {
            let faults = read_all(text).map(|_| ()).unwrap_err();
            assert_eq!((faults[0].code.as_str(), faults[0].line), (code, at), "{text}");
        }
        let many = "{\n".repeat(100);
        let bounds = InputBounds { lines: 1_000, ..BOUNDS };
        let Err(Unread::Faults(faults)) = read(many.as_bytes(), CHAT, bounds, 2, |_| Ok(())) else { panic!() };
        assert_eq!(faults.len(), MOST_FAULTS);
    }

    #[test]
    fn a_body_is_kept_as_it_was_written() {
        let text = r#"{"custom_id":"a","method":"POST","url":"/v1/embeddings","body":{ "n" : 1.50, "z":[1,2] }}"#;
        let read = request(text.as_bytes(), "/v1/embeddings").unwrap();
        assert_eq!(read.body, r#"{ "n" : 1.50, "z":[1,2] }"#);
    }
}
