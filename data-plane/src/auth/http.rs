//! The HTTP provider: asks a service about a client.

use parking_lot::Mutex;
use reqwest::Method;
use tbmq_auth::{
    acl::Identity,
    external::Outcome,
    http::{self, Asker, Breaker, Limits, Provider},
};

use super::{
    caller::{Answer, Caller, Failed},
    metrics::Call,
};

/// The service, and how it does.
#[derive(Debug)]
pub(crate) struct Http {
    provider: Provider,
    caller: Caller,
    breaker: Mutex<Breaker>,
}

/// Why there is no answer.
#[derive(Debug)]
pub(super) struct NoAnswer {
    pub(super) call: Call,
    pub(super) reason: String,
}

impl NoAnswer {
    pub(super) fn new(call: Call, reason: impl ToString) -> Self {
        Self { call, reason: reason.to_string() }
    }
}

impl Http {
    /// Reads TBMQ's configuration.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(crate) fn open(json: &str) -> Result<Self, String> {
        let provider = Provider::parse(json).map_err(|error| error.to_string())?;
        let Limits { timeout, answer_bytes, .. } = provider.limits();
        let caller = Caller::open(provider.endpoint(), timeout, answer_bytes)?;
        Ok(Self { provider, caller, breaker: Mutex::default() })
    }

    pub(super) fn limits(&self) -> Limits {
        self.provider.limits()
    }

    /// Asks about a client; a service that fails again and again is not asked for a while. `now_ms` is asked for epoch
    /// milliseconds.
    pub(super) async fn ask(&self, asker: &Asker<'_>, now_ms: impl Fn() -> i64) -> Result<Answer, NoAnswer> {
        let request =
            self.provider.request(asker).map_err(|not_text| NoAnswer::new(Call::Unsent, not_text))?;
        if !self.breaker.lock().may_call(now_ms()) {
            return Err(NoAnswer::new(Call::Resting, "the HTTP service has failed again and again"));
        }
        let method = match request.method {
            http::Method::Post => Method::POST,
            http::Method::Get => Method::GET,
        };
        let answer = self.caller.call(method, request.url, request.body).await;
        let is_well = matches!(&answer, Ok(Answer { status, .. }) if *status < 500 && *status != 429);
        if is_well {
            self.breaker.lock().succeeded();
        } else if self.breaker.lock().failed(now_ms()) {
            tracing::warn!("the HTTP service that knows clients fails, and is left alone for 10 s");
        }
        answer.map_err(|failed| {
            let call = match failed {
                Failed::Io(_) => Call::Failed,
                Failed::TimedOut(_) => Call::TimedOut,
                Failed::TooLong(_) => Call::TooLong,
            };
            NoAnswer::new(call, failed)
        })
    }

    /// What an answer means; see [`Provider::judge`].
    pub(super) fn judge(&self, answer: &Answer, identity: &Identity<'_>) -> Outcome {
        self.provider.judge(answer.status, &answer.body, identity)
    }
}

#[cfg(test)]
mod tests;
