//! Secrets that come sealed, and secrets in what sinks say.

use ring::rand::SystemRandom;
use serde_json::json;
use tbmq_integration::{
    seal::{Keys, Purpose},
    secret,
    wire::{RequestType, Target},
};
use tbmq_proto::{
    ids::IntegrationId,
    integration::{ComponentLifecycleEventProto as Word, native_event::Body},
};
use tbmq_service::config::Secret;

use crate::world::{State, World, new_id, schema};

const SECRET: &str = "planted-secret";

fn key(id: &str) -> String {
    format!("{id}:{}=", "A".repeat(43))
}

async fn world(keys: &str) -> World {
    let mut world = World::new().await;
    world.config.secrets.keys = Secret::new(keys);
    world
}

/// A target whose password is sealed with a key.
fn sealed(id: IntegrationId, key_id: &str) -> Target {
    let document =
        json!({ "topicFilters": ["a"], "clientConfiguration": { "password": SECRET } }).to_string();
    let secrets = secret::find(Some(&schema()), &document);
    let keys = Keys::parse(&key(key_id)).unwrap();
    let parted =
        keys.part(&SystemRandom::new(), id, Purpose::Revision(1), &document, &secrets).unwrap().unwrap();
    Target { name: "n".into(), enabled: true, configuration: parted.plain, sealed: Some(parted.sealed) }
}

fn failures(state: &State, id: IntegrationId) -> Vec<String> {
    let own = state.events.iter().filter(|(other, _)| *other == id);
    own.filter_map(|(_, event)| match &event.body {
        Some(Body::Lifecycle(lifecycle)) => lifecycle.error.clone(),
        _ => None,
    })
    .collect()
}

#[tokio::test]
async fn a_sealed_secret_reaches_the_sink_and_nothing_else() {
    let world = world(&format!("{},{}", key("new"), key("old"))).await;
    let id = new_id();
    world.create_messages(id).await;
    let executor = world.executor("ie1").await;
    let revision = world.apply_target(id, sealed(id, "old")).await;
    world.until_word(id, Word::Started, revision).await;
    let connects = world.state.borrow().connects.clone();
    assert_eq!(connects, [(id, json!({ "password": SECRET }).as_object().unwrap().clone())]);

    world.publish(id, [format!("reject {SECRET}!")]).await;
    world.until("the error is told", |state| !state.errors(id).is_empty()).await;
    assert_eq!(world.state.borrow().errors(id), [("onMsgProcess", "reject ********!", 1)]);
    executor.drain().await;
}

#[tokio::test]
async fn a_failure_to_connect_is_told_without_secrets() {
    let world = world(&key("a")).await;
    let id = new_id();
    world.create_messages(id).await;
    world.change(|state| state.refuse = Some(format!("401 for {SECRET}")));
    let executor = world.executor("ie1").await;
    let revision = world.apply_target(id, sealed(id, "a")).await;
    world.until_word(id, Word::Failed, revision).await;
    assert_eq!(failures(&world.state.borrow(), id)[0], "401 for ********");
    executor.drain().await;
}

#[tokio::test]
async fn without_the_key_an_integration_fails_with_its_id_and_the_others_run() {
    let world = world(&key("new")).await;
    let (id, other) = (new_id(), new_id());
    for id in [id, other] {
        world.create_messages(id).await;
    }
    let executor = world.executor("ie1").await;
    let revision = world.apply_target(id, sealed(id, "lost")).await;
    let running = world.apply(other, true).await;
    world.until_word(other, Word::Started, running).await;
    world.until_word(id, Word::Failed, revision).await;
    let text = failures(&world.state.borrow(), id)[0].clone();
    assert!(text.contains("key \"lost\"") && text.contains("TBMQ_SECRETS_KEYS"), "{text}");
    assert!(
        world.state.borrow().connects.iter().all(|(connected, _)| *connected != id),
        "masks are no secrets"
    );
    executor.drain().await;
}

#[tokio::test]
async fn a_sealed_request_is_answered_with_its_key_and_refused_without() {
    let world = world(&key("here")).await;
    let executor = world.executor("ie1").await;
    // Requests from before the restoration are history.
    let id = new_id();
    world.create_messages(id).await;
    let revision = world.apply(id, true).await;
    world.until_word(id, Word::Started, revision).await;
    for (key_id, refusal) in [("here", None), ("lost", Some("key \"lost\""))] {
        let asked = world
            .ask_sealed(RequestType::CheckConnection, &key(key_id), &json!({ "password": SECRET }))
            .await;
        world.until("it is answered", |state| state.replies.iter().any(|reply| reply.id == asked)).await;
        let state = world.state.borrow();
        let reply = state.replies.iter().find(|reply| reply.id == asked).unwrap();
        match (refusal, &reply.error) {
            (None, None) => {
                assert_eq!(reply.stages[0].text, "with ********", "the secret was there, and is not told");
            }
            (Some(part), Some(text)) => assert!(text.contains(part), "{text}"),
            other => panic!("{other:?}"),
        }
    }
    executor.drain().await;
}

#[tokio::test]
async fn keys_that_can_not_be_used_keep_the_executor_from_starting() {
    let world = world("a:AAAA").await;
    let refusal = world.refusal().await;
    assert_eq!(refusal, "bad value for TBMQ_SECRETS_KEYS: key 1 has 3 bytes instead of 32");
}
