//! Simulates rollouts and prints the tables of docs/rollout-statistics.md. Arguments: number of rollouts for false alarms, and
//! for faults (20000 and 2000 when left out).
#![allow(clippy::print_stdout, clippy::unwrap_used, clippy::indexing_slicing)]

#[path = "../tests/simulation/mod.rs"]
mod simulation;

use simulation::{Callers, at_share, drift_at_its_limit, equal, faults, requests};

fn main() {
    let mut arguments = std::env::args().skip(1).map(|argument| argument.parse::<u64>().unwrap());
    let (alarms, stops) = (arguments.next().unwrap_or(20_000), arguments.next().unwrap_or(2_000));
    let most = arguments.next().unwrap_or(1000);
    println!("| callers | values | candidate's share | thresholds | rollouts | false alarms | allowed |");
    println!("|---|---|---|---|---|---|---|");
    for (callers, heavy, split, edge) in [
        (Callers::Repeating(60), true, 0.5, true),
        (Callers::Repeating(300), true, 0.1, true),
        (Callers::Repeating(300), true, 0.5, true),
        (Callers::Independent, true, 0.5, true),
        (Callers::Independent, true, 0.1, true),
        (Callers::Independent, false, 0.5, true),
        (Callers::Independent, false, 0.5, false),
    ] {
        if alarms == 0 {
            break;
        }
        let world = equal(edge, callers, split, heavy);
        let wrong = world.rollouts(alarms, most).iter().flatten().count() as f64 / alarms as f64;
        let error = (world.false_alarm * (1.0 - world.false_alarm) / alarms as f64).sqrt();
        let who = match callers {
            Callers::Independent => "independent".to_owned(),
            Callers::Repeating(number) => format!("{number}, repeating"),
        };
        println!(
            "| {who} | {} | {split} | {} | {alarms} | {:.2} % | {:.2} % |",
            if heavy { "heavy tails" } else { "usual" },
            if edge { "at the edge" } else { "usual" },
            100.0 * wrong,
            100.0 * (world.false_alarm + 3.0 * error),
        );
    }
    for (callers, split) in [(Callers::Repeating(60), 0.5), (Callers::Independent, 0.5), (Callers::Independent, 0.1)] {
        if alarms == 0 {
            break;
        }
        let world = drift_at_its_limit(callers, split);
        let wrong = world.rollouts(alarms, most).iter().flatten().count() as f64 / alarms as f64;
        println!("| {callers:?} | lengths | {split} | a distance at its limit | {alarms} | {:.2} % | |", 100.0 * wrong);
    }
    println!();
    println!("| fault | candidate's share | fixed sample | median | 80 % stopped by | ratio |");
    println!("|---|---|---|---|---|---|");
    for split in [0.5, 0.1] {
        for fault in faults(split) {
            let ends = requests(&fault.world.rollouts(stops, (fault.fixed * 8.0) as u64 + 500));
            let (median, most) = (at_share(&ends, 0.5), at_share(&ends, 0.8));
            println!(
                "| {} | {split} | {:.0} | {median} | {most} | {:.1} |",
                fault.says,
                fault.fixed.ceil(),
                most / fault.fixed.ceil()
            );
        }
    }
}
