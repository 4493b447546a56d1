//! The kinds of integrations that this executor serves, and what they share.
//!
//! A kind is one file (or folder) here and one line in [`kinds`]; nothing else in the workspace knows it.
//!
//! | module | what |
//! |---|---|
//! | [`batched`] | several messages as one |
//! | [`binder`] | from `clientConfiguration` to a kind's `Config`, with all problems at once |
//! | [`credentials`] | credentials objects, secrets, TLS settings |
//! | [`egress`] | which addresses sinks may connect to |
//! | [`envelope`] | the JSON object around a payload |
//! | [`stages`] | the stages of a connection check |

use std::{num::NonZeroUsize, sync::Arc, time::Duration};

use tbmq_integration::entity::Document;

use self::egress::Egress;
use crate::sink::{SinkContext, SinkKind};

pub mod batched;
pub mod binder;
pub mod credentials;
pub mod egress;
pub mod envelope;
pub mod http;
pub mod kafka;
pub mod mqtt;
pub mod stages;

/// What all sinks of a process are told by its configuration.
#[derive(Clone, Debug)]
pub struct SinkSettings {
    /// Which addresses sinks may connect to.
    pub egress: Egress,
    /// TBMQ's `tb.ie.http.maxInMemoryBufferSizeInKb`: the most that an integration's `maxInMemoryBufferSizeInKb` may ask for.
    pub http_max_in_memory_buffer_kb: u32,
    /// `TB_IE_HTTP_CLIENT_POOL_MAX_CONNECTIONS`: connections per HTTP integration; `None`: as many as its window.
    pub http_pool_max_connections: Option<NonZeroUsize>,
    /// How long an attempt may take when a document's `delivery.packProcessingTimeoutMs` says nothing else.
    pub attempt_timeout: Duration,
    /// `INTEGRATIONS_INIT_CONNECTION_TIMEOUT_SEC`: the most that a check of an MQTT connection waits, if its document says
    /// more.
    pub check_timeout: Duration,
}

impl Default for SinkSettings {
    fn default() -> Self {
        Self {
            egress: Egress::default(),
            http_max_in_memory_buffer_kb: 25_000,
            http_pool_max_connections: None,
            attempt_timeout: Duration::from_secs(30),
            check_timeout: Duration::from_secs(15),
        }
    }
}

impl SinkSettings {
    /// How long an attempt of this integration may take: after that the driver has given the ticket up, and a sink
    /// that still waited would only hold a slot.
    pub fn attempt_timeout(&self, context: &SinkContext) -> Duration {
        Document::parse(&context.target.configuration)
            .ok()
            .and_then(|document| document.delivery.pack_processing_timeout)
            .unwrap_or(self.attempt_timeout)
    }
}

/// Every kind that this executor serves.
pub fn kinds(settings: &SinkSettings) -> Vec<Arc<dyn SinkKind>> {
    vec![
        Arc::new(http::Http::new(settings.clone())),
        Arc::new(kafka::Kafka::new(settings.clone())),
        Arc::new(mqtt::Mqtt::new(settings.clone())),
    ]
}

/// Names of every kind that there is.
pub fn names() -> Vec<&'static str> {
    kinds(&SinkSettings::default()).iter().map(|kind| kind.name()).collect()
}
