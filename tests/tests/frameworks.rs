//! Frameworks and official clients of others, unmodified, that speak several APIs: LangChain, LlamaIndex, LiteLLM, Vercel's AI
//! SDK, the clients of OpenAI, Anthropic and Ollama for Node. Built-in models answer where the words do not matter; scripted
//! servers call tools. `make test-clients` installs the programs and runs these tests.

use std::path::PathBuf;
use std::process::Command;

use serde_json::{Value, json};
use spillway_tests::{
    Gateway, TEMPLATE_WITH_TOOLS, Upstream, minilm, model, repository, weather_by_chat, weather_by_messages,
    with_template,
};

const ANSWER: &str = "The capital of France is Paris.";

/// Environment of `make test-clients`.
fn environment(name: &str) -> PathBuf {
    let folder =
        std::env::var_os("SPILLWAY_TEST_CLIENTS").map_or_else(|| repository().join(".cache/clients"), PathBuf::from);
    let folder = folder.join(name);
    assert!(folder.exists(), "{} is not there: `make test-clients` installs it", folder.display());
    folder
}

/// Runs a program to its end. Returns its output: a JSON line for each step.
async fn told(mut command: Command, gateway: &Gateway, arguments: &[&str]) -> Vec<Value> {
    command.arg(format!("http://{}/v1", gateway.address)).args(arguments);
    let what = format!("{command:?}");
    let out = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
    let (said, errors) = (String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    assert!(out.status.success(), "{what}: {said}\n{errors}");
    said.lines().filter(|line| line.starts_with('{')).map(|line| serde_json::from_str(line).unwrap()).collect()
}

async fn python(name: &str, gateway: &Gateway, arguments: &[&str]) -> Vec<Value> {
    let mut command = Command::new(environment(name).join("bin/python"));
    command.arg(repository().join(format!("tests/python/clients/{name}_client.py")));
    told(command, gateway, arguments).await
}

/// Runs a script of `tests/node`, which finds its packages beside itself.
async fn node(name: &str, gateway: &Gateway, arguments: &[&str]) -> Vec<Value> {
    let folder = tempfile::tempdir().unwrap();
    let script = folder.path().join(format!("{name}.mjs"));
    std::fs::copy(repository().join(format!("tests/node/{name}.mjs")), &script).unwrap();
    std::os::unix::fs::symlink(environment("node").join("node_modules"), folder.path().join("node_modules")).unwrap();
    let mut command = Command::new("node");
    command.arg(script);
    told(command, gateway, arguments).await
}

/// A gateway with models that talk, call tools and embed.
async fn inside() -> Gateway {
    let folder = tempfile::tempdir().unwrap();
    with_template(&model(), &folder.path().join("tools.gguf"), Some(TEMPLATE_WITH_TOOLS));
    let config = format!(
        "listeners: [{{address: \"127.0.0.1:0\"}}]
models:
  - {{name: smollm2, source: \"{}\", contextLength: 512, maxSequences: 2, maxQueueWait: 60s}}
  - {{name: caller, source: tools.gguf, contextLength: 1024, maxSequences: 2, maxQueueWait: 60s}}
  - {{name: minilm, source: \"{}\", task: embedding, maxQueueWait: 60s}}
routes:
  - {{backendRefs: [{{model: smollm2}}, {{model: caller}}, {{model: minilm}}]}}
",
        model().display(),
        minilm().display()
    );
    Gateway::start_in(folder, &config).await
}

/// A gateway before a server that calls tools: of Anthropic's API for `openai` callers, of OpenAI's for the others.
async fn translating(caller: &str) -> (Gateway, Upstream) {
    let (protocol, server) = match caller {
        "openai" => ("anthropic", Upstream::start(weather_by_messages).await),
        _ => ("openai", Upstream::start(weather_by_chat).await),
    };
    let gateway = Gateway::start(&format!(
        "backends: [{{name: b, protocol: {protocol}, endpoints: [{{url: \"{}\"}}]}}]
routes: [{{backendRefs: [{{name: b}}]}}]
",
        server.url()
    ))
    .await;
    (gateway, server)
}

/// Asserts that a step had the answer of the model that is asked at temperature 0, in as many parts as tokens if streamed.
fn is_answer(step: &Value) {
    assert_eq!(step["text"], ANSWER, "{step}");
    assert!(step.get("parts").is_none_or(|parts| parts.as_u64() > Some(3)), "{step}");
    assert!(step.get("output").is_none_or(|tokens| tokens.as_u64() > Some(3)), "{step}");
}

/// Asserts that a step called the tool, sent its result back and read the answer to that.
fn used_its_tool(step: &Value, server: &Upstream) {
    assert_eq!(step["calls"], json!([["weather", {"city": "Rome"}]]), "{step}");
    assert_eq!(step["text"], "It rains in Rome.", "{step}");
    let last = String::from_utf8_lossy(&server.last().body).into_owned();
    assert!(last.contains("Rain in Rome."), "the result of the tool reached the server: {last}");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "large clients: make test-clients"]
async fn langchain_talks_to_built_in_models_by_four_apis() {
    let gateway = inside().await;
    let steps = ["openai", "responses", "ollama"]
        .map(|api| ["chat", "stream", "structured"].map(|what| format!("{api}:{what}")))
        .concat();
    let arguments: Vec<&str> = ["smollm2"].into_iter().chain(steps.iter().map(String::as_str)).collect();
    let told = python("langchain", &gateway, &arguments).await;
    for three in told.chunks(3) {
        is_answer(&three[0]);
        is_answer(&three[1]);
        assert_eq!(three[2]["large"], true, "{}", three[2]);
    }
    assert_eq!(told.len(), 9);
    // Anthropic's client of LangChain sends no temperature, and gets objects by a tool.
    let told = python("langchain", &gateway, &["smollm2", "anthropic:chat", "anthropic:stream"]).await;
    for step in &told {
        assert!(step["text"].as_str().is_some_and(|text| !text.is_empty()), "{step}");
        assert!(step["output"].as_u64() > Some(0), "{step}");
    }
    let calls = ["openai:forced", "anthropic:forced", "openai:structured", "anthropic:structured"];
    let told = python("langchain", &gateway, &[&["caller"], &calls[..]].concat()).await;
    for step in &told[..2] {
        assert_eq!(step["calls"], json!([["weather", ["city"]]]), "{step}");
    }
    assert!(told[2..].iter().all(|step| step["large"] == true), "{told:?}");
    for step in python("langchain", &gateway, &["minilm", "openai:embed", "ollama:embed"]).await {
        assert_eq!(step["vectors"], json!([384, 384]), "{step}");
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "large clients: make test-clients"]
async fn llamaindex_chats_and_embeds_with_built_in_models() {
    let gateway = inside().await;
    let told = python("llamaindex", &gateway, &["smollm2", "caller", "minilm"]).await;
    is_answer(&told[0]);
    is_answer(&told[1]);
    assert!(told[2]["text"].as_str().unwrap().contains("Paris"), "{}", told[2]);
    assert_eq!(told[3]["calls"], json!([["weather", ["city"]]]));
    assert_eq!(told[4], json!({"vectors": [384, 384], "query": 384}));
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "large clients: make test-clients"]
async fn litellm_talks_to_built_in_models_by_three_apis() {
    let gateway = inside().await;
    for provider in ["openai", "anthropic", "ollama_chat"] {
        let steps = ["chat", "stream", "error"].map(|what| format!("{provider}:{what}"));
        let told = python("litellm", &gateway, &["smollm2", &steps[0], &steps[1], &steps[2]]).await;
        for step in &told[..2] {
            is_answer(step);
            assert_eq!(step["reason"], "stop", "{step}");
        }
        assert_eq!((&told[2]["class"], &told[2]["status"]), (&json!("NotFoundError"), &json!(404)), "{}", told[2]);
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "large clients: make test-clients"]
async fn clients_for_node_talk_to_built_in_models() {
    let gateway = inside().await;
    let told = node("openai", &gateway, &["smollm2", "chat", "stream", "responses", "models", "error"]).await;
    told[..3].iter().for_each(is_answer);
    assert_eq!(told[2]["streamed"], ANSWER);
    assert_eq!(told[3]["models"], json!(["smollm2", "caller", "minilm"]));
    assert_eq!((&told[4]["class"], &told[4]["code"]), (&json!("NotFoundError"), &json!("model_not_found")));

    let told = node("anthropic", &gateway, &["smollm2", "chat", "stream", "count", "models", "error"]).await;
    for step in &told[..2] {
        assert_eq!((&step["reason"], step["output"].as_u64() > Some(0)), (&json!("end_turn"), true), "{step}");
        assert!(step["text"].as_str().is_some_and(|text| !text.is_empty()), "{step}");
    }
    assert!(told[2]["input"].as_u64() > Some(10), "{}", told[2]);
    assert_eq!(told[3]["models"], json!(["smollm2", "caller", "minilm"]));
    assert_eq!((&told[4]["class"], &told[4]["type"]), (&json!("NotFoundError"), &json!("not_found_error")));

    let told = node("ollama", &gateway, &["smollm2", "chat", "stream", "generate", "models", "error"]).await;
    told[..3].iter().for_each(is_answer);
    assert!(told[..2].iter().all(|step| step["reason"] == "stop"), "{told:?}");
    assert_eq!(told[3]["models"], json!(["smollm2", "caller", "minilm"]));
    assert_eq!(told[3]["shown"], json!(["completion"]));
    assert_eq!((&told[4]["class"], &told[4]["status"]), (&json!("ResponseError"), &json!(404)));
    assert_eq!(node("ollama", &gateway, &["minilm", "embed"]).await[0]["vectors"], json!([384, 384]));
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "large clients: make test-clients"]
async fn vercels_ai_sdk_talks_to_built_in_models_by_three_apis() {
    let gateway = inside().await;
    // From Anthropic's API objects are asked for by a tool.
    for (provider, writer) in [("openai", "smollm2"), ("responses", "smollm2"), ("anthropic", "caller")] {
        let steps = ["text", "stream", "object"].map(|what| format!("{provider}:{what}"));
        let told = node("vercel", &gateway, &["smollm2", &steps[0], &steps[1]]).await;
        for step in &told {
            is_answer(step);
            assert_eq!(step["reason"], "stop", "{step}");
        }
        let told = node("vercel", &gateway, &[writer, &steps[2]]).await;
        assert_eq!(told[0]["large"], true, "{told:?}");
    }
    assert_eq!(node("vercel", &gateway, &["minilm", "openai:embed"]).await[0]["vectors"], json!([384, 384]));
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "large clients: make test-clients"]
async fn frameworks_use_tools_of_servers_of_the_other_api() {
    for caller in ["openai", "anthropic"] {
        let (gateway, server) = translating(caller).await;
        for name in ["langchain", "litellm"] {
            let (whole, streamed) = (format!("{caller}:tools"), format!("{caller}:streamed_tools"));
            let told = python(name, &gateway, &["m", &whole, &streamed]).await;
            assert_eq!(told.len(), 2, "{name}");
            told.iter().for_each(|step| used_its_tool(step, &server));
        }
        let (whole, streamed) = (format!("{caller}:tools"), format!("{caller}:streamed_tools"));
        let told = node("vercel", &gateway, &["m", &whole, &streamed]).await;
        assert_eq!(told.len(), 2);
        told.iter().for_each(|step| used_its_tool(step, &server));
        used_its_tool(&node(caller, &gateway, &["m", "tools"]).await[0], &server);
    }
}
