//! The report as one page: no script, nothing fetched, light and dark by the reader's setting. Every name is escaped.

use std::fmt::Write;

use crate::quality::{Bar, FeatureReport, Figures, ProbeReport, ProbesReport, RouteReport, SeenValue, TargetReport};

/// Width and height of the plot of a value over time: small, so that its letters can be read on a phone, too.
const WIDTH: f64 = 380.0;
const COURSE: f64 = 100.0;
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
th, td { text-align: left; padding: .3rem .6rem; border-bottom: 1px solid var(--line); vertical-align: top; white-space: nowrap; }
td.text { white-space: normal; min-width: 14rem; overflow-wrap: anywhere; }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(30rem, 100%), 1fr)); gap: 1rem; margin-top: 1rem; }
section.card { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: 1rem; min-width: 0; }
.bad { color: var(--bad); font-weight: 600; } .good { color: var(--good); }
.row { display: grid; grid-template-columns: minmax(4.5rem, 8.5rem) 1fr 2.75rem; gap: .5rem; align-items: center; font-size: .75rem; line-height: 1.25; padding: 1px 0; }
.row > :first-child { text-align: right; overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
.row > :last-child { text-align: right; font-variant-numeric: tabular-nums; }
.row i { display: block; height: 7px; margin: 1px 0; border-radius: 1px; } i.before { background: var(--before); } i.recent { background: var(--recent); }
svg { display: block; width: 100%; height: auto; margin-top: .5rem; } svg text { fill: var(--ink); font: 11px system-ui, sans-serif; }
svg .quiet { fill: var(--quiet); }
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
    let failing = report.probes.iter().flat_map(|one| &one.probes).filter(|one| one.passing == Some(false)).count();
    let failures = match (report.probes.is_empty(), failing) {
        (true, _) => "",
        (false, 0) => " <span class=\"good\">No probe fails.</span>",
        (false, 1) => " <span class=\"bad\">One probe fails.</span>",
        (false, _) => " <span class=\"bad\">Several probes fail.</span>",
    };
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
         <p>{verdict}{failures} Judged on {at}.</p>\n\
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
    report.probes.iter().for_each(|one| probes(&mut out, one));
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
        "<div class=\"wide\"><table>\n<thead><tr><th>feature</th><th>state</th><th class=\"n\">distance</th>\
         <th class=\"n\">limit</th><th>side</th><th>judged by</th><th class=\"n\">PSI</th><th class=\"n\">Jensen-Shannon</th>\
         <th class=\"n\">Kolmogorov-Smirnov</th><th class=\"n\">Wasserstein</th></tr></thead>\n<tbody>\n",
    );
    for one in &target.features {
        let _ = writeln!(
            out,
            "<tr><td>{}</td><td>{}</td><td class=\"n\">{}</td><td class=\"n\">{:.3}</td><td>{}</td><td>{}</td>\
             <td class=\"n\">{}</td><td class=\"n\">{}</td><td class=\"n\">{}</td><td class=\"n\">{}</td></tr>",
            escaped(&one.feature.to_string()),
            state(one),
            maybe(one.distance),
            one.limit,
            escaped(&one.side),
            one.recipe.as_deref().map_or_else(|| "–".to_owned(), recipe),
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

/// Probes of a target: what it says about itself, and a row for each question.
fn probes(out: &mut String, target: &ProbesReport) {
    let _ = write!(out, "<h2>Probes of {}</h2>\n<p class=\"quiet\">", escaped(&target.target));
    let counts = target.results.iter().map(|(result, count)| format!("{} {count}", result.replace('_', " ")));
    let counts = counts.collect::<Vec<String>>().join(", ");
    let _ = write!(out, "Since the gateway began: {}. ", if counts.is_empty() { "none" } else { &counts });
    let _ = write!(out, "{} tokens.", target.tokens);
    if let Some(next) = target.next {
        let _ = write!(out, " The next round begins on {}.", time(next));
    }
    out.push_str("</p>\n");
    for provider in &target.providers {
        let asked = if provider.asked.is_empty() { "Without a model" } else { &provider.asked };
        let _ = write!(out, "<p>{}: ", escaped(asked));
        let parts = [seen("model", &provider.models), seen("fingerprint", &provider.fingerprints)].concat();
        let _ = writeln!(out, "{}.</p>", parts.join("; "));
    }
    out.push_str(
        "<div class=\"wide\"><table>\n<thead><tr><th>probe</th><th>state</th><th>judged by</th>\
         <th class=\"n\">similarity</th><th class=\"n\">mean</th><th class=\"n\">limit</th><th class=\"n\">seconds</th>\
         <th>last</th><th>reason</th></tr></thead>\n<tbody>\n",
    );
    for one in &target.probes {
        let _ = writeln!(
            out,
            "<tr><td>{}</td><td>{}</td><td>{}</td><td class=\"n\">{}</td><td class=\"n\">{}</td><td class=\"n\">{}</td>\
             <td class=\"n\">{}</td><td>{}</td><td class=\"text\">{}</td></tr>",
            escaped(&one.probe),
            passing(one),
            escaped(&one.judged_by),
            maybe(one.similarity),
            maybe(one.mean),
            maybe(one.limit),
            maybe(one.seconds),
            one.at.map_or_else(|| "–".to_owned(), time),
            one.reason.as_deref().map(escaped).unwrap_or_default(),
        );
    }
    out.push_str("</tbody></table></div>\n<div class=\"grid\">\n");
    for one in target.probes.iter().filter(|one| one.course.len() > 1) {
        let name = escaped(&one.probe);
        let _ = write!(out, "<section class=\"card\">\n<h3>{name}: {}</h3>\n", passing(one));
        let limit = one.limit.unwrap_or_default();
        course(out, &format!("Similarity of {name}"), "Similarity to what is expected", limit, &one.course);
        out.push_str("</section>\n");
    }
    out.push_str("</div>\n");
}

/// Values of a field of a provider, the newest first.
fn seen(what: &str, values: &[SeenValue]) -> Vec<String> {
    let told = |(n, value): (usize, &SeenValue)| {
        let (name, first) = (escaped(&value.value), time(value.first));
        if n == 0 {
            format!("{what} <b>{name}</b> since {first}")
        } else {
            format!("<span class=\"quiet\">before {name}</span>")
        }
    };
    values.iter().rev().enumerate().map(told).collect()
}

fn passing(one: &ProbeReport) -> &'static str {
    match one.passing {
        Some(true) => "<span class=\"good\">passes</span>",
        Some(false) => "<span class=\"bad\">fails</span>",
        None => "<span class=\"quiet\">no answer yet</span>",
    }
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
        course(out, &format!("Distance of {name}"), "Distance from the reference", one.limit, &one.course);
    }
    out.push_str("</section>\n");
}

/// Name of a recipe as people write it.
fn recipe(name: &str) -> String {
    match name {
        "kolmogorovSmirnov" => "Kolmogorov-Smirnov".to_owned(),
        "jensenShannon" => "Jensen-Shannon".to_owned(),
        name => escaped(name),
    }
}

/// Reading of one figure.
type Column = fn(&Figures) -> Option<f64>;

fn figures(out: &mut String, one: &FeatureReport) {
    #[allow(clippy::cast_precision_loss, reason = "counts of requests are far below 2^53")]
    let columns: [(&str, Column); 7] = [
        ("values", |figures| Some(figures.count as f64)),
        ("missing", |figures| figures.missing.filter(|missing| *missing > 0).map(|missing| missing as f64)),
        ("mean", |figures| figures.mean),
        ("deviation", |figures| figures.deviation),
        ("median", |figures| figures.quantiles.get(3).copied()),
        ("p95", |figures| figures.quantiles.get(5).copied()),
        ("spread", |figures| figures.spread),
    ];
    let rows = [("reference", one.before.as_ref()), ("recent", one.recent.as_ref())];
    let has = |value: Column| rows.iter().any(|(_, figures)| figures.and_then(value).is_some());
    // A column without a figure says nothing, and takes the place of others.
    let columns: Vec<_> = columns.into_iter().filter(|(_, value)| has(*value)).collect();
    out.push_str("<div class=\"wide\"><table>\n<thead><tr><th></th>");
    for (name, _) in &columns {
        let _ = write!(out, "<th class=\"n\">{name}</th>");
    }
    out.push_str("</tr></thead>\n<tbody>\n");
    for (name, figures) in rows {
        let Some(figures) = figures else { continue };
        let _ = write!(out, "<tr><td>{name}</td>");
        for (_, value) in &columns {
            let value = value(figures).map_or_else(|| "–".to_owned(), number);
            let _ = write!(out, "<td class=\"n\">{value}</td>");
        }
        out.push_str("</tr>\n");
    }
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
    let _ = writeln!(out, "<figure><div role=\"img\" aria-label=\"Shares of {name}, reference and recent\">");
    for bar in shown {
        let length = |share: f64| 100.0 * share / most;
        let _ = writeln!(
            out,
            "<div class=\"row\" title=\"{full}: reference {before:.1} %, recent {recent:.1} %\"><span>{full}</span>\
             <span><i class=\"before\" style=\"width:{one:.1}%\"></i><i class=\"recent\" style=\"width:{other:.1}%\"></i></span>\
             <span class=\"quiet\">{recent:.0} %</span></div>",
            full = escaped(&bar.name),
            before = 100.0 * bar.before,
            recent = 100.0 * bar.recent,
            one = length(bar.before),
            other = length(bar.recent),
        );
    }
    out.push_str("</div><figcaption>Shares; the figure is that of the recent requests</figcaption></figure>\n");
}

/// Value over time, with its limit.
fn course(out: &mut String, name: &str, what: &str, limit: f64, points: &[(u32, f32)]) {
    let (Some(first), Some(last)) = (points.first(), points.last()) else { return };
    let (left, bottom) = (40.0, 20.0);
    let top = points.iter().map(|point| f64::from(point.1)).fold(limit * 1.25, f64::max).max(f64::MIN_POSITIVE);
    let span = f64::from(last.0.saturating_sub(first.0).max(1));
    let x = |at: u32| left + f64::from(at.saturating_sub(first.0)) / span * (WIDTH - left - 10.0);
    let y = |distance: f64| 6.0 + (1.0 - distance / top) * (COURSE - bottom - 6.0);
    let line: Vec<String> =
        points.iter().map(|(at, distance)| format!("{:.1},{:.1}", x(*at), y((*distance).into()))).collect();
    let dots = points.iter().fold(String::new(), |mut dots, (at, distance)| {
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
        "<figure><svg viewBox=\"0 0 {WIDTH} {COURSE}\" role=\"img\" aria-label=\"{name} over time\">\n\
         <line class=\"axis\" x1=\"{left}\" y1=\"{zero:.1}\" x2=\"{WIDTH}\" y2=\"{zero:.1}\"/>\
         <line class=\"limit\" x1=\"{left}\" y1=\"{limit:.1}\" x2=\"{WIDTH}\" y2=\"{limit:.1}\"/>\
         <text class=\"quiet\" x=\"{label}\" y=\"{limit_text:.1}\" text-anchor=\"end\">{value}</text>\
         <text class=\"quiet\" x=\"{label}\" y=\"{zero:.1}\" text-anchor=\"end\">0</text>\
         <polyline class=\"course\" points=\"{line}\"/>{dots}\
         <text class=\"quiet\" x=\"{left}\" y=\"{foot}\">{from}</text>\
         <text class=\"quiet\" x=\"{end}\" y=\"{foot}\" text-anchor=\"end\">{to}</text>\n</svg>\
         <figcaption>{what} over time; the dashed line is the limit</figcaption></figure>\n",
        zero = y(0.0),
        limit = y(limit),
        limit_text = y(limit) + 4.0,
        label = left - 6.0,
        value = number(limit),
        line = line.join(" "),
        foot = COURSE - 4.0,
        end = WIDTH - 10.0,
        from = time(first.0.into()),
        to = time(last.0.into()),
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quality::{Feature, ProviderReport};

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
            probes: vec![ProbesReport {
                target: name.into(),
                next: Some(1.8e9),
                results: [("over_budget".to_owned(), 2)].into(),
                tokens: 7,
                providers: vec![ProviderReport {
                    asked: name.into(),
                    models: ["m-1", name]
                        .map(|value| SeenValue { value: value.into(), first: 1.8e9, last: 1.8e9 })
                        .into(),
                    ..ProviderReport::default()
                }],
                probes: vec![ProbeReport {
                    probe: name.into(),
                    judged_by: "similarity".into(),
                    passing: Some(false),
                    reason: Some(name.into()),
                    similarity: Some(0.5),
                    limit: Some(0.85),
                    course: (0..10).map(|n| (1_800_000_000 + n * 600, 0.9 - 0.04 * n as f32)).collect(),
                    ..ProbeReport::default()
                }],
                ..ProbesReport::default()
            }],
        }
    }

    #[test]
    fn a_page_has_plots_and_escapes_every_name_and_fetches_nothing() {
        let page = page(&report("<script>alert('&\")</script>\u{7}"));
        assert!(!page.contains("<script") && !page.contains("alert('") && !page.contains('\u{7}'));
        for needed in [
            "<polyline",
            "class=\"limit\"",
            "prefers-color-scheme: dark",
            "class=\"before\"",
            "drifted",
            "7 d",
            "One probe fails",
            "m-1",
        ] {
            assert!(page.contains(needed), "{needed}");
        }
        for foreign in ["http:", "https:", "src=", "href=", "url(", "@import"] {
            assert!(!page.contains(foreign), "{foreign}");
        }
        assert_eq!(page.matches("<svg").count(), page.matches("</svg>").count());
        assert_eq!(page.matches("class=\"row\"").count(), MOST_BARS);
        assert!(page.contains("2027-01-15"));
    }
}
