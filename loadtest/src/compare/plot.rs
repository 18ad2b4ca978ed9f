//! The plots beside the table: grouped bars as SVG, without a background, in colours that can be read on light and dark.

use std::path::Path;

use plotters::coord::Shift;
use plotters::prelude::*;

use super::report::{Group, Measured, Report};
use crate::spread;

const SIZE: (u32, u32) = (960, 360);
/// Grey with a contrast of some 4.5 on white and on black.
const TEXT: RGBColor = RGBColor(118, 118, 118);
/// Share of a group's width that its bars have.
const FILLED: f64 = 0.84;
/// Peers of the plots with their colours.
const PEERS: [(&str, RGBColor); 9] = [
    ("nginx", RGBColor(140, 140, 140)),
    ("HAProxy", RGBColor(76, 142, 217)),
    ("Envoy", RGBColor(184, 108, 204)),
    ("Pingora", RGBColor(214, 140, 46)),
    ("Spillway", RGBColor(38, 160, 96)),
    ("vllm-router", RGBColor(150, 160, 40)),
    ("sglang-router", RGBColor(60, 165, 175)),
    ("LiteLLM", RGBColor(217, 88, 100)),
    ("Portkey", RGBColor(130, 115, 224)),
];

/// Figure of a run.
type Figure = fn(&Measured) -> Option<f64>;

/// A plot.
struct Plot {
    file: &'static str,
    caption: &'static str,
    workloads: &'static [&'static str],
    figure: Figure,
    /// Divided by nginx's, round by round.
    beside: bool,
    /// Axis by powers of ten.
    log: bool,
}

const PLOTS: [Plot; 4] = [
    Plot {
        file: "rate.svg",
        caption: "requests a second beside nginx (more is better)",
        workloads: &["bare-1", "bare-32", "bare-256", "bare-2000", "full-1", "full-32", "full-256", "full-2000"],
        figure: |run| Some(run.rate),
        beside: true,
        log: false,
    },
    Plot {
        file: "cpu.svg",
        caption: "CPU of a request, of a megabyte for down and up, beside nginx (less is better)",
        workloads: &["bare-1", "bare-32", "bare-256", "full-32", "tls", "http2", "down", "up"],
        figure: |run| run.cpu,
        beside: true,
        log: false,
    },
    Plot {
        file: "latency.svg",
        caption: "p99 at a steady rate, milliseconds (less is better)",
        workloads: &["open-25", "open-50", "open-75"],
        figure: |run| run.latency.map(|latency| latency[1]),
        beside: false,
        log: true,
    },
    Plot {
        file: "chat.svg",
        caption: "CPU of a chat and of an event of a stream, microseconds (less is better)",
        workloads: &["chat", "sse"],
        figure: |run| run.cpu,
        beside: false,
        log: true,
    },
];

/// Bars of one workload: place of the peer in `PEERS`, and the value.
type Bars = Vec<(usize, f64)>;

/// Draws every plot into the folder.
pub(super) fn draw(report: &Report, folder: &Path) {
    std::fs::create_dir_all(folder).unwrap();
    for plot in &PLOTS {
        std::fs::write(folder.join(plot.file), plot.svg(&report.groups)).unwrap();
    }
}

impl Plot {
    fn svg(&self, groups: &[Group]) -> String {
        let bars: Vec<Bars> = self.workloads.iter().map(|name| self.bars(groups, name)).collect();
        let mut text = String::new();
        let root = SVGBackend::with_string(&mut text, SIZE).into_drawing_area();
        self.paint(&root, &bars);
        root.present().unwrap();
        drop(root);
        text
    }

    fn bars(&self, groups: &[Group], workload: &str) -> Bars {
        let Some(group) = groups.iter().find(|group| group.workload.name == workload) else { return Bars::new() };
        let base = group.rows.first().map(|row| row.all(self.figure)).unwrap_or_default();
        let value = |place: usize| {
            let row = group.rows.iter().find(|row| row.name == PEERS[place].0)?;
            let own = row.all(self.figure);
            let values: Vec<f64> =
                if self.beside { own.iter().zip(&base).map(|(own, base)| own / base).collect() } else { own };
            (!values.is_empty()).then(|| (place, spread(&values).0))
        };
        (0..PEERS.len()).filter_map(value).collect()
    }

    /// Height of a value on the axis.
    fn height(&self, value: f64) -> f64 {
        if self.log { value.max(1e-3).log10() } else { value }
    }

    fn paint(&self, root: &DrawingArea<SVGBackend<'_>, Shift>, bars: &[Bars]) {
        let heights: Vec<f64> = bars.iter().flatten().map(|(_, value)| self.height(*value)).collect();
        let most = heights.iter().copied().fold(if self.log { 0.0 } else { 1.0 }, f64::max);
        let floor = if self.log { heights.iter().copied().fold(0.0, f64::min).floor() } else { 0.0 };
        let top = if self.log { most.ceil() } else { most * 1.05 };
        let mut chart = ChartBuilder::on(root)
            .caption(self.caption, ("sans-serif", 19).into_font().color(&TEXT))
            .margin(8)
            .margin_right(130)
            .x_label_area_size(28)
            .y_label_area_size(56)
            .build_cartesian_2d(0.0..self.workloads.len() as f64, floor..top)
            .unwrap();
        chart
            .configure_mesh()
            .disable_x_mesh()
            .disable_x_axis()
            .light_line_style(TRANSPARENT)
            .bold_line_style(TEXT.mix(0.3))
            .axis_style(TEXT)
            .y_labels(if self.log { (top - floor) as usize + 1 } else { 6 })
            .y_label_formatter(&|y| if self.log { format!("{}", 10_f64.powf(*y)) } else { format!("{y:.1}") })
            .label_style(("sans-serif", 15).into_font().color(&TEXT))
            .draw()
            .unwrap();
        let placed = bars.iter().enumerate().flat_map(|(group, bars)| {
            let width = FILLED / bars.len().max(1) as f64;
            let left = group as f64 + (1.0 - FILLED) / 2.0;
            bars.iter().enumerate().map(move |(n, (place, value))| (left + n as f64 * width, width, *place, *value))
        });
        chart
            .draw_series(placed.map(|(left, width, place, value)| {
                let corners = [(left, floor), (left + width * 0.9, self.height(value))];
                Rectangle::new(corners, PEERS[place].1.filled())
            }))
            .unwrap();
        self.label(root, bars);
    }

    /// Names of the workloads below, and of the peers on the right.
    fn label(&self, root: &DrawingArea<SVGBackend<'_>, Shift>, bars: &[Bars]) {
        let style = TextStyle::from(("sans-serif", 15).into_font()).color(&TEXT);
        let (left, right) = (8 + 56, SIZE.0 as i32 - 130);
        for (n, name) in self.workloads.iter().enumerate() {
            let middle = left + (right - left) * (2 * n as i32 + 1) / (2 * self.workloads.len() as i32);
            let x = middle - name.len() as i32 * 7 / 2;
            root.draw(&Text::new(*name, (x, SIZE.1 as i32 - 28), style.clone())).unwrap();
        }
        let shown = (0..PEERS.len()).filter(|place| bars.iter().flatten().any(|(other, _)| other == place));
        for (line, place) in shown.enumerate() {
            let (name, colour) = PEERS[place];
            let (x, y) = (right + 12, 40 + line as i32 * 20);
            root.draw(&Rectangle::new([(x, y), (x + 12, y + 12)], colour.filled())).unwrap();
            root.draw(&Text::new(name, (x + 18, y), style.clone())).unwrap();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compare::report::Row;
    use crate::compare::workload;

    #[test]
    fn a_plot_has_a_bar_for_each_peer_and_no_background() {
        let run = |rate| Measured { rate, ..Measured::default() };
        let row = |name, rate| Row { name, difference: None, failure: None, runs: vec![run(rate)] };
        let workload = workload::ALL.iter().find(|workload| workload.name == "bare-32").unwrap();
        let groups = [Group {
            workload,
            others: 0.0,
            rows: vec![row("nginx", 2.0), row("Spillway", 1.0), row("origin alone", 9.0)],
        }];
        assert_eq!(PLOTS[0].bars(&groups, "bare-32"), [(0, 1.0), (4, 0.5)]);
        let svg = PLOTS[0].svg(&groups);
        assert_eq!(svg, PLOTS[0].svg(&groups), "the same each time");
        assert!(svg.contains("Spillway") && !svg.contains("Envoy"), "{svg}");
        assert!(!svg.contains("#FFFFFF"), "{svg}");
    }
}
