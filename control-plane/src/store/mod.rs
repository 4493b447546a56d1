//! The store: the only place that speaks SQL, on PostgreSQL and SQLite.
//!
//! Every change of an integration takes the next revision from one counter, whose row it locks first, in its own
//! transaction: revisions become visible in their order. The same transaction writes the dirty mark that the relayer
//! follows (architecture §4.7, §4.9).

mod audit;
mod auth;
mod blocked;
mod change;
mod containing;
mod credentials;
mod entity;
mod event;
mod event_log;
mod integration;
mod lease;
mod life;
mod line;
mod listing;
mod node;
mod provider;
mod retention;
mod sealed;
mod token;
mod unauthorized;

use std::{path::Path, sync::Arc, time::Duration};

use sea_orm::{
    ColumnTrait as _, ConnectOptions, Database, DatabaseConnection, DatabaseTransaction, DbBackend, DbErr,
    EntityTrait as _, ExprTrait as _, QueryFilter as _, RuntimeErr, SqlErr, sea_query::Expr,
};
use tbmq_integration::seal::{NoRandomness, Unreadable};
use tbmq_proto::ids::IntegrationId;
use uuid::Uuid;

use crate::fault::Faults;

use self::line::Line;
pub(crate) use self::provider::setting_item;
pub use self::{
    audit::{AuditFilter, AuditRow},
    auth::{AuthMark, AuthTopic, Item},
    blocked::{BLOCKED_MAX, BlockedListing, BlockedRow},
    change::{ChangeKind, ChangeRow},
    credentials::{CredentialsListing, CredentialsRow, Imported},
    event::{EventBody, EventRow, StatusRow},
    event_log::{EventFilter, EventPage, EventPlace, Number},
    integration::{Change, New, Request, Row, Saved},
    lease::{Lease, Observed},
    life::{Life, Mark, Outbox, Projection},
    listing::{Listing, Place, PlaceKey, Sort, SortKey},
    node::{KindRow, SessionRow},
    provider::{ProviderRow, Setting},
    retention::Expired,
    sealed::Sealing,
    token::TokenRow,
    unauthorized::{UNAUTHORIZED_MAX, UnauthorizedListing, UnauthorizedRow},
};
use crate::vault::Vault;

/// Rows that a page or a batch holds at most.
pub const PAGE_ROWS_MAX: u64 = 1_000;

/// Rows or keys of one statement at most: at up to 16 values each, far below SQLite's limit of 32,766 bound values.
const STATEMENT_ROWS_MAX: usize = 500;

/// Name of the counter of revisions.
const REVISION: &str = "revision";

/// A store is open as long as it lives; clones share its pool.
#[derive(Clone, Debug)]
pub struct Store {
    connection: DatabaseConnection,
    line: Arc<Line>,
    vault: Arc<Vault>,
    faults: Faults,
}

/// Connections to the database.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pool {
    /// Those that there are.
    pub open: usize,
    /// Those of them that nobody uses.
    pub idle: usize,
    /// As many as there may be.
    pub max: usize,
}

/// Why something was not read or not saved, by what the caller can do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The database can't be reached, or is too busy; nothing was saved.
    #[error("the database is unavailable: {0}")]
    Unavailable(String),
    /// Another integration has this name.
    #[error("an integration named {0:?} exists already")]
    NameTaken(String),
    /// Another integration has this id.
    #[error("an integration with id {0} exists already, or is still being removed")]
    IdTaken(IntegrationId),
    /// There is no such integration.
    #[error("integration {0} does not exist")]
    NotFound(IntegrationId),
    /// It has changed since it was read.
    #[error("it has revision {actual}, not {expected}")]
    Stale {
        /// What the caller has seen.
        expected: u64,
        /// What is stored.
        actual: u64,
    },
    /// The integration is disabled.
    #[error("the integration is disabled")]
    Disabled,
    /// There are as many integrations as there may be.
    #[error("there are {max} integrations already, as many as may be")]
    LimitReached {
        /// The limit.
        max: u64,
    },
    /// This request id was used, within the last 10 minutes, by the same request, for what has this id.
    #[error("the request was done already")]
    Replayed(Uuid),
    /// There is no such resource.
    #[error("{name} does not exist")]
    Absent {
        /// Of what type, as the API calls it.
        what: &'static str,
        /// Its name.
        name: String,
    },
    /// Another credential is for the same clients.
    #[error("other credentials are for {0:?} already")]
    KeyTaken(String),
    /// Another credential has this id.
    #[error("credentials with id {0} exist already")]
    UuidTaken(Uuid),
    /// This is blocked already.
    #[error("{0:?} is blocked already")]
    AlreadyBlocked(String),
    /// There are as many as there may be.
    #[error("there are {max} {what} already, as many as may be")]
    Full {
        /// Of what.
        what: &'static str,
        /// The limit.
        max: u64,
    },
    /// This request id was used by another request.
    #[error("request id {0:?} was used for another request")]
    RequestReused(String),
    /// Changes after the revision that was asked for may have been removed.
    #[error("changes up to revision {floor} are not kept any more")]
    Compacted {
        /// All changes after this revision are kept.
        floor: u64,
    },
    /// Events after the number that was asked for may have been removed.
    #[error("events up to sequence {floor} are not all kept any more")]
    Expired {
        /// All events after this number are kept, but for those that were cleared.
        floor: u64,
    },
    /// The integration's secrets can't be opened here.
    #[error("integration {0}: {1}")]
    Unreadable(IntegrationId, Unreadable),
    /// The secrets were not sealed, and nothing was saved.
    #[error(transparent)]
    NotSealed(#[from] NoRandomness),
    /// A row holds what this version can't read.
    #[error("the database holds {0}")]
    Corrupt(String),
    /// The database refused the statement; trying again won't help.
    #[error("the database refused: {0}")]
    Refused(String),
}

/// How to open a store.
#[derive(Clone, Debug)]
pub struct Options {
    /// `postgres://…` or `sqlite://…`.
    pub url: String,
    /// Connections at most; SQLite writes through one of them at a time anyway.
    pub connections: u32,
    /// How long the first in line waits for a connection or a lock.
    pub patience: Duration,
}

impl Options {
    /// A SQLite file, created when it is missing.
    pub fn sqlite(path: &Path) -> Self {
        Self {
            url: format!("sqlite://{}?mode=rwc", path.display()),
            connections: 4,
            patience: Duration::from_secs(5),
        }
    }
}

impl Store {
    /// As [`Store::open_with`], without keys: secrets are kept in plain text.
    ///
    /// # Errors
    /// When the database can't be reached or migrated.
    pub async fn open(options: &Options) -> Result<Self, Error> {
        Self::open_with(options, Arc::default()).await
    }

    /// Connects and brings the schema up to date. Secrets are sealed and opened by `vault`.
    ///
    /// # Errors
    /// When the database can't be reached or migrated.
    pub async fn open_with(options: &Options, vault: Arc<Vault>) -> Result<Self, Error> {
        let mut single = connect_options(options);
        single.max_connections(1).min_connections(1);
        let migrator = Database::connect(single).await.map_err(|error| fault(&error))?;
        tbmq_migrations::migrate(&migrator).await.map_err(|error| fault(&error))?;
        migrator.close().await.map_err(|error| fault(&error))?;
        let connection = Database::connect(connect_options(options)).await.map_err(|error| fault(&error))?;
        Ok(Self { connection, line: Arc::default(), vault, faults: Faults::default() })
    }

    pub(crate) fn vault(&self) -> &Arc<Vault> {
        &self.vault
    }

    /// The same store, for tests that have it die between two steps.
    #[must_use]
    pub fn with_faults(self, faults: Faults) -> Self {
        Self { faults, ..self }
    }

    /// How its connections are used.
    pub fn pool(&self) -> Pool {
        fn of<D: sea_orm::sqlx::Database>(pool: &sea_orm::sqlx::Pool<D>) -> Pool {
            let max = pool.options().get_max_connections() as usize;
            Pool { open: pool.size() as usize, idle: pool.num_idle(), max }
        }
        match self.connection.get_database_backend() {
            DbBackend::Postgres => of(self.connection.get_postgres_connection_pool()),
            _ => of(self.connection.get_sqlite_connection_pool()),
        }
    }

    /// Closes all connections.
    pub async fn close(self) {
        if let Err(error) = self.connection.close().await {
            tracing::debug!(%error, "the store did not close cleanly");
        }
    }

    /// Tells whether the database answers.
    ///
    /// # Errors
    /// When it does not.
    pub async fn ping(&self) -> Result<(), Error> {
        self.connection.ping().await.map_err(|error| fault(&error))
    }

    /// A transaction that may write.
    async fn begin(&self) -> Result<DatabaseTransaction, Error> {
        self.line.begin(&self.connection).await
    }

    /// Raises the counter so that the next revision is greater than `seen`.
    ///
    /// # Errors
    /// When the database can't be reached.
    pub async fn raise_revision(&self, seen: u64) -> Result<(), Error> {
        entity::counter::Entity::update_many()
            .col_expr(entity::counter::Column::Value, Expr::value(seen as i64))
            .filter(entity::counter::Column::Name.eq(REVISION))
            .filter(entity::counter::Column::Value.lt(seen as i64))
            .exec(&self.connection)
            .await
            .map_err(|error| fault(&error))?;
        Ok(())
    }

    /// The latest revision that was given out.
    ///
    /// # Errors
    /// When the database can't be reached.
    pub async fn revision(&self) -> Result<u64, Error> {
        read_counter(&self.connection, REVISION).await
    }
}

fn connect_options(options: &Options) -> ConnectOptions {
    let mut connect = ConnectOptions::new(options.url.clone());
    let patience = options.patience;
    connect
        .max_connections(options.connections)
        .acquire_timeout(patience)
        // Each test is a round trip, as long as most statements; a server that was restarted is noticed all the same.
        .test_before_acquire_if_idle_for(Duration::from_millis(500))
        .connect_timeout(patience)
        .sqlx_logging(false)
        .map_sqlx_sqlite_opts(move |sqlite| {
            // WAL: readers don't wait for the writer. FULL: an answered call survives a power loss.
            sqlite
                .pragma("journal_mode", "WAL")
                .pragma("synchronous", "FULL")
                .pragma("busy_timeout", patience.as_millis().to_string())
        });
    connect
}

/// Takes the next revision. The counter's row stays locked until the transaction ends.
async fn next_revision(transaction: &DatabaseTransaction) -> Result<i64, Error> {
    take_revisions(transaction, 1).await
}

/// Takes the next `count` revisions at once and tells the last of them; as [`next_revision`] otherwise.
async fn take_revisions(transaction: &DatabaseTransaction, count: usize) -> Result<i64, Error> {
    take_numbers(transaction, REVISION, count).await
}

/// Takes the next `count` numbers of a counter and tells the last of them. The counter's row stays locked until the
/// transaction ends. Whoever takes of several counters begins with the revisions: no deadlock.
async fn take_numbers(transaction: &DatabaseTransaction, name: &str, count: usize) -> Result<i64, Error> {
    let rows = entity::counter::Entity::update_many()
        .col_expr(entity::counter::Column::Value, Expr::col(entity::counter::Column::Value).add(count as i64))
        .filter(entity::counter::Column::Name.eq(name))
        .exec_with_returning(transaction)
        .await
        .map_err(|error| fault(&error))?;
    rows.first().map(|row| row.value).ok_or_else(|| Error::Corrupt(format!("no counter {name}")))
}

async fn read_counter(connection: &impl sea_orm::ConnectionTrait, name: &str) -> Result<u64, Error> {
    let row = entity::counter::Entity::find_by_id(name.to_owned())
        .one(connection)
        .await
        .map_err(|error| fault(&error))?
        .ok_or_else(|| Error::Corrupt(format!("no counter {name}")))?;
    Ok(row.value as u64)
}

/// What a database error means for the caller.
fn fault(error: &DbErr) -> Error {
    let text = error.to_string();
    if let Some(SqlErr::UniqueConstraintViolation(_) | SqlErr::ForeignKeyConstraintViolation(_)) =
        error.sql_err()
    {
        return Error::Refused(text);
    }
    match error {
        DbErr::Exec(RuntimeErr::SqlxError(inner)) | DbErr::Query(RuntimeErr::SqlxError(inner)) => {
            match inner.as_ref() {
                sea_orm::SqlxError::Database(database) => {
                    let code = database.code().unwrap_or_default().into_owned();
                    // SQLite: 5 busy, 6 locked, 10 I/O, 13 full, with extended codes. PostgreSQL: 08 connection, 40
                    // rolled back, 53 resources, 55 not ready, 57 intervention, 25006 read-only.
                    let sqlite_code =
                        code.parse::<u32>().ok().filter(|_| code.len() < 5).map(|code| code & 0xff);
                    let is_away = matches!(sqlite_code, Some(5 | 6 | 10 | 13))
                        || ["08", "40", "53", "55", "57"]
                            .iter()
                            .any(|class| code.len() == 5 && code.starts_with(class))
                        || code == "25006";
                    if is_away { Error::Unavailable(text) } else { Error::Refused(text) }
                }
                sea_orm::SqlxError::Io(_)
                | sea_orm::SqlxError::PoolTimedOut
                | sea_orm::SqlxError::PoolClosed
                | sea_orm::SqlxError::Protocol(_)
                | sea_orm::SqlxError::Tls(_)
                | sea_orm::SqlxError::WorkerCrashed => Error::Unavailable(text),
                _ => Error::Refused(text),
            }
        }
        DbErr::Conn(_) | DbErr::ConnectionAcquire(_) => Error::Unavailable(text),
        _ => Error::Refused(text),
    }
}

/// Whether a unique constraint was hit, and which column it speaks of.
fn unique_violation(error: &DbErr) -> Option<String> {
    match error.sql_err() {
        Some(SqlErr::UniqueConstraintViolation(text)) => Some(text),
        _ => None,
    }
}
