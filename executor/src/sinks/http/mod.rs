//! HTTP integrations: one request per message (spec §6.3), or per batch of messages where that is configured.
//!
//! | module | what |
//! |---|---|
//! | [`config`] | `clientConfiguration`, read and checked |
//! | `url` | the endpoint's URL |
//! | `sink` | the running sink |
//! | `slots` | how many requests may be on their way |
//! | `body` | from messages to a request's body |
//! | `idempotency` | the header `Idempotency-Key` |
//! | `client` | one request, and what its answer means |
//! | `connections` | connections that are kept and shared |
//! | `connector` | how a connection is made |
//! | `retry_after` | the header `Retry-After` |
//! | `probe` | the connection check |
//!
//! All requests of an integration run inside [`Sink::poll_outcome`]: there is no task per message. At most
//! `maxParallelRequestsCount` of them are on their way, and fewer while the executor itself is the limit; the others
//! wait without being sent, at most `readTimeoutMs` and never longer than the driver waits; a wait that ends too late is
//! answered and never sent (spec UP-17). Connections to the same host and port are shared by all integrations of the
//! process, kept, and as many as are needed (spec UP-15).

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use serde_json::{Map, Value};
use tbmq_integration::entity::Violation;

use self::{client::Endpoint, client::Origins, sink::HttpSink, slots::Crowd};
use super::{SinkSettings, batched::Batched, binder};
use crate::sink::{ConnectError, ProbeReport, Sink, SinkContext, SinkKind};

mod body;
mod client;
pub mod config;
mod connections;
mod connector;
mod idempotency;
mod probe;
mod retry_after;
mod sink;
mod slots;
mod url;

#[cfg(test)]
mod server;
#[cfg(test)]
mod tests;

/// The kind `HTTP`.
#[derive(Debug)]
pub struct Http {
    settings: SinkSettings,
    origins: Origins,
    crowd: Arc<Crowd>,
}

impl Http {
    /// The kind, for the settings of this process.
    pub fn new(settings: SinkSettings) -> Self {
        let origins = Origins::new(&settings);
        Self { settings, origins, crowd: Arc::default() }
    }
}

#[async_trait]
impl SinkKind for Http {
    fn name(&self) -> &'static str {
        "HTTP"
    }

    fn ordering(&self) -> tbmq_integration::pack::Ordering {
        // Requests run side by side, and nothing on the way keeps their order.
        tbmq_integration::pack::Ordering::None
    }

    fn schema(&self) -> Value {
        binder::schema::<config::Config>()
    }

    fn check(&self, client_configuration: &Map<String, Value>) -> Vec<Violation> {
        config::read(client_configuration, &self.settings).violations
    }

    async fn probe(
        &self,
        client_configuration: &Map<String, Value>,
        _: &SinkContext,
        deadline: Duration,
    ) -> ProbeReport {
        match config::read(client_configuration, &self.settings).accepted() {
            Ok(checked) => probe::run(&checked, &self.origins, &self.settings.egress, deadline).await,
            Err(error) => error.into(),
        }
    }

    /// Makes the sink; does not reach out to the endpoint.
    async fn connect(
        &self,
        client_configuration: &Map<String, Value>,
        context: SinkContext,
    ) -> Result<Box<dyn Sink>, ConnectError> {
        let checked = config::read(client_configuration, &self.settings).accepted()?;
        let origin = self.origins.origin(&checked)?;
        let attempt_timeout = self.settings.attempt_timeout(&context);
        let endpoint = Endpoint::new(origin, checked.config.request_method.into(), &checked, attempt_timeout);
        let pool = self.settings.http_pool_max_connections;
        let sink = HttpSink::new(
            &checked,
            Arc::new(endpoint),
            &context,
            pool,
            Arc::clone(&self.crowd),
            attempt_timeout,
        );
        Ok(match checked.config.batch.limits(attempt_timeout) {
            Some(limits) => Box::new(Batched::new(sink, limits, context.window)),
            None => Box::new(sink),
        })
    }
}

/// Milliseconds of a configuration; 0 means none.
fn millis(number: u32) -> Option<Duration> {
    (number > 0).then(|| Duration::from_millis(u64::from(number)))
}
