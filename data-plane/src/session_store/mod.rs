//! The durable half of persistent sessions, behind one port (architecture §4.24).
//!
//! A stored session is a queue of records in the order in which they were appended, notes of what of it is in flight
//! to the client, the ids of QoS 2 publishes that the client has not released, and its will. Records have sequence
//! numbers of 64 bits, which are never given twice; packet ids are only noted beside them, so that an id that comes
//! round again overwrites nothing.
//!
//! ```text
//!   … settled │ in flight: seq ─► packet id, stage │ waiting …                  next
//!             ▲ through                            ▲ sent          append ──►   ▲
//! ```
//!
//! | adapter | keeps |
//! |---|---|
//! | [`memory`] | as long as the process lives |
//! | [`embedded`] | on this machine's disk: the all-in-one |
//! | [`redis`] | in Redis, for data planes that keep nothing themselves |
//!
//! Callers gather: a call takes a batch and costs one round trip, or one sync, however much is in it.

use std::{fmt, sync::Arc};

use async_trait::async_trait;
use bytes::Bytes;

pub mod config;
#[cfg(test)]
mod contract;
pub mod delivery;
pub mod embedded;
pub mod memory;
mod model;
pub mod redis;

/// Place of a record in its session's queue, from 1.
pub type Seq = u64;

/// A session, and in which of its lives.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Session {
    /// The client's id, or a name that no client can have for a queue that several share.
    pub client_id: Arc<str>,
    /// Who speaks for the session: each new owner has a greater epoch, and the lesser ones are [`Error::Fenced`].
    pub epoch: u64,
}

impl Session {
    /// Names a session.
    pub fn new(client_id: impl Into<Arc<str>>, epoch: u64) -> Self {
        Self { client_id: client_id.into(), epoch }
    }
}

/// One message for one session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// What the store keeps unread.
    pub value: Bytes,
    /// When the message expires, epoch ms. It goes earlier when the store's time to live is shorter.
    pub expires_at_ms: Option<i64>,
}

/// How far a delivery has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// PUBLISH was sent.
    Publish,
    /// PUBREL was sent: the message itself is not needed any more, its packet id is.
    Pubrel,
}

/// A record that was sent and is not settled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InFlight {
    /// The packet id that it was sent with.
    pub packet_id: u16,
    /// How far it has come.
    pub stage: Stage,
}

/// What is to be changed in one session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// The session.
    pub session: Session,
    /// What is to be done.
    pub action: Action,
}

/// What can be done with an open session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Puts a record at the end of the queue. At the limit of records or bytes the oldest that wait give way; those in
    /// flight never do.
    Append(Record),
    /// Settles records and notes what is in flight.
    Acknowledge {
        /// All up to this one are settled and go; 0: none.
        through: Seq,
        /// These are settled as well.
        settled: Vec<Seq>,
        /// These were sent, or have come further. Sent in the order of the queue: all records up to the highest noted
        /// are taken for sent. Numbers that aren't in the queue are passed over.
        in_flight: Vec<(Seq, InFlight)>,
    },
    /// QoS 2 publishes of the client: ids that were taken and are not released yet.
    Received {
        /// Taken now.
        taken: Vec<u16>,
        /// Released now, after `taken`.
        released: Vec<u16>,
    },
    /// Replaces the will; `None`: there is none any more.
    SetWill(Option<StoredWill>),
    /// Forgets queue, notes, ids and will, not the session: a clean start.
    Clear,
    /// Forgets all of it; the session has to be opened to be used again.
    Remove,
}

/// A will that outlives the process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredWill {
    /// What the store keeps unread.
    pub value: Bytes,
    /// When it is to be published, epoch ms; `None` while the client is connected.
    pub due_at_ms: Option<i64>,
}

/// What a change has done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It is done.
    Done,
    /// The record is kept.
    Appended {
        /// Its number.
        seq: Seq,
        /// Older records that gave way: to be counted.
        dropped: u32,
    },
    /// The record was dropped, to be counted: it is larger than all that a session or the store may hold, or the queue
    /// is full of what is in flight.
    Full,
}

/// What is stored of a session when it is opened.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct State {
    /// Whether it was there before.
    pub is_present: bool,
    /// The number of the last record that was ever appended; 0: none.
    pub last: Seq,
    /// What is in flight has no greater number; 0: nothing was ever sent.
    pub sent: Seq,
    /// Records that are kept, those in flight included.
    pub records: u64,
    /// Bytes of their values.
    pub bytes: u64,
    /// QoS 2 publishes that are not released, in ascending order.
    pub received: Vec<u16>,
    /// The will.
    pub will: Option<StoredWill>,
}

/// A record as it is read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    /// Its number.
    pub seq: Seq,
    /// As it was appended; empty from [`Stage::Pubrel`] on.
    pub value: Bytes,
    /// Its packet id and stage, if it was sent.
    pub in_flight: Option<InFlight>,
}

/// Records in the order of their numbers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Page {
    /// The records.
    pub records: Vec<Stored>,
    /// How many were passed over because they had expired before they were sent.
    pub expired: u32,
    /// Where to read on; `None` at the end of what is there now.
    pub next_after: Option<Seq>,
}

/// How much to read at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReadLimit {
    /// Records.
    pub records: usize,
    /// Bytes of values; one record is read whatever its size.
    pub bytes: usize,
}

/// What sessions may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Records of a session.
    pub records: u64,
    /// Bytes of a session's records.
    pub bytes: u64,
    /// How long a record waits at most, ms.
    pub ttl_ms: i64,
    /// Bytes of all sessions' records; Redis has a limit of its own (`maxmemory`).
    pub total_bytes: u64,
}

impl Default for Limits {
    /// TBMQ's 10,000 records and 7 days; 64 MiB a session, 1 GiB in all.
    fn default() -> Self {
        Self { records: 10_000, bytes: 64 << 20, ttl_ms: 604_800_000, total_bytes: 1 << 30 }
    }
}

/// What went wrong, by what the caller can do about it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The store can't be reached or can't write; trying again may help. It is open whether the change was made.
    #[error("the session store is unavailable: {0}")]
    Unavailable(Arc<str>),
    /// A later owner speaks for the session; stop. Nothing was changed.
    #[error("a session of epoch {epoch} has replaced this one")]
    Fenced {
        /// The epoch of that owner.
        epoch: u64,
    },
    /// The session is not open, or was removed. Nothing was changed.
    #[error("the session is not stored")]
    Unknown,
}

impl Error {
    pub(crate) fn unavailable(reason: impl fmt::Display) -> Self {
        Self::Unavailable(reason.to_string().into())
    }
}

/// Keeps what a persistent session must not forget.
///
/// Time is an argument: `now_ms`, epoch ms. Changes take effect in their order within a call; of two calls under way
/// either may be first. A call is one atomic step: nobody sees a part of it, and after a crash all of it is there or
/// nothing (on a Redis cluster: all of a session's part of it). What was answered survives what the adapter promises.
/// A call may be dropped; it is open then whether it was done.
#[async_trait]
pub trait SessionStore: Send + Sync + fmt::Debug {
    /// Opens sessions, making those that are not there, and fences lesser epochs. One result for each, in their order.
    async fn open(&self, sessions: &[Session]) -> Vec<Result<State, Error>>;

    /// Applies changes. One result for each, in their order; a session that is refused does not concern the others.
    /// A greater epoch than the stored one becomes the stored one.
    async fn apply(&self, now_ms: i64, changes: Vec<Change>) -> Vec<Result<Outcome, Error>>;

    /// Reads records after a number, in flight or waiting. Changes nothing.
    async fn read(&self, now_ms: i64, session: &Session, after: Seq, limit: ReadLimit)
    -> Result<Page, Error>;

    /// Finishes what is under way and releases what is held; afterwards everything is [`Error::Unavailable`].
    async fn close(&self);
}
