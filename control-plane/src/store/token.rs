//! API tokens, of which only a hash is kept, and keys that the replicas share.

use sea_orm::{
    ActiveValue::Set,
    ColumnTrait as _, Condition, EntityTrait as _, ExprTrait as _, QueryFilter as _, QueryOrder as _,
    QuerySelect as _,
    sea_query::{Expr, OnConflict},
};
use uuid::Uuid;

use super::{Error, PAGE_ROWS_MAX, Store, entity, fault, unique_violation};

/// An API token, without its secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenRow {
    /// Its id.
    pub id: Uuid,
    /// What people call it.
    pub display_name: String,
    /// Name of the role that it gives.
    pub role: String,
    /// SHA-256 of its secret, lower-case hex.
    pub hash: String,
    /// Epoch ms.
    pub created_ms: i64,
    /// Epoch ms from which on it is not accepted; `None`: never.
    pub expires_ms: Option<i64>,
    /// Epoch ms, to the minute.
    pub last_used_ms: Option<i64>,
}

impl Store {
    /// Keeps a new token.
    ///
    /// # Errors
    /// The database's.
    pub async fn create_token(&self, token: &TokenRow) -> Result<(), Error> {
        let model = entity::api_token::ActiveModel {
            id: Set(token.id),
            display_name: Set(token.display_name.clone()),
            role: Set(token.role.clone()),
            hash: Set(token.hash.clone()),
            created_ms: Set(token.created_ms),
            expires_ms: Set(token.expires_ms),
            last_used_ms: Set(token.last_used_ms),
        };
        entity::api_token::Entity::insert(model)
            .exec_without_returning(&self.connection)
            .await
            .map_err(|error| fault(&error))?;
        Ok(())
    }

    /// The token whose secret has this hash.
    ///
    /// # Errors
    /// The database's.
    pub async fn token_of(&self, hash: &str) -> Result<Option<TokenRow>, Error> {
        let found = entity::api_token::Entity::find()
            .filter(entity::api_token::Column::Hash.eq(hash))
            .one(&self.connection)
            .await
            .map_err(|error| fault(&error))?;
        Ok(found.map(from_model))
    }

    /// At most `limit` tokens, the oldest first, from after this one on.
    ///
    /// # Errors
    /// The database's.
    pub async fn tokens(&self, after: Option<(i64, Uuid)>, limit: u64) -> Result<Vec<TokenRow>, Error> {
        use entity::api_token::Column;
        let mut query = entity::api_token::Entity::find()
            .order_by_asc(Column::CreatedMs)
            .order_by_asc(Column::Id)
            .limit(Ord::min(limit, PAGE_ROWS_MAX + 1));
        if let Some((created_ms, id)) = after {
            query = query.filter(
                Condition::any()
                    .add(Column::CreatedMs.gt(created_ms))
                    .add(Column::CreatedMs.eq(created_ms).and(Column::Id.gt(id))),
            );
        }
        let models = query.all(&self.connection).await.map_err(|error| fault(&error))?;
        Ok(models.into_iter().map(from_model).collect())
    }

    /// Removes a token; `false`: there is none of this id.
    ///
    /// # Errors
    /// The database's.
    pub async fn delete_token(&self, id: Uuid) -> Result<bool, Error> {
        let result = entity::api_token::Entity::delete_by_id(id)
            .exec(&self.connection)
            .await
            .map_err(|error| fault(&error))?;
        Ok(result.rows_affected > 0)
    }

    /// Notes that a token was used; a later note stays.
    ///
    /// # Errors
    /// The database's.
    pub async fn touch_token(&self, id: Uuid, used_ms: i64) -> Result<(), Error> {
        use entity::api_token::Column;
        entity::api_token::Entity::update_many()
            .col_expr(Column::LastUsedMs, Expr::value(used_ms))
            .filter(Column::Id.eq(id))
            .filter(Condition::any().add(Column::LastUsedMs.is_null()).add(Column::LastUsedMs.lt(used_ms)))
            .exec(&self.connection)
            .await
            .map_err(|error| fault(&error))?;
        Ok(())
    }

    /// The key of this name that all replicas share: `fresh`, unless there is one already.
    ///
    /// # Errors
    /// The database's.
    pub async fn shared_key(&self, name: &str, fresh: &str) -> Result<String, Error> {
        use entity::access_key::{ActiveModel, Column, Entity};
        let model = ActiveModel { name: Set(name.to_owned()), secret: Set(fresh.to_owned()) };
        let inserted = Entity::insert(model)
            .on_conflict(OnConflict::column(Column::Name).do_nothing().to_owned())
            .exec_without_returning(&self.connection)
            .await;
        match inserted {
            Ok(_) | Err(sea_orm::DbErr::RecordNotInserted) => {}
            Err(error) if unique_violation(&error).is_some() => {}
            Err(error) => return Err(fault(&error)),
        }
        let held =
            Entity::find_by_id(name.to_owned()).one(&self.connection).await.map_err(|error| fault(&error))?;
        held.map(|key| key.secret).ok_or_else(|| Error::Corrupt(format!("no key {name}")))
    }
}

fn from_model(model: entity::api_token::Model) -> TokenRow {
    TokenRow {
        id: model.id,
        display_name: model.display_name,
        role: model.role,
        hash: model.hash,
        created_ms: model.created_ms,
        expires_ms: model.expires_ms,
        last_used_ms: model.last_used_ms,
    }
}
