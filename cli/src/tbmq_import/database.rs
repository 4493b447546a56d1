//! TBMQ's own database (spec §7.5), read in one transaction that can't write. The only place of the command line that
//! speaks SQL.

use std::time::Duration;

use futures_util::TryStreamExt as _;
use sqlx::{Connection as _, PgConnection};
use uuid::Uuid;

use super::Entry;
use crate::failure::Failure;

/// A consistent picture, whatever is written meanwhile, and a promise to write nothing.
const BEGIN: &str = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY";

/// Ids as text, so that a column of either type will do.
const SELECT: &str = "SELECT id::text AS id, name, type AS kind, enabled, configuration, additional_info \
                      FROM integration ORDER BY created_time, id";

/// Columns of [`SELECT`].
type Row = (String, Option<String>, Option<String>, Option<bool>, Option<String>, Option<String>);

fn entry((id, name, kind, enabled, configuration, additional_info): Row) -> Result<Entry, String> {
    let id = Uuid::parse_str(&id).map_err(|error| format!("{id:?} is not an id: {error}"))?;
    Entry::of(Some(id), name, kind, enabled, configuration, additional_info.as_deref())
}

/// Reads all integrations, the oldest first.
pub(crate) async fn read(url: &str, timeout: Duration) -> Result<Vec<Result<Entry, String>>, Failure> {
    if !url.starts_with("postgres://") && !url.starts_with("postgresql://") {
        // The text itself may hold a password.
        return Err(Failure::usage("that is not an address of a PostgreSQL database")
            .hint("an address is postgres://USER:PASSWORD@HOST:5432/DATABASE"));
    }
    match tokio::time::timeout(timeout, rows(url)).await {
        Ok(Ok(rows)) => Ok(rows.into_iter().map(entry).collect()),
        Ok(Err(error)) => Err(failure(error)),
        Err(_) => Err(Failure::unreachable(format!("the database did not answer within {timeout:?}"))),
    }
}

async fn rows(url: &str) -> Result<Vec<Row>, sqlx::Error> {
    let mut connection = PgConnection::connect(url).await?;
    let mut transaction = connection.begin_with(BEGIN).await?;
    let rows = sqlx::query_as(SELECT).fetch(&mut *transaction).try_collect().await?;
    transaction.rollback().await?;
    // The rows are read: how the connection ends is the server's affair.
    connection.close().await.ok();
    Ok(rows)
}

fn failure(error: sqlx::Error) -> Failure {
    match error {
        sqlx::Error::Configuration(error) => {
            Failure::usage(format!("that is not an address of a PostgreSQL database: {error}"))
        }
        sqlx::Error::Database(error) if error.code().as_deref() == Some("42P01") => {
            Failure::refused(format!("that is not a database of TBMQ 2.1 or later: {}", error.message()))
        }
        sqlx::Error::Database(error) => {
            Failure::refused(format!("the database refused: {}", error.message()))
        }
        sqlx::Error::Io(error) => Failure::unreachable(format!("can't reach the database: {error}")),
        error => Failure::refused(format!("the database can't be read: {error}")),
    }
}
