//! Programs of others, unmodified, against the gateway: OpenAI's Agents SDK, NVIDIA's client of the Open Inference protocol
//! before MLServer, GuideLLM. They are large: `make test-clients` installs them and runs these tests.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};
use spillway_tests::{
    Gateway, LlamaServer, TEMPLATE_WITH_TOOLS, Upstream, eventually, free_port, model, repository, weather_by_chat,
    with_template,
};

/// Python of one of the environments of `make test-clients`.
fn python(environment: &str) -> PathBuf {
    let folder =
        std::env::var_os("SPILLWAY_TEST_CLIENTS").map_or_else(|| repository().join(".cache/clients"), PathBuf::from);
    let python = folder.join(environment).join("bin/python");
    assert!(python.exists(), "{} is not there: `make test-clients` installs it", python.display());
    python
}

fn file(name: &str) -> PathBuf {
    repository().join("tests/python/clients").join(name)
}

/// Runs a script with these arguments. Returns its output: a JSON line for each observation.
async fn told(environment: &str, script: &str, arguments: &[String]) -> Vec<Value> {
    let mut command = Command::new(python(environment));
    command.arg(file(script)).args(arguments);
    let out = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
    let (said, errors) = (String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    assert!(out.status.success(), "{script}: {said}\n{errors}");
    said.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn base_url(gateway: &Gateway) -> String {
    format!("http://{}/v1", gateway.address)
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "large clients: make test-clients"]
async fn an_agent_uses_its_tool_and_streams_before_a_server() {
    let upstream = Upstream::start(weather_by_chat).await;
    let gateway = Gateway::start(&format!(
        "backends: [{{name: b, protocol: openai, endpoints: [{{url: \"{}\"}}]}}]
routes: [{{matches: [{{path: {{prefix: /v1}}}}], backendRefs: [{{name: b}}]}}]
",
        upstream.url()
    ))
    .await;
    let told = told("agents", "agents_client.py", &[base_url(&gateway), "m".into(), "chat".into()]).await;
    assert_eq!(told.len(), 2, "{told:?}");
    for run in &told {
        assert_eq!(run["output"], "It rains in Rome.", "{run}");
        assert_eq!(
            (&run["asked"], &run["usage"]),
            (&json!(["Rome"]), &json!({"requests": 2, "input": 20, "output": 10})),
            "{run}"
        );
    }
    assert_eq!((&told[1]["text"], &told[1]["parts"]), (&"It rains in Rome.".into(), &3.into()));
    assert_eq!(told[1]["items"], json!(["tool_call_item", "tool_call_output_item", "message_output_item"]));
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "large clients: make test-clients"]
async fn an_agent_uses_its_tool_with_a_built_in_model() {
    let folder = tempfile::tempdir().unwrap();
    let with_tools = folder.path().join("tools.gguf");
    with_template(&model(), &with_tools, Some(TEMPLATE_WITH_TOOLS));
    let gateway = Gateway::start(&format!(
        "models: [{{name: smollm2, source: \"{}\", contextLength: 1024, maxSequences: 2, maxQueueWait: 60s}}]
routes: [{{matches: [{{path: {{prefix: /v1}}}}], backendRefs: [{{model: smollm2}}]}}]
",
        with_tools.display()
    ))
    .await;
    let arguments = [base_url(&gateway), "smollm2".into(), "chat".into(), "stop".into()];
    let told = told("agents", "agents_client.py", &arguments).await;
    for run in &told {
        assert_eq!(run["asked"].as_array().map(Vec::len), Some(1), "{run}");
        let output = run["output"].as_str().unwrap();
        assert!(output.starts_with("Rain in ") && output.ends_with(", 12 degrees."), "{run}");
        assert!(run["usage"]["output"].as_u64().is_some_and(|tokens| tokens > 0), "{run}");
    }
    assert_eq!(told[0]["asked"], told[1]["asked"], "the same call, whole and streamed");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "large clients: make test-clients"]
async fn an_agent_speaks_the_responses_api_to_llama_cpp() {
    let server = LlamaServer::start(2);
    let gateway = Gateway::start(&format!(
        "backends: [{{name: b, protocol: openai, endpoints: [{{url: \"{}\"}}]}}]
routes: [{{matches: [{{path: {{prefix: /v1}}}}], backendRefs: [{{name: b}}]}}]
",
        server.url
    ))
    .await;
    let told = told("agents", "agents_client.py", &[base_url(&gateway), "m".into(), "responses".into()]).await;
    for run in &told {
        assert!(run["output"].as_str().is_some_and(|text| !text.is_empty()), "{run}");
    }
    assert_eq!((&told[1]["text"], told[1]["parts"].as_u64() > Some(1)), (&told[1]["output"], true));
}

/// Program of one of the environments that runs beside a test.
struct Program(Child);

impl Program {
    fn start(mut command: Command) -> Self {
        Self(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap())
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

async fn listens(port: u16) {
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    eventually("a server listens", || async move { tokio::net::TcpStream::connect(address).await.ok() }).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "large clients: make test-clients"]
async fn tritonclient_speaks_http_and_grpc_to_mlserver() {
    let (http, grpc, binary) = (free_port(), free_port(), free_port());
    let folder = tempfile::tempdir().unwrap();
    std::fs::copy(file("mlserver/runtime.py"), folder.path().join("runtime.py")).unwrap();
    let settings = json!({
        "host": "127.0.0.1", "http_port": http, "grpc_port": grpc, "metrics_endpoint": null, "parallel_workers": 0,
        "grpc_max_message_length": 33_554_432,
    });
    std::fs::write(folder.path().join("settings.json"), settings.to_string()).unwrap();
    let doubler = json!({"name": "doubler", "implementation": "runtime.Doubler"});
    std::fs::write(folder.path().join("model-settings.json"), doubler.to_string()).unwrap();
    let mut command = Command::new(python("mlserver").with_file_name("mlserver"));
    command.args(["start", "."]).current_dir(folder.path()).env("PYTHONPATH", folder.path());
    let _mlserver = Program::start(command);
    let mut command = Command::new(python("mlserver"));
    command.arg(file("binary_tensors.py")).arg(binary.to_string());
    let _binary = Program::start(command);
    for port in [http, grpc, binary] {
        listens(port).await;
    }
    // Each call goes to the server over its own transport, then to the one over the other.
    for (of_http, of_grpc) in [("http", "grpc"), ("grpc", "http")] {
        let (to_http, to_grpc) = (free_port(), free_port());
        let _gateway = Gateway::start_in(
            tempfile::tempdir().unwrap(),
            &format!(
                "listeners:
  - {{name: http, address: \"127.0.0.1:{to_http}\"}}
  - {{name: grpc, address: \"127.0.0.1:{to_grpc}\", protocol: h2c}}
backends:
  - {{name: http, protocol: oip, endpoints: [{{url: \"http://127.0.0.1:{http}\"}}]}}
  - {{name: grpc, protocol: oip-grpc, http2: true, endpoints: [{{url: \"http://127.0.0.1:{grpc}\"}}]}}
  - {{name: binary, protocol: oip, endpoints: [{{url: \"http://127.0.0.1:{binary}\"}}]}}
routes:
  - {{name: binary, matches: [{{path: {{prefix: /binary}}}}], filters: [{{urlRewrite: {{replacePrefix: /}}}}], backendRefs: [{{name: binary}}]}}
  - {{name: grpc, matches: [{{path: {{prefix: /inference.GRPCInferenceService}}}}], backendRefs: [{{name: {of_grpc}}}]}}
  - {{name: http, backendRefs: [{{name: {of_http}}}]}}
"
            ),
        )
        .await;
        let is_translated = of_http == "grpc";
        let mut arguments =
            vec![format!("127.0.0.1:{to_http}"), format!("127.0.0.1:{to_grpc}"), format!("127.0.0.1:{to_http}/binary")];
        arguments.extend(is_translated.then(|| "translated".to_owned()));
        let told = told("mlserver", "triton.py", &arguments).await;
        assert_eq!(told.len(), if is_translated { 18 } else { 19 }, "{told:?}");
        for one in &told {
            for key in ["live", "ready", "model", "sound", "told", "server"] {
                assert!(one.get(key).is_none_or(|value| value == true), "{one}");
            }
        }
        let of = |key: &str, what: &str| told.iter().find(|one| one[key] == what).unwrap();
        assert_eq!(of("http", "unknown model")["status"], "404");
        assert_eq!(of("grpc", "unknown model")["status"], "StatusCode.NOT_FOUND");
        assert_eq!(of("grpc", "deadline")["status"], "StatusCode.DEADLINE_EXCEEDED");
        if !is_translated {
            assert_eq!(of("grpc", "stream")["answers"], 8);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "large clients: make test-clients"]
async fn a_benchmark_of_guidellm_runs_without_an_error() {
    let server = LlamaServer::start(2);
    let gateway = Gateway::start(&format!(
        "models: [{{name: smollm2, source: \"{}\", contextLength: 512, maxSequences: 4, maxQueueWait: 60s}}]
backends: [{{name: b, protocol: openai, endpoints: [{{url: \"{}\"}}], capacity: {{maxInFlight: 1}}}}]
routes: [{{name: all, backendRefs: [{{name: b}}], whenSaturated: {{spillTo: smollm2}}}}]
",
        model().display(),
        server.url
    ))
    .await;
    let url = format!("http://{}", gateway.address);
    let formats = ["/v1/chat/completions", "/v1/completions"];
    let arguments: Vec<String> = [url, "m".to_owned()].into_iter().chain(formats.map(str::to_owned)).collect();
    let told = told("guidellm", "guidellm_run.py", &arguments).await;
    for (run, format) in told.iter().zip(formats) {
        let totals = json!({"successful": 12, "errored": 0, "incomplete": 0, "total": 12});
        assert_eq!((&run["format"], &run["metrics"]), (&format.into(), &totals), "{run}");
    }
    assert_eq!(told.len(), formats.len());
}
