//! The audit log.

use sea_orm::{
    ActiveValue::Set, ColumnTrait as _, Condition, EntityTrait as _, ExprTrait as _, QueryFilter as _,
    QueryOrder as _, QuerySelect as _,
};
use uuid::Uuid;

use super::{Error, PAGE_ROWS_MAX, STATEMENT_ROWS_MAX, Store, containing::contains, entity, fault};

/// One call.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AuditRow {
    /// UUIDv7.
    pub id: Uuid,
    /// When the call ended, epoch ms.
    pub time_ms: i64,
    /// Who called.
    pub principal: String,
    /// Name of the caller's role; empty: unknown.
    pub role: String,
    /// Address of the caller.
    pub peer: String,
    /// Full name of the method.
    pub method: String,
    /// Name of the resource; empty: the call named none.
    pub resource: String,
    /// Of the resource before the call.
    pub etag_before: String,
    /// Of the resource after the call.
    pub etag_after: String,
    /// Name of the status code.
    pub result: String,
    /// Message of the status.
    pub error: String,
    /// The control plane that was called.
    pub service_id: String,
}

/// Which entries are wanted; all that is set must hold. Texts: a part, in upper or lower case.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AuditFilter {
    /// Epoch ms of the first.
    pub from_ms: Option<i64>,
    /// Epoch ms after the last.
    pub to_ms: Option<i64>,
    /// Who called.
    pub principal: String,
    /// Full name of the method.
    pub method: String,
    /// Name of the resource.
    pub resource: String,
    /// Name of the status code, in upper case.
    pub result: String,
    /// Only entries older than this one.
    pub before: Option<(i64, Uuid)>,
    /// Entries at most.
    pub limit: u64,
}

impl Store {
    /// Adds entries; one that is there already stays as it is. All or none.
    ///
    /// # Errors
    /// The database's.
    pub async fn add_audit(&self, rows: &[AuditRow]) -> Result<(), Error> {
        use entity::audit_entry::{ActiveModel, Column, Entity};
        let transaction = self.begin().await?;
        for chunk in rows.chunks(STATEMENT_ROWS_MAX) {
            let models = chunk.iter().cloned().map(|row| ActiveModel {
                id: Set(row.id),
                time_ms: Set(row.time_ms),
                principal: Set(row.principal),
                role: Set(row.role),
                peer: Set(row.peer),
                method: Set(row.method),
                resource: Set(row.resource),
                etag_before: Set(row.etag_before),
                etag_after: Set(row.etag_after),
                result: Set(row.result),
                error: Set(row.error),
                service_id: Set(row.service_id),
            });
            // A batch is tried again when nobody knows whether its commit was done.
            let inserted = Entity::insert_many(models)
                .on_conflict(sea_orm::sea_query::OnConflict::column(Column::Id).do_nothing().to_owned())
                .exec_without_returning(&transaction)
                .await;
            match inserted {
                Ok(_) | Err(sea_orm::DbErr::RecordNotInserted) => {}
                Err(error) => return Err(fault(&error)),
            }
        }
        transaction.commit().await.map_err(|error| fault(&error))
    }

    /// Entries, the newest first.
    ///
    /// # Errors
    /// The database's.
    pub async fn audit(&self, filter: &AuditFilter) -> Result<Vec<AuditRow>, Error> {
        use entity::audit_entry::{Column, Entity};
        let mut query = Entity::find()
            .order_by_desc(Column::TimeMs)
            .order_by_desc(Column::Id)
            .limit(Ord::min(filter.limit, PAGE_ROWS_MAX + 1));
        if let Some(from_ms) = filter.from_ms {
            query = query.filter(Column::TimeMs.gte(from_ms));
        }
        if let Some(to_ms) = filter.to_ms {
            query = query.filter(Column::TimeMs.lt(to_ms));
        }
        if let Some((time_ms, id)) = filter.before {
            query = query.filter(
                Condition::any()
                    .add(Column::TimeMs.lt(time_ms))
                    .add(Column::TimeMs.eq(time_ms).and(Column::Id.lt(id))),
            );
        }
        let parts = [
            (Column::Principal, &filter.principal),
            (Column::Method, &filter.method),
            (Column::Resource, &filter.resource),
        ];
        for (column, part) in parts {
            if !part.is_empty() {
                query = query.filter(contains(column, part));
            }
        }
        if !filter.result.is_empty() {
            query = query.filter(Column::Result.eq(filter.result.as_str()));
        }
        let models = query.all(&self.connection).await.map_err(|error| fault(&error))?;
        Ok(models.into_iter().map(from_model).collect())
    }

    /// Removes at most 1,000 entries that are older than `before_ms`; returns how many.
    ///
    /// # Errors
    /// The database's.
    pub async fn delete_audit_before(&self, before_ms: i64) -> Result<u64, Error> {
        use entity::audit_entry::{Column, Entity};
        // In bites, so that no call waits long for the lock of SQLite.
        let old: Vec<Uuid> = Entity::find()
            .select_only()
            .column(Column::Id)
            .filter(Column::TimeMs.lt(before_ms))
            .order_by_asc(Column::TimeMs)
            .limit(PAGE_ROWS_MAX)
            .into_tuple()
            .all(&self.connection)
            .await
            .map_err(|error| fault(&error))?;
        if old.is_empty() {
            return Ok(0);
        }
        let result = Entity::delete_many()
            .filter(Column::Id.is_in(old))
            .exec(&self.connection)
            .await
            .map_err(|error| fault(&error))?;
        Ok(result.rows_affected)
    }
}

fn from_model(model: entity::audit_entry::Model) -> AuditRow {
    AuditRow {
        id: model.id,
        time_ms: model.time_ms,
        principal: model.principal,
        role: model.role,
        peer: model.peer,
        method: model.method,
        resource: model.resource,
        etag_before: model.etag_before,
        etag_after: model.etag_after,
        result: model.result,
        error: model.error,
        service_id: model.service_id,
    }
}
