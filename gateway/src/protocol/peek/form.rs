//! Reader of the model that a form names (`multipart/form-data`, RFC 7578), as in requests for transcriptions and edits of
//! images. Readers of forms differ in much that no client writes, so only the plain spelling is accepted. Lines end with
//! CRLF, nothing is before the first boundary or behind the last one, and each part has one name. No reader joins or decodes
//! the parameters.

use std::ops::Range;

use memchr::memmem;
use spillway_filter::Refusal;

use super::check_model;
use super::scan::{NameMatch, compare_names};
use crate::protocol::refusals::duplicate;

/// Longest boundary in bytes (RFC 2046, 5.1.1).
const MAX_BOUNDARY: usize = 70;

/// Most parameters of one header: clients write three, and each name is compared with all before it.
const MAX_PARAMETERS: usize = 16;

fn wrong(what: &str) -> Refusal {
    Refusal::invalid("invalid_form", format!("The body is not a plain multipart form: {what}."))
}

/// True if a content type is that of a multipart form.
pub fn is_form(content_type: &[u8]) -> bool {
    content_type.get(..10).is_some_and(|start| start.eq_ignore_ascii_case(b"multipart/"))
}

/// Returns the model that a form names, and where its name is in the body. A form that two readers could read in two ways is
/// refused.
pub fn form_model(content_type: &[u8], body: &[u8]) -> Result<Option<(String, Range<usize>)>, Refusal> {
    let boundary = boundary(content_type)?;
    let delimiter = [b"--", boundary].concat();
    let finder = memmem::Finder::new(&delimiter);
    let mut model = None;
    let (mut rest, mut is_first) = (body, true);
    loop {
        let Some(at) = finder.find(rest) else { return Err(wrong("it does not end with its boundary")) };
        let (part, behind) = rest.split_at_checked(at).unwrap_or((rest, &[]));
        let behind = behind.get(delimiter.len()..).unwrap_or_default();
        if is_first {
            if !part.is_empty() {
                return Err(wrong("it has bytes before its first boundary"));
            }
        } else {
            let Some(part) = part.strip_suffix(b"\r\n") else {
                return Err(wrong("its boundary is within a line"));
            };
            if let Some(named) = named_by(part)? {
                if model.is_some() {
                    return Err(duplicate("model"));
                }
                // The name is the end of its part.
                let end = body.len() - rest.len() + part.len();
                let at = end - named.len()..end;
                model = Some((named, at));
            }
        }
        is_first = false;
        match behind {
            b"--" | b"--\r\n" => return Ok(model),
            [b'\r', b'\n', next @ ..] => rest = next,
            _ => return Err(wrong("it has bytes behind a boundary")),
        }
    }
}

/// Returns the boundary in the content type of a form. Other parameters are refused, because some readers decode names and
/// values by them.
fn boundary(content_type: &[u8]) -> Result<&[u8], Refusal> {
    let (media_type, parameters) = read_parameters(content_type)?;
    if !media_type.eq_ignore_ascii_case(b"multipart/form-data") {
        return Err(wrong("its type is not `multipart/form-data`"));
    }
    let mut boundary: &[u8] = b"";
    for (name, value) in parameters {
        if name.eq_ignore_ascii_case(b"boundary") {
            boundary = value;
        } else if !(name.eq_ignore_ascii_case(b"charset") && value.eq_ignore_ascii_case(b"utf-8")) {
            return Err(wrong("its type has a parameter other than `boundary` and `charset=utf-8`"));
        }
    }
    let fits = |byte: &u8| byte.is_ascii_alphanumeric() || b"'()+_,-./:=? ".contains(byte);
    let is_plain = boundary.trim_ascii().len() == boundary.len() && boundary.iter().all(fits);
    if is_plain && (1..=MAX_BOUNDARY).contains(&boundary.len()) {
        return Ok(boundary);
    }
    Err(wrong("its type names no boundary of 1 to 70 plain characters without blanks around it"))
}

/// Names and values, without their quotes.
type Parameters<'v> = Vec<(&'v [u8], &'v [u8])>;

/// Splits a header into its value and parameters. Names with `*`, which some readers join or decode (RFC 2231), are refused.
/// Only `filename*` is accepted, which clients write for files with a name beyond ASCII and which decides nothing.
fn read_parameters(header: &[u8]) -> Result<(&[u8], Parameters<'_>), Refusal> {
    if header.contains(&b'\\') {
        // Half of the readers read the next character as itself, half the backslash too.
        return Err(wrong("a parameter has a backslash"));
    }
    let mut quoted = false;
    let mut pieces = header.split(move |byte| {
        quoted ^= *byte == b'"';
        *byte == b';' && !quoted
    });
    let value = pieces.next().unwrap_or_default().trim_ascii();
    let mut parameters = Parameters::new();
    // Some clients end the last parameter with a semicolon too.
    for piece in pieces.map(<[u8]>::trim_ascii).filter(|piece| !piece.is_empty()) {
        let equals = piece.iter().position(|byte| *byte == b'=').ok_or_else(|| wrong("a parameter has no value"))?;
        let (name, text) = piece.split_at_checked(equals).unwrap_or((piece, &[]));
        let text = text.get(1..).unwrap_or_default();
        let unquoted = text.strip_prefix(b"\"").and_then(|text| text.strip_suffix(b"\""));
        let is_value = unquoted.map_or_else(|| is_token(text), |text| !text.contains(&b'"'));
        let is_name = is_token(name) && (!name.contains(&b'*') || name.eq_ignore_ascii_case(b"filename*"));
        if !is_name || !is_value {
            return Err(wrong("a parameter can be read in two ways"));
        }
        if parameters.len() == MAX_PARAMETERS {
            return Err(wrong("a header has more than 16 parameters"));
        }
        if parameters.iter().any(|(other, _)| other.eq_ignore_ascii_case(name)) {
            return Err(wrong("a header has two parameters of the same name"));
        }
        parameters.push((name, unquoted.unwrap_or(text)));
    }
    Ok((value, parameters))
}

/// True if `text` is a token (RFC 9110, 5.6.2).
fn is_token(text: &[u8]) -> bool {
    !text.is_empty() && text.iter().all(|byte| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(byte))
}

/// True if a content type declares UTF-8 or ASCII, or no charset.
pub fn is_utf8(content_type: &[u8]) -> bool {
    const LABELS: [&[u8]; 4] = [b"utf-8", b"utf8", b"us-ascii", b"ascii"];
    match content_type.windows(7).filter(|part| part.eq_ignore_ascii_case(b"charset")).count() {
        // Readers may differ on other parameters, which decide nothing.
        0 => true,
        1 => read_parameters(content_type).is_ok_and(|(_, parameters)| {
            parameters.iter().any(|(name, value)| {
                name.eq_ignore_ascii_case(b"charset") && LABELS.iter().any(|label| value.eq_ignore_ascii_case(label))
            })
        }),
        _ => false,
    }
}

/// Returns the model that a part names, if the part is the field `model`.
fn named_by(part: &[u8]) -> Result<Option<String>, Refusal> {
    let Some(end) = memmem::find(part, b"\r\n\r\n") else { return Err(wrong("a part has no header")) };
    let (header, value) = part.split_at_checked(end).unwrap_or((part, &[]));
    let value = value.get(4..).unwrap_or_default();
    let mut disposition = None;
    let mut is_encoded = false;
    let mut lines = header;
    loop {
        let end = memmem::find(lines, b"\r\n").unwrap_or(lines.len());
        let (line, rest) = lines.split_at_checked(end).unwrap_or((lines, &[]));
        if line.iter().any(|byte| byte.is_ascii_control() && *byte != b'\t') {
            return Err(wrong("the header of a part has a control character"));
        }
        let colon =
            line.iter().position(|byte| *byte == b':').ok_or_else(|| wrong("the header of a part has no colon"))?;
        let (field, text) = line.split_at_checked(colon).unwrap_or((line, &[]));
        let text = text.get(1..).unwrap_or_default();
        // Some readers trim a blank before the colon, or before a folded line.
        if !is_token(field) {
            return Err(wrong("the name of a field in the header of a part is no token"));
        }
        if field.eq_ignore_ascii_case(b"content-disposition") && disposition.replace(text).is_some() {
            return Err(wrong("a part has two Content-Disposition fields"));
        }
        is_encoded |= field.eq_ignore_ascii_case(b"content-transfer-encoding")
            || (field.eq_ignore_ascii_case(b"content-type") && !is_utf8(text));
        match rest.get(2..) {
            Some(rest) if !rest.is_empty() => lines = rest,
            _ => break,
        }
    }
    let (kind, parameters) = read_parameters(disposition.unwrap_or_default())?;
    if !kind.eq_ignore_ascii_case(b"form-data") {
        return Err(wrong("the Content-Disposition of a part is not `form-data`"));
    }
    let with_name = |wanted: &[u8]| parameters.iter().find(|(name, _)| name.eq_ignore_ascii_case(wanted));
    let is_file = with_name(b"filename").or_else(|| with_name(b"filename*")).is_some();
    let name = with_name(b"name")
        .and_then(|(_, name)| std::str::from_utf8(name).ok())
        .ok_or_else(|| wrong("a part has no name"))?;
    // Some servers trim blanks, decode the words of RFC 2047, or decode all values by this field (RFC 7578, 4.6).
    if name.trim() != name || name.contains("=?") || name.eq_ignore_ascii_case("_charset_") {
        return Err(wrong("the name of a part can be read in two ways"));
    }
    match compare_names(name, "model") {
        NameMatch::Other => return Ok(None),
        NameMatch::Same if !is_file && !is_encoded => {}
        _ => return Err(wrong("the part of the model can be read in two ways")),
    }
    let model = std::str::from_utf8(value).map_err(|_| wrong("the model is no text"))?;
    check_model(model, true).map(|()| Some(model.to_owned()))
}
