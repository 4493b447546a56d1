//! What sessions mean as rows of an ordered table: the half that [`memory`](super::memory) and
//! [`embedded`](super::embedded) share.
//!
//! | key | value |
//! |---|---|
//! | `s` client id | [`Meta`]: the session's number, epoch, counters |
//! | `r` number, seq | when the record expires, its value |
//! | `f` number, seq | packet id and stage of what is in flight |
//! | `q` number, packet id | a QoS 2 publish that is not released |
//! | `w` number | the will |
//!
//! Numbers are big-endian, so that a session's records lie side by side in their order.

use std::{
    collections::{BTreeMap, HashMap},
    ops::RangeInclusive,
    sync::Arc,
};

use bytes::{Buf as _, BufMut as _, Bytes};
use sha2::{Digest as _, Sha256};

use super::{
    Action, Change, Error, InFlight, Limits, Outcome, Page, ReadLimit, Record, Seq, Session, Stage, State,
    Stored, StoredWill,
};

/// A key and its value.
pub(super) type Row = (Bytes, Bytes);

/// What is to be written: a value, or nothing in its place.
pub(super) type Writes = BTreeMap<Bytes, Option<Bytes>>;

/// An ordered table. Problems are told as text.
pub(super) trait Rows {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, String>;

    /// Rows in the order of their keys.
    fn range(&self, keys: RangeInclusive<Bytes>) -> Box<dyn Iterator<Item = Result<Row, String>> + '_>;
}

/// Bytes of a client's id that are a key as they are; longer ones are represented by their hash.
const NAME_BYTES_MAX: usize = 512;

/// The state that isn't in rows, because it is computed from them.
#[derive(Debug)]
pub(super) struct Model {
    limits: Limits,
    totals: Totals,
}

#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Totals {
    bytes: u64,
    last_number: u64,
}

/// What is to become of a batch.
#[derive(Debug)]
pub(super) struct Step<T> {
    /// To be answered once the writes are kept.
    pub(super) results: Vec<Result<T, Error>>,
    /// To be kept, all or nothing.
    pub(super) writes: Writes,
    totals: Totals,
}

impl Model {
    /// Looks through all sessions.
    pub(super) fn new(limits: Limits, rows: &impl Rows) -> Result<Self, String> {
        let mut totals = Totals::default();
        for row in rows.range(Bytes::from_static(b"s")..=Bytes::from_static(b"t")) {
            let (key, value) = row?;
            let meta = Meta::decode(&value).ok_or_else(|| unreadable(&key))?;
            totals.bytes += meta.bytes;
            totals.last_number = totals.last_number.max(meta.number);
        }
        Ok(Self { limits, totals })
    }

    pub(super) fn open(&self, rows: &impl Rows, sessions: &[Session]) -> Result<Step<State>, String> {
        let mut view = View::new(rows, self.totals);
        let results = sessions.iter().map(|session| view.open(session)).collect::<Result<_, _>>()?;
        Ok(view.into_step(results))
    }

    pub(super) fn apply(
        &self,
        rows: &impl Rows,
        now_ms: i64,
        changes: Vec<Change>,
    ) -> Result<Step<Outcome>, String> {
        let mut view = View::new(rows, self.totals);
        let results = changes
            .into_iter()
            .map(|change| view.apply(now_ms, &self.limits, change))
            .collect::<Result<_, _>>()?;
        Ok(view.into_step(results))
    }

    /// Takes note that a step's writes are kept.
    pub(super) fn kept<T>(&mut self, step: &Step<T>) {
        self.totals = step.totals;
    }
}

/// Reads records of a session; see [`super::SessionStore::read`].
pub(super) fn read(
    rows: &impl Rows,
    now_ms: i64,
    session: &Session,
    after: Seq,
    limit: ReadLimit,
) -> Result<Result<Page, Error>, String> {
    let Some(meta) = rows.get(&session_key(&session.client_id))? else { return Ok(Err(Error::Unknown)) };
    let meta = Meta::decode(&meta).ok_or_else(|| unreadable(session.client_id.as_bytes()))?;
    if meta.epoch > session.epoch {
        return Ok(Err(Error::Fenced { epoch: meta.epoch }));
    }
    let mut page = Page::default();
    let mut bytes = 0;
    let mut seen = after;
    let from = after.max(meta.through).saturating_add(1);
    for row in rows.range(numbered(b'r', meta.number, from)..=numbered(b'r', meta.number, Seq::MAX)) {
        let (key, mut value) = row?;
        let seq = seq_of(&key)?;
        let expires_at_ms = value.try_get_i64().map_err(|_| unreadable(&key))?;
        let in_flight = if seq <= meta.sent {
            rows.get(&numbered(b'f', meta.number, seq))?.map(|note| note_of(&note)).transpose()?
        } else {
            None
        };
        if in_flight.is_none() && now_ms >= expires_at_ms {
            page.expired += 1;
            seen = seq;
            continue;
        }
        bytes += value.len();
        let is_full = page.records.len() >= limit.records || bytes > limit.bytes;
        if is_full && !page.records.is_empty() {
            page.next_after = Some(seen);
            break;
        }
        page.records.push(Stored { seq, value, in_flight });
        seen = seq;
    }
    Ok(Ok(page))
}

/// Rows with the writes of a batch before them.
struct View<'a, R> {
    rows: &'a R,
    writes: Writes,
    totals: Totals,
    /// Sessions that the batch has looked at; `None`: not there.
    metas: HashMap<Arc<str>, Option<Meta>>,
}

impl<'a, R: Rows> View<'a, R> {
    fn new(rows: &'a R, totals: Totals) -> Self {
        Self { rows, writes: Writes::new(), totals, metas: HashMap::new() }
    }

    fn into_step<T>(self, results: Vec<Result<T, Error>>) -> Step<T> {
        let Self { mut writes, totals, metas, .. } = self;
        for (client_id, meta) in metas {
            if let Some(meta) = meta {
                writes.insert(session_key(&client_id), Some(meta.encode()));
            }
        }
        Step { results, writes, totals }
    }

    fn open(&mut self, session: &Session) -> Result<Result<State, Error>, String> {
        let (mut meta, is_present) = match self.meta(&session.client_id)? {
            Some(meta) if meta.epoch > session.epoch => {
                return Ok(Err(Error::Fenced { epoch: meta.epoch }));
            }
            Some(meta) => (meta, true),
            None => {
                self.totals.last_number += 1;
                (Meta { number: self.totals.last_number, ..Meta::default() }, false)
            }
        };
        meta.epoch = session.epoch;
        self.metas.insert(session.client_id.clone(), Some(meta));
        let received = self
            .keys(packet(meta.number, 0)..=packet(meta.number, u16::MAX))?
            .iter()
            .map(|key| key.get(9..).and_then(|mut id| id.try_get_u16().ok()).ok_or_else(|| unreadable(key)))
            .collect::<Result<_, _>>()?;
        let will = self.get(&number(b'w', meta.number))?.map(|will| will_of(&will)).transpose()?;
        let Meta { last, sent, records, bytes, .. } = meta;
        Ok(Ok(State { is_present, last, sent, records, bytes, received, will }))
    }

    fn apply(
        &mut self,
        now_ms: i64,
        limits: &Limits,
        Change { session, action }: Change,
    ) -> Result<Result<Outcome, Error>, String> {
        let mut meta = match self.meta(&session.client_id)? {
            None => return Ok(Err(Error::Unknown)),
            Some(meta) if meta.epoch > session.epoch => {
                return Ok(Err(Error::Fenced { epoch: meta.epoch }));
            }
            Some(meta) => Meta { epoch: session.epoch, ..meta },
        };
        let mut outcome = Outcome::Done;
        match action {
            Action::Append(record) => outcome = self.append(now_ms, limits, &mut meta, record)?,
            Action::Acknowledge { through, settled, in_flight } => {
                self.settle(&mut meta, through, &settled)?;
                self.note(&mut meta, &in_flight)?;
            }
            Action::Received { taken, released } => {
                for id in taken {
                    self.writes.insert(packet(meta.number, id), Some(Bytes::new()));
                }
                for id in released {
                    self.writes.insert(packet(meta.number, id), None);
                }
            }
            Action::SetWill(will) => {
                self.writes.insert(number(b'w', meta.number), will.as_ref().map(encode_will));
            }
            Action::Clear => self.clear(&mut meta)?,
            Action::Remove => {
                self.clear(&mut meta)?;
                self.writes.insert(session_key(&session.client_id), None);
                self.metas.insert(session.client_id, None);
                return Ok(Ok(Outcome::Done));
            }
        }
        self.metas.insert(session.client_id, Some(meta));
        Ok(Ok(outcome))
    }

    fn append(
        &mut self,
        now_ms: i64,
        limits: &Limits,
        meta: &mut Meta,
        record: Record,
    ) -> Result<Outcome, String> {
        let bytes = record.value.len() as u64;
        let Some(victims) = self.victims(limits, meta, bytes)? else { return Ok(Outcome::Full) };
        for (seq, bytes) in &victims {
            self.forget(meta, *seq, *bytes);
            meta.dropped = *seq;
        }
        let expires_at_ms =
            record.expires_at_ms.unwrap_or(i64::MAX).min(now_ms.saturating_add(limits.ttl_ms));
        meta.last += 1;
        meta.records += 1;
        meta.bytes += bytes;
        self.totals.bytes += bytes;
        let row = encode_record(expires_at_ms, &record.value);
        self.writes.insert(numbered(b'r', meta.number, meta.last), Some(row));
        Ok(Outcome::Appended { seq: meta.last, dropped: victims.len() as u32 })
    }

    /// The oldest that wait and have to give way to so many bytes; `None` when that would not be enough.
    fn victims(&self, limits: &Limits, meta: &Meta, bytes: u64) -> Result<Option<Vec<(Seq, u64)>>, String> {
        let mut victims = Vec::new();
        let mut records = meta.records + 1;
        let room =
            limits.bytes.saturating_sub(meta.bytes).min(limits.total_bytes.saturating_sub(self.totals.bytes));
        let mut missing = bytes.saturating_sub(room);
        if records <= limits.records && missing == 0 {
            return Ok(Some(victims));
        }
        let from = meta.sent.max(meta.dropped) + 1;
        for row in self.range(numbered(b'r', meta.number, from)..=numbered(b'r', meta.number, Seq::MAX)) {
            let (key, value) = row?;
            let bytes = value_bytes(&value);
            victims.push((seq_of(&key)?, bytes));
            records -= 1;
            missing = missing.saturating_sub(bytes);
            if records <= limits.records && missing == 0 {
                return Ok(Some(victims));
            }
        }
        Ok(None)
    }

    fn settle(&mut self, meta: &mut Meta, through: Seq, settled: &[Seq]) -> Result<(), String> {
        let through = through.min(meta.last);
        if through > meta.through {
            let keys = numbered(b'r', meta.number, meta.through + 1)..=numbered(b'r', meta.number, through);
            let gone = self
                .range(keys)
                .map(|row| row.and_then(|(key, value)| Ok((seq_of(&key)?, value_bytes(&value)))))
                .collect::<Result<Vec<_>, _>>()?;
            for (seq, bytes) in gone {
                self.forget(meta, seq, bytes);
            }
            meta.through = through;
            meta.sent = meta.sent.max(through);
        }
        for seq in settled {
            if let Some(value) = self.get(&numbered(b'r', meta.number, *seq))? {
                self.forget(meta, *seq, value_bytes(&value));
            }
        }
        Ok(())
    }

    fn note(&mut self, meta: &mut Meta, in_flight: &[(Seq, InFlight)]) -> Result<(), String> {
        for (seq, note) in in_flight {
            let key = numbered(b'r', meta.number, *seq);
            let Some(value) = self.get(&key)? else { continue };
            if note.stage == Stage::Pubrel {
                let bytes = value_bytes(&value);
                meta.bytes -= bytes;
                self.totals.bytes -= bytes;
                self.writes.insert(key, Some(encode_record(i64::MAX, &[])));
            }
            self.writes.insert(numbered(b'f', meta.number, *seq), Some(encode_note(*note)));
            meta.sent = meta.sent.max(*seq);
        }
        Ok(())
    }

    fn clear(&mut self, meta: &mut Meta) -> Result<(), String> {
        self.totals.bytes -= meta.bytes;
        let mut keys = Vec::new();
        for letter in [b'r', b'f'] {
            keys.extend(
                self.keys(numbered(letter, meta.number, 0)..=numbered(letter, meta.number, Seq::MAX))?,
            );
        }
        keys.extend(self.keys(packet(meta.number, 0)..=packet(meta.number, u16::MAX))?);
        keys.push(number(b'w', meta.number));
        for key in keys {
            self.writes.insert(key, None);
        }
        let Meta { number, epoch, last, .. } = *meta;
        *meta = Meta { number, epoch, last, through: last, sent: last, ..Meta::default() };
        Ok(())
    }

    /// Takes a record that is there out of the queue.
    fn forget(&mut self, meta: &mut Meta, seq: Seq, bytes: u64) {
        meta.records -= 1;
        meta.bytes -= bytes;
        self.totals.bytes -= bytes;
        self.writes.insert(numbered(b'r', meta.number, seq), None);
        if seq <= meta.sent {
            self.writes.insert(numbered(b'f', meta.number, seq), None);
        }
    }

    fn meta(&mut self, client_id: &Arc<str>) -> Result<Option<Meta>, String> {
        if let Some(meta) = self.metas.get(client_id) {
            return Ok(*meta);
        }
        let key = session_key(client_id);
        let found = self.rows.get(&key)?;
        found.map(|meta| Meta::decode(&meta).ok_or_else(|| unreadable(&key))).transpose()
    }

    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, String> {
        match self.writes.get(key) {
            Some(written) => Ok(written.clone()),
            None => self.rows.get(key),
        }
    }

    fn keys(&self, keys: RangeInclusive<Bytes>) -> Result<Vec<Bytes>, String> {
        self.range(keys).map(|row| row.map(|(key, _)| key)).collect()
    }

    /// Rows as they will be.
    fn range(&self, keys: RangeInclusive<Bytes>) -> impl Iterator<Item = Result<Row, String>> {
        let mut written = self.writes.range(keys.clone()).peekable();
        let mut kept = self.rows.range(keys).peekable();
        std::iter::from_fn(move || {
            loop {
                let is_written_next = match (written.peek(), kept.peek()) {
                    (None, _) => false,
                    (Some(_), None) => true,
                    (Some((key, _)), Some(Ok((kept_key, _)))) => *key <= kept_key,
                    (_, Some(Err(_))) => false,
                };
                if !is_written_next {
                    return kept.next();
                }
                let (key, value) = written.next()?;
                // What is written stands for what was kept.
                kept.next_if(|row| row.as_ref().is_ok_and(|(kept_key, _)| kept_key == key));
                if let Some(value) = value {
                    return Some(Ok((key.clone(), value.clone())));
                }
            }
        })
    }
}

/// The row of a session.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Meta {
    /// Stands for the client's id in other keys.
    number: u64,
    epoch: u64,
    /// The last number given to a record.
    last: Seq,
    /// Everything up to here is gone.
    through: Seq,
    /// Everything up to here was sent.
    sent: Seq,
    /// Nothing of what waits lies up to here; spares a look at what was dropped.
    dropped: Seq,
    records: u64,
    bytes: u64,
}

impl Meta {
    fn encode(&self) -> Bytes {
        let mut row = Vec::with_capacity(64);
        let Self { number, epoch, last, through, sent, dropped, records, bytes } = *self;
        for field in [number, epoch, last, through, sent, dropped, records, bytes] {
            row.put_u64(field);
        }
        row.into()
    }

    fn decode(mut row: &[u8]) -> Option<Self> {
        let mut field = || row.try_get_u64().ok();
        Some(Self {
            number: field()?,
            epoch: field()?,
            last: field()?,
            through: field()?,
            sent: field()?,
            dropped: field()?,
            records: field()?,
            bytes: field()?,
        })
    }
}

fn unreadable(key: &[u8]) -> String {
    format!("the row at {:?} can't be read", Bytes::copy_from_slice(key))
}

fn session_key(client_id: &str) -> Bytes {
    let mut key = Vec::with_capacity(1 + client_id.len().min(NAME_BYTES_MAX));
    key.push(b's');
    if client_id.len() <= NAME_BYTES_MAX {
        key.extend_from_slice(client_id.as_bytes());
    } else {
        // No id holds a zero byte (MQTT-1.5.3-2).
        key.push(0);
        key.extend_from_slice(&Sha256::digest(client_id));
    }
    key.into()
}

fn number(letter: u8, number: u64) -> Bytes {
    let mut key = Vec::with_capacity(9);
    key.push(letter);
    key.put_u64(number);
    key.into()
}

fn numbered(letter: u8, number: u64, seq: Seq) -> Bytes {
    let mut key = Vec::with_capacity(17);
    key.push(letter);
    key.put_u64(number);
    key.put_u64(seq);
    key.into()
}

fn packet(number: u64, packet_id: u16) -> Bytes {
    let mut key = Vec::with_capacity(11);
    key.push(b'q');
    key.put_u64(number);
    key.put_u16(packet_id);
    key.into()
}

fn seq_of(key: &[u8]) -> Result<Seq, String> {
    key.get(9..).and_then(|mut seq| seq.try_get_u64().ok()).ok_or_else(|| unreadable(key))
}

fn encode_record(expires_at_ms: i64, value: &[u8]) -> Bytes {
    let mut row = Vec::with_capacity(8 + value.len());
    row.put_i64(expires_at_ms);
    row.extend_from_slice(value);
    row.into()
}

fn value_bytes(row: &[u8]) -> u64 {
    row.len().saturating_sub(8) as u64
}

fn encode_note(note: InFlight) -> Bytes {
    let mut row = Vec::with_capacity(3);
    row.put_u16(note.packet_id);
    row.put_u8(match note.stage {
        Stage::Publish => 0,
        Stage::Pubrel => 1,
    });
    row.into()
}

fn note_of(row: &[u8]) -> Result<InFlight, String> {
    let mut rest = row;
    let packet_id = rest.try_get_u16().map_err(|_| unreadable(row))?;
    let stage = match rest {
        [0] => Stage::Publish,
        [1] => Stage::Pubrel,
        _ => return Err(unreadable(row)),
    };
    Ok(InFlight { packet_id, stage })
}

fn encode_will(will: &StoredWill) -> Bytes {
    encode_record(will.due_at_ms.unwrap_or(i64::MIN), &will.value)
}

fn will_of(row: &Bytes) -> Result<StoredWill, String> {
    let mut value = row.clone();
    let due_at_ms = value.try_get_i64().map_err(|_| unreadable(row))?;
    Ok(StoredWill { value, due_at_ms: (due_at_ms != i64::MIN).then_some(due_at_ms) })
}
