//! `BlockedClientService`: clients that may not connect, whatever they prove.

use std::sync::Arc;

use percent_encoding::{AsciiSet, CONTROLS, percent_decode_str, utf8_percent_encode};
use tbmq_auth::blocked::{Blocked, Status as Held, Target, Who, status};
use tbmq_integration::entity::Violation;
use tbmq_proto::control::{
    BlockedClient, CreateBlockedClientRequest, DeleteBlockedClientRequest, GetBlockedClientRequest,
    ListBlockedClientsRequest, ListBlockedClientsResponse, UpdateBlockedClientRequest,
    blocked_client::{self, RegexMatchTarget, Type},
    blocked_client_service_server::BlockedClientService,
};
use tonic::{Request, Response, Status};

use super::{
    applied, error,
    integration::{etag, timestamp, to_ms},
    page,
};
use crate::{
    access::audit,
    auth::record,
    driver::TIMES_MS,
    fault::Point,
    plane::Plane,
    store::{BlockedListing, BlockedRow},
};

/// Before the percent-encoded key in a name.
const COLLECTION: &str = "blockedClients/";

/// All but RFC 3986's unreserved characters and colons, which every key has.
pub(super) const ENCODED: &AsciiSet = &CONTROLS
    .add(b' ')
    .add(b'"')
    .add(b'#')
    .add(b'%')
    .add(b'&')
    .add(b'+')
    .add(b'/')
    .add(b'<')
    .add(b'>')
    .add(b'?')
    .add(b'[')
    .add(b'\\')
    .add(b']')
    .add(b'^')
    .add(b'`')
    .add(b'{')
    .add(b'|')
    .add(b'}');

const DESCRIPTION_CHARS_MAX: usize = 4_096;

/// Bytes of a client id or user name in MQTT.
const TEXT_BYTES_MAX: usize = 65_535;

#[derive(Debug)]
pub(super) struct BlockedApi {
    plane: Arc<Plane>,
}

#[tonic::async_trait]
impl BlockedClientService for BlockedApi {
    async fn create_blocked_client(
        &self,
        request: Request<CreateBlockedClientRequest>,
    ) -> Result<Response<BlockedClient>, Status> {
        let given = request.into_inner().blocked_client.ok_or_else(missing)?;
        let mut violations = Vec::new();
        let expires_ms = read_expiry(&given, &mut violations);
        check_description(&given, &mut violations);
        let who = read_who(&given).map_err(|violation| violations.push(violation));
        let (Ok(who), true) = (who, violations.is_empty()) else { return Err(invalid(violations)) };
        audit::note_resource(name_of(&who.key()));
        // A regular expression takes up to a millisecond.
        let check = move || (Blocked::default().put(who.clone(), 0), who);
        let (checked, who) = self.plane.hashing.run(check).await.map_err(error::unavailable)?;
        checked.map_err(|error| invalid(vec![Violation::new("blocked_client.value", error.to_string())]))?;
        let now_ms = tbmq_service::time::now_ms();
        let row = self.plane.store.block(who, expires_ms, given.description, now_ms).await?;
        Ok(self.saved(row).await)
    }

    async fn get_blocked_client(
        &self,
        request: Request<GetBlockedClientRequest>,
    ) -> Result<Response<BlockedClient>, Status> {
        let key = parse_name("name", &request.get_ref().name)?;
        let row = self.plane.store.get_blocked(&key).await?;
        Ok(Response::new(self.show(row)))
    }

    async fn list_blocked_clients(
        &self,
        request: Request<ListBlockedClientsRequest>,
    ) -> Result<Response<ListBlockedClientsResponse>, Status> {
        let request = request.into_inner();
        let size = page::size(request.page_size)?;
        let mut violations = Vec::new();
        if request.text_search.contains('\0') {
            violations.push(Violation::new("text_search", "must not contain U+0000"));
        }
        let kind = match Type::try_from(request.r#type) {
            Ok(Type::Unspecified) => None,
            Ok(Type::ClientId) => Some("CLIENT_ID"),
            Ok(Type::Username) => Some("USERNAME"),
            Ok(Type::IpAddress) => Some("IP_ADDRESS"),
            Ok(Type::Regex) => Some("REGEX"),
            Err(_) => {
                violations.push(Violation::new("type", format!("{} is not a type", request.r#type)));
                None
            }
        };
        let held = match blocked_client::Status::try_from(request.status) {
            Ok(blocked_client::Status::Unspecified) => None,
            Ok(blocked_client::Status::Active) => Some(Held::Active),
            Ok(blocked_client::Status::Expired) => Some(Held::Expired),
            Ok(blocked_client::Status::DeletingSoon) => Some(Held::DeletingSoon),
            Err(_) => {
                violations.push(Violation::new("status", format!("{} is not a status", request.status)));
                None
            }
        };
        if !violations.is_empty() {
            return Err(invalid(violations));
        }
        let question = format!("blocked {:?} {kind:?} {held:?}", request.text_search);
        let listing = BlockedListing {
            kind,
            text: request.text_search,
            status: held,
            now_ms: tbmq_service::time::now_ms(),
            ttl_ms: self.plane.config.blocked_ttl_ms(),
            after: page::place(&request.page_token, &question)?,
            limit: size + 1,
        };
        let store = &self.plane.store;
        let (total_size, mut rows) =
            tokio::try_join!(store.count_blocked(&listing), store.list_blocked(&listing))?;
        let more = page::cut(&mut rows, size, |row| row.who.key().len() + row.description.len());
        let next_page_token = match rows.last() {
            Some(last) if more => page::token(&(last.created_ms, last.item().row), &question),
            _ => String::new(),
        };
        let blocked_clients = rows.into_iter().map(|row| self.show(row)).collect();
        let total_size = total_size as i64;
        Ok(Response::new(ListBlockedClientsResponse { blocked_clients, next_page_token, total_size }))
    }

    async fn update_blocked_client(
        &self,
        request: Request<UpdateBlockedClientRequest>,
    ) -> Result<Response<BlockedClient>, Status> {
        let given = request.into_inner().blocked_client.ok_or_else(missing)?;
        let key = parse_name("blocked_client.name", &given.name)?;
        audit::note_resource(name_of(&key));
        let mut violations = Vec::new();
        let expires_ms = read_expiry(&given, &mut violations);
        check_description(&given, &mut violations);
        if !violations.is_empty() {
            return Err(invalid(violations));
        }
        let now_ms = tbmq_service::time::now_ms();
        let row = self.plane.store.update_blocked(&key, expires_ms, given.description, now_ms).await?;
        Ok(self.saved(row).await)
    }

    async fn delete_blocked_client(
        &self,
        request: Request<DeleteBlockedClientRequest>,
    ) -> Result<Response<()>, Status> {
        let key = parse_name("name", &request.get_ref().name)?;
        audit::note_resource(name_of(&key));
        self.plane.store.unblock(&key, tbmq_service::time::now_ms()).await?;
        self.plane.faults.pass(Point::Saved).await;
        self.plane.auth_committed();
        self.plane.faults.pass(Point::Answering).await;
        Ok(Response::new(()))
    }
}

impl BlockedApi {
    pub(super) fn new(plane: Arc<Plane>) -> Self {
        Self { plane }
    }

    /// Answers when data planes have applied it.
    async fn saved(&self, row: BlockedRow) -> Response<BlockedClient> {
        self.plane.faults.pass(Point::Saved).await;
        self.plane.auth_committed();
        let (item, revision) = (row.item(), row.revision);
        audit::note_after(name_of(&row.who.key()), etag(revision));
        let resource = self.show(row);
        applied::answer(&self.plane, item, revision, resource).await
    }

    fn show(&self, row: BlockedRow) -> BlockedClient {
        let (kind, target) = match &row.who {
            Who::ClientId(_) => (Type::ClientId, RegexMatchTarget::Unspecified),
            Who::UserName(_) => (Type::Username, RegexMatchTarget::Unspecified),
            Who::Network(_) => (Type::IpAddress, RegexMatchTarget::Unspecified),
            Who::Regex { target, .. } => {
                let target = match target {
                    Target::ClientId => RegexMatchTarget::ByClientId,
                    Target::UserName => RegexMatchTarget::ByUsername,
                    Target::Address => RegexMatchTarget::ByIpAddress,
                };
                (Type::Regex, target)
            }
        };
        let held = status(row.expires_ms, tbmq_service::time::now_ms(), self.plane.config.blocked_ttl_ms());
        let status = match held {
            Held::Active => blocked_client::Status::Active,
            Held::Expired => blocked_client::Status::Expired,
            Held::DeletingSoon => blocked_client::Status::DeletingSoon,
        };
        BlockedClient {
            name: name_of(&row.who.key()),
            r#type: kind.into(),
            value: record::value_of(&row.who),
            regex_match_target: target.into(),
            expire_time: (row.expires_ms > 0).then(|| timestamp(row.expires_ms)),
            description: row.description,
            status: status.into(),
        }
    }
}

fn invalid(violations: Vec<Violation>) -> Status {
    error::invalid_because("INVALID_BLOCKED_CLIENT", violations)
}

fn missing() -> Status {
    invalid(vec![Violation::new("blocked_client", "is missing")])
}

fn name_of(key: &str) -> String {
    format!("{COLLECTION}{}", utf8_percent_encode(key, ENCODED))
}

/// Reads `blockedClients/{key}`.
fn parse_name(field: &str, name: &str) -> Result<String, Status> {
    let read = || {
        let encoded = name.strip_prefix(COLLECTION)?;
        let key = percent_decode_str(encoded).decode_utf8().ok()?;
        (!key.is_empty() && !key.contains('\0')).then(|| key.into_owned())
    };
    let shown: String = name.chars().take(200).collect();
    let text = || format!("{shown:?} is not {COLLECTION}{{key}}, percent-encoded");
    read().ok_or_else(|| invalid(vec![Violation::new(field, text())]))
}

fn read_who(given: &BlockedClient) -> Result<Who, Violation> {
    let field = |field: &str, text: String| Violation::new(format!("blocked_client.{field}"), text);
    let value = given.value.as_str();
    if value.is_empty() || value.len() > TEXT_BYTES_MAX || value.contains('\0') {
        return Err(field("value", format!("must have 1 to {TEXT_BYTES_MAX} bytes, without U+0000")));
    }
    let target = RegexMatchTarget::try_from(given.regex_match_target);
    let kind = Type::try_from(given.r#type);
    if kind != Ok(Type::Regex) && target != Ok(RegexMatchTarget::Unspecified) {
        return Err(field("regex_match_target", "is of regular expressions alone".to_owned()));
    }
    Ok(match kind {
        Ok(Type::ClientId) => Who::ClientId(value.into()),
        Ok(Type::Username) => Who::UserName(value.into()),
        Ok(Type::IpAddress) => Who::network(value).map_err(|error| field("value", error.to_string()))?,
        Ok(Type::Regex) => {
            let target = match target {
                Ok(RegexMatchTarget::ByClientId) => Target::ClientId,
                Ok(RegexMatchTarget::ByUsername) => Target::UserName,
                Ok(RegexMatchTarget::ByIpAddress) => Target::Address,
                Ok(RegexMatchTarget::Unspecified) | Err(_) => {
                    let text = "is BY_CLIENT_ID, BY_USERNAME or BY_IP_ADDRESS".to_owned();
                    return Err(field("regex_match_target", text));
                }
            };
            Who::Regex { pattern: value.into(), target }
        }
        Ok(Type::Unspecified) | Err(_) => {
            return Err(field("type", "is CLIENT_ID, USERNAME, IP_ADDRESS or REGEX".to_owned()));
        }
    })
}

/// Epoch ms; 0: never.
fn read_expiry(given: &BlockedClient, violations: &mut Vec<Violation>) -> i64 {
    let Some(time) = &given.expire_time else { return 0 };
    let ms = to_ms(time);
    if ms <= 0 || !TIMES_MS.contains(&ms) {
        violations.push(Violation::new("blocked_client.expire_time", "is a time from 1970 to 9999"));
    }
    ms
}

fn check_description(given: &BlockedClient, violations: &mut Vec<Violation>) {
    let text = &given.description;
    if text.chars().count() > DESCRIPTION_CHARS_MAX || text.contains('\0') {
        let text = format!("must have at most {DESCRIPTION_CHARS_MAX} characters, without U+0000");
        violations.push(Violation::new("blocked_client.description", text));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_as_they_are_written() {
        for key in
            ["clientId:a/b c%2F", "regex:ü[^/]+(a|b)\\.:byID", "ipAddress:2001:db8::/32", "username:\"#?"]
        {
            let name = name_of(key);
            assert!(!name[COLLECTION.len()..].contains(['/', ' ', '#', '?', '"']), "{name}");
            assert!(name.is_ascii(), "{name}");
            assert_eq!(parse_name("name", &name).unwrap(), key);
        }
        for bad in ["clientId:x", "blockedClients/", "blockedClients/%FF", "blockedClients/%00"] {
            assert!(parse_name("name", bad).is_err(), "{bad}");
        }
    }
}
