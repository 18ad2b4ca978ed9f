//! `uploadKind`: refuses uploads that do not begin like a file of an allowed kind. Bodies stream through and are not held.

use std::sync::Arc;

use http::StatusCode;
use schemars::JsonSchema;
use serde::Deserialize;
use spillway_filter::{
    BuildContext, ErrorKind, FieldError, Filter, FilterFactory, Flow, Observer, Refusal, RequestView, define,
};

/// Allows uploads that begin in a certain way only.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct UploadKind {
    /// Allowed beginnings, such as `%PDF-`.
    begins_with: Vec<String>,
}

pub(crate) fn factory() -> Box<dyn FilterFactory> {
    define("uploadKind", check, |config: UploadKind, _: &BuildContext<'_>| {
        Ok(Arc::new(Kinds(config.begins_with.into())) as Arc<dyn Filter>)
    })
}

fn check(config: &UploadKind) -> Vec<FieldError> {
    if config.begins_with.is_empty() || config.begins_with.iter().any(String::is_empty) {
        return vec![FieldError::at(["beginsWith"], "expected at least one beginning, none of them empty")];
    }
    Vec::new()
}

struct Kinds(Arc<[String]>);

impl Filter for Kinds {
    fn on_request(&self, _: &mut RequestView<'_>) -> Flow {
        Flow::Observe(Box::new(Upload { allowed: self.0.clone(), begin: Some(Vec::new()) }))
    }
}

/// Upload of one request.
struct Upload {
    allowed: Arc<[String]>,
    /// First bytes, while the kind is open.
    begin: Option<Vec<u8>>,
}

impl Observer for Upload {
    fn on_request_body(&mut self, part: &[u8]) -> Result<(), Box<Refusal>> {
        let Some(begin) = &mut self.begin else { return Ok(()) };
        let longest = self.allowed.iter().map(String::len).max().unwrap_or(0);
        begin.extend(part.iter().take(longest.saturating_sub(begin.len())));
        if self.allowed.iter().any(|allowed| begin.starts_with(allowed.as_bytes())) {
            self.begin = None;
            return Ok(());
        }
        // A short first part leaves the kind open.
        if self.allowed.iter().any(|allowed| allowed.as_bytes().starts_with(begin)) {
            return Ok(());
        }
        Err(Box::new(Refusal::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            ErrorKind::InvalidRequest,
            "upload_kind_not_allowed",
            "files of this kind are not accepted here",
        )))
    }
}

#[cfg(test)]
mod tests {
    use spillway_filter::testing::{FilterBuilder, TestRequest};

    use super::*;

    #[test]
    fn an_upload_is_judged_by_its_first_bytes_however_they_come() {
        let filter = FilterBuilder::new().build(&*factory(), &serde_json::json!({"beginsWith": ["%PDF-", "GIF8"]}));
        for (parts, refused_at) in [
            (&["%PDF-1.7", "GARBAGE"][..], None),
            (&["%", "PD", "F-1.7 and more"], None),
            (&["GIF89a"], None),
            (&["MZ"], Some(0)),
            (&["%PD", "X"], Some(1)),
        ] {
            let Flow::Observe(mut upload) = TestRequest::post("/", "").decide(&*filter) else { panic!("it observes") };
            let refused = parts.iter().position(|part| upload.on_request_body(part.as_bytes()).is_err());
            assert_eq!(refused, refused_at, "{parts:?}");
        }
        assert_eq!(factory().check(&serde_json::json!({"beginsWith": [""]})).len(), 1);
    }
}
