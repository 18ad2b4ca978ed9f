//! Page for operators: plain HTML, style sheets and modules that are part of the program. Owns their bytes, types and the
//! policy under which a browser runs them; shows no figure and no secret, so that it needs no token. The page asks the
//! other paths of the admin address for what it shows.

use std::sync::LazyLock;

use axum::body::Body;
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use sha2::{Digest, Sha256};

use crate::coding::weighed;

/// Folder of the files that the page loads.
const ASSETS: &str = "/assets/";
/// Policy of the page: what it loads and asks is of the admin address itself, and nothing may be built from text.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; \
                      connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// File of the page.
struct File {
    name: &'static str,
    content_type: &'static str,
    content: &'static [u8],
    /// Digest of the content, quoted.
    tag: HeaderValue,
}

/// Declares the files of this folder, each with its type.
macro_rules! files {
    ($($name:literal: $content_type:expr,)+) => {
        vec![$(File::new($name, $content_type, include_bytes!($name)),)+]
    };
}

const HTML: &str = "text/html; charset=utf-8";
const CSS: &str = "text/css; charset=utf-8";
const MODULE: &str = "text/javascript; charset=utf-8";
const SVG: &str = "image/svg+xml";

static FILES: LazyLock<Vec<File>> = LazyLock::new(|| {
    files! {
        "index.html": HTML,
        "api.js": MODULE,
        "backends.js": MODULE,
        "charts.js": MODULE,
        "configuration.js": MODULE,
        "consumers.js": MODULE,
        "costs.js": MODULE,
        "dom.js": MODULE,
        "format.js": MODULE,
        "icon.svg": SVG,
        "keys.js": MODULE,
        "live.js": MODULE,
        "main.js": MODULE,
        "models.js": MODULE,
        "overview.js": MODULE,
        "page.css": CSS,
        "playground.js": MODULE,
        "quality.js": MODULE,
        "rollouts.js": MODULE,
        "theme.js": MODULE,
        "tokens.css": CSS,
        "ui.js": MODULE,
        "updates.js": MODULE,
    }
});

impl File {
    fn new(name: &'static str, content_type: &'static str, content: &'static [u8]) -> Self {
        let digest = hex::encode(Sha256::digest(content).get(..16).unwrap_or_default());
        let tag = HeaderValue::from_str(&format!("\"{digest}\"")).unwrap_or_else(|_| HeaderValue::from_static("\"\""));
        Self { name, content_type, content, tag }
    }

    /// Answer with the file, or 304 where the browser has it.
    fn answer(&self, headers: &HeaderMap) -> Response {
        let tag = self.tag.to_str().unwrap_or_default();
        let sent = headers.get_all(header::IF_NONE_MATCH).iter().filter_map(|value| value.to_str().ok());
        let mut known = sent.flat_map(|list| list.split(',')).map(|one| one.trim().trim_start_matches("W/"));
        let is_known = known.any(|known| known == tag || known == "*");
        let mut answer =
            if is_known { StatusCode::NOT_MODIFIED.into_response() } else { Response::new(Body::from(self.content)) };
        let into = answer.headers_mut();
        if !is_known {
            into.insert(header::CONTENT_TYPE, HeaderValue::from_static(self.content_type));
        }
        into.insert(header::ETAG, self.tag.clone());
        // A browser asks each time: the page and the program that answers it are of one version.
        into.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
        into.insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY));
        into.insert(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
        into.insert(
            header::HeaderName::from_static("cross-origin-opener-policy"),
            HeaderValue::from_static("same-origin"),
        );
        answer
    }
}

/// True for a request of a browser for the page or one of its files.
pub(super) fn is_asked(method: &Method, path: &str, headers: &HeaderMap) -> bool {
    let reads = matches!(*method, Method::GET | Method::HEAD);
    reads && (path.starts_with(ASSETS) || path == "/" && wants_page(headers))
}

/// True if `Accept` names HTML, as browsers do when they open an address, and programs do not.
fn wants_page(headers: &HeaderMap) -> bool {
    let accepted = headers.get_all(header::ACCEPT).iter().map(HeaderValue::as_bytes);
    let mut ranges = accepted.flat_map(|list| list.split(|byte| *byte == b',')).map(weighed);
    ranges.any(|(name, weight)| name.eq_ignore_ascii_case(b"text/html") && weight > 0)
}

/// Answers `/`: the page for a browser, `paths` for a terminal.
pub(super) fn root(headers: &HeaderMap, paths: &'static str) -> Response {
    let mut answer = match FILES.first().filter(|_| wants_page(headers)) {
        Some(page) => page.answer(headers),
        None => paths.into_response(),
    };
    answer.headers_mut().insert(header::VARY, HeaderValue::from_static("accept"));
    answer
}

/// Answer with a file that the page loads; `None` if there is none of that name.
pub(super) fn asset(headers: &HeaderMap, name: &str) -> Option<Response> {
    FILES.iter().skip(1).find(|file| file.name == name).map(|file| file.answer(headers))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_file_of_the_folder_is_served_as_what_it_is() {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src/admin/dashboard");
        let mut there: Vec<String> = std::fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| !name.ends_with(".rs"))
            .collect();
        there.sort();
        let mut served: Vec<&str> = FILES.iter().map(|file| file.name).collect();
        served.sort_unstable();
        assert_eq!(served, there);
        for file in FILES.iter() {
            let expected = match file.name.rsplit_once('.').unwrap().1 {
                "html" => HTML,
                "css" => CSS,
                "svg" => SVG,
                "js" => MODULE,
                other => panic!("{other} has no type"),
            };
            assert_eq!(file.content_type, expected, "{}", file.name);
        }
        assert_eq!(FILES[0].name, "index.html");
    }

    #[test]
    fn a_browser_is_known_by_its_accept() {
        for (accept, wants) in [
            (Some("text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"), true),
            (Some("application/json, TEXT/HTML;q=0.1"), true),
            (Some("text/html;q=0"), false),
            (Some("text/html;q=0.0, */*"), false),
            (Some("*/*"), false),
            (Some("text/*"), false),
            (Some("text/htmlx"), false),
            (None, false),
        ] {
            let mut headers = HeaderMap::new();
            if let Some(accept) = accept {
                headers.insert(header::ACCEPT, HeaderValue::from_static(accept));
            }
            assert_eq!(wants_page(&headers), wants, "{accept:?}");
        }
    }
}
