//! The steps of `deploy/pipelines`, run by hand as a pipeline runs them: a wrong edit ends at the first, a good version comes to all
//! requests, a bad one is taken back, and each says so by its exit code.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::json;
use spillway_tests::{Gateway, Upstream, binary, reply, repository, whole};

/// Server whose answers have this text, or fail.
async fn server(text: Option<&'static str>) -> Upstream {
    Upstream::start(move |_| async move {
        let Some(text) = text else { return Some(reply(500, &[], "no")) };
        let body = json!({
            "id": "c", "object": "chat.completion", "created": 1, "model": "m",
            "choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
        });
        Some(reply(200, &[("content-type", "application/json")], body.to_string()))
    })
    .await
}

/// Configuration with this server as candidate, if there is one.
fn routes(stable: &Upstream, candidate: Option<(&str, &Upstream)>) -> String {
    let mut yaml = format!(
        "listeners: [{{address: \"127.0.0.1:0\"}}]
backends:
  - {{name: v1, protocol: openai, endpoints: [{{url: \"{}\"}}]}}
",
        stable.url()
    );
    let mut route = "routes:\n  - name: chat\n    backendRefs: [{name: v1}]\n".to_owned();
    if let Some((name, server)) = candidate {
        let hold = "steps: [{weight: 50, hold: {requests: 500}}], abortWhen: {errorRate: \"+0.05\"}";
        yaml += &format!("  - {{name: {name}, protocol: openai, endpoints: [{{url: \"{}\"}}]}}\n", server.url());
        route = format!(
            "routes:\n  - name: chat\n    backendRefs: [{{name: v1}}, {{name: {name}, weight: 0}}]\n    rollout: {{to: {name}, {hold}}}\n"
        );
    }
    whole(&(yaml + &route))
}

/// Runs a step in a folder; returns its exit code and what it printed.
async fn step(
    folder: &Path,
    gateway: &Gateway,
    name: &str,
    arguments: &[&str],
    more: &[(&str, &str)],
) -> (i32, String) {
    let mut command = Command::new(repository().join("deploy/pipelines/steps").join(name));
    command.args(arguments).current_dir(folder).envs(more.iter().copied());
    command.env("SPILLWAY", binary()).env("SPILLWAY_ADMIN", format!("http://{}", gateway.admin));
    command.env("SPILLWAY_TARGET", gateway.config()).env("SPILLWAY_SECONDS", "60");
    let out = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
    let printed = [out.stdout, out.stderr].concat();
    (out.status.code().unwrap(), String::from_utf8_lossy(&printed).into_owned())
}

/// Calls the gateway, one caller after the other, until `done` is true.
async fn call(gateway: &Gateway, done: Arc<AtomicBool>) {
    while !done.load(Ordering::Relaxed) {
        gateway.client().chat("m", &[]).await;
    }
}

/// Waits by `canary.sh` while callers call.
async fn canary(folder: &Path, gateway: &Gateway) -> (i32, String) {
    let done = Arc::new(AtomicBool::new(false));
    let judged = async {
        let ended = step(folder, gateway, "canary.sh", &["chat", "2m"], &[]).await;
        done.store(true, Ordering::Relaxed);
        ended
    };
    futures::future::join(judged, call(gateway, done.clone())).await.0
}

#[tokio::test(flavor = "multi_thread")]
async fn a_version_goes_from_its_evaluation_to_all_requests_or_back() {
    let (v1, good, bad) = (server(Some("Rome")).await, server(Some("Paris")).await, server(None).await);
    let gateway = Gateway::start_in(tempfile::tempdir().unwrap(), &routes(&v1, None)).await;
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path();
    let write = |name: &str, text: &str| std::fs::write(here.join(name), text).unwrap();
    let run = async |name, arguments: &[&str], more: &[(&str, &str)]| step(here, &gateway, name, arguments, more).await;

    write("spillway.yaml", &routes(&v1, Some(("v2", &good))).replace("to: v2", "to: v3"));
    let (code, printed) = run("validate.sh", &["spillway.yaml"], &[("SPILLWAY_FORMAT", "github")]).await;
    assert!(code == 2 && printed.contains("::error file=spillway.yaml"), "{code} {printed}");
    write("spillway.yaml", &routes(&v1, Some(("v2", &good))));
    let (code, printed) = run("validate.sh", &["spillway.yaml"], &[]).await;
    assert!(code == 0 && printed.contains("+ v2") && printed.contains("~ chat"), "{code} {printed}");

    let case = json!({"prompt": "What is the capital of France?", "contains": "Paris"});
    write("holdout.jsonl", &case.to_string());
    let model = [("SPILLWAY_MODEL", "m")];
    let (code, printed) = run("evaluate.sh", &["holdout.jsonl", &v1.url()], &model).await;
    assert_eq!(code, 3, "{printed}");
    let (code, printed) = run("evaluate.sh", &["holdout.jsonl", &good.url()], &model).await;
    assert_eq!(code, 0, "{printed}");
    let report: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(here.join("report.json")).unwrap()).unwrap();
    assert_eq!(report["passed"], 1, "{report}");

    for archive in ["one.tar.gz", "two.tar.gz"] {
        let (code, printed) = run("package.sh", &[archive, "spillway.yaml", "holdout.jsonl", "report.json"], &[]).await;
        assert_eq!(code, 0, "{printed}");
    }
    let [one, two] = ["one.tar.gz", "two.tar.gz"].map(|archive| std::fs::read(here.join(archive)).unwrap());
    assert!(one == two, "the same files give the same bytes");
    let unpacked = "mkdir there && tar -xzf one.tar.gz -C there && cd there && sha256sum --check SHA256SUMS";
    assert!(Command::new("sh").args(["-c", unpacked]).current_dir(here).status().unwrap().success());

    let (code, printed) = run("apply.sh", &["spillway.yaml"], &[]).await;
    assert_eq!(code, 0, "{printed}");
    let (code, printed) = canary(here, &gateway).await;
    assert!(code == 0 && printed.contains("promoted"), "{code} {printed}");
    assert_eq!(gateway.client().chat("m", &[]).await.json()["choices"][0]["message"]["content"], "Paris");

    write("spillway.yaml", &routes(&v1, Some(("v3", &bad))));
    let (code, printed) = run("apply.sh", &["spillway.yaml"], &[]).await;
    assert_eq!(code, 0, "{printed}");
    let (code, printed) = canary(here, &gateway).await;
    assert!(code == 1 && printed.contains("aborted"), "{code} {printed}");
    let (code, printed) = run("promote.sh", &["chat", "it is well"], &[]).await;
    assert!(code == 1 && printed.contains("409"), "an ended rollout is not promoted: {code} {printed}");
}
