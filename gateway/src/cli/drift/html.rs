//! The report as one page: no script, nothing fetched, light and dark by the reader's setting. Every name is escaped.

use std::fmt::Write;

use crate::quality::{Bar, FeatureReport, Figures, RouteReport, TargetReport};

/// Width of a plot.
const WIDTH: f64 = 560.0;
/// Height of a bar of the distributions, and from one pair of bars to the next.
const BAR: f64 = 7.0;
const PAIR: f64 = 20.0;
/// Height of the plot of a distance over time.
const COURSE: f64 = 110.0;
/// Most bars of a plot; of more, those with the largest shares.
const MOST_BARS: usize = 24;

const STYLE: &str = "
:root { color-scheme: light dark; --ink: #1c2128; --quiet: #57606a; --paper: #ffffff; --card: #f6f8fa; --line: #d0d7de;
  --before: #8c959f; --recent: #0969da; --bad: #cf222e; --good: #1a7f37; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6edf3; --quiet: #9198a1; --paper: #0d1117; --card: #161b22;
  --line: #3d444d; --before: #6e7681; --recent: #58a6ff; --bad: #ff7b72; --good: #3fb950; } }
body { margin: 0 auto; max-width: 76rem; padding: 2rem 1.25rem; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.6rem; margin: 0 0 .25rem; } h2 { font-size: 1.25rem; margin: 2.5rem 0 .5rem; }
h3 { font-size: 1rem; margin: 0; } p { margin: .25rem 0 .75rem; } .quiet { color: var(--quiet); }
table { border-collapse: collapse; width: 100%; font-size: .875rem; } .wide { overflow-x: auto; }
th, td { text-align: left; padding: .3rem .6rem; border-bottom: 1px solid var(--line); vertical-align: top; }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(30rem, 100%), 1fr)); gap: 1rem; margin-top: 1rem; }
section.card { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: 1rem; min-width: 0; }
.bad { color: var(--bad); font-weight: 600; } .good { color: var(--good); }
svg { display: block; width: 100%; height: auto; margin-top: .5rem; } svg text { fill: var(--ink); font: 11px system-ui, sans-serif; }
svg .quiet { fill: var(--quiet); } .before { fill: var(--before); } .recent { fill: var(--recent); }
.key { display: inline-block; width: .75rem; height: .75rem; border-radius: 2px; margin: 0 .35rem 0 .9rem; vertical-align: -1px; }
.key.before { background: var(--before); margin-left: 0; } .key.recent { background: var(--recent); }
.axis { stroke: var(--line); } .limit { stroke: var(--bad); stroke-dasharray: 5 4; } .course { stroke: var(--recent); stroke-width: 2; fill: none; }
.dot { fill: var(--recent); } figure { margin: .75rem 0 0; } figcaption { font-size: .8rem; color: var(--quiet); }
";

/// Text for HTML, control characters left out.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars().filter(|c| !c.is_control()) {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            c => out.push(c),
        }
    }
    out
}

/// Number in few digits.
fn number(value: f64) -> String {
    let magnitude = value.abs();
    if magnitude >= 1000.0 || (value.fract() == 0.0 && magnitude < 1e15) {
        format!("{value:.0}")
    } else if magnitude >= 1.0 {
        format!("{value:.2}")
    } else {
        format!("{value:.4}")
    }
}

fn maybe(value: Option<f64>) -> String {
    value.map_or_else(|| "–".to_owned(), |value| format!("{value:.3}"))
}

/// Time of the calendar in UTC.
#[allow(clippy::cast_possible_truncation, reason = "seconds of this millennium")]
fn time(unix: f64) -> String {
    let at = time::OffsetDateTime::from_unix_timestamp(unix as i64).unwrap_or(time::OffsetDateTime::UNIX_EPOCH);
    let (date, clock) = (at.date(), at.time());
    format!(
        "{:04}-{:02}-{:02} {:02}:{:02} UTC",
        date.year(),
        u8::from(date.month()),
        date.day(),
        clock.hour(),
        clock.minute()
    )
}

fn duration(seconds: f64) -> String {
    match seconds {
        s if s >= 86_400.0 => format!("{} d", number(s / 86_400.0)),
        s if s >= 3_600.0 => format!("{} h", number(s / 3_600.0)),
        s if s >= 60.0 => format!("{} min", number(s / 60.0)),
        s => format!("{} s", number(s)),
    }
}

/// Page of a report. Writing to a string does not fail.
pub(super) fn page(report: &RouteReport) -> String {
    let mut out = String::with_capacity(64 << 10);
    let route = escaped(&report.route);
    let reference = match report.reference.as_str() {
        "window" => format!("the {} before", duration(report.window_seconds.unwrap_or_default())),
        "file" => "a reference file".to_owned(),
        stable => format!("the same time at the stable target {}", escaped(stable)),
    };
    let drifted: usize = report.targets.iter().map(|t| t.features.iter().filter(|f| f.drifted).count()).sum();
    let verdict = match drifted {
        0 => "<span class=\"good\">No feature has drifted.</span>".to_owned(),
        1 => "<span class=\"bad\">One feature has drifted.</span>".to_owned(),
        n => format!("<span class=\"bad\">{n} features have drifted.</span>"),
    };
    let _ = write!(
        out,
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n<title>Drift of {route}</title>\n\
         <style>{STYLE}</style>\n</head>\n<body>\n<main>\n<h1>Drift of {route}</h1>\n\
         <p>{verdict} Judged on {at}.</p>\n\
         <p class=\"quiet\">Recent requests, of the last {recent} to {longest}, beside {reference}. {sample} of the requests \
         are looked at; both sides need {least} of them. {sampled} were looked at since the gateway began, {dropped} found no \
         room, {unreadable} could not be read.</p>\n\
         <p><span class=\"key before\"></span>reference<span class=\"key recent\"></span>recent</p>\n",
        at = time(report.at),
        recent = duration(report.recent_seconds),
        longest = duration(2.0 * report.recent_seconds),
        sample = format_args!("{}&nbsp;%", number(100.0 * report.sample)),
        least = report.least_rows,
        sampled = report.counts.sampled,
        dropped = report.counts.dropped,
        unreadable = report.counts.unreadable,
    );
    report.targets.iter().for_each(|one| target(&mut out, one));
    out.push_str("</main>\n</body>\n</html>\n");
    out
}

fn target(out: &mut String, target: &TargetReport) {
    let name = escaped(&target.target);
    let before = match target.reference_rows {
        Some(rows) => format!("{rows} of the reference"),
        None => "this is the stable target, which is compared with nothing".to_owned(),
    };
    let _ = write!(out, "<h2>{name}</h2>\n<p class=\"quiet\">{} recent requests; {before}.", target.rows);
    for (signal, count) in &target.signals {
        let _ = write!(out, " Conversations {}: {count}.", escaped(signal).replace('_', " "));
    }
    out.push_str("</p>\n");
    if target.features.is_empty() {
        out.push_str("<p>Nothing was looked at yet.</p>\n");
        return;
    }
    out.push_str(
        "<div class=\"wide\"><table>\n<thead><tr><th>feature</th><th>side</th><th>state</th><th>judged by</th>\
         <th class=\"n\">distance</th><th class=\"n\">limit</th><th class=\"n\">PSI</th><th class=\"n\">Jensen-Shannon</th>\
         <th class=\"n\">Kolmogorov-Smirnov</th><th class=\"n\">Wasserstein</th></tr></thead>\n<tbody>\n",
    );
    for one in &target.features {
        let _ = writeln!(
            out,
            "<tr><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td class=\"n\">{}</td><td class=\"n\">{:.3}</td>\
             <td class=\"n\">{}</td><td class=\"n\">{}</td><td class=\"n\">{}</td><td class=\"n\">{}</td></tr>",
            escaped(&one.feature.to_string()),
            escaped(&one.side),
            state(one),
            one.recipe.as_deref().map_or_else(|| "–".to_owned(), escaped),
            maybe(one.distance),
            one.limit,
            maybe(one.psi),
            maybe(one.jensen_shannon),
            maybe(one.kolmogorov_smirnov),
            maybe(one.wasserstein),
        );
    }
    out.push_str("</tbody></table></div>\n<div class=\"grid\">\n");
    target.features.iter().for_each(|one| feature(out, one));
    out.push_str("</div>\n");
}

fn state(one: &FeatureReport) -> &'static str {
    match (one.drifted, one.judged) {
        (true, _) => "<span class=\"bad\">drifted</span>",
        (false, true) => "<span class=\"good\">fine</span>",
        (false, false) => "<span class=\"quiet\">too few requests</span>",
    }
}

fn feature(out: &mut String, one: &FeatureReport) {
    let name = escaped(&one.feature.to_string());
    let _ = write!(out, "<section class=\"card\">\n<h3>{name}: {}</h3>\n", state(one));
    figures(out, one);
    if !one.bars.is_empty() {
        bars(out, &name, &one.bars);
    }
    if one.course.len() > 1 {
        course(out, &name, one);
    }
    out.push_str("</section>\n");
}

fn figures(out: &mut String, one: &FeatureReport) {
    let row = |out: &mut String, name: &str, figures: Option<&Figures>| {
        let Some(figures) = figures else { return };
        let value = |value: Option<f64>| value.map_or_else(|| "–".to_owned(), number);
        let [median, high] = [3, 5].map(|place| figures.quantiles.get(place).copied());
        let missing = figures.missing.map_or_else(|| "–".to_owned(), |missing| missing.to_string());
        let _ = writeln!(
            out,
            "<tr><td>{name}</td><td class=\"n\">{}</td><td class=\"n\">{missing}</td><td class=\"n\">{}</td>\
             <td class=\"n\">{}</td><td class=\"n\">{}</td><td class=\"n\">{}</td><td class=\"n\">{}</td></tr>",
            figures.count,
            value(figures.mean),
            value(figures.deviation),
            value(median),
            value(high),
            value(figures.spread),
        );
    };
    out.push_str(
        "<div class=\"wide\"><table>\n<thead><tr><th></th><th class=\"n\">values</th><th class=\"n\">missing</th>\
         <th class=\"n\">mean</th><th class=\"n\">deviation</th><th class=\"n\">median</th><th class=\"n\">p95</th>\
         <th class=\"n\">spread</th></tr></thead>\n<tbody>\n",
    );
    row(out, "reference", one.before.as_ref());
    row(out, "recent", one.recent.as_ref());
    out.push_str("</tbody></table></div>\n");
}

/// Distributions side by side.
fn bars(out: &mut String, name: &str, bars: &[Bar]) {
    let mut shown: Vec<&Bar> = bars.iter().collect();
    if shown.len() > MOST_BARS {
        shown.sort_by(|a, b| (b.before + b.recent).total_cmp(&(a.before + a.recent)));
        shown.truncate(MOST_BARS);
    }
    let most = shown.iter().map(|bar| bar.before.max(bar.recent)).fold(0.01, f64::max);
    let rows = f64::from(u32::try_from(shown.len()).unwrap_or(0));
    let (left, right) = (150.0, 45.0);
    let _ = writeln!(
        out,
        "<figure><svg viewBox=\"0 0 {WIDTH} {height}\" role=\"img\" aria-label=\"Shares of {name}, reference and recent\">",
        height = rows * PAIR + 4.0
    );
    for (n, bar) in shown.into_iter().enumerate() {
        let y = f64::from(u32::try_from(n).unwrap_or(0)) * PAIR + 3.0;
        let length = |share: f64| share / most * (WIDTH - left - right);
        let label: String = bar.name.chars().take(24).collect();
        let _ = writeln!(
            out,
            "<g><title>{full}: reference {before:.1} %, recent {recent:.1} %</title>\
             <text x=\"{at}\" y=\"{middle:.1}\" text-anchor=\"end\">{label}</text>\
             <rect class=\"before\" x=\"{left}\" y=\"{y:.1}\" width=\"{one:.1}\" height=\"{BAR}\"/>\
             <rect class=\"recent\" x=\"{left}\" y=\"{below:.1}\" width=\"{other:.1}\" height=\"{BAR}\"/>\
             <text class=\"quiet\" x=\"{end}\" y=\"{middle:.1}\" text-anchor=\"end\">{recent:.0} %</text></g>",
            full = escaped(&bar.name),
            label = escaped(&label),
            before = 100.0 * bar.before,
            recent = 100.0 * bar.recent,
            at = left - 8.0,
            middle = y + BAR + 3.0,
            one = length(bar.before),
            other = length(bar.recent),
            below = y + BAR + 1.0,
            end = WIDTH - 4.0,
        );
    }
    out.push_str("</svg><figcaption>Shares; the figure is that of the recent requests</figcaption></figure>\n");
}

/// Distance over time, with its limit.
fn course(out: &mut String, name: &str, one: &FeatureReport) {
    let (Some(first), Some(last)) = (one.course.first(), one.course.last()) else { return };
    let (left, bottom) = (40.0, 20.0);
    let top = one.course.iter().map(|point| f64::from(point.1)).fold(one.limit * 1.25, f64::max);
    let span = f64::from(last.0.saturating_sub(first.0).max(1));
    let x = |at: u32| left + f64::from(at.saturating_sub(first.0)) / span * (WIDTH - left - 10.0);
    let y = |distance: f64| 6.0 + (1.0 - distance / top) * (COURSE - bottom - 6.0);
    let points: Vec<String> =
        one.course.iter().map(|(at, distance)| format!("{:.1},{:.1}", x(*at), y((*distance).into()))).collect();
    let dots = one.course.iter().fold(String::new(), |mut dots, (at, distance)| {
        let (cx, cy) = (x(*at), y((*distance).into()));
        let _ = write!(
            dots,
            "<circle class=\"dot\" cx=\"{cx:.1}\" cy=\"{cy:.1}\" r=\"2.5\"><title>{}: {distance:.3}</title></circle>",
            time((*at).into())
        );
        dots
    });
    let _ = write!(
        out,
        "<figure><svg viewBox=\"0 0 {WIDTH} {COURSE}\" role=\"img\" aria-label=\"Distance of {name} over time\">\n\
         <line class=\"axis\" x1=\"{left}\" y1=\"{zero:.1}\" x2=\"{WIDTH}\" y2=\"{zero:.1}\"/>\
         <line class=\"limit\" x1=\"{left}\" y1=\"{limit:.1}\" x2=\"{WIDTH}\" y2=\"{limit:.1}\"/>\
         <text class=\"quiet\" x=\"{label}\" y=\"{limit_text:.1}\" text-anchor=\"end\">{value}</text>\
         <text class=\"quiet\" x=\"{label}\" y=\"{zero:.1}\" text-anchor=\"end\">0</text>\
         <polyline class=\"course\" points=\"{points}\"/>{dots}\
         <text class=\"quiet\" x=\"{left}\" y=\"{foot}\">{from}</text>\
         <text class=\"quiet\" x=\"{end}\" y=\"{foot}\" text-anchor=\"end\">{to}</text>\n</svg>\
         <figcaption>Distance from the reference over time; the dashed line is the limit</figcaption></figure>\n",
        zero = y(0.0),
        limit = y(one.limit),
        limit_text = y(one.limit) + 4.0,
        label = left - 6.0,
        value = number(one.limit),
        points = points.join(" "),
        foot = COURSE - 4.0,
        end = WIDTH - 10.0,
        from = time(first.0.into()),
        to = time(last.0.into()),
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quality::Feature;

    fn report(name: &str) -> RouteReport {
        let bar = |n: f64| Bar { name: format!("{name}{n}"), before: 0.1, recent: n / 10.0 };
        let figures = Figures {
            count: 500,
            mean: Some(12.5),
            quantiles: vec![1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0],
            ..Figures::default()
        };
        let feature = FeatureReport {
            feature: Feature::Output(name.into()),
            side: "outputs".into(),
            recipe: Some("kolmogorovSmirnov".into()),
            distance: Some(0.4),
            limit: 0.2,
            judged: true,
            drifted: true,
            psi: Some(0.5),
            jensen_shannon: None,
            kolmogorov_smirnov: Some(0.4),
            wasserstein: None,
            before: Some(figures.clone()),
            recent: Some(figures),
            bars: (0..40).map(|n| bar(f64::from(n) / 40.0)).collect(),
            course: (0..10).map(|n| (1_800_000_000 + n * 600, 0.05 * n as f32)).collect(),
        };
        RouteReport {
            route: name.into(),
            at: 1.8e9,
            sample: 0.1,
            reference: "window".into(),
            window_seconds: Some(604_800.0),
            recent_seconds: 21_600.0,
            least_rows: 300,
            bytes: 1,
            counts: crate::quality::Counts::default(),
            targets: vec![TargetReport {
                target: name.into(),
                rows: 500,
                since: None,
                reference_rows: Some(900),
                signals: [("rephrased".to_owned(), 3)].into(),
                features: vec![feature],
            }],
        }
    }

    #[test]
    fn a_page_has_plots_and_escapes_every_name_and_fetches_nothing() {
        let page = page(&report("<script>alert('&\")</script>\u{7}"));
        assert!(!page.contains("<script") && !page.contains("alert('") && !page.contains('\u{7}'));
        for needed in
            ["<polyline", "class=\"limit\"", "prefers-color-scheme: dark", "class=\"before\"", "drifted", "7 d"]
        {
            assert!(page.contains(needed), "{needed}");
        }
        for foreign in ["http:", "https:", "src=", "href=", "url(", "@import"] {
            assert!(!page.contains(foreign), "{foreign}");
        }
        assert_eq!(page.matches("<svg").count(), page.matches("</svg>").count());
        assert_eq!(page.matches("<g>").count(), MOST_BARS);
        assert!(page.contains("2027-01-15"));
    }
}
