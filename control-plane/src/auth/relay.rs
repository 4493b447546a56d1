//! What is kept of who may connect is written to its topics, one record a row, as integrations are.

use std::collections::HashMap;

use bytes::Bytes;
use tokio::sync::Notify;
use uuid::Uuid;

use super::record;
use crate::{
    fault::Point,
    plane::Plane,
    relayer::{self, Error, Prepared, Ready, Relayer},
    store::{self, AuthMark, AuthTopic, BlockedRow, CredentialsRow, Item, Projection, ProviderRow, Setting},
};

/// Marks that are followed in one round: a million of them are imported at once.
const BATCH_MARKS: u64 = 1_000;

/// Credentials, settings and blocks.
#[derive(Debug)]
pub(crate) enum Kept {}

impl relayer::Kept for Kept {
    type Key = Item;
    type Mark = AuthMark;

    const MARKS: u64 = BATCH_MARKS;
    const POINTS: [Point; 3] = [Point::AuthMarked, Point::AuthWritten, Point::AuthNoted];

    fn key(mark: &AuthMark) -> (Item, u64) {
        (mark.item.clone(), mark.revision)
    }

    fn dirty(plane: &Plane) -> &Notify {
        &plane.auth_dirty
    }

    async fn marks(plane: &Plane, limit: u64) -> Result<Vec<AuthMark>, store::Error> {
        plane.store.auth_marks(limit).await
    }

    async fn prepare(relayer: &Relayer, marks: Vec<AuthMark>) -> Result<Vec<Ready<AuthMark>>, Error> {
        let plane = &relayer.plane;
        let mut values = values_of(plane, &marks).await?;
        let prepare = |mark: AuthMark| {
            let (revision, value) = match values.remove(&mark.item) {
                Some(State::Whole(revision, value)) => (revision, Some(value)),
                Some(State::Unreadable) => return (mark, Ok(None)),
                None => (mark.revision, None),
            };
            let is_gone = value.is_none();
            let record = record::record(&plane.catalogue, mark.item.topic, &mark.record_key, revision, value);
            let prepared = Prepared { mark: mark.clone(), revision, records: vec![record], is_gone };
            (mark, Ok(Some(prepared)))
        };
        Ok(marks.into_iter().map(prepare).collect())
    }

    async fn written(plane: &Plane, done: Vec<(AuthMark, Option<Projection>)>) -> Result<(), store::Error> {
        plane.store.auth_projected(&done).await?;
        plane.auth_projected.told(done.into_iter().filter_map(|(mark, at)| Some((mark.item, at?))));
        Ok(())
    }
}

/// What a row is on the bus.
pub(super) enum State {
    /// Its revision and the value of its record.
    Whole(u64, Bytes),
    /// What is stored can't be read: what was written before stays.
    Unreadable,
}

pub(super) fn of_credentials(row: &CredentialsRow) -> State {
    State::Whole(row.credentials.revision, record::credentials(&row.credentials))
}

pub(super) fn of_blocked(row: &BlockedRow) -> State {
    State::Whole(row.revision, record::blocked(row))
}

fn of_provider(row: &ProviderRow) -> State {
    match &row.unreadable {
        // Data planes may have the key that is missing here.
        Some(error) if row.parted.is_none() => {
            tracing::warn!(%error, provider = row.kind, "the configuration can't be sent to data planes");
            State::Unreadable
        }
        _ => State::Whole(row.revision, record::provider(row)),
    }
}

fn of_setting(setting: Setting) -> (Item, State) {
    match setting {
        Setting::Providers { revision, priorities } => (
            store::setting_item(record::PROVIDERS),
            State::Whole(revision, record::providers(revision, priorities)),
        ),
        Setting::Secrets { revision, pretence_key } => (
            store::setting_item(record::SECRETS),
            State::Whole(revision, record::secrets(revision, pretence_key)),
        ),
    }
}

/// All settings as they are on the bus.
pub(super) async fn settings(plane: &Plane) -> Result<Vec<(Item, State)>, store::Error> {
    let (providers, settings) = tokio::try_join!(plane.store.providers(), plane.store.auth_settings())?;
    let providers = providers.iter().map(|row| (row.item(), of_provider(row)));
    Ok(providers.chain(settings.into_iter().map(of_setting)).collect())
}

/// What the rows of these marks are on the bus; those that are gone are not among them.
async fn values_of(plane: &Plane, marks: &[AuthMark]) -> Result<HashMap<Item, State>, store::Error> {
    let rows_of =
        |topic| marks.iter().filter(move |mark| mark.item.topic == topic).map(|mark| mark.item.row.as_str());
    let mut values = HashMap::with_capacity(marks.len());
    let ids: Vec<Uuid> = rows_of(AuthTopic::Credentials).filter_map(|row| row.parse().ok()).collect();
    for row in plane.store.find_credentials(&ids).await? {
        values.insert(row.item(), of_credentials(&row));
    }
    let digests: Vec<String> = rows_of(AuthTopic::Blocked).map(ToOwned::to_owned).collect();
    for row in plane.store.find_blocked(&digests).await? {
        values.insert(row.item(), of_blocked(&row));
    }
    if rows_of(AuthTopic::Settings).next().is_some() {
        values.extend(settings(plane).await?);
    }
    Ok(values)
}
