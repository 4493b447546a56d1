//! The way to a control plane.

use std::{fmt, net::IpAddr, path::Path, time::Duration};

use tbmq_proto::control::{
    Integration, IntegrationView, ListIntegrationsRequest, audit_service_client::AuditServiceClient,
    auth_provider_service_client::AuthProviderServiceClient,
    blocked_client_service_client::BlockedClientServiceClient,
    credentials_service_client::CredentialsServiceClient, event_service_client::EventServiceClient,
    integration_service_client::IntegrationServiceClient, kafka_service_client::KafkaServiceClient,
    node_service_client::NodeServiceClient, retained_message_service_client::RetainedMessageServiceClient,
    session_service_client::SessionServiceClient, token_service_client::TokenServiceClient,
    unauthorized_client_service_client::UnauthorizedClientServiceClient,
};
use tonic::{
    Request,
    metadata::{Ascii, MetadataValue},
    transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity},
};
use url::{Host, Url};
use uuid::Uuid;

use crate::{
    context::{Settings, Token, TokenSource},
    failure::{Failure, UNREACHABLE_HINT},
    render::note,
};

/// Longest wait for a connection.
const CONNECT_MAX: Duration = Duration::from_secs(5);

/// A page of integrations may hold large configurations.
const ANSWER_BYTES_MAX: usize = 64 << 20;

/// Things asked for in one call.
const PAGE_SIZE: i32 = 100;

/// Which server, as whom, and how long to wait for it.
#[derive(Clone)]
pub(crate) struct Target {
    pub(crate) server: String,
    pub(crate) timeout: Duration,
    /// The value of the header `authorization`.
    authorization: Option<MetadataValue<Ascii>>,
    /// The trace that the caller is part of, by the header that tells it.
    trace: Vec<(&'static str, MetadataValue<Ascii>)>,
    tls: Option<ClientTlsConfig>,
}

impl fmt::Debug for Target {
    // What TLS works with includes a private key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Target").field("server", &self.server).finish_non_exhaustive()
    }
}

impl TryFrom<&Settings> for Target {
    type Error = Failure;

    /// Reads the files that are named, and refuses what would tell a secret to others.
    fn try_from(settings: &Settings) -> Result<Self, Failure> {
        let server = &settings.server;
        let hint = "an address is http://HOST:PORT or https://HOST:PORT";
        let url = Url::parse(server).map_err(|error| {
            Failure::usage(format!("{server:?} is not an address of a server: {error}")).hint(hint)
        })?;
        let is_secure = match url.scheme() {
            "https" => true,
            "http" => false,
            _ => return Err(Failure::usage(format!("{server:?} is not an address of a server")).hint(hint)),
        };
        if !url.username().is_empty() || url.password().is_some() {
            return Err(Failure::usage("an address of a server does not hold a user or a password")
                .hint("--token-file or TBMQCTL_TOKEN says who calls"));
        }
        let authorization = match &settings.token {
            Some(source) => Some(authorization(source)?),
            None => None,
        };
        if authorization.is_some() && !is_secure && !settings.plaintext_token && !is_this_machine(&url) {
            return Err(Failure::usage(format!("everybody on the way to {server} could read the token"))
                .hint("use https://, or --plaintext-token where the way is trusted"));
        }
        let tls = if is_secure {
            Some(tls(settings)?)
        } else if settings.ca_file.is_some() || settings.cert_file.is_some() || settings.key_file.is_some() {
            return Err(Failure::usage(format!("certificates need https://, and the server is {server}")));
        } else {
            None
        };
        let trace = trace(|name| std::env::var(name).ok());
        Ok(Self { server: server.clone(), timeout: settings.timeout, authorization, trace, tls })
    }
}

/// The trace that is told by `TRACEPARENT` and `TRACESTATE`, as CI systems and wrappers do. What makes no sense is the
/// server's to leave out.
fn trace(variable: impl Fn(&str) -> Option<String>) -> Vec<(&'static str, MetadataValue<Ascii>)> {
    let known = [("TRACEPARENT", "traceparent"), ("TRACESTATE", "tracestate")];
    let told = known.into_iter().map_while(|(variable_name, header)| {
        let value = variable(variable_name)?.trim().parse().ok()?;
        Some((header, value))
    });
    told.collect()
}

impl Target {
    /// A request with the caller's token and the deadline, which the server learns as well.
    pub(crate) fn request<T>(&self, message: T) -> Request<T> {
        let mut request = self.endless_request(message);
        request.set_timeout(self.timeout);
        request
    }

    /// A request with the caller's token and without a deadline, which would be that of a whole stream.
    pub(crate) fn endless_request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        if let Some(authorization) = &self.authorization {
            request.metadata_mut().insert("authorization", authorization.clone());
        }
        for (name, value) in &self.trace {
            request.metadata_mut().insert(*name, value.clone());
        }
        request
    }

    pub(crate) async fn integrations(&self) -> Result<IntegrationServiceClient<Channel>, Failure> {
        Ok(IntegrationServiceClient::new(self.connect().await?).max_decoding_message_size(ANSWER_BYTES_MAX))
    }

    pub(crate) async fn events(&self) -> Result<EventServiceClient<Channel>, Failure> {
        Ok(EventServiceClient::new(self.connect().await?).max_decoding_message_size(ANSWER_BYTES_MAX))
    }

    pub(crate) async fn nodes(&self) -> Result<NodeServiceClient<Channel>, Failure> {
        Ok(NodeServiceClient::new(self.connect().await?).max_decoding_message_size(ANSWER_BYTES_MAX))
    }

    pub(crate) async fn sessions(&self) -> Result<SessionServiceClient<Channel>, Failure> {
        Ok(SessionServiceClient::new(self.connect().await?).max_decoding_message_size(ANSWER_BYTES_MAX))
    }

    pub(crate) async fn retained(&self) -> Result<RetainedMessageServiceClient<Channel>, Failure> {
        let client = RetainedMessageServiceClient::new(self.connect().await?);
        Ok(client.max_decoding_message_size(ANSWER_BYTES_MAX))
    }

    pub(crate) async fn kafka(&self) -> Result<KafkaServiceClient<Channel>, Failure> {
        Ok(KafkaServiceClient::new(self.connect().await?).max_decoding_message_size(ANSWER_BYTES_MAX))
    }

    pub(crate) async fn tokens(&self) -> Result<TokenServiceClient<Channel>, Failure> {
        Ok(TokenServiceClient::new(self.connect().await?).max_decoding_message_size(ANSWER_BYTES_MAX))
    }

    pub(crate) async fn audit(&self) -> Result<AuditServiceClient<Channel>, Failure> {
        Ok(AuditServiceClient::new(self.connect().await?).max_decoding_message_size(ANSWER_BYTES_MAX))
    }

    pub(crate) async fn credentials(&self) -> Result<CredentialsServiceClient<Channel>, Failure> {
        Ok(CredentialsServiceClient::new(self.connect().await?).max_decoding_message_size(ANSWER_BYTES_MAX))
    }

    pub(crate) async fn blocked(&self) -> Result<BlockedClientServiceClient<Channel>, Failure> {
        Ok(BlockedClientServiceClient::new(self.connect().await?).max_decoding_message_size(ANSWER_BYTES_MAX))
    }

    pub(crate) async fn unauthorized(&self) -> Result<UnauthorizedClientServiceClient<Channel>, Failure> {
        let client = UnauthorizedClientServiceClient::new(self.connect().await?);
        Ok(client.max_decoding_message_size(ANSWER_BYTES_MAX))
    }

    pub(crate) async fn providers(&self) -> Result<AuthProviderServiceClient<Channel>, Failure> {
        Ok(AuthProviderServiceClient::new(self.connect().await?).max_decoding_message_size(ANSWER_BYTES_MAX))
    }

    async fn connect(&self) -> Result<Channel, Failure> {
        let mut endpoint = Endpoint::from_shared(self.server.clone())
            .map_err(|error| {
                Failure::usage(format!("{:?} is not an address of a server: {error}", self.server))
            })?
            .user_agent(concat!("tbmqctl/", env!("CARGO_PKG_VERSION")))
            .map_err(|error| Failure::bug(error.to_string()))?
            .connect_timeout(CONNECT_MAX.min(self.timeout));
        if let Some(tls) = &self.tls {
            endpoint = endpoint.tls_config(tls.clone()).map_err(|error| {
                Failure::usage(format!("the certificates or the key are not usable: {}", root_cause(&error)))
                    .hint("certificates and keys are read as PEM")
            })?;
        }
        endpoint.connect().await.map_err(|error| {
            let cause = root_cause(&error);
            let hint = if cause.contains("UnknownIssuer") {
                "--ca-file names the authority that the server's certificate comes from"
            } else if cause.contains("InvalidContentType") {
                "the server does not speak TLS there: its address begins with http://"
            } else {
                UNREACHABLE_HINT
            };
            Failure::unreachable(format!("can't reach {}: {cause}", self.server)).hint(hint)
        })
    }

    /// The resource name of an integration that is given by uid, resource name or display name.
    pub(crate) async fn name_of(
        &self,
        client: &mut IntegrationServiceClient<Channel>,
        given: &str,
    ) -> Result<String, Failure> {
        self.find_name(client, given).await?.ok_or_else(|| {
            Failure::refused(format!("there is no integration named {given:?}"))
                .hint("`tbmqctl integration list` shows what exists")
        })
    }

    /// As [`Self::name_of`]; `None` when no integration has such a display name.
    pub(crate) async fn find_name(
        &self,
        client: &mut IntegrationServiceClient<Channel>,
        given: &str,
    ) -> Result<Option<String>, Failure> {
        if given.starts_with("integrations/") {
            return Ok(Some(given.to_owned()));
        }
        if let Ok(uid) = Uuid::parse_str(given) {
            return Ok(Some(format!("integrations/{uid}")));
        }
        let found = self.list(client, given, usize::MAX).await?;
        Ok(found.into_iter().find(|integration| integration.display_name == given).map(|found| found.name))
    }

    /// Integrations whose display name contains a text, page by page.
    pub(crate) async fn list(
        &self,
        client: &mut IntegrationServiceClient<Channel>,
        text_search: &str,
        limit: usize,
    ) -> Result<Vec<Integration>, Failure> {
        let wanted = Wanted { text_search: text_search.to_owned(), ..Wanted::default() };
        Ok(self.list_wanted(client, &wanted, limit).await?.items)
    }

    /// Integrations that are as they are wanted, page by page.
    pub(crate) async fn list_wanted(
        &self,
        client: &mut IntegrationServiceClient<Channel>,
        wanted: &Wanted,
        limit: usize,
    ) -> Result<Listed<Integration>, Failure> {
        pages(limit, async |page_size, page_token| {
            let request = ListIntegrationsRequest {
                page_size,
                page_token,
                text_search: wanted.text_search.clone(),
                filter: wanted.filter.clone(),
                order_by: wanted.order_by.clone(),
                view: wanted.view.into(),
                read_mask: None,
            };
            let page = client.list_integrations(self.request(request)).await?.into_inner();
            Ok((page.integrations, page.next_page_token))
        })
        .await
    }
}

/// Which integrations are to be listed, in which order, and with what; texts as in `ListIntegrationsRequest`.
#[derive(Clone, Debug, Default)]
pub(crate) struct Wanted {
    pub(crate) text_search: String,
    pub(crate) filter: String,
    pub(crate) order_by: String,
    pub(crate) view: IntegrationView,
}

/// What a list gave.
#[derive(Debug)]
pub(crate) struct Listed<T> {
    pub(crate) items: Vec<T>,
    /// There are more.
    pub(crate) more: bool,
}

impl<T> Listed<T> {
    /// Tells on stderr that there are more than these, if so.
    pub(crate) fn note_more(&self) {
        if let Some(text) = self.more_note() {
            note(&text);
        }
    }

    /// That there are more than these, if so.
    pub(crate) fn more_note(&self) -> Option<String> {
        self.more.then(|| format!("there are more than these {}; --limit shows them", self.items.len()))
    }
}

/// Asks for pages, each by its size and token, until there are enough or no more.
pub(crate) async fn pages<T>(
    limit: usize,
    mut page: impl AsyncFnMut(i32, String) -> Result<(Vec<T>, String), Failure>,
) -> Result<Listed<T>, Failure> {
    let mut items = Vec::new();
    let mut token = String::new();
    loop {
        let size = PAGE_SIZE.min(i32::try_from(limit - items.len()).unwrap_or(PAGE_SIZE));
        let (found, next) = page(size, token).await?;
        items.extend(found);
        if next.is_empty() || items.len() >= limit {
            let more = !next.is_empty() || items.len() > limit;
            items.truncate(limit);
            return Ok(Listed { items, more });
        }
        token = next;
    }
}

fn authorization(source: &TokenSource) -> Result<MetadataValue<Ascii>, Failure> {
    let (text, place) = match source {
        TokenSource::Is(Token(text)) => (text.clone(), "the token".to_owned()),
        TokenSource::In(file) => (read(file)?, format!("what {} holds", file.display())),
    };
    let text = text.trim();
    if text.is_empty() || text.contains(|c: char| !c.is_ascii_graphic()) {
        return Err(Failure::usage(format!("{place} is not a token"))
            .hint("a token is one line of letters, digits and signs, as `tbmqctl token create` printed it"));
    }
    let mut value: MetadataValue<Ascii> =
        format!("Bearer {text}").parse().map_err(|_| Failure::bug("a token is no header"))?;
    value.set_sensitive(true);
    Ok(value)
}

fn tls(settings: &Settings) -> Result<ClientTlsConfig, Failure> {
    let mut tls = ClientTlsConfig::new();
    tls = match &settings.ca_file {
        Some(file) => {
            let pem = read(file)?;
            // Without one, every server would be refused as if it were a stranger.
            if !pem.contains("-----BEGIN CERTIFICATE-----") {
                return Err(Failure::usage(format!("{} holds no certificate in PEM", file.display())));
            }
            tls.ca_certificate(Certificate::from_pem(pem))
        }
        None => tls.with_enabled_roots(),
    };
    match (&settings.cert_file, &settings.key_file) {
        (Some(cert), Some(key)) => Ok(tls.identity(Identity::from_pem(read(cert)?, read(key)?))),
        (None, None) => Ok(tls),
        (Some(_), None) => Err(Failure::usage("--cert-file needs --key-file, the key of the certificate")),
        (None, Some(_)) => Err(Failure::usage("--key-file needs --cert-file, the certificate of the key")),
    }
}

fn read(file: &Path) -> Result<String, Failure> {
    std::fs::read_to_string(file)
        .map_err(|error| Failure::usage(format!("can't read {}: {error}", file.display())))
}

fn is_this_machine(url: &Url) -> bool {
    match url.host() {
        Some(Host::Domain(name)) => name == "localhost" || name.ends_with(".localhost"),
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => IpAddr::V6(address).to_canonical().is_loopback(),
        None => false,
    }
}

/// The innermost cause, which says what happened ("connection refused") and not where.
pub(crate) fn root_cause(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    cause.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        context::{Config, Flags},
        failure::ExitKind,
    };

    fn settings(server: &str, token: Option<&str>) -> Settings {
        let flags = Flags { server: Some(server.to_owned()), ..Flags::default() };
        let mut settings = Settings::decide(flags, |_| None, &Config::default()).unwrap();
        settings.token = token.map(|token| TokenSource::Is(Token(token.to_owned())));
        settings
    }

    #[test]
    fn a_token_travels_readable_only_within_this_machine_or_when_told() {
        for server in ["http://127.0.0.1:1", "http://localhost:1", "http://[::1]:1", "https://10.0.0.1"] {
            let target = Target::try_from(&settings(server, Some("t"))).unwrap();
            assert_eq!(target.request(()).metadata().get("authorization").unwrap(), "Bearer t", "{server}");
        }
        for server in ["http://10.0.0.1:1", "http://example.org", "http://localhost.example.org"] {
            let mut settings = settings(server, Some("t"));
            let failure = Target::try_from(&settings).unwrap_err();
            assert!(failure.message.contains("could read the token"), "{}", failure.message);
            settings.plaintext_token = true;
            assert!(Target::try_from(&settings).is_ok());
            settings.token = None;
            settings.plaintext_token = false;
            assert!(Target::try_from(&settings).is_ok());
        }
    }

    #[test]
    fn what_cant_be_used_is_wrong_usage() {
        let wrong = |settings: Settings| Target::try_from(&settings).unwrap_err();
        for server in ["localhost", "ftp://x", "http://", "http://user:pass@x"] {
            assert_eq!(wrong(settings(server, None)).kind, ExitKind::Usage, "{server}");
        }
        assert_eq!(wrong(settings("http://localhost", Some("two words"))).kind, ExitKind::Usage);
        let certificates = Settings { ca_file: Some("x".into()), ..settings("http://localhost", None) };
        assert!(wrong(certificates).message.starts_with("certificates need https://"));
        let half = Settings { cert_file: Some("x".into()), ..settings("https://localhost", None) };
        assert_eq!(wrong(half).message, "--cert-file needs --key-file, the key of the certificate");
    }

    #[test]
    fn a_secret_is_not_shown_by_debug() {
        let target = Target::try_from(&settings("https://localhost", Some("sesame"))).unwrap();
        assert!(!format!("{target:?} {:?}", target.request(())).contains("sesame"));
    }

    #[test]
    fn a_trace_is_passed_on_when_the_environment_tells_one() {
        let told = |variables: &'static [(&str, &str)]| {
            let find = |name: &str| variables.iter().find(|(known, _)| *known == name);
            let found = trace(|name| find(name).map(|(_, value)| (*value).to_owned()));
            found
                .into_iter()
                .map(|(name, value)| format!("{name}: {}", value.to_str().unwrap()))
                .collect::<Vec<_>>()
        };
        assert_eq!(
            told(&[("TRACEPARENT", "00-a-b-01 "), ("TRACESTATE", "x=y")]),
            ["traceparent: 00-a-b-01", "tracestate: x=y"]
        );
        assert_eq!(told(&[("TRACEPARENT", "00-a-b-01")]), ["traceparent: 00-a-b-01"]);
        assert!(told(&[("TRACESTATE", "x=y")]).is_empty());
        assert!(told(&[]).is_empty());
    }

    #[tokio::test]
    async fn pages_end_with_the_list_or_with_the_limit() {
        let ask = async |limit| {
            let listed = pages(limit, async |size, token: String| {
                let from: i32 = token.parse().unwrap_or(0);
                let to = (from + size.min(2)).min(5);
                Ok(((from..to).collect::<Vec<_>>(), if to < 5 { to.to_string() } else { String::new() }))
            });
            let Listed { items, more } = listed.await.unwrap();
            (items, more)
        };
        assert_eq!(ask(9).await, (vec![0, 1, 2, 3, 4], false));
        assert_eq!(ask(5).await, (vec![0, 1, 2, 3, 4], false));
        assert_eq!(ask(3).await, (vec![0, 1, 2], true));
    }
}
