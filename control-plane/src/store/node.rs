//! Kinds that executors announced, and sessions of data planes.

use sea_orm::{
    ActiveValue::Set, ColumnTrait as _, Condition, EntityTrait as _, QueryFilter as _, QueryOrder as _,
    sea_query::Expr, sea_query::OnConflict,
};

use super::{Error, Store, entity, fault};

/// A kind of integration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KindRow {
    /// Its name, upper case.
    pub name: String,
    /// JSON Schema of `clientConfiguration`.
    pub json_schema: String,
    /// SHA-256 of the schema, lower-case hex.
    pub schema_hash: String,
}

/// The session of a data plane.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionRow {
    /// The data plane.
    pub service_id: String,
    /// Its process start.
    pub incarnation: String,
    /// The control plane that holds the session.
    pub replica: String,
    /// Its process start; empty when it is of a release that did not tell.
    pub replica_incarnation: String,
    /// Where other control planes reach it, such as `http://cp1:9090`; empty when it did not tell.
    pub replica_address: String,
    /// Version of the program.
    pub version: String,
    /// Addresses that it serves.
    pub addresses: Vec<String>,
    /// What it can do.
    pub capabilities: Vec<String>,
    /// Epoch ms by the replica's clock.
    pub seen_ms: i64,
    /// Connected clients, as it told last.
    pub connections: u64,
    /// It takes no clients.
    pub draining: bool,
}

impl Store {
    /// All kinds that were ever announced, by name.
    ///
    /// # Errors
    /// The database's.
    pub async fn kinds(&self) -> Result<Vec<KindRow>, Error> {
        let models = entity::kind::Entity::find()
            .order_by_asc(entity::kind::Column::Name)
            .all(&self.connection)
            .await
            .map_err(|error| fault(&error))?;
        Ok(models
            .into_iter()
            .map(|model| KindRow {
                name: model.name,
                json_schema: model.json_schema,
                schema_hash: model.schema_hash,
            })
            .collect())
    }

    /// Keeps the schema of a kind.
    ///
    /// # Errors
    /// The database's.
    pub async fn save_kind(&self, kind: &KindRow, now_ms: i64) -> Result<(), Error> {
        use entity::kind::Column;
        let model = entity::kind::ActiveModel {
            name: Set(kind.name.clone()),
            json_schema: Set(kind.json_schema.clone()),
            schema_hash: Set(kind.schema_hash.clone()),
            announced_ms: Set(now_ms),
        };
        entity::kind::Entity::insert(model)
            .on_conflict(
                OnConflict::column(Column::Name)
                    .update_columns([Column::JsonSchema, Column::SchemaHash, Column::AnnouncedMs])
                    .to_owned(),
            )
            .exec_without_returning(&self.connection)
            .await
            .map_err(|error| fault(&error))?;
        self.look_again(&kind.name).await
    }

    /// Takes a session over unless a newer incarnation of the data plane has one; then that one is returned.
    ///
    /// # Errors
    /// The database's.
    pub async fn open_session(&self, session: &SessionRow) -> Result<Option<String>, Error> {
        use entity::node_session::Column;
        let transaction = self.begin().await?;
        let held = entity::node_session::Entity::find_by_id(session.service_id.clone())
            .one(&transaction)
            .await
            .map_err(|error| fault(&error))?;
        if let Some(held) = held.filter(|held| held.incarnation > session.incarnation) {
            return Ok(Some(held.incarnation));
        }
        let list = |texts: &[String]| serde_json::to_string(texts).expect("texts are always JSON");
        let model = entity::node_session::ActiveModel {
            service_id: Set(session.service_id.clone()),
            incarnation: Set(session.incarnation.clone()),
            replica: Set(session.replica.clone()),
            version: Set(session.version.clone()),
            addresses: Set(list(&session.addresses)),
            capabilities: Set(list(&session.capabilities)),
            connected_ms: Set(session.seen_ms),
            seen_ms: Set(session.seen_ms),
            replica_incarnation: Set(session.replica_incarnation.clone()),
            replica_address: Set(session.replica_address.clone()),
            connections: Set(session.connections as i64),
            draining: Set(session.draining),
        };
        entity::node_session::Entity::insert(model)
            .on_conflict(
                OnConflict::column(Column::ServiceId)
                    .update_columns([
                        Column::Incarnation,
                        Column::Replica,
                        Column::Version,
                        Column::Addresses,
                        Column::Capabilities,
                        Column::ConnectedMs,
                        Column::SeenMs,
                        Column::ReplicaIncarnation,
                        Column::ReplicaAddress,
                        Column::Connections,
                        Column::Draining,
                    ])
                    .to_owned(),
            )
            .exec_without_returning(&transaction)
            .await
            .map_err(|error| fault(&error))?;
        transaction.commit().await.map_err(|error| fault(&error))?;
        Ok(None)
    }

    /// Notes a heartbeat of a session, with the time and the state that it holds now. Otherwise returns the incarnation
    /// that has a session instead, here or at another control plane; empty when none has.
    ///
    /// # Errors
    /// The database's.
    pub async fn touch_session(&self, session: &SessionRow) -> Result<Option<String>, Error> {
        use entity::node_session::Column;
        let result = entity::node_session::Entity::update_many()
            .col_expr(Column::SeenMs, Expr::value(session.seen_ms))
            .col_expr(Column::Connections, Expr::value(session.connections as i64))
            .col_expr(Column::Draining, Expr::value(session.draining))
            .filter(held_by(session))
            .exec(&self.connection)
            .await
            .map_err(|error| fault(&error))?;
        if result.rows_affected > 0 {
            return Ok(None);
        }
        Ok(Some(self.session(&session.service_id).await?.map(|held| held.incarnation).unwrap_or_default()))
    }

    /// Ends a session, unless a newer incarnation or another control plane has taken it over.
    ///
    /// # Errors
    /// The database's.
    pub async fn close_session(&self, session: &SessionRow) -> Result<(), Error> {
        entity::node_session::Entity::delete_many()
            .filter(held_by(session))
            .exec(&self.connection)
            .await
            .map_err(|error| fault(&error))?;
        Ok(())
    }

    /// The session of a data plane, alive or not.
    ///
    /// # Errors
    /// The database's.
    pub async fn session(&self, service_id: &str) -> Result<Option<SessionRow>, Error> {
        let model = entity::node_session::Entity::find_by_id(service_id.to_owned())
            .one(&self.connection)
            .await
            .map_err(|error| fault(&error))?;
        Ok(model.map(from_model))
    }

    /// Removes sessions that were last alive before `before_ms`: of control planes that died.
    ///
    /// # Errors
    /// The database's.
    pub async fn delete_sessions_before(&self, before_ms: i64) -> Result<u64, Error> {
        let result = entity::node_session::Entity::delete_many()
            .filter(entity::node_session::Column::SeenMs.lt(before_ms))
            .exec(&self.connection)
            .await
            .map_err(|error| fault(&error))?;
        Ok(result.rows_affected)
    }

    /// All sessions that were alive since `since_ms`.
    ///
    /// # Errors
    /// The database's.
    pub async fn sessions(&self, since_ms: i64) -> Result<Vec<SessionRow>, Error> {
        let models = entity::node_session::Entity::find()
            .filter(entity::node_session::Column::SeenMs.gte(since_ms))
            .all(&self.connection)
            .await
            .map_err(|error| fault(&error))?;
        Ok(models.into_iter().map(from_model).collect())
    }
}

/// This session, and no later one of its data plane.
fn held_by(session: &SessionRow) -> Condition {
    use entity::node_session::Column;
    Condition::all()
        .add(Column::ServiceId.eq(&session.service_id))
        .add(Column::Incarnation.eq(&session.incarnation))
        .add(Column::ReplicaIncarnation.eq(&session.replica_incarnation))
}

fn from_model(model: entity::node_session::Model) -> SessionRow {
    let list = |text: &str| serde_json::from_str(text).unwrap_or_default();
    SessionRow {
        addresses: list(&model.addresses),
        capabilities: list(&model.capabilities),
        service_id: model.service_id,
        incarnation: model.incarnation,
        replica: model.replica,
        replica_incarnation: model.replica_incarnation,
        replica_address: model.replica_address,
        version: model.version,
        seen_ms: model.seen_ms,
        connections: model.connections as u64,
        draining: model.draining,
    }
}
