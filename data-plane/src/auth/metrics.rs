//! What is counted of who connects. Labels come from closed sets; never a client or a credential.

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
};
use tbmq_auth::provider::{Answer, Provider};
use tbmq_service::{
    label_values,
    metrics::{Label, Registry},
};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct AnswerLabel {
    provider: ProviderLabel,
    outcome: Outcome,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ProviderOnly {
    provider: ProviderLabel,
}

label_values! {
    enum ProviderLabel {
        Basic,
        X509,
        Jwt,
        Http,
        Scram,
    }
}

impl From<Provider> for ProviderLabel {
    fn from(provider: Provider) -> Self {
        match provider {
            Provider::Basic => Self::Basic,
            Provider::X509 => Self::X509,
            Provider::Jwt => Self::Jwt,
            Provider::Http => Self::Http,
            Provider::Scram => Self::Scram,
        }
    }
}

label_values! {
    enum Outcome {
        Success,
        Skipped,
        Failure,
    }
}

/// Why a CONNECT was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct RefusedLabel {
    reason: Refused,
}

label_values! {
    pub(crate) enum Refused {
        /// No provider has let it in.
        NotAuthorized,
        Blocked,
        /// Of an unknown authentication method, or one that it did not keep to.
        Method,
        /// Too many passwords wait to be hashed.
        QueueFull,
        /// Too many passwords from the same address do.
        AddressQueueFull,
    }
}

/// What became of a question to the HTTP service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct CallLabel {
    outcome: Call,
}

label_values! {
    pub(crate) enum Call {
        Answered,
        Failed,
        TimedOut,
        TooLong,
        /// The service has failed again and again, and is left alone.
        Resting,
        /// Too many clients wait for it, or too many of one address.
        Full,
        /// What the client says can't be put into a request.
        Unsent,
    }
}

/// Which records.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct RecordLabel {
    pub(crate) topic: Topic,
}

label_values! {
    pub(crate) enum Topic {
        Credentials,
        Settings,
        Blocked,
    }
}

/// The metrics of who may connect.
#[derive(Clone, Debug, Default)]
pub(crate) struct Metrics {
    answers: Family<AnswerLabel, Counter>,
    refused: Family<RefusedLabel, Counter>,
    pub(crate) credentials: Gauge,
    pub(crate) blocked: Gauge,
    bad_records: Family<RecordLabel, Counter>,
    unusable: Family<ProviderOnly, Gauge>,
    pub(crate) hash_queue: Gauge,
    pub(crate) hashes: Counter,
    calls: Family<CallLabel, Counter>,
    pub(crate) key_set_failures: Counter,
    pub(crate) judged_again: Counter,
    pub(crate) ended: Counter,
    pub(crate) unauthorized_dropped: Counter,
    pub(crate) degraded: Gauge,
}

impl Metrics {
    /// Registers all of them.
    pub(crate) fn register(&self, registry: &mut Registry) {
        registry.family(
            "tbmq_auth_answers",
            "Answers of providers",
            vec![Label::closed("provider", ProviderLabel::NAMES), Label::closed("outcome", Outcome::NAMES)],
            self.answers.clone(),
        );
        registry.family(
            "tbmq_auth_refused",
            "Clients that were refused",
            vec![Label::closed("reason", Refused::NAMES)],
            self.refused.clone(),
        );
        registry.register("tbmq_auth_credentials", "Credentials known", self.credentials.clone());
        registry.register("tbmq_auth_blocked", "Blocks known, expired ones included", self.blocked.clone());
        registry.family(
            "tbmq_auth_bad_records",
            "Records of who may connect that can't be used",
            vec![Label::closed("topic", Topic::NAMES)],
            self.bad_records.clone(),
        );
        registry.family("tbmq_auth_unusable_providers", "1 while the settings of a provider can't be used here: for a key of secrets that is missing, or another \
             reason that the log tells", vec![Label::closed("provider", ProviderLabel::NAMES)], self.unusable.clone());
        registry.register(
            "tbmq_auth_hash_queue",
            "Passwords that wait to be hashed",
            self.hash_queue.clone(),
        );
        registry.register("tbmq_auth_hashes", "Passwords that were hashed", self.hashes.clone());
        registry.family(
            "tbmq_auth_http_calls",
            "Questions to the HTTP service that knows clients",
            vec![Label::closed("outcome", Call::NAMES)],
            self.calls.clone(),
        );
        registry.register(
            "tbmq_auth_key_set_failures",
            "Key sets of JWTs that could not be read",
            self.key_set_failures.clone(),
        );
        registry.register(
            "tbmq_auth_judged_again",
            "Connected clients that were given other rights because their credential or provider changed",
            self.judged_again.clone(),
        );
        registry.register(
            "tbmq_auth_ended",
            "Connected clients that were disconnected: they were blocked, or would not be let in any more by what they came by",
            self.ended.clone(),
        );
        registry.register(
            "tbmq_auth_unauthorized_dropped",
            "Refusals that are not told of, because there were too many or the bus did not take them",
            self.unauthorized_dropped.clone(),
        );
        registry.register(
            "tbmq_auth_degraded",
            "1 while it is not confirmed that credentials, settings and blocks are up to date",
            self.degraded.clone(),
        );
    }

    pub(crate) fn answered<T>(&self, provider: Provider, answer: &Answer<T>) {
        let provider = ProviderLabel::from(provider);
        let outcome = match answer {
            Answer::Success(_) => Outcome::Success,
            Answer::Skipped(_) => Outcome::Skipped,
            Answer::Failure(_) => Outcome::Failure,
        };
        self.answers.get_or_create(&AnswerLabel { provider, outcome }).inc();
    }

    /// Notes of which providers the settings can't be used.
    pub(crate) fn unusable(&self, is_unusable: impl Fn(Provider) -> bool) {
        for provider in Provider::ALL {
            let label = ProviderOnly { provider: provider.into() };
            self.unusable.get_or_create(&label).set(is_unusable(provider).into());
        }
    }

    pub(crate) fn called(&self, outcome: Call) {
        self.calls.get_or_create(&CallLabel { outcome }).inc();
    }

    pub(crate) fn refused(&self, reason: Refused) {
        self.refused.get_or_create(&RefusedLabel { reason }).inc();
    }

    pub(crate) fn bad_record(&self, topic: Topic) {
        self.bad_records.get_or_create(&RecordLabel { topic }).inc();
    }
}
