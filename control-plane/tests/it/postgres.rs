//! The same contract on PostgreSQL.

use std::time::Duration;

use tbmq_control_plane::{
    config::DatabaseUrl,
    store::{Options, Store},
};
use tbmq_harness::{Need, postgres::Postgres, ready};

pub(crate) fn options() -> Options {
    let url = Postgres::shared().create_database().unwrap();
    Options { url, connections: 8, patience: Duration::from_secs(10) }
}

#[tokio::test]
async fn postgres_keeps_the_contract() {
    if ready("postgres_keeps_the_contract", &[Need::Postgres]) {
        crate::store::contract(options()).await;
    }
}

#[tokio::test]
async fn replicas_that_start_together_migrate_once() {
    if !ready("replicas_that_start_together_migrate_once", &[Need::Postgres]) {
        return;
    }
    let options = options();
    let starts: Vec<_> = (0..4)
        .map(|_| {
            let options = options.clone();
            tokio::spawn(async move { Store::open(&options).await.map(drop) })
        })
        .collect();
    for start in starts {
        start.await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn integrations_live_on_postgres_as_on_sqlite() {
    use crate::support::{Cluster, Verdict, eventually, phase};
    if !ready("integrations_live_on_postgres_as_on_sqlite", &[Need::Postgres]) {
        return;
    }
    let cluster = Cluster::new();
    let url = DatabaseUrl::new(options().url);
    let first = cluster.control_plane_with("cp1", |config| config.database.url = Some(url.clone())).await;
    let second = cluster.control_plane_with("cp2", |config| config.database.url = Some(url)).await;
    let _executor = cluster.executor(Verdict::Accept).await;
    let created = second.create("one").await.unwrap();
    eventually("running", async || phase(&first.get(&created.name).await.unwrap()) == "PHASE_ACTIVE").await;
    first.enable(&created.name, false).await.unwrap();
    assert_eq!(phase(&second.get(&created.name).await.unwrap()), "PHASE_DISABLED");
    second.delete(&created.name).await.unwrap();
    let topic = cluster.catalogue.messages(crate::support::id_of(&created), 1).name;
    eventually("the topic is gone", async || !cluster.exists(&topic).await).await;
}
