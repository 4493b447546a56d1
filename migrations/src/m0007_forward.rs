//! Where the control plane that holds a data plane's session can be reached, and how the data plane is.

use sea_orm_migration::{
    prelude::*,
    schema::{big_integer, boolean, string_len},
    sea_orm::DbErr,
};

#[derive(DeriveMigrationName)]
pub(crate) struct Migration;

pub(crate) const COLUMNS: [&str; 4] = ["replica_incarnation", "replica_address", "connections", "draining"];

#[allow(
    elided_lifetimes_in_paths,
    reason = "the trait hides this lifetime and async_trait wants the same shape"
)]
#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        // The defaults are for rows that are there, and for a release that does not know the columns.
        let [incarnation, address, connections, draining] = COLUMNS;
        let columns = [
            string_len(incarnation, 64).default("").take(),
            string_len(address, 512).default("").take(),
            big_integer(connections).default(0).take(),
            boolean(draining).default(false).take(),
        ];
        // SQLite adds one at a time.
        for column in columns {
            manager.alter_table(Table::alter().table("node_session").add_column(column).take()).await?;
        }
        Ok(())
    }
}
