//! Overload: at three times the load of the servers every caller gets its own answer.

use std::collections::BTreeMap;
use std::time::Instant;

use spillway_tests::{Gateway, LlamaServer, model, script};

#[tokio::test(flavor = "multi_thread")]
async fn three_times_the_load_that_two_servers_take_is_answered_whole_and_not_mixed_up() {
    let (a, b) = (LlamaServer::start(1), LlamaServer::start(1));
    let gateway = Gateway::start(&format!(
        "backends:
  - name: fleet
    protocol: openai
    endpoints: [{{url: \"{}\"}}, {{url: \"{}\"}}]
    capacity: {{maxInFlight: 1}}
models: [{{name: smollm2, source: \"{}\", contextLength: 256, maxSequences: 8, maxQueue: 256, maxQueueWait: 110s}}]
routes:
  - name: r
    backendRefs: [{{name: fleet}}]
    whenSaturated: {{queue: {{maxWait: 2s, maxDepth: 8}}, spillTo: smollm2}}
",
        a.url,
        b.url,
        model().display()
    ))
    .await;
    // Service time of the two: that of one request, warm, on a machine that they share with all other processes here.
    let mut took = Vec::new();
    for _ in 0..4 {
        let began = Instant::now();
        assert_eq!(gateway.client().chat("any", &[]).await.status, 200);
        took.push(began.elapsed().as_secs_f64());
    }
    let service = took[1..].iter().copied().fold(f64::INFINITY, f64::min).max(0.02);
    let count = 24;
    let seconds = (count as f64 / (3.0 * 2.0 / service)).min(20.0);
    let told = script("overload.py", &gateway, &[&count.to_string(), &seconds.to_string()]).await;
    assert_eq!(told.len(), count);
    let mut by: BTreeMap<String, usize> = BTreeMap::new();
    for answer in &told {
        assert_eq!((&answer["status"], &answer["whole"]), (&200.into(), &true.into()), "{answer}");
        let capital = match answer["country"].as_str().unwrap() {
            "France" => "Paris",
            "Germany" => "Berlin",
            "Italy" => "Rome",
            _ => "Madrid",
        };
        assert!(answer["text"].as_str().unwrap().contains(capital), "{answer}");
        *by.entry(answer["by"].as_str().unwrap().to_owned()).or_default() += 1;
    }
    assert!(by.get("").is_some_and(|n| *n > 2), "the servers take what they can: {by:?}");
    assert!(by.get("builtin/smollm2").is_some_and(|n| *n > 2), "the rest is answered inside: {by:?}");
    println!("{count} requests in {seconds:.1} s, one takes {service:.3} s: {by:?}");
    gateway.metric_becomes("spillway_queue_depth{http_route=\"r\"}", 0.0).await;
}
