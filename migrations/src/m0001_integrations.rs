//! Integrations, their projection and topics, events, kinds, leases, sessions of nodes, idempotency.

use sea_orm_migration::{
    prelude::*,
    schema::{
        big_integer, big_integer_null, boolean, boolean_null, integer, string_len, string_len_null,
        string_null, text, text_null, uuid,
    },
    sea_orm::DbErr,
};

#[derive(DeriveMigrationName)]
pub(crate) struct Migration;

#[cfg(test)]
pub(crate) const TABLES: [&str; 11] = [
    "counter",
    "integration",
    "topic_life",
    "outbox",
    "projection",
    "integration_status",
    "event",
    "kind",
    "lease",
    "node_session",
    "request",
];

#[allow(
    elided_lifetimes_in_paths,
    reason = "the trait hides this lifetime and async_trait wants the same shape"
)]
#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        for table in tables() {
            manager.create_table(table).await?;
        }
        for index in indexes() {
            manager.create_index(index).await?;
        }
        let first = Query::insert()
            .into_table("counter")
            .columns(["name", "value"])
            .values_panic(["revision".into(), 0_i64.into()])
            .to_owned();
        manager.execute(first).await
    }
}

fn tables() -> Vec<TableCreateStatement> {
    let table = |name: &'static str| Table::create().table(name).if_not_exists().take();
    vec![
        // `revision`: counts up over all integrations of the store.
        table("counter").col(string_len("name", 64).primary_key()).col(big_integer("value")).take(),
        table("integration")
            .col(uuid("id").primary_key())
            .col(string_len("name", 255))
            .col(string_len("kind", 64))
            .col(boolean("enabled"))
            .col(text("configuration"))
            .col(text("labels"))
            .col(text("description"))
            .col(big_integer("revision"))
            // CREATED, UPDATED or REINIT: what the downlink record says.
            .col(string_len("cause", 16))
            .col(big_integer("created_ms"))
            .col(big_integer("updated_ms"))
            .col(big_integer_null("disconnected_ms"))
            .take(),
        // The life of a message topic; outlives its integration until everything is removed.
        table("topic_life")
            .col(uuid("integration_id").primary_key())
            .col(string_len("kind", 64))
            .col(string_len("goal", 16))
            .col(string_len("stage", 24))
            .col(big_integer("position"))
            .col(big_integer("deadline_ms"))
            .col(big_integer("generation"))
            .col(big_integer("revision"))
            // Counts up with every change, so that two writers notice each other.
            .col(big_integer("version"))
            .take(),
        // What is to be projected onto the bus.
        table("outbox")
            .col(uuid("integration_id").primary_key())
            .col(big_integer("revision"))
            .col(big_integer("created_ms"))
            .take(),
        // What has been projected, and where the subscription record lies.
        table("projection")
            .col(uuid("integration_id").primary_key())
            .col(big_integer("revision"))
            .col(big_integer("position"))
            .col(big_integer("time_ms"))
            .take(),
        table("integration_status")
            .col(uuid("integration_id"))
            .col(integer("shard"))
            .col(string_len("event", 16))
            .col(boolean("success"))
            .col(text("error"))
            .col(string_len("service_id", 128))
            .col(big_integer("revision"))
            .col(big_integer("epoch"))
            .col(string_len("incarnation", 64))
            .col(big_integer("seq"))
            .col(big_integer("time_ms"))
            .primary_key(Index::create().col("integration_id").col("shard"))
            .take(),
        table("event")
            .col(uuid("event_id").primary_key())
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
            .take(),
        table("kind")
            .col(string_len("name", 64).primary_key())
            .col(text("json_schema"))
            .col(string_len("schema_hash", 64))
            .col(big_integer("announced_ms"))
            .take(),
        table("lease")
            .col(string_len("name", 64).primary_key())
            .col(string_len("holder", 128))
            // Counts up with every new holder.
            .col(big_integer("fencing"))
            // Counts up with every renewal: time is measured by who looks, never compared between machines.
            .col(big_integer("beat"))
            .take(),
        table("node_session")
            .col(string_len("service_id", 128).primary_key())
            .col(string_len("incarnation", 64))
            .col(string_len("replica", 128))
            .col(string_len("version", 64))
            .col(text("addresses"))
            .col(text("capabilities"))
            .col(big_integer("connected_ms"))
            .col(big_integer("seen_ms"))
            .take(),
        table("request")
            .col(string_len("method", 32))
            .col(string_len("request_id", 128))
            .col(string_len("fingerprint", 64))
            .col(uuid("integration_id"))
            .col(big_integer("created_ms"))
            .primary_key(Index::create().col("method").col("request_id"))
            .take(),
    ]
}

fn indexes() -> Vec<IndexCreateStatement> {
    let index = |name: &'static str, table: &'static str| {
        Index::create().name(name).table(table).if_not_exists().take()
    };
    vec![
        index("integration_name_key", "integration").col("name").unique().take(),
        index("integration_disconnected", "integration").col("disconnected_ms").take(),
        index("outbox_revision", "outbox").col("revision").take(),
        index("topic_life_stage", "topic_life").col("stage").take(),
        index("event_integration_time", "event").col("integration_id").col("time_ms").col("event_id").take(),
        index("event_time", "event").col("time_ms").col("event_id").take(),
        index("request_created", "request").col("created_ms").take(),
    ]
}
