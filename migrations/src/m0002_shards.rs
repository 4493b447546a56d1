//! How many shards an integration has: kept with the life of its message topic, which outlives its row.

use sea_orm_migration::{prelude::*, schema::integer, sea_orm::DbErr};

#[derive(DeriveMigrationName)]
pub(crate) struct Migration;

#[allow(
    elided_lifetimes_in_paths,
    reason = "the trait hides this lifetime and async_trait wants the same shape"
)]
#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        // The default is for rows that are there, and for a release that does not know the column.
        let column = integer("shards").default(1).take();
        manager.alter_table(Table::alter().table("topic_life").add_column(column).take()).await
    }
}
