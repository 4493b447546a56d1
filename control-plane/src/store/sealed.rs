//! Seals what was stored before there was a key, or with an older one.

use std::collections::BTreeMap;

use sea_orm::{
    ColumnTrait as _, Condition, EntityTrait as _, QueryFilter as _, QueryOrder as _, QuerySelect as _,
    sea_query::Expr,
};
use tbmq_integration::seal::Purpose;
use tbmq_proto::ids::IntegrationId;

use super::{Error, Store, entity, fault, life, next_revision};

/// Rows of one batch: the counter of revisions is locked meanwhile, and every other change waits.
const BATCH_ROWS: u64 = 50;

/// What became of a batch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sealing {
    /// The last row that was looked through; `None`: there was none.
    pub last: Option<IntegrationId>,
    /// Rows that were sealed with the first key, and are to be sent again.
    pub sealed: u64,
    /// Rows that could not be opened.
    pub unreadable: u64,
}

impl Store {
    /// Seals, with the first key, the next rows after `after` that are not: a bounded number of them. A row keeps its
    /// revision, for nothing of it has changed, and gets a dirty mark, so that it is sent again. Without a key nothing is
    /// done.
    ///
    /// # Errors
    /// The database's; nothing of the batch was saved.
    pub async fn seal_batch(&self, after: Option<IntegrationId>, now_ms: i64) -> Result<Sealing, Error> {
        use entity::integration::{Column, Entity};
        let mut done = Sealing::default();
        let Some(first) = self.vault.first() else { return Ok(done) };
        let is_other = Condition::any().add(Column::SealedKey.is_null()).add(Column::SealedKey.ne(first));
        let mut query = Entity::find().select_only().column(Column::Id).filter(is_other);
        if let Some(after) = after {
            query = query.filter(Column::Id.gt(after.0));
        }
        let ids: Vec<uuid::Uuid> = query
            .order_by_asc(Column::Id)
            .limit(BATCH_ROWS)
            .into_tuple()
            .all(&self.connection)
            .await
            .map_err(|error| fault(&error))?;
        let Some(last) = ids.last() else { return Ok(done) };
        done.last = Some(IntegrationId(*last));
        let transaction = self.begin().await?;
        // Whoever changes a row comes before or after; and the mark has a number that no other mark has.
        let number = next_revision(&transaction).await?;
        let models = Entity::find()
            .filter(Column::Id.is_in(ids))
            .all(&transaction)
            .await
            .map_err(|error| fault(&error))?;
        for model in models {
            let mut row = self.row(model)?;
            if row.unreadable.is_some() {
                done.unreadable += 1;
                continue;
            }
            let had_any = row.parted.is_some();
            let purpose = Purpose::Revision(row.revision);
            row.parted = self.vault.part(row.id, &row.kind, purpose, &row.configuration)?;
            Entity::update(self.model(&row)).exec(&transaction).await.map_err(|error| fault(&error))?;
            if had_any || row.parted.is_some() {
                life::mark(&transaction, row.id, number, now_ms).await?;
                done.sealed += 1;
            }
        }
        transaction.commit().await.map_err(|error| fault(&error))?;
        Ok(done)
    }

    /// How many integrations have their secrets sealed with each key.
    ///
    /// # Errors
    /// The database's.
    pub async fn sealed_by_key(&self) -> Result<BTreeMap<String, u64>, Error> {
        use entity::integration::{Column, Entity};
        let counts: Vec<(Option<String>, i64)> = Entity::find()
            .select_only()
            .column(Column::SealedKey)
            .column_as(Column::Id.count(), "integrations")
            .filter(Column::Sealed.is_not_null())
            .group_by(Column::SealedKey)
            .into_tuple()
            .all(&self.connection)
            .await
            .map_err(|error| fault(&error))?;
        Ok(counts.into_iter().map(|(key, count)| (key.unwrap_or_default(), count as u64)).collect())
    }

    /// Has the integrations of a kind looked through again, since its schema may call other fields secret.
    pub(super) async fn look_again(&self, kind: &str) -> Result<(), Error> {
        use entity::integration::{Column, Entity};
        Entity::update_many()
            .col_expr(Column::SealedKey, Expr::value(None::<String>))
            .filter(Column::Kind.eq(kind))
            .exec(&self.connection)
            .await
            .map_err(|error| fault(&error))?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tbmq_integration::seal::{Keys, Unreadable};

    use super::*;
    use crate::{
        store::{Options, Saved},
        vault::{self, Vault},
    };

    #[tokio::test]
    async fn a_malformed_sealed_part_is_unreadable_and_not_plain() {
        let folder = tempfile::tempdir().unwrap();
        let keys = Keys::parse(&vault::new_key().unwrap()).unwrap();
        let vault = Arc::new(Vault::new(keys.clone()));
        let options = Options::sqlite(&folder.path().join("control.db"));
        let store = Store::open_with(&options, vault).await.unwrap();
        let saved = Saved { service_id: "cp1", incarnation: "i", now_ms: 1, request: None };
        let mut new = crate::testing::new("one");
        new.configuration = r#"{"topicFilters":[],"clientConfiguration":{"password":"s3cret"}}"#.to_owned();
        let row = store.create(new, saved).await.unwrap();
        entity::integration::Entity::update_many()
            .col_expr(entity::integration::Column::Sealed, Expr::value("nonsense"))
            .exec(&store.connection)
            .await
            .unwrap();
        let found = store.get(row.id).await.unwrap();
        assert!(matches!(found.unreadable, Some(Unreadable::Malformed(_))), "{:?}", found.unreadable);
        let parted = found.parted.expect("else masks would pass for secrets");
        assert!(keys.open(row.id, &parted.plain, &parted.sealed).is_err());
    }
}
