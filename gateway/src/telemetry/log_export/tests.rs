use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use opentelemetry::logs::AnyValue;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::logs::SdkLogRecord;
use parking_lot::Mutex;
use spillway_config::schema::OtlpProtocol;
use spillway_config::values::Size;
use tokio::sync::Notify;

use super::*;
use crate::telemetry::LogWriter;

/// Keeps what is exported; where `hangs`, once it may go on.
#[derive(Debug, Clone, Default)]
struct Kept {
    batches: Arc<Mutex<Vec<Vec<SdkLogRecord>>>>,
    hangs: Option<Arc<Notify>>,
    refuses: bool,
}

impl LogExporter for Kept {
    async fn export(&self, batch: LogBatch<'_>) -> OTelSdkResult {
        if let Some(hangs) = &self.hangs {
            hangs.notified().await;
        }
        if self.refuses {
            return Err(OTelSdkError::InternalFailure("refused".to_owned()));
        }
        self.batches.lock().push(batch.iter().map(|(record, _)| record.clone()).collect());
        Ok(())
    }
}

fn started(kept: &Kept, buffered: u64) -> (LogExport, Arc<AtomicU64>) {
    let (endpoint, dropped) = (String::new(), Arc::default());
    let config = LogsOtlp { endpoint, protocol: OtlpProtocol::Grpc, buffered: Size(buffered) };
    (LogExport::start(&config, &dropped, || Ok(kept.clone())).unwrap(), dropped)
}

fn eventually(what: &str, is: impl Fn() -> bool) {
    let began = Instant::now();
    while !is() {
        assert!(began.elapsed() < Duration::from_secs(10), "{what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn bodies(kept: &Kept) -> Vec<String> {
    let batches = kept.batches.lock();
    let body = |record: &SdkLogRecord| match record.body() {
        Some(AnyValue::String(text)) => text.to_string(),
        other => format!("{other:?}"),
    };
    batches.iter().flatten().map(body).collect()
}

#[test]
fn records_come_in_their_order_in_bounded_batches_and_a_flush_waits_for_them() {
    let kept = Kept::default();
    let (export, dropped) = started(&kept, 64 << 20);
    for n in 0..1500 {
        export.send(|record| record.body(&n.to_string()));
    }
    export.flush();
    assert_eq!(bodies(&kept), (0..1500).map(|n| n.to_string()).collect::<Vec<_>>());
    // Long ones: no message is too large for a collector.
    kept.batches.lock().clear();
    for _ in 0..1000 {
        export.send(|record| {
            for _ in 0..10 {
                record.text("a", &"ü".repeat(4000));
            }
        });
    }
    export.flush();
    let batches = kept.batches.lock();
    assert_eq!(batches.iter().map(Vec::len).sum::<usize>(), 1000);
    let longest = batches.iter().map(Vec::len).max().unwrap();
    assert!(longest * 10 * 4096 < 2 << 20, "{longest} records of 40 KiB");
    assert_eq!(dropped.load(Ordering::Relaxed), 0);
}

#[test]
fn a_collector_that_hangs_costs_records_and_memory_is_bounded() {
    let hangs = Arc::new(Notify::new());
    let kept = Kept { hangs: Some(hangs.clone()), ..Kept::default() };
    let (export, dropped) = started(&kept, 64 << 10);
    for _ in 0..1000 {
        export.send(|record| record.body(&"x".repeat(1000)));
    }
    // A record has more than its text.
    let lost = dropped.load(Ordering::Relaxed);
    assert!((1000 - 64..1000).contains(&lost), "{lost} of 1000 are lost");
    let going_on = std::thread::spawn(move || {
        for _ in 0..1000 {
            hangs.notify_one();
            std::thread::sleep(Duration::from_millis(5));
        }
    });
    eventually("what waited is sent", || kept.batches.lock().iter().map(Vec::len).sum::<usize>() as u64 == 1000 - lost);
    eventually("there is room again", || {
        let before = dropped.load(Ordering::Relaxed);
        export.send(|record| record.body("more"));
        dropped.load(Ordering::Relaxed) == before
    });
    drop(export);
    going_on.join().unwrap();
}

#[test]
fn what_a_collector_refuses_is_counted() {
    let kept = Kept { refuses: true, ..Kept::default() };
    let (export, dropped) = started(&kept, 1 << 20);
    (0..7).for_each(|_| export.send(|record| record.body("a")));
    export.flush();
    assert_eq!(dropped.load(Ordering::Relaxed), 7);
}

#[test]
fn the_last_records_of_a_replaced_export_are_sent() {
    let kept = Kept::default();
    let (export, _) = started(&kept, 1 << 20);
    export.send(|record| record.body("last"));
    drop(export);
    eventually("it is sent", || bodies(&kept) == ["last"]);
}

#[test]
fn an_unchanged_export_is_kept_and_a_changed_one_is_not() {
    let config = |port| LogsOtlp {
        endpoint: format!("http://127.0.0.1:{port}"),
        protocol: OtlpProtocol::Grpc,
        buffered: Size(1 << 20),
    };
    let new = |config: Option<&LogsOtlp>, previous: Option<&LogExport>| {
        LogExport::new(config, previous, &Arc::default()).unwrap().0
    };
    assert!(new(None, None).is_none());
    let first = LogExport(new(Some(&config(1)), None));
    assert!(Arc::ptr_eq(&new(Some(&config(1)), Some(&first)).unwrap(), first.0.as_ref().unwrap()));
    assert!(!Arc::ptr_eq(&new(Some(&config(2)), Some(&first)).unwrap(), first.0.as_ref().unwrap()));
    assert!(new(None, Some(&first)).is_none());
}

#[test]
fn events_are_records_with_their_fields_and_those_of_the_exporter_are_not() {
    use spillway_config::schema::LogFormat;
    use tracing_subscriber::EnvFilter;

    let kept = Kept::default();
    let (export, dropped) = started(&kept, 1 << 20);
    let log = LogWriter::start(std::io::sink()).unwrap();
    log.export_by(&export);
    let dispatch = crate::telemetry::log::dispatch(LogFormat::Text, EnvFilter::new("info"), log.clone());
    tracing::dispatcher::with_default(&dispatch, || {
        let error = std::io::Error::other("no room");
        tracing::warn!(event = "lost", records = 7_u64, share = 0.5, is_new = true, delta = -3, error = %error, "words");
        tracing::debug!(event = "unseen");
        EXPORTS.set(true);
        tracing::info!(event = "of_the_exporter");
        EXPORTS.set(false);
        tracing::info!(event = "plain", shown = ?"a\nb");
    });
    log.flush();
    let batches = kept.batches.lock();
    let records: Vec<&SdkLogRecord> = batches.iter().flatten().collect();
    let [lost, plain] = &records[..] else { panic!("{records:?}") };
    let of = |record: &SdkLogRecord| -> Vec<(String, String)> {
        let shown = |value: &AnyValue| match value {
            AnyValue::String(text) => text.to_string(),
            other => format!("{other:?}"),
        };
        record.attributes_iter().map(|(key, value)| (key.to_string(), shown(value))).collect()
    };
    let pairs = |pairs: &[(&str, &str)]| -> Vec<(String, String)> {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    };
    assert_eq!((lost.event_name(), lost.severity_text()), (Some("lost"), Some("WARN")));
    assert_eq!(lost.body(), Some(&AnyValue::String("words".into())));
    let expected = [
        ("spillway.records", "Int(7)"),
        ("spillway.share", "Double(0.5)"),
        ("spillway.is_new", "Boolean(true)"),
        ("spillway.delta", "Int(-3)"),
        ("error.message", "no room"),
    ];
    assert_eq!(of(lost), pairs(&expected));
    assert_eq!((plain.event_name(), plain.severity_text()), (Some("plain"), Some("INFO")));
    assert_eq!(plain.body(), Some(&AnyValue::String("plain".into())));
    assert_eq!(of(plain), pairs(&[("spillway.shown", "\"a\\nb\"")]));
    assert!(plain.target().is_some_and(|target| target.starts_with("spillway::")));
    assert_eq!(dropped.load(Ordering::Relaxed), 0);
}
