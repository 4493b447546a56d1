//! Who may call: authentication, roles, and the audit log.
//!
//! | module | what |
//! |---|---|
//! | [`config`] | settings |
//! | `role`, `table` | roles, and the one table of what each method asks for |
//! | `certificate`, `jwt`, `token`, `peer` | ways to show who one is |
//! | `audit` | who did what |
//! | `guard` | the layer around all services |
//! | `tls` | connections |

pub(crate) mod audit;
mod certificate;
pub(crate) mod config;
pub(crate) mod guard;
mod jwt;
pub(crate) mod peer;
pub(crate) mod role;
pub(crate) mod table;
pub(crate) mod tls;
pub(crate) mod token;

use std::{sync::Arc, time::Duration};

use http::HeaderMap;
use tbmq_service::{drain::Drain, file};
use tonic::Status;

use self::{
    audit::Audit,
    config::{AuthConfig, ClientRole},
    jwt::Jwt,
    peer::Peers,
    role::Role,
    token::{Hash, Known, Tokens},
};
use crate::{
    config::ControlConfig,
    metrics::Metrics,
    store::{self, Store},
};

/// Who a caller is that has not shown it.
pub(crate) const ANONYMOUS: &str = "anonymous";

/// Characters of an admin token at least.
const ADMIN_TOKEN_CHARS_MIN: usize = 16;

/// How often the uses of tokens are written down.
const FLUSH_PERIOD: Duration = Duration::from_secs(5);

/// Decides who may call.
#[derive(Debug)]
pub(crate) struct Access {
    /// `None`: everybody may do everything.
    ways: Option<Ways>,
    tokens: Tokens,
    pub(crate) audit: Audit,
    service_id: String,
    pub(crate) peers: Peers,
    /// Secret of what runs in this process.
    local: String,
    metrics: Metrics,
}

/// How callers may show who they are, beside API tokens.
#[derive(Debug)]
pub(crate) struct Ways {
    admin: Option<Hash>,
    jwt: Option<Jwt>,
    client_roles: Vec<ClientRole>,
}

/// A caller that has shown who it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Caller {
    /// As in `tbmq.control.v1.Caller`.
    pub(crate) principal: String,
    pub(crate) role: Role,
    until: Until,
}

/// How long what a caller has shown holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Until {
    Always,
    /// Epoch ms.
    Time(i64),
    Revoked(Hash),
}

/// Why a caller is not known.
#[derive(Debug)]
enum Unknown {
    /// Nothing, or nothing good, was shown.
    Unauthenticated(String),
    /// What was shown gives no role.
    NoRole(String, String),
    /// It can't be looked up.
    Away(store::Error),
}

impl Ways {
    /// Reads what the settings name; `None`: callers need not show who they are.
    ///
    /// # Errors
    /// A text that names the setting.
    pub(crate) fn open(control: &ControlConfig) -> Result<Option<Self>, String> {
        let AuthConfig { admin_token, admin_token_file, jwt, .. } = &control.auth;
        let admin = match admin_token_file {
            Some(path) => file::text(path, "TBMQ_ADMIN_TOKEN_FILE")?.trim().to_owned(),
            None => admin_token.expose().trim().to_owned(),
        };
        if (admin_token_file.is_some() || !admin.is_empty()) && admin.chars().count() < ADMIN_TOKEN_CHARS_MIN
        {
            return Err(format!("TBMQ_ADMIN_TOKEN must have at least {ADMIN_TOKEN_CHARS_MIN} characters"));
        }
        let ways = Self {
            admin: (!admin.is_empty()).then(|| Hash::of(&admin)),
            jwt: jwt.is_given().then(|| Jwt::open(jwt)).transpose()?,
            client_roles: control.grpc.tls.client_roles.clone(),
        };
        Ok(is_on(control).then_some(ways))
    }
}

/// Whether callers must show who they are.
pub(crate) fn is_on(control: &ControlConfig) -> bool {
    let AuthConfig { enabled, admin_token, admin_token_file, jwt, .. } = &control.auth;
    enabled.unwrap_or_else(|| {
        !admin_token.expose().is_empty()
            || admin_token_file.is_some()
            || jwt.is_given()
            || !control.grpc.tls.client_roles.is_empty()
    })
}

impl Caller {
    pub(crate) fn new(principal: String, role: Role) -> Self {
        Self { principal, role, until: Until::Always }
    }
}

impl Access {
    /// Reads the settings, and the key that the replicas share.
    ///
    /// # Errors
    /// When a setting can't be used, or the store not be read.
    pub(crate) async fn open(
        control: &ControlConfig,
        service_id: &str,
        store: &Store,
        metrics: &Metrics,
    ) -> anyhow::Result<Self> {
        let ways = Ways::open(control).map_err(crate::config::Misconfigured::Access)?;
        let peers = Peers::open(control, service_id, store).await?;
        Ok(Self {
            ways,
            tokens: Tokens::new(store.clone()),
            audit: Audit::new(store.clone(), service_id.to_owned(), metrics.clone()),
            service_id: service_id.to_owned(),
            peers,
            local: token::random(),
            metrics: metrics.clone(),
        })
    }

    /// Whether everybody may do everything.
    pub(crate) fn is_open(&self) -> bool {
        self.ways.is_none()
    }

    /// The API tokens.
    pub(crate) fn tokens(&self) -> &Tokens {
        &self.tokens
    }

    /// Writes the audit log and keeps keys up to date, until the drain has begun and all is written.
    pub(crate) async fn run(&self, drain: &Drain) {
        let jwt = self.ways.as_ref().and_then(|ways| ways.jwt.as_ref());
        let keys = async {
            match jwt {
                Some(jwt) => jwt.follow(|| _ = self.metrics.jwks_failures.inc()).await,
                None => std::future::pending().await,
            }
        };
        let uses = async {
            loop {
                tokio::time::sleep(FLUSH_PERIOD).await;
                self.tokens.flush().await;
            }
        };
        tokio::select! {
            () = self.audit.run(drain) => {}
            () = keys => {}
            () = uses => {}
        }
        self.tokens.flush().await;
    }

    /// Who calls, by what is in the headers, or by the names of its certificate. Waits for the store when an API token
    /// was not seen within 5 s.
    async fn identify(&self, ways: &Ways, headers: &HeaderMap, names: &[String]) -> Result<Caller, Unknown> {
        let Some(header) = headers.get(http::header::AUTHORIZATION) else {
            return by_certificate(ways, names);
        };
        let refused = |text: &str| Unknown::Unauthenticated(text.to_owned());
        let text = header.to_str().map_err(|_| refused("authorization is no text"))?;
        let (scheme, credential) = text.split_once(' ').unwrap_or((text, ""));
        let credential = credential.trim();
        if !scheme.eq_ignore_ascii_case("bearer") || credential.is_empty() {
            return Err(refused("authorization must be: Bearer <API token or JWT>"));
        }
        let hash = Hash::of(credential);
        if ways.admin == Some(hash) {
            return Ok(Caller::new("token:admin".to_owned(), Role::Admin));
        }
        if hash == Hash::of(&self.local) {
            return Ok(Caller::new(format!("node:{}", self.service_id), Role::Node));
        }
        if credential.starts_with(token::PREFIX) {
            return match self.tokens.find(hash, tbmq_service::time::now_ms()).await {
                Ok(Some(Known { display_name, role, .. })) => {
                    let principal = format!("token:{display_name}");
                    Ok(Caller { principal, role, until: Until::Revoked(hash) })
                }
                Ok(None) => Err(refused("the API token is not known, was revoked, or has expired")),
                Err(error) => Err(Unknown::Away(error)),
            };
        }
        if let Some(peer) = self.peers.read(credential) {
            let until = Until::Time(peer.expires_ms);
            return Ok(Caller { principal: format!("node:{}", peer.service_id), role: Role::Node, until });
        }
        let Some(jwt) = &ways.jwt else {
            return Err(refused("the credential is no API token, and JWTs are not accepted here"));
        };
        let claims = jwt
            .check(credential)
            .map_err(|why| Unknown::Unauthenticated(format!("the JWT is not accepted: {why}")))?;
        let principal = format!("jwt:{}", claims.subject);
        let Some(role) = claims.role else {
            return Err(Unknown::NoRole(principal, "the JWT names no role".to_owned()));
        };
        Ok(Caller { principal, role, until: Until::Time(claims.expires_sec.saturating_mul(1_000)) })
    }

    /// What a node in this process shows.
    pub(crate) fn local_token(&self) -> &str {
        &self.local
    }

    /// Completes, with the status to end with, when what the caller has shown does not hold any more.
    pub(crate) async fn ended(self: Arc<Self>, caller: Caller) -> Status {
        match caller.until {
            Until::Always => std::future::pending().await,
            Until::Time(ms) => {
                let left_ms = ms.saturating_sub(tbmq_service::time::now_ms());
                tokio::time::sleep(Duration::from_millis(left_ms.max(0) as u64)).await;
                guard::unauthenticated("the JWT has expired; connect again with a new one")
            }
            Until::Revoked(hash) => loop {
                tokio::time::sleep(token::CACHE_FOR).await;
                // A store that is away ends nothing.
                if let Ok(None) = self.tokens.find(hash, tbmq_service::time::now_ms()).await {
                    return guard::unauthenticated("the API token was revoked, or has expired");
                }
            },
        }
    }
}

fn by_certificate(ways: &Ways, names: &[String]) -> Result<Caller, Unknown> {
    let Some(name) = names.first() else {
        return Err(Unknown::Unauthenticated("no credentials were sent".to_owned()));
    };
    let principal = format!("cert:{name}");
    match certificate::role(&ways.client_roles, names) {
        Some(role) => Ok(Caller::new(principal, role)),
        None => {
            let text = format!("no role is set for the certificate {name:?} (CONTROL_GRPC_TLS_CLIENT_ROLES)");
            Err(Unknown::NoRole(principal, text))
        }
    }
}
