//! Module that stars words out of requests and answers, and asks a server whether a request may pass. Its configuration:
//! `words`, a list; `judge`, true to ask the server of that name (`calls` of the filter).

use std::time::Duration;

use log::{error, info};
use proxy_wasm::hostcalls;
use proxy_wasm::traits::{Context, HttpContext, RootContext};
use proxy_wasm::types::{Action, ContextType, LogLevel};

proxy_wasm::main! {{
    proxy_wasm::set_log_level(LogLevel::Info);
    proxy_wasm::set_root_context(|_| Box::new(Root::default()));
}}

/// Settings of the filter.
#[derive(Clone, Default)]
struct Root {
    words: Vec<String>,
    judge: bool,
}

impl Context for Root {}

impl RootContext for Root {
    fn on_configure(&mut self, _: usize) -> bool {
        let Some(bytes) = self.get_plugin_configuration() else { return true };
        let Ok(config) = serde_json::from_slice::<serde_json::Value>(&bytes) else {
            error!("the configuration is no JSON");
            return false;
        };
        self.judge = config["judge"] == true;
        let words = config["words"].as_array().map(|words| words.iter().map(|word| word.as_str().map(str::to_owned)));
        match words.and_then(|words| words.collect()) {
            Some(words) => self.words = words,
            None => error!("`words` is no list of texts"),
        }
        !self.words.is_empty()
    }

    fn create_http_context(&self, _: u32) -> Option<Box<dyn HttpContext>> {
        Some(Box::new(Exchange { root: self.clone() }))
    }

    fn get_type(&self) -> Option<ContextType> {
        Some(ContextType::HttpContext)
    }
}

/// One exchange.
struct Exchange {
    root: Root,
}

impl Exchange {
    /// The text with stars in place of words; `None` if it has none of them.
    fn starred(&self, body: &[u8]) -> Option<String> {
        let text = String::from_utf8_lossy(body);
        let starred = self.root.words.iter().fold(text.clone().into_owned(), |text, word| {
            text.replace(word.as_str(), &"*".repeat(word.len()))
        });
        (starred != text).then_some(starred)
    }
}

impl Context for Exchange {
    fn on_http_call_response(&mut self, _: u32, _: usize, _: usize, _: usize) {
        let user = self.get_http_call_response_header("x-user");
        if self.get_http_call_response_header(":status").as_deref() == Some("200") {
            self.set_http_request_header("x-user", user.as_deref());
            self.resume_http_request();
        } else {
            self.send_http_response(401, vec![("x-judged", "no")], Some(b"who are you?\n"));
        }
    }
}

impl HttpContext for Exchange {
    fn on_http_request_headers(&mut self, _: usize, _: bool) -> Action {
        if self.get_http_request_header("x-panic").is_some() {
            panic!("asked to panic");
        }
        let path = self.get_property(vec!["request", "path"]).unwrap_or_default();
        info!("asked for {}", String::from_utf8_lossy(&path));
        if !self.root.judge {
            return Action::Continue;
        }
        let authorization = self.get_http_request_header("authorization").unwrap_or_default();
        let path = String::from_utf8_lossy(&path);
        let headers = vec![
            (":method", "GET"),
            (":path", "/judge"),
            (":authority", "judge.example"),
            ("authorization", &authorization),
            ("x-path", &path),
        ];
        match self.dispatch_http_call("judge", headers, None, vec![], Duration::from_secs(1)) {
            Ok(_) => Action::Pause,
            Err(status) => {
                error!("the judge cannot be asked: {status:?}");
                self.send_http_response(503, vec![], None);
                Action::Pause
            }
        }
    }

    fn on_http_request_body(&mut self, size: usize, _: bool) -> Action {
        let body = self.get_http_request_body(0, size).unwrap_or_default();
        if let Some(starred) = self.starred(&body) {
            self.set_http_request_body(0, size, starred.as_bytes());
        }
        if self.root.judge { Action::Pause } else { Action::Continue }
    }

    fn on_http_response_headers(&mut self, _: usize, _: bool) -> Action {
        self.set_http_response_header("server", None);
        self.set_http_response_header("content-length", None);
        self.set_http_response_header("x-redacted", Some("1"));
        Action::Continue
    }

    fn on_http_response_body(&mut self, size: usize, _: bool) -> Action {
        let body = self.get_http_response_body(0, size).unwrap_or_default();
        if let Some(starred) = self.starred(&body) {
            self.set_http_response_body(0, size, starred.as_bytes());
        }
        Action::Continue
    }

    fn on_log(&mut self) {
        let _ = hostcalls::get_current_time();
    }
}
