//! LiteLLM's proxy, in Python.

use std::process::Command;

use super::{Kind, Peer, Site, installed, python_version};
use crate::process::Process;

/// LiteLLM's proxy.
pub(super) struct LiteLlm;

impl Peer for LiteLlm {
    fn name(&self) -> &'static str {
        "LiteLLM"
    }

    fn version(&self) -> Option<String> {
        python_version("litellm")
    }

    fn source(&self) -> &'static str {
        "PyPI litellm[proxy]"
    }

    fn serves(&self, kind: Kind) -> bool {
        kind == Kind::Chat
    }

    fn start(&self, site: &Site<'_>) -> Process {
        let model = |name: &str, port: u16| {
            format!(
                "  - {{model_name: {name}, litellm_params: {{model: openai/{name}, api_base: \"http://127.0.0.1:{port}/v1\", api_key: none}}}}\n"
            )
        };
        let text = format!("model_list:\n{}{}", model("large", site.upstream), model("small", 1));
        let config = site.write("litellm.yaml", &text);
        Process::start(
            Command::new(installed("venv/bin/litellm"))
                .arg("--config")
                .arg(config)
                .args(["--host", "127.0.0.1", "--port", &site.port.to_string()])
                .args(["--num_workers", &site.workers.to_string(), "--telemetry", "False"])
                // By default a worker that takes more than some seconds to load its modules is ended.
                .args(["--timeout_worker_healthcheck", "120"])
                // The list of prices comes from the Internet otherwise.
                .env("LITELLM_LOCAL_MODEL_COST_MAP", "True")
                // The proxy refuses to start without a key, which no other peer asks for in this workload.
                .env("LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY", "true")
                .env("LITELLM_LOG", "ERROR"),
        )
    }
}
