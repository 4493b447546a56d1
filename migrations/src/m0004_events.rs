//! Events in the order of storing, and on PostgreSQL in partitions by time.
//!
//! A new table, `event_log`, since a table can't become a partitioned one. What a release that does not know it writes
//! to `event` is carried over by a trigger, so that `event` stays empty and can go a release later.
//!
//! On PostgreSQL the primary key must hold what the table is partitioned by: (event_id, time_ms). The time is the
//! event's own, so a repetition has the same. Rows for which there is no partition lie in the default one.

use sea_orm_migration::{
    prelude::*,
    schema::{
        big_integer, big_integer_null, boolean_null, integer, string_len, string_len_null, string_null,
        text_null, uuid,
    },
    sea_orm::{DatabaseBackend, DbErr},
};

#[derive(DeriveMigrationName)]
pub(crate) struct Migration;

pub(crate) const TABLE: &str = "event_log";

/// What both tables have.
const COLUMNS: [&str; 16] = [
    "event_id",
    "integration_id",
    "event_type",
    "time_ms",
    "service_id",
    "shard",
    "revision",
    "epoch",
    "incarnation",
    "seq",
    "lifecycle",
    "success",
    "method",
    "error",
    "messages_processed",
    "errors",
];

#[allow(
    elided_lifetimes_in_paths,
    reason = "the trait hides this lifetime and async_trait wants the same shape"
)]
#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let connection = manager.get_connection();
        let postgres = manager.get_database_backend() == DatabaseBackend::Postgres;
        if postgres {
            // Another release waits here until the trigger is there.
            connection.execute_unprepared("LOCK TABLE event IN SHARE ROW EXCLUSIVE MODE").await?;
        }
        manager.create_table(table(postgres)).await?;
        if postgres {
            let default = format!("CREATE TABLE {TABLE}_default PARTITION OF {TABLE} DEFAULT");
            connection.execute_unprepared(&default).await?;
        }
        for index in indexes() {
            manager.create_index(index).await?;
        }
        for statement in carry_over(postgres) {
            connection.execute_unprepared(&statement).await?;
        }
        Ok(())
    }
}

fn table(partitioned: bool) -> TableCreateStatement {
    let mut table = Table::create()
        .table(TABLE)
        .if_not_exists()
        .col(uuid("event_id"))
        .col(uuid("integration_id"))
        // 1 lifecycle, 2 statistics, 3 error.
        .col(integer("event_type"))
        .col(big_integer("time_ms"))
        .col(string_len("service_id", 128))
        .col(integer("shard"))
        .col(big_integer("revision"))
        .col(big_integer("epoch"))
        .col(string_len("incarnation", 64))
        .col(big_integer("seq"))
        .col(string_len_null("lifecycle", 16))
        .col(boolean_null("success"))
        .col(string_null("method"))
        .col(text_null("error"))
        .col(big_integer_null("messages_processed"))
        // Errors of a statistics event, messages of an error event.
        .col(big_integer_null("errors"))
        // A number of the counter `event_sequence`: the order of storing.
        .col(big_integer("sequence"))
        .primary_key(Index::create().col("event_id").col("time_ms"))
        .take();
    if partitioned {
        table.extra("PARTITION BY RANGE (time_ms)");
    }
    table
}

fn indexes() -> [IndexCreateStatement; 3] {
    let index = |name: &'static str| Index::create().name(name).table(TABLE).if_not_exists().take();
    [
        index("event_log_integration_time").col("integration_id").col("time_ms").col("event_id").take(),
        index("event_log_time").col("time_ms").col("event_id").take(),
        index("event_log_sequence").col("sequence").take(),
    ]
}

/// Numbers the events that are there by their time, and has those that come on the old way follow. May be repeated: on
/// SQLite a migration can end half-way.
fn carry_over(postgres: bool) -> Vec<String> {
    let columns = COLUMNS.join(", ");
    let new = COLUMNS.map(|column| format!("NEW.{column}")).join(", ");
    let next = "UPDATE counter SET value = value + 1 WHERE name = 'event_sequence'";
    let number = "(SELECT value FROM counter WHERE name = 'event_sequence')";
    let follow = format!(
        "INSERT INTO {TABLE} ({columns}, sequence) VALUES ({new}, {number}) ON CONFLICT (event_id, time_ms) DO NOTHING"
    );
    let mut statements = vec![
        format!(
            "INSERT INTO {TABLE} ({columns}, sequence) \
             SELECT {columns}, row_number() OVER (ORDER BY time_ms, event_id) FROM event \
             WHERE true ON CONFLICT (event_id, time_ms) DO NOTHING"
        ),
        "INSERT INTO counter (name, value) SELECT 'event_sequence', count(*) FROM event \
         WHERE true ON CONFLICT (name) DO NOTHING"
            .to_owned(),
        // All events after this number are kept, unless they were cleared.
        "INSERT INTO counter (name, value) VALUES ('event_floor', 0) ON CONFLICT (name) DO NOTHING"
            .to_owned(),
        "DELETE FROM event".to_owned(),
    ];
    if postgres {
        statements.push(format!(
            "CREATE FUNCTION event_to_log() RETURNS trigger LANGUAGE plpgsql AS \
             $$ BEGIN {next}; {follow}; RETURN NULL; END $$"
        ));
        statements.push(
            "CREATE TRIGGER event_to_log BEFORE INSERT ON event \
             FOR EACH ROW EXECUTE FUNCTION event_to_log()"
                .to_owned(),
        );
    } else {
        statements.push(format!(
            "CREATE TRIGGER IF NOT EXISTS event_to_log AFTER INSERT ON event FOR EACH ROW \
             BEGIN {next}; {follow}; DELETE FROM event WHERE event_id = NEW.event_id; END"
        ));
    }
    statements
}

#[cfg(test)]
mod tests {
    use sea_orm_migration::{
        MigratorTrait as _,
        sea_orm::{ConnectOptions, ConnectionTrait as _, Database, DatabaseConnection, Statement},
    };
    use tbmq_harness::{Need, postgres::Postgres, ready};

    use crate::Migrator;

    /// As the release before writes events.
    async fn write_old(connection: &DatabaseConnection, events: &[(u8, i64)]) {
        let row = |(id, time_ms): &(u8, i64)| {
            let id = match connection.get_database_backend() {
                super::DatabaseBackend::Sqlite => format!("x'{}'", format!("{id:02x}").repeat(16)),
                _ => format!("'{}'::uuid", format!("{id:02x}").repeat(16)),
            };
            format!("({id}, {id}, 2, {time_ms}, 's', 0, 1, 1, 'i', 1, NULL, NULL, NULL, NULL, 5, 6)")
        };
        let rows: Vec<String> = events.iter().map(row).collect();
        let insert = format!(
            "INSERT INTO event ({}) VALUES {} ON CONFLICT (event_id) DO NOTHING",
            super::COLUMNS.join(", "),
            rows.join(", ")
        );
        connection.execute_unprepared(&insert).await.unwrap();
    }

    async fn numbers(connection: &DatabaseConnection, query: &str) -> Vec<(i64, i64)> {
        let statement = Statement::from_string(connection.get_database_backend(), query);
        let rows = connection.query_all_raw(statement).await.unwrap();
        rows.iter().map(|row| (row.try_get("", "a").unwrap(), row.try_get("", "b").unwrap())).collect()
    }

    async fn check(url: String) {
        let mut options = ConnectOptions::new(url);
        options.max_connections(1);
        let connection = Database::connect(options).await.unwrap();
        Migrator::up(&connection, Some(3)).await.unwrap();
        write_old(&connection, &[(1, 30), (2, 10), (3, 20)]).await;
        Migrator::up(&connection, None).await.unwrap();
        let log = "SELECT time_ms AS a, sequence AS b FROM event_log ORDER BY sequence";
        assert_eq!(numbers(&connection, log).await, [(10, 1), (20, 2), (30, 3)], "numbered by time");
        // It goes on writing during an update, and repeats what it did not commit in time.
        write_old(&connection, &[(1, 30), (4, 5), (5, 40), (4, 5)]).await;
        let times: Vec<i64> = numbers(&connection, log).await.into_iter().map(|(time, _)| time).collect();
        assert_eq!(times, [10, 20, 30, 5, 40]);
        let left =
            "SELECT count(*) AS a, (SELECT value FROM counter WHERE name = 'event_sequence') AS b FROM event";
        let [(left, last)] = numbers(&connection, left).await[..] else { panic!("one row") };
        assert_eq!(left, 0, "the old table stays empty");
        let newest = numbers(&connection, log).await.last().unwrap().1;
        assert!(last >= newest && newest > 3, "{last} {newest}");
    }

    #[tokio::test]
    async fn events_are_carried_over_and_so_is_what_the_release_before_writes() {
        let folder = tempfile::tempdir().unwrap();
        check(format!("sqlite://{}?mode=rwc", folder.path().join("a.db").display())).await;
    }

    #[tokio::test]
    async fn events_are_carried_over_and_so_is_what_the_release_before_writes_on_postgres() {
        let name = "events_are_carried_over_and_so_is_what_the_release_before_writes_on_postgres";
        if ready(name, &[Need::Postgres]) {
            check(Postgres::shared().create_database().unwrap()).await;
        }
    }
}
