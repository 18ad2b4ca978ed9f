//! Figures of graphics processors, from a library in the place of NVIDIA's that a test compiles: no machine of the tests has a card.

use std::process::Command;

use spillway_tests::{Gateway, eventually};

/// Library with the functions that are asked for, by the names, types and results of NVIDIA's (NVML API reference). The second
/// card tells neither its power nor its use, as virtual ones do.
const DRIVER: &str = r#"
#include <string.h>
typedef struct { unsigned version; unsigned long long total, reserved, free, used; } memory;
typedef struct { unsigned gpu, memory; } rates;
static int cards[2];
int nvmlInit_v2(void) { return 0; }
int nvmlShutdown(void) { return 0; }
int nvmlDeviceGetCount_v2(unsigned *n) { *n = 2; return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned n, void **card) { if (n > 1) return 2; *card = &cards[n]; return 0; }
int nvmlDeviceGetUUID(void *card, char *text, unsigned length) { strncpy(text, card == &cards[0] ? "GPU-0" : "GPU-1", length); return 0; }
int nvmlDeviceGetName(void *card, char *text, unsigned length) { strncpy(text, "Test \"Card\"", length); return 0; }
int nvmlDeviceGetMemoryInfo_v2(void *card, memory *m) { m->total = 1000; m->used = card == &cards[0] ? 400 : 7; return 0; }
int nvmlDeviceGetUtilizationRates(void *card, rates *r) { if (card != &cards[0]) return 3; r->gpu = 25; return 0; }
int nvmlDeviceGetTemperature(void *card, int sensor, unsigned *degrees) { *degrees = 61; return 0; }
int nvmlDeviceGetPowerUsage(void *card, unsigned *milliwatts) { if (card != &cards[0]) return 3; *milliwatts = 71500; return 0; }
"#;

#[tokio::test]
async fn the_metrics_show_what_the_driver_tells_of_each_card() {
    let library = tempfile::tempdir().unwrap();
    let (source, made) = (library.path().join("driver.c"), library.path().join("libnvidia-ml.so.1"));
    std::fs::write(&source, DRIVER).unwrap();
    let status = Command::new("cc").args(["-shared", "-fPIC", "-o"]).arg(&made).arg(&source).status().unwrap();
    assert!(status.success());

    let yaml = "routes: [{name: r, filters: [{respond: {status: 204}}]}]\n";
    let path = library.path().to_str().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let yaml = format!("listeners: [{{address: \"127.0.0.1:0\"}}]\n{yaml}");
    let gateway = Gateway::start_with_variables(folder, &yaml, &[("LD_LIBRARY_PATH", path)]).await;
    let shown = eventually("the cards", || async {
        let page = gateway.metrics().await;
        page.contains("spillway_gpu_temperature_celsius{").then_some(page)
    })
    .await;
    let figures: Vec<&str> = shown.lines().filter(|line| line.starts_with("spillway_gpu_")).collect();
    let card = |n: usize| format!(r#"{{gpu="{n}",name="Test \"Card\"",uuid="GPU-{n}"}}"#);
    let mut expected = vec![
        format!("spillway_gpu_utilization_ratio{} 0.25", card(0)),
        format!("spillway_gpu_memory_used_bytes{} 400.0", card(0)),
        format!("spillway_gpu_memory_used_bytes{} 7.0", card(1)),
        format!("spillway_gpu_memory_bytes{} 1000.0", card(0)),
        format!("spillway_gpu_memory_bytes{} 1000.0", card(1)),
        format!("spillway_gpu_temperature_celsius{} 61.0", card(0)),
        format!("spillway_gpu_temperature_celsius{} 61.0", card(1)),
        format!("spillway_gpu_power_watts{} 71.5", card(0)),
    ];
    let mut figures: Vec<String> = figures.into_iter().map(str::to_owned).collect();
    expected.sort();
    figures.sort();
    assert_eq!(figures, expected);
}

/// No driver, no series, and nothing in the log that would alarm anybody.
#[tokio::test]
async fn a_machine_without_a_driver_has_no_such_figures() {
    let gateway = Gateway::start("routes: [{name: r, filters: [{respond: {status: 204}}]}]\n").await;
    assert!(!gateway.metrics().await.lines().any(|line| line.starts_with("spillway_gpu_")));
    assert!(gateway.events("gpus_not_watched").is_empty() && !gateway.log().contains("no_gpu_driver"));
}
