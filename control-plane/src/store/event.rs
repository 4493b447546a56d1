//! Events, stored once by id, and the status that follows from them.

use std::collections::{BTreeMap, BTreeSet};

use sea_orm::{
    ActiveModelTrait as _, ActiveValue::Set, ColumnTrait as _, DatabaseTransaction, EntityTrait as _,
    QueryFilter as _, QueryOrder as _, QuerySelect as _, sea_query::Expr, sea_query::OnConflict,
};
use tbmq_proto::ids::IntegrationId;
use uuid::Uuid;

use super::{
    Error, STATEMENT_ROWS_MAX, Store, change, entity, entity::integration_status::Model as Status, event_log,
    fault, next_revision, take_numbers,
};

/// An event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EventRow {
    /// UUIDv7.
    pub event_id: Uuid,
    /// The integration, which may be deleted already.
    pub integration: IntegrationId,
    /// Epoch ms by the writer's clock.
    pub time_ms: i64,
    /// Who wrote it.
    pub service_id: String,
    /// The shard.
    pub shard: u32,
    /// Revision in force.
    pub revision: u64,
    /// Ownership epoch; 0 for the control plane's own.
    pub epoch: u64,
    /// The writer's process start.
    pub incarnation: String,
    /// Counts up within (shard, epoch).
    pub seq: u64,
    /// What happened.
    pub body: EventBody,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EventBody {
    /// A change in the life of an integration.
    Lifecycle {
        /// `CREATED`, `STARTED`, ...
        event: String,
        /// Whether it went well.
        success: bool,
        /// Why not.
        error: Option<String>,
    },
    /// Counters of a period.
    Statistics {
        /// Messages processed.
        messages_processed: u64,
        /// Errors.
        errors_occurred: u64,
    },
    /// Messages that were not delivered.
    Error {
        /// What was being done.
        method: String,
        /// Why it failed.
        error: String,
        /// Messages that this event speaks of.
        count: u64,
    },
}

/// The latest known state of a shard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StatusRow {
    /// The integration.
    pub integration: IntegrationId,
    /// The shard.
    pub shard: u32,
    /// The last lifecycle event; empty when it is void.
    pub event: String,
    /// Whether it went well.
    pub success: bool,
    /// Why not.
    pub error: String,
    /// Who reported it.
    pub service_id: String,
    /// Revision that was in force.
    pub revision: u64,
    /// Ownership epoch.
    pub epoch: u64,
    /// When, by the writer's clock.
    pub time_ms: i64,
}

impl Store {
    /// Stores events of executors once, moves the status of their shards on, and tells watches what has changed, in
    /// one transaction.
    ///
    /// # Errors
    /// The database's.
    pub async fn store_events(&self, events: &[EventRow]) -> Result<(), Error> {
        if events.is_empty() {
            return Ok(());
        }
        let transaction = self.begin().await?;
        // The counter's row is locked before any other, in the order of all writers: no deadlock.
        let changes_status = events.iter().any(|event| matches!(event.body, EventBody::Lifecycle { .. }));
        let seq = if changes_status { Some(next_revision(&transaction).await?) } else { None };
        insert(&transaction, events).await?;
        if let Some(seq) = seq {
            let changed = apply_statuses(&transaction, events).await?;
            change::record_statuses(&transaction, seq, &changed, tbmq_service::time::now_ms()).await?;
        }
        transaction.commit().await.map_err(|error| fault(&error))
    }

    /// The status of the shards of these integrations.
    ///
    /// # Errors
    /// The database's.
    pub async fn statuses(&self, ids: &[IntegrationId]) -> Result<Vec<StatusRow>, Error> {
        use entity::integration_status::Column;
        let models = entity::integration_status::Entity::find()
            .filter(Column::IntegrationId.is_in(ids.iter().map(|id| id.0)))
            .order_by_asc(Column::Shard)
            .all(&self.connection)
            .await
            .map_err(|error| fault(&error))?;
        Ok(models
            .into_iter()
            .map(|model| StatusRow {
                integration: IntegrationId(model.integration_id),
                shard: model.shard.cast_unsigned(),
                event: model.event,
                success: model.success,
                error: model.error,
                service_id: model.service_id,
                revision: model.revision as u64,
                epoch: model.epoch as u64,
                time_ms: model.time_ms,
            })
            .collect())
    }

    /// Takes the epochs back of statuses that claim one from `end` on: the topic of claims was lost and begins anew.
    ///
    /// # Errors
    /// The database's.
    pub async fn reset_epochs(&self, end: u64) -> Result<u64, Error> {
        use entity::integration_status::Column;
        let result = entity::integration_status::Entity::update_many()
            .col_expr(Column::Epoch, Expr::value(0_i64))
            .col_expr(Column::Seq, Expr::value(0_i64))
            .col_expr(Column::Incarnation, Expr::value(""))
            .filter(Column::Epoch.gte(end as i64))
            .filter(Column::Epoch.gt(0_i64))
            .exec(&self.connection)
            .await
            .map_err(|error| fault(&error))?;
        Ok(result.rows_affected)
    }
}

/// Inserts events under the next numbers of their order; those that are there already are left alone. Locks the
/// counter of these numbers until the transaction ends.
pub(super) async fn insert(transaction: &DatabaseTransaction, events: &[EventRow]) -> Result<(), Error> {
    let last = take_numbers(transaction, event_log::SEQUENCE, events.len()).await?;
    let first = last - events.len() as i64 + 1;
    let numbered: Vec<_> = (first..).zip(events).collect();
    for chunk in numbered.chunks(STATEMENT_ROWS_MAX) {
        let models = chunk.iter().map(|(sequence, event)| to_model(*sequence, event));
        // The time is there for the partitions of PostgreSQL: an event that is repeated has the same.
        let known = [entity::event::Column::EventId, entity::event::Column::TimeMs];
        entity::event::Entity::insert_many(models)
            .on_conflict(OnConflict::columns(known).do_nothing().to_owned())
            .try_insert()
            .exec_without_returning(transaction)
            .await
            .map_err(|error| fault(&error))?;
    }
    Ok(())
}

/// Makes the status void until the next event, keeping its place in the order.
pub(super) async fn clear_status(transaction: &DatabaseTransaction, id: IntegrationId) -> Result<(), Error> {
    use entity::integration_status::Column;
    entity::integration_status::Entity::update_many()
        .col_expr(Column::Event, Expr::value(""))
        .col_expr(Column::Error, Expr::value(""))
        .filter(Column::IntegrationId.eq(id.0))
        .exec(transaction)
        .await
        .map_err(|error| fault(&error))?;
    Ok(())
}

/// Moves the status of shards on, in the order of the events; tells of which integrations something has changed that
/// the API shows.
async fn apply_statuses(
    transaction: &DatabaseTransaction,
    events: &[EventRow],
) -> Result<BTreeSet<IntegrationId>, Error> {
    let reported: Vec<Status> = events.iter().filter_map(to_status).collect();
    let mut held = held_statuses(transaction, &reported).await?;
    let new = reported.iter().filter(|status| !held.contains_key(&key(status)));
    let lives = lives(transaction, new.map(|status| status.integration_id).collect()).await?;
    let mut changed = BTreeSet::new();
    let mut moved = BTreeSet::new();
    for status in reported {
        let is_visible = match held.get(&key(&status)) {
            // The order of owners, never of clocks (architecture §4.4).
            Some(before) if place(&status) <= place(before) => continue,
            Some(before) => shown(&status) != shown(before),
            // A straggler of an integration that is gone.
            None if !lives.contains(&status.integration_id) => continue,
            None => true,
        };
        if is_visible {
            changed.insert(IntegrationId(status.integration_id));
        }
        moved.insert(key(&status));
        held.insert(key(&status), status);
    }
    // Each shard once, as it is in the end: no statement may touch a row twice.
    save_statuses(transaction, moved.iter().filter_map(|key| held.remove(key)).collect()).await?;
    Ok(changed)
}

/// Integration and shard.
type Key = (Uuid, i32);

fn key(status: &Status) -> Key {
    (status.integration_id, status.shard)
}

/// Where a status stands in the order of its shard's events.
fn place(status: &Status) -> (i64, &str, i64) {
    (status.epoch, &status.incarnation, status.seq)
}

/// What the API shows of a status, but for its time.
fn shown(status: &Status) -> (&str, bool, &str, &str, i64, i64) {
    (&status.event, status.success, &status.error, &status.service_id, status.revision, status.epoch)
}

/// The stored statuses of the integrations of `reported`.
async fn held_statuses(
    transaction: &DatabaseTransaction,
    reported: &[Status],
) -> Result<BTreeMap<Key, Status>, Error> {
    use entity::integration_status::{Column, Entity};
    let ids: BTreeSet<Uuid> = reported.iter().map(|status| status.integration_id).collect();
    let ids: Vec<Uuid> = ids.into_iter().collect();
    let mut held = BTreeMap::new();
    for chunk in ids.chunks(STATEMENT_ROWS_MAX) {
        let found = Entity::find()
            .filter(Column::IntegrationId.is_in(chunk.iter().copied()))
            .all(transaction)
            .await
            .map_err(|error| fault(&error))?;
        held.extend(found.into_iter().map(|status| (key(&status), status)));
    }
    Ok(held)
}

/// Those of these integrations that have a life, deleted or not.
async fn lives(transaction: &DatabaseTransaction, ids: BTreeSet<Uuid>) -> Result<BTreeSet<Uuid>, Error> {
    use entity::topic_life::{Column, Entity};
    let ids: Vec<Uuid> = ids.into_iter().collect();
    let mut lives = BTreeSet::new();
    for chunk in ids.chunks(STATEMENT_ROWS_MAX) {
        let found = Entity::find()
            .select_only()
            .column(Column::IntegrationId)
            .filter(Column::IntegrationId.is_in(chunk.iter().copied()))
            .into_tuple::<Uuid>()
            .all(transaction)
            .await
            .map_err(|error| fault(&error))?;
        lives.extend(found);
    }
    Ok(lives)
}

async fn save_statuses(transaction: &DatabaseTransaction, statuses: Vec<Status>) -> Result<(), Error> {
    use entity::integration_status::{ActiveModel, Column, Entity};
    let mut models = statuses.into_iter().map(|status| ActiveModel::from(status).reset_all()).peekable();
    while models.peek().is_some() {
        let on_conflict = OnConflict::columns([Column::IntegrationId, Column::Shard])
            .update_columns([
                Column::Event,
                Column::Success,
                Column::Error,
                Column::ServiceId,
                Column::Revision,
                Column::Epoch,
                Column::Incarnation,
                Column::Seq,
                Column::TimeMs,
            ])
            .to_owned();
        Entity::insert_many(models.by_ref().take(STATEMENT_ROWS_MAX))
            .on_conflict(on_conflict)
            .exec_without_returning(transaction)
            .await
            .map_err(|error| fault(&error))?;
    }
    Ok(())
}

/// The status that a lifecycle event reports.
fn to_status(event: &EventRow) -> Option<Status> {
    let EventBody::Lifecycle { event: name, success, error } = &event.body else { return None };
    Some(Status {
        integration_id: event.integration.0,
        shard: event.shard.cast_signed(),
        event: name.clone(),
        success: *success,
        error: error.clone().unwrap_or_default(),
        service_id: event.service_id.clone(),
        revision: event.revision as i64,
        epoch: event.epoch as i64,
        incarnation: event.incarnation.clone(),
        seq: event.seq as i64,
        time_ms: event.time_ms,
    })
}

fn to_model(sequence: i64, event: &EventRow) -> entity::event::ActiveModel {
    let mut model = entity::event::ActiveModel {
        event_id: Set(event.event_id),
        integration_id: Set(event.integration.0),
        event_type: Set(0),
        time_ms: Set(event.time_ms),
        service_id: Set(event.service_id.clone()),
        shard: Set(event.shard.cast_signed()),
        revision: Set(event.revision as i64),
        epoch: Set(event.epoch as i64),
        incarnation: Set(event.incarnation.clone()),
        seq: Set(event.seq as i64),
        lifecycle: Set(None),
        success: Set(None),
        method: Set(None),
        error: Set(None),
        messages_processed: Set(None),
        errors: Set(None),
        sequence: Set(sequence),
    };
    let count = |count: u64| Set(Some(i64::try_from(count).unwrap_or(i64::MAX)));
    match &event.body {
        EventBody::Lifecycle { event, success, error } => {
            model.event_type = Set(1);
            model.lifecycle = Set(Some(event.clone()));
            model.success = Set(Some(*success));
            model.error = Set(error.clone());
        }
        EventBody::Statistics { messages_processed, errors_occurred } => {
            model.event_type = Set(2);
            model.messages_processed = count(*messages_processed);
            model.errors = count(*errors_occurred);
        }
        EventBody::Error { method, error, count: messages } => {
            model.event_type = Set(3);
            model.method = Set(Some(method.clone()));
            model.error = Set(Some(error.clone()));
            model.errors = count(*messages);
        }
    }
    model
}

pub(super) fn from_model(model: entity::event::Model) -> Option<EventRow> {
    let body = match model.event_type {
        1 => EventBody::Lifecycle {
            event: model.lifecycle.unwrap_or_default(),
            success: model.success.unwrap_or_default(),
            error: model.error,
        },
        2 => EventBody::Statistics {
            messages_processed: model.messages_processed.unwrap_or_default() as u64,
            errors_occurred: model.errors.unwrap_or_default() as u64,
        },
        3 => EventBody::Error {
            method: model.method.unwrap_or_default(),
            error: model.error.unwrap_or_default(),
            count: model.errors.unwrap_or_default() as u64,
        },
        // Written by a later version: not ours to show.
        _ => return None,
    };
    Some(EventRow {
        event_id: model.event_id,
        integration: IntegrationId(model.integration_id),
        time_ms: model.time_ms,
        service_id: model.service_id,
        shard: model.shard.cast_unsigned(),
        revision: model.revision as u64,
        epoch: model.epoch as u64,
        incarnation: model.incarnation,
        seq: model.seq as u64,
        body,
    })
}
