//! Events as they are asked for: newest first, in the order of storing, and removed.
//!
//! **No reader that has seen number n ever finds a new event below n**, by the argument of `change.rs`, with a counter of
//! its own: a batch takes its numbers in the transaction that inserts it, and the counter's row stays locked until that
//! has ended. Numbers without a row were taken for repetitions, or their events were cleared or have expired.

use sea_orm::{
    ColumnTrait as _, Condition, EntityTrait as _, QueryFilter as _, QueryOrder as _, QuerySelect as _,
    Select,
    sea_query::{Expr, ExprTrait as _, Func},
};
use tbmq_proto::ids::IntegrationId;
use uuid::Uuid;

use super::{
    Error, PAGE_ROWS_MAX, STATEMENT_ROWS_MAX, Store, containing,
    entity::event::{Column, Entity},
    event::{EventRow, from_model},
    fault, read_counter, retention,
};

/// Name of the counter of events.
pub(super) const SEQUENCE: &str = "event_sequence";

/// Numbers that one statement looks through, however few of their events are asked for.
const SPAN: u64 = 20_000;

/// What events are to be (spec §7.4). All that is set must hold; texts are parts, in upper or lower case. SQLite knows
/// upper and lower case only of ASCII.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EventFilter {
    /// Of one integration.
    pub integration: Option<IntegrationId>,
    /// 1 lifecycle, 2 statistics, 3 error.
    pub event_type: Option<i32>,
    /// Epoch ms, inclusive.
    pub start_ms: Option<i64>,
    /// Epoch ms, inclusive.
    pub end_ms: Option<i64>,
    /// Who wrote it.
    pub service_id: String,
    /// Error text of a lifecycle or error event.
    pub error: String,
    /// Word of a lifecycle event.
    pub lifecycle: String,
    /// Whether a lifecycle event tells of a success.
    pub success: Option<bool>,
    /// Method of an error event.
    pub method: String,
    /// Messages processed of a statistics event.
    pub messages_processed: Number,
    /// Errors of a statistics event.
    pub errors_occurred: Number,
}

/// What a number must be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Number {
    /// Inclusive.
    pub min: Option<u64>,
    /// Exclusive.
    pub max: Option<u64>,
}

/// Where a page ends: time (epoch ms) and id of its last event.
pub type EventPlace = (i64, Uuid);

/// Events in the order of storing, with their numbers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EventPage {
    /// The events.
    pub events: Vec<(u64, EventRow)>,
    /// All numbers up to here have been looked at.
    pub through: u64,
}

impl Store {
    /// A page of events, newest first, of those older than `before`: at most `limit`.
    ///
    /// # Errors
    /// The database's.
    pub async fn events(
        &self,
        filter: &EventFilter,
        before: Option<EventPlace>,
        limit: u64,
    ) -> Result<Vec<EventRow>, Error> {
        let query = older(Entity::find().filter(condition(filter)), before);
        let models = query
            .limit(Ord::min(limit, PAGE_ROWS_MAX + 1))
            .all(&self.connection)
            .await
            .map_err(|error| fault(&error))?;
        Ok(models.into_iter().filter_map(from_model).collect())
    }

    /// The number of the latest event. All events up to it that there will ever be are there to be read.
    ///
    /// # Errors
    /// The database's.
    pub async fn event_sequence(&self) -> Result<u64, Error> {
        read_counter(&self.connection, SEQUENCE).await
    }

    /// Events with numbers after `place` and up to `head`, in their order: at most `limit`, and perhaps fewer than
    /// there are; the page tells how far it goes.
    ///
    /// # Errors
    /// `Expired` when events after `place` may have been removed by retention, or the database's.
    pub async fn events_after(
        &self,
        place: u64,
        head: u64,
        filter: &EventFilter,
        limit: u64,
    ) -> Result<EventPage, Error> {
        let through = Ord::min(head, place.saturating_add(SPAN));
        let limit = Ord::min(limit, PAGE_ROWS_MAX);
        let mut elsewhere = filter.clone();
        let mut query = Entity::find();
        if let Some(integration) = elsewhere.integration.take() {
            // So that the database does not take the index of integrations and reads all their events each time.
            let column = || Expr::col(Column::IntegrationId);
            query = query.filter(Expr::expr(Func::coalesce([column(), column()])).eq(integration.0));
        }
        let models = query
            .filter(condition(&elsewhere))
            .filter(Column::Sequence.gt(place as i64))
            .filter(Column::Sequence.lte(through as i64))
            .order_by_asc(Column::Sequence)
            .limit(limit)
            .all(&self.connection)
            .await
            .map_err(|error| fault(&error))?;
        // Looked at afterwards: what is kept now was kept when the rows were read.
        self.check_event_place(place).await?;
        let through = match models.last() {
            Some(last) if models.len() as u64 == limit => last.sequence as u64,
            _ => through,
        };
        let numbered = |model: super::entity::event::Model| {
            let sequence = model.sequence as u64;
            Some((sequence, from_model(model)?))
        };
        Ok(EventPage { events: models.into_iter().filter_map(numbered).collect(), through })
    }

    /// Whether all events after `place` are kept, but for those that were cleared.
    ///
    /// # Errors
    /// `Expired` when they are not, or the database's.
    pub async fn check_event_place(&self, place: u64) -> Result<(), Error> {
        let floor = read_counter(&self.connection, retention::FLOOR).await?;
        if place < floor { Err(Error::Expired { floor }) } else { Ok(()) }
    }

    /// Removes the events that are stored by now, and tells how many. Removes them in batches, so that other writers get
    /// their turn: on an error some of them are gone.
    ///
    /// # Errors
    /// The database's.
    pub async fn clear_events(&self, filter: &EventFilter) -> Result<u64, Error> {
        let through = self.event_sequence().await?;
        let mut before: Option<EventPlace> = None;
        let mut removed = 0;
        loop {
            let transaction = self.begin().await?;
            retention::hold_floor(&transaction).await?;
            let query = Entity::find().filter(condition(filter)).filter(Column::Sequence.lte(through as i64));
            let places = older(query, before)
                .select_only()
                .columns([Column::TimeMs, Column::EventId])
                .limit(PAGE_ROWS_MAX)
                .into_tuple::<EventPlace>()
                .all(&transaction)
                .await
                .map_err(|error| fault(&error))?;
            for chunk in places.chunks(STATEMENT_ROWS_MAX) {
                let (Some((newest, _)), Some((oldest, _))) = (chunk.first(), chunk.last()) else { continue };
                let result = Entity::delete_many()
                    .filter(Column::EventId.is_in(chunk.iter().map(|(_, id)| *id)))
                    .filter(Column::TimeMs.between(*oldest, *newest))
                    .exec(&transaction)
                    .await
                    .map_err(|error| fault(&error))?;
                removed += result.rows_affected;
            }
            transaction.commit().await.map_err(|error| fault(&error))?;
            before = places.last().copied();
            if (places.len() as u64) < PAGE_ROWS_MAX {
                return Ok(removed);
            }
        }
    }
}

/// Those older than a place, newest first.
fn older(query: Select<Entity>, before: Option<EventPlace>) -> Select<Entity> {
    let query = match before {
        Some((time_ms, event_id)) => query.filter(
            Condition::any()
                .add(Column::TimeMs.lt(time_ms))
                .add(Condition::all().add(Column::TimeMs.eq(time_ms)).add(Column::EventId.lt(event_id))),
        ),
        None => query,
    };
    query.order_by_desc(Column::TimeMs).order_by_desc(Column::EventId)
}

fn condition(filter: &EventFilter) -> Condition {
    let mut all = Condition::all()
        .add_option(filter.integration.map(|id| Column::IntegrationId.eq(id.0)))
        .add_option(filter.event_type.map(|event_type| Column::EventType.eq(event_type)))
        .add_option(filter.start_ms.map(|start| Column::TimeMs.gte(start)))
        .add_option(filter.end_ms.map(|end| Column::TimeMs.lte(end)))
        .add_option(filter.success.map(|success| Column::Success.eq(success)));
    let texts = [
        (Column::ServiceId, &filter.service_id),
        (Column::Error, &filter.error),
        (Column::Lifecycle, &filter.lifecycle),
        (Column::Method, &filter.method),
    ];
    for (column, text) in texts {
        if !text.is_empty() {
            all = all.add(contains(column, text));
        }
    }
    // Error events have the second column as well, and what later versions write is not ours to show.
    let is_counted = filter.errors_occurred != Number::default();
    let types = if is_counted { vec![2] } else { vec![1, 2, 3] };
    let numbers =
        [(Column::MessagesProcessed, filter.messages_processed), (Column::Errors, filter.errors_occurred)];
    for (column, number) in numbers {
        // What is stored ends where signed numbers do.
        let min = number.min.map(|min| column.gte(i64::try_from(min).unwrap_or(i64::MAX)));
        let max = number
            .max
            .map(|max| i64::try_from(max).map_or_else(|_| column.is_not_null(), |max| column.lt(max)));
        all = all.add_option(min).add_option(max);
    }
    all.add(Column::EventType.is_in(types))
}

/// Whether a column contains a text, in upper or lower case.
fn contains(column: Column, text: &str) -> Condition {
    // SQLite's `lower` leaves all but ASCII alone; its LIKE does not look at the case of ASCII.
    Condition::any()
        .add(containing::contains(column, text))
        .add(Expr::col(column).like(containing::containing(text)))
}
