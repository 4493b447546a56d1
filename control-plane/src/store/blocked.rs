//! Clients that may not connect.

use sea_orm::{
    ActiveValue::Set, ColumnTrait as _, Condition, EntityTrait as _, PaginatorTrait as _, QueryFilter as _,
    QueryOrder as _, QuerySelect as _, Select, sea_query::OnConflict,
};
use tbmq_auth::blocked::{PATTERNS_MAX, Status, Target, Who};

use super::{
    AuthMark, AuthTopic, Error, Item, PAGE_ROWS_MAX, STATEMENT_ROWS_MAX, Store, auth, containing::contains,
    entity, fault, next_revision,
};
use crate::{
    auth::{digest, record},
    fault::Point,
};
use entity::blocked_client::{ActiveModel, Column, Entity, Model};

/// Clients that are blocked at most: data planes hold all of them in memory.
pub const BLOCKED_MAX: u64 = 100_000;

/// What errors call them.
const WHAT: &str = "BlockedClient";

/// A stored block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlockedRow {
    /// Who is blocked.
    pub who: Who,
    /// Until when, epoch ms; 0: for ever.
    pub expires_ms: i64,
    /// For people.
    pub description: String,
    /// Of the last change.
    pub revision: u64,
    /// Epoch ms.
    pub created_ms: i64,
}

impl BlockedRow {
    /// What it is on the bus.
    pub fn item(&self) -> Item {
        Item { topic: AuthTopic::Blocked, row: digest(&self.who.key()) }
    }

    fn mark(&self, revision: u64) -> AuthMark {
        AuthMark { item: self.item(), record_key: self.who.key(), revision }
    }
}

/// What a page of blocks is to hold; pages are in the order of creation.
#[derive(Clone, Debug, Default)]
pub struct BlockedListing {
    /// Name of the type.
    pub kind: Option<&'static str>,
    /// Case-insensitive part of the value.
    pub text: String,
    /// Only those that have this status now.
    pub status: Option<Status>,
    /// Now, epoch ms.
    pub now_ms: i64,
    /// How long after it expired a block is removed, ms.
    pub ttl_ms: i64,
    /// Only those after the one that was created then and has this digest.
    pub after: Option<(i64, String)>,
    /// Rows at most; never more than [`PAGE_ROWS_MAX`].
    pub limit: u64,
}

impl BlockedListing {
    fn select(&self) -> Select<Entity> {
        let mut query = Entity::find();
        if let Some(kind) = self.kind {
            query = query.filter(Column::Type.eq(kind));
        }
        if !self.text.is_empty() {
            query = query.filter(contains(Column::Value, &self.text));
        }
        // As `tbmq_auth::blocked::status` decides.
        let soon_ms = self.now_ms.saturating_sub(self.ttl_ms / 2);
        match self.status {
            None => query,
            Some(Status::Active) => query.filter(
                Condition::any().add(Column::ExpiresMs.lte(0)).add(Column::ExpiresMs.gt(self.now_ms)),
            ),
            Some(Status::Expired) => query
                .filter(Column::ExpiresMs.gt(0))
                .filter(Column::ExpiresMs.lte(self.now_ms))
                .filter(Column::ExpiresMs.gte(soon_ms)),
            Some(Status::DeletingSoon) => query
                .filter(Column::ExpiresMs.gt(0))
                .filter(Column::ExpiresMs.lte(self.now_ms))
                .filter(Column::ExpiresMs.lt(soon_ms)),
        }
    }
}

impl Store {
    /// Blocks. One that has expired is replaced.
    ///
    /// # Errors
    /// `AlreadyBlocked`, `Full`, or the database's.
    pub async fn block(
        &self,
        who: Who,
        expires_ms: i64,
        description: String,
        now_ms: i64,
    ) -> Result<BlockedRow, Error> {
        let transaction = self.begin().await?;
        let revision = next_revision(&transaction).await? as u64;
        let key = who.key();
        let before =
            Entity::find_by_id(digest(&key)).one(&transaction).await.map_err(|error| fault(&error))?;
        if before.as_ref().is_some_and(|model| model.expires_ms <= 0 || model.expires_ms > now_ms) {
            return Err(Error::AlreadyBlocked(key));
        }
        if before.is_none() {
            let count = |query: Select<Entity>| query.count(&transaction);
            if count(Entity::find()).await.map_err(|error| fault(&error))? >= BLOCKED_MAX {
                return Err(Error::Full { what: "blocked clients", max: BLOCKED_MAX });
            }
            let is_pattern = matches!(who, Who::Regex { .. });
            let patterns = Entity::find().filter(Column::Type.eq("REGEX"));
            let max = PATTERNS_MAX as u64;
            if is_pattern && count(patterns).await.map_err(|error| fault(&error))? >= max {
                return Err(Error::Full { what: "regular expressions that block clients", max });
            }
        }
        let row = BlockedRow { who, expires_ms, description, revision, created_ms: now_ms };
        self.put_blocked(&transaction, &row, now_ms).await?;
        self.faults.pass(Point::Saving).await;
        transaction.commit().await.map_err(|error| fault(&error))?;
        Ok(row)
    }

    /// Changes until when, and the description. What is so already stays as it is.
    ///
    /// # Errors
    /// `Absent`, or the database's.
    pub async fn update_blocked(
        &self,
        key: &str,
        expires_ms: i64,
        description: String,
        now_ms: i64,
    ) -> Result<BlockedRow, Error> {
        let transaction = self.begin().await?;
        let revision = next_revision(&transaction).await? as u64;
        let model = Entity::find_by_id(digest(key)).one(&transaction).await.map_err(|error| fault(&error))?;
        let before = row(model.ok_or_else(|| absent(key))?)?;
        if before.expires_ms == expires_ms && before.description == description {
            return Ok(before);
        }
        let row = BlockedRow { expires_ms, description, revision, ..before };
        self.put_blocked(&transaction, &row, now_ms).await?;
        self.faults.pass(Point::Saving).await;
        transaction.commit().await.map_err(|error| fault(&error))?;
        Ok(row)
    }

    /// Blocks no more.
    ///
    /// # Errors
    /// `Absent`, or the database's.
    pub async fn unblock(&self, key: &str, now_ms: i64) -> Result<(), Error> {
        let transaction = self.begin().await?;
        let revision = next_revision(&transaction).await? as u64;
        let model = Entity::find_by_id(digest(key)).one(&transaction).await.map_err(|error| fault(&error))?;
        let row = row(model.ok_or_else(|| absent(key))?)?;
        Entity::delete_by_id(digest(key)).exec(&transaction).await.map_err(|error| fault(&error))?;
        auth::mark(&transaction, &[row.mark(revision)], now_ms).await?;
        self.faults.pass(Point::Saving).await;
        transaction.commit().await.map_err(|error| fault(&error))
    }

    /// Removes blocks that expired before this time, a bounded number of them; tells how many.
    ///
    /// # Errors
    /// The database's.
    pub async fn remove_outdated_blocks(&self, before_ms: i64, now_ms: i64) -> Result<u64, Error> {
        let outdated = || {
            Entity::find()
                .filter(Column::ExpiresMs.gt(0))
                .filter(Column::ExpiresMs.lte(before_ms))
                .limit(STATEMENT_ROWS_MAX as u64)
        };
        if outdated().one(&self.connection).await.map_err(|error| fault(&error))?.is_none() {
            return Ok(0);
        }
        let transaction = self.begin().await?;
        let revision = next_revision(&transaction).await? as u64;
        // Looked at again: one of them may have been changed.
        let models = outdated().all(&transaction).await.map_err(|error| fault(&error))?;
        let digests: Vec<&str> = models.iter().map(|model| model.digest.as_str()).collect();
        Entity::delete_many()
            .filter(Column::Digest.is_in(digests))
            .exec(&transaction)
            .await
            .map_err(|error| fault(&error))?;
        let mark = |model: &Model| AuthMark {
            item: Item { topic: AuthTopic::Blocked, row: model.digest.clone() },
            record_key: model.record_key.clone(),
            revision,
        };
        let marks: Vec<AuthMark> = models.iter().map(mark).collect();
        auth::mark(&transaction, &marks, now_ms).await?;
        transaction.commit().await.map_err(|error| fault(&error))?;
        Ok(marks.len() as u64)
    }

    /// The block of this record key.
    ///
    /// # Errors
    /// `Absent`, or the database's.
    pub async fn get_blocked(&self, key: &str) -> Result<BlockedRow, Error> {
        self.find_blocked(&[digest(key)]).await?.pop().ok_or_else(|| absent(key))
    }

    /// Those of these digests that are there.
    ///
    /// # Errors
    /// The database's.
    pub async fn find_blocked(&self, digests: &[String]) -> Result<Vec<BlockedRow>, Error> {
        let mut found = Vec::with_capacity(digests.len());
        for digests in digests.chunks(STATEMENT_ROWS_MAX) {
            let models = Entity::find()
                .filter(Column::Digest.is_in(digests.iter().map(String::as_str)))
                .all(&self.connection)
                .await
                .map_err(|error| fault(&error))?;
            found.extend(models.into_iter().map(row).collect::<Result<Vec<_>, _>>()?);
        }
        Ok(found)
    }

    /// All blocks in the order of their digests, in pages: those after `after`.
    ///
    /// # Errors
    /// The database's.
    pub async fn scan_blocked(&self, after: Option<&str>) -> Result<Vec<BlockedRow>, Error> {
        let mut query = Entity::find();
        if let Some(after) = after {
            query = query.filter(Column::Digest.gt(after));
        }
        let models = query
            .order_by_asc(Column::Digest)
            .limit(PAGE_ROWS_MAX)
            .all(&self.connection)
            .await
            .map_err(|error| fault(&error))?;
        models.into_iter().map(row).collect()
    }

    /// A page of blocks.
    ///
    /// # Errors
    /// The database's.
    pub async fn list_blocked(&self, listing: &BlockedListing) -> Result<Vec<BlockedRow>, Error> {
        let mut query = listing.select();
        if let Some((created_ms, digest)) = &listing.after {
            let later = Condition::all()
                .add(Column::CreatedMs.eq(*created_ms))
                .add(Column::Digest.gt(digest.as_str()));
            query = query.filter(Condition::any().add(Column::CreatedMs.gt(*created_ms)).add(later));
        }
        let models = query
            .order_by_asc(Column::CreatedMs)
            .order_by_asc(Column::Digest)
            .limit(Ord::min(listing.limit, PAGE_ROWS_MAX))
            .all(&self.connection)
            .await
            .map_err(|error| fault(&error))?;
        models.into_iter().map(row).collect()
    }

    /// How many blocks a listing has over all pages.
    ///
    /// # Errors
    /// The database's.
    pub async fn count_blocked(&self, listing: &BlockedListing) -> Result<u64, Error> {
        listing.select().count(&self.connection).await.map_err(|error| fault(&error))
    }

    async fn put_blocked(
        &self,
        transaction: &sea_orm::DatabaseTransaction,
        row: &BlockedRow,
        now_ms: i64,
    ) -> Result<(), Error> {
        Entity::insert(model(row))
            .on_conflict(
                OnConflict::column(Column::Digest)
                    .update_columns([
                        Column::ExpiresMs,
                        Column::Description,
                        Column::Revision,
                        Column::CreatedMs,
                    ])
                    .to_owned(),
            )
            .exec_without_returning(transaction)
            .await
            .map_err(|error| fault(&error))?;
        auth::mark(transaction, &[row.mark(row.revision)], now_ms).await
    }
}

fn absent(key: &str) -> Error {
    Error::Absent { what: WHAT, name: key.to_owned() }
}

/// Name of a block's type, as TBMQ's API has it.
fn type_of(who: &Who) -> &'static str {
    match who {
        Who::ClientId(_) => "CLIENT_ID",
        Who::UserName(_) => "USERNAME",
        Who::Network(_) => "IP_ADDRESS",
        Who::Regex { .. } => "REGEX",
    }
}

fn model(row: &BlockedRow) -> ActiveModel {
    let target = match &row.who {
        Who::Regex { target, .. } => Some(match target {
            Target::ClientId => "BY_CLIENT_ID",
            Target::UserName => "BY_USERNAME",
            Target::Address => "BY_IP_ADDRESS",
        }),
        _ => None,
    };
    let key = row.who.key();
    ActiveModel {
        digest: Set(digest(&key)),
        record_key: Set(key),
        r#type: Set(type_of(&row.who).to_owned()),
        value: Set(record::value_of(&row.who)),
        regex_match_target: Set(target.map(ToOwned::to_owned)),
        expires_ms: Set(row.expires_ms),
        description: Set(row.description.clone()),
        revision: Set(row.revision as i64),
        created_ms: Set(row.created_ms),
    }
}

fn row(model: Model) -> Result<BlockedRow, Error> {
    let corrupt = || Error::Corrupt(format!("blocked client {} that can't be read", model.digest));
    let value = model.value.as_str();
    let who = match model.r#type.as_str() {
        "CLIENT_ID" => Who::ClientId(value.into()),
        "USERNAME" => Who::UserName(value.into()),
        "IP_ADDRESS" => Who::network(value).map_err(|_| corrupt())?,
        "REGEX" => Who::Regex {
            pattern: value.into(),
            target: match model.regex_match_target.as_deref() {
                Some("BY_CLIENT_ID") => Target::ClientId,
                Some("BY_USERNAME") => Target::UserName,
                Some("BY_IP_ADDRESS") => Target::Address,
                _ => return Err(corrupt()),
            },
        },
        _ => return Err(corrupt()),
    };
    Ok(BlockedRow {
        who,
        expires_ms: model.expires_ms,
        description: model.description,
        revision: model.revision as u64,
        created_ms: model.created_ms,
    })
}
