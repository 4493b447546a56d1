//! The same of credentials: what is stored is the state before the call or the state after it, and what lies on their
//! topic comes to agree with that.

use prost::Message as _;
use tbmq_auth::credentials::{Credentials as Stored, Proof as StoredProof};
use tbmq_control_plane::{fault::Point, store::Request};
use tbmq_proto::{
    control::{
        BasicCredentials, CreateCredentialsRequest, Credentials, DeleteCredentialsRequest,
        UpdateCredentialsRequest, credentials::Proof, credentials_service_client::CredentialsServiceClient,
    },
    wire::CredentialsRecord,
};
use tonic::Status;

use super::{Call, Death, Lone, System, die_everywhere, sqlite};
use crate::support::eventually;

/// Of `abc`.
const HASH: &str = "$2a$10$WvvTPHKwdBJ3uk0Z37EMR.hLA2W6N9AEBhEgrAOljy2Ae5MtaSIUi";

fn credentials(system: &System, display_name: &str) -> Credentials {
    let proof = BasicCredentials {
        user_name: Some("u".to_owned()),
        password_hash: Some(HASH.to_owned()),
        ..BasicCredentials::default()
    };
    Credentials {
        name: format!("credentials/{}", system.id),
        display_name: display_name.to_owned(),
        proof: Some(Proof::Basic(proof)),
        ..Credentials::default()
    }
}

async fn make(system: &System, call: Call, plane: &Lone, request_id: &str) -> Result<(), Status> {
    let mut client = CredentialsServiceClient::new(plane.channel.clone());
    let request_id = request_id.to_owned();
    match call {
        Call::Create => {
            let request = CreateCredentialsRequest {
                credentials: Some(credentials(system, "one")),
                id: system.id.to_string(),
                request_id,
                ..CreateCredentialsRequest::default()
            };
            client.create_credentials(request).await.map(drop)
        }
        Call::Update => {
            let request = UpdateCredentialsRequest {
                credentials: Some(credentials(system, "two")),
                request_id,
                ..UpdateCredentialsRequest::default()
            };
            client.update_credentials(request).await.map(drop)
        }
        Call::Delete => {
            let name = format!("credentials/{}", system.id);
            let request =
                DeleteCredentialsRequest { name, request_id, ..DeleteCredentialsRequest::default() };
            client.delete_credentials(request).await.map(drop)
        }
    }
}

async fn stored(system: &System) -> Option<Stored> {
    system.store.find_credentials(&[system.id.0]).await.unwrap().pop().map(|row| row.credentials)
}

/// Waits until everything of the store lies on the bus.
async fn agreed(system: &System) {
    let catalogue = &system.cluster.catalogue;
    let (topic, settings) = (catalogue.credentials().name, catalogue.auth_settings().name);
    eventually("all agree", async || {
        let row = stored(system).await;
        let held = system.cluster.latest(&topic).await.remove(&system.id.to_string());
        let is_same = match (&row, held) {
            (Some(row), Some((revision, Some(value)))) => {
                let held = CredentialsRecord::decode(value).unwrap();
                revision == Some(row.revision) && held.revision == row.revision && held.name == row.name
            }
            (None, None | Some((_, None))) => true,
            _ => false,
        };
        is_same
            && system.store.auth_marks(10).await.unwrap().is_empty()
            && system.cluster.latest(&settings).await.contains_key("secrets")
    })
    .await;
}

/// Whether the call was done: everything about it is stored, or nothing.
async fn is_done(system: &System, call: Call, before: Option<&Stored>) -> bool {
    let row = stored(system).await;
    let is_done = row.as_ref() != before;
    let method = match call {
        Call::Create => "CreateCredentials",
        Call::Update => "UpdateCredentials",
        Call::Delete => "DeleteCredentials",
    };
    let request = Request { method, id: system.request_id.clone(), fingerprint: "another".to_owned() };
    let is_remembered = system.store.recall(&request, tbmq_service::time::now_ms()).await.is_err();
    assert_eq!(is_remembered, is_done, "the request id goes with what was done");
    match (call, &row) {
        (Call::Delete, row) => assert_eq!(row.is_none(), is_done),
        (Call::Create, None) => assert!(!is_done),
        (call, Some(row)) => {
            assert_eq!(row.name == "two", call == Call::Update && is_done);
            let hash = Some(HASH.to_owned());
            assert!(matches!(&row.proof, StoredProof::Basic { password_hash, .. } if *password_hash == hash));
        }
        (Call::Update, None) => panic!("it was there"),
    }
    is_done
}

/// Makes a call and dies, or not. Returns the road, and whether it has died.
async fn run(call: Call, at: Option<(Point, usize)>) -> (Vec<Point>, bool) {
    let system = System::new(sqlite).await;
    let death = Death::at(at);
    let plane = Lone::start(&system, &death);
    agreed(&system).await;
    if call != Call::Create {
        make(&system, Call::Create, &plane, "before").await.unwrap();
        agreed(&system).await;
    }
    let before = stored(&system).await;
    let made = async {
        make(&system, call, &plane, &system.request_id).await.ok();
        agreed(&system).await;
    };
    let (road, has_died) = death.travel(made).await;
    if !has_died {
        return (road, false);
    }
    plane.dead().await;
    let was_done = is_done(&system, call, before.as_ref()).await;
    let left = stored(&system).await;

    let again = Lone::start(&system, &Death::at(None));
    agreed(&system).await;
    assert_eq!(stored(&system).await, left, "nothing is changed by coming back");
    make(&system, call, &again, &system.request_id).await.unwrap();
    agreed(&system).await;
    if was_done {
        assert_eq!(stored(&system).await, left, "it was done already");
    }
    assert!(is_done(&system, call, before.as_ref()).await, "it is done now");
    (road, true)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_death_between_any_two_steps_leaves_credentials_in_one_of_two_states() {
    let mut died = Vec::new();
    for call in [Call::Create, Call::Update, Call::Delete] {
        died.extend(die_everywhere(call, async |at| run(call, at).await).await);
    }
    for point in [
        Point::Saving,
        Point::Saved,
        Point::AuthMarked,
        Point::AuthWritten,
        Point::AuthNoted,
        Point::Answering,
    ] {
        assert!(died.contains(&point), "nobody has died at {point:?}");
    }
}
