//! Too much at once: what is refused, and what goes on.

use std::{num::NonZeroUsize, time::Duration};

use futures_util::{StreamExt as _, stream::FuturesUnordered};
use tbmq_proto::control::CheckConnectionRequest;
use tonic::{Code, Request};
use tonic_types::StatusExt as _;

use crate::support::{Cluster, Verdict, eventually, integration, reason};

#[tokio::test]
async fn a_flood_of_checks_is_refused_at_its_limit_and_leaves_reading_and_writing_as_they_were() {
    const ROOM: usize = 4;
    let cluster = Cluster::new();
    let configure = |config: &mut tbmq_control_plane::Config| {
        config.control.calls.checks_max = NonZeroUsize::new(ROOM).unwrap();
        config.control.calls.reads_max = NonZeroUsize::new(8).unwrap();
    };
    let plane = cluster.control_plane_with("cp1", configure).await;
    let executor = cluster.executor(Verdict::Accept).await;
    let held = plane.create("held").await.unwrap();

    executor.decide(Verdict::Silent);
    let mut checks: FuturesUnordered<_> = (0..ROOM * 5)
        .map(|_| {
            let mut client = plane.integrations.clone();
            async move {
                let request =
                    CheckConnectionRequest { integration: Some(integration("x")), ..Default::default() };
                client.check_connection(Request::new(request)).await
            }
        })
        .collect();
    // Those that found room hang until the executor answers.
    for _ in 0..ROOM * 4 {
        let refused = checks.next().await.unwrap().unwrap_err();
        assert_eq!(reason(&refused), (Code::ResourceExhausted, "OVERLOADED".to_owned()));
        let retry = refused.get_error_details().retry_info().and_then(|info| info.retry_delay);
        assert!(retry.is_some_and(|delay| delay > Duration::ZERO), "{refused:?}");
        assert!(refused.message().contains("4 connection checks"), "{refused:?}");
    }
    for _ in 0..20 {
        plane.get(&held.name).await.unwrap();
        assert_eq!(plane.list().await.len(), 1);
    }
    plane.enable(&held.name, false).await.unwrap();

    executor.decide(Verdict::Accept);
    while let Some(done) = checks.next().await {
        assert!(done.unwrap().into_inner().ok);
    }
    let mut client = plane.integrations.clone();
    let request = CheckConnectionRequest { integration: Some(integration("x")), ..Default::default() };
    assert!(client.check_connection(request).await.unwrap().into_inner().ok, "there is room again");
}

#[tokio::test]
async fn a_call_ends_at_the_servers_deadline_and_saves_nothing() {
    let cluster = Cluster::new();
    let configure = |config: &mut tbmq_control_plane::Config| {
        config.control.calls.deadline = Duration::from_millis(200);
    };
    let plane = cluster.control_plane_with("cp1", configure).await;
    let executor = cluster.executor(Verdict::Silent).await;
    let late = plane.create("late").await.unwrap_err();
    assert_eq!(reason(&late), (Code::DeadlineExceeded, "DEADLINE_EXCEEDED".to_owned()));
    executor.decide(Verdict::Accept);
    eventually("the same name can be created", async || plane.create("late").await.is_ok()).await;
    assert_eq!(plane.list().await.len(), 1);
}
