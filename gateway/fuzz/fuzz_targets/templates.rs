//! Any text as the value of a header that a filter sets, with any names in place of its variables. A value is compiled or
//! refused in words; what is written is the text with each variable replaced once, and never more than one header.
#![no_main]

use http::{HeaderMap, HeaderName, HeaderValue, header};
use libfuzzer_sys::fuzz_target;
use spillway_filter::{Fields, HeaderEdit, Template, Variables};

const NAME: HeaderName = header::WARNING;

/// Text with its variables replaced, in one pass: what a variable holds is no template again.
fn expected(template: &str, variables: &Variables<'_>) -> String {
    let mut out = String::new();
    let mut rest = template;
    while let Some((before, after)) = rest.split_once('{') {
        let (name, behind) = after.split_once('}').expect("a template that was compiled");
        out.push_str(before);
        out.push_str(match name {
            "backend" => variables.backend,
            "route" => variables.route,
            "requestId" => variables.request_id,
            other => panic!("`{other}` was taken for a variable"),
        });
        rest = behind;
    }
    out + rest
}

fuzz_target!(|input: (&str, &str, &str, &str)| {
    let (text, backend, route, request_id) = input;
    let template = match Template::compile(text) {
        Ok(template) => template,
        Err(why) => return assert!(!why.is_empty()),
    };
    let variables = Variables { backend, route, request_id, origin: None, secure: false };
    let value = expected(text, &variables);
    let is_header = HeaderValue::from_str(&value).is_ok();
    let before = [(NAME, HeaderValue::from_static("a")), (NAME, HeaderValue::from_static("b"))];
    for (edit, kept) in [(HeaderEdit::Set(NAME, template.clone()), 0), (HeaderEdit::Add(NAME, template.clone()), 2)] {
        let mut fields = Fields::from_iter(before.clone());
        edit.apply(&mut fields, &variables);
        let written: Vec<&HeaderValue> = fields.get_all(NAME).collect();
        // A value that no header may have changes nothing.
        let count = if is_header { kept + 1 } else { 2 };
        assert_eq!(written.len(), count, "{text:?}");
        if is_header {
            assert_eq!(written[kept].as_bytes(), value.as_bytes());
        }
        let map: HeaderMap = fields.iter().map(|(name, value)| (name.clone(), value.clone())).collect();
        assert_eq!(map.len(), count, "no other header is written");
    }
});
