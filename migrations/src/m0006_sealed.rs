//! Secrets of configurations, encrypted: `configuration` then holds masks in their places.

use sea_orm_migration::{
    prelude::*,
    schema::{string_null, text_null},
    sea_orm::DbErr,
};

#[derive(DeriveMigrationName)]
pub(crate) struct Migration;

#[allow(
    elided_lifetimes_in_paths,
    reason = "the trait hides this lifetime and async_trait wants the same shape"
)]
#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let columns = [
            // JSON: key, revision, nonce and ciphertext. NULL: nothing is encrypted.
            text_null("sealed").take(),
            // Id of the key with which the row was looked through last. NULL: it was not, or has to be again.
            string_null("sealed_key").take(),
        ];
        // SQLite adds one column at a time.
        for column in columns {
            manager.alter_table(Table::alter().table("integration").add_column(column).take()).await?;
        }
        Ok(())
    }
}
