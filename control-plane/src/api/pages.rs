//! What watches have read lately: those that are at one place and hear of the same head read once for all.

use std::{collections::VecDeque, sync::Arc};

use parking_lot::Mutex;
use prost::Message as _;
use tbmq_proto::control::{Integration, watch_integrations_response::Type};
use tokio::sync::OnceCell;

/// Pages that are kept: as many as watches may be apart that wait for the next change.
const KEPT: usize = 4;

/// What is told of an integration.
#[derive(Debug)]
pub(super) struct Told {
    pub(super) what: Type,
    pub(super) integration: Integration,
    pub(super) seq: u64,
}

/// What comes after a place.
#[derive(Debug)]
pub(super) struct Page {
    pub(super) told: Vec<Told>,
    /// All changes up to here have been looked at.
    pub(super) through: u64,
}

impl Page {
    /// About how much memory it takes.
    pub(super) fn bytes(&self) -> usize {
        self.told.iter().map(|told| told.integration.encoded_len()).sum()
    }
}

/// The latest pages.
#[derive(Debug, Default)]
pub(super) struct Pages {
    kept: Mutex<VecDeque<Kept>>,
}

/// A page that was read, or is being read.
#[derive(Debug)]
struct Kept {
    place: u64,
    head: u64,
    page: Arc<OnceCell<Arc<Page>>>,
}

impl Pages {
    /// The page after `place` for those who have heard of `head`: read once, by the first who asks. Whoever asks while it
    /// is being read waits, and reads himself when the first has failed or gone.
    pub(super) async fn at<E, F: Future<Output = Result<Page, E>>>(
        &self,
        place: u64,
        head: u64,
        read: impl FnOnce() -> F,
    ) -> Result<Arc<Page>, E> {
        let page = {
            let mut kept = self.kept.lock();
            if let Some(found) = kept.iter().find(|kept| (kept.place, kept.head) == (place, head)) {
                found.page.clone()
            } else {
                kept.truncate(KEPT - 1);
                let page = Arc::default();
                kept.push_front(Kept { place, head, page: Arc::clone(&page) });
                page
            }
        };
        page.get_or_try_init(|| async { Ok(Arc::new(read().await?)) }).await.cloned()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[tokio::test]
    async fn a_page_is_read_once_for_all_and_again_when_reading_has_failed() {
        let (pages, reads) = (Pages::default(), AtomicUsize::new(0));
        let read = async |through: Option<u64>| {
            reads.fetch_add(1, Ordering::Relaxed);
            tokio::task::yield_now().await;
            through.map(|through| Page { told: Vec::new(), through }).ok_or("away")
        };
        assert_eq!(pages.at(1, 5, || read(None)).await.unwrap_err(), "away");
        let (one, other) = tokio::join!(pages.at(1, 5, || read(Some(5))), pages.at(1, 5, || read(Some(6))));
        assert!(Arc::ptr_eq(&one.unwrap(), &other.unwrap()));
        assert_eq!(reads.load(Ordering::Relaxed), 2);
        for place in 2..10 {
            assert_eq!(pages.at(place, 20, || read(Some(place))).await.unwrap().through, place);
        }
        assert_eq!(pages.kept.lock().len(), KEPT);
        assert_eq!(pages.at(1, 5, || read(Some(7))).await.unwrap().through, 7, "it is not kept for ever");
    }
}
