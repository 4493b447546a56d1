//! The settings of OpenTelemetry, under the names that its specification gives them.
//!
//! <https://opentelemetry.io/docs/specs/otel/configuration/sdk-environment-variables/>

use std::{
    num::{NonZeroU64, NonZeroUsize},
    path::PathBuf,
    time::Duration,
};

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize, de::Error as _};

use crate::{
    build_info,
    config::{Error, Origin, Problem, Secret, Setting},
};

/// OpenTelemetry, at key `otel`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct OtelConfig {
    /// Switches everything below off.
    pub sdk_disabled: bool,
    /// `service.name` of all planes of the process; absent: each plane's own, such as `tbmq-data-plane`.
    pub service_name: Option<String>,
    /// Attributes of the process, as `name=value,name=value` with percent-encoded values. `service.instance.id` (the
    /// service id) and `service.version` are there by default.
    #[schemars(with = "String")]
    pub resource_attributes: Pairs,
    /// How contexts travel, separated by commas; `tracecontext` (W3C Trace Context) is the only one there is, and `none` switches traces off.
    #[schemars(with = "String")]
    pub propagators: Propagators,
    /// Traces.
    pub traces: TracesConfig,
    /// How the collector is reached. With HTTP the signal's path, such as `/v1/traces`, is appended to the endpoint.
    pub otlp: OtlpSettings,
    /// For traces, instead of the ones above.
    pub otlp_traces: OtlpSettings,
    /// Metrics.
    pub metrics: MetricsConfig,
    /// For metrics, instead of those for all signals.
    pub otlp_metrics: OtlpSettings,
    /// How spans wait for their export.
    pub bsp: BatchConfig,
}

/// What is traced.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct TracesConfig {
    /// `otlp` or `none`; absent: `otlp` if an endpoint is set, else none.
    #[schemars(with = "Option<String>")]
    pub exporter: Option<Exporter>,
    /// Which traces are recorded: `always_on`, `always_off`, `traceidratio`, `parentbased_always_on`, `parentbased_always_off` or
    /// `parentbased_traceidratio`.
    #[schemars(with = "String")]
    pub sampler: Sampler,
    /// The part of traces that a sampler with a ratio records, from 0 to 1; absent: 1.
    #[schemars(with = "Option<f64>")]
    pub sampler_arg: Option<Fraction>,
}

impl Default for TracesConfig {
    fn default() -> Self {
        Self { exporter: None, sampler: Sampler::ParentBasedAlwaysOn, sampler_arg: None }
    }
}

/// What is pushed of metrics. They are served at `/metrics` all the same.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct MetricsConfig {
    /// `otlp` or `none`; absent: `otlp` if an endpoint is set, else none.
    #[schemars(with = "Option<String>")]
    pub exporter: Option<Exporter>,
    /// Time between two pushes, ms, from 1.
    pub interval: NonZeroU64,
}

impl Default for MetricsConfig {
    fn default() -> Self {
        Self { exporter: None, interval: NonZeroU64::new(60_000).expect("not 0") }
    }
}

/// An enum whose variants have the names that OpenTelemetry gives them, and whose refusal lists these.
macro_rules! named {
    ($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident = $text:literal,)+ }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
        #[serde(into = "&'static str", try_from = "String")]
        pub enum $name {
            $($(#[$variant_doc])* $variant,)+
        }

        impl From<$name> for &'static str {
            fn from(named: $name) -> Self {
                match named {
                    $($name::$variant => $text,)+
                }
            }
        }

        impl TryFrom<String> for $name {
            type Error = String;

            fn try_from(text: String) -> Result<Self, String> {
                match text.trim() {
                    $($text => Ok(Self::$variant),)+
                    _ => Err(format!("use one of {}", [$($text),+].join(", "))),
                }
            }
        }
    };
}

named! {
    /// Where a signal goes to.
    Exporter {
        /// An OpenTelemetry Collector, or what speaks its protocol.
        Otlp = "otlp",
        /// Nowhere.
        None = "none",
    }
}

named! {
    /// Which traces are recorded.
    Sampler {
        /// All.
        AlwaysOn = "always_on",
        /// None.
        AlwaysOff = "always_off",
        /// A part of all.
        TraceIdRatio = "traceidratio",
        /// All, but those whose parent is not recorded.
        ParentBasedAlwaysOn = "parentbased_always_on",
        /// Those whose parent is recorded.
        ParentBasedAlwaysOff = "parentbased_always_off",
        /// Those whose parent is recorded, and a part of those without one.
        ParentBasedTraceIdRatio = "parentbased_traceidratio",
    }
}

named! {
    /// How contexts travel.
    Propagator {
        /// W3C Trace Context.
        TraceContext = "tracecontext",
        /// W3C Baggage; allowed, because it is in the standard's default, and not passed on.
        Baggage = "baggage",
        /// Not at all.
        None = "none",
    }
}

named! {
    /// The protocol of OTLP.
    Protocol {
        /// gRPC.
        Grpc = "grpc",
        /// Protobuf over HTTP.
        Http = "http/protobuf",
    }
}

named! {
    /// How requests are compressed.
    Compression {
        /// Not.
        None = "none",
    }
}

/// How the collector is reached, for one signal or for all.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct OtlpSettings {
    /// URL, `http` or `https`; default `http://localhost:4317` with `grpc`, `http://localhost:4318` otherwise.
    #[schemars(with = "Option<String>")]
    pub endpoint: Option<Endpoint>,
    /// `grpc` or `http/protobuf`, the default.
    #[schemars(with = "Option<String>")]
    pub protocol: Option<Protocol>,
    /// Headers of each request, as `name=value,name=value` with percent-encoded values.
    #[schemars(with = "Option<String>")]
    pub headers: Option<Headers>,
    /// How long an export may take, repetitions included, ms; default 10000.
    pub timeout: Option<NonZeroU64>,
    /// PEM file with the certificates that the collector's is judged by; absent: the system's.
    pub certificate: Option<PathBuf>,
    /// Only `none`.
    #[schemars(with = "Option<String>")]
    pub compression: Option<Compression>,
}

/// How spans wait for their export.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct BatchConfig {
    /// Time between two exports, ms.
    pub schedule_delay: NonZeroU64,
    /// Spans that wait, at most; further ones are dropped and counted.
    pub max_queue_size: NonZeroUsize,
    /// Spans of one export, at most. That many begin an export at once.
    pub max_export_batch_size: NonZeroUsize,
    /// How long the last spans may take when the process ends, ms; 5000 at most.
    pub export_timeout: NonZeroU64,
}

impl Default for BatchConfig {
    fn default() -> Self {
        Self {
            schedule_delay: NonZeroU64::new(5_000).expect("not 0"),
            max_queue_size: NonZeroUsize::new(2_048).expect("not 0"),
            max_export_batch_size: NonZeroUsize::new(512).expect("not 0"),
            export_timeout: NonZeroU64::new(5_000).expect("not 0"),
        }
    }
}

impl OtelConfig {
    /// Environment names.
    pub const SETTINGS: &'static [Setting] = &[
        Setting { env: "OTEL_SDK_DISABLED", key: "otel.sdk-disabled" },
        Setting { env: "OTEL_SERVICE_NAME", key: "otel.service-name" },
        Setting { env: "OTEL_RESOURCE_ATTRIBUTES", key: "otel.resource-attributes" },
        Setting { env: "OTEL_PROPAGATORS", key: "otel.propagators" },
        Setting { env: "OTEL_TRACES_EXPORTER", key: "otel.traces.exporter" },
        Setting { env: "OTEL_TRACES_SAMPLER", key: "otel.traces.sampler" },
        Setting { env: "OTEL_TRACES_SAMPLER_ARG", key: "otel.traces.sampler-arg" },
        Setting { env: "OTEL_EXPORTER_OTLP_ENDPOINT", key: "otel.otlp.endpoint" },
        Setting { env: "OTEL_EXPORTER_OTLP_PROTOCOL", key: "otel.otlp.protocol" },
        Setting { env: "OTEL_EXPORTER_OTLP_HEADERS", key: "otel.otlp.headers" },
        Setting { env: "OTEL_EXPORTER_OTLP_TIMEOUT", key: "otel.otlp.timeout" },
        Setting { env: "OTEL_EXPORTER_OTLP_CERTIFICATE", key: "otel.otlp.certificate" },
        Setting { env: "OTEL_EXPORTER_OTLP_COMPRESSION", key: "otel.otlp.compression" },
        Setting { env: "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", key: "otel.otlp-traces.endpoint" },
        Setting { env: "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", key: "otel.otlp-traces.protocol" },
        Setting { env: "OTEL_EXPORTER_OTLP_TRACES_HEADERS", key: "otel.otlp-traces.headers" },
        Setting { env: "OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", key: "otel.otlp-traces.timeout" },
        Setting { env: "OTEL_EXPORTER_OTLP_TRACES_CERTIFICATE", key: "otel.otlp-traces.certificate" },
        Setting { env: "OTEL_EXPORTER_OTLP_TRACES_COMPRESSION", key: "otel.otlp-traces.compression" },
        Setting { env: "OTEL_METRICS_EXPORTER", key: "otel.metrics.exporter" },
        Setting { env: "OTEL_METRIC_EXPORT_INTERVAL", key: "otel.metrics.interval" },
        Setting { env: "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", key: "otel.otlp-metrics.endpoint" },
        Setting { env: "OTEL_EXPORTER_OTLP_METRICS_PROTOCOL", key: "otel.otlp-metrics.protocol" },
        Setting { env: "OTEL_EXPORTER_OTLP_METRICS_HEADERS", key: "otel.otlp-metrics.headers" },
        Setting { env: "OTEL_EXPORTER_OTLP_METRICS_TIMEOUT", key: "otel.otlp-metrics.timeout" },
        Setting { env: "OTEL_EXPORTER_OTLP_METRICS_CERTIFICATE", key: "otel.otlp-metrics.certificate" },
        Setting { env: "OTEL_EXPORTER_OTLP_METRICS_COMPRESSION", key: "otel.otlp-metrics.compression" },
        Setting { env: "OTEL_BSP_SCHEDULE_DELAY", key: "otel.bsp.schedule-delay" },
        Setting { env: "OTEL_BSP_MAX_QUEUE_SIZE", key: "otel.bsp.max-queue-size" },
        Setting { env: "OTEL_BSP_MAX_EXPORT_BATCH_SIZE", key: "otel.bsp.max-export-batch-size" },
        Setting { env: "OTEL_BSP_EXPORT_TIMEOUT", key: "otel.bsp.export-timeout" },
    ];

    /// Whether spans are made: not unless `OTEL_TRACES_EXPORTER=otlp` or an endpoint says so.
    pub fn traces_are_on(&self) -> bool {
        let has_endpoint = self.otlp.endpoint.is_some() || self.otlp_traces.endpoint.is_some();
        let is_wanted = match self.traces.exporter {
            Some(exporter) => exporter == Exporter::Otlp,
            None => has_endpoint,
        };
        is_wanted && self.propagators.0.contains(&Propagator::TraceContext) && !self.sdk_disabled
    }

    /// Whether metrics are pushed: not unless `OTEL_METRICS_EXPORTER=otlp` or an endpoint says so.
    pub fn metrics_are_on(&self) -> bool {
        let has_endpoint = self.otlp.endpoint.is_some() || self.otlp_metrics.endpoint.is_some();
        let is_wanted = match self.metrics.exporter {
            Some(exporter) => exporter == Exporter::Otlp,
            None => has_endpoint,
        };
        is_wanted && !self.sdk_disabled
    }

    /// How spans reach the collector.
    pub fn traces_target(&self) -> Target {
        self.target(&self.otlp_traces, "/v1/traces")
    }

    /// How metrics reach the collector.
    pub fn metrics_target(&self) -> Target {
        self.target(&self.otlp_metrics, "/v1/metrics")
    }

    fn target(&self, signal: &OtlpSettings, path: &str) -> Target {
        let general = &self.otlp;
        let protocol = signal.protocol.or(general.protocol).unwrap_or(Protocol::Http);
        let base = |port: u16| format!("http://localhost:{port}");
        let endpoint = match (&signal.endpoint, &general.endpoint, protocol) {
            (Some(own), ..) => own.0.clone(),
            (None, Some(all), Protocol::Grpc) => all.0.clone(),
            (None, Some(all), Protocol::Http) => format!("{}{path}", all.0.trim_end_matches('/')),
            (None, None, Protocol::Grpc) => base(4317),
            (None, None, Protocol::Http) => format!("{}{path}", base(4318)),
        };
        let timeout_ms = signal.timeout.or(general.timeout).map_or(10_000, NonZeroU64::get);
        let headers = signal.headers.as_ref().or(general.headers.as_ref());
        Target {
            protocol,
            endpoint,
            headers: headers.map(Headers::pairs).unwrap_or_default(),
            timeout: Duration::from_millis(timeout_ms),
            certificate: signal.certificate.clone().or_else(|| general.certificate.clone()),
        }
    }

    /// Attributes of a process or a plane, as the collector knows it: `service.name` is what the settings say, else
    /// `name`. Attributes that are given replace ours.
    pub fn resource(&self, name: &str, service_id: &str) -> Vec<(String, String)> {
        let given = self.resource_attributes.pairs();
        let ours = [
            ("service.name", name),
            ("service.instance.id", service_id),
            ("service.version", build_info::VERSION),
            ("telemetry.sdk.name", "opentelemetry"),
            ("telemetry.sdk.language", "rust"),
        ];
        let mut all: Vec<(String, String)> = Vec::new();
        for (name, value) in
            ours.map(|(name, value)| (name.to_owned(), value.to_owned())).into_iter().chain(given)
        {
            match all.iter_mut().find(|(known, _)| *known == name) {
                Some(known) => known.1 = value,
                None => all.push((name, value)),
            }
        }
        if let Some(name) = &self.service_name {
            all[0].1.clone_from(name);
        }
        all
    }

    /// What is wrong with values that are good each by itself.
    pub fn check(&self) -> Result<(), Error> {
        if self.bsp.max_export_batch_size > self.bsp.max_queue_size {
            return Err(Error::from(Problem::Invalid {
                key: "otel.bsp.max-export-batch-size (OTEL_BSP_MAX_EXPORT_BATCH_SIZE)".to_owned(),
                value: self.bsp.max_export_batch_size.to_string(),
                origin: Origin::Merged,
                reason: format!(
                    "it is above OTEL_BSP_MAX_QUEUE_SIZE, {}; lower it, or raise that",
                    self.bsp.max_queue_size
                ),
            }));
        }
        Ok(())
    }
}

/// How a signal reaches the collector.
#[derive(Clone, Debug)]
pub struct Target {
    /// The protocol.
    pub protocol: Protocol,
    /// The URL; with HTTP, the whole one.
    pub endpoint: String,
    /// Names and values.
    pub headers: Vec<(String, Secret)>,
    /// For one export, repetitions included.
    pub timeout: Duration,
    /// PEM file.
    pub certificate: Option<PathBuf>,
}

/// A number from 0 to 1.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Fraction(pub f64);

impl<'de> Deserialize<'de> for Fraction {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let number = f64::deserialize(deserializer)?;
        if (0.0..=1.0).contains(&number) {
            Ok(Self(number))
        } else {
            Err(D::Error::custom("it must lie between 0 and 1, such as 0.01 for one trace in a hundred"))
        }
    }
}

/// An URL, `http` or `https`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Endpoint(String);

impl<'de> Deserialize<'de> for Endpoint {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let example = "give an URL such as http://localhost:4318";
        match reqwest::Url::parse(&text) {
            Ok(url) if matches!(url.scheme(), "http" | "https") && url.has_host() => Ok(Self(text)),
            Ok(_) => Err(D::Error::custom(format!("it begins with neither http:// nor https://; {example}"))),
            Err(error) => Err(D::Error::custom(format!("{error}; {example}"))),
        }
    }
}

/// `tracecontext,baggage`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Propagators(Vec<Propagator>);

impl Default for Propagators {
    fn default() -> Self {
        Self(vec![Propagator::TraceContext])
    }
}

impl From<Propagators> for String {
    fn from(Propagators(all): Propagators) -> Self {
        all.into_iter().map(<&str>::from).collect::<Vec<_>>().join(",")
    }
}

impl TryFrom<String> for Propagators {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.split(',').map(|name| name.to_owned().try_into()).collect::<Result<_, _>>().map(Self)
    }
}

/// `name=value,name=value`, with percent-encoded values.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Pairs(String);

impl Pairs {
    /// Names and decoded values.
    pub fn pairs(&self) -> Vec<(String, String)> {
        pairs(&self.0).unwrap_or_default()
    }
}

impl<'de> Deserialize<'de> for Pairs {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        pairs(&text).map_err(D::Error::custom)?;
        Ok(Self(text))
    }
}

/// Headers: [`Pairs`] that are not shown.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Headers(Secret);

impl Headers {
    fn pairs(&self) -> Vec<(String, Secret)> {
        let pairs = pairs(self.0.expose()).unwrap_or_default();
        pairs.into_iter().map(|(name, value)| (name, Secret::new(value))).collect()
    }
}

impl<'de> Deserialize<'de> for Headers {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        for (name, value) in pairs(&text).map_err(D::Error::custom)? {
            let is_name = name.parse::<reqwest::header::HeaderName>().is_ok();
            if !is_name || reqwest::header::HeaderValue::from_str(&value).is_err() {
                return Err(D::Error::custom(format!("{name:?} is no header that can be sent")));
            }
        }
        Ok(Self(Secret::new(text)))
    }
}

fn pairs(text: &str) -> Result<Vec<(String, String)>, String> {
    let members = text.split(',').map(str::trim).filter(|member| !member.is_empty());
    members
        .map(|member| {
            let (name, value) = member
                .split_once('=')
                .filter(|(name, _)| !name.trim().is_empty())
                .ok_or("it is not of the form name=value,name=value")?;
            let value = percent_encoding::percent_decode_str(value.trim());
            let value = value.decode_utf8().map_err(|_| "a value is not UTF-8 after percent-decoding")?;
            Ok((name.trim().to_owned(), value.into_owned()))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::load_from;

    #[derive(Debug, Default, Serialize, Deserialize)]
    #[serde(default, deny_unknown_fields)]
    struct Tree {
        otel: OtelConfig,
    }

    fn load(variables: &[(&str, &str)]) -> Result<OtelConfig, Error> {
        let variables = variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        load_from::<Tree>(&[OtelConfig::SETTINGS], None, variables).map(|tree| tree.otel)
    }

    #[test]
    fn traces_are_on_only_when_an_endpoint_or_the_exporter_is_given() {
        let endpoint = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:4318");
        let cases: [(&[(&str, &str)], bool); 8] = [
            (&[], false),
            (&[("OTEL_TRACES_SAMPLER", "always_on")], false),
            (&[endpoint], true),
            (&[("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "https://c/x")], true),
            (&[("OTEL_TRACES_EXPORTER", "otlp")], true),
            (&[endpoint, ("OTEL_TRACES_EXPORTER", "none")], false),
            (&[endpoint, ("OTEL_SDK_DISABLED", "TRUE")], false),
            (&[endpoint, ("OTEL_PROPAGATORS", "none")], false),
        ];
        for (variables, is_on) in cases {
            assert_eq!(load(variables).unwrap().traces_are_on(), is_on, "{variables:?}");
        }
        let usual = load(&[endpoint, ("OTEL_PROPAGATORS", "tracecontext,baggage")]).unwrap();
        assert!(usual.traces_are_on());
    }

    #[test]
    fn metrics_are_pushed_only_when_an_endpoint_or_the_exporter_is_given() {
        let endpoint = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:4318/");
        let cases: [(&[(&str, &str)], bool); 7] = [
            (&[], false),
            (&[("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://c")], false),
            (&[endpoint], true),
            (&[("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", "http://c")], true),
            (&[("OTEL_METRICS_EXPORTER", "otlp")], true),
            (&[endpoint, ("OTEL_METRICS_EXPORTER", "none")], false),
            (&[endpoint, ("OTEL_SDK_DISABLED", "true")], false),
        ];
        for (variables, is_on) in cases {
            assert_eq!(load(variables).unwrap().metrics_are_on(), is_on, "{variables:?}");
        }
        let config = load(&[endpoint, ("OTEL_METRIC_EXPORT_INTERVAL", "250")]).unwrap();
        assert_eq!(config.metrics_target().endpoint, "http://collector:4318/v1/metrics");
        assert_eq!(config.metrics.interval.get(), 250);
    }

    #[test]
    fn attributes_that_are_given_replace_ours() {
        let given = ("OTEL_RESOURCE_ATTRIBUTES", "service.name=given,service.instance.id=one,place=x%20y");
        let attribute = |config: &OtelConfig, name: &str| {
            let all = config.resource("tbmq", "node-1");
            all.into_iter().find(|(known, _)| known == name).map(|(_, value)| value).unwrap_or_default()
        };
        let config = load(&[]).unwrap();
        assert_eq!(attribute(&config, "service.name"), "tbmq");
        assert_eq!(attribute(&config, "service.instance.id"), "node-1");
        let config = load(&[given]).unwrap();
        assert_eq!(attribute(&config, "service.name"), "given");
        assert_eq!(
            (attribute(&config, "service.instance.id"), attribute(&config, "place")),
            ("one".into(), "x y".into())
        );
        let config = load(&[given, ("OTEL_SERVICE_NAME", "named")]).unwrap();
        assert_eq!(attribute(&config, "service.name"), "named");
    }

    #[test]
    fn what_is_said_of_traces_goes_before_what_is_said_of_all() {
        let general = [
            ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://all:1/base/"),
            ("OTEL_EXPORTER_OTLP_HEADERS", "a=1,b=x%20y"),
            ("OTEL_EXPORTER_OTLP_TIMEOUT", "250"),
        ];
        let target = load(&general).unwrap().traces_target();
        assert_eq!((target.protocol, &*target.endpoint), (Protocol::Http, "http://all:1/base/v1/traces"));
        assert_eq!(target.timeout, Duration::from_millis(250));
        let headers: Vec<_> = target.headers.iter().map(|(name, value)| (&**name, value.expose())).collect();
        assert_eq!(headers, [("a", "1"), ("b", "x y")]);
        let own = [
            ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://own:2"),
            ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "grpc"),
            ("OTEL_EXPORTER_OTLP_TRACES_HEADERS", "c=3"),
        ];
        let target = load(&[&general[..], &own[..]].concat()).unwrap().traces_target();
        assert_eq!((target.protocol, &*target.endpoint), (Protocol::Grpc, "http://own:2"));
        assert_eq!(target.headers.len(), 1);
        let target = load(&[("OTEL_TRACES_EXPORTER", "otlp")]).unwrap().traces_target();
        assert_eq!((&*target.endpoint, target.timeout.as_secs()), ("http://localhost:4318/v1/traces", 10));
    }

    #[test]
    fn a_bad_value_is_told_with_variable_value_and_way_out() {
        let cases = [
            ("OTEL_TRACES_SAMPLER", "sometimes", "parentbased_traceidratio"),
            ("OTEL_TRACES_SAMPLER_ARG", "1.5", "between 0 and 1"),
            ("OTEL_TRACES_EXPORTER", "zipkin", "otlp"),
            ("OTEL_EXPORTER_OTLP_ENDPOINT", "collector:4317", "http://localhost:4318"),
            ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "nowhere", "http://localhost:4318"),
            ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/json", "http/protobuf"),
            ("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip", "none"),
            ("OTEL_EXPORTER_OTLP_TIMEOUT", "0", "nonzero"),
            ("OTEL_PROPAGATORS", "b3", "tracecontext"),
            ("OTEL_RESOURCE_ATTRIBUTES", "a", "name=value"),
            ("OTEL_BSP_MAX_QUEUE_SIZE", "many", "integer"),
        ];
        for (name, value, way_out) in cases {
            let text = load(&[(name, value)]).unwrap_err().to_string();
            for part in [name, value, way_out] {
                assert!(text.contains(part), "{part}: {text}");
            }
        }
        let text = load(&[("OTEL_EXPORTER_OTLP_HEADERS", "a b=c")]).unwrap_err().to_string();
        assert!(text.contains("OTEL_EXPORTER_OTLP_HEADERS") && !text.contains("=c"), "{text}");
        let queue = load(&[("OTEL_BSP_MAX_QUEUE_SIZE", "10")]).unwrap();
        let text = queue.check().unwrap_err().to_string();
        assert!(text.contains("OTEL_BSP_MAX_EXPORT_BATCH_SIZE") && text.contains("512"), "{text}");
    }

    #[test]
    fn every_environment_name_sets_a_key_of_the_tree() {
        let tree = serde_json::to_value(Tree::default()).unwrap();
        for setting in OtelConfig::SETTINGS {
            let pointer = format!("/{}", setting.key.replace('.', "/"));
            assert!(tree.pointer(&pointer).is_some(), "{}", setting.key);
        }
    }

    #[test]
    fn headers_are_not_shown() {
        let config = load(&[("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer%20x1y2")]).unwrap();
        let shown =
            format!("{config:?}{}{:?}", serde_json::to_string(&config).unwrap(), config.traces_target());
        assert!(!shown.contains("x1y2"), "{shown}");
    }
}
