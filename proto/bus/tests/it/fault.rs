//! The contract, by a bus with no fault planted.

use std::sync::Arc;

use tbmq_bus::{Bus, TopicPartition, fault::FaultBus, memory::MemoryBus};

use crate::contract::{Fixture, contract};

struct Faultless {
    inner: Arc<MemoryBus>,
    bus: Arc<FaultBus>,
}

impl Fixture for Faultless {
    async fn start() -> Option<Self> {
        let inner = MemoryBus::new();
        let bus = FaultBus::new(Arc::clone(&inner) as Arc<dyn Bus>, 1);
        Some(Self { inner, bus })
    }

    fn bus(&self) -> Arc<dyn Bus> {
        Arc::clone(&self.bus) as Arc<dyn Bus>
    }

    async fn force_compaction(&self, _partition: &TopicPartition) {
        self.inner.clean_now().await.unwrap();
    }

    fn hold_writes(&self, held: bool) {
        self.inner.hold(held);
    }

    async fn expire_session(&self, group: &str, client_id: &str) -> bool {
        self.inner.expire(group, client_id)
    }
}

contract!(Faultless);
