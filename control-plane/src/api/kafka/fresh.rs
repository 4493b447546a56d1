//! Answers that are shared: however many ask, there is one question at a time, and its answer serves for a second.

use std::{
    sync::{Arc, OnceLock},
    time::Duration,
};

use futures_util::{
    FutureExt as _,
    future::{BoxFuture, Shared},
};
use parking_lot::Mutex;
use tokio::{task::AbortHandle, time::Instant};
use tonic::Status;

use super::super::error;

/// How long an answer serves.
const AGE_MAX: Duration = Duration::from_secs(1);

/// How long a caller waits. The question goes on without him, and no other is asked meanwhile.
const PATIENCE: Duration = Duration::from_secs(10);

type Answer<T> = Result<Arc<T>, Status>;

/// The latest question.
pub(super) struct Fresh<T> {
    asked: Mutex<Option<Asked<T>>>,
}

struct Asked<T> {
    task: AbortHandle,
    answered: Arc<OnceLock<Instant>>,
    answer: Shared<BoxFuture<'static, Answer<T>>>,
}

impl<T> Asked<T> {
    fn serves(&self) -> bool {
        match self.answered.get() {
            Some(at) => at.elapsed() < AGE_MAX,
            None => !self.task.is_finished(),
        }
    }
}

impl<T> Default for Fresh<T> {
    fn default() -> Self {
        Self { asked: Mutex::new(None) }
    }
}

impl<T> std::fmt::Debug for Fresh<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Fresh").finish_non_exhaustive()
    }
}

impl<T: Send + Sync + 'static> Fresh<T> {
    /// The answer of the last second, or the one that is waited for already; asks if there is neither.
    ///
    /// # Errors
    /// The question's, or that there is no answer yet.
    pub(super) async fn get<F>(&self, ask: impl FnOnce() -> F) -> Answer<T>
    where
        F: Future<Output = Result<T, Status>> + Send + 'static,
    {
        let answer = {
            let mut asked = self.asked.lock();
            match &*asked {
                Some(held) if held.serves() => held.answer.clone(),
                _ => {
                    // It is bounded by the bus and by the database, and it ends also when nobody waits for it any more.
                    let answered = Arc::new(OnceLock::new());
                    let (question, told) = (ask(), Arc::clone(&answered));
                    let task = tokio::spawn(async move {
                        let answer = question.await;
                        told.get_or_init(Instant::now);
                        answer
                    });
                    let handle = task.abort_handle();
                    let answer = async {
                        task.await.unwrap_or_else(|error| Err(error::unavailable(error))).map(Arc::new)
                    };
                    let answer = answer.boxed().shared();
                    *asked = Some(Asked { task: handle, answered, answer: answer.clone() });
                    answer
                }
            }
        };
        let late = || Err(error::unavailable(format!("no answer within {PATIENCE:?}")));
        tokio::time::timeout(PATIENCE, answer).await.unwrap_or_else(|_| late())
    }

    /// What was answered is not true any more.
    pub(super) fn forget(&self) {
        *self.asked.lock() = None;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use tonic::Code;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn many_callers_share_one_question_and_its_answer_for_a_second() {
        let (fresh, asked) = (Fresh::default(), Arc::new(AtomicU64::new(0)));
        let get = || {
            let asked = Arc::clone(&asked);
            fresh.get(|| async move {
                tokio::time::sleep(Duration::from_millis(300)).await;
                Ok(asked.fetch_add(1, Ordering::Relaxed))
            })
        };
        let all = futures_util::future::join_all((0..100).map(|_| get())).await;
        assert!(all.iter().all(|answer| **answer.as_ref().unwrap() == 0), "{all:?}");
        tokio::time::sleep(Duration::from_millis(600)).await;
        assert_eq!(*get().await.unwrap(), 0);
        tokio::time::sleep(Duration::from_millis(500)).await;
        assert_eq!(*get().await.unwrap(), 1, "it was too old");
        fresh.forget();
        assert_eq!(*get().await.unwrap(), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_in_vain_asks_no_second_time() {
        let (fresh, asked) = (Fresh::<()>::default(), Arc::new(AtomicU64::new(0)));
        for _ in 0..3 {
            let asked = Arc::clone(&asked);
            let question = || async move {
                asked.fetch_add(1, Ordering::Relaxed);
                std::future::pending().await
            };
            assert_eq!(fresh.get(question).await.unwrap_err().code(), Code::Unavailable);
        }
        assert_eq!(asked.load(Ordering::Relaxed), 1);
    }
}
