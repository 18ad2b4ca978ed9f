//! The smaller operations of OpenAI's API: speech, transcriptions, images, moderations. They pass as they come, are routed by
//! the model that their body or form names, and count against the limits of their caller by the usage that they tell.

use serde_json::json;
use spillway_tests::{Gateway, Upstream, new_key, reply};

const FORM: &str = "multipart/form-data; boundary=x";
/// A sound, which is no UTF-8 and longer than any budget of the tests if its bytes counted as text.
static SOUND: [u8; 64 << 10] = [0xFF; 64 << 10];

/// A form with a model and a file.
fn form(model: &str) -> Vec<u8> {
    let head = format!(
        "--x\r\nContent-Disposition: form-data; name=\"model\"\r\n\r\n{model}\r\n--x\r\n\
         Content-Disposition: form-data; name=\"file\"; filename=\"a.mp3\"\r\nContent-Type: audio/mpeg\r\n\r\n"
    );
    [head.as_bytes(), &SOUND, b"\r\n--x--\r\n"].concat()
}

/// A gateway with routes for two models, and a caller that may use some tokens.
async fn gateway(server: &Upstream, digest: &str) -> Gateway {
    Gateway::start(&format!(
        "consumers: [{{name: acme, keys: [{{sha256: \"{digest}\"}}], models: [\"whisper*\", \"tts\", \"img\", \"mod\"], limits: {{tokens: 5000/h}}}}]
backends: [{{name: own, protocol: openai, endpoints: [{{url: \"{0}\"}}]}}, {{name: renamed, protocol: openai, model: whisper-large, endpoints: [{{url: \"{0}\"}}]}}]
routes:
  - {{name: small, matches: [{{model: whisper-small}}], backendRefs: [{{name: renamed}}]}}
  - {{name: rest, backendRefs: [{{name: own}}]}}
",
        server.url()
    ))
    .await
}

#[tokio::test]
async fn they_pass_as_they_come_and_count_by_the_usage_that_they_tell() {
    let server = Upstream::start(|seen| async move {
        let json = [("content-type", "application/json")];
        Some(match &*seen.path {
            "/v1/audio/speech" => reply(200, &[("content-type", "audio/mpeg")], SOUND.to_vec()),
            "/v1/images/generations" => {
                reply(200, &json, format!(r#"{{"data":[{{"b64_json":"{}"}}]}}"#, "A".repeat(64 << 10)))
            }
            "/v1/moderations" => reply(200, &json, r#"{"id":"modr-1","results":[{"flagged":false}]}"#),
            _ => reply(
                200,
                &json,
                r#"{"text":"hi","usage":{"type":"tokens","input_tokens":14,"output_tokens":2,"total_tokens":16}}"#,
            ),
        })
    })
    .await;
    let (key, digest) = new_key();
    let gateway = gateway(&server, &digest).await;
    let (client, bearer) = (gateway.client(), format!("Bearer {key}"));
    let key = ("authorization", &*bearer);
    let json = ("content-type", "application/json");
    // More of them than there would be tokens for, if their bytes counted as text.
    for _ in 0..3 {
        for (path, body) in [
            ("/v1/audio/speech", json!({"model": "tts", "input": "hi", "voice": "alloy"})),
            ("/v1/images/generations", json!({"model": "img", "prompt": "a cat"})),
            ("/v1/moderations", json!({"model": "mod", "input": "hi"})),
        ] {
            let answer = client.post(path, &[key, json], body.to_string()).await;
            assert_eq!(answer.status, 200, "{path}: {}", answer.text());
            assert_eq!(server.last().body, body.to_string(), "{path}");
        }
    }
    let sound = client.post("/v1/audio/speech", &[key, json], r#"{"model":"tts","input":"hi","voice":"alloy"}"#).await;
    assert_eq!((&*sound.body, sound.header("content-type")), (&SOUND[..], "audio/mpeg"));
    for path in ["/v1/audio/transcriptions", "/v1/audio/translations", "/v1/images/edits", "/v1/images/variations"] {
        let sent = form("whisper-1");
        let answer = client.post(path, &[key, ("content-type", FORM)], sent.clone()).await;
        assert_eq!((answer.status.as_u16(), &answer.json()["text"]), (200, &json!("hi")), "{path}");
        assert_eq!(server.last().body, sent, "{path}");
    }
}

#[tokio::test]
async fn they_are_routed_by_model_and_refused_in_the_words_of_the_api() {
    let server = Upstream::fixed(200, "{}").await;
    let (key, digest) = new_key();
    let gateway = gateway(&server, &digest).await;
    let (client, bearer) = (gateway.client(), format!("Bearer {key}"));
    let (key, form_type) = (("authorization", &*bearer), ("content-type", FORM));
    let renamed = client.post("/v1/audio/transcriptions", &[key, form_type], form("whisper-small")).await;
    assert_eq!(renamed.status, 200, "{}", renamed.text());
    assert_eq!(server.last().body, form("whisper-large"), "the form names the model of the backend");
    let count = server.count();
    for (path, kind, body, status, code) in [
        ("/v1/audio/transcriptions", FORM, form("other"), 404, "model_not_found"),
        ("/v1/moderations", "application/json", br#"{"model":"other","input":"x"}"#.to_vec(), 404, "model_not_found"),
        ("/v1/audio/speech", "application/json", b"no JSON".to_vec(), 400, "invalid_json"),
        (
            "/v1/images/generations",
            "application/json",
            br#"{"model":"img","model":"x"}"#.to_vec(),
            400,
            "duplicate_parameter",
        ),
    ] {
        let answer = client.post(path, &[key, ("content-type", kind)], body).await;
        assert_eq!((answer.status.as_u16(), &answer.json()["error"]["code"]), (status, &json!(code)), "{path}");
    }
    let stranger = client.post("/v1/images/generations", &[], r#"{"model":"img"}"#).await;
    assert_eq!((stranger.status.as_u16(), &stranger.json()["error"]["type"]), (401, &json!("authentication_error")));
    assert_eq!(server.count(), count, "none of them reached a server");
}
