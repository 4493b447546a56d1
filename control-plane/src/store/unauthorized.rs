//! Clients that were refused: a bounded number of them.

use std::collections::BTreeMap;

use sea_orm::{
    ActiveValue::Set,
    ColumnTrait as _, Condition, EntityTrait as _, ExprTrait as _, PaginatorTrait as _, QueryFilter as _,
    QueryOrder as _, QuerySelect as _, Select,
    sea_query::{Expr, OnConflict},
};

use super::{Error, PAGE_ROWS_MAX, STATEMENT_ROWS_MAX, Store, containing::contains, entity, fault};
use crate::auth::digest;
use entity::unauthorized_client::{ActiveModel, Column, Entity, Model};

/// Clients that are remembered; the oldest go first.
pub const UNAUTHORIZED_MAX: u64 = 10_000;

/// A client that was refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnauthorizedRow {
    /// Its client id.
    pub client_id: String,
    /// Where it came from last.
    pub address: String,
    /// Its user name; empty when it had none.
    pub user_name: String,
    /// Whether it has shown a password.
    pub password_provided: bool,
    /// Whether it came by TLS.
    pub tls_used: bool,
    /// Why it was refused last.
    pub reason: String,
    /// When it was refused last, epoch ms.
    pub time_ms: i64,
    /// How often it was refused since the first time that is remembered.
    pub count: u64,
}

/// What a page of refused clients is to hold; the latest come first.
#[derive(Clone, Debug, Default)]
pub struct UnauthorizedListing {
    /// Case-insensitive part of the client id.
    pub client_id: String,
    /// Case-insensitive part of the address.
    pub address: String,
    /// Case-insensitive part of the user name.
    pub user_name: String,
    /// Case-insensitive part of the reason.
    pub reason: String,
    /// Only those after the one with this time and this digest of its client id.
    pub after: Option<(i64, String)>,
    /// Rows at most; never more than [`PAGE_ROWS_MAX`].
    pub limit: u64,
}

impl UnauthorizedListing {
    fn select(&self) -> Select<Entity> {
        let parts = [
            (Column::ClientId, &self.client_id),
            (Column::Address, &self.address),
            (Column::UserName, &self.user_name),
            (Column::Reason, &self.reason),
        ];
        let mut query = Entity::find();
        for (column, part) in parts.into_iter().filter(|(_, part)| !part.is_empty()) {
            query = query.filter(contains(column, part));
        }
        query
    }
}

impl Store {
    /// Takes what data planes tell, in its order; a count of 0: the client was let in, and is forgotten. Keeps the
    /// latest [`UNAUTHORIZED_MAX`].
    ///
    /// # Errors
    /// The database's; nothing was saved.
    pub async fn store_unauthorized(&self, told: &[UnauthorizedRow]) -> Result<(), Error> {
        let mut forgotten: Vec<String> = Vec::new();
        let mut refused: BTreeMap<String, UnauthorizedRow> = BTreeMap::new();
        for row in told {
            let digest = digest(&row.client_id);
            if row.count == 0 {
                refused.remove(&digest);
                forgotten.push(digest);
                continue;
            }
            let before = refused.get(&digest).map_or(0, |before| before.count);
            let count = row.count.saturating_add(before);
            refused.insert(digest, UnauthorizedRow { count, ..row.clone() });
        }
        if forgotten.is_empty() && refused.is_empty() {
            return Ok(());
        }
        let transaction = self.begin().await?;
        for digests in forgotten.chunks(STATEMENT_ROWS_MAX) {
            Entity::delete_many()
                .filter(Column::Digest.is_in(digests.iter().map(String::as_str)))
                .exec(&transaction)
                .await
                .map_err(|error| fault(&error))?;
        }
        let models: Vec<ActiveModel> = refused.into_iter().map(|(digest, row)| model(digest, row)).collect();
        for models in models.chunks(STATEMENT_ROWS_MAX) {
            Entity::insert_many(models.iter().cloned())
                .on_conflict(
                    OnConflict::column(Column::Digest)
                        .update_columns([
                            Column::Address,
                            Column::UserName,
                            Column::PasswordProvided,
                            Column::TlsUsed,
                            Column::Reason,
                            Column::TimeMs,
                        ])
                        .value(
                            Column::Count,
                            Expr::col((Entity, Column::Count)).add(Expr::col(("excluded", Column::Count))),
                        )
                        .to_owned(),
                )
                .exec_without_returning(&transaction)
                .await
                .map_err(|error| fault(&error))?;
        }
        let latest = Entity::find().order_by_desc(Column::TimeMs).order_by_desc(Column::Digest);
        let beyond = latest.offset(UNAUTHORIZED_MAX).limit(1).one(&transaction).await;
        if let Some(first) = beyond.map_err(|error| fault(&error))? {
            let older =
                Condition::all().add(Column::TimeMs.eq(first.time_ms)).add(Column::Digest.lte(first.digest));
            Entity::delete_many()
                .filter(Condition::any().add(Column::TimeMs.lt(first.time_ms)).add(older))
                .exec(&transaction)
                .await
                .map_err(|error| fault(&error))?;
        }
        transaction.commit().await.map_err(|error| fault(&error))
    }

    /// A client that was refused.
    ///
    /// # Errors
    /// `Absent`, or the database's.
    pub async fn get_unauthorized(&self, client_id: &str) -> Result<UnauthorizedRow, Error> {
        let found = Entity::find_by_id(digest(client_id)).one(&self.connection).await;
        found.map_err(|error| fault(&error))?.map(row).ok_or_else(|| absent(client_id))
    }

    /// Forgets one.
    ///
    /// # Errors
    /// `Absent`, or the database's.
    pub async fn forget_unauthorized(&self, client_id: &str) -> Result<(), Error> {
        let done = Entity::delete_by_id(digest(client_id)).exec(&self.connection).await;
        if done.map_err(|error| fault(&error))?.rows_affected == 0 {
            return Err(absent(client_id));
        }
        Ok(())
    }

    /// Forgets those whose latest refusal was before this time, all without one; tells how many.
    ///
    /// # Errors
    /// The database's.
    pub async fn clear_unauthorized(&self, before_ms: Option<i64>) -> Result<u64, Error> {
        let mut delete = Entity::delete_many();
        if let Some(before_ms) = before_ms {
            delete = delete.filter(Column::TimeMs.lt(before_ms));
        }
        let done = delete.exec(&self.connection).await.map_err(|error| fault(&error))?;
        Ok(done.rows_affected)
    }

    /// A page of refused clients.
    ///
    /// # Errors
    /// The database's.
    pub async fn list_unauthorized(
        &self,
        listing: &UnauthorizedListing,
    ) -> Result<Vec<UnauthorizedRow>, Error> {
        let mut query = listing.select();
        if let Some((time_ms, digest)) = &listing.after {
            let older =
                Condition::all().add(Column::TimeMs.eq(*time_ms)).add(Column::Digest.lt(digest.as_str()));
            query = query.filter(Condition::any().add(Column::TimeMs.lt(*time_ms)).add(older));
        }
        let models = query
            .order_by_desc(Column::TimeMs)
            .order_by_desc(Column::Digest)
            .limit(Ord::min(listing.limit, PAGE_ROWS_MAX))
            .all(&self.connection)
            .await
            .map_err(|error| fault(&error))?;
        Ok(models.into_iter().map(row).collect())
    }

    /// How many refused clients a listing has over all pages.
    ///
    /// # Errors
    /// The database's.
    pub async fn count_unauthorized(&self, listing: &UnauthorizedListing) -> Result<u64, Error> {
        listing.select().count(&self.connection).await.map_err(|error| fault(&error))
    }
}

fn absent(client_id: &str) -> Error {
    Error::Absent { what: "UnauthorizedClient", name: client_id.to_owned() }
}

fn model(digest: String, row: UnauthorizedRow) -> ActiveModel {
    ActiveModel {
        digest: Set(digest),
        client_id: Set(row.client_id),
        address: Set(row.address),
        user_name: Set(row.user_name),
        password_provided: Set(row.password_provided),
        tls_used: Set(row.tls_used),
        reason: Set(row.reason),
        time_ms: Set(row.time_ms),
        count: Set(i64::try_from(row.count).unwrap_or(i64::MAX)),
    }
}

fn row(model: Model) -> UnauthorizedRow {
    UnauthorizedRow {
        client_id: model.client_id,
        address: model.address,
        user_name: model.user_name,
        password_provided: model.password_provided,
        tls_used: model.tls_used,
        reason: model.reason,
        time_ms: model.time_ms,
        count: Ord::max(model.count, 0).cast_unsigned(),
    }
}
