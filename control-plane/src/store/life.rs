//! Lives of message topics, dirty marks, and what has been projected.

use std::collections::BTreeSet;

use sea_orm::{
    ActiveValue::Set,
    ColumnTrait as _, Condition, ConnectionTrait, DatabaseTransaction, DbErr, EntityTrait as _,
    PaginatorTrait as _, QueryFilter as _, QueryOrder as _, QuerySelect as _,
    sea_query::{Expr, OnConflict, Query},
};
use tbmq_integration::{
    Millis,
    cleanup::{Goal, Stage, TopicLife},
};
use tbmq_proto::ids::{IntegrationId, Kind};

use super::{Error, PAGE_ROWS_MAX, Store, entity, fault, next_revision, unique_violation};

/// Pairs that one statement compares at most: SQLite's conditions are at most 1,000 deep.
const PAIRS_MAX: usize = 200;

/// The stored life of a message topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Life {
    /// The integration, which may be deleted already.
    pub integration: IntegrationId,
    /// Its kind.
    pub kind: Kind,
    /// Where the topic is in its life.
    pub life: TopicLife,
    /// Revision of the deletion.
    pub revision: u64,
    /// Number of shards, at least 1; fixed when the integration is created.
    pub shards: u32,
    version: i64,
}

/// A dirty mark.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark {
    /// The integration.
    pub integration: IntegrationId,
    /// Revision of the change that left it.
    pub revision: u64,
}

/// What the relayer has before it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Outbox {
    /// Dirty marks, those of who may connect included.
    pub count: u64,
    /// When the oldest one of an integration was left, epoch ms.
    pub oldest_ms: Option<i64>,
}

/// What has been projected of an integration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Projection {
    /// Revision of the records.
    pub revision: u64,
    /// Where the record lies that nodes have to apply; of an integration the subscription, whose topic has one partition.
    pub partition: u32,
    /// The position after it.
    pub position: u64,
}

impl Store {
    /// The oldest dirty marks, in the order of their revisions.
    ///
    /// # Errors
    /// The database's.
    pub async fn marks(&self, limit: u64) -> Result<Vec<Mark>, Error> {
        let models = entity::outbox::Entity::find()
            .order_by_asc(entity::outbox::Column::Revision)
            .limit(limit)
            .all(&self.connection)
            .await
            .map_err(|error| fault(&error))?;
        Ok(models
            .into_iter()
            .map(|model| Mark {
                integration: IntegrationId(model.integration_id),
                revision: model.revision as u64,
            })
            .collect())
    }

    /// What the relayer has before it.
    ///
    /// # Errors
    /// The database's.
    pub async fn outbox(&self) -> Result<Outbox, Error> {
        use entity::outbox::{Column, Entity};
        let marks = Entity::find().count(&self.connection).await.map_err(|error| fault(&error))?;
        let of_auth = super::auth::marks_waiting(&self.connection).await?;
        let oldest = Entity::find().order_by_asc(Column::CreatedMs).one(&self.connection).await;
        let oldest_ms = oldest.map_err(|error| fault(&error))?.map(|model| model.created_ms);
        Ok(Outbox { count: marks + of_auth, oldest_ms })
    }

    /// Leaves a mark for an integration whose records are to be written again; gives it a new revision when the
    /// stored one is less than `seen`.
    ///
    /// # Errors
    /// The database's.
    pub async fn mark_again(&self, id: IntegrationId, seen: u64, now_ms: i64) -> Result<(), Error> {
        let transaction = self.begin().await?;
        let next = next_revision(&transaction).await?;
        let Some(model) = entity::integration::Entity::find_by_id(id.0)
            .one(&transaction)
            .await
            .map_err(|error| fault(&error))?
        else {
            return Ok(());
        };
        let mut revision = model.revision;
        if (model.revision as u64) < seen {
            revision = next;
            let mut row = self.row(model)?;
            row.revision = revision as u64;
            self.seal(&mut row)?;
            entity::integration::Entity::update(self.model(&row))
                .exec(&transaction)
                .await
                .map_err(|error| fault(&error))?;
            super::change::record(&transaction, revision, id, super::ChangeKind::Modified, now_ms).await?;
        }
        mark(&transaction, id, revision, now_ms).await?;
        transaction.commit().await.map_err(|error| fault(&error))
    }

    /// Leaves a mark for an integration that is to be started anew: gives it a new revision.
    ///
    /// # Errors
    /// The database's.
    pub async fn mark_anew(&self, id: IntegrationId, now_ms: i64) -> Result<(), Error> {
        self.mark_again(id, u64::MAX, now_ms).await
    }

    /// Notes what was projected, unless something newer was, and clears the marks that have not been renewed since.
    ///
    /// # Errors
    /// The database's.
    pub async fn projected(&self, done: &[(Mark, Projection)], now_ms: i64) -> Result<(), Error> {
        use entity::projection;
        // Not for the whole file: its `max` is none of ours.
        use sea_orm::ExprTrait as _;
        if done.is_empty() {
            return Ok(());
        }
        let transaction = self.begin().await?;
        for chunk in done.chunks(PAIRS_MAX) {
            let models = chunk.iter().map(|(mark, projected)| projection::ActiveModel {
                integration_id: Set(mark.integration.0),
                revision: Set(projected.revision as i64),
                position: Set(projected.position as i64),
                time_ms: Set(now_ms),
            });
            projection::Entity::insert_many(models)
                .on_conflict(
                    OnConflict::column(projection::Column::IntegrationId)
                        .update_columns([
                            projection::Column::Revision,
                            projection::Column::Position,
                            projection::Column::TimeMs,
                        ])
                        // A former leader may say so late.
                        .action_and_where(
                            Expr::col((projection::Entity, projection::Column::Revision))
                                .lte(Expr::col(("excluded", projection::Column::Revision))),
                        )
                        .to_owned(),
                )
                .exec_without_returning(&transaction)
                .await
                .map_err(|error| fault(&error))?;
            clear_marks(&transaction, chunk.iter().map(|(mark, _)| *mark)).await?;
        }
        transaction.commit().await.map_err(|error| fault(&error))
    }

    /// Clears a mark, unless it was renewed.
    ///
    /// # Errors
    /// The database's.
    pub async fn clear_mark(&self, mark: Mark) -> Result<(), Error> {
        clear_marks(&self.connection, [mark]).await
    }

    /// What has been projected of an integration.
    ///
    /// # Errors
    /// The database's.
    pub async fn projection(&self, id: IntegrationId) -> Result<Option<Projection>, Error> {
        let model = entity::projection::Entity::find_by_id(id.0)
            .one(&self.connection)
            .await
            .map_err(|error| fault(&error))?;
        Ok(model.map(from_projection))
    }

    /// What has been projected of these integrations.
    ///
    /// # Errors
    /// The database's.
    pub async fn projections(
        &self,
        ids: &[IntegrationId],
    ) -> Result<Vec<(IntegrationId, Projection)>, Error> {
        let models = entity::projection::Entity::find()
            .filter(entity::projection::Column::IntegrationId.is_in(ids.iter().map(|id| id.0)))
            .all(&self.connection)
            .await
            .map_err(|error| fault(&error))?;
        Ok(models
            .into_iter()
            .map(|model| (IntegrationId(model.integration_id), from_projection(model)))
            .collect())
    }

    /// The life of a topic.
    ///
    /// # Errors
    /// The database's.
    pub async fn life(&self, id: IntegrationId) -> Result<Option<Life>, Error> {
        find(&self.connection, id).await
    }

    /// The lives of the topics of these integrations.
    ///
    /// # Errors
    /// The database's.
    pub async fn lives(&self, ids: &[IntegrationId]) -> Result<Vec<Life>, Error> {
        let models = entity::topic_life::Entity::find()
            .filter(entity::topic_life::Column::IntegrationId.is_in(ids.iter().map(|id| id.0)))
            .all(&self.connection)
            .await
            .map_err(|error| fault(&error))?;
        models.into_iter().map(from_model).collect()
    }

    /// The lives of all topics.
    ///
    /// # Errors
    /// The database's.
    pub async fn all_lives(&self) -> Result<Vec<Life>, Error> {
        let models = entity::topic_life::Entity::find().all(&self.connection).await;
        models.map_err(|error| fault(&error))?.into_iter().map(from_model).collect()
    }

    /// Lives that are live, in the order of ids, in pages: those after `after`.
    ///
    /// # Errors
    /// The database's.
    pub async fn live_lives(&self, after: Option<IntegrationId>) -> Result<Vec<Life>, Error> {
        use entity::topic_life::Column;
        let mut query = entity::topic_life::Entity::find().filter(Column::Stage.eq("LIVE"));
        if let Some(after) = after {
            query = query.filter(Column::IntegrationId.gt(after.0));
        }
        let models = query
            .order_by_asc(Column::IntegrationId)
            .limit(PAGE_ROWS_MAX)
            .all(&self.connection)
            .await
            .map_err(|error| fault(&error))?;
        models.into_iter().map(from_model).collect()
    }

    /// Lives that are on their way: neither live nor parked.
    ///
    /// # Errors
    /// The database's.
    pub async fn restless_lives(&self) -> Result<Vec<Life>, Error> {
        let models = entity::topic_life::Entity::find()
            .filter(entity::topic_life::Column::Stage.is_not_in(["LIVE", "PARKED", "CREATE"]))
            .order_by_asc(entity::topic_life::Column::DeadlineMs)
            .limit(PAGE_ROWS_MAX)
            .all(&self.connection)
            .await
            .map_err(|error| fault(&error))?;
        models.into_iter().map(from_model).collect()
    }

    /// Saves a life that was read before and changed since; `false` when somebody else has changed it meanwhile.
    ///
    /// # Errors
    /// The database's.
    pub async fn save_life(&self, life: &mut Life) -> Result<bool, Error> {
        let saved = update(&self.connection, life).await?;
        if saved {
            life.version += 1;
        }
        Ok(saved)
    }

    /// As [`Store::save_life`] for lives of different integrations; by one statement for neighbours that are at the same
    /// place of their lives. Tells of each whether it was saved.
    ///
    /// # Errors
    /// The database's.
    pub async fn save_lives(&self, lives: &mut [Life]) -> Result<Vec<bool>, Error> {
        use entity::topic_life::{Column, Entity};
        let mut all = Vec::with_capacity(lives.len());
        for chunk in
            lives.chunk_by_mut(|one, next| one.life == next.life).flat_map(|some| some.chunks_mut(PAIRS_MAX))
        {
            let Some(first) = chunk.first() else { continue };
            let (goal, stage, position, deadline) = to_columns(&first.life);
            let each = chunk.iter().map(|life| {
                Condition::all()
                    .add(Column::IntegrationId.eq(life.integration.0))
                    .add(Column::Version.eq(life.version))
            });
            let version = sea_orm::ExprTrait::add(Expr::col(Column::Version), 1);
            let saving = Query::update()
                .table(Entity)
                .values([
                    (Column::Goal, goal.into()),
                    (Column::Stage, stage.into()),
                    (Column::Position, (position as i64).into()),
                    (Column::DeadlineMs, (deadline as i64).into()),
                    (Column::Generation, (first.life.generation as i64).into()),
                    (Column::Version, version),
                ])
                .cond_where(each.fold(Condition::any(), Condition::add))
                .returning_col(Column::IntegrationId)
                .to_owned();
            let saved = self.connection.query_all(&saving).await.map_err(|error| fault(&error))?;
            let saved: BTreeSet<uuid::Uuid> = saved
                .iter()
                .map(|row| row.try_get("", "integration_id"))
                .collect::<Result<_, _>>()
                .map_err(|error| fault(&error))?;
            for life in chunk {
                let is_saved = saved.contains(&life.integration.0);
                life.version += i64::from(is_saved);
                all.push(is_saved);
            }
        }
        Ok(all)
    }

    /// Begins to park the topics of integrations that have been disabled since before `before_ms`, [`PAGE_ROWS_MAX`] of
    /// them at most; tells how many.
    ///
    /// # Errors
    /// The database's.
    pub async fn park_disabled(&self, before_ms: i64) -> Result<u64, Error> {
        use entity::{integration, topic_life};
        let transaction = self.begin().await?;
        // The counter's lock keeps an enabling call from passing in between.
        next_revision(&transaction).await?;
        let candidates: Vec<uuid::Uuid> = integration::Entity::find()
            .select_only()
            .column(integration::Column::Id)
            .filter(integration::Column::Enabled.eq(false))
            .filter(integration::Column::DisconnectedMs.lt(before_ms))
            .filter(
                integration::Column::Id.in_subquery(
                    Query::select()
                        .column(topic_life::Column::IntegrationId)
                        .from(topic_life::Entity)
                        .and_where(topic_life::Column::Stage.eq("LIVE"))
                        .to_owned(),
                ),
            )
            .limit(PAGE_ROWS_MAX)
            .into_tuple()
            .all(&transaction)
            .await
            .map_err(|error| fault(&error))?;
        for id in &candidates {
            change(&transaction, IntegrationId(*id), |life| life.life.park()).await?;
        }
        transaction.commit().await.map_err(|error| fault(&error))?;
        Ok(candidates.len() as u64)
    }

    /// Removes a life that has ended, with what is known about its integration's status and projection.
    ///
    /// # Errors
    /// The database's.
    pub async fn bury(&self, id: IntegrationId) -> Result<(), Error> {
        let transaction = self.begin().await?;
        entity::topic_life::Entity::delete_by_id(id.0)
            .exec(&transaction)
            .await
            .map_err(|error| fault(&error))?;
        entity::projection::Entity::delete_by_id(id.0)
            .exec(&transaction)
            .await
            .map_err(|error| fault(&error))?;
        entity::integration_status::Entity::delete_many()
            .filter(entity::integration_status::Column::IntegrationId.eq(id.0))
            .exec(&transaction)
            .await
            .map_err(|error| fault(&error))?;
        transaction.commit().await.map_err(|error| fault(&error))
    }
}

pub(super) async fn mark(
    transaction: &DatabaseTransaction,
    id: IntegrationId,
    revision: i64,
    now_ms: i64,
) -> Result<(), Error> {
    use entity::outbox::Column;
    let model = entity::outbox::ActiveModel {
        integration_id: Set(id.0),
        revision: Set(revision),
        created_ms: Set(now_ms),
    };
    entity::outbox::Entity::insert(model)
        .on_conflict(
            OnConflict::column(Column::IntegrationId)
                .update_columns([Column::Revision, Column::CreatedMs])
                .to_owned(),
        )
        .exec_without_returning(transaction)
        .await
        .map_err(|error| fault(&error))?;
    Ok(())
}

async fn clear_marks(
    connection: &impl ConnectionTrait,
    marks: impl IntoIterator<Item = Mark>,
) -> Result<(), Error> {
    use entity::outbox::Column;
    let each = marks.into_iter().map(|mark| {
        Condition::all()
            .add(Column::IntegrationId.eq(mark.integration.0))
            .add(Column::Revision.eq(mark.revision as i64))
    });
    entity::outbox::Entity::delete_many()
        .filter(each.fold(Condition::any(), Condition::add))
        .exec(connection)
        .await
        .map_err(|error| fault(&error))?;
    Ok(())
}

pub(super) async fn insert(
    transaction: &DatabaseTransaction,
    id: IntegrationId,
    kind: &Kind,
    shards: u32,
    revision: i64,
) -> Result<(), Error> {
    let life = Life {
        integration: id,
        kind: kind.clone(),
        life: TopicLife::new(),
        revision: revision as u64,
        shards: shards.max(1),
        version: 0,
    };
    // An id that is being removed still has a topic and records.
    let taken = |error: DbErr| match unique_violation(&error) {
        Some(_) => Error::IdTaken(id),
        None => fault(&error),
    };
    let inserting = entity::topic_life::Entity::insert(to_model(&life)).exec_without_returning(transaction);
    inserting.await.map_err(taken)?;
    Ok(())
}

pub(super) async fn find(
    connection: &impl ConnectionTrait,
    id: IntegrationId,
) -> Result<Option<Life>, Error> {
    let model =
        entity::topic_life::Entity::find_by_id(id.0).one(connection).await.map_err(|error| fault(&error))?;
    model.map(from_model).transpose()
}

/// Writes a life over the version that was read; `false` when that version is gone.
pub(super) async fn update(connection: &impl ConnectionTrait, life: &Life) -> Result<bool, Error> {
    use entity::topic_life::Column;
    let mut model = to_model(life);
    model.version = Set(life.version + 1);
    let result = entity::topic_life::Entity::update_many()
        .set(model)
        .filter(Column::IntegrationId.eq(life.integration.0))
        .filter(Column::Version.eq(life.version))
        .exec(connection)
        .await
        .map_err(|error| fault(&error))?;
    Ok(result.rows_affected == 1)
}

/// Changes a life, on top of whatever the relayer does to it meanwhile.
pub(super) async fn change(
    transaction: &DatabaseTransaction,
    id: IntegrationId,
    change: impl Fn(&mut Life),
) -> Result<(), Error> {
    loop {
        let mut life = find(transaction, id)
            .await?
            .ok_or_else(|| Error::Corrupt(format!("no topic life of integration {id}")))?;
        change(&mut life);
        if update(transaction, &life).await? {
            return Ok(());
        }
    }
}

/// Goal, stage, position and deadline as they are stored.
fn to_columns(life: &TopicLife) -> (&'static str, &'static str, u64, u64) {
    let (stage, position, deadline) = match life.stage {
        Stage::Create => ("CREATE", 0, 0),
        Stage::Live => ("LIVE", 0, 0),
        Stage::Withdraw => ("WITHDRAW", 0, 0),
        Stage::AwaitNodes { position } => ("AWAIT_NODES", position, 0),
        Stage::Dismiss => ("DISMISS", 0, 0),
        Stage::AwaitStop { deadline } => ("AWAIT_STOP", 0, deadline.0),
        Stage::Delete => ("DELETE", 0, 0),
        Stage::Parked => ("PARKED", 0, 0),
        Stage::AwaitTombstone { at } => ("AWAIT_TOMBSTONE", 0, at.0),
        Stage::Gone => ("GONE", 0, 0),
    };
    let goal = match life.goal {
        Goal::Keep => "KEEP",
        Goal::Park => "PARK",
        Goal::Remove => "REMOVE",
    };
    (goal, stage, position, deadline)
}

fn to_model(life: &Life) -> entity::topic_life::ActiveModel {
    let (goal, stage, position, deadline) = to_columns(&life.life);
    entity::topic_life::ActiveModel {
        integration_id: Set(life.integration.0),
        kind: Set(life.kind.to_string()),
        goal: Set(goal.to_owned()),
        stage: Set(stage.to_owned()),
        position: Set(position as i64),
        deadline_ms: Set(deadline as i64),
        generation: Set(life.life.generation as i64),
        revision: Set(life.revision as i64),
        version: Set(life.version),
        shards: Set(life.shards.cast_signed()),
    }
}

fn from_model(model: entity::topic_life::Model) -> Result<Life, Error> {
    let integration = IntegrationId(model.integration_id);
    let corrupt =
        |what: &str| Error::Corrupt(format!("{what} of topic life {integration} that can't be read"));
    let deadline = Millis(model.deadline_ms as u64);
    let stage = match model.stage.as_str() {
        "CREATE" => Stage::Create,
        "LIVE" => Stage::Live,
        "WITHDRAW" => Stage::Withdraw,
        "AWAIT_NODES" => Stage::AwaitNodes { position: model.position as u64 },
        "DISMISS" => Stage::Dismiss,
        "AWAIT_STOP" => Stage::AwaitStop { deadline },
        "DELETE" => Stage::Delete,
        "PARKED" => Stage::Parked,
        "AWAIT_TOMBSTONE" => Stage::AwaitTombstone { at: deadline },
        "GONE" => Stage::Gone,
        _ => return Err(corrupt("a stage")),
    };
    let goal = match model.goal.as_str() {
        "KEEP" => Goal::Keep,
        "PARK" => Goal::Park,
        "REMOVE" => Goal::Remove,
        _ => return Err(corrupt("a goal")),
    };
    Ok(Life {
        integration,
        kind: model.kind.parse().map_err(|_| corrupt("a kind"))?,
        life: TopicLife { goal, stage, generation: model.generation as u64 },
        revision: model.revision as u64,
        shards: model.shards.max(1).cast_unsigned(),
        version: model.version,
    })
}

fn from_projection(model: entity::projection::Model) -> Projection {
    Projection { revision: model.revision as u64, partition: 0, position: model.position as u64 }
}
