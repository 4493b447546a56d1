//! What is shown to control planes, and whom to trust there. Files are read for each session, so that new certificates
//! and tokens count without a restart.

use std::path::Path;

use anyhow::Context as _;
use tonic::{
    Request,
    metadata::MetadataValue,
    transport::{Certificate, ClientTlsConfig, Endpoint, Identity},
};

use crate::config::ControlGrpcConfig;

/// How control planes are called.
#[derive(Clone, Debug)]
pub(crate) struct ControlAccess(ControlGrpcConfig);

impl ControlAccess {
    /// Reads everything once, so that what can't be used is told at the start.
    pub(crate) fn open(config: &ControlGrpcConfig) -> anyhow::Result<Self> {
        let access = Self(config.clone());
        access.tls()?;
        access.signed(())?;
        Ok(access)
    }

    /// The endpoint with TLS, if its scheme asks for it.
    pub(crate) fn endpoint(&self, plain: &Endpoint) -> anyhow::Result<Endpoint> {
        if plain.uri().scheme_str() == Some("https") {
            return Ok(plain.clone().tls_config(self.tls()?)?);
        }
        Ok(plain.clone())
    }

    /// A request that shows who we are.
    pub(crate) fn signed<T>(&self, message: T) -> anyhow::Result<Request<T>> {
        let token = match &self.0.token_file {
            Some(path) => read(path, "CONTROL_GRPC_TOKEN_FILE")?,
            None => self.0.token.expose().to_owned(),
        };
        let mut request = Request::new(message);
        if !token.trim().is_empty() {
            let mut value: MetadataValue<_> = format!("Bearer {}", token.trim())
                .parse()
                .map_err(|_| anyhow::anyhow!("CONTROL_GRPC_TOKEN holds characters that no token has"))?;
            value.set_sensitive(true);
            request.metadata_mut().insert("authorization", value);
        }
        Ok(request)
    }

    fn tls(&self) -> anyhow::Result<ClientTlsConfig> {
        let ControlGrpcConfig { ca_file, cert_file, key_file, .. } = &self.0;
        let mut tls = match ca_file {
            Some(path) => ClientTlsConfig::new()
                .ca_certificate(Certificate::from_pem(read(path, "CONTROL_GRPC_CA_FILE")?)),
            None => ClientTlsConfig::new().with_native_roots(),
        };
        match (cert_file, key_file) {
            (Some(cert), Some(key)) => {
                let chain = read(cert, "CONTROL_GRPC_CERT_FILE")?;
                tls = tls.identity(Identity::from_pem(chain, read(key, "CONTROL_GRPC_KEY_FILE")?));
            }
            (None, None) => {}
            _ => anyhow::bail!(
                "CONTROL_GRPC_CERT_FILE and CONTROL_GRPC_KEY_FILE are set together or not at all"
            ),
        }
        Ok(tls)
    }
}

fn read(path: &Path, setting: &str) -> anyhow::Result<String> {
    std::fs::read_to_string(path).with_context(|| format!("{setting}: can't read {}", path.display()))
}

#[cfg(test)]
mod tests {
    use tbmq_service::config::Secret;

    use super::*;

    #[test]
    fn a_token_is_sent_and_read_anew_from_its_file() {
        let file = std::env::temp_dir().join(format!("tbmq-token-{}", uuid::Uuid::new_v4()));
        std::fs::write(&file, "first\n").unwrap();
        let config = ControlGrpcConfig { token_file: Some(file.clone()), ..ControlGrpcConfig::default() };
        let access = ControlAccess::open(&config).unwrap();
        let sent = || {
            let request = access.signed(()).unwrap();
            request.metadata().get("authorization").unwrap().to_str().unwrap().to_owned()
        };
        assert_eq!(sent(), "Bearer first");
        std::fs::write(&file, "second").unwrap();
        assert_eq!(sent(), "Bearer second");
        std::fs::remove_file(&file).unwrap();
        assert!(access.signed(()).is_err());
        let nothing = ControlAccess::open(&ControlGrpcConfig::default()).unwrap().signed(()).unwrap();
        assert!(nothing.metadata().get("authorization").is_none());
    }

    #[test]
    fn what_can_not_be_used_is_told_with_its_setting_and_without_the_token() {
        let told = |config: ControlGrpcConfig| format!("{:#}", ControlAccess::open(&config).unwrap_err());
        let config = ControlGrpcConfig { ca_file: Some("/nowhere".into()), ..ControlGrpcConfig::default() };
        assert!(told(config).contains("CONTROL_GRPC_CA_FILE"));
        let config = ControlGrpcConfig { cert_file: Some("/nowhere".into()), ..ControlGrpcConfig::default() };
        assert!(told(config).contains("CONTROL_GRPC_KEY_FILE"));
        let config =
            ControlGrpcConfig { token: Secret::new("secret\n\u{1}"), ..ControlGrpcConfig::default() };
        let text = told(config);
        assert!(text.contains("CONTROL_GRPC_TOKEN") && !text.contains("secret"), "{text}");
    }
}
