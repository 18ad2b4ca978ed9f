//! Plan of a tracer: its collector and the traces that it keeps, from the configuration, else from the standard variables
//! (OpenTelemetry specification, "Environment Variable Specification"). A variable with an unsupported value is logged
//! and counts as unset, as that specification asks.

use spillway_config::schema::{CallersDecide, Keep, Tracing};

/// Settings that a tracer is built from. Equal plans make equal tracers.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct TracePlan {
    /// URL of the collector, OTLP over gRPC.
    pub endpoint: String,
    /// Sampled share of the traces that begin here, from 0 to 1.
    pub ratio: f64,
    /// Callers whose sampling decision takes precedence.
    pub parent: Parent,
    /// Requests whose traces are sent whatever was decided when they began.
    pub keep: Keep,
}

/// Callers whose sampling decision counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Parent {
    /// All callers.
    Everyone,
    /// Proxies that the listener trusts. Other callers may only decide against sampling.
    TrustedProxies,
    /// None, in either direction.
    Nobody,
}

impl TracePlan {
    /// Reads the plan; `None` if no traces are configured.
    pub(super) fn new(config: Option<&Tracing>, variable: impl Fn(&str) -> Option<String>) -> Option<Self> {
        match config {
            Some(tracing) => {
                let parent = match tracing.callers_decide {
                    CallersDecide::TrustedProxies => Parent::TrustedProxies,
                    CallersDecide::Everyone => Parent::Everyone,
                };
                let (endpoint, keep) = (tracing.otlp.endpoint.clone(), tracing.keep.clone());
                Some(Self { endpoint, ratio: tracing.sample_ratio, parent, keep })
            }
            None => Self::from_variables(|name| variable(name).filter(|value| !value.is_empty())),
        }
    }

    /// True if a request with a trace of its caller is sampled. Drawn at random where the caller does not decide: a draw by
    /// the trace id, which the caller chooses, would let it decide all the same.
    pub(super) fn samples(&self, is_sampled: bool, from_trusted_proxy: bool) -> bool {
        match self.parent {
            Parent::Nobody => self.draw(),
            Parent::TrustedProxies if !from_trusted_proxy => is_sampled && self.draw(),
            Parent::TrustedProxies | Parent::Everyone => is_sampled,
        }
    }

    fn draw(&self) -> bool {
        rand::random::<f64>() < self.ratio
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
        let (parent, ratio) = sampler(&variable);
        Some(Self { endpoint, ratio, parent, keep: Keep::default() })
    }
}

/// Reads the callers whose decision takes precedence, and the sampled share of the others. A `parentbased` sampler follows
/// every caller, as that specification says; without a name, only trusted proxies are followed.
fn sampler(variable: &impl Fn(&str) -> Option<String>) -> (Parent, f64) {
    let name = variable("OTEL_TRACES_SAMPLER");
    let share = || {
        let Some(text) = variable("OTEL_TRACES_SAMPLER_ARG") else { return 1.0 };
        text.parse().ok().filter(|ratio| (0.0..=1.0).contains(ratio)).unwrap_or_else(|| {
            not_followed("OTEL_TRACES_SAMPLER_ARG", &text, "it is no number from 0 to 1, so all traces are kept");
            1.0
        })
    };
    match name.as_deref() {
        None => (Parent::TrustedProxies, share()),
        Some("parentbased_traceidratio") => (Parent::Everyone, share()),
        Some("parentbased_always_on") => (Parent::Everyone, 1.0),
        Some("parentbased_always_off") => (Parent::Everyone, 0.0),
        Some("traceidratio") => (Parent::Nobody, share()),
        Some("always_on") => (Parent::Nobody, 1.0),
        Some("always_off") => (Parent::Nobody, 0.0),
        Some(other) => {
            not_followed("OTEL_TRACES_SAMPLER", other, "all traces are kept");
            (Parent::TrustedProxies, 1.0)
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

    fn plan(variables: &[(&str, &str)]) -> Option<TracePlan> {
        TracePlan::new(None, |name| variables.iter().find(|(n, _)| *n == name).map(|(_, v)| (*v).to_owned()))
    }

    #[test]
    fn the_standard_variables_work_where_the_file_is_silent() {
        let endpoint = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://c:4317");
        let of =
            |parent, ratio| Some(TracePlan { endpoint: "http://c:4317".into(), ratio, parent, keep: Keep::default() });
        assert_eq!(plan(&[]), None);
        assert_eq!(plan(&[("OTEL_EXPORTER_OTLP_ENDPOINT", "")]), None, "empty is unset");
        assert_eq!(plan(&[endpoint]), of(Parent::TrustedProxies, 1.0));
        assert_eq!(plan(&[endpoint, ("OTEL_SDK_DISABLED", "True")]), None);
        assert_eq!(plan(&[endpoint, ("OTEL_TRACES_EXPORTER", "none")]), None);
        assert_eq!(plan(&[endpoint, ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")]), None);
        assert_eq!(plan(&[endpoint, ("OTEL_TRACES_SAMPLER_ARG", "0.25")]), of(Parent::TrustedProxies, 0.25));
        assert_eq!(plan(&[endpoint, ("OTEL_TRACES_SAMPLER_ARG", "7")]), of(Parent::TrustedProxies, 1.0));
        assert_eq!(plan(&[endpoint, ("OTEL_TRACES_SAMPLER_ARG", "NaN")]), of(Parent::TrustedProxies, 1.0));
        assert_eq!(plan(&[endpoint, ("OTEL_TRACES_SAMPLER", "always_off")]), of(Parent::Nobody, 0.0));
        assert_eq!(plan(&[endpoint, ("OTEL_TRACES_SAMPLER", "parentbased_always_off")]), of(Parent::Everyone, 0.0));
        assert_eq!(plan(&[endpoint, ("OTEL_TRACES_SAMPLER", "jaeger_remote")]), of(Parent::TrustedProxies, 1.0));
        let for_traces = plan(&[endpoint, ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://t:4317")]).unwrap();
        assert_eq!(for_traces.endpoint, "http://t:4317");
    }

    #[test]
    fn the_file_goes_before_the_variables() {
        let otlp = Otlp { endpoint: "http://f:4317".into(), protocol: OtlpProtocol::Grpc };
        for (callers_decide, parent) in
            [(CallersDecide::TrustedProxies, Parent::TrustedProxies), (CallersDecide::Everyone, Parent::Everyone)]
        {
            let keep = Keep { errors: true, ..Keep::default() };
            let capture_content = false;
            let tracing = Tracing {
                otlp: otlp.clone(),
                sample_ratio: 0.5,
                callers_decide,
                keep: keep.clone(),
                capture_content,
                attributes: Vec::new(),
            };
            let plan = TracePlan::new(Some(&tracing), |_| Some("none".into())).unwrap();
            assert_eq!(plan, TracePlan { endpoint: "http://f:4317".into(), ratio: 0.5, parent, keep });
        }
    }
}
