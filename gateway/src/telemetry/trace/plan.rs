//! Where traces go and which are kept: from the configuration, and where that is silent from the standard variables
//! (OpenTelemetry specification, "Environment Variable Specification"). A variable that cannot be followed is told and
//! otherwise as good as unset, as that specification asks.

use spillway_config::schema::Tracing;

/// What a tracer is built from. Equal plans make equal tracers.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Plan {
    /// The collector, OTLP over gRPC.
    pub endpoint: String,
    /// Share of the traces that begin here.
    pub ratio: f64,
    /// Whether the caller's decision goes first.
    pub parent_based: bool,
}

impl Plan {
    /// `None`: no traces.
    pub(super) fn new(config: Option<&Tracing>, variable: impl Fn(&str) -> Option<String>) -> Option<Self> {
        match config {
            Some(tracing) => {
                Some(Self { endpoint: tracing.otlp.endpoint.clone(), ratio: tracing.sample_ratio, parent_based: true })
            }
            None => Self::from_variables(|name| variable(name).filter(|value| !value.is_empty())),
        }
    }

    fn from_variables(variable: impl Fn(&str) -> Option<String>) -> Option<Self> {
        if variable("OTEL_SDK_DISABLED").is_some_and(|v| v.eq_ignore_ascii_case("true")) {
            return None;
        }
        let endpoint =
            variable("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT").or_else(|| variable("OTEL_EXPORTER_OTLP_ENDPOINT"))?;
        match variable("OTEL_TRACES_EXPORTER").as_deref() {
            None | Some("otlp") => {}
            Some("none") => return None,
            Some(other) => not_followed("OTEL_TRACES_EXPORTER", other, "only `otlp` and `none` are known"),
        }
        let protocol = ["OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"]
            .into_iter()
            .find_map(|name| variable(name).map(|value| (name, value)));
        if let Some((name, value)) = protocol.filter(|(_, value)| value != "grpc") {
            // The endpoint is one for that protocol: spans sent to it as gRPC would all be lost.
            not_followed(name, &value, "traces are off, because only `grpc` is spoken here");
            return None;
        }
        let (parent_based, ratio) = sampler(&variable);
        Some(Self { endpoint, ratio, parent_based })
    }
}

/// Whether the caller's decision goes first, and the share of the others.
fn sampler(variable: &impl Fn(&str) -> Option<String>) -> (bool, f64) {
    let name = variable("OTEL_TRACES_SAMPLER");
    let share = || {
        let Some(text) = variable("OTEL_TRACES_SAMPLER_ARG") else { return 1.0 };
        text.parse().ok().filter(|ratio| (0.0..=1.0).contains(ratio)).unwrap_or_else(|| {
            not_followed("OTEL_TRACES_SAMPLER_ARG", &text, "it is no number from 0 to 1, so all traces are kept");
            1.0
        })
    };
    match name.as_deref() {
        None | Some("parentbased_traceidratio") => (true, share()),
        Some("parentbased_always_on") => (true, 1.0),
        Some("parentbased_always_off") => (true, 0.0),
        Some("traceidratio") => (false, share()),
        Some("always_on") => (false, 1.0),
        Some("always_off") => (false, 0.0),
        Some(other) => {
            not_followed("OTEL_TRACES_SAMPLER", other, "`parentbased_always_on` is used");
            (true, 1.0)
        }
    }
}

fn not_followed(variable: &str, value: &str, what: &str) {
    tracing::warn!(event = "variable_not_followed", variable, value, "{variable}={value}: {what}");
}

#[cfg(test)]
mod tests {
    use spillway_config::schema::{Otlp, OtlpProtocol};

    use super::*;

    fn plan(variables: &[(&str, &str)]) -> Option<Plan> {
        Plan::new(None, |name| variables.iter().find(|(n, _)| *n == name).map(|(_, v)| (*v).to_owned()))
    }

    #[test]
    fn the_standard_variables_work_where_the_file_is_silent() {
        let endpoint = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://c:4317");
        let of = |parent_based, ratio| Some(Plan { endpoint: "http://c:4317".into(), ratio, parent_based });
        assert_eq!(plan(&[]), None);
        assert_eq!(plan(&[("OTEL_EXPORTER_OTLP_ENDPOINT", "")]), None, "empty is unset");
        assert_eq!(plan(&[endpoint]), of(true, 1.0));
        assert_eq!(plan(&[endpoint, ("OTEL_SDK_DISABLED", "True")]), None);
        assert_eq!(plan(&[endpoint, ("OTEL_TRACES_EXPORTER", "none")]), None);
        assert_eq!(plan(&[endpoint, ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")]), None);
        assert_eq!(plan(&[endpoint, ("OTEL_TRACES_SAMPLER_ARG", "0.25")]), of(true, 0.25));
        assert_eq!(plan(&[endpoint, ("OTEL_TRACES_SAMPLER_ARG", "7")]), of(true, 1.0));
        assert_eq!(plan(&[endpoint, ("OTEL_TRACES_SAMPLER_ARG", "NaN")]), of(true, 1.0));
        assert_eq!(plan(&[endpoint, ("OTEL_TRACES_SAMPLER", "always_off")]), of(false, 0.0));
        assert_eq!(plan(&[endpoint, ("OTEL_TRACES_SAMPLER", "parentbased_always_off")]), of(true, 0.0));
        assert_eq!(plan(&[endpoint, ("OTEL_TRACES_SAMPLER", "jaeger_remote")]), of(true, 1.0));
        let for_traces = plan(&[endpoint, ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://t:4317")]).unwrap();
        assert_eq!(for_traces.endpoint, "http://t:4317");
    }

    #[test]
    fn the_file_goes_before_the_variables() {
        let otlp = Otlp { endpoint: "http://f:4317".into(), protocol: OtlpProtocol::Grpc };
        let plan = Plan::new(Some(&Tracing { otlp, sample_ratio: 0.5 }), |_| Some("none".into())).unwrap();
        assert_eq!(plan, Plan { endpoint: "http://f:4317".into(), ratio: 0.5, parent_based: true });
    }
}
