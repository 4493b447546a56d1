//! Integrations: rows, changes, idempotency of requests.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use bytes::Bytes;
use sea_orm::{
    ActiveValue::Set, ColumnTrait as _, ConnectionTrait, DatabaseTransaction, EntityTrait as _,
    PaginatorTrait as _, QueryFilter as _, QueryOrder as _, QuerySelect as _, sea_query::OnConflict,
};
use tbmq_integration::{
    seal::{Parted, Purpose, Sealed, Unreadable},
    wire::Cause,
};
use tbmq_proto::ids::{IntegrationId, Kind};
use uuid::Uuid;

use crate::fault::Point;

use super::{
    Error, PAGE_ROWS_MAX, Store, change, change::ChangeKind, entity, event::EventBody, event::EventRow,
    fault, life, next_revision, unique_violation,
};
use crate::vault;

/// A stored integration.
#[derive(Clone, PartialEq, Eq)]
pub struct Row {
    /// Its id.
    pub id: IntegrationId,
    /// Its unique name.
    pub name: String,
    /// Its kind.
    pub kind: Kind,
    /// Whether it is to run.
    pub enabled: bool,
    /// The configuration document, byte for byte; may hold secrets.
    pub configuration: String,
    /// The same as it is stored and sent, if its secrets are sealed.
    pub parted: Option<Arc<Parted>>,
    /// Why the secrets can't be opened: then masks stand in their places in `configuration`.
    pub unreadable: Option<Unreadable>,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Description.
    pub description: String,
    /// Revision of the last change.
    pub revision: u64,
    /// What the last change was.
    pub cause: Cause,
    /// Epoch ms.
    pub created_ms: i64,
    /// Epoch ms.
    pub updated_ms: i64,
    /// Since when it is disabled, epoch ms.
    pub disconnected_ms: Option<i64>,
}

impl std::fmt::Debug for Row {
    // The configuration may hold secrets.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Row")
            .field("id", &self.id)
            .field("name", &self.name)
            .field("kind", &self.kind)
            .field("enabled", &self.enabled)
            .field("revision", &self.revision)
            .finish_non_exhaustive()
    }
}

impl Row {
    /// Whether a change would make it another one.
    pub fn differs(&self, change: &Change) -> bool {
        self.name != change.name
            || self.enabled != change.enabled
            || self.configuration != change.configuration
            || self.labels != change.labels
            || self.description != change.description
    }
}

/// A new integration.
#[derive(Clone)]
pub struct New {
    /// Its id.
    pub id: IntegrationId,
    /// Its name.
    pub name: String,
    /// Its kind.
    pub kind: Kind,
    /// Whether it is to run.
    pub enabled: bool,
    /// The configuration document.
    pub configuration: String,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Description.
    pub description: String,
    /// Number of shards, at least 1.
    pub shards: u32,
}

impl std::fmt::Debug for New {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("New").field("id", &self.id).field("name", &self.name).finish_non_exhaustive()
    }
}

/// What an update may set.
#[derive(Clone)]
pub struct Change {
    /// Its name.
    pub name: String,
    /// Whether it is to run.
    pub enabled: bool,
    /// The configuration document.
    pub configuration: String,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Description.
    pub description: String,
}

impl std::fmt::Debug for Change {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Change").field("name", &self.name).finish_non_exhaustive()
    }
}

/// The identity of a request that is to be done once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// Method, such as `Create`.
    pub method: &'static str,
    /// The caller's id.
    pub id: String,
    /// Hash of the whole request.
    pub fingerprint: String,
}

/// Who makes a change, and when.
#[derive(Clone, Copy, Debug)]
pub struct Saved<'a> {
    /// Service id of this control plane.
    pub service_id: &'a str,
    /// Its incarnation.
    pub incarnation: &'a str,
    /// Epoch ms.
    pub now_ms: i64,
    /// The request to be remembered.
    pub request: Option<&'a Request>,
}

/// How long a request id is remembered.
pub(super) const REQUEST_MEMORY_MS: i64 = 10 * 60 * 1000;

impl Store {
    /// As [`Store::create_within`] without a limit.
    ///
    /// # Errors
    /// As there, without `LimitReached`.
    pub async fn create(&self, new: New, saved: Saved<'_>) -> Result<Row, Error> {
        self.create_within(None, new, saved).await
    }

    /// Saves a new integration with its dirty mark, the life of its topic, and the event CREATED, unless there are
    /// `max` integrations already.
    ///
    /// # Errors
    /// `LimitReached`, `NameTaken`, `IdTaken`, `Replayed`, `RequestReused`, or the database's.
    pub async fn create_within(&self, max: Option<u64>, new: New, saved: Saved<'_>) -> Result<Row, Error> {
        let transaction = self.begin().await?;
        let revision = next_revision(&transaction).await?;
        remember(&transaction, saved, new.id.0).await?;
        // The counter's lock keeps others from creating or deleting in between.
        check_room(&transaction, max).await?;
        let mut row = Row {
            id: new.id,
            name: new.name,
            kind: new.kind,
            enabled: new.enabled,
            configuration: new.configuration,
            parted: None,
            unreadable: None,
            labels: new.labels,
            description: new.description,
            revision: revision as u64,
            cause: Cause::Created,
            created_ms: saved.now_ms,
            updated_ms: saved.now_ms,
            disconnected_ms: (!new.enabled).then_some(saved.now_ms),
        };
        self.seal(&mut row)?;
        entity::integration::Entity::insert(self.model(&row))
            .exec_without_returning(&transaction)
            .await
            .map_err(|error| taken(&error, &row))?;
        life::insert(&transaction, row.id, &row.kind, new.shards, revision).await?;
        life::mark(&transaction, row.id, revision, saved.now_ms).await?;
        note(&transaction, &row, "CREATED", saved).await?;
        change::record(&transaction, revision, row.id, ChangeKind::Created, saved.now_ms).await?;
        self.faults.pass(Point::Saving).await;
        transaction.commit().await.map_err(|error| fault(&error))?;
        Ok(row)
    }

    /// Whether another integration may be created now.
    ///
    /// # Errors
    /// `LimitReached` when there are `max` already, or the database's.
    pub async fn check_room(&self, max: Option<u64>) -> Result<(), Error> {
        check_room(&self.connection, max).await
    }

    /// One integration.
    ///
    /// # Errors
    /// `NotFound`, or the database's.
    pub async fn get(&self, id: IntegrationId) -> Result<Row, Error> {
        self.find(id).await?.ok_or(Error::NotFound(id))
    }

    /// One integration, if it exists.
    ///
    /// # Errors
    /// The database's.
    pub async fn find(&self, id: IntegrationId) -> Result<Option<Row>, Error> {
        let model = entity::integration::Entity::find_by_id(id.0)
            .one(&self.connection)
            .await
            .map_err(|error| fault(&error))?;
        model.map(|model| self.row(model)).transpose()
    }

    /// Whether a name is used by another integration than `except`.
    ///
    /// # Errors
    /// The database's.
    pub async fn is_name_taken(&self, name: &str, except: Option<IntegrationId>) -> Result<bool, Error> {
        use entity::integration::Column;
        let mut query = entity::integration::Entity::find().filter(Column::Name.eq(name));
        if let Some(except) = except {
            query = query.filter(Column::Id.ne(except.0));
        }
        Ok(query.count(&self.connection).await.map_err(|error| fault(&error))? > 0)
    }

    /// The display names of all integrations.
    ///
    /// # Errors
    /// The database's.
    pub async fn names(&self) -> Result<HashMap<IntegrationId, String>, Error> {
        use entity::integration::Column;
        let query = entity::integration::Entity::find().select_only().columns([Column::Id, Column::Name]);
        let named: Vec<(Uuid, String)> =
            query.into_tuple().all(&self.connection).await.map_err(|error| fault(&error))?;
        Ok(named.into_iter().map(|(id, name)| (IntegrationId(id), name)).collect())
    }

    /// All integrations in the order of ids, in pages: those after `after`.
    ///
    /// # Errors
    /// The database's.
    pub async fn scan(&self, after: Option<IntegrationId>) -> Result<Vec<Row>, Error> {
        use entity::integration::Column;
        let mut query = entity::integration::Entity::find();
        if let Some(after) = after {
            query = query.filter(Column::Id.gt(after.0));
        }
        let models = query
            .order_by_asc(Column::Id)
            .limit(PAGE_ROWS_MAX)
            .all(&self.connection)
            .await
            .map_err(|error| fault(&error))?;
        models.into_iter().map(|model| self.row(model)).collect()
    }

    /// Replaces what an update may set, if the integration still has revision `base`. One that is so already stays as
    /// it is: it gets no revision, and its executor is not disturbed.
    ///
    /// # Errors
    /// `NotFound`, `Stale`, `NameTaken`, `Replayed`, `RequestReused`, or the database's.
    pub async fn update(
        &self,
        id: IntegrationId,
        base: u64,
        change: Change,
        saved: Saved<'_>,
    ) -> Result<Row, Error> {
        let change = |row: &mut Row| {
            let differs = row.differs(&change);
            row.name = change.name;
            switch(row, change.enabled, saved.now_ms);
            row.configuration = change.configuration;
            row.unreadable = None;
            row.labels = change.labels;
            row.description = change.description;
            row.cause = Cause::Updated;
            Ok(differs)
        };
        self.change(id, Some(base), "UPDATED", saved, change).await
    }

    /// Enables or disables. An integration that is so already stays as it is.
    ///
    /// # Errors
    /// As [`Store::update`].
    pub async fn set_enabled(
        &self,
        id: IntegrationId,
        base: Option<u64>,
        enabled: bool,
        saved: Saved<'_>,
    ) -> Result<Row, Error> {
        let change = |row: &mut Row| {
            let differs = row.enabled != enabled;
            switch(row, enabled, saved.now_ms);
            row.cause = Cause::Updated;
            Ok(differs)
        };
        self.change(id, base, "UPDATED", saved, change).await
    }

    /// Has the integration started anew.
    ///
    /// # Errors
    /// As [`Store::update`], and `Disabled`.
    pub async fn restart(
        &self,
        id: IntegrationId,
        base: Option<u64>,
        saved: Saved<'_>,
    ) -> Result<Row, Error> {
        let change = |row: &mut Row| {
            if !row.enabled {
                return Err(Error::Disabled);
            }
            row.cause = Cause::Reinit;
            Ok(true)
        };
        self.change(id, base, "REINIT", saved, change).await
    }

    /// Removes the row; topic and records follow by the relayer.
    ///
    /// # Errors
    /// `NotFound`, `Stale`, `Replayed`, `RequestReused`, or the database's.
    pub async fn delete(&self, id: IntegrationId, base: Option<u64>, saved: Saved<'_>) -> Result<(), Error> {
        let transaction = self.begin().await?;
        let revision = next_revision(&transaction).await?;
        remember(&transaction, saved, id.0).await?;
        let row = self.locked(&transaction, id, base).await?;
        entity::integration::Entity::delete_by_id(id.0)
            .exec(&transaction)
            .await
            .map_err(|error| fault(&error))?;
        life::change(&transaction, id, |life| {
            life.life.remove();
            life.revision = revision as u64;
        })
        .await?;
        life::mark(&transaction, id, revision, saved.now_ms).await?;
        note(&transaction, &Row { revision: revision as u64, ..row }, "DELETED", saved).await?;
        change::record(&transaction, revision, id, ChangeKind::Deleted, saved.now_ms).await?;
        self.faults.pass(Point::Saving).await;
        transaction.commit().await.map_err(|error| fault(&error))
    }

    /// What became of a request id, if it is remembered.
    ///
    /// # Errors
    /// `Replayed` when the same request was done, `RequestReused` when another was, or the database's.
    pub async fn recall(&self, request: &Request, now_ms: i64) -> Result<(), Error> {
        let key = (request.method.to_owned(), request.id.clone());
        let model = entity::request::Entity::find_by_id(key)
            .one(&self.connection)
            .await
            .map_err(|error| fault(&error))?;
        match model {
            Some(model) if model.created_ms + REQUEST_MEMORY_MS > now_ms => Err(replayed(&model, request)),
            _ => Ok(()),
        }
    }

    /// Forgets request ids that are older than 10 minutes.
    ///
    /// # Errors
    /// The database's.
    pub async fn forget_requests(&self, now_ms: i64) -> Result<u64, Error> {
        let result = entity::request::Entity::delete_many()
            .filter(entity::request::Column::CreatedMs.lt(now_ms - REQUEST_MEMORY_MS))
            .exec(&self.connection)
            .await
            .map_err(|error| fault(&error))?;
        Ok(result.rows_affected)
    }

    async fn change(
        &self,
        id: IntegrationId,
        base: Option<u64>,
        event: &'static str,
        saved: Saved<'_>,
        change: impl FnOnce(&mut Row) -> Result<bool, Error>,
    ) -> Result<Row, Error> {
        let transaction = self.begin().await?;
        let revision = next_revision(&transaction).await?;
        remember(&transaction, saved, id.0).await?;
        let before = self.locked(&transaction, id, base).await?;
        let mut row = before.clone();
        if !change(&mut row)? {
            // The request is remembered all the same, the revision is given back.
            if saved.request.is_some() {
                transaction.commit().await.map_err(|error| fault(&error))?;
            }
            return Ok(before);
        }
        row.revision = revision as u64;
        row.updated_ms = saved.now_ms;
        self.seal(&mut row)?;
        entity::integration::Entity::update(self.model(&row))
            .exec(&transaction)
            .await
            .map_err(|error| taken(&error, &row))?;
        if row.enabled && !before.enabled {
            life::change(&transaction, id, |life| life.life.keep()).await?;
        }
        if row.enabled != before.enabled || row.cause == Cause::Reinit {
            // Until the next event of its executor nothing is known about it.
            super::event::clear_status(&transaction, id).await?;
        }
        life::mark(&transaction, id, revision, saved.now_ms).await?;
        note(&transaction, &row, event, saved).await?;
        change::record(&transaction, revision, id, ChangeKind::Modified, saved.now_ms).await?;
        self.faults.pass(Point::Saving).await;
        transaction.commit().await.map_err(|error| fault(&error))?;
        Ok(row)
    }

    async fn locked(
        &self,
        transaction: &DatabaseTransaction,
        id: IntegrationId,
        base: Option<u64>,
    ) -> Result<Row, Error> {
        let model = entity::integration::Entity::find_by_id(id.0)
            .one(transaction)
            .await
            .map_err(|error| fault(&error))?
            .ok_or(Error::NotFound(id))?;
        let row = self.row(model)?;
        match base {
            Some(expected) if expected != row.revision => {
                Err(Error::Stale { expected, actual: row.revision })
            }
            _ => Ok(row),
        }
    }

    /// Seals the secrets of a row for its revision. What can't be opened stays as it is.
    pub(super) fn seal(&self, row: &mut Row) -> Result<(), Error> {
        if row.unreadable.is_none() {
            let purpose = Purpose::Revision(row.revision);
            row.parted = self.vault.part(row.id, &row.kind, purpose, &row.configuration)?;
        }
        Ok(())
    }

    pub(super) fn model(&self, row: &Row) -> entity::integration::ActiveModel {
        let parted = row.parted.as_deref();
        let looked_through = match (parted, &row.unreadable) {
            (Some(parted), Some(_)) => Some(parted.sealed.key_id.as_str()),
            _ => self.vault.first(),
        };
        entity::integration::ActiveModel {
            id: Set(row.id.0),
            name: Set(row.name.clone()),
            kind: Set(row.kind.to_string()),
            enabled: Set(row.enabled),
            configuration: Set(
                parted.map_or_else(|| row.configuration.clone(), |parted| parted.plain.to_string())
            ),
            sealed: Set(parted.map(|parted| vault::to_text(&parted.sealed))),
            sealed_key: Set(looked_through.map(ToOwned::to_owned)),
            labels: Set(serde_json::to_string(&row.labels).expect("a map of texts is always JSON")),
            description: Set(row.description.clone()),
            revision: Set(row.revision as i64),
            cause: Set(cause_text(row.cause).to_owned()),
            created_ms: Set(row.created_ms),
            updated_ms: Set(row.updated_ms),
            disconnected_ms: Set(row.disconnected_ms),
        }
    }

    pub(super) fn row(&self, model: entity::integration::Model) -> Result<Row, Error> {
        let id = IntegrationId(model.id);
        let corrupt = |what: &str| Error::Corrupt(format!("{what} of integration {id} that can't be read"));
        let (configuration, parted, unreadable) = self.opened(id, model.configuration, model.sealed);
        Ok(Row {
            id,
            kind: model.kind.parse().map_err(|_| corrupt("a kind"))?,
            labels: serde_json::from_str(&model.labels).map_err(|_| corrupt("labels"))?,
            cause: match model.cause.as_str() {
                "CREATED" => Cause::Created,
                "UPDATED" => Cause::Updated,
                "REINIT" => Cause::Reinit,
                _ => return Err(corrupt("a cause")),
            },
            name: model.name,
            enabled: model.enabled,
            configuration,
            parted,
            unreadable,
            description: model.description,
            revision: model.revision as u64,
            created_ms: model.created_ms,
            updated_ms: model.updated_ms,
            disconnected_ms: model.disconnected_ms,
        })
    }

    /// The whole document if it can be opened, how it is stored, and why it can't be opened.
    fn opened(
        &self,
        id: IntegrationId,
        plain: String,
        sealed: Option<String>,
    ) -> (String, Option<Arc<Parted>>, Option<Unreadable>) {
        let Some(sealed) = sealed else { return (plain, None, None) };
        let (sealed, malformed) = match vault::from_text(&sealed) {
            Ok(sealed) => (sealed, None),
            // Something that nobody can open takes its place: masks must not pass for secrets.
            Err(error) => (
                Sealed {
                    key_id: String::new(),
                    purpose: Purpose::Revision(0),
                    nonce: [0; 12],
                    ciphertext: Bytes::new(),
                },
                Some(error),
            ),
        };
        let parted = Parted { plain: plain.as_str().into(), sealed };
        let opened = malformed.map_or_else(|| self.vault.open(id, &parted), Err);
        let (configuration, unreadable) = match opened {
            Ok(whole) => (whole, None),
            Err(error) => (plain, Some(error)),
        };
        (configuration, Some(Arc::new(parted)), unreadable)
    }
}

async fn check_room(connection: &impl ConnectionTrait, max: Option<u64>) -> Result<(), Error> {
    let Some(max) = max else { return Ok(()) };
    let count = entity::integration::Entity::find().count(connection).await.map_err(|error| fault(&error))?;
    if count < max { Ok(()) } else { Err(Error::LimitReached { max }) }
}

fn switch(row: &mut Row, enabled: bool, now_ms: i64) {
    row.disconnected_ms = if enabled { None } else { row.disconnected_ms.or(Some(now_ms)) };
    row.enabled = enabled;
}

pub(super) async fn remember(
    transaction: &DatabaseTransaction,
    saved: Saved<'_>,
    id: Uuid,
) -> Result<(), Error> {
    let Some(request) = saved.request else { return Ok(()) };
    let key = (request.method.to_owned(), request.id.clone());
    let found =
        entity::request::Entity::find_by_id(key).one(transaction).await.map_err(|error| fault(&error))?;
    if let Some(model) = found.filter(|model| model.created_ms + REQUEST_MEMORY_MS > saved.now_ms) {
        return Err(replayed(&model, request));
    }
    let model = entity::request::ActiveModel {
        method: Set(request.method.to_owned()),
        request_id: Set(request.id.clone()),
        fingerprint: Set(request.fingerprint.clone()),
        integration_id: Set(id),
        created_ms: Set(saved.now_ms),
    };
    use entity::request::Column;
    entity::request::Entity::insert(model)
        .on_conflict(
            OnConflict::columns([Column::Method, Column::RequestId])
                .update_columns([Column::Fingerprint, Column::IntegrationId, Column::CreatedMs])
                .to_owned(),
        )
        .exec_without_returning(transaction)
        .await
        .map_err(|error| fault(&error))?;
    Ok(())
}

fn replayed(model: &entity::request::Model, request: &Request) -> Error {
    if model.fingerprint == request.fingerprint {
        Error::Replayed(model.integration_id)
    } else {
        Error::RequestReused(request.id.clone())
    }
}

/// Writes one of the control plane's own lifecycle events.
async fn note(
    transaction: &DatabaseTransaction,
    row: &Row,
    event: &'static str,
    saved: Saved<'_>,
) -> Result<(), Error> {
    let event = EventRow {
        event_id: Uuid::now_v7(),
        integration: row.id,
        time_ms: saved.now_ms,
        service_id: saved.service_id.to_owned(),
        shard: 0,
        revision: row.revision,
        epoch: 0,
        incarnation: saved.incarnation.to_owned(),
        seq: 0,
        body: EventBody::Lifecycle { event: event.to_owned(), success: true, error: None },
    };
    super::event::insert(transaction, &[event]).await
}

fn taken(error: &sea_orm::DbErr, row: &Row) -> Error {
    match unique_violation(error) {
        Some(text) if text.contains("integration.name") || text.contains("integration_name_key") => {
            Error::NameTaken(row.name.clone())
        }
        Some(_) => Error::IdTaken(row.id),
        None => fault(error),
    }
}

fn cause_text(cause: Cause) -> &'static str {
    match cause {
        Cause::Created => "CREATED",
        Cause::Updated => "UPDATED",
        Cause::Reinit => "REINIT",
    }
}
