//! The quality of the policies in simulated time, beside round robin and beside an oracle. Prints tables and asserts
//! nothing; the promises are tested in `balancing/policy/tests.rs`. `cargo bench -p spillway --bench quality`.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::cast_precision_loss,
    clippy::print_stdout,
    missing_docs,
    reason = "a program that stops where something is not as it must be"
)]

mod support;

use support::simulation::{Fleet, PICKERS, run};

fn main() {
    // `cargo test` runs benches with this argument, to see that they build.
    let quick = std::env::args().any(|argument| argument == "--test");
    let (servers, requests) = if quick { (60, 2_000) } else { (1_000, 400_000) };
    for (title, gateways, load) in
        [("one gateway, 70 % load", 1, 0.7), ("one gateway, 90 % load", 1, 0.9), ("eight gateways, 70 % load", 8, 0.7)]
    {
        let fleet = Fleet { gateways, load, ..Fleet::mixed(servers, requests) };
        println!("\n{servers} servers of three speeds, {requests} requests with a heavy tail, {title}");
        println!(
            "{:14} {:>10} {:>10} {:>10} {:>14} {:>14}",
            "", "p50 ms", "p99 ms", "p99.9 ms", "p99 / oracle", "p99 / rr"
        );
        let all: Vec<_> = PICKERS.iter().map(|picker| (picker.name(), run(&fleet, *picker, |_, _, _| {}))).collect();
        let p99 = |place: usize| all[place].1.quantile(0.99);
        for (name, quality) in &all {
            let own = quality.quantile(0.99);
            println!(
                "{name:14} {:>10.1} {:>10.1} {:>10.1} {:>14.2} {:>14.2}",
                quality.quantile(0.5),
                own,
                quality.quantile(0.999),
                own / p99(all.len() - 1),
                own / p99(0)
            );
        }
    }
}
