//! Text format 0.0.4 of Prometheus, made from OpenMetrics text: names of counters have their suffix in every line, and kinds that
//! it does not know have its nearest one.

/// Writes OpenMetrics text without exemplars in the older form.
pub(super) fn written(open_metrics: &str) -> String {
    let mut out = String::with_capacity(open_metrics.len() + 2048);
    // The help comes before the kind, and has the name that the kind decides.
    let mut help: Option<(&str, &str)> = None;
    for line in open_metrics.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            help = rest.split_once(' ');
        } else if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' ')) {
            let (suffix, kind) = match kind {
                "counter" => ("_total", kind),
                "info" => ("_info", "gauge"),
                "unknown" => ("", "untyped"),
                _ => ("", kind),
            };
            if let Some((_, text)) = help.take().filter(|(of, _)| *of == name) {
                out.extend(["# HELP ", name, suffix, " ", text, "\n"]);
            }
            out.extend(["# TYPE ", name, suffix, " ", kind, "\n"]);
        } else if !line.starts_with('#') {
            out.extend([line, "\n"]);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    #[test]
    fn counters_and_infos_have_their_names_in_every_line() {
        let text = "# HELP a Things.\n# TYPE a counter\na_total{b=\"# HELP x\"} 1\n# HELP c Versions.\n# TYPE c info\nc_info{v=\"1\"} 1\n\
            # HELP d_seconds Time.\n# TYPE d_seconds gauge\n# UNIT d_seconds seconds\nd_seconds 2\n# TYPE e unknown\ne 1\n# EOF\n";
        let expected = "# HELP a_total Things.\n# TYPE a_total counter\na_total{b=\"# HELP x\"} 1\n# HELP c_info Versions.\n\
            # TYPE c_info gauge\nc_info{v=\"1\"} 1\n# HELP d_seconds Time.\n# TYPE d_seconds gauge\nd_seconds 2\n\
            # TYPE e untyped\ne 1\n";
        assert_eq!(super::written(text), expected);
    }
}
