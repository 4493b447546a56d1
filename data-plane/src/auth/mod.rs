//! Who may connect, and what they may do.
//!
//! ```text
//! CONNECT ──► connection ── Claim ──► Auth::judge ──► Accept / Refuse / Challenge
//!                 ▲                       │ Later: a password is hashed, or somebody is asked
//!                 └── Mailbox::judged ◄───┘
//! topics ──► index of credentials, settings, blocks ──► connected clients that a change is about, by their mailboxes
//! ```
//!
//! What is judged by is in memory before a listener opens: no CONNECT waits for the control plane. A record that can't
//! be used allows nobody anything.

use std::{net::SocketAddr, num::NonZeroUsize, sync::Arc};

use bytes::Bytes;
use parking_lot::{Mutex, RwLock};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tbmq_auth::{
    acl::{Acl, Permissions},
    blocked,
    credentials::ClientType,
    index::Index,
    password::Verified,
};
use tbmq_bus::{Record, TopicPartition, Writer};
use tbmq_integration::seal::Keys;
use tbmq_mqtt::{
    packet::{Qos, ReasonCode, Text},
    session::{self, End},
};
use tbmq_proto::{ids::ServiceId, topic::Catalogue};
use tbmq_service::admin::Component;
use tokio::sync::Notify;

mod bearers;
mod caller;
mod changes;
mod hashing;
mod http;
mod judge;
mod jwks;
mod known;
pub(crate) mod metrics;
mod record;
#[cfg(test)]
mod samples;
mod services;
mod settings;
#[cfg(test)]
mod tests;
mod unauthorized;

pub(crate) use bearers::Bearer;
use bearers::{Bearers, Change, Proof};
use hashing::Hashing;
pub(crate) use judge::Exchange;
use known::{Blocks, Revisions};
use metrics::{Metrics, Topic};
use services::Questions;
use settings::Settings;
use unauthorized::Unauthorized;

use crate::{
    Context,
    feed::{self, About, Feed},
    mailbox::Mailbox,
    positions::Changed,
    worker::Clock,
};

/// Passwords that wait for one thread: less than what a client waits for CONNACK, where a hash takes 20 ms.
const QUEUE_PER_THREAD: usize = 400;

/// What a CONNECT, and the connection that it came by, say about the client.
pub(crate) struct Claim {
    pub(crate) client_id: Arc<str>,
    pub(crate) username: Option<Text>,
    pub(crate) password: Option<Bytes>,
    /// Of the verified path from the client's certificate to the authority, the client's own first.
    pub(crate) common_names: Arc<[Box<str>]>,
    pub(crate) peer: SocketAddr,
    /// Whether it is on this machine.
    pub(crate) is_local: bool,
    pub(crate) is_tls: bool,
    /// Authentication Method and Authentication Data; the data may be empty only if there is none.
    pub(crate) method: Option<(Text, Bytes)>,
}

/// What is to become of a CONNECT, or of an AUTH.
#[derive(Debug)]
pub(crate) enum Verdict {
    /// It is let in; of an AUTH 0x19: it stays, with these rights.
    Accept(Box<Admission>),
    Refuse(Refusal),
    /// AUTH 0x18 with this Authentication Data is to be sent.
    Challenge(Bytes),
    /// The verdict comes to the mailbox ([`Mailbox::judged`]). Only of a CONNECT.
    Later,
}

/// A client that is let in.
#[derive(Debug)]
pub(crate) struct Admission {
    pub(crate) access: Access,
    pub(crate) client_type: ClientType,
    /// Which provider has let it in by what, as `MQTT_BASIC: name`; for people.
    pub(crate) details: Box<str>,
    /// To be shown to [`Auth::admitted`], [`Auth::left`] and [`Auth::begin_again`]; unless nobody was asked about it.
    pub(crate) bearer: Option<Arc<Bearer>>,
    /// Authentication Data of CONNACK, or of AUTH 0x00.
    pub(crate) server_final: Option<Bytes>,
    /// When it is to be disconnected, ms since 1970.
    pub(crate) expires_at_ms: Option<i64>,
}

/// A client that is not let in.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) reason: ReasonCode,
    /// Not for the client.
    pub(crate) text: Box<str>,
}

/// What a client may do.
#[derive(Debug)]
pub(crate) enum Access {
    Everything,
    Rules(Box<Permissions>),
}

impl From<Acl> for Access {
    fn from(acl: Acl) -> Self {
        Self::Rules(Box::new(Permissions::new(acl)))
    }
}

impl session::Access for Access {
    fn may_publish(&mut self, topic: &str, qos: Qos, retain: bool) -> bool {
        match self {
            Self::Everything => true,
            Self::Rules(permissions) => permissions.may_publish(topic, qos, retain),
        }
    }

    fn grant(&mut self, filter: &str, qos: Qos) -> Option<Qos> {
        match self {
            Self::Everything => Some(qos),
            Self::Rules(permissions) => permissions.grant(filter, qos),
        }
    }
}

/// How clients are judged.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct AuthConfig {
    /// Threads that hash passwords; 0: half the cores, at least one. Each takes 19 MiB from its first password on.
    pub hash_threads: usize,
    /// Passwords that wait to be hashed; more clients are refused (0x97; 3.x: 3). 0: 400 for each thread, which takes 8 s.
    pub hash_queue_max: usize,
    /// Passwords of one IPv4 address, or one /64 of IPv6, that wait to be hashed; 0: a quarter of all. Behind a balancer
    /// without PROXY protocol all clients are one address.
    pub hash_queue_address_max: usize,
    /// Minutes in which a password that was right is not hashed again; 0: it always is.
    pub basic_credentials_password_ttl: u32,
    /// Passwords of which it is remembered that they were right.
    pub basic_credentials_password_max: NonZeroUsize,
    /// Whether the control plane is told which clients were refused (the latest 10,000 are kept).
    pub unauth_clients_enabled: bool,
    /// Whether clients of other machines may connect while no provider is enabled, so that nobody is asked for anything.
    pub mqtt_anonymous_enabled: bool,
}

impl Default for AuthConfig {
    fn default() -> Self {
        Self {
            hash_threads: 0,
            hash_queue_max: 0,
            hash_queue_address_max: 0,
            basic_credentials_password_ttl: 1,
            basic_credentials_password_max: NonZeroUsize::new(100_000).expect("not 0"),
            unauth_clients_enabled: true,
            mqtt_anonymous_enabled: false,
        }
    }
}

impl AuthConfig {
    fn hashing(&self) -> hashing::Limits {
        let or = |value: usize, default: usize| if value == 0 { default } else { value };
        let cores = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
        let threads = NonZeroUsize::new(or(self.hash_threads, cores / 2)).unwrap_or(NonZeroUsize::MIN);
        let waiting_max = or(self.hash_queue_max, QUEUE_PER_THREAD.saturating_mul(threads.get()));
        let site_max = or(self.hash_queue_address_max, waiting_max.div_ceil(4));
        hashing::Limits { threads, waiting_max, site_max }
    }
}

/// Judges clients.
#[derive(Debug)]
pub(crate) struct Auth {
    clock: Clock,
    metrics: Metrics,
    settings: RwLock<Arc<Settings>>,
    settings_changed: Notify,
    /// What the secrets of settings are opened with.
    keys: Keys,
    /// Whether strangers may come while nobody is asked for anything.
    is_public: bool,
    revisions: Mutex<Revisions>,
    index: RwLock<Index>,
    blocks: Blocks,
    verified: Verified,
    hashing: Hashing,
    questions: Questions,
    bearers: Bearers,
    unauthorized: Unauthorized,
}

impl Auth {
    /// Knows nobody yet.
    ///
    /// # Errors
    /// When the system gives no threads.
    pub(crate) fn new(
        config: &AuthConfig,
        keys: Keys,
        service_id: Arc<str>,
        metrics: Metrics,
    ) -> std::io::Result<Arc<Self>> {
        let ttl_ms = u64::from(config.basic_credentials_password_ttl) * 60_000;
        let dropped = metrics.unauthorized_dropped.clone();
        Ok(Arc::new(Self {
            clock: Clock::new(),
            settings: RwLock::default(),
            settings_changed: Notify::new(),
            keys,
            is_public: config.mqtt_anonymous_enabled,
            revisions: Mutex::default(),
            index: RwLock::default(),
            blocks: Blocks::default(),
            verified: Verified::new(settings::random_key(), config.basic_credentials_password_max, ttl_ms),
            hashing: Hashing::start(config.hashing(), metrics.hash_queue.clone())?,
            questions: Questions::default(),
            bearers: Bearers::default(),
            unauthorized: Unauthorized::new(config.unauth_clients_enabled, service_id, dropped),
            metrics,
        }))
    }

    /// Reads all that is known of who may connect. Waits for the bus as long as it takes, telling `component` why.
    ///
    /// # Errors
    /// When the bus refuses.
    pub(crate) async fn open(
        self: &Arc<Self>,
        context: &Context,
        service: &ServiceId,
        changed: &Changed,
        component: &Component,
    ) -> anyhow::Result<Feed> {
        let catalogue = &context.catalogue;
        let about = About {
            what: "who may connect",
            consumer: "auth-consumer",
            topics: vec![catalogue.credentials(), catalogue.auth_settings(), catalogue.blocked_clients()],
        };
        let apply = {
            let (auth, catalogue) = (self.clone(), catalogue.clone());
            let names = Names::new(&catalogue);
            Box::new(move |partition: &TopicPartition, records: &[Record]| {
                auth.apply(&names, partition, records);
            })
        };
        let feed = Feed::open(context, service, about, apply, changed, component).await?;
        self.blocks.begin();
        Ok(feed)
    }

    fn apply(&self, names: &Names, partition: &TopicPartition, records: &[Record]) {
        let topic = names.topic(partition);
        for record in records {
            if let Err(reason) = self.apply_one(topic, record) {
                self.metrics.bad_record(topic);
                tracing::error!(%partition, offset = record.offset, reason, "bad record of who may connect");
            }
        }
        match topic {
            Topic::Credentials => drop(self.metrics.credentials.set(self.index.read().len() as i64)),
            Topic::Blocked => drop(self.metrics.blocked.set(self.blocks.len() as i64)),
            Topic::Settings => {}
        }
    }

    fn apply_one(&self, topic: Topic, record: &Record) -> Result<(), String> {
        match topic {
            Topic::Credentials => {
                let (changed, result) = known::apply_credentials(&self.index, record);
                if let Some(id) = changed {
                    self.bearers.note_changed(Change::Credentials(id));
                }
                result
            }
            Topic::Settings => {
                let (revisions, settings) = (&mut self.revisions.lock(), self.settings());
                let (changed, result) = known::apply_setting(revisions, &settings, &self.keys, record);
                if let Some(mut changed) = changed {
                    self.metrics.unusable(|provider| changed.problems.contains_key(&provider));
                    let others = changed.renew(&settings);
                    *self.settings.write() = Arc::new(changed);
                    self.settings_changed.notify_one();
                    for provider in others {
                        self.bearers.note_changed(Change::Provider(provider));
                    }
                }
                result
            }
            Topic::Blocked => self.blocks.apply(record, self.clock.now().epoch_ms),
        }
    }

    /// Whether nobody is asked for anything now.
    pub(crate) fn is_open(&self) -> bool {
        self.settings().are_open()
    }

    fn settings(&self) -> Arc<Settings> {
        self.settings.read().clone()
    }

    /// The client is connected: it has its id in the registry, and its mailbox knows it. From now on, and from before,
    /// changes of its credential and of its provider, and blocks, come to the mailbox ([`Mailbox::regrant`], [`Mailbox::end`]).
    pub(crate) fn admitted(&self, bearer: Option<&Arc<Bearer>>, mailbox: &Arc<Mailbox>) {
        if let Some(bearer) = bearer {
            self.bearers.add(bearer, mailbox);
            // After it is among those that are told of changes: one of them is not missed.
            if !self.is_as_judged(bearer) {
                self.judge_again(bearer, mailbox);
            }
        }
        let Some(client) = mailbox.client() else { return };
        let now_ms = self.clock.now().epoch_ms;
        self.unauthorized.admitted(&client.id, now_ms);
        let blocked = client.peer.and_then(|peer| {
            let user_name = client.username.as_deref();
            let client = blocked::Client { client_id: &client.id, user_name, address: peer.ip() };
            self.blocks.find(now_ms, client)
        });
        if blocked.is_some() {
            self.end(mailbox, End::Administrative);
        }
    }

    /// Whether what a client was judged by has not changed since.
    fn is_as_judged(&self, bearer: &Bearer) -> bool {
        let settings = self.settings();
        let is_same = !settings.is_disabled(bearer.provider)
            && settings.generation(bearer.provider) == bearer.generation;
        is_same
            && match bearer.proof {
                Proof::Credentials { id, revision } => {
                    self.index.read().get(id).is_some_and(|entry| entry.revision() == revision)
                }
                Proof::Token(_) | Proof::Answer => true,
            }
    }

    /// The client of the mailbox with this number is not connected any more.
    pub(crate) fn left(&self, bearer: &Bearer, number: u64) {
        self.bearers.remove(bearer.ticket(), number);
    }

    fn end(&self, mailbox: &Mailbox, end: End) {
        self.metrics.ended.inc();
        mailbox.end(end);
    }

    /// Tells of clients that were refused; does not return.
    pub(crate) async fn tell_of_refusals(&self, context: &Context, writer: &dyn Writer) {
        let topic = context.catalogue.unauthorized_clients();
        feed::prepare(context, &topic, None).await;
        self.unauthorized.run(writer, &writer.topic(&topic.name)).await;
    }
}

/// Names of the topics.
#[derive(Debug)]
struct Names {
    settings: String,
    blocked: String,
}

impl Names {
    fn new(catalogue: &Catalogue) -> Self {
        Self { settings: catalogue.auth_settings().name, blocked: catalogue.blocked_clients().name }
    }

    fn topic(&self, partition: &TopicPartition) -> Topic {
        match &*partition.topic {
            name if name == self.settings => Topic::Settings,
            name if name == self.blocked => Topic::Blocked,
            _ => Topic::Credentials,
        }
    }
}
