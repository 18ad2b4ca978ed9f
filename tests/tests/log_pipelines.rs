//! The parsers of log lines in `deploy/logs`: the ingest pipeline of Elastic is run over lines of a gateway, and each field that a parser
//! names is one that lines have. Loki's stages are read, not run.

use serde_json::{Map, Value, json};
use spillway_tests::{Client, Gateway, eventually, repository};

fn read(path: &str) -> String {
    std::fs::read_to_string(repository().join(path)).unwrap()
}

/// Fields that lines have by the reference, which is read from the source, and those that every event of the process has.
fn fields() -> Vec<String> {
    let page = read("docs/reference/logs.md");
    let rows = page.lines().filter_map(|line| line.strip_prefix("| `")?.split_once("` |"));
    rows.map(|(field, _)| field.to_owned()).chain(["level", "target", "message"].map(str::to_owned)).collect()
}

fn taken(document: &mut Value, path: &str) -> Option<Value> {
    let (parent, last) = path.rsplit_once('.').map_or(("", path), |(parent, last)| (parent, last));
    let parent =
        parent.split('.').filter(|part| !part.is_empty()).try_fold(document, |value, part| value.get_mut(part))?;
    parent.as_object_mut()?.remove(last)
}

fn put(document: &mut Value, path: &str, value: Value) {
    let (parent, last) = path.rsplit_once('.').map_or(("", path), |(parent, last)| (parent, last));
    let parent = parent.split('.').filter(|part| !part.is_empty()).fold(document, |found, part| {
        let members = found.as_object_mut().unwrap_or_else(|| panic!("{path}: {part} is in no object"));
        members.entry(part).or_insert_with(|| Value::Object(Map::new()))
    });
    let before = parent.as_object_mut().unwrap().insert(last.to_owned(), value);
    assert!(before.is_none(), "{path} is there already, which Elasticsearch refuses");
}

/// A document as the processors `json`, `date`, `remove` and `rename` leave it; another processor, or another option, fails.
fn processed(pipeline: &Value, mut document: Value) -> Value {
    for processor in pipeline["processors"].as_array().unwrap() {
        let (kind, with) = processor.as_object().unwrap().iter().next().unwrap();
        let options: Vec<&str> = with.as_object().unwrap().keys().map(String::as_str).collect();
        match (kind.as_str(), options.as_slice()) {
            ("json", ["field", "target_field"]) => {
                let text = document[with["field"].as_str().unwrap()].as_str().unwrap().to_owned();
                put(&mut document, with["target_field"].as_str().unwrap(), serde_json::from_str(&text).unwrap());
            }
            ("date", ["field", "formats"]) => {
                assert_eq!(with["formats"], json!(["ISO8601"]));
                let field = format!("/{}", with["field"].as_str().unwrap().replace('.', "/"));
                let text = document.pointer(&field).unwrap().as_str().unwrap().to_owned();
                let is_date = |(place, c): (usize, char)| match place {
                    4 | 7 => c == '-',
                    10 => c == 'T',
                    13 | 16 => c == ':',
                    19 => c == '.',
                    _ => c.is_ascii_digit() || (c == 'Z' && place + 1 == text.len()),
                };
                assert!(text.len() > 20 && text.ends_with('Z') && text.char_indices().all(is_date), "{text}");
                put(&mut document, "@timestamp", text.into());
            }
            ("remove", ["field"]) => {
                for field in with["field"].as_array().unwrap() {
                    taken(&mut document, field.as_str().unwrap()).unwrap();
                }
            }
            ("rename", ["field", "target_field", "ignore_missing"]) => {
                if let Some(value) = taken(&mut document, with["field"].as_str().unwrap()) {
                    put(&mut document, with["target_field"].as_str().unwrap(), value);
                }
            }
            other => panic!("{other:?} is not known here"),
        }
    }
    document
}

#[tokio::test]
async fn lines_pass_the_ingest_pipeline_of_elastic_with_the_names_of_its_schema() {
    let gateway = Gateway::start(
        "consumers: [{name: acme, keys: [{sha256: 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08}]}]
routes: [{name: web, authentication: optional, matches: [{path: {prefix: /web}}], filters: [{respond: {status: 200, body: hello}}]}]
",
    )
    .await;
    let client = Client::new(gateway.address);
    client.send(client.request("GET", "/web?token=s3cret", &[("user-agent", "tester")], "")).await;
    client.send(client.request("GET", "/web", &[("x-api-key", "wrong")], "")).await;
    client.send(client.request("GET", "/nowhere", &[], "")).await;
    let is_logged = || (gateway.log().matches("\"event\":\"access\"").count() == 3).then_some(());
    eventually("three lines of requests", || async { is_logged() }).await;
    let pipeline: Value = serde_json::from_str(&read("deploy/logs/elastic.json")).unwrap();
    let (log, mut seen) = (gateway.log(), Vec::new());
    for line in log.lines().filter(|line| line.starts_with('{')) {
        let document = processed(&pipeline, json!({"message": line}));
        assert!(document["@timestamp"].is_string(), "{document}");
        seen.push(document);
    }
    // Requests that end together are logged in any order.
    let of = |path: &str, agent: Option<&str>| {
        let is_it = |line: &&Value| {
            line["event"]["action"] == "access"
                && line["url"]["path"] == path
                && agent.is_none_or(|agent| line["user_agent"]["original"] == agent)
        };
        seen.iter().find(is_it).unwrap_or_else(|| panic!("no line of {path} among {seen:?}"))
    };
    let (web, nowhere) = (of("/web", Some("tester")), of("/nowhere", None));
    assert_eq!((&web["url"]["path"], &web["http"]["response"]["status_code"]), (&"/web".into(), &200.into()));
    assert_eq!((&web["user_agent"]["original"], &web["spillway"]["route"]), (&"tester".into(), &"web".into()));
    assert_eq!(nowhere["error"]["code"], "no_route");
    assert!(seen.iter().any(|document| document["event"]["action"] == "ready" && document["log"]["level"] == "INFO"));
}

#[test]
fn each_field_that_a_parser_names_is_one_that_lines_have() {
    let fields = fields();
    let pipeline: Value = serde_json::from_str(&read("deploy/logs/elastic.json")).unwrap();
    let renamed: Vec<&str> = pipeline["processors"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(|processor| processor["rename"]["field"].as_str()?.strip_prefix("spillway."))
        .collect();
    assert!(renamed.len() > 10);
    let stages = read("deploy/logs/loki.alloy");
    let block = |name: &str| -> Vec<(String, String)> {
        let inside = stages.split(&format!("stage.{name} {{")).nth(1).unwrap().split("\n  }").next().unwrap();
        let pairs = inside.lines().filter_map(|line| line.trim().strip_suffix("\",")?.split_once(" = \""));
        pairs.map(|(name, value)| (name.trim().to_owned(), value.to_owned())).collect()
    };
    let read_fields = block("json");
    assert!(read_fields.len() > 5);
    for field in renamed.into_iter().chain(read_fields.iter().map(|(_, field)| field.as_str())) {
        assert!(fields.iter().any(|known| known == field), "no line has {field}");
    }
    for (name, _) in block("labels").into_iter().chain(block("structured_metadata")) {
        assert!(read_fields.iter().any(|(known, _)| *known == name), "no stage reads {name}");
    }
}
