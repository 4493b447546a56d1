//! Changes of integrations and of their status, in the order of their numbers: what watches read.
//!
//! **No reader that has seen number n ever finds a new row below n.** A writer takes its number by updating the one
//! row of the counter (`next_revision`) in the transaction that also inserts the change, and that row stays locked
//! until the transaction has ended. So numbers m < n mean: the transaction of m had ended before that of n could take
//! its number. When n is visible, m is therefore visible, or was rolled back and will never be.
//!
//! * PostgreSQL gives a row lock back after the commit has become visible to new snapshots, and at READ COMMITTED each
//!   statement has a new snapshot: whatever statement sees n, and each later one, sees m.
//! * SQLite has one writer at a time (`BEGIN IMMEDIATE`); a reader's snapshot is the state after some commit.
//!
//! The same holds for the counter itself: once it has been read as n, all changes up to n that there will ever be are
//! visible. A number without a row (rolled back to and taken again, or nothing visible changed) is no gap to wait for.

use std::collections::BTreeSet;

use sea_orm::{
    ActiveValue::Set, ColumnTrait as _, DatabaseTransaction, EntityTrait as _, QueryFilter as _,
    QueryOrder as _, QuerySelect as _, sea_query::Expr,
};
use tbmq_proto::ids::IntegrationId;
use uuid::Uuid;

use super::{
    Error, PAGE_ROWS_MAX, Row, STATEMENT_ROWS_MAX, Store, entity, fault, next_revision, read_counter,
    take_revisions,
};

/// Name of the counter that says up to which number changes may have been removed.
const FLOOR: &str = "change_floor";

/// What happened to an integration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChangeKind {
    /// It was created.
    Created,
    /// Its configuration or its status has changed.
    Modified,
    /// It was deleted.
    Deleted,
}

/// A change of an integration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChangeRow {
    /// Its number: the revision of the configuration, or one of the same counter for a status.
    pub seq: u64,
    /// The integration.
    pub integration: IntegrationId,
    /// What happened.
    pub kind: ChangeKind,
}

impl Store {
    /// The changes after `place`, at most `limit`, in their order; of one integration or of all.
    ///
    /// # Errors
    /// `Compacted` when changes after `place` may have been removed, or the database's.
    pub async fn changes_after(
        &self,
        place: u64,
        of: Option<IntegrationId>,
        limit: u64,
    ) -> Result<Vec<ChangeRow>, Error> {
        use entity::integration_change::{Column, Entity};
        let mut query = Entity::find().filter(Column::Seq.gt(place as i64));
        if let Some(id) = of {
            query = query.filter(Column::IntegrationId.eq(id.0));
        }
        let models = query
            .order_by_asc(Column::Seq)
            .limit(limit.min(PAGE_ROWS_MAX))
            .all(&self.connection)
            .await
            .map_err(|error| fault(&error))?;
        // Looked at afterwards: what is kept now was kept when the rows were read.
        self.check_place(place).await?;
        Ok(models.into_iter().map(from_change).collect())
    }

    /// Whether all changes after `place` are kept.
    ///
    /// # Errors
    /// `Compacted` when they are not, or the database's.
    pub async fn check_place(&self, place: u64) -> Result<(), Error> {
        let floor = read_counter(&self.connection, FLOOR).await?;
        if place < floor { Err(Error::Compacted { floor }) } else { Ok(()) }
    }

    /// Tells watches that the status of these integrations has changed, which follows from what is not in the store.
    ///
    /// # Errors
    /// The database's.
    pub async fn touch(&self, ids: &[IntegrationId], now_ms: i64) -> Result<(), Error> {
        let transaction = self.begin().await?;
        let seq = next_revision(&transaction).await?;
        record_statuses(&transaction, seq, &ids.iter().copied().collect(), now_ms).await?;
        transaction.commit().await.map_err(|error| fault(&error))
    }

    /// Removes changes from before this time and tells how many. Only a beginning of the order is removed, whatever
    /// the clocks of its writers said, and its end is written down as the floor in the same transaction.
    ///
    /// # Errors
    /// The database's.
    pub async fn compact_changes(&self, before_ms: i64) -> Result<u64, Error> {
        use entity::integration_change::{Column, Entity};
        let transaction = self.begin().await?;
        // First: what is written from now on is greater, and is none of the old ones.
        let last = Entity::find().order_by_desc(Column::Seq).one(&transaction).await;
        let Some(last) = last.map_err(|error| fault(&error))? else { return Ok(0) };
        let first_kept = Entity::find()
            .filter(Column::TimeMs.gte(before_ms))
            .order_by_asc(Column::Seq)
            .one(&transaction)
            .await
            .map_err(|error| fault(&error))?;
        let mut old = Entity::find().filter(Column::Seq.lte(last.seq));
        if let Some(first_kept) = first_kept {
            old = old.filter(Column::Seq.lt(first_kept.seq));
        }
        let last_old =
            old.order_by_desc(Column::Seq).one(&transaction).await.map_err(|error| fault(&error))?;
        let Some(floor) = last_old.map(|model| model.seq) else { return Ok(0) };
        entity::counter::Entity::update_many()
            .col_expr(entity::counter::Column::Value, Expr::value(floor))
            .filter(entity::counter::Column::Name.eq(FLOOR))
            .filter(entity::counter::Column::Value.lt(floor))
            .exec(&transaction)
            .await
            .map_err(|error| fault(&error))?;
        let removed = Entity::delete_many()
            .filter(Column::Seq.lte(floor))
            .exec(&transaction)
            .await
            .map_err(|error| fault(&error))?;
        transaction.commit().await.map_err(|error| fault(&error))?;
        Ok(removed.rows_affected)
    }

    /// Those of these integrations that exist, in no order.
    ///
    /// # Errors
    /// The database's.
    pub async fn find_all(&self, ids: &[IntegrationId]) -> Result<Vec<Row>, Error> {
        let models = entity::integration::Entity::find()
            .filter(entity::integration::Column::Id.is_in(ids.iter().map(|id| id.0)))
            .all(&self.connection)
            .await
            .map_err(|error| fault(&error))?;
        models.into_iter().map(|model| self.row(model)).collect()
    }

    /// A page of integrations in the order of their ids: at most `limit` after `after`.
    ///
    /// # Errors
    /// The database's.
    pub async fn page_by_id(&self, after: Option<IntegrationId>, limit: u64) -> Result<Vec<Row>, Error> {
        use entity::integration::{Column, Entity};
        let mut query = Entity::find();
        if let Some(after) = after {
            query = query.filter(Column::Id.gt(after.0));
        }
        let models = query
            .order_by_asc(Column::Id)
            .limit(limit.min(PAGE_ROWS_MAX))
            .all(&self.connection)
            .await
            .map_err(|error| fault(&error))?;
        models.into_iter().map(|model| self.row(model)).collect()
    }
}

/// Writes a change down under a number that this transaction has taken.
pub(super) async fn record(
    transaction: &DatabaseTransaction,
    seq: i64,
    id: IntegrationId,
    kind: ChangeKind,
    now_ms: i64,
) -> Result<(), Error> {
    entity::integration_change::Entity::insert(to_model(seq, id.0, kind, now_ms))
        .exec_without_returning(transaction)
        .await
        .map_err(|error| fault(&error))?;
    Ok(())
}

/// Writes down that the status of these integrations has changed, beginning with a number that this transaction has
/// taken. Those that are deleted already are left out: their last change is the deletion.
pub(super) async fn record_statuses(
    transaction: &DatabaseTransaction,
    first: i64,
    changed: &BTreeSet<IntegrationId>,
    now_ms: i64,
) -> Result<(), Error> {
    use entity::integration::{Column, Entity};
    let ids: Vec<Uuid> = changed.iter().map(|id| id.0).collect();
    let mut found = Vec::with_capacity(ids.len());
    for chunk in ids.chunks(STATEMENT_ROWS_MAX) {
        let existing = Entity::find()
            .select_only()
            .column(Column::Id)
            .filter(Column::Id.is_in(chunk.iter().copied()))
            .order_by_asc(Column::Id)
            .into_tuple::<Uuid>()
            .all(transaction)
            .await
            .map_err(|error| fault(&error))?;
        found.extend(existing);
    }
    // The first number is there already, and nobody else takes one before this transaction ends: they are consecutive.
    if found.len() > 1 {
        take_revisions(transaction, found.len() - 1).await?;
    }
    let rows: Vec<_> = (first..).zip(found).collect();
    for chunk in rows.chunks(STATEMENT_ROWS_MAX) {
        let models = chunk.iter().map(|(seq, id)| to_model(*seq, *id, ChangeKind::Modified, now_ms));
        entity::integration_change::Entity::insert_many(models)
            .exec_without_returning(transaction)
            .await
            .map_err(|error| fault(&error))?;
    }
    Ok(())
}

fn to_model(seq: i64, id: Uuid, kind: ChangeKind, now_ms: i64) -> entity::integration_change::ActiveModel {
    let kind = match kind {
        ChangeKind::Created => 1,
        ChangeKind::Modified => 2,
        ChangeKind::Deleted => 3,
    };
    entity::integration_change::ActiveModel {
        seq: Set(seq),
        integration_id: Set(id),
        kind: Set(kind),
        time_ms: Set(now_ms),
    }
}

fn from_change(model: entity::integration_change::Model) -> ChangeRow {
    ChangeRow {
        seq: model.seq as u64,
        integration: IntegrationId(model.integration_id),
        kind: match model.kind {
            1 => ChangeKind::Created,
            3 => ChangeKind::Deleted,
            // What a later version calls otherwise is looked up like a modification.
            _ => ChangeKind::Modified,
        },
    }
}
