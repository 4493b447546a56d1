//! What of "who may connect" is to be written to the bus, and what has been: dirty marks and projections, as
//! integrations have them, of the rows of three topics.

use std::collections::BTreeMap;

use sea_orm::{
    ActiveValue::Set,
    ColumnTrait as _, Condition, ConnectionTrait, DatabaseTransaction, EntityTrait as _, PaginatorTrait as _,
    QueryFilter as _, QueryOrder as _, QuerySelect as _,
    sea_query::{Expr, OnConflict},
};

use super::{Error, Projection, STATEMENT_ROWS_MAX, Store, entity, fault, take_revisions};
use entity::{auth_outbox, auth_projection, auth_setting, blocked_client, credentials};

/// Pairs that one statement compares at most: SQLite's conditions are at most 1,000 deep.
const PAIRS_MAX: usize = 200;

/// A topic that rows are written to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum AuthTopic {
    /// `tbmq.auth.credentials`
    Credentials = 1,
    /// `tbmq.auth.settings`
    Settings = 2,
    /// `tbmq.client.blocked`
    Blocked = 3,
}

impl AuthTopic {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Credentials, Self::Settings, Self::Blocked];

    fn number(self) -> i16 {
        self as i16
    }

    fn of(number: i16) -> Result<Self, Error> {
        let found = Self::ALL.into_iter().find(|topic| topic.number() == number);
        found.ok_or_else(|| Error::Corrupt(format!("a mark of topic {number}, which is none")))
    }
}

/// A row that is written to a topic.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Item {
    /// The topic.
    pub topic: AuthTopic,
    /// What the row is found by: of credentials the id, of settings their key, of a block the digest of its key.
    pub row: String,
}

impl std::fmt::Display for Item {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?} {}", self.topic, self.row)
    }
}

/// A dirty mark of an item.
#[derive(Clone, PartialEq, Eq)]
pub struct AuthMark {
    /// What it is of.
    pub item: Item,
    /// Key of its record.
    pub record_key: String,
    /// Revision of the change that left it.
    pub revision: u64,
}

impl std::fmt::Debug for AuthMark {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}@{}", self.item, self.revision)
    }
}

/// Dirty marks of items.
pub(super) async fn marks_waiting(connection: &impl ConnectionTrait) -> Result<u64, Error> {
    auth_outbox::Entity::find().count(connection).await.map_err(|error| fault(&error))
}

impl Store {
    /// The oldest dirty marks of items, in the order of their revisions.
    ///
    /// # Errors
    /// The database's.
    pub async fn auth_marks(&self, limit: u64) -> Result<Vec<AuthMark>, Error> {
        use auth_outbox::{Column, Entity};
        let models = Entity::find()
            .order_by_asc(Column::Revision)
            .order_by_asc(Column::Item)
            .limit(limit)
            .all(&self.connection)
            .await
            .map_err(|error| fault(&error))?;
        let mark = |model: auth_outbox::Model| {
            let item = Item { topic: AuthTopic::of(model.topic)?, row: model.item };
            Ok(AuthMark { item, record_key: model.record_key, revision: model.revision as u64 })
        };
        models.into_iter().map(mark).collect()
    }

    /// Notes what was written, unless something newer was, and clears the marks that have not been renewed since. `None`:
    /// a tombstone was written.
    ///
    /// # Errors
    /// The database's.
    pub async fn auth_projected(&self, done: &[(AuthMark, Option<Projection>)]) -> Result<(), Error> {
        if done.is_empty() {
            return Ok(());
        }
        let transaction = self.begin().await?;
        let written: Vec<_> = done.iter().filter_map(|(mark, at)| Some((&mark.item, (*at)?))).collect();
        for chunk in written.chunks(STATEMENT_ROWS_MAX) {
            note(&transaction, chunk).await?;
        }
        for chunk in done.chunks(PAIRS_MAX) {
            let gone = chunk.iter().filter(|(_, at)| at.is_none()).map(|(mark, _)| {
                Condition::all()
                    .add(auth_projection::Column::Topic.eq(mark.item.topic.number()))
                    .add(auth_projection::Column::Item.eq(mark.item.row.as_str()))
                    .add(auth_projection::Column::Revision.lte(mark.revision as i64))
            });
            let gone = gone.fold(Condition::any(), Condition::add);
            if !gone.is_empty() {
                auth_projection::Entity::delete_many()
                    .filter(gone)
                    .exec(&transaction)
                    .await
                    .map_err(|error| fault(&error))?;
            }
            let marks = chunk.iter().map(|(mark, _)| {
                Condition::all()
                    .add(auth_outbox::Column::Topic.eq(mark.item.topic.number()))
                    .add(auth_outbox::Column::Item.eq(mark.item.row.as_str()))
                    .add(auth_outbox::Column::Revision.eq(mark.revision as i64))
            });
            auth_outbox::Entity::delete_many()
                .filter(marks.fold(Condition::any(), Condition::add))
                .exec(&transaction)
                .await
                .map_err(|error| fault(&error))?;
        }
        transaction.commit().await.map_err(|error| fault(&error))
    }

    /// What has been written of these items.
    ///
    /// # Errors
    /// The database's.
    pub async fn auth_projections(&self, items: &[Item]) -> Result<Vec<(Item, Projection)>, Error> {
        use auth_projection::{Column, Entity};
        let mut rows_of: BTreeMap<AuthTopic, Vec<&str>> = BTreeMap::new();
        for item in items {
            rows_of.entry(item.topic).or_default().push(&item.row);
        }
        let mut found = Vec::with_capacity(items.len());
        for (topic, rows) in rows_of {
            for rows in rows.chunks(STATEMENT_ROWS_MAX) {
                let models = Entity::find()
                    .filter(Column::Topic.eq(topic.number()))
                    .filter(Column::Item.is_in(rows.iter().copied()))
                    .all(&self.connection)
                    .await
                    .map_err(|error| fault(&error))?;
                found.extend(models.into_iter().map(|model| {
                    let projection = Projection {
                        revision: model.revision as u64,
                        partition: model.partition.cast_unsigned(),
                        position: model.position as u64,
                    };
                    (Item { topic, row: model.item }, projection)
                }));
            }
        }
        Ok(found)
    }

    /// Leaves marks for items whose records are to be written again: each with the key of its record and the revision
    /// that was seen of it; gives those a new revision whose stored one is less. Of an item that is not there any more
    /// nothing is left.
    ///
    /// # Errors
    /// The database's.
    pub async fn mark_auth_again(&self, items: &[(Item, String, u64)], now_ms: i64) -> Result<(), Error> {
        if items.is_empty() {
            return Ok(());
        }
        let transaction = self.begin().await?;
        let last = take_revisions(&transaction, items.len()).await?;
        let first = last - items.len() as i64 + 1;
        let mut marks = Vec::with_capacity(items.len());
        for ((item, record_key, seen), next) in items.iter().zip(first..) {
            let Some(mut revision) = revision_of(&transaction, item).await? else { continue };
            if (revision as u64) < *seen {
                revision = next;
                set_revision(&transaction, item, revision).await?;
            }
            marks.push(AuthMark {
                item: item.clone(),
                record_key: record_key.clone(),
                revision: revision as u64,
            });
        }
        mark(&transaction, &marks, now_ms).await?;
        transaction.commit().await.map_err(|error| fault(&error))
    }
}

async fn note(transaction: &DatabaseTransaction, written: &[(&Item, Projection)]) -> Result<(), Error> {
    use auth_projection::{ActiveModel, Column, Entity};
    // Not for the whole file: its `max` is none of ours.
    use sea_orm::ExprTrait as _;
    let models = written.iter().map(|(item, at)| ActiveModel {
        topic: Set(item.topic.number()),
        item: Set(item.row.clone()),
        revision: Set(at.revision as i64),
        partition: Set(at.partition.cast_signed()),
        position: Set(at.position as i64),
    });
    Entity::insert_many(models)
        .on_conflict(
            OnConflict::columns([Column::Topic, Column::Item])
                .update_columns([Column::Revision, Column::Partition, Column::Position])
                // A former leader may say so late.
                .action_and_where(
                    Expr::col((Entity, Column::Revision)).lte(Expr::col(("excluded", Column::Revision))),
                )
                .to_owned(),
        )
        .exec_without_returning(transaction)
        .await
        .map_err(|error| fault(&error))?;
    Ok(())
}

/// Leaves marks, each of another item.
pub(super) async fn mark(
    transaction: &DatabaseTransaction,
    marks: &[AuthMark],
    now_ms: i64,
) -> Result<(), Error> {
    use auth_outbox::{ActiveModel, Column, Entity};
    for chunk in marks.chunks(STATEMENT_ROWS_MAX) {
        let models = chunk.iter().map(|mark| ActiveModel {
            topic: Set(mark.item.topic.number()),
            item: Set(mark.item.row.clone()),
            record_key: Set(mark.record_key.clone()),
            revision: Set(mark.revision as i64),
            created_ms: Set(now_ms),
        });
        Entity::insert_many(models)
            .on_conflict(
                OnConflict::columns([Column::Topic, Column::Item])
                    .update_columns([Column::RecordKey, Column::Revision, Column::CreatedMs])
                    .to_owned(),
            )
            .exec_without_returning(transaction)
            .await
            .map_err(|error| fault(&error))?;
    }
    Ok(())
}

async fn revision_of(transaction: &DatabaseTransaction, item: &Item) -> Result<Option<i64>, Error> {
    let row = item.row.as_str();
    let found = match item.topic {
        AuthTopic::Credentials => match row.parse() {
            Ok(id) => credentials::Entity::find_by_id::<uuid::Uuid>(id)
                .one(transaction)
                .await
                .map(|model| model.map(|model| model.revision)),
            Err(_) => Ok(None),
        },
        AuthTopic::Settings => match row.strip_prefix(crate::auth::record::PROVIDER) {
            Some(kind) => entity::auth_provider::Entity::find_by_id(kind)
                .one(transaction)
                .await
                .map(|model| model.map(|model| model.revision)),
            None => auth_setting::Entity::find_by_id(row)
                .one(transaction)
                .await
                .map(|model| model.map(|model| model.revision)),
        },
        AuthTopic::Blocked => blocked_client::Entity::find_by_id(row)
            .one(transaction)
            .await
            .map(|model| model.map(|model| model.revision)),
    };
    found.map_err(|error| fault(&error))
}

async fn set_revision(transaction: &DatabaseTransaction, item: &Item, revision: i64) -> Result<(), Error> {
    let row = item.row.as_str();
    let value = Expr::value(revision);
    let done = match item.topic {
        AuthTopic::Credentials => {
            let Ok(id) = row.parse::<uuid::Uuid>() else { return Ok(()) };
            credentials::Entity::update_many()
                .col_expr(credentials::Column::Revision, value)
                .filter(credentials::Column::Id.eq(id))
                .exec(transaction)
                .await
        }
        AuthTopic::Settings => match row.strip_prefix(crate::auth::record::PROVIDER) {
            Some(kind) => {
                // Its secrets are sealed for the revision that they came with, which stands beside them.
                entity::auth_provider::Entity::update_many()
                    .col_expr(entity::auth_provider::Column::Revision, value)
                    .filter(entity::auth_provider::Column::Type.eq(kind))
                    .exec(transaction)
                    .await
            }
            None => {
                auth_setting::Entity::update_many()
                    .col_expr(auth_setting::Column::Revision, value)
                    .filter(auth_setting::Column::Name.eq(row))
                    .exec(transaction)
                    .await
            }
        },
        AuthTopic::Blocked => {
            blocked_client::Entity::update_many()
                .col_expr(blocked_client::Column::Revision, value)
                .filter(blocked_client::Column::Digest.eq(row))
                .exec(transaction)
                .await
        }
    };
    done.map(|_| ()).map_err(|error| fault(&error))
}
