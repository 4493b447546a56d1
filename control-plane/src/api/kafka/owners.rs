//! Whose a topic is: from its name and from what is in SQL.

use std::collections::HashMap;

use tbmq_integration::cleanup::Stage;
use tbmq_proto::{
    control::TopicOwner,
    ids::IntegrationId,
    topic::{Catalogue, Role},
};

use crate::store::{self, Life, Store};

/// The integrations that are in SQL.
#[derive(Debug, Default)]
pub(super) struct Owners {
    pub(super) names: HashMap<IntegrationId, String>,
    pub(super) lives: HashMap<IntegrationId, Life>,
}

impl Owners {
    pub(super) async fn read(store: &Store) -> Result<Self, store::Error> {
        // Names last: an integration comes with its life, and who is known by its name alone is no orphan.
        let lives = store.all_lives().await?;
        let names = store.names().await?;
        Ok(Self { names, lives: lives.into_iter().map(|life| (life.integration, life)).collect() })
    }

    /// Whose a topic is that is not Kafka's own.
    pub(super) fn of(&self, role: Option<&Role>) -> TopicOwner {
        match role.map(Role::integration) {
            None => TopicOwner::Foreign,
            Some(None) => TopicOwner::System,
            Some(Some(id)) if self.names.contains_key(&id) || self.is_removed_by_itself(id) => {
                TopicOwner::Integration
            }
            Some(Some(_)) => TopicOwner::Orphan,
        }
    }

    /// Whether the integration is deleted and its topic about to be.
    fn is_removed_by_itself(&self, id: IntegrationId) -> bool {
        let stage = self.lives.get(&id).map(|life| life.life.stage);
        !matches!(stage, None | Some(Stage::Parked | Stage::AwaitTombstone { .. } | Stage::Gone))
    }

    /// The live message topics, each with its life.
    pub(super) fn message_topics(&self, catalogue: &Catalogue) -> HashMap<String, &Life> {
        let live = self.lives.values().filter(|life| life.life.stage == Stage::Live);
        live.map(|life| (catalogue.messages(life.integration, life.shards).name, life)).collect()
    }
}
