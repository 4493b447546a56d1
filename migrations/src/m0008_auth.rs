//! Who may connect: credentials, providers, blocked and unauthorized clients; and which of them are to be written to
//! the bus.
//!
//! Texts that a client chooses may have 65,535 bytes, more than an index takes: rows are found by a digest of them.

use sea_orm_migration::{
    prelude::*,
    schema::{
        big_integer, boolean, integer, small_integer, string_len, string_len_null, text, text_null, uuid,
    },
    sea_orm::DbErr,
};

#[derive(DeriveMigrationName)]
pub(crate) struct Migration;

#[cfg(test)]
pub(crate) const TABLES: [&str; 7] = [
    "mqtt_client_credentials",
    "mqtt_auth_provider",
    "auth_setting",
    "blocked_client",
    "unauthorized_client",
    "auth_outbox",
    "auth_projection",
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
        Ok(())
    }
}

fn tables() -> Vec<TableCreateStatement> {
    let table = |name: &'static str| Table::create().table(name).if_not_exists().take();
    vec![
        table("mqtt_client_credentials")
            .col(uuid("id").primary_key())
            .col(string_len("name", 255))
            .col(string_len("client_type", 16))
            .col(string_len("credentials_type", 16))
            // TBMQ's derived key.
            .col(text("credentials_id"))
            // SHA-256 of it, lower-case hex.
            .col(string_len("credentials_digest", 64))
            // The proof as JSON: hashes and keys, never a password.
            .col(text("credentials_value"))
            // What lists filter by.
            .col(text_null("client_id"))
            .col(text_null("user_name"))
            .col(text_null("common_name"))
            .col(big_integer("revision"))
            .col(big_integer("created_ms"))
            .col(big_integer("updated_ms"))
            .take(),
        table("mqtt_auth_provider")
            .col(string_len("type", 16).primary_key())
            .col(boolean("enabled"))
            .col(text("configuration"))
            // Secrets of the configuration, sealed, and the key that it was looked through with.
            .col(text_null("sealed"))
            .col(string_len_null("sealed_key", 64))
            .col(big_integer("revision"))
            .col(big_integer("updated_ms"))
            .take(),
        // `providers`: who is asked first; `secrets`: what all data planes share.
        table("auth_setting")
            .col(string_len("name", 32).primary_key())
            .col(text("value"))
            .col(big_integer("revision"))
            .col(big_integer("updated_ms"))
            .take(),
        table("blocked_client")
            // SHA-256 of the record's key, lower-case hex.
            .col(string_len("digest", 64).primary_key())
            .col(text("record_key"))
            .col(string_len("type", 16))
            .col(text("value"))
            .col(string_len_null("regex_match_target", 24))
            // 0: never.
            .col(big_integer("expires_ms"))
            .col(text("description"))
            .col(big_integer("revision"))
            .col(big_integer("created_ms"))
            .take(),
        table("unauthorized_client")
            // SHA-256 of the client id, lower-case hex.
            .col(string_len("digest", 64).primary_key())
            .col(text("client_id"))
            .col(text("address"))
            .col(text("user_name"))
            .col(boolean("password_provided"))
            .col(boolean("tls_used"))
            .col(text("reason"))
            .col(big_integer("time_ms"))
            .col(big_integer("count"))
            .take(),
        // What is to be written to the bus.
        table("auth_outbox")
            .col(small_integer("topic"))
            // An id, a name or a digest: what its row is found by.
            .col(string_len("item", 64))
            .col(text("record_key"))
            .col(big_integer("revision"))
            .col(big_integer("created_ms"))
            .primary_key(Index::create().col("topic").col("item"))
            .take(),
        // What has been written, and where it lies.
        table("auth_projection")
            .col(small_integer("topic"))
            .col(string_len("item", 64))
            .col(big_integer("revision"))
            .col(integer("partition"))
            .col(big_integer("position"))
            .primary_key(Index::create().col("topic").col("item"))
            .take(),
    ]
}

fn indexes() -> Vec<IndexCreateStatement> {
    let index = |name: &'static str, table: &'static str| {
        Index::create().name(name).table(table).if_not_exists().take()
    };
    let credentials = "mqtt_client_credentials";
    vec![
        index("mqtt_client_credentials_digest_key", credentials).col("credentials_digest").unique().take(),
        index("mqtt_client_credentials_name", credentials).col("name").col("id").take(),
        index("blocked_client_created", "blocked_client").col("created_ms").col("digest").take(),
        index("blocked_client_expires", "blocked_client").col("expires_ms").take(),
        index("unauthorized_client_time", "unauthorized_client").col("time_ms").col("digest").take(),
        index("auth_outbox_revision", "auth_outbox").col("revision").take(),
    ]
}
