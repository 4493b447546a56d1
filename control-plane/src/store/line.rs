//! Where transactions wait for a connection: in a line, of which only the first asks the pool.
//!
//! The pool gives up on whoever waited for [`Options::patience`](super::Options::patience), which is to mean that the
//! database is away and not that many have come at once: a call waits in the line as long as its own deadline lets it.

use std::time::Instant;

use sea_orm::{
    DatabaseConnection, DatabaseTransaction, SqliteTransactionMode, TransactionOptions, TransactionTrait as _,
};
use tokio::sync::Mutex;

use super::{Error, fault};

#[derive(Debug, Default)]
pub(super) struct Line {
    /// When the database was found away last, and why.
    away: Mutex<Option<(Instant, String)>>,
}

impl Line {
    /// A transaction that may write. SQLite takes its write lock at once: a later upgrade could not wait. Cancel-safe.
    pub(super) async fn begin(&self, connection: &DatabaseConnection) -> Result<DatabaseTransaction, Error> {
        let arrived = Instant::now();
        let mut away = self.away.lock().await;
        // Who was here when somebody before found the database away does not wait as long again.
        if let Some((_, reason)) = away.as_ref().filter(|(found, _)| *found >= arrived) {
            return Err(Error::Unavailable(reason.clone()));
        }
        let options = TransactionOptions {
            sqlite_transaction_mode: Some(SqliteTransactionMode::Immediate),
            ..TransactionOptions::default()
        };
        let begun = connection.begin_with_options(options).await.map_err(|error| fault(&error));
        if let Err(Error::Unavailable(reason)) = &begun {
            *away = Some((Instant::now(), reason.clone()));
        }
        begun
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use crate::store::{Error, Options, Store};

    #[tokio::test]
    async fn whoever_waits_in_line_longer_than_for_a_database_that_is_away_gets_a_connection() {
        let folder = tempfile::tempdir().unwrap();
        let patience = Duration::from_secs(2);
        let options = Options { patience, ..Options::sqlite(&folder.path().join("store.db")) };
        let store = Store::open(&options).await.unwrap();
        let begun = std::time::Instant::now();
        let writers = (0..70).map(|_| {
            let store = store.clone();
            async move {
                let transaction = store.begin().await?;
                tokio::time::sleep(Duration::from_millis(50)).await;
                transaction.commit().await.map_err(|error| super::fault(&error))
            }
        });
        let outcomes = futures_util::future::join_all(writers).await;
        assert_eq!(outcomes.into_iter().collect::<Result<Vec<()>, Error>>().map(|all| all.len()), Ok(70));
        assert!(begun.elapsed() > patience, "nobody has waited as long as this is about");
    }

    #[tokio::test]
    async fn all_who_wait_learn_at_once_that_the_database_is_away() {
        let folder = tempfile::tempdir().unwrap();
        let patience = Duration::from_secs(1);
        let options = Options { patience, ..Options::sqlite(&folder.path().join("store.db")) };
        let store = Store::open(&options).await.unwrap();
        // Nobody else gets the lock as long as this lives.
        let holder = store.begin().await.unwrap();
        let begun = std::time::Instant::now();
        let waiting = (0..100).map(|_| store.begin());
        let outcomes = futures_util::future::join_all(waiting).await;
        assert!(outcomes.iter().all(|outcome| matches!(outcome, Err(Error::Unavailable(_)))), "{outcomes:?}");
        // 100 s if each waited by itself.
        assert!(begun.elapsed() < Duration::from_secs(50), "{:?}", begun.elapsed());
        holder.commit().await.unwrap();
        store.begin().await.unwrap().commit().await.unwrap();
    }
}
