//! The routers of vLLM and SGLang, both in Rust. They have one configuration: a list of servers.

use std::process::Command;

use super::{Kind, Peer, Site, installed, python_version};
use crate::process::{Process, free_port};

/// A router with its program and flags.
pub(super) struct Router {
    name: &'static str,
    source: &'static str,
    package: &'static str,
    program: &'static str,
    flags: &'static [&'static str],
}

impl Router {
    /// vLLM's router.
    pub(super) const VLLM: Self = Self {
        name: "vllm-router",
        source: "PyPI vllm-router",
        package: "vllm_router",
        program: "venv/bin/vllm-router",
        flags: &["--log-level", "error", "--worker-startup-check-interval", "1"],
    };
    /// SGLang's router.
    pub(super) const SGLANG: Self = Self {
        name: "sglang-router",
        source: "PyPI sglang-router",
        package: "sglang_router",
        program: "venv/bin/sglang-router",
        flags: &["launch", "--log-level", "error", "--disable-health-check", "--backend", "openai"],
    };
}

impl Peer for Router {
    fn name(&self) -> &'static str {
        self.name
    }

    fn version(&self) -> Option<String> {
        python_version(self.package)
    }

    fn source(&self) -> &'static str {
        self.source
    }

    fn serves(&self, kind: Kind) -> bool {
        kind == Kind::Chat
    }

    fn difference(&self, _: Kind) -> Option<&'static str> {
        Some("one server, round robin: no choice by model")
    }

    fn start(&self, site: &Site<'_>) -> Process {
        let upstream = format!("http://127.0.0.1:{}", site.upstream);
        Process::start(
            Command::new(installed(self.program))
                .args(self.flags)
                .args(["--host", "127.0.0.1", "--port", &site.port.to_string(), "--policy", "round_robin"])
                .args(["--prometheus-port", &free_port().to_string(), "--max-concurrent-requests", "65536"])
                .args(["--worker-urls", &upstream])
                .env("TOKIO_WORKER_THREADS", site.workers.to_string()),
        )
    }
}
