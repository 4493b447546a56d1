//! Metrics: the page that lists them all, what a process serves, and what an integration's lag looks like.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    path::Path,
    process::Stdio,
    sync::{Arc, Condvar, Mutex},
    time::{Duration, Instant},
};

use tbmq_mqtt::{
    codec::property::Properties,
    packet::{Packet, Publish, Qos},
};
use tbmq_proto::control::{
    CreateIntegrationRequest, Integration, integration_service_client::IntegrationServiceClient,
};
use tbmq_service::metrics::{
    Description, Kind, Label, Metrics, Registry, Values,
    exposition::{self, Family, Value},
    page::{Part, render},
};

use super::{Started, sessions::Client, tbmq};

const PATIENCE: Duration = Duration::from_secs(60);

type Describe = fn(&mut Registry);

const PLANES: [(&str, Describe); 3] = [
    ("Control plane", tbmq_control_plane::describe_metrics),
    ("Data plane", tbmq_data_plane::describe_metrics),
    ("Executor", tbmq_executor::describe_metrics),
];

/// What every process has: its own registry, and what exports.
fn common() -> Metrics {
    let metrics = Metrics::default();
    metrics.register(tbmq_service::admin::describe_metrics);
    metrics.register(tbmq_service::otlp_metrics::describe_metrics);
    metrics.register(tbmq_service::trace::describe_metrics);
    metrics
}

fn parts() -> Vec<Part> {
    let shared = common().descriptions();
    let mut parts = vec![Part { title: "Every process", metrics: shared }];
    for (title, describe) in PLANES {
        let metrics = Metrics::default();
        let before = metrics.descriptions().len();
        metrics.register(describe);
        parts.push(Part { title, metrics: metrics.descriptions().split_off(before) });
    }
    parts
}

#[test]
fn the_page_lists_every_metric_with_help_and_closed_labels() {
    let parts = parts();
    let all: Vec<&Description> = parts.iter().flat_map(|part| &part.metrics).collect();
    let problems: Vec<String> = all.iter().filter_map(|metric| metric.problem()).collect();
    assert_eq!(problems, Vec::<String>::new());
    let names: BTreeSet<&str> = all.iter().map(|metric| metric.name.as_str()).collect();
    assert_eq!(names.len(), all.len(), "a name is registered twice");

    let page = render(&parts);
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/metrics.md");
    if std::env::var_os("UPDATE_METRICS").is_some() {
        std::fs::write(&path, &page).unwrap();
    }
    let written = std::fs::read_to_string(&path).unwrap();
    assert!(
        written == page,
        "docs/metrics.md is old; UPDATE_METRICS=1 cargo test -p tbmq --test it the_page_lists writes it anew"
    );
}

/// What is not as it was described.
fn differences(scraped: &[Family], described: &[Description]) -> Vec<String> {
    let mut found = Vec::new();
    let described: BTreeMap<&str, &Description> =
        described.iter().map(|metric| (metric.name.as_str(), metric)).collect();
    for family in scraped {
        let Some(metric) = described.get(family.name.as_str()) else {
            found.push(format!("{} is not described", family.name));
            continue;
        };
        if (family.kind, family.help.as_str()) != (metric.kind, format!("{}.", metric.help).as_str()) {
            found.push(format!("{} is described otherwise: {:?}, {}", family.name, family.kind, family.help));
        }
        for series in &family.series {
            let names: Vec<&str> = series.labels.iter().map(|(name, _)| name.as_str()).collect();
            let expected: Vec<&str> = metric.labels.iter().map(|label| label.name).collect();
            if names != expected {
                found.push(format!("{} has labels {names:?}, not {expected:?}", family.name));
            }
            for ((name, value), label) in series.labels.iter().zip(&metric.labels) {
                if let Values::Closed(values) = &label.values
                    && !values.contains(&value.as_str())
                {
                    found.push(format!("{}: {name} is {value}, none of {values:?}", family.name));
                }
            }
        }
    }
    let scraped: BTreeSet<&str> = scraped.iter().map(|family| family.name.as_str()).collect();
    // What has labels has no series before something happens.
    let always = described.values().filter(|metric| metric.labels.is_empty());
    found.extend(
        always
            .filter(|metric| !scraped.contains(metric.name.as_str()))
            .map(|metric| format!("{} is not served", metric.name)),
    );
    found
}

/// An HTTP server that answers 200, unless it is told to wait.
#[derive(Clone, Default)]
struct Sink(Arc<(Mutex<bool>, Condvar)>);

impl Sink {
    fn start(&self) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let sink = self.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let sink = sink.clone();
                std::thread::spawn(move || sink.serve(stream));
            }
        });
        address
    }

    /// Until the client closes.
    fn serve(&self, stream: TcpStream) -> Option<()> {
        let mut requests = BufReader::new(stream);
        loop {
            let mut length = 0;
            loop {
                let mut line = String::new();
                if requests.read_line(&mut line).ok()? == 0 {
                    return None;
                }
                let line = line.trim().to_ascii_lowercase();
                if let Some(text) = line.strip_prefix("content-length:") {
                    length = text.trim().parse().ok()?;
                }
                if line.is_empty() {
                    break;
                }
            }
            requests.read_exact(&mut vec![0; length]).ok()?;
            let (hangs, changed) = &*self.0;
            drop(changed.wait_while(hangs.lock().unwrap(), |hangs| *hangs).unwrap());
            requests.get_mut().write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").ok()?;
        }
    }

    fn hang(&self, hangs: bool) {
        *self.0.0.lock().unwrap() = hangs;
        self.0.1.notify_all();
    }
}

/// Creates an integration that delivers `s/#` and never gives up; returns its id.
async fn create(started: &Started, sink: SocketAddr) -> String {
    let channel =
        tonic::transport::Channel::from_shared(format!("http://{}", started.address("grpc"))).unwrap();
    let mut client = IntegrationServiceClient::new(channel.connect().await.unwrap());
    let configuration = format!(
        r#"{{"topicFilters":["s/#"],"metadata":{{}},
        "clientConfiguration":{{"restEndpointUrl":"http://{sink}/in","requestMethod":"POST","sendOnlyMsgPayload":true,
            "payloadContentType":"BINARY","maxInMemoryBufferSizeInKb":256}},
        "delivery":{{"ackStrategy":"RETRY_ALL","retries":0,"pauseBetweenRetriesSec":0}}}}"#
    );
    let integration = Integration {
        display_name: "measured".to_owned(),
        r#type: "HTTP".to_owned(),
        enabled: true,
        configuration_json: configuration,
        ..Integration::default()
    };
    let request = CreateIntegrationRequest { integration: Some(integration), ..Default::default() };
    let created = client.create_integration(request).await.unwrap().into_inner();
    created.name.strip_prefix("integrations/").unwrap().to_owned()
}

/// Publishes so many messages at QoS 1, one after the other.
fn publish(started: &Started, count: u16) {
    let (mut client, _) = Client::connect(started, "publisher", true);
    for packet_id in 1..=count {
        let publish = Publish {
            dup: false,
            qos: Qos::AtLeastOnce,
            retain: false,
            topic: "s/a".into(),
            packet_id: Some(packet_id),
            properties: Properties::NONE,
            payload: packet_id.to_string().into(),
        };
        client.send(&Packet::Publish(publish));
        match client.next() {
            Some(Packet::PubAck(ack)) => assert_eq!(ack.packet_id, packet_id),
            other => panic!("no PUBACK: {other:?}"),
        }
    }
}

/// The value of the series with this label value; an empty one: of the one without labels.
fn value<'a>(families: &'a [Family], name: &str, label: &str) -> Option<&'a Value> {
    let family = families.iter().find(|family| family.name == name)?;
    let series = family.series.iter().find(|series| {
        label.is_empty() && series.labels.is_empty() || series.labels.iter().any(|(_, value)| value == label)
    })?;
    Some(&series.value)
}

fn number(families: &[Family], name: &str, label: &str) -> Option<f64> {
    match value(families, name, label)? {
        Value::Number(number) => Some(*number),
        Value::Distribution(_) => None,
    }
}

fn count(families: &[Family], name: &str, label: &str) -> Option<u64> {
    match value(families, name, label)? {
        Value::Number(_) => None,
        Value::Distribution(distribution) => Some(distribution.count),
    }
}

/// Reads the metrics of the process until they say so.
fn until(started: &Started, what: &str, holds: impl Fn(&[Family]) -> bool) -> Vec<Family> {
    let began = Instant::now();
    loop {
        let families = exposition::read(&started.get("/metrics").1).unwrap();
        if holds(&families) {
            return families;
        }
        let lags: Vec<&Family> =
            families.iter().filter(|family| family.name.starts_with("tbmq_integration_")).collect();
        assert!(began.elapsed() < PATIENCE, "in vain: {what}; {lags:#?}");
        std::thread::sleep(Duration::from_millis(250));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_served_is_what_the_page_says_and_a_sink_that_hangs_shows_as_lag() {
    let folder = tempfile::tempdir().unwrap();
    let mut command = tbmq(folder.path());
    let started =
        Started::new(command.env("INTEGRATIONS_ALLOW_LOCAL_NETWORK_HOSTS", "true").stderr(Stdio::null()));
    let sink = Sink::default();
    let id = create(&started, sink.start()).await;
    publish(&started, 20);
    // Each is counted a moment after what it counts is seen from outside, and by a thread of its own.
    let families =
        until(&started, "20 messages are published, acknowledged, attempted and delivered", |families| {
            number(families, "incomingPublishMsg_published", "successfulMsgs") == Some(20.0)
                && count(families, "tbmq_mqtt_puback_seconds", "") == Some(20)
                && count(families, "tbmq_executor_attempt_seconds", "delivered") == Some(20)
                && count(families, "tbmq_executor_delivery_seconds", "HTTP") == Some(20)
        });
    let described: Vec<Description> = parts().into_iter().flat_map(|part| part.metrics).collect();
    let mut found = differences(&families, &described);
    // Spans are counted where they are exported.
    found.retain(|text| !text.starts_with("tbmq_trace_"));
    assert_eq!(found, Vec::<String>::new());

    sink.hang(true);
    publish(&started, 30);
    let families = until(&started, "30 messages wait, for a while", |families| {
        number(families, "tbmq_integration_lag_messages", &id) == Some(30.0)
            && number(families, "tbmq_integration_lag_seconds", &id).is_some_and(|seconds| seconds > 3.0)
    });
    for name in ["tbmq_integration_unaccounted_messages", "tbmq_executor_unaccounted_messages"] {
        assert_eq!(number(&families, name, &id), Some(0.0), "{name}");
    }
    let in_hand = ["tbmq_executor_in_flight_messages", "tbmq_executor_waiting_messages"]
        .map(|name| number(&families, name, &id).unwrap_or_default());
    assert_eq!(in_hand.iter().sum::<f64>().round() as u64, 30, "{in_hand:?}");
    assert_eq!(number(&families, "tbmq_integration_time_to_drain_seconds", &id), None, "it does not shrink");

    sink.hang(false);
    let families = until(&started, "nothing waits", |families| {
        ["tbmq_integration_lag_messages", "tbmq_integration_lag_seconds"]
            .iter()
            .all(|name| number(families, name, &id) == Some(0.0))
    });
    assert_eq!(number(&families, "tbmq_integration_unaccounted_messages", &id), Some(0.0));
    assert_eq!(started.stop(), Some(0));
}

#[test]
fn a_metric_that_is_not_described_is_noticed() {
    let text = "# HELP a A.\n# TYPE a gauge\na{b=\"c\"} 1\n# HELP d D.\n# TYPE d gauge\nd 1\n# EOF\n";
    let scraped = exposition::read(text).unwrap();
    let describe = |name: &str, label: Option<Label>| Description {
        name: name.to_owned(),
        kind: Kind::Gauge,
        unit: None,
        help: name.to_uppercase(),
        labels: label.into_iter().collect(),
    };
    let label = |value: &'static str| Some(Label::closed("b", vec![value]));
    assert_eq!(
        differences(&scraped, &[describe("a", label("c")), describe("d", None)]),
        Vec::<String>::new()
    );
    assert_eq!(differences(&scraped, &[describe("a", label("x")), describe("d", None)]).len(), 1);
    assert_eq!(differences(&scraped, &[describe("a", label("c"))]), ["d is not described"]);
    let more = [describe("a", label("c")), describe("d", None), describe("e", None)];
    assert_eq!(differences(&scraped, &more), ["e is not served"]);
}
