//! Gates: webhooks that must agree before a rollout goes on. The names of their types, of the phase and of the checksum are
//! Flagger's (<https://docs.flagger.app/usage/webhooks>). The module asks one question with one bounded answer; when to ask
//! again is the caller's matter.

use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, header};
use serde::Serialize;
use spillway_filter::HttpClient;
use spillway_statistics::Judgement;

use super::machine::{Gate, GateAnswer, Machine, Step};
use super::record::{RolloutRecord, Strategy};

/// Interval between two questions to a gate that has not agreed: what Flagger does by default.
pub const ASK_EVERY: Duration = Duration::from_secs(10);
/// Time limit of a question where the file says none.
pub const TIMEOUT: Duration = Duration::from_secs(5);
/// Characters of an answer that stand in the record's reason.
const SHOWN: usize = 160;

/// Body of a question.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Question<'a> {
    r#type: &'static str,
    name: &'a str,
    phase: &'static str,
    checksum: &'a str,
    route: &'a str,
    candidate: &'a str,
    stable: &'a [String],
    strategy: Strategy,
    run: u64,
    step: u32,
    steps: u32,
    weight: f64,
    candidate_requests: u64,
    stable_requests: u64,
    evidence: Option<&'a Judgement>,
}

/// Type of a gate in Flagger's words: by the weight before it and what comes after it.
fn kind(machine: &Machine) -> &'static str {
    let (record, schedule) = (machine.record(), machine.schedule());
    let after = schedule.steps.iter().skip(usize::try_from(record.step).unwrap_or(usize::MAX).saturating_add(1));
    let next = after.clone().find_map(|step| match step {
        Step::Weight { percent, .. } => Some(*percent),
        Step::Pause { .. } | Step::Gate(_) => None,
    });
    if record.weight == 0.0 {
        "confirm-rollout"
    } else if next.is_some_and(|percent| percent < 100.0) {
        "confirm-traffic-increase"
    } else {
        "confirm-promotion"
    }
}

/// Question to the gate of the machine's present step, to be awaited without holding the machine. An answer with a status
/// from 200 to 299 agrees; any other, no answer within the time limit, and a fault of the connection do not.
pub fn ask(machine: &Machine, gate: &Gate, client: &dyn HttpClient) -> impl Future<Output = GateAnswer> + Send + use<> {
    let call = request(kind(machine), machine.record(), gate).map(|request| client.call(request, gate.timeout));
    async move {
        let call = match call {
            Ok(call) => call,
            Err(fault) => return GateAnswer { agreed: false, text: fault },
        };
        match call.await {
            Ok(answer) => {
                let text = shown(&String::from_utf8_lossy(answer.body()));
                let status = answer.status();
                let text =
                    if text.is_empty() { status.as_str().to_owned() } else { format!("{}: {text}", status.as_str()) };
                GateAnswer { agreed: status.is_success(), text }
            }
            Err(fault) => GateAnswer { agreed: false, text: shown(&fault.to_string()) },
        }
    }
}

fn request(kind: &'static str, record: &RolloutRecord, gate: &Gate) -> Result<Request<Bytes>, String> {
    let question = Question {
        r#type: kind,
        name: &record.name,
        phase: "Progressing",
        checksum: &record.identity,
        route: &record.name,
        candidate: &record.candidate,
        stable: &record.stable,
        strategy: record.strategy,
        run: record.run,
        step: record.step,
        steps: record.steps,
        weight: record.weight,
        candidate_requests: record.candidate_requests,
        stable_requests: record.stable_requests,
        evidence: record.judgement.as_ref(),
    };
    let body = serde_json::to_vec(&question).map_err(|fault| fault.to_string())?;
    Request::builder()
        .method(Method::POST)
        .uri(gate.url.as_str())
        .header(header::CONTENT_TYPE, "application/json")
        .body(Bytes::from(body))
        .map_err(|fault| fault.to_string())
}

/// Begin of the first line of a foreign text, without control characters.
fn shown(text: &str) -> String {
    let line = text.trim().lines().next().unwrap_or_default();
    line.chars().filter(|character| !character.is_control()).take(SHOWN).collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;
    use crate::http_client::Http;
    use crate::rollout::machine::{Hold, Look, Schedule};

    fn gate(url: &str) -> Gate {
        Gate { url: url.parse().unwrap(), timeout: Duration::from_millis(300) }
    }

    fn weight(percent: f64) -> Step {
        Step::Weight { percent, hold: Hold { seconds: 0.0, requests: 0 } }
    }

    fn machine(steps: Vec<Step>) -> Machine {
        let schedule = Schedule::for_tests(steps);
        let mut machine = Machine::new(Arc::new(schedule), 0.0);
        machine.look(1.0, Look::default());
        machine
    }

    /// Server that answers one connection with a text, or never; and the request that it got.
    async fn server(answer: Option<&'static str>) -> (String, tokio::task::JoinHandle<String>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://user:secret@{}/ok?token=x", listener.local_addr().unwrap());
        let served = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = String::new();
            while !request.ends_with('}') {
                let mut part = [0; 4096];
                let read = stream.read(&mut part).await.unwrap();
                request.push_str(&String::from_utf8_lossy(&part[..read]));
            }
            match answer {
                Some(answer) => stream.write_all(answer.as_bytes()).await.unwrap(),
                None => tokio::time::sleep(Duration::from_secs(60)).await,
            }
            request
        });
        (url, served)
    }

    #[tokio::test]
    async fn a_gate_is_asked_with_the_state_of_the_rollout() {
        let (url, served) = server(Some("HTTP/1.1 204 No Content\r\n\r\n")).await;
        let gate = gate(&url);
        let machine = machine(vec![weight(5.0), Step::Gate(gate.clone()), weight(50.0)]);
        let answer = ask(&machine, &gate, &Http::default()).await;
        assert_eq!(answer, GateAnswer { agreed: true, text: "204".to_owned() });
        let request = served.await.unwrap();
        let (head, body) = request.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("POST /ok?token=x HTTP/1.1\r\n"), "{head}");
        assert!(head.to_ascii_lowercase().contains("content-type: application/json"), "{head}");
        let body: serde_json::Value = serde_json::from_str(body).unwrap();
        let expected = serde_json::json!({
            "type": "confirm-traffic-increase", "name": "chat", "phase": "Progressing", "checksum": "abc", "route": "chat",
            "candidate": "v2", "stable": ["v1"], "strategy": "canary", "run": 1, "step": 0, "steps": 3, "weight": 5.0,
            "candidateRequests": 0, "stableRequests": 0, "evidence": null
        });
        assert_eq!(body, expected);
    }

    #[tokio::test]
    async fn anything_but_success_in_time_does_not_agree() {
        let machine = machine(vec![weight(5.0)]);
        for (answer, says) in [
            (Some("HTTP/1.1 403 Forbidden\r\ncontent-length: 17\r\n\r\nnot\tyet\nsecond li"), "403: notyet"),
            (Some("HTTP/1.1 302 Found\r\nlocation: http://127.0.0.1:1/\r\ncontent-length: 0\r\n\r\n"), "302"),
            (Some("no HTTP\r\n\r\n"), ""),
            (None, "no answer within 300 ms"),
        ] {
            let (url, _served) = server(answer).await;
            let answer = ask(&machine, &gate(&url), &Http::default()).await;
            assert!(!answer.agreed && answer.text.starts_with(says), "{answer:?}");
            assert!(!answer.text.contains("secret"), "{answer:?}");
        }
        let nobody = ask(&machine, &gate("http://127.0.0.1:1/"), &Http::default()).await;
        assert!(!nobody.agreed && !nobody.text.is_empty());
        let long = format!("HTTP/1.1 500 Oh\r\ncontent-length: 70000\r\n\r\n{}", "x".repeat(70_000));
        let (url, _served) = server(Some(Box::leak(long.into_boxed_str()))).await;
        let answer = ask(&machine, &gate(&url), &Http::default()).await;
        assert!(!answer.agreed && answer.text.chars().count() <= SHOWN, "{answer:?}");
    }

    #[test]
    fn gates_have_flaggers_names_by_their_place() {
        let asked = gate("http://127.0.0.1/");
        let here = || Step::Gate(asked.clone());
        let names = |steps: Vec<Step>| kind(&machine(steps));
        assert_eq!(names(vec![here(), weight(5.0)]), "confirm-rollout");
        assert_eq!(
            names(vec![weight(5.0), here(), Step::Pause { seconds: None }, weight(50.0)]),
            "confirm-traffic-increase"
        );
        assert_eq!(names(vec![weight(5.0), here(), weight(100.0)]), "confirm-promotion");
        assert_eq!(names(vec![weight(5.0), here()]), "confirm-promotion");
    }
}
