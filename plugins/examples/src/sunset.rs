//! `sunset`: tells callers until when an API will be there (RFC 8594).

use std::sync::Arc;

use http::{HeaderName, HeaderValue, header};
use schemars::JsonSchema;
use serde::Deserialize;
use spillway_filter::{BuildContext, FieldError, Filter, FilterFactory, Headers, Variables, define};

static SUNSET: HeaderName = HeaderName::from_static("sunset");

/// Tells callers until when the route will be there.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Sunset {
    /// Date of the end, such as `Fri, 31 Dec 2027 23:59:59 GMT`.
    date: String,
    /// Page that says what to use instead.
    #[serde(default)]
    page: Option<String>,
}

pub(crate) fn factory() -> Box<dyn FilterFactory> {
    define("sunset", |config: &Sunset| compile(config).err().into_iter().collect(), build)
}

struct Compiled {
    date: HeaderValue,
    page: Option<HeaderValue>,
}

fn compile(config: &Sunset) -> Result<Compiled, FieldError> {
    let date = httpdate::parse_http_date(&config.date)
        .map_err(|_| FieldError::at(["date"], "expected a date such as `Fri, 31 Dec 2027 23:59:59 GMT`"))?;
    let date = HeaderValue::from_str(&httpdate::fmt_http_date(date));
    let date = date.map_err(|error| FieldError::at(["date"], error.to_string()))?;
    let page = config.page.as_ref().map(|page| HeaderValue::from_str(&format!("<{page}>; rel=\"sunset\"")));
    let page = page.transpose().map_err(|error| FieldError::at(["page"], error.to_string()))?;
    Ok(Compiled { date, page })
}

fn build(config: Sunset, _: &BuildContext<'_>) -> Result<Arc<dyn Filter>, FieldError> {
    Ok(Arc::new(compile(&config)?))
}

impl Filter for Compiled {
    fn on_response(&self, headers: &mut dyn Headers, _: &Variables<'_>) {
        headers.set(&SUNSET, self.date.clone());
        if let Some(page) = &self.page {
            headers.append(&header::LINK, page.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use spillway_filter::testing::{FilterBuilder, headers, variables};

    use super::*;

    #[test]
    fn answers_carry_the_date_and_the_page() {
        let config = serde_json::json!({"date": "Fri, 31 Dec 2027 23:59:59 GMT", "page": "https://api.test/v2"});
        let filter = FilterBuilder::new().build(&*factory(), &config);
        let mut answer = headers([("link", "</style.css>; rel=\"preload\"")]);
        filter.on_response(&mut answer, &variables());
        assert_eq!(answer["sunset"], "Fri, 31 Dec 2027 23:59:59 GMT");
        let links: Vec<_> = answer.get_all("link").iter().collect();
        assert_eq!(links, ["</style.css>; rel=\"preload\"", "<https://api.test/v2>; rel=\"sunset\""]);
    }

    #[test]
    fn a_mistake_is_told_with_its_place() {
        for (config, place) in [
            (serde_json::json!({"date": "next year"}), "date"),
            (serde_json::json!({"date": "Fri, 31 Dec 2027 23:59:59 GMT", "page": "two\nlines"}), "page"),
        ] {
            let errors = factory().check(&config);
            assert_eq!(errors.len(), 1, "{config}");
            assert_eq!(errors[0].path, [place], "{config}");
        }
    }
}
