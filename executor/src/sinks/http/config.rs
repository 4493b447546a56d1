//! `clientConfiguration` of HTTP integrations (spec §6.3.1).

use std::{collections::BTreeMap, fmt, num::NonZeroUsize, time::Duration};

use ::http::{HeaderMap, HeaderName, HeaderValue, Method, Uri, header};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use url::Url;

use super::{idempotency, url as target};
use crate::sinks::{
    SinkSettings,
    batched::Limits,
    binder::{self, Bound},
    credentials::{Credentials, Secret},
};

/// What is connected to, in texts about local hosts.
const WHAT: &str = "HTTP endpoint";

/// Where and how messages are sent.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
#[schemars(extend("required" = ["restEndpointUrl", "maxInMemoryBufferSizeInKb"]))]
pub struct Config {
    /// Send the payload alone instead of a JSON object with payload, topic, client id and so on.
    pub send_only_msg_payload: bool,
    /// `http` or `https` URL of the endpoint. Characters that a URL can't hold are percent-encoded, valid escapes stay
    /// as they are.
    #[schemars(length(min = 1), extend("x-error-text" = "REST endpoint URL is required"))]
    pub rest_endpoint_url: String,
    /// Method of the requests; GET and DELETE carry no body.
    #[schemars(extend("x-error-text" = "Invalid request method. Allowed values: POST, PUT, GET, DELETE"))]
    pub request_method: RequestMethod,
    /// Headers added to every request.
    pub headers: Headers,
    /// How the sink shows who it is; client certificates and own trust are used with `https` URLs.
    pub credentials: Credentials,
    /// Milliseconds without an answer, or without more of it, after which a request has failed; 0: only the attempt's
    /// own timeout ends it. Also the longest wait for a free slot of `maxParallelRequestsCount`; 0: without limit.
    #[schemars(range(min = 0), extend("x-error-text" = "Read timeout (milliseconds) must not be less than 0"))]
    pub read_timeout_ms: u32,
    /// Requests at once at most; 0: no limit of its own.
    #[schemars(range(min = 0), extend("x-error-text" = "Max number of parallel requests must not be less than 0"))]
    pub max_parallel_requests_count: u32,
    /// Kilobytes of an answer's body at most; a longer one is a failure, whatever its status.
    #[schemars(range(min = 1), extend("x-error-text" = "Max response size (KB) must be greater than 0"))]
    pub max_in_memory_buffer_size_in_kb: u32,
    /// How the payload is represented.
    pub payload_content_type: PayloadContentType,
    /// Whether a payload that should be JSON and is not is sent as binary; else the message is rejected.
    pub send_binary_on_parse_failure: bool,
    /// Whether requests carry the header `Idempotency-Key`: the same one each time a message is sent, made of the
    /// integration's id, topic, partition, offset and the message's time. A batch has one that only the same messages
    /// have.
    pub idempotency_key: bool,
    /// Several messages in one request; off by default.
    pub batch: Batch,
}

/// Several messages in one request. A batch is sent when one of its limits is reached. If it is rejected, its halves
/// are sent, and so on, so that only what the endpoint does not want is rejected.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct Batch {
    /// How messages stand in a body.
    pub format: BatchFormat,
    /// Messages at most.
    #[schemars(range(min = 1, max = 10_000))]
    pub max_count: u32,
    /// Bytes of the body at most; a message that has more is sent alone.
    #[schemars(range(min = 1, max = 67_108_864))]
    pub max_bytes: u32,
    /// Milliseconds that a message waits for others at most, but no longer than half of its attempt's time; 0: only
    /// what is there at once is sent together.
    #[schemars(range(min = 0, max = 60_000))]
    pub max_delay_ms: u32,
}

impl Default for Batch {
    fn default() -> Self {
        Self { format: BatchFormat::Off, max_count: 100, max_bytes: 1 << 20, max_delay_ms: 100 }
    }
}

impl Batch {
    /// The limits of batches; `None`: there are no batches.
    pub(super) fn limits(&self, attempt_timeout: Duration) -> Option<Limits> {
        // An array has a bracket more than its items and one byte for each.
        let brackets = match self.format {
            BatchFormat::Off => return None,
            BatchFormat::JsonArray => 1,
            BatchFormat::Lines => 0,
        };
        Some(Limits {
            count: NonZeroUsize::new(self.max_count as usize).unwrap_or(NonZeroUsize::MIN),
            bytes: (self.max_bytes as usize).saturating_sub(brackets),
            delay: Duration::from_millis(self.max_delay_ms.into()).min(attempt_timeout / 2),
        })
    }
}

/// How messages stand in a body.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum BatchFormat {
    /// Each message has a request of its own.
    #[default]
    Off,
    /// An array of what the messages' own bodies would be; text as a JSON string, bytes as one in base64.
    JsonArray,
    /// The messages' own bodies, each followed by a line feed.
    Lines,
}

/// Methods of requests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "UPPERCASE")]
pub enum RequestMethod {
    /// With a body.
    #[default]
    Post,
    /// With a body.
    Put,
    /// Without a body.
    Get,
    /// Without a body.
    Delete,
}

impl RequestMethod {
    /// Whether requests carry a body.
    pub fn has_body(self) -> bool {
        matches!(self, Self::Post | Self::Put)
    }
}

impl From<RequestMethod> for Method {
    fn from(method: RequestMethod) -> Self {
        match method {
            RequestMethod::Post => Self::POST,
            RequestMethod::Put => Self::PUT,
            RequestMethod::Get => Self::GET,
            RequestMethod::Delete => Self::DELETE,
        }
    }
}

/// Representations of the payload.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "UPPERCASE")]
pub enum PayloadContentType {
    /// The bytes as they are, base64 inside the JSON object.
    #[default]
    Binary,
    /// A JSON value.
    Json,
    /// UTF-8 text.
    Text,
}

/// Headers by name. Values are not printed: they may be tokens.
#[derive(Clone, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(transparent)]
pub struct Headers(pub BTreeMap<String, String>);

impl fmt::Debug for Headers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.0.keys().map(|name| (name, format_args!("***")))).finish()
    }
}

/// A configuration that was checked, in the client's words.
#[derive(Clone)]
pub(super) struct Checked {
    pub config: Config,
    pub url: Url,
    /// The same, as requests have it.
    pub uri: Uri,
    pub headers: HeaderMap,
}

/// Reads and checks a configuration; all its problems at once.
pub(super) fn read(map: &Map<String, Value>, settings: &SinkSettings) -> Bound<Option<Checked>> {
    let mut bound = binder::bind::<Config>(map);
    let target = match target::parse(&bound.config.rest_endpoint_url) {
        Ok(url) => {
            let checked = url.host().map_or(Ok(()), |host| settings.egress.check_host(&host, WHAT));
            if let Err(text) = checked {
                bound.refuse("restEndpointUrl", text);
            }
            let uri = Uri::try_from(url.as_str());
            if let Err(error) = &uri {
                bound.refuse("restEndpointUrl", format!("Url string is invalid! {error}"));
            }
            uri.ok().map(|uri| (url, uri))
        }
        Err(text) => {
            bound.refuse("restEndpointUrl", text);
            None
        }
    };
    let headers = headers(&mut bound);
    if bound.config.batch.format != BatchFormat::Off && !bound.config.request_method.has_body() {
        bound.refuse("batch.format", "needs requests with a body: POST or PUT");
    }
    if bound.config.idempotency_key && headers.contains_key(idempotency::HEADER) {
        bound.refuse("idempotencyKey", "the header Idempotency-Key is configured already");
    }
    let (size, most) = (bound.config.max_in_memory_buffer_size_in_kb, settings.http_max_in_memory_buffer_kb);
    if size > most {
        bound.refuse(
            "maxInMemoryBufferSizeInKb",
            format!(
                "Max response size (KB) {size} must not be greater than the system limit {most} \
                 (tb.ie.http.maxInMemoryBufferSizeInKb)"
            ),
        );
    }
    let mut problems = bound.config.credentials.check(&format!("{}.credentials", binder::ROOT));
    bound.violations.append(&mut problems);
    let Bound { config, violations } = bound;
    let checked = match target {
        Some((url, uri)) if violations.is_empty() => Some(Checked { config, url, uri, headers }),
        _ => None,
    };
    Bound { config: checked, violations }
}

/// The configured headers and the one of basic credentials.
fn headers(bound: &mut Bound<Config>) -> HeaderMap {
    let mut headers = HeaderMap::new();
    let configured = bound.config.headers.0.clone();
    for (name, value) in &configured {
        let field = format!("headers.{name}");
        match (HeaderName::try_from(name), HeaderValue::try_from(value)) {
            (Err(_), _) => bound.refuse(&field, "is not the name of a header"),
            (_, Err(_)) => bound.refuse(&field, "has a character that a header's value can't hold"),
            // They frame the message; a configured one could only contradict the real one.
            (Ok(header::CONTENT_LENGTH | header::TRANSFER_ENCODING), _) => {
                bound.refuse(&field, "is set by the sink itself");
            }
            (Ok(name), Ok(value)) => {
                headers.append(name, value);
            }
        }
    }
    if let Credentials::Basic { username, password } = &bound.config.credentials {
        // TBMQ prints what is missing as `null`.
        let username = username.as_deref().unwrap_or("null");
        let password = password.as_ref().map_or("null", Secret::expose);
        let text = format!("Basic {}", STANDARD.encode(format!("{username}:{password}")));
        let mut value = HeaderValue::try_from(text).expect("base64 is visible ASCII");
        value.set_sensitive(true);
        // Added, not set: a configured Authorization stays (spec §6.3.3).
        headers.append(header::AUTHORIZATION, value);
    }
    headers
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::sinks::egress::Egress;

    fn texts(value: Value, settings: &SinkSettings) -> Vec<String> {
        read(value.as_object().unwrap(), settings).violations.iter().map(ToString::to_string).collect()
    }

    fn accepted(value: Value) -> Checked {
        let bound = read(value.as_object().unwrap(), &SinkSettings::default());
        assert_eq!(bound.violations, []);
        bound.config.unwrap()
    }

    /// The document that TBMQ's form writes.
    fn form() -> Value {
        json!({
            "sendOnlyMsgPayload": false, "restEndpointUrl": "http://127.0.0.1:31985/hook", "requestMethod": "POST",
            "headers": {"Content-Type": "application/json", "X-Test": "yes"}, "readTimeoutMs": 2000,
            "maxParallelRequestsCount": 0, "credentials": {"type": "anonymous"}, "maxInMemoryBufferSizeInKb": 256,
            "payloadContentType": "BINARY", "sendBinaryOnParseFailure": true
        })
    }

    #[test]
    fn a_document_of_tbmqs_form_is_accepted() {
        let checked = accepted(form());
        assert_eq!(checked.url.as_str(), "http://127.0.0.1:31985/hook");
        assert_eq!(checked.config.read_timeout_ms, 2000);
        assert_eq!(checked.headers["x-test"], "yes");
        assert!(checked.config.send_binary_on_parse_failure);
    }

    #[test]
    fn all_problems_are_told_at_once_in_tbmqs_words() {
        let value = json!({
            "restEndpointUrl": " ", "requestMethod": "PATCH", "headers": {"a b": "x", "ok": "a\nb", "Content-Length": 3},
            "readTimeoutMs": -1, "maxParallelRequestsCount": "-2", "maxInMemoryBufferSizeInKb": 0,
            "payloadContentType": "XML", "credentials": {"type": "token"}, "retries": 3
        });
        assert_eq!(
            texts(value, &SinkSettings::default()),
            [
                "clientConfiguration.restEndpointUrl: REST endpoint URL is required",
                "clientConfiguration.requestMethod: Invalid request method. Allowed values: POST, PUT, GET, DELETE",
                "clientConfiguration.credentials.type: \"token\" is not one of anonymous, basic, cert.PEM",
                "clientConfiguration.readTimeoutMs: Read timeout (milliseconds) must not be less than 0",
                "clientConfiguration.maxParallelRequestsCount: Max number of parallel requests must not be less than 0",
                "clientConfiguration.maxInMemoryBufferSizeInKb: Max response size (KB) must be greater than 0",
                "clientConfiguration.payloadContentType: \"XML\" is not one of BINARY, JSON, TEXT",
                "clientConfiguration.retries: unknown field; known are sendOnlyMsgPayload, restEndpointUrl, requestMethod, headers, credentials, readTimeoutMs, maxParallelRequestsCount, maxInMemoryBufferSizeInKb, payloadContentType, sendBinaryOnParseFailure, idempotencyKey, batch",
                "clientConfiguration.headers.Content-Length: is set by the sink itself",
                "clientConfiguration.headers.a b: is not the name of a header",
                "clientConfiguration.headers.ok: has a character that a header's value can't hold",
            ]
        );
    }

    #[test]
    fn an_empty_document_lacks_url_and_response_size() {
        assert_eq!(
            texts(json!({}), &SinkSettings::default()),
            [
                "clientConfiguration.restEndpointUrl: REST endpoint URL is required",
                "clientConfiguration.maxInMemoryBufferSizeInKb: Max response size (KB) must be greater than 0",
            ]
        );
    }

    #[test]
    fn coercions_and_defaults_are_tbmqs() {
        let checked = accepted(json!({
            "restEndpointUrl": "http://h/", "maxInMemoryBufferSizeInKb": "256", "readTimeoutMs": "",
            "maxParallelRequestsCount": 7.9, "sendOnlyMsgPayload": "true", "sendBinaryOnParseFailure": null,
            "requestMethod": "", "payloadContentType": null, "headers": {"X-N": 5}, "credentials": null
        }));
        let config = checked.config;
        assert_eq!((config.read_timeout_ms, config.max_parallel_requests_count), (0, 7));
        assert_eq!((config.send_only_msg_payload, config.send_binary_on_parse_failure), (true, false));
        assert_eq!(config.request_method, RequestMethod::Post);
        assert_eq!(config.payload_content_type, PayloadContentType::Binary);
        assert_eq!(checked.headers["x-n"], "5");
    }

    #[test]
    fn the_response_size_ends_at_the_systems_limit() {
        let mut document = form();
        document["maxInMemoryBufferSizeInKb"] = json!(25_001);
        assert_eq!(
            texts(document, &SinkSettings::default()),
            [
                "clientConfiguration.maxInMemoryBufferSizeInKb: Max response size (KB) 25001 must not be greater than the system limit 25000 (tb.ie.http.maxInMemoryBufferSizeInKb)"
            ]
        );
    }

    #[test]
    fn local_hosts_are_refused_when_the_executor_forbids_them() {
        let egress = Egress::new(false, Vec::new(), Vec::new());
        let settings = SinkSettings { egress, ..SinkSettings::default() };
        for url in [
            "http://127.0.0.1/x",
            "http://localhost:80",
            "http://[::1]/",
            "http://10.0.0.1",
            "http://2130706433/",
        ] {
            let mut document = form();
            document["restEndpointUrl"] = json!(url);
            assert_eq!(
                texts(document, &settings),
                [
                    "clientConfiguration.restEndpointUrl: Usage of local network host for HTTP endpoint is not allowed!"
                ],
                "{url}"
            );
        }
    }

    #[test]
    fn basic_credentials_are_added_to_a_configured_authorization() {
        let mut document = form();
        document["credentials"] = json!({"type": "basic", "username": "üser"});
        document["headers"] = json!({"Authorization": "Bearer t"});
        let values: Vec<_> = accepted(document).headers.get_all("authorization").iter().cloned().collect();
        assert_eq!(values, ["Bearer t".to_owned(), format!("Basic {}", STANDARD.encode("üser:null"))]);
    }

    #[test]
    fn the_schema_marks_secrets_and_describes_every_field() {
        let schema = binder::schema::<Config>();
        for (name, field) in schema["properties"].as_object().unwrap() {
            assert!(field["description"].is_string(), "{name}: {field}");
        }
        let variants = schema["properties"]["credentials"]["oneOf"].as_array().unwrap();
        let secrets: Vec<_> = variants
            .iter()
            .flat_map(|variant| variant["properties"].as_object().unwrap())
            .filter(|(_, field)| field["writeOnly"] == true)
            .map(|(name, _)| name.as_str())
            .collect();
        assert_eq!(secrets, ["password", "privateKey", "privateKeyPassword"]);
        assert_eq!(schema["required"], json!(["restEndpointUrl", "maxInMemoryBufferSizeInKb"]));
        assert_eq!(schema["additionalProperties"], false);
    }

    #[test]
    fn nothing_secret_is_printed() {
        let mut document = form();
        document["credentials"] = json!({"type": "basic", "username": "u", "password": "s3cret"});
        document["headers"] = json!({"Authorization": "s3cret"});
        let text = format!("{:?}", accepted(document).config);
        assert!(!text.contains("s3cret") && text.contains("***"), "{text}");
    }
}
