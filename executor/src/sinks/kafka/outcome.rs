//! What an error of Kafka means for a message.

use std::time::Duration;

use rdkafka::error::RDKafkaErrorCode as Code;

use crate::sink::Outcome;

/// How long a message waits whose topic is missing: creating one takes a person.
const TOPIC_PAUSE: Duration = Duration::from_secs(1);

/// A word for metrics, and whether it is about the message or about the circumstances.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Class {
    /// No answer in time.
    Timeout,
    /// No connection.
    Connect,
    /// Credentials or certificates.
    Authentication,
    /// What the principal may do.
    Authorization,
    /// The topic is missing.
    Topic,
    /// The brokers' side, for now.
    Broker,
    /// The message or the configuration can never be accepted.
    Rejected(&'static str),
}

impl Class {
    pub(super) fn of(code: Code) -> Self {
        match code {
            Code::MessageTimedOut | Code::RequestTimedOut | Code::OperationTimedOut | Code::TimedOutQueue => {
                Self::Timeout
            }
            Code::BrokerTransportFailure
            | Code::AllBrokersDown
            | Code::Resolve
            | Code::NetworkException
            | Code::BrokerDestroy
            | Code::DestroyBroker
            | Code::PurgeQueue
            | Code::PurgeInflight => Self::Connect,
            Code::Authentication
            | Code::SaslAuthenticationFailed
            | Code::UnsupportedSASLMechanism
            | Code::IllegalSASLState
            | Code::SSL => Self::Authentication,
            // Rights may be granted later, as for HTTP's 401 and 403.
            Code::TopicAuthorizationFailed
            | Code::ClusterAuthorizationFailed
            | Code::TransactionalIdAuthorizationFailed => Self::Authorization,
            Code::UnknownTopic
            | Code::UnknownTopicOrPartition
            | Code::UnknownPartition
            | Code::UnknownTopicId => Self::Topic,
            Code::MessageSizeTooLarge
            | Code::MessageBatchTooLarge
            | Code::InvalidMessageSize
            | Code::InvalidRecord
            | Code::InvalidTimestamp
            | Code::BadMessage => Self::Rejected("payload"),
            Code::InvalidTopic => Self::Rejected("topic"),
            Code::PolicyViolation
            | Code::InvalidRequiredAcks
            | Code::UnsupportedCompressionType
            | Code::UnsupportedForMessageFormat
            | Code::InvalidArgument => Self::Rejected("configuration"),
            // A wrong checksum among them: it may have been spoiled on its way.
            _ => Self::Broker,
        }
    }

    /// Whether it may mean that no broker is there any more.
    pub(super) fn is_suspicious(self) -> bool {
        matches!(self, Self::Timeout | Self::Connect | Self::Authentication)
    }

    pub(super) fn outcome(self, text: String) -> Outcome {
        let (after, class) = match self {
            Self::Timeout => (None, "timeout"),
            Self::Connect => (None, "connect"),
            Self::Authentication => (None, "authentication"),
            Self::Authorization => (None, "authorization"),
            Self::Topic => (Some(TOPIC_PAUSE), "topic"),
            Self::Broker => (None, "broker"),
            Self::Rejected(class) => return Outcome::Rejected { class, text },
        };
        Outcome::Retry { after, class, text }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_can_never_succeed_is_rejected() {
        for (code, class) in [
            (Code::MessageTimedOut, Class::Timeout),
            (Code::BrokerTransportFailure, Class::Connect),
            (Code::Authentication, Class::Authentication),
            (Code::TopicAuthorizationFailed, Class::Authorization),
            (Code::UnknownTopicOrPartition, Class::Topic),
            (Code::UnknownTopic, Class::Topic),
            (Code::NotEnoughReplicas, Class::Broker),
            (Code::NotLeaderForPartition, Class::Broker),
            (Code::InvalidMessage, Class::Broker),
            (Code::MessageSizeTooLarge, Class::Rejected("payload")),
            (Code::InvalidTopic, Class::Rejected("topic")),
            (Code::UnsupportedCompressionType, Class::Rejected("configuration")),
        ] {
            assert_eq!(Class::of(code), class, "{code:?}");
            let is_rejected = matches!(class.outcome(String::new()), Outcome::Rejected { .. });
            assert_eq!(is_rejected, matches!(class, Class::Rejected(_)), "{code:?}");
        }
    }
}
