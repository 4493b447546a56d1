//! Every expression of the dashboards, alerts and recording rules, asked of a Prometheus that watches `tbmq` under load.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    sync::atomic::{AtomicUsize, Ordering},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use http::StatusCode;
use serde_json::Value;
use tbmq_e2e::{
    api::http_with,
    deployment::{Deployment, Plane},
    work,
};
use tbmq_harness::{
    Need,
    client::{Client, Plan},
    http_sink::HttpSink,
    prometheus::Prometheus,
    ready,
};
use tbmq_mqtt::packet::{ProtocolVersion, Qos};

const PATIENCE: Duration = Duration::from_secs(60);

/// What a healthy run does not show: the name of a metric, a part of its selector, and why.
const ABSENT: &[(&str, &str, &str)] = &[
    ("ALERTS", "", "no alert fires"),
    ("tbmq_auth_answers_total", "", "no provider is enabled"),
    ("tbmq_auth_http_calls_total", "", "no provider is enabled"),
    ("tbmq_auth_refused_total", "", "nobody is refused"),
    ("tbmq_control_calls_shed_total", "", "no call is refused at a limit"),
    ("tbmq_control_calls_total", "code=~\"Internal", "no call fails for a reason that is not its caller's"),
    ("tbmq_control_tls_certificate_not_after_seconds", "", "there is no certificate"),
    ("tbmq_executor_limits_reached_total", "", "no limit is reached"),
    ("tbmq_executor_settled_messages_total", "outcome=\"expired\"", "no message expires"),
    ("tbmq_executor_settled_messages_total", "outcome=\"skipped\"", "no message is skipped"),
    ("tbmq_integration_time_to_drain_seconds", "", "nothing waits"),
    ("tbmq_mqtt_client_limits_reached_total", "", "no limit is reached"),
    ("tbmq_mqtt_handshakes_failed_total", "", "no handshake fails"),
    ("tbmq_mqtt_records_refused_total", "", "the bus takes everything"),
    ("tbmq_mqtt_tls_certificate_not_after_seconds", "", "there is no certificate"),
    ("tbmq_service_metric_exports_total", "", "there is no collector"),
];

/// An expression and where it stands.
#[derive(Debug)]
struct Asked {
    place: String,
    expression: String,
    /// Labels that the legend shows.
    legend: Vec<String>,
    /// Whether it compares, as alerts do: its value is what is left of the comparison.
    compares: bool,
}

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(name)
}

/// Everything between `{{` and `}}`.
fn labels_of(legend: &str) -> Vec<String> {
    legend.split("{{").skip(1).filter_map(|rest| Some(rest.split_once("}}")?.0.trim().to_owned())).collect()
}

/// All expressions of a dashboard, with its variables filled in.
fn of_dashboard(path: &Path) -> Result<Vec<Asked>> {
    let text = fs::read_to_string(path)?;
    let dashboard: Value = serde_json::from_str(&text).with_context(|| path.display().to_string())?;
    let title = &dashboard["title"];
    let mut all = Vec::new();
    let mut add = |place: String, expression: &Value, legend: &str, compares| {
        let expression = expression.as_str().unwrap_or_default();
        let expression = ["$instance", "$integration"]
            .iter()
            .fold(expression.to_owned(), |text, variable| text.replace(variable, ".*"));
        let expression = expression.replace("$__rate_interval", "1m");
        all.push(Asked { place, expression, legend: labels_of(legend), compares });
    };
    for panel in dashboard["panels"].as_array().context("no panels")? {
        for target in panel["targets"].as_array().into_iter().flatten() {
            let legend = target["legendFormat"].as_str().unwrap_or_default();
            add(format!("{title}, {}", panel["title"]), &target["expr"], legend, false);
        }
    }
    for variable in dashboard["templating"]["list"].as_array().context("no variables")? {
        let Some(query) = variable["definition"].as_str() else { continue };
        let query = query.strip_prefix("label_values(").and_then(|query| query.strip_suffix(')'));
        let (metric, label) =
            query.and_then(|query| query.rsplit_once(", ")).context("label_values(metric, label)")?;
        add(format!("{title}, ${}", variable["name"]), &metric.into(), &format!("{{{{{label}}}}}"), false);
    }
    for annotation in dashboard["annotations"]["list"].as_array().into_iter().flatten() {
        add(format!("{title}, annotation {}", annotation["name"]), &annotation["expr"], "", true);
    }
    Ok(all)
}

/// All rules that the server has loaded: it reads their YAML.
fn of_rules(prometheus: &Prometheus) -> Result<Vec<Asked>> {
    let answer: Value = serde_json::from_str(&prometheus.get("/api/v1/rules")?)?;
    let mut all = Vec::new();
    for group in answer["data"]["groups"].as_array().context("no groups")? {
        for rule in group["rules"].as_array().context("no rules")? {
            let summary = rule["annotations"]["summary"].as_str().unwrap_or_default();
            let labels = summary.split("$labels.").skip(1);
            let labels = labels.filter_map(|rest| rest.split([' ', '}']).next());
            all.push(Asked {
                place: rule["name"].as_str().context("no name")?.to_owned(),
                expression: rule["query"].as_str().context("no query")?.to_owned(),
                legend: labels.map(str::to_owned).collect(),
                compares: rule["type"] == "alerting",
            });
        }
    }
    Ok(all)
}

/// The selectors of an expression: a name, if any, and what stands in braces.
fn selectors(expression: &str) -> Vec<String> {
    let mut found = Vec::new();
    for (at, _) in expression.match_indices('{') {
        let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':';
        let start = expression[..at].rfind(|c| !is_name(c)).map_or(0, |before| before + 1);
        let Some(length) = expression[at..].find('}') else { continue };
        found.push(expression[start..=at + length].to_owned());
    }
    found
}

/// Without the comparison that makes an alert of a value.
fn value_of(expression: &str) -> String {
    let words: Vec<&str> = expression.split(' ').collect();
    let mut kept = Vec::new();
    let mut at = 0;
    while at < words.len() {
        let compares = matches!(words[at], ">" | "<" | "==");
        let with = words.get(at + 1).is_some_and(|word| word.trim_end_matches(')').parse::<f64>().is_ok());
        if compares && with {
            at += 2;
        } else {
            kept.push(words[at]);
            at += 1;
        }
    }
    kept.join(" ")
}

fn reason(selector: &str) -> Option<&'static str> {
    let name = selector.split('{').next().unwrap_or_default();
    let fits = |(absent, part, _): &&(&str, &str, &str)| name == *absent && selector.contains(part);
    ABSENT.iter().find(fits).map(|(_, _, reason)| *reason)
}

/// The label sets that an expression gives.
fn series(prometheus: &Prometheus, expression: &str) -> Result<Vec<BTreeMap<String, String>>> {
    let answer: Value = serde_json::from_str(&prometheus.query(expression)?)?;
    let result = answer["data"]["result"].as_array().context("no result")?;
    Ok(result.iter().filter_map(|entry| serde_json::from_value(entry["metric"].clone()).ok()).collect())
}

/// What is wrong with an expression; nothing when it gives what it should.
fn judge(prometheus: &Prometheus, asked: &Asked) -> Result<Vec<String>> {
    let Asked { place, expression, legend, compares } = asked;
    let mut wrong = Vec::new();
    // Must be right as it stands, whatever it gives.
    if let Err(error) = prometheus.query(expression) {
        return Ok(vec![format!("{place}: {error:#}")]);
    }
    let selectors = selectors(expression);
    for selector in &selectors {
        if reason(selector).is_none() && series(prometheus, selector)?.is_empty() {
            wrong.push(format!("{place}: no series: {selector}"));
        }
        // Each of several names must be one.
        if let Some(names) = selector.split("__name__=~\"").nth(1).and_then(|rest| rest.split('"').next()) {
            for name in names.split('|').filter(|name| !name.contains('*')) {
                if series(prometheus, name)?.is_empty() {
                    wrong.push(format!("{place}: no series: {name}"));
                }
            }
        }
    }
    // `absent`, and a comparison with the past.
    if expression.contains("absent(")
        || expression.contains(" offset ")
        || selectors.iter().any(|selector| reason(selector).is_some())
    {
        return Ok(wrong);
    }
    let value = if *compares { value_of(expression) } else { expression.clone() };
    let found = series(prometheus, &value)?;
    if found.is_empty() {
        wrong.push(format!("{place}: nothing: {value}"));
    }
    for label in legend {
        if found.iter().any(|labels| !labels.contains_key(label)) {
            wrong.push(format!("{place}: no label {label}: {value}"));
        }
    }
    Ok(wrong)
}

#[tokio::test(flavor = "multi_thread")]
async fn every_expression_of_dashboards_and_alerts_gives_series_of_a_running_system() -> Result<()> {
    if !ready("dashboards", &[Need::Prometheus]) {
        return Ok(());
    }
    let mut deployment = Deployment::standalone()?;
    let mut api = deployment.api()?;
    let sink = HttpSink::start().await?;
    let requests = AtomicUsize::new(0);
    sink.script(move |_, path, _| {
        let nth = requests.fetch_add(1, Ordering::Relaxed);
        let status = match path {
            "/rejects" => StatusCode::BAD_REQUEST,
            "/fails" if nth.is_multiple_of(2) => StatusCode::SERVICE_UNAVAILABLE,
            _ => StatusCode::OK,
        };
        (status, Duration::ZERO)
    });
    let retry = r#"{"ackStrategy":"RETRY_ALL","retries":0,"pauseBetweenRetriesSec":0}"#;
    let keep = r#"{"ackStrategy":"RETRY_ALL","retries":0,"pauseBetweenRetriesSec":0,"deadLetter":true}"#;
    for (name, path, delivery) in
        [("a", "in", retry), ("b", "rejects", retry), ("c", "rejects", keep), ("d", "fails", retry)]
    {
        api.create_active(http_with(name, &["s/#"], &sink.url(path), delivery)).await?;
    }
    let mut subscriber = Client::connect(deployment.mqtt(), "subscriber", ProtocolVersion::V5).await?;
    subscriber.subscribe("s/#", Qos::AtMostOnce).await?;

    let process = deployment.process(Plane::All)?.address("http");
    let rules = ["rules.yml", "alerts.yml"].map(|name| folder("prometheus").join(name));
    let rules: Vec<&Path> = rules.iter().map(PathBuf::as_path).collect();
    let prometheus = Prometheus::start(&[(process, "tbmq-1", "all")], &rules)?;
    let mut asked = of_rules(&prometheus)?;
    ensure!(asked.len() > 40, "{} rules", asked.len());
    let mut dashboards = 0;
    for entry in fs::read_dir(folder("grafana/dashboards"))? {
        asked.extend(of_dashboard(&entry?.path())?);
        dashboards += 1;
    }
    ensure!(dashboards == 5, "{dashboards} dashboards");

    // Some series come with the first message, and a rate takes two scrapes: until everything is there.
    let began = Instant::now();
    let mut first = 0;
    loop {
        work::publish(Plan::new(deployment.mqtt(), "s/a", 50).first(first), 1).await?;
        first += 50;
        // A read, for the times of reads, and a call that fails.
        api.list_nodes().await?;
        ensure!(api.get("integrations/missing").await.is_err(), "there is no such integration");
        let mut wrong = BTreeSet::new();
        for one in &asked {
            wrong.extend(judge(&prometheus, one)?);
        }
        if wrong.is_empty() {
            break;
        }
        let wrong: Vec<String> = wrong.into_iter().collect();
        ensure!(began.elapsed() < PATIENCE, "{} of {}:\n{}", wrong.len(), asked.len(), wrong.join("\n"));
    }
    let firing = series(&prometheus, "ALERTS{alertstate=\"firing\", severity=\"critical\"}")?;
    assert_eq!(firing, [], "a healthy system alerts nobody");
    println!("{} expressions of {dashboards} dashboards and the rules give what they should", asked.len());
    deployment.drain_all()
}

#[test]
fn selectors_are_found_and_comparisons_left_out() {
    let found =
        selectors(r#"sum by (a) (rate(x_total{job="t"}[5m])) / y{a="b"} > 0.5 and {__name__=~"p|q"} == 1"#);
    assert_eq!(found, [r#"x_total{job="t"}"#, r#"y{a="b"}"#, r#"{__name__=~"p|q"}"#]);
    assert_eq!(value_of("a{} / b{} > 0.5"), "a{} / b{}");
    assert_eq!(value_of("max(a) > 1 and on (x) b > 0"), "max(a) and on (x) b");
    assert_eq!(labels_of("{{a}} of {{ b }}"), ["a", "b"]);
}
