//! Figures of scipy, Evidently, river and scikit-learn on the same data, from `oracles/reference.json`, which `oracles/reference.py` makes.
//!
//! The packages take half a gigabyte, so their figures are kept rather than computed in each run; the versions stand in the file.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

use serde_json::Value;
use spillway_statistics::drift::agreement::{Calibration, Classes, Errors};
use spillway_statistics::drift::distance::{binned, chi_squared, jensen_shannon, kolmogorov_smirnov, psi, wasserstein};
use spillway_statistics::drift::stream::{Adwin, Ddm, Level};
use spillway_statistics::sketch::Sketch;
use spillway_statistics::{Kind, Metric, Plan, Rollout, Version};

fn reference(part: &str) -> Vec<Value> {
    let all: Value = serde_json::from_str(include_str!("oracles/reference.json")).unwrap();
    all[part].as_array().unwrap().clone()
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap()
}

/// SplitMix64 as numbers in [0, 1), as in reference.py.
fn uniforms(seed: u64, number: usize) -> Vec<f64> {
    let mut state = seed;
    (0..number)
        .map(|_| {
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            ((mixed ^ (mixed >> 31)) >> 11) as f64 / (1_u64 << 53) as f64
        })
        .collect()
}

fn sketch(seed: u64, number: usize, scale: f64) -> Sketch {
    let mut sketch = Sketch::default();
    uniforms(seed, number).iter().for_each(|uniform| sketch.add(scale * (1.0 - (1.0 - uniform).ln())));
    sketch
}

/// Distances of numbers agree within what bins of half a percent blur.
#[test]
fn distances_of_numbers_agree_with_evidently_and_scipy() {
    for row in reference("numbers") {
        let (left, right) = (sketch(1, 3000, 1.0), sketch(2, 2000, number(&row["shift"])));
        let pairs = binned(&left, &right);
        let near = |name: &str, ours: f64, tolerance: f64| {
            let theirs = number(&row[name]);
            assert!((ours - theirs).abs() <= tolerance, "{name} at {}: {ours} against {theirs}", row["shift"]);
        };
        near("psi", psi(&pairs).unwrap(), 0.01 + 0.05 * number(&row["psi"]));
        near("jensenShannon", jensen_shannon(&pairs).unwrap(), 0.01);
        near("wasserstein", wasserstein(&left, &right).unwrap(), 0.005);
        let test = kolmogorov_smirnov(&left, &right).unwrap();
        let (distance, probability) = (number(&row["kolmogorovSmirnov"][0]), number(&row["kolmogorovSmirnov"][1]));
        assert!((test.statistic - distance).abs() < 0.01, "{test:?} against {distance}");
        assert!((test.probability - probability).abs() < 0.2, "{test:?} against {probability}");
        assert_eq!(test.probability < 0.01, probability < 0.01);
    }
}

/// Distances of categories agree to rounding, as counts are exact.
#[test]
fn distances_of_categories_agree_with_evidently_and_scipy() {
    for row in reference("categories") {
        let counts = |side: &str| -> Vec<f64> { row[side].as_array().unwrap().iter().map(number).collect() };
        let pairs: Vec<(f64, f64)> = counts("reference").into_iter().zip(counts("window")).collect();
        for (name, ours) in [
            ("psi", psi(&pairs).unwrap()),
            ("jensenShannon", jensen_shannon(&pairs).unwrap()),
            ("jensenShannonScipy", jensen_shannon(&pairs).unwrap()),
        ] {
            let theirs = number(&row[name]);
            assert!((ours - theirs).abs() < 1e-9, "{name} {pairs:?}: {ours} against {theirs}");
        }
        let test = chi_squared(&pairs).unwrap();
        match row["chiSquared"].as_array() {
            Some(theirs) => {
                let (statistic, probability) = (number(&theirs[0]), number(&theirs[1]));
                assert!((test.statistic / statistic - 1.0).abs() < 1e-9, "{test:?} against {statistic}");
                assert!((test.probability - probability).abs() < 1e-9, "{test:?} against {probability}");
            }
            None => assert!(test.statistic.is_infinite() && test.probability == 0.0),
        }
    }
}

fn places(value: &Value) -> Vec<u64> {
    value.as_array().unwrap().iter().map(|place| place.as_u64().unwrap()).collect()
}

#[test]
fn adwin_detects_where_river_does() {
    for row in reference("adwin") {
        let mut adwin = Adwin::default();
        let values = uniforms(row["seed"].as_u64().unwrap(), 4000);
        let shift = number(&row["shift"]);
        let detected: Vec<u64> = (0_u64..)
            .zip(values)
            .filter_map(|(index, value)| adwin.add(value + if index >= 2000 { shift } else { 0.0 }).then_some(index))
            .collect();
        assert_eq!(detected, places(&row["detected"]), "{row}");
        assert!(
            (adwin.width() - number(&row["width"])).abs() < 0.5 && (adwin.mean() - number(&row["mean"])).abs() < 1e-9
        );
    }
}

#[test]
fn ddm_warns_and_detects_where_river_does() {
    for row in reference("ddm") {
        let mut ddm = Ddm::default();
        let (before, after) = (number(&row["before"]), number(&row["after"]));
        let (mut warned, mut detected) = (Vec::new(), Vec::new());
        for (index, value) in (0_u64..).zip(uniforms(row["seed"].as_u64().unwrap(), 4000)) {
            match ddm.add(value < if index < 2000 { before } else { after }) {
                Level::Stable => {}
                Level::Warning => warned.push(index),
                Level::Drift => detected.push(index),
            }
        }
        assert_eq!((warned, detected), (places(&row["warned"]), places(&row["detected"])), "{row}");
    }
}

/// Sequential evidence about shares is never ahead of Fisher's exact test, and not hopelessly behind it.
#[test]
fn evidence_about_shares_is_in_step_with_fishers_exact_test() {
    for row in reference("fisher") {
        let counts = places(&row["counts"]);
        let split = counts[2] as f64 / (counts[0] + counts[2]) as f64;
        let metric = Metric { name: "errors".to_owned(), kind: Kind::Share, threshold: "+0".parse().unwrap() };
        let mut rollout = Rollout::new(Plan::new(vec![metric]), split).unwrap();
        let mut unit = 0;
        for (version, total, hits) in
            [(Version::Stable, counts[0], counts[1]), (Version::Candidate, counts[2], counts[3])]
        {
            for request in 0..total {
                unit += 1;
                rollout.observe(0, version, unit, f64::from(u8::from(request < hits)));
            }
        }
        let judged = rollout.judge();
        let (ours, fisher) = (judged.metrics[0].ln_worse, -number(&row["probability"]).ln());
        assert!(ours <= fisher + 0.5 && ours >= 0.5 * fisher - 2.5, "{counts:?}: {ours} against {fisher}");
    }
}

/// Rows of `width` numbers each, as in reference.py.
fn rows(row: &Value, width: usize) -> Vec<Vec<f64>> {
    let number = usize::try_from(row["number"].as_u64().unwrap()).unwrap();
    uniforms(row["seed"].as_u64().unwrap(), width * number).chunks(width).map(<[f64]>::to_vec).collect()
}

fn near(name: &str, ours: f64, theirs: &Value) {
    assert!((ours - number(theirs)).abs() < 1e-9, "{name}: {ours} against {theirs}");
}

#[test]
fn accuracy_precision_recall_and_f1_agree_with_scikit_learn() {
    for row in reference("classes") {
        let shares: Vec<f64> = row["shares"].as_array().unwrap().iter().map(number).collect();
        let edges: Vec<f64> = shares
            .iter()
            .scan(0.0, |sum, share| {
                *sum += share;
                Some(*sum)
            })
            .collect();
        let pick = |draw: f64| edges.iter().filter(|edge| **edge <= draw).count().min(shares.len() - 1);
        let mut classes = Classes::new(shares.len());
        for draws in rows(&row, 3) {
            let labelled = pick(draws[0]);
            classes.add(if draws[1] < 0.7 { labelled } else { pick(draws[2]) }, labelled);
        }
        near("accuracy", classes.accuracy().unwrap(), &row["accuracy"]);
        let (precision, recall, f1) = classes.macro_average().unwrap();
        let one = classes.one_against_rest(1);
        let of_one = (one.precision().unwrap_or(0.0), one.recall().unwrap_or(0.0), one.f1().unwrap_or(0.0));
        for (group, ours) in [("macro", [precision, recall, f1]), ("ofClass1", [of_one.0, of_one.1, of_one.2])] {
            for (place, ours) in ours.into_iter().enumerate() {
                near(group, ours, &row[group][place]);
            }
        }
    }
}

#[test]
fn calibration_and_errors_of_numbers_agree_with_scikit_learn() {
    for row in reference("calibration") {
        let mut calibration = Calibration::default();
        for draws in rows(&row, 2) {
            calibration.add(draws[0], draws[1] < draws[0].powf(number(&row["power"])));
        }
        near("brier", calibration.brier().unwrap(), &row["brier"]);
        near("expectedError", calibration.expected_error().unwrap(), &row["expectedError"]);
    }
    for row in reference("errors") {
        let mut errors = Errors::default();
        for draws in rows(&row, 2) {
            errors.add(10.0 * draws[0] + number(&row["scale"]) * (draws[1] - 0.4), 10.0 * draws[0]);
        }
        near("mean", errors.mean().unwrap(), &row["mean"]);
        near("meanAbsolute", errors.mean_absolute().unwrap(), &row["meanAbsolute"]);
        near("rootMeanSquare", errors.root_mean_square().unwrap(), &row["rootMeanSquare"]);
    }
}
