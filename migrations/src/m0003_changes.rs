//! Changes of integrations, in the order of their numbers, for watches on any replica.

use sea_orm_migration::{
    prelude::*,
    schema::{big_integer, small_integer, uuid},
    sea_orm::DbErr,
};

#[derive(DeriveMigrationName)]
pub(crate) struct Migration;

pub(crate) const TABLE: &str = "integration_change";

#[allow(
    elided_lifetimes_in_paths,
    reason = "the trait hides this lifetime and async_trait wants the same shape"
)]
#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let table = Table::create()
            .table(TABLE)
            .if_not_exists()
            // A number of the counter `revision`.
            .col(big_integer("seq").primary_key())
            .col(uuid("integration_id"))
            // 1 created, 2 modified, 3 deleted.
            .col(small_integer("kind"))
            .col(big_integer("time_ms"))
            .take();
        manager.create_table(table).await?;
        let index = Index::create()
            .name("integration_change_integration")
            .table(TABLE)
            .if_not_exists()
            .col("integration_id")
            .col("seq")
            .take();
        manager.create_index(index).await?;
        // All changes after this revision are kept; of those before this migration none is.
        let floor = Query::insert()
            .into_table("counter")
            .columns(["name", "value"])
            .select_from(
                Query::select()
                    .expr(Expr::value("change_floor"))
                    .column("value")
                    .from("counter")
                    .and_where(Expr::col("name").eq("revision"))
                    .take(),
            )
            .expect("two columns and two expressions")
            .take();
        manager.execute(floor).await
    }
}
