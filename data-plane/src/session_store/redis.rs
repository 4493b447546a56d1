//! Sessions in Redis, for data planes that keep nothing themselves.
//!
//! A session has five keys, which share a slot of a cluster, as TBMQ's do:
//!
//! | key | type | content |
//! |---|---|---|
//! | `{client id}_session` | hash | epoch, counters, will |
//! | `{client id}_messages` | sorted set | numbers of the records that are kept |
//! | `{client id}_values` | hash | number: when the record expires (16 digits) and its value |
//! | `{client id}_inflight` | hash | number: packet id and `P` (PUBLISH was sent) or `R` (PUBREL was) |
//! | `{client id}_received` | set | ids of QoS 2 publishes that are not released |
//!
//! Each call is one script, which Redis runs as one step; on a cluster it is one for each session. A call that was not
//! answered is not repeated. What an answered call survives is a matter of Redis's own settings (`appendonly`,
//! `appendfsync`, replicas). Numbers in scripts are exact up to 2^53.

use std::{collections::HashMap, fmt, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use redis::{
    Client, ConnectionAddr, ConnectionInfo, ErrorKind, FromRedisValue, IntoConnectionInfo as _,
    RedisConnectionInfo, RedisResult, Script,
    aio::{ConnectionManager, ConnectionManagerConfig},
    cluster::ClusterClient,
    cluster_async::ClusterConnection,
};
use tokio::sync::OnceCell;

use super::{
    Action, Change, Error, InFlight, Limits, Outcome, Page, ReadLimit, Seq, Session, SessionStore, Stage,
    State, Stored, StoredWill,
    config::{ConnectionType, RedisConfig},
};

/// Scripts on their way to a cluster for one call.
const CLUSTER_CALLS_MAX: usize = 64;

/// The pause before a script is sent again that was not run.
const RETRY_PAUSE: Duration = Duration::from_millis(50);

/// The largest number that scripts see exactly.
const EXACT_MAX: u64 = 1 << 53;

/// The latest time that 16 digits can tell.
const TIME_MAX: i64 = 9_999_999_999_999_999;

/// Sessions in Redis.
pub struct RedisStore {
    server: Server,
    prefix: String,
    limits: Limits,
    timeout: Duration,
    open: Script,
    apply: Script,
    read: Script,
    closed: tokio_util::sync::CancellationToken,
}

enum Server {
    One(ConnectionManager),
    Cluster { client: Box<ClusterClient>, connection: OnceCell<ClusterConnection> },
}

impl RedisStore {
    /// Does not wait for Redis: it is connected to when it is needed, and again when it was away.
    ///
    /// # Errors
    /// [`Error::Unavailable`] when the configuration can't be used.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn new(config: &RedisConfig, limits: Limits) -> Result<Self, Error> {
        let mut settings = RedisConnectionInfo::default().set_db(i64::from(config.db));
        if !config.username.is_empty() {
            settings = settings.set_username(&config.username);
        }
        if !config.password.expose().is_empty() {
            settings = settings.set_password(config.password.expose());
        }
        let node = |host: &str, port: u16| -> RedisResult<ConnectionInfo> {
            let address = ConnectionAddr::Tcp(host.to_owned(), port);
            Ok(address.into_connection_info()?.set_redis_settings(settings.clone()))
        };
        let server = match config.connection.kind {
            ConnectionType::Standalone => {
                let client = Client::open(node(&config.host, config.port).map_err(unavailable)?);
                let waiting = ConnectionManagerConfig::new()
                    .set_connection_timeout(Some(config.timeout))
                    // A call's own timeout counts from its beginning.
                    .set_response_timeout(None)
                    .set_max_delay(Duration::from_secs(1));
                let manager =
                    client.and_then(|client| ConnectionManager::new_lazy_with_config(client, waiting));
                Server::One(manager.map_err(unavailable)?)
            }
            ConnectionType::Cluster => {
                let nodes = config.nodes().map_err(Error::unavailable)?;
                let nodes =
                    nodes.iter().map(|(host, port)| node(host, *port)).collect::<RedisResult<Vec<_>>>();
                // It would repeat calls whose connection broke, and a message could be appended twice.
                let client = nodes.and_then(|nodes| {
                    ClusterClient::builder(nodes)
                        .retries(0)
                        .connection_timeout(config.timeout)
                        .response_timeout(config.timeout)
                        .build()
                });
                let client = client.map_err(unavailable)?;
                Server::Cluster { client: Box::new(client), connection: OnceCell::new() }
            }
        };
        Ok(Self {
            server,
            prefix: config.key_prefix.clone(),
            limits,
            timeout: config.timeout,
            open: Script::new(include_str!("redis/open.lua")),
            apply: Script::new(include_str!("redis/apply.lua")),
            read: Script::new(include_str!("redis/read.lua")),
            closed: tokio_util::sync::CancellationToken::new(),
        })
    }

    /// Runs a script and waits for its answer, at most the configured time.
    async fn run<T: FromRedisValue>(&self, script: &Script, call: &Call) -> Result<T, Error> {
        let mut invocation = script.prepare_invoke();
        for key in &call.keys {
            invocation.key(&key[..]);
        }
        for argument in &call.arguments {
            invocation.arg(&argument[..]);
        }
        let attempt = async || match &self.server {
            Server::One(connection) => invocation.invoke_async(&mut connection.clone()).await,
            Server::Cluster { client, connection } => {
                let connection = connection.get_or_try_init(|| client.get_async_connection()).await?;
                invocation.invoke_async(&mut connection.clone()).await
            }
        };
        let answer = async {
            loop {
                match attempt().await {
                    Err(error) if was_not_run(&error) => tokio::time::sleep(RETRY_PAUSE).await,
                    other => return other,
                }
            }
        };
        tokio::select! {
            biased;
            () = self.closed.cancelled() => Err(Error::unavailable("it is closed")),
            answer = tokio::time::timeout(self.timeout, answer) => match answer {
                Ok(answer) => answer.map_err(unavailable),
                Err(_) => Err(Error::unavailable(format_args!("Redis gave no answer within {:?}", self.timeout))),
            },
        }
    }

    /// Parts items among calls: one for all of them, or one for each session where a call can't span slots.
    fn part<'a, T>(&self, items: impl Iterator<Item = (&'a Session, T)>) -> Vec<Part<'a, T>> {
        let is_cluster = matches!(self.server, Server::Cluster { .. });
        let mut parts: Vec<Part<'a, T>> = Vec::new();
        // Where a session is: which part, and its place there.
        let mut places: HashMap<&str, (usize, usize)> = HashMap::new();
        for (position, (session, item)) in items.enumerate() {
            let (part, place) = *places.entry(&session.client_id).or_insert_with(|| {
                if is_cluster || parts.is_empty() {
                    parts.push(Part { sessions: Vec::new(), items: Vec::new(), positions: Vec::new() });
                }
                let part = parts.len() - 1;
                parts[part].sessions.push(&session.client_id);
                (part, parts[part].sessions.len())
            });
            parts[part].items.push((place, session.epoch, item));
            parts[part].positions.push(position);
        }
        parts
    }

    /// Runs each part's call and puts the results in their order.
    async fn run_parts<A: FromRedisValue, T, R>(
        &self,
        script: &Script,
        parts: Vec<Part<'_, T>>,
        call: impl Fn(&Part<'_, T>) -> Call,
        result: impl Fn(A) -> Result<R, Error>,
    ) -> Vec<Result<R, Error>> {
        let count = parts.iter().map(|part| part.items.len()).sum();
        let mut results: Vec<_> = (0..count).map(|_| None).collect();
        let calls: Vec<_> = parts.into_iter().map(|part| (call(&part), part.positions)).collect();
        let mut answers = stream::iter(calls)
            .map(async |(call, positions)| (self.run::<Vec<A>>(script, &call).await, positions))
            .buffer_unordered(CLUSTER_CALLS_MAX);
        while let Some((answer, positions)) = answers.next().await {
            match answer {
                Ok(answers) if answers.len() == positions.len() => {
                    for (position, answer) in positions.into_iter().zip(answers) {
                        results[position] = Some(result(answer));
                    }
                }
                Ok(answers) => {
                    let error = strange(format_args!("{} for {} changes", answers.len(), positions.len()));
                    for position in positions {
                        results[position] = Some(Err(error.clone()));
                    }
                }
                Err(error) => {
                    for position in positions {
                        results[position] = Some(Err(error.clone()));
                    }
                }
            }
        }
        results.into_iter().map(|result| result.expect("each item is in one part")).collect()
    }

    fn keys(&self, client_id: &str) -> [Vec<u8>; 5] {
        ["session", "messages", "values", "inflight", "received"]
            .map(|name| key(&self.prefix, client_id, name).into_bytes())
    }
}

impl fmt::Debug for RedisStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisStore").field("prefix", &self.prefix).finish_non_exhaustive()
    }
}

#[async_trait]
impl SessionStore for RedisStore {
    async fn open(&self, sessions: &[Session]) -> Vec<Result<State, Error>> {
        let parts = self.part(sessions.iter().map(|session| (session, ())));
        let call = |part: &Part<'_, ()>| Call {
            // Not by the part's sessions: one that is named twice is opened twice.
            keys: part.items.iter().flat_map(|(place, ..)| self.keys(part.sessions[place - 1])).collect(),
            arguments: part.items.iter().map(|(_, epoch, ())| digits(*epoch)).collect(),
        };
        self.run_parts(&self.open, parts, call, |answer: Vec<Vec<u8>>| state(&answer)).await
    }

    async fn apply(&self, now_ms: i64, changes: Vec<Change>) -> Vec<Result<Outcome, Error>> {
        let parts = self.part(changes.iter().map(|Change { session, action }| (session, action)));
        let call = |part: &Part<'_, &Action>| {
            let mut arguments = vec![number(self.limits.records), number(self.limits.bytes)];
            for (place, epoch, action) in &part.items {
                put(&mut arguments, now_ms, self.limits.ttl_ms, *place, *epoch, action);
            }
            Call {
                keys: part.sessions.iter().flat_map(|client_id| self.keys(client_id)).collect(),
                arguments,
            }
        };
        self.run_parts(&self.apply, parts, call, |answer: Vec<u8>| outcome(&answer)).await
    }

    async fn read(
        &self,
        now_ms: i64,
        session: &Session,
        after: Seq,
        limit: ReadLimit,
    ) -> Result<Page, Error> {
        let [key, messages, values, inflight, _] = self.keys(&session.client_id);
        let arguments = vec![
            digits(session.epoch),
            number(after.min(EXACT_MAX)),
            time(now_ms),
            number((limit.records as u64).min(EXACT_MAX)),
            number((limit.bytes as u64).min(EXACT_MAX)),
        ];
        let call = Call { keys: vec![key, messages, values, inflight], arguments };
        let answer: Vec<Vec<u8>> = self.run(&self.read, &call).await?;
        page(answer)
    }

    async fn close(&self) {
        self.closed.cancel();
    }
}

/// Whether a server has refused a script without running it, for a reason that passes.
fn was_not_run(error: &redis::RedisError) -> bool {
    use redis::ServerErrorKind::{Ask, BusyLoading, ClusterDown, MasterDown, Moved, TryAgain};
    matches!(
        error.kind(),
        ErrorKind::Server(Ask | BusyLoading | ClusterDown | MasterDown | Moved | TryAgain)
            | ErrorKind::ClusterConnectionNotFound
    )
}

/// What goes to Redis in one script: sessions by their place, from 1.
struct Part<'a, T> {
    sessions: Vec<&'a str>,
    /// Place of the session, epoch, what is to be done.
    items: Vec<(usize, u64, T)>,
    /// Places of the items in the whole.
    positions: Vec<usize>,
}

struct Call {
    keys: Vec<Vec<u8>>,
    arguments: Vec<Vec<u8>>,
}

fn unavailable(error: redis::RedisError) -> Error {
    Error::unavailable(error)
}

fn strange(answer: impl fmt::Display) -> Error {
    Error::unavailable(format_args!("strange answer of a script: {answer}"))
}

fn key(prefix: &str, client_id: &str, name: &str) -> String {
    if client_id.starts_with('}') {
        // What stands between the braces, here nothing, would not decide about the slot. No other key ends so.
        return format!("{prefix}{{tbmq}}{client_id}|_{name}");
    }
    format!("{prefix}{{{client_id}}}_{name}")
}

fn number(number: u64) -> Vec<u8> {
    number.to_string().into_bytes()
}

/// An epoch that compares as text.
fn digits(epoch: u64) -> Vec<u8> {
    format!("{epoch:020}").into_bytes()
}

/// A time that compares as text.
fn time(epoch_ms: i64) -> Vec<u8> {
    format!("{:016}", epoch_ms.clamp(0, TIME_MAX)).into_bytes()
}

/// Writes a change as `apply.lua` reads it.
fn put(into: &mut Vec<Vec<u8>>, now_ms: i64, ttl_ms: i64, place: usize, epoch: u64, action: &Action) {
    let letter: &[u8] = match action {
        Action::Append(_) => b"A",
        Action::Acknowledge { .. } => b"K",
        Action::Received { .. } => b"Q",
        Action::SetWill(_) => b"W",
        Action::Clear => b"C",
        Action::Remove => b"R",
    };
    into.extend([letter.to_vec(), number(place as u64), digits(epoch)]);
    match action {
        Action::Append(record) => {
            let latest = now_ms.saturating_add(ttl_ms);
            into.extend([
                time(record.expires_at_ms.map_or(latest, |at| at.min(latest))),
                record.value.to_vec(),
            ]);
        }
        Action::Acknowledge { through, settled, in_flight } => {
            into.extend([number((*through).min(EXACT_MAX)), number(settled.len() as u64)]);
            into.extend(settled.iter().map(|seq| number(*seq)));
            into.push(number(in_flight.len() as u64));
            for (seq, InFlight { packet_id, stage }) in in_flight {
                let stage: &[u8] = match stage {
                    Stage::Publish => b"P",
                    Stage::Pubrel => b"R",
                };
                into.extend([number(*seq), number(u64::from(*packet_id)), stage.to_vec()]);
            }
        }
        Action::Received { taken, released } => {
            for ids in [taken, released] {
                into.push(number(ids.len() as u64));
                into.extend(ids.iter().map(|id| number(u64::from(*id))));
            }
        }
        Action::SetWill(None) => into.extend([b"0".to_vec(), Vec::new(), Vec::new()]),
        Action::SetWill(Some(StoredWill { value, due_at_ms })) => {
            let due = due_at_ms.map_or_else(Vec::new, |due| due.to_string().into_bytes());
            into.extend([b"1".to_vec(), due, value.to_vec()]);
        }
        Action::Clear | Action::Remove => {}
    }
}

fn parse<T: std::str::FromStr>(text: &[u8]) -> Result<T, Error> {
    let number = std::str::from_utf8(text).ok().and_then(|text| text.parse().ok());
    number.ok_or_else(|| strange(String::from_utf8_lossy(text)))
}

fn outcome(answer: &[u8]) -> Result<Outcome, Error> {
    match answer {
        b"D" => Ok(Outcome::Done),
        b"X" => Ok(Outcome::Full),
        b"U" => Err(Error::Unknown),
        [b'F', epoch @ ..] => Err(Error::Fenced { epoch: parse(epoch)? }),
        _ => {
            let blank = answer.iter().position(|byte| *byte == b' ');
            let blank = blank.ok_or_else(|| strange(String::from_utf8_lossy(answer)))?;
            Ok(Outcome::Appended { seq: parse(&answer[..blank])?, dropped: parse(&answer[blank + 1..])? })
        }
    }
}

fn state(answer: &[Vec<u8>]) -> Result<State, Error> {
    match answer {
        [letter, epoch] if letter == b"F" => Err(Error::Fenced { epoch: parse(epoch)? }),
        [is_present, last, sent, records, bytes, has_will, will, due, received @ ..] => {
            let will = if has_will == b"1" {
                let due_at_ms = if due.is_empty() { None } else { Some(parse(due)?) };
                Some(StoredWill { value: Bytes::copy_from_slice(will), due_at_ms })
            } else {
                None
            };
            let mut received = received.iter().map(|id| parse(id)).collect::<Result<Vec<u16>, _>>()?;
            received.sort_unstable();
            Ok(State {
                is_present: is_present == b"1",
                last: parse(last)?,
                sent: parse(sent)?,
                records: parse(records)?,
                bytes: parse(bytes)?,
                received,
                will,
            })
        }
        _ => Err(strange(format_args!("{} words for a session", answer.len()))),
    }
}

fn page(answer: Vec<Vec<u8>>) -> Result<Page, Error> {
    let mut words = answer.into_iter();
    let mut word = || words.next().ok_or_else(|| strange("a page that breaks off"));
    match &word()?[..] {
        b"U" => return Err(Error::Unknown),
        b"F" => return Err(Error::Fenced { epoch: parse(&word()?)? }),
        b"P" => {}
        other => return Err(strange(String::from_utf8_lossy(other))),
    }
    let expired = parse(&word()?)?;
    let next_after = Some(word()?).filter(|next| !next.is_empty());
    let next_after = next_after.map(|next| parse(&next)).transpose()?;
    let mut records = Vec::with_capacity(words.len() / 3);
    while let Some(seq) = words.next() {
        let (Some(value), Some(note)) = (words.next(), words.next()) else {
            return Err(strange("a page that breaks off"));
        };
        let in_flight = match &note[..] {
            [] => None,
            [packet_id @ .., b'P'] => Some(InFlight { packet_id: parse(packet_id)?, stage: Stage::Publish }),
            [packet_id @ .., b'R'] => Some(InFlight { packet_id: parse(packet_id)?, stage: Stage::Pubrel }),
            other => return Err(strange(String::from_utf8_lossy(other))),
        };
        records.push(Stored { seq: parse(&seq)?, value: value.into(), in_flight });
    }
    Ok(Page { records, expired, next_after })
}

#[cfg(test)]
mod tests {
    use std::{
        net::SocketAddr,
        sync::{
            Arc,
            atomic::{AtomicU32, Ordering},
        },
    };

    use tbmq_harness::{Need, ready, redis::Redis};

    use super::*;
    use crate::session_store::{
        Record,
        config::RedisConnectionConfig,
        contract::{Place, contract},
    };

    fn config(address: SocketAddr, kind: ConnectionType, prefix: String) -> RedisConfig {
        RedisConfig {
            connection: RedisConnectionConfig { kind },
            host: address.ip().to_string(),
            port: address.port(),
            nodes: vec![address.to_string()],
            key_prefix: prefix,
            // A call that ran late on a busy machine would be made again by the tests.
            timeout: Duration::from_secs(60),
            ..RedisConfig::default()
        }
    }

    /// The keys of one test among those of all.
    struct Keys {
        redis: &'static Redis,
        config: RedisConfig,
        store: Option<Arc<RedisStore>>,
    }

    impl Keys {
        fn new(test: &str, kind: ConnectionType) -> Option<Self> {
            static NEXT: AtomicU32 = AtomicU32::new(0);
            if !ready(test, &[Need::Redis]) {
                return None;
            }
            let redis = match kind {
                ConnectionType::Standalone => Redis::shared(),
                ConnectionType::Cluster => Redis::shared_cluster(),
            };
            let prefix = format!("test-{}:", NEXT.fetch_add(1, Ordering::Relaxed));
            Some(Self { redis, config: config(redis.address(), kind, prefix), store: None })
        }

        async fn open(&mut self, limits: Limits) -> Arc<dyn SessionStore> {
            if let Some(store) = self.store.take() {
                store.close().await;
            }
            self.store.insert(Arc::new(RedisStore::new(&self.config, limits).unwrap())).clone()
        }

        fn leftovers(&self) -> usize {
            let count = format!("return #redis.call('KEYS','{}*')", self.config.key_prefix);
            let answer = self.redis.ask(&format!("EVAL \"{count}\" 0")).unwrap();
            answer.strip_prefix(':').expect(&answer).parse().unwrap()
        }
    }

    struct OneServer(Keys);

    impl Place for OneServer {
        async fn new(test: &str) -> Option<Self> {
            Keys::new(test, ConnectionType::Standalone).map(Self)
        }

        async fn open(&mut self, limits: Limits) -> Arc<dyn SessionStore> {
            self.0.open(limits).await
        }

        async fn leftovers(&mut self) -> usize {
            self.0.leftovers()
        }
    }

    contract!(OneServer);

    mod cluster {
        use super::*;

        struct Cluster(Keys);

        impl Place for Cluster {
            async fn new(test: &str) -> Option<Self> {
                Keys::new(test, ConnectionType::Cluster).map(Self)
            }

            async fn open(&mut self, limits: Limits) -> Arc<dyn SessionStore> {
                self.0.open(limits).await
            }

            async fn leftovers(&mut self) -> usize {
                self.0.leftovers()
            }
        }

        contract!(Cluster);
    }

    fn append(session: &Session, value: impl Into<Bytes>) -> Change {
        let record = Record { value: value.into(), expires_at_ms: None };
        Change { session: session.clone(), action: Action::Append(record) }
    }

    #[tokio::test]
    async fn a_store_whose_redis_was_away_says_so_and_goes_on() {
        if !ready("a_store_whose_redis_was_away_says_so_and_goes_on", &[Need::Redis]) {
            return;
        }
        for (redis, kind) in [
            (Redis::start(&[]).unwrap(), ConnectionType::Standalone),
            (Redis::start_cluster(&[]).unwrap(), ConnectionType::Cluster),
        ] {
            let config = config(redis.address(), kind, String::new());
            redis.kill().unwrap();
            let store = RedisStore::new(&config, Limits::default()).unwrap();
            let session = Session::new("a", 1);
            let states = store.open(std::slice::from_ref(&session)).await;
            assert!(matches!(states[..], [Err(Error::Unavailable(_))]), "{states:?}");
            redis.launch().unwrap();
            until(async || store.open(std::slice::from_ref(&session)).await[0].is_ok()).await;
            for seq in 1..=3 {
                let mut results = Vec::new();
                until(async || {
                    results = store.apply(0, vec![append(&session, "m")]).await;
                    results[0].is_ok()
                })
                .await;
                assert_eq!(
                    results,
                    [Ok(Outcome::Appended { seq, dropped: 0 })],
                    "what was answered survived"
                );
                redis.kill().unwrap();
                redis.launch().unwrap();
            }
        }
    }

    async fn until(mut condition: impl AsyncFnMut() -> bool) {
        let waited = tokio::time::timeout(Duration::from_secs(120), async { while !condition().await {} });
        waited.await.expect("the condition holds in time");
    }

    #[tokio::test]
    async fn a_redis_without_memory_refuses_appends_whole_and_takes_acknowledgements() {
        if !ready("a_redis_without_memory_refuses_appends_whole_and_takes_acknowledgements", &[Need::Redis]) {
            return;
        }
        let redis = Redis::start(&["maxmemory 8mb", "maxmemory-policy noeviction"]).unwrap();
        let config = config(redis.address(), ConnectionType::Standalone, String::new());
        let store = RedisStore::new(&config, Limits::default()).unwrap();
        let [a, b] = ["a", "b"].map(|id| Session::new(id, 1));
        store.open(&[a.clone(), b.clone()]).await;
        let mut last = 0;
        let error = loop {
            match store.apply(0, vec![append(&a, vec![7; 100_000]), append(&b, "m")]).await.remove(0) {
                Ok(Outcome::Appended { seq, .. }) => last = seq,
                Ok(other) => panic!("{other:?}"),
                Err(error) => break error,
            }
        };
        assert!(error.to_string().contains("OOM"), "{error}");
        let settle = Action::Acknowledge { through: last, settled: Vec::new(), in_flight: Vec::new() };
        let results = store.apply(0, vec![Change { session: a.clone(), action: settle }]).await;
        assert_eq!(results, [Ok(Outcome::Done)]);
        let states = store.open(&[a, b]).await;
        let states: Vec<_> =
            states.into_iter().map(|state| state.map(|state| (state.last, state.records))).collect();
        assert_eq!(states, [Ok((last, 0)), Ok((last, last))], "both of a batch or none");
    }

    #[tokio::test]
    async fn a_password_and_a_database_are_used() {
        if !ready("a_password_and_a_database_are_used", &[Need::Redis]) {
            return;
        }
        let redis = Redis::start(&["requirepass secret"]).unwrap();
        let mut config = config(redis.address(), ConnectionType::Standalone, String::new());
        let session = Session::new("a", 1);
        let store = RedisStore::new(&config, Limits::default()).unwrap();
        let states = store.open(std::slice::from_ref(&session)).await;
        assert!(matches!(states[..], [Err(Error::Unavailable(_))]), "{states:?}");
        config.password = tbmq_service::config::Secret::new("secret");
        for db in [0, 3] {
            let store = RedisStore::new(&RedisConfig { db, ..config.clone() }, Limits::default()).unwrap();
            let states = store.open(std::slice::from_ref(&session)).await;
            assert_eq!(states, [Ok(State::default())], "in database {db} it is new");
        }
    }

    #[test]
    fn keys_of_a_session_share_a_slot_and_no_other_has_them() {
        assert_eq!(key("p:", "device-1", "messages"), "p:{device-1}_messages");
        assert_eq!(key("", "}x", "values"), "{tbmq}}x|_values");
        assert_ne!(key("", "}x", "values"), key("", "tbmq}}x|", "values"));
    }
}
