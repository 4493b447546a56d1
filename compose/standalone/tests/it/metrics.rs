//! The page that lists every metric.

use std::{collections::BTreeSet, path::Path};

use tbmq_service::metrics::{
    Description, Metrics, Registry,
    page::{Part, render},
};

type Describe = fn(&mut Registry);

const PLANES: [(&str, Describe); 3] = [
    ("Control plane", tbmq_control_plane::describe_metrics),
    ("Data plane", tbmq_data_plane::describe_metrics),
    ("Executor", tbmq_executor::describe_metrics),
];

/// What every process has: its own registry, and what exports.
fn common() -> Metrics {
    let metrics = Metrics::default();
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
