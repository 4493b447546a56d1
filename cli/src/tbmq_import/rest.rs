//! TBMQ's REST API (spec §7.1): a login for a token, then page by page.

use std::{path::PathBuf, time::Duration};

use reqwest::{Certificate, Client, RequestBuilder, StatusCode, Url, header::AUTHORIZATION, redirect};
use serde::Deserialize;
use serde_json::{json, value::RawValue};

use super::Entry;
use crate::failure::Failure;

/// Integrations of one page.
const PAGE_SIZE: usize = 100;

/// Pages at most: more integrations than any installation has.
const PAGES_MAX: usize = 10_000;

/// Bytes of one answer.
const ANSWER_BYTES_MAX: usize = 256 << 20;

const CONNECT_MAX: Duration = Duration::from_secs(5);

/// Where it is and who asks.
#[derive(Clone)]
pub(crate) struct Source {
    pub(crate) url: String,
    pub(crate) username: String,
    pub(crate) password: String,
    /// Certificates to trust instead of the system's, as PEM.
    pub(crate) ca_file: Option<PathBuf>,
    /// Longest wait for one answer.
    pub(crate) timeout: Duration,
}

#[derive(Deserialize)]
struct Login {
    token: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Page {
    data: Vec<Box<RawValue>>,
    #[serde(default)]
    has_next: bool,
}

/// TBMQ's body of an error (spec §7.2).
#[derive(Deserialize)]
struct Problem {
    message: String,
}

impl Source {
    /// Reads all integrations.
    pub(crate) async fn read(&self) -> Result<Vec<Result<Entry, String>>, Failure> {
        let client = self.client()?;
        let body = json!({ "username": self.username, "password": self.password }).to_string();
        let login = client
            .post(self.at("api/auth/login")?)
            .header(reqwest::header::CONTENT_TYPE, "application/json")
            .body(body);
        let login: Login = self.answer(login, "the login").await?;
        let token = format!("Bearer {}", login.token);
        let mut entries = Vec::new();
        for number in 0..PAGES_MAX {
            let mut url = self.at("api/integrations")?;
            // In an order that no change of a name disturbs.
            url.query_pairs_mut()
                .append_pair("pageSize", &PAGE_SIZE.to_string())
                .append_pair("page", &number.to_string())
                .append_pair("sortProperty", "id")
                .append_pair("sortOrder", "ASC");
            let request = client.get(url).header("X-Authorization", &token).header(AUTHORIZATION, &token);
            let page: Page = self.answer(request, "the list of integrations").await?;
            entries.extend(page.data.iter().map(|item| Entry::of_json(item.get())));
            if !page.has_next {
                return Ok(entries);
            }
        }
        Err(Failure::refused(format!("{} has more than {PAGES_MAX} pages of integrations", self.url)))
    }

    fn client(&self) -> Result<Client, Failure> {
        // Installed already: then it is the same one.
        rustls::crypto::ring::default_provider().install_default().ok();
        let mut builder = Client::builder()
            .user_agent(concat!("tbmqctl/", env!("CARGO_PKG_VERSION")))
            // The password goes to the host that was named, and to no other.
            .redirect(redirect::Policy::none())
            .connect_timeout(CONNECT_MAX.min(self.timeout))
            .timeout(self.timeout);
        if let Some(path) = &self.ca_file {
            let unread = |error: &dyn std::fmt::Display| {
                Failure::usage(format!("can't read certificates from {}: {error}", path.display()))
            };
            let pem = std::fs::read(path).map_err(|error| unread(&error))?;
            let certificates = Certificate::from_pem_bundle(&pem).map_err(|error| unread(&error))?;
            builder = builder.tls_certs_only(certificates);
        }
        builder.build().map_err(|error| Failure::bug(error.to_string()))
    }

    fn at(&self, path: &str) -> Result<Url, Failure> {
        let wrong = || {
            Failure::usage(format!("{:?} is not an address of TBMQ", self.url))
                .hint("an address is http://HOST:8083 or https://HOST")
        };
        let base = Url::parse(&self.url).map_err(|_| wrong())?;
        if !matches!(base.scheme(), "http" | "https") || !base.has_host() {
            return Err(wrong());
        }
        let text =
            format!("{}/{path}", self.url.split(['?', '#']).next().unwrap_or_default().trim_end_matches('/'));
        Url::parse(&text).map_err(|_| wrong())
    }

    async fn answer<T: serde::de::DeserializeOwned>(
        &self,
        request: RequestBuilder,
        what: &str,
    ) -> Result<T, Failure> {
        let unreachable = |error: reqwest::Error| {
            let error = error.without_url();
            Failure::unreachable(format!("can't reach {}: {}", self.url, crate::client::root_cause(&error)))
                .hint("is TBMQ running there? its REST API is at port 8083, where its user interface is")
        };
        let mut response = request.send().await.map_err(unreachable)?;
        let status = response.status();
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(unreachable)? {
            if body.len() + chunk.len() > ANSWER_BYTES_MAX {
                return Err(Failure::refused(format!("{what} has more than {ANSWER_BYTES_MAX} bytes")));
            }
            body.extend_from_slice(&chunk);
        }
        if !status.is_success() {
            let text = serde_json::from_slice::<Problem>(&body)
                .map_or_else(|_| String::new(), |problem| problem.message);
            let failure = Failure::refused(format!("TBMQ refused {what}: {status} {text}").trim_end());
            return Err(match status {
                StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => failure
                    .hint("an administrator's name and password are needed: --username, --password-file"),
                _ => failure,
            });
        }
        serde_json::from_slice(&body).map_err(|error| {
            Failure::refused(format!("{} does not answer as TBMQ does: {what}: {error}", self.url))
        })
    }
}
