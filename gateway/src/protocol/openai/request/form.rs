//! The model that a form names (`multipart/form-data`, RFC 7578): transcriptions and edits of images come as one. Readers of
//! forms differ in much that no client writes, so that only the plain spelling is taken: lines that end with CRLF, nothing
//! before the first boundary or behind the last one, one name for each part.

use memchr::memmem;
use spillway_filter::Refusal;

use super::duplicate;
use super::peek::judged_model;
use super::scan::{Spelling, spelling};

/// The longest boundary (RFC 2046, 5.1.1).
const MAX_BOUNDARY: usize = 70;

fn wrong(what: &str) -> Refusal {
    Refusal::invalid("invalid_form", format!("The body is not a plain multipart form: {what}."))
}

/// Whether a content type is that of a form in parts.
pub fn is_form(content_type: &[u8]) -> bool {
    content_type.get(..10).is_some_and(|start| start.eq_ignore_ascii_case(b"multipart/"))
}

/// The model that a form names. A form that two readers could take for two is refused.
pub fn form_model(content_type: &[u8], body: &[u8]) -> Result<Option<String>, Refusal> {
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
                return Err(wrong("something stands before its first boundary"));
            }
        } else {
            let Some(part) = part.strip_suffix(b"\r\n") else {
                return Err(wrong("its boundary stands within a line"));
            };
            if let Some(named) = named_by(part)? {
                if model.is_some() {
                    return Err(duplicate("model"));
                }
                model = Some(named);
            }
        }
        is_first = false;
        match behind {
            b"--" | b"--\r\n" => return Ok(model),
            [b'\r', b'\n', next @ ..] => rest = next,
            _ => return Err(wrong("something stands behind a boundary")),
        }
    }
}

/// The boundary that a content type names, once.
fn boundary(content_type: &[u8]) -> Result<&[u8], Refusal> {
    let mut found = None;
    for parameter in parameters(content_type)?.skip(1) {
        let (name, value) = parameter?;
        if name.eq_ignore_ascii_case(b"boundary") && found.replace(value).is_some() {
            return Err(wrong("its type names two boundaries"));
        }
    }
    let fits = |byte: &u8| byte.is_ascii_alphanumeric() || b"'()+_,-./:=? ".contains(byte);
    match found {
        Some(boundary) if (1..=MAX_BOUNDARY).contains(&boundary.len()) && boundary.iter().all(fits) => Ok(boundary),
        _ => Err(wrong("its type names no boundary")),
    }
}

/// A name and its value.
type Parameter<'v> = Result<(&'v [u8], &'v [u8]), Refusal>;

/// The values of a header between semicolons, quotes taken off: the first has no name.
fn parameters(value: &[u8]) -> Result<impl Iterator<Item = Parameter<'_>>, Refusal> {
    if value.contains(&b'\\') {
        // Half of the readers take the next character for itself, half the backslash.
        return Err(wrong("a parameter has a backslash"));
    }
    let mut quoted = false;
    let split = value.split(move |byte| {
        quoted ^= *byte == b'"';
        *byte == b';' && !quoted
    });
    Ok(split.map(|parameter| {
        let parameter = parameter.trim_ascii();
        let Some(equals) = parameter.iter().position(|byte| *byte == b'=') else { return Ok((&b""[..], parameter)) };
        let (name, value) = parameter.split_at_checked(equals).unwrap_or((parameter, &[]));
        let value = value.get(1..).unwrap_or_default();
        let bare = value.strip_prefix(b"\"").and_then(|value| value.strip_suffix(b"\""));
        let value = bare.unwrap_or(value);
        if value.contains(&b'"') || name.ends_with(b" ") || name.ends_with(b"*") {
            return Err(wrong("a parameter can be read in two ways"));
        }
        Ok((name, value))
    }))
}

/// What a part says that the model is, if it is about that.
fn named_by(part: &[u8]) -> Result<Option<String>, Refusal> {
    let Some(end) = memmem::find(part, b"\r\n\r\n") else { return Err(wrong("a part has no header")) };
    let (header, value) = part.split_at_checked(end).unwrap_or((part, &[]));
    let value = value.get(4..).unwrap_or_default();
    let mut name = None;
    let (mut is_file, mut is_encoded) = (false, false);
    let mut lines = header;
    loop {
        let end = memmem::find(lines, b"\r\n").unwrap_or(lines.len());
        let (line, rest) = lines.split_at_checked(end).unwrap_or((lines, &[]));
        if line.iter().any(|byte| byte.is_ascii_control() && *byte != b'\t')
            || line.starts_with(b" ")
            || line.starts_with(b"\t")
        {
            return Err(wrong("the header of a part has a line that can be read in two ways"));
        }
        let colon =
            line.iter().position(|byte| *byte == b':').ok_or_else(|| wrong("the header of a part has no colon"))?;
        let (field, text) = line.split_at_checked(colon).unwrap_or((line, &[]));
        if field.eq_ignore_ascii_case(b"content-disposition") {
            for parameter in parameters(text.get(1..).unwrap_or_default())? {
                let (key, value) = parameter?;
                is_file |= key.eq_ignore_ascii_case(b"filename");
                if key.eq_ignore_ascii_case(b"name") && name.replace(value).is_some() {
                    return Err(wrong("a part has two names"));
                }
            }
        }
        is_encoded |= field.eq_ignore_ascii_case(b"content-transfer-encoding");
        match rest.get(2..) {
            Some(rest) if !rest.is_empty() => lines = rest,
            _ => break,
        }
    }
    let name = name.and_then(|name| std::str::from_utf8(name).ok()).ok_or_else(|| wrong("a part has no name"))?;
    match spelling(name, "model") {
        Spelling::Other => return Ok(None),
        Spelling::Same if !is_file && !is_encoded => {}
        _ => return Err(wrong("the part of the model can be read in two ways")),
    }
    let model = std::str::from_utf8(value).map_err(|_| wrong("the model is no text"))?;
    judged_model(model, true).map(|()| Some(model.to_owned()))
}
