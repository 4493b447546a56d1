//! A login: SASL with PLAIN, SCRAM-SHA-256 or SCRAM-SHA-512, in Kafka's requests (KIP-43, KIP-152).

use std::{fmt, sync::Arc};

use bytes::Bytes;
use kafka_protocol::{
    messages::{SaslAuthenticateRequest, SaslHandshakeRequest},
    protocol::StrBytes,
};
use rsasl::{
    config::SASLConfig,
    mechname::Mechname,
    prelude::{SASLClient, State},
};

use super::{super::KafkaConfig, Connection};

/// What this can do of what librdkafka can.
const MECHANISMS: [&str; 3] = ["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"];

/// Since Kafka 1.0: tokens come in requests.
const HANDSHAKE_VERSION: i16 = 1;
const AUTHENTICATE_VERSION: i16 = 0;

/// Who logs in, and how.
pub(super) struct Login {
    mechanism: &'static str,
    credentials: Arc<SASLConfig>,
}

impl Login {
    /// As it is configured.
    ///
    /// # Errors
    /// For people: the mechanism is none of the three, or no password can be made of what is configured.
    pub(super) fn new(config: &KafkaConfig) -> Result<Self, String> {
        // librdkafka has both names for it, and this default.
        let wanted = config.property(&["sasl.mechanisms", "sasl.mechanism"]).unwrap_or("GSSAPI");
        let mechanism = MECHANISMS
            .into_iter()
            .find(|known| *known == wanted)
            .ok_or_else(|| format!("sasl.mechanisms {wanted} is none of {}", MECHANISMS.join(", ")))?;
        let [username, password] = ["sasl.username", "sasl.password"].map(|name| {
            config.property(&[name]).map(str::to_owned).ok_or_else(|| format!("{name} is missing"))
        });
        let credentials = SASLConfig::with_credentials(None, username?, password?)
            .map_err(|error| format!("sasl.username and sasl.password: {error}"))?;
        Ok(Self { mechanism, credentials })
    }

    /// Logs in on a new connection, and makes sure that a server that is asked for SCRAM knows the password too.
    ///
    /// # Errors
    /// For people.
    pub(super) async fn perform(&self, connection: &mut Connection) -> Result<(), String> {
        let handshake =
            SaslHandshakeRequest::default().with_mechanism(StrBytes::from_static_str(self.mechanism));
        let answer = connection.ask(HANDSHAKE_VERSION, &handshake).await?;
        if answer.error_code != 0 {
            let offered: Vec<&str> = answer.mechanisms.iter().map(|name| &**name).collect();
            return Err(format!("{} is not enabled; {} are", self.mechanism, offered.join(", ")));
        }
        let name = Mechname::parse(self.mechanism.as_bytes()).map_err(|error| error.to_string())?;
        let mut session = SASLClient::new(Arc::clone(&self.credentials))
            .start_suggested(&[name])
            .map_err(|error| error.to_string())?;
        let mut token: Option<Bytes> = None;
        loop {
            let mut reply = Vec::new();
            let state = session.step(token.as_deref(), &mut reply).map_err(|error| error.to_string())?;
            let (goes_on, has_sent) = match state {
                State::Running => (true, true),
                State::Finished(sent) => (false, sent == rsasl::prelude::MessageSent::Yes),
            };
            if has_sent {
                let request = SaslAuthenticateRequest::default().with_auth_bytes(Bytes::from(reply));
                let answer = connection.ask(AUTHENTICATE_VERSION, &request).await?;
                if answer.error_code != 0 {
                    let text = answer.error_message.as_deref().unwrap_or("the login is refused");
                    return Err(format!("{}: {text}", self.mechanism));
                }
                token = Some(answer.auth_bytes);
            }
            if !goes_on {
                return Ok(());
            }
        }
    }
}

impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Login").field("mechanism", &self.mechanism).finish_non_exhaustive()
    }
}
