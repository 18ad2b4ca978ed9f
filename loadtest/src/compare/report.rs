//! The table, as Markdown.

use std::fmt::Write as _;

use super::machine::Others;
use super::workload::{Load, Workload};
use crate::spread;

/// Lines of the page between which the table stands.
const BEGIN: &str = "<!-- The table of make bench: begin -->";
const END: &str = "<!-- The table of make bench: end -->";

/// Run of a peer.
#[derive(Clone, Debug, Default)]
pub(super) struct Measured {
    /// Requests, events or megabytes a second.
    pub(super) rate: f64,
    /// Microseconds of CPU, user and kernel, for each; none for the origin alone.
    pub(super) cpu: Option<f64>,
    /// p50, p99 and p99.9 in milliseconds.
    pub(super) latency: Option<[f64; 3]>,
    /// Most resident memory since the start, MiB.
    pub(super) memory: Option<f64>,
    /// KiB for each idle connection.
    pub(super) held: Option<f64>,
    /// Requests without a right answer.
    pub(super) errors: u64,
}

/// Runs of one peer under one workload.
pub(super) struct Row {
    pub(super) name: &'static str,
    /// Difference of the peer's work from that of the others.
    pub(super) difference: Option<&'static str>,
    /// Reason for which the peer was not measured.
    pub(super) failure: Option<&'static str>,
    /// Ratios, one for each round.
    pub(super) runs: Vec<Measured>,
}

impl Row {
    pub(super) fn fail(&mut self, reason: &'static str) {
        eprintln!("  {}: {reason}", self.name);
        self.failure = Some(reason);
    }

    /// A figure of every round that has it.
    pub(super) fn all(&self, figure: impl Fn(&Measured) -> Option<f64>) -> Vec<f64> {
        self.runs.iter().filter_map(figure).collect()
    }
}

/// Rows of one workload; the first one is what the others are compared with.
pub(super) struct Group {
    pub(super) workload: &'static Workload,
    /// Share of all processor time that other programs had meanwhile, 0 to 1.
    pub(super) others: f64,
    pub(super) rows: Vec<Row>,
}

/// A peer, installed or not.
pub(super) struct Presence {
    pub(super) name: &'static str,
    pub(super) version: Option<String>,
    pub(super) source: &'static str,
}

/// Outcome of a comparison.
pub(super) struct Report {
    pub(super) date: String,
    pub(super) machine: String,
    pub(super) others: Others,
    pub(super) peers: Vec<Presence>,
    pub(super) workers: usize,
    pub(super) rounds: usize,
    pub(super) seconds: u32,
    pub(super) groups: Vec<Group>,
}

impl Report {
    /// Circumstances and table.
    pub(super) fn markdown(&self) -> String {
        let mut text = self.circumstances();
        let mut rows = vec![HEADER.map(str::to_owned).to_vec()];
        for group in &self.groups {
            rows.extend(group.cells());
        }
        text += "\n";
        text += &table(&rows);
        text
    }

    fn circumstances(&self) -> String {
        let Others { programs, stolen, load } = &self.others;
        let mut text = format!(
            "{}, {}. {} workers for each peer, {} rounds of {} s, each peer in turn in every round.\n\
             Client and origin are on the same processors. During the run, other programs used {:.0} % of all processor time and the \
             hypervisor\nkept {:.1} %; load average {:.1} at the end (one minute) and {:.1} (fifteen), with our own part in it.\n\n",
            self.date,
            self.machine,
            self.workers,
            self.rounds,
            self.seconds,
            programs * 100.0,
            stolen * 100.0,
            load.0,
            load.1
        );
        for peer in &self.peers {
            let version = peer.version.as_deref().unwrap_or("not installed, left out");
            let _ = writeln!(text, "- {} {version} ({})", peer.name, peer.source);
        }
        let mut said = std::collections::BTreeSet::new();
        for (group, row) in self.groups.iter().flat_map(|group| group.rows.iter().map(move |row| (group, row))) {
            let Some(difference) = row.difference else { continue };
            if said.insert((row.name, difference)) {
                let work = group.workload.name.split('-').next().unwrap_or_default();
                let _ = writeln!(text, "- {work}, {}: {difference}", row.name);
            }
        }
        text
    }
}

const HEADER: [&str; 10] = [
    "work",
    "peer",
    "a second (least to most)",
    "beside nginx",
    "CPU, us each",
    "beside nginx",
    "p50, ms",
    "p99",
    "p99.9",
    "memory, MiB",
];

impl Group {
    fn cells(&self) -> Vec<Vec<String>> {
        let base = self.rows.first();
        let mut cells: Vec<_> = self.rows.iter().map(|row| row_cells(row, base, self.workload.load)).collect();
        if let Some(first) = cells.first_mut() {
            let unit = unit(self.workload.load);
            first[0] = format!("{} ({unit}; others {:.0} %)", self.workload.title, self.others * 100.0);
        }
        cells
    }
}

fn unit(load: Load) -> &'static str {
    match load {
        Load::Closed { .. } | Load::Open { .. } | Load::Http2 { .. } => "requests",
        Load::Events { .. } => "events",
        Load::Down { .. } | Load::Up { .. } => "MB",
        Load::Idle { .. } => "memory",
    }
}

fn row_cells(row: &Row, base: Option<&Row>, load: Load) -> Vec<String> {
    let mut cells = vec![String::new(); HEADER.len()];
    let errors: u64 = row.runs.iter().map(|run| run.errors).sum();
    cells[1] = row.name.to_owned();
    if let Some(failure) = row.failure {
        cells[2] = failure.to_owned();
        return cells;
    }
    if errors > 0 {
        let _ = write!(cells[1], ", {} errors", grouped(errors as f64));
    }
    let beside = |figure: fn(&Measured) -> Option<f64>| {
        let base = base.map(|base| base.all(figure)).unwrap_or_default();
        let ratios: Vec<f64> = row.all(figure).iter().zip(&base).map(|(own, base)| own / base).collect();
        median(&ratios, |value| format!("{}x", ratio(value)))
    };
    let memory = median_of(row, |run| run.memory, |mib| format!("{mib:.0}"));
    if matches!(load, Load::Idle { .. }) {
        let each = median_of(row, |run| run.held, |kib| format!("{kib:.1} KiB a connection"));
        cells[9] = format!("{memory}; {each}, {}", beside(|run| run.held));
        return cells;
    }
    cells[2] = with_spread(&row.all(|run| Some(run.rate)));
    cells[3] = with_range(&row.all(|run| Some(run.rate)), base.map(|base| base.all(|run| Some(run.rate))));
    cells[4] = median_of(row, |run| run.cpu, |us| if us < 100.0 { format!("{us:.1}") } else { grouped(us) });
    cells[5] = beside(|run| run.cpu);
    for n in 0..3 {
        cells[6 + n] = median_of(row, |run| run.latency.map(|latency| latency[n]), |ms| format!("{ms:.2}"));
    }
    cells[9] = memory;
    cells
}

fn median_of(row: &Row, figure: impl Fn(&Measured) -> Option<f64>, print: impl Fn(f64) -> String) -> String {
    median(&row.all(figure), print)
}

/// Median, printed; nothing where there is none.
fn median(values: &[f64], print: impl Fn(f64) -> String) -> String {
    if values.is_empty() { String::new() } else { print(spread(values).0) }
}

fn with_spread(values: &[f64]) -> String {
    if values.is_empty() {
        return String::new();
    }
    let (median, least, most) = spread(values);
    format!("{} ({} to {})", grouped(median), grouped(least), grouped(most))
}

/// Median and spread of the ratios of the rounds.
fn with_range(values: &[f64], base: Option<Vec<f64>>) -> String {
    let ratios: Vec<f64> = values.iter().zip(base.unwrap_or_default()).map(|(own, base)| own / base).collect();
    if ratios.is_empty() {
        return String::new();
    }
    let (median, least, most) = spread(&ratios);
    format!("{}x ({} to {})", ratio(median), ratio(least), ratio(most))
}

/// Two digits behind the point, three of a small ratio, none of a large one.
fn ratio(value: f64) -> String {
    match value {
        ..0.1 => format!("{value:.3}"),
        ..20.0 => format!("{value:.2}"),
        _ => format!("{value:.0}"),
    }
}

/// A whole number with commas between thousands.
fn grouped(value: f64) -> String {
    let digits = format!("{value:.0}");
    let mut text = String::new();
    for (n, digit) in digits.chars().enumerate() {
        if n > 0 && (digits.len() - n).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Markdown table, its columns padded so that it can be read as it is; the first row is the header.
fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.first().map_or(0, Vec::len);
    let widths: Vec<usize> =
        (0..columns).map(|n| rows.iter().map(|row| row[n].chars().count()).max().unwrap_or(0).max(3)).collect();
    let mut text = String::new();
    for (n, row) in rows.iter().enumerate() {
        let cells: Vec<_> = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        let _ = writeln!(text, "| {} |", cells.join(" | "));
        if n == 0 {
            let rule: Vec<_> = widths.iter().map(|width| "-".repeat(*width)).collect();
            let _ = writeln!(text, "| {} |", rule.join(" | "));
        }
    }
    text
}

/// The page with its table replaced by `text`.
pub(super) fn replaced(page: &str, text: &str) -> String {
    let (before, rest) = page.split_once(BEGIN).expect("the page has the line at which the table begins");
    let (_, after) = rest.split_once(END).expect("the page has the line at which the table ends");
    format!("{before}{BEGIN}\n\n{text}\n{END}{after}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compare::workload;

    fn row(name: &'static str, rates: &[f64], cpu: f64) -> Row {
        let run = |rate: &f64| Measured { rate: *rate, cpu: Some(cpu), memory: Some(10.4), ..Measured::default() };
        Row { name, difference: None, failure: None, runs: rates.iter().map(run).collect() }
    }

    fn named(name: &str) -> &'static Workload {
        workload::ALL.iter().find(|workload| workload.name == name).unwrap()
    }

    #[test]
    fn ratios_are_those_of_the_same_round() {
        // The machine is twice as fast in the second round: ratios of medians would say something else.
        let mut slow = row("b", &[500.0, 1000.0, 400.0], 30.0);
        slow.runs[1].errors = 1200;
        let group = Group {
            workload: named("bare-32"),
            others: 0.25,
            rows: vec![row("nginx", &[1000.0, 2000.0, 1000.0], 20.0), slow],
        };
        let cells = group.cells();
        assert_eq!(
            cells[0][..4],
            ["bare, 32 connections (requests; others 25 %)", "nginx", "1,000 (1,000 to 2,000)", "1.00x (1.00 to 1.00)"]
        );
        assert_eq!(cells[1][..4], ["", "b, 1,200 errors", "500 (400 to 1,000)", "0.50x (0.40 to 0.50)"]);
        assert_eq!(cells[1][4..], ["30.0", "1.50x", "", "", "", "10"]);
    }

    #[test]
    fn ratios_have_the_digits_that_tell_them_apart() {
        assert_eq!([0.0041, 0.854, 3.4, 161.7].map(ratio), ["0.004", "0.85", "3.40", "162"]);
    }

    #[test]
    fn a_peer_that_failed_has_its_reason_and_no_figures() {
        let mut failed = row("b", &[], 0.0);
        failed.failure = Some("gave no right answer");
        let cells = row_cells(&failed, None, Load::Closed { connections: 1 });
        assert_eq!(cells[1..4], ["b", "gave no right answer", ""]);
    }

    #[test]
    fn idle_connections_have_memory_alone() {
        let mut one = row("b", &[5000.0], 1.0);
        one.runs[0].held = Some(9.6);
        let mut base = row("nginx", &[5000.0], 1.0);
        base.runs[0].held = Some(1.2);
        let cells = row_cells(&one, Some(&base), Load::Idle { connections: 5000 });
        assert_eq!(cells[2], "");
        assert_eq!(cells[9], "10; 9.6 KiB a connection, 8.00x");
    }

    #[test]
    fn columns_are_padded_and_the_page_keeps_what_is_around() {
        let rows = [["a", "b"], ["wide cell", "1"]].map(|row| row.map(str::to_owned).to_vec());
        let text = table(&rows);
        assert_eq!(text, "| a         | b   |\n| --------- | --- |\n| wide cell | 1   |\n");
        let page = replaced(&format!("before\n{BEGIN}\nold\n{END}\nafter\n"), &text);
        assert_eq!(page, format!("before\n{BEGIN}\n\n{text}\n{END}\nafter\n"));
    }
}
