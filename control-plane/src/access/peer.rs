//! Control planes among themselves: short-lived tokens of a key that all replicas share.

use std::{path::PathBuf, time::Duration};

use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use serde::{Deserialize, Serialize};
use tonic::{
    Request,
    metadata::MetadataValue,
    transport::{Certificate, ClientTlsConfig, Endpoint, Identity},
};

use super::{config::TlsConfig, file, token};
use crate::{
    config::ControlConfig,
    store::{self, Store},
};

/// Name of the key in the store, and its id in tokens.
const KEY: &str = "peer";

const AUDIENCE: &str = "tbmq-control-plane";

/// How long a token is good.
const GOOD_FOR: Duration = Duration::from_secs(60);

/// How the control planes of a deployment call each other.
pub(crate) struct Peers {
    service_id: String,
    key: String,
    tls: TlsConfig,
    ca_file: Option<PathBuf>,
}

/// What the token of a peer says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Peer {
    pub(crate) service_id: String,
    pub(crate) expires_ms: i64,
}

#[derive(Serialize, Deserialize)]
struct Claims {
    sub: String,
    aud: String,
    exp: i64,
}

impl std::fmt::Debug for Peers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Peers").field("service_id", &self.service_id).finish_non_exhaustive()
    }
}

impl Peers {
    /// Reads the key from the store, or makes it.
    pub(crate) async fn open(
        control: &ControlConfig,
        service_id: &str,
        store: &Store,
    ) -> Result<Self, store::Error> {
        Ok(Self {
            service_id: service_id.to_owned(),
            key: store.shared_key(KEY, &token::random()).await?,
            tls: control.grpc.tls.clone(),
            ca_file: control.grpc.ca_file.clone(),
        })
    }

    /// A token of the role NODE, good for a minute.
    pub(crate) fn token(&self) -> String {
        self.token_at(tbmq_service::time::now_ms())
    }

    fn token_at(&self, now_ms: i64) -> String {
        let exp = now_ms / 1_000 + GOOD_FOR.as_secs() as i64;
        let claims = Claims { sub: self.service_id.clone(), aud: AUDIENCE.to_owned(), exp };
        let header = Header { kid: Some(KEY.to_owned()), ..Header::new(Algorithm::HS256) };
        let key = EncodingKey::from_secret(self.key.as_bytes());
        jsonwebtoken::encode(&header, &claims, &key).expect("a secret signs plain claims")
    }

    /// Shows another control plane who calls.
    pub(crate) fn sign<T>(&self, request: &mut Request<T>) {
        let mut value: MetadataValue<_> =
            format!("Bearer {}", self.token()).parse().expect("a token is plain text");
        value.set_sensitive(true);
        request.metadata_mut().insert("authorization", value);
    }

    /// What the token of a peer says; `None`: it is none, or it is not good.
    pub(crate) fn read(&self, token: &str) -> Option<Peer> {
        let header = jsonwebtoken::decode_header(token).ok()?;
        if header.kid.as_deref() != Some(KEY) {
            return None;
        }
        let mut validation = Validation::new(Algorithm::HS256);
        validation.set_audience(&[AUDIENCE]);
        validation.set_required_spec_claims(&["exp", "aud"]);
        let key = DecodingKey::from_secret(self.key.as_bytes());
        let claims = jsonwebtoken::decode::<Claims>(token, &key, &validation).ok()?.claims;
        Some(Peer { service_id: claims.sub, expires_ms: claims.exp.saturating_mul(1_000) })
    }

    /// The endpoint of another control plane, such as `https://10.0.0.2:9090`: by TLS with this one's certificate, if it
    /// has one, trusting CONTROL_GRPC_CA_FILE or what the system trusts. Reads the files, so that new ones count from the
    /// next connection on.
    ///
    /// # Errors
    /// A text that says what can't be read, or is no address.
    pub(crate) fn endpoint(&self, url: &str) -> Result<Endpoint, String> {
        let endpoint = Endpoint::from_shared(url.to_owned())
            .map_err(|error| format!("{url:?} is no address: {error}"))?;
        if endpoint.uri().scheme_str() != Some("https") {
            return Ok(endpoint);
        }
        let mut client = ClientTlsConfig::new();
        if let (Some(cert), Some(key)) = (&self.tls.pem_cert, &self.tls.pem_key) {
            let chain = file::text(cert, "CONTROL_GRPC_TLS_PEM_CERT")?;
            let key = file::text(key, "CONTROL_GRPC_TLS_PEM_KEY")?;
            client = client.identity(Identity::from_pem(chain, key));
        }
        client = match &self.ca_file {
            Some(path) => {
                client.ca_certificate(Certificate::from_pem(file::text(path, "CONTROL_GRPC_CA_FILE")?))
            }
            None => client.with_native_roots(),
        };
        endpoint.tls_config(client).map_err(|error| error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Options;

    #[tokio::test]
    async fn replicas_of_one_store_know_each_other_and_nobody_else() {
        let folder = tempfile::tempdir().unwrap();
        let open = async |name: &str, id: &str| {
            let store = Store::open(&Options::sqlite(&folder.path().join(name))).await.unwrap();
            Peers::open(&ControlConfig::default(), id, &store).await.unwrap()
        };
        let (first, second) = (open("a.db", "cp1").await, open("a.db", "cp2").await);
        let peer = second.read(&first.token()).unwrap();
        assert_eq!(peer.service_id, "cp1");
        assert_eq!(open("b.db", "cp3").await.read(&first.token()), None);
        let long_ago_ms = tbmq_service::time::now_ms() - 10 * 60_000;
        assert_eq!(second.read(&first.token_at(long_ago_ms)), None, "it has expired");
        assert_eq!(second.read("tbmq_x"), None);

        let mut request = Request::new(());
        first.sign(&mut request);
        let sent = request.metadata().get("authorization").unwrap().to_str().unwrap();
        assert!(second.read(sent.strip_prefix("Bearer ").unwrap()).is_some());
        assert!(!format!("{first:?}").contains(&first.key));
    }

    #[tokio::test]
    async fn a_peer_is_called_as_this_one_is() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&Options::sqlite(&folder.path().join("a.db"))).await.unwrap();
        let mut peers = Peers::open(&ControlConfig::default(), "cp1", &store).await.unwrap();
        assert!(peers.endpoint("http://h:1").is_ok());
        assert!(peers.endpoint("").is_err());
        peers.tls.pem_cert = Some(folder.path().join("missing"));
        peers.tls.pem_key = peers.tls.pem_cert.clone();
        assert!(peers.endpoint("https://h:1").unwrap_err().contains("CONTROL_GRPC_TLS_PEM_CERT"));
    }
}
