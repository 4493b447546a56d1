//! How long events are kept. On PostgreSQL they lie in partitions by time, which are made ahead and dropped whole; what
//! lies in the default one, where a clock or a leader was far behind, is deleted as on SQLite: by index, in batches.
//!
//! Whoever removes events holds the row of the floor first, then locks tables; writers of events never hold that row:
//! no deadlock.

use std::{ops::Range, time::Duration};

use sea_orm::{
    ColumnTrait as _, ConnectionTrait as _, DatabaseTransaction, DbBackend, EntityTrait as _, ExprTrait as _,
    QueryFilter as _, Statement,
    sea_query::{Alias, Expr, Order, Query},
};
use uuid::Uuid;

use super::{Error, STATEMENT_ROWS_MAX, Store, entity::counter, fault};

/// Name of the counter that says up to which number events may have expired.
pub(super) const FLOOR: &str = "event_floor";

/// The table of events.
const TABLE: &str = "event_log";

/// Where events lie for which there is no partition.
const DEFAULT_PARTITION: &str = "event_log_default";

/// Who removes or moves events waits so long at most for those who read or write them, and they for it.
const LOCK_TIMEOUT: &str = "SET LOCAL lock_timeout = '3s'";

/// What has expired.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Expired {
    /// Partitions dropped whole.
    pub partitions: u64,
    /// Events deleted one by one.
    pub events: u64,
}

/// Times that a partition holds, epoch ms.
type Span = Range<i64>;

impl Store {
    /// Makes the partitions of events from now until `ahead` from now, each `width` wide unless a neighbour is in the
    /// way; moves events there that lie in the default partition. Tells how many were made; on SQLite none is.
    ///
    /// # Errors
    /// `Unavailable` when readers or writers of events are in the way for seconds, or the database's.
    pub async fn make_event_partitions(
        &self,
        now_ms: i64,
        width: Duration,
        ahead: Duration,
    ) -> Result<u64, Error> {
        if self.connection.get_database_backend() != DbBackend::Postgres {
            return Ok(0);
        }
        let transaction = self.begin().await?;
        hold_floor(&transaction).await?;
        let now_ms = Ord::max(now_ms, 0);
        let needed = now_ms..now_ms.saturating_add(ahead.as_millis() as i64).saturating_add(1);
        let missing = missing(&partitions(&transaction).await?, &needed, width.as_millis() as i64);
        if !missing.is_empty() {
            run(&transaction, LOCK_TIMEOUT).await?;
            // Readers and writers wait before they choose partitions. A reader that waited for the default one only
            // would find there nothing of what was moved, and not look into the new one; a writer would be refused.
            run(&transaction, &format!("LOCK TABLE {TABLE} IN ACCESS EXCLUSIVE MODE")).await?;
        }
        for span in &missing {
            let (name, Range { start, end }) = (name(span), span);
            // Attached, since one created in place must find the default one without what it is to hold.
            run(&transaction, &format!("CREATE TABLE {name} (LIKE {TABLE} INCLUDING ALL)")).await?;
            let moved = format!(
                "WITH moved AS (DELETE FROM {DEFAULT_PARTITION} \
                 WHERE time_ms >= {start} AND time_ms < {end} RETURNING *) \
                 INSERT INTO {name} SELECT * FROM moved"
            );
            run(&transaction, &moved).await?;
            let attach =
                format!("ALTER TABLE {TABLE} ATTACH PARTITION {name} FOR VALUES FROM ({start}) TO ({end})");
            run(&transaction, &attach).await?;
        }
        transaction.commit().await.map_err(|error| fault(&error))?;
        Ok(missing.len() as u64)
    }

    /// Removes events from before this time, and writes down in the same transactions up to which number. In a
    /// partition that also holds younger ones they stay until those have expired too.
    ///
    /// # Errors
    /// `Unavailable` when readers or writers of events are in the way for seconds, or the database's.
    pub async fn expire_events(&self, before_ms: i64) -> Result<Expired, Error> {
        let mut expired = Expired::default();
        let table = if self.connection.get_database_backend() == DbBackend::Postgres {
            expired.partitions = self.drop_partitions(before_ms).await?;
            DEFAULT_PARTITION
        } else {
            TABLE
        };
        loop {
            let batch = self.expire_batch(table, before_ms).await?;
            expired.events += batch;
            if batch < STATEMENT_ROWS_MAX as u64 {
                return Ok(expired);
            }
        }
    }

    async fn drop_partitions(&self, before_ms: i64) -> Result<u64, Error> {
        let transaction = self.begin().await?;
        hold_floor(&transaction).await?;
        let mut old = partitions(&transaction).await?;
        old.retain(|span| span.end <= before_ms);
        if !old.is_empty() {
            run(&transaction, LOCK_TIMEOUT).await?;
            // Before the greatest number is looked for: nothing is added to them any more.
            run(&transaction, &format!("LOCK TABLE {TABLE} IN ACCESS EXCLUSIVE MODE")).await?;
        }
        for span in &old {
            let greatest = format!("SELECT max(sequence) AS greatest FROM {}", name(span));
            let greatest = transaction
                .query_one_raw(Statement::from_string(DbBackend::Postgres, greatest))
                .await
                .and_then(|row| row.map_or(Ok(None), |row| row.try_get::<Option<i64>>("", "greatest")))
                .map_err(|error| fault(&error))?;
            if let Some(greatest) = greatest {
                raise_floor(&transaction, greatest).await?;
            }
            run(&transaction, &format!("DROP TABLE {}", name(span))).await?;
        }
        transaction.commit().await.map_err(|error| fault(&error))?;
        Ok(old.len() as u64)
    }

    /// Deletes the oldest of what has expired, as many as one statement takes, and tells how many.
    async fn expire_batch(&self, table: &'static str, before_ms: i64) -> Result<u64, Error> {
        let transaction = self.begin().await?;
        hold_floor(&transaction).await?;
        let oldest = Query::select()
            .columns(["event_id", "sequence"].map(Alias::new))
            .from(table)
            .and_where(Expr::col("time_ms").lt(before_ms))
            .order_by("time_ms", Order::Asc)
            .order_by("event_id", Order::Asc)
            .limit(STATEMENT_ROWS_MAX as u64)
            .take();
        let rows = transaction.query_all(&oldest).await.map_err(|error| fault(&error))?;
        let mut ids = Vec::with_capacity(rows.len());
        let mut greatest = 0;
        for row in rows {
            ids.push(row.try_get::<Uuid>("", "event_id").map_err(|error| fault(&error))?);
            greatest = Ord::max(greatest, row.try_get("", "sequence").map_err(|error| fault(&error))?);
        }
        if ids.is_empty() {
            return Ok(0);
        }
        raise_floor(&transaction, greatest).await?;
        let delete = Query::delete()
            .from_table(table)
            .and_where(Expr::col("event_id").is_in(ids))
            .and_where(Expr::col("time_ms").lt(before_ms))
            .take();
        let deleted = transaction.execute(&delete).await.map_err(|error| fault(&error))?;
        transaction.commit().await.map_err(|error| fault(&error))?;
        Ok(deleted.rows_affected())
    }
}

/// Keeps others from removing or moving events until the transaction ends.
pub(super) async fn hold_floor(transaction: &DatabaseTransaction) -> Result<(), Error> {
    raise_floor(transaction, 0).await
}

/// Writes down that events up to this number may be gone. Locks the row whether or not it was so already.
async fn raise_floor(transaction: &DatabaseTransaction, number: i64) -> Result<(), Error> {
    let value = Expr::col(counter::Column::Value);
    let greater = Expr::case(value.clone().lt(number), number).finally(value);
    counter::Entity::update_many()
        .col_expr(counter::Column::Value, greater.into())
        .filter(counter::Column::Name.eq(FLOOR))
        .exec(transaction)
        .await
        .map_err(|error| fault(&error))?;
    Ok(())
}

async fn run(transaction: &DatabaseTransaction, statement: &str) -> Result<(), Error> {
    transaction.execute_unprepared(statement).await.map(|_| ()).map_err(|error| fault(&error))
}

/// The partitions that are there, but for the default one, in the order of time.
async fn partitions(transaction: &DatabaseTransaction) -> Result<Vec<Span>, Error> {
    let names = format!(
        "SELECT child.relname::text AS name FROM pg_inherits JOIN pg_class child ON child.oid = inhrelid \
         WHERE inhparent = '{TABLE}'::regclass"
    );
    let rows = transaction
        .query_all_raw(Statement::from_string(DbBackend::Postgres, names))
        .await
        .map_err(|error| fault(&error))?;
    let mut spans = Vec::with_capacity(rows.len());
    for row in rows {
        let name: String = row.try_get("", "name").map_err(|error| fault(&error))?;
        spans.extend(span(&name));
    }
    spans.sort_by_key(|span| span.start);
    Ok(spans)
}

fn name(span: &Span) -> String {
    format!("{TABLE}_{}_{}", span.start, span.end)
}

/// What a partition holds, by its name.
fn span(name: &str) -> Option<Span> {
    let (start, end) = name.strip_prefix(TABLE)?.strip_prefix('_')?.split_once('_')?;
    Some(start.parse().ok()?..end.parse().ok()?)
}

/// The partitions that `needed` wants beside those that are there (in the order of time, none over another), at
/// multiples of `width` and as wide, unless one that was made with another width is in the way.
fn missing(there: &[Span], needed: &Span, width: i64) -> Vec<Span> {
    let width = Ord::max(width, 1);
    let mut missing = Vec::new();
    let mut place = needed.start.div_euclid(width) * width;
    // Where the first one would begin there may be one already that ends within.
    if let Some(before) = there.iter().rev().find(|span| span.start <= needed.start) {
        place = Ord::max(place, Ord::min(before.end, needed.start));
    }
    while place < needed.end {
        if let Some(span) = there.iter().find(|span| span.contains(&place)) {
            place = span.end;
            continue;
        }
        let end = (place.div_euclid(width) + 1) * width;
        let next = there.iter().map(|span| span.start).find(|start| *start > place);
        let end = next.map_or(end, |next| Ord::min(end, next));
        missing.push(place..end);
        place = end;
    }
    missing
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Spans such as `20-30 40-50`.
    fn check(there: &str, needed: Span, expected: &str) {
        let spans: Vec<Span> = there
            .split_whitespace()
            .map(|text| {
                let (start, end) = text.split_once('-').unwrap();
                start.parse().unwrap()..end.parse().unwrap()
            })
            .collect();
        let missing = missing(&spans, &needed, 10);
        let text: Vec<String> = missing.iter().map(|span| format!("{}-{}", span.start, span.end)).collect();
        assert_eq!(text.join(" "), expected, "{there}");
    }

    #[test]
    fn missing_partitions_fill_what_is_needed_and_never_overlap() {
        check("", 25..41, "20-30 30-40 40-50");
        check("20-30 30-40", 25..41, "40-50");
        check("20-30 30-40 40-50", 25..41, "");
        check("0-10 60-70", 25..31, "20-30 30-40");
        // Made with other widths.
        check("0-24", 25..31, "24-30 30-40");
        check("0-28", 25..31, "28-30 30-40");
        check("0-7 26-35", 25..41, "20-26 35-40 40-50");
    }

    #[test]
    fn a_partition_is_known_by_its_name() {
        assert_eq!(span(&name(&(20..30))), Some(20..30));
        assert_eq!(span(DEFAULT_PARTITION), None);
        assert_eq!(span("event_log_a_1"), None);
    }
}
