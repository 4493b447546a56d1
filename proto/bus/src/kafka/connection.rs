//! A connection to a broker beside those of librdkafka, for what it can't ask; it is made as the properties for librdkafka
//! say.

mod login;
mod tls;

use std::sync::Arc;

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use kafka_protocol::{
    messages::{RequestHeader, ResponseHeader},
    protocol::{Decodable as _, Encodable as _, HeaderVersion as _, Request, StrBytes},
};
use rustls::{ClientConfig, pki_types::ServerName};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::TcpStream,
};
use tokio_rustls::TlsConnector;

use self::login::Login;
use super::KafkaConfig;

/// Bytes of an answer, at most: sizes of about a million partitions.
const ANSWER_BYTES_MAX: usize = 64 << 20;

/// How brokers are reached: what `security.protocol` and the properties beside it say.
#[derive(Debug)]
pub(super) struct Security {
    tls: Option<Arc<ClientConfig>>,
    login: Option<Login>,
}

impl Security {
    /// As it is configured. Reads files.
    ///
    /// # Errors
    /// For people: a property, or a value of one, that librdkafka may know and this does not, or a file that can't be read.
    pub(super) fn new(config: &KafkaConfig) -> Result<Self, String> {
        let protocol = config.property(&["security.protocol"]).unwrap_or("plaintext").to_ascii_lowercase();
        let (has_login, has_tls) = match protocol.as_str() {
            "plaintext" => (false, false),
            "ssl" => (false, true),
            "sasl_plaintext" => (true, false),
            "sasl_ssl" => (true, true),
            other => return Err(format!("security.protocol {other} is not known")),
        };
        let tls = has_tls.then(|| tls::config(config)).transpose()?;
        Ok(Self { tls: tls.map(Arc::new), login: has_login.then(|| Login::new(config)).transpose()? })
    }

    /// Connects to a broker at `host:port` and logs in. Waits as long as that takes.
    ///
    /// # Errors
    /// For people: the broker is away, it is not trusted, or it refuses the login.
    pub(super) async fn connect(&self, address: &str) -> Result<Connection, String> {
        let (host, port) = address
            .rsplit_once(':')
            .and_then(|(host, port)| Some((host, port.parse::<u16>().ok()?)))
            .ok_or_else(|| format!("{address} is not host:port"))?;
        let stream = TcpStream::connect((host, port)).await.map_err(|error| error.to_string())?;
        let stream: Box<dyn Stream> = match &self.tls {
            None => Box::new(stream),
            Some(tls) => {
                let name = ServerName::try_from(host.to_owned()).map_err(|error| error.to_string())?;
                let connector = TlsConnector::from(Arc::clone(tls));
                Box::new(connector.connect(name, stream).await.map_err(|error| format!("TLS: {error}"))?)
            }
        };
        let mut connection = Connection { stream, asked: 0 };
        if let Some(login) = &self.login {
            login.perform(&mut connection).await?;
        }
        Ok(connection)
    }
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// A connection that one question after the other is asked on.
pub(super) struct Connection {
    stream: Box<dyn Stream>,
    asked: i32,
}

impl Connection {
    /// Asks in this version of the protocol, and waits for the answer.
    ///
    /// # Errors
    /// For people: the connection ended, or the answer can't be read. The connection is of no use then.
    pub(super) async fn ask<Q: Request>(&mut self, version: i16, request: &Q) -> Result<Q::Response, String> {
        self.asked += 1;
        let request = encode(self.asked, version, request)?;
        self.stream.write_all(&request).await.map_err(|error| error.to_string())?;
        // TLS may hold back what is not flushed.
        self.stream.flush().await.map_err(|error| error.to_string())?;
        let length = self.stream.read_u32().await.map_err(|error| error.to_string())? as usize;
        if length > ANSWER_BYTES_MAX {
            return Err(format!("an answer of {length} bytes"));
        }
        let mut answer = vec![0; length];
        self.stream.read_exact(&mut answer).await.map_err(|error| error.to_string())?;
        decode::<Q>(self.asked, version, Bytes::from(answer))
    }
}

/// The request with its header, and its length before it.
fn encode<Q: Request>(number: i32, version: i16, request: &Q) -> Result<BytesMut, String> {
    let header = RequestHeader::default()
        .with_request_api_key(Q::KEY)
        .with_request_api_version(version)
        .with_correlation_id(number)
        .with_client_id(Some(StrBytes::from_static_str("tbmq-admin")));
    let mut body = BytesMut::new();
    header
        .encode(&mut body, Q::header_version(version))
        .and_then(|()| request.encode(&mut body, version))
        .map_err(|error| error.to_string())?;
    let mut framed = BytesMut::with_capacity(body.len() + 4);
    framed.put_u32(body.len() as u32);
    framed.extend_from_slice(&body);
    Ok(framed)
}

fn decode<Q: Request>(number: i32, version: i16, mut answer: Bytes) -> Result<Q::Response, String> {
    let header = ResponseHeader::decode(&mut answer, Q::Response::header_version(version))
        .map_err(|error| error.to_string())?;
    if header.correlation_id != number {
        return Err(format!("an answer to request {} instead of {number}", header.correlation_id));
    }
    let found = Q::Response::decode(&mut answer, version).map_err(|error| error.to_string())?;
    if answer.has_remaining() {
        return Err("an answer that is longer than it should be".to_owned());
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use tbmq_harness::{Need, kafka::SecuredKafka, ready};

    use super::*;

    #[test]
    fn what_only_librdkafka_can_do_is_told() {
        let login = ("security.protocol", "SASL_PLAINTEXT");
        for (properties, expected) in [
            (vec![("security.protocol", "SSH")], "security.protocol ssh is not known"),
            (vec![login], "sasl.mechanisms GSSAPI is none of PLAIN"),
            (vec![login, ("sasl.mechanism", "OAUTHBEARER")], "sasl.mechanisms OAUTHBEARER is none of"),
            (vec![login, ("sasl.mechanism", "PLAIN")], "sasl.username is missing"),
            (vec![login, ("sasl.mechanisms", "PLAIN"), ("sasl.username", "u")], "sasl.password is missing"),
        ] {
            let error = Security::new(&KafkaConfig::with(&properties)).unwrap_err();
            assert!(error.starts_with(expected), "{error}");
        }
    }

    #[tokio::test]
    async fn a_login_and_a_server_that_are_not_good_are_told_without_the_password() {
        if !ready("connections to brokers", &[Need::Kafka]) {
            return;
        }
        let server = tokio::task::spawn_blocking(SecuredKafka::shared).await.unwrap();
        let fails = async |address: &str, properties: &[(&str, &str)]| {
            let security = Security::new(&KafkaConfig::with(properties)).unwrap();
            assert!(!format!("{security:?}").contains("hunter2"));
            let error = match security.connect(address).await {
                // With TLS 1.3 a server looks at the client's certificate when the client thinks that it is connected.
                Ok(mut connection) => {
                    let request = kafka_protocol::messages::ApiVersionsRequest::default();
                    connection.ask(0, &request).await.map(drop).unwrap_err()
                }
                Err(error) => error,
            };
            assert!(!error.contains("hunter2"), "{error}");
            error
        };
        let user = [("sasl.username", SecuredKafka::USER), ("sasl.password", "hunter2")];
        for mechanism in ["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] {
            let how = [("security.protocol", "SASL_PLAINTEXT"), ("sasl.mechanisms", mechanism)];
            let error = fails(&server.login, &[&user[..], &how].concat()).await;
            assert!(error.contains(mechanism) && error.contains("Authentication failed"), "{error}");
        }
        let error =
            fails(&server.tls, &[("security.protocol", "SSL"), ("ssl.ca.pem", &server.certificate)]).await;
        assert!(error.starts_with("TLS: invalid peer certificate"), "{error}");
        // It has no certificate of its own. Whether the server's alert or its end is seen first is up to the network.
        fails(&server.tls, &[("security.protocol", "SSL"), ("ssl.ca.pem", &server.authority)]).await;
    }
}
