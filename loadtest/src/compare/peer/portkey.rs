//! Portkey's gateway, in TypeScript on Node.js.

use std::process::Command;

use super::{Kind, Peer, Site, installed};
use crate::process::Process;

/// Portkey's gateway.
pub(super) struct Portkey;

const FOLDER: &str = "npm/node_modules/@portkey-ai/gateway";

impl Peer for Portkey {
    fn name(&self) -> &'static str {
        "Portkey"
    }

    fn version(&self) -> Option<String> {
        let text = std::fs::read_to_string(installed(FOLDER).join("package.json")).ok()?;
        let package: serde_json::Value = serde_json::from_str(&text).ok()?;
        Some(package["version"].as_str()?.to_owned())
    }

    fn source(&self) -> &'static str {
        "npm @portkey-ai/gateway"
    }

    fn serves(&self, kind: Kind) -> bool {
        kind == Kind::Chat
    }

    fn difference(&self, _: Kind) -> Option<&'static str> {
        Some("one thread, which is all it has; a header chooses the server, not the model")
    }

    fn headers(&self, site: &Site<'_>) -> Vec<String> {
        vec![
            "x-portkey-provider: openai".to_owned(),
            format!("x-portkey-custom-host: http://127.0.0.1:{}/v1", site.upstream),
            "Authorization: Bearer none".to_owned(),
        ]
    }

    fn start(&self, site: &Site<'_>) -> Process {
        let program = std::path::absolute(installed(FOLDER).join("build/start-server.js")).unwrap();
        Process::start(
            Command::new("node")
                .arg(program)
                .args(["--headless", &format!("--port={}", site.port)])
                .env("NODE_ENV", "production"),
        )
    }
}
