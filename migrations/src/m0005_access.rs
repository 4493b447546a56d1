//! Who may call, and who did: API tokens, keys that replicas share, the audit log.

use sea_orm_migration::{
    prelude::*,
    schema::{big_integer, big_integer_null, string_len, text, uuid},
    sea_orm::DbErr,
};

#[derive(DeriveMigrationName)]
pub(crate) struct Migration;

#[cfg(test)]
pub(crate) const TABLES: [&str; 3] = ["api_token", "access_key", "audit_entry"];

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
        let by_time = Index::create()
            .name("audit_entry_time")
            .table("audit_entry")
            .if_not_exists()
            .col("time_ms")
            .col("id")
            .take();
        manager.create_index(by_time).await
    }
}

fn tables() -> Vec<TableCreateStatement> {
    let table = |name: &'static str| Table::create().table(name).if_not_exists().take();
    vec![
        table("api_token")
            .col(uuid("id").primary_key())
            .col(string_len("display_name", 255))
            .col(string_len("role", 16))
            // SHA-256 of the secret, lower-case hex. The secret itself is kept nowhere.
            .col(string_len("hash", 64).unique_key())
            .col(big_integer("created_ms"))
            .col(big_integer_null("expires_ms"))
            .col(big_integer_null("last_used_ms"))
            .take(),
        // Keys with which the replicas know each other.
        table("access_key").col(string_len("name", 64).primary_key()).col(text("secret")).take(),
        table("audit_entry")
            .col(uuid("id").primary_key())
            .col(big_integer("time_ms"))
            .col(text("principal"))
            .col(string_len("role", 16))
            .col(string_len("peer", 64))
            .col(string_len("method", 255))
            .col(text("resource"))
            .col(string_len("etag_before", 64))
            .col(string_len("etag_after", 64))
            .col(string_len("result", 32))
            .col(text("error"))
            .col(string_len("service_id", 255))
            .take(),
    ]
}
