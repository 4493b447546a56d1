//! The control plane's schema, for PostgreSQL and SQLite.
//!
//! Expand first, contract a release later: a migration that has landed is never edited, and a release runs on the
//! schema of its successor (architecture §4.26, §4.29). Times are epoch milliseconds; numbers that are unsigned on
//! the wire are kept as signed 64-bit.
#![warn(missing_docs)]

mod m0001_integrations;
mod m0002_shards;
mod m0003_changes;
mod m0004_events;
mod m0005_access;
mod m0006_sealed;
mod m0007_forward;
mod m0008_auth;

use sea_orm_migration::{
    MigrationTrait, MigratorTrait,
    sea_orm::{ConnectionTrait, DatabaseConnection, DbBackend, DbErr},
};

/// Key of the advisory lock under which a replica migrates.
const LOCK: i64 = 0x7462_6d71;

/// All migrations in order.
#[derive(Clone, Copy, Debug)]
pub struct Migrator;

impl MigratorTrait for Migrator {
    fn migrations() -> Vec<Box<dyn MigrationTrait>> {
        vec![
            Box::new(m0001_integrations::Migration),
            Box::new(m0002_shards::Migration),
            Box::new(m0003_changes::Migration),
            Box::new(m0004_events::Migration),
            Box::new(m0005_access::Migration),
            Box::new(m0006_sealed::Migration),
            Box::new(m0007_forward::Migration),
            Box::new(m0008_auth::Migration),
        ]
    }
}

/// Brings the schema up to date. Several replicas may call this at once: on PostgreSQL one migrates and the others
/// wait.
///
/// `connection` must be a pool of exactly one connection, since PostgreSQL's advisory lock belongs to a connection.
///
/// # Errors
/// When the database can't be reached or a migration fails; a failed one leaves nothing behind on PostgreSQL.
pub async fn migrate(connection: &DatabaseConnection) -> Result<(), DbErr> {
    let postgres = connection.get_database_backend() == DbBackend::Postgres;
    if postgres {
        connection.execute_unprepared(&format!("SELECT pg_advisory_lock({LOCK})")).await?;
    }
    let result = Migrator::up(connection, None).await;
    if postgres {
        connection.execute_unprepared(&format!("SELECT pg_advisory_unlock({LOCK})")).await?;
    }
    result
}

#[cfg(test)]
mod tests {
    use sea_orm_migration::{
        SchemaManager,
        sea_orm::{ConnectOptions, Database},
    };

    use super::*;

    #[tokio::test]
    async fn migrating_twice_changes_nothing_and_all_tables_are_there() {
        let folder = tempfile::tempdir().unwrap();
        let url = format!("sqlite://{}?mode=rwc", folder.path().join("a.db").display());
        let mut options = ConnectOptions::new(url);
        options.max_connections(1);
        let connection = Database::connect(options).await.unwrap();
        migrate(&connection).await.unwrap();
        migrate(&connection).await.unwrap();
        let manager = SchemaManager::new(&connection);
        let tables = m0001_integrations::TABLES
            .into_iter()
            .chain([m0003_changes::TABLE, m0004_events::TABLE])
            .chain(m0005_access::TABLES)
            .chain(m0008_auth::TABLES);
        for table in tables {
            assert!(manager.has_table(table).await.unwrap(), "{table}");
        }
        assert!(manager.has_column("topic_life", "shards").await.unwrap());
        for column in m0007_forward::COLUMNS {
            assert!(manager.has_column("node_session", column).await.unwrap(), "{column}");
        }
        assert!(manager.has_column("integration", "sealed_key").await.unwrap());
        assert!(Migrator::get_pending_migrations(&connection).await.unwrap().is_empty());
    }
}
