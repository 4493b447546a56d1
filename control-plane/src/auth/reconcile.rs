//! Reconciliation of who may connect: what lies on its topics is compared with the store, and repaired from the store
//! outward.

use std::{
    collections::{BTreeSet, HashMap},
    hash::{BuildHasher as _, RandomState},
};

use ring::rand::{SecureRandom as _, SystemRandom};
use tbmq_bus::{BatchRecord, ReaderConfig, ReaderEvent, Record, Start, TopicPartition};
use tbmq_proto::topic::REVISION_HEADER;
use uuid::Uuid;

use super::{
    digest, record,
    relay::{self, State},
};
use crate::{
    plane::Plane,
    reconcile::{BATCH_RECORDS, PATIENCE},
    relayer::{Error, Relayer},
    store::{AuthTopic, BlockedRow, CredentialsRow, Item, PAGE_ROWS_MAX},
};

/// What lies on the bus: of a million records no more than what tells them apart.
#[derive(Default)]
struct Found {
    held: HashMap<Place, Held>,
    revision_max: u64,
    hasher: RandomState,
}

/// Where a record lies.
#[derive(PartialEq, Eq, Hash)]
enum Place {
    Credentials(Uuid),
    /// By its key.
    Other(AuthTopic, Box<str>),
}

impl Place {
    fn of(topic: AuthTopic, key: &str) -> Self {
        match key.parse() {
            // Written otherwise it is the key of another record.
            Ok(id) if topic == AuthTopic::Credentials && Uuid::to_string(&id) == key => Self::Credentials(id),
            _ => Self::Other(topic, key.into()),
        }
    }

    fn topic(&self) -> AuthTopic {
        match self {
            Self::Credentials(_) => AuthTopic::Credentials,
            Self::Other(topic, _) => *topic,
        }
    }

    fn key(&self) -> String {
        match self {
            Self::Credentials(id) => id.to_string(),
            Self::Other(_, key) => key.to_string(),
        }
    }

    fn item(&self) -> Item {
        let row = match self {
            Self::Other(AuthTopic::Blocked, key) => digest(key),
            other => other.key(),
        };
        Item { topic: self.topic(), row }
    }
}

#[derive(Clone, Copy)]
struct Held {
    revision: u64,
    hash: u64,
}

/// Compares and repairs. May be called while the relayer relays: what it writes meanwhile is at worst written again.
pub(crate) async fn reconcile(relayer: &Relayer) -> Result<(), Error> {
    let plane = &relayer.plane;
    plane.ensure_auth().await?;
    let mut found = tokio::time::timeout(PATIENCE, read(relayer)).await.map_err(|_| {
        let text = format!("the topics of who may connect were not read within {PATIENCE:?}");
        tbmq_bus::Error::Unavailable(text)
    })??;
    if found.revision_max > plane.store.revision().await? {
        plane.store.raise_revision(found.revision_max).await?;
    }
    let mut after = None;
    loop {
        let rows = plane.store.scan_credentials(after).await?;
        let Some(last) = rows.last() else { break };
        after = Some(last.credentials.id);
        let states = rows.iter().map(|row| {
            let id = row.credentials.id;
            (Place::Credentials(id), id.to_string(), relay::of_credentials(row))
        });
        repair(relayer, &mut found, states).await?;
    }
    let mut after: Option<String> = None;
    loop {
        let rows = plane.store.scan_blocked(after.as_deref()).await?;
        let Some(last) = rows.last() else { break };
        after = Some(last.item().row);
        let states = rows.iter().map(|row| {
            let key = row.who.key();
            (Place::of(AuthTopic::Blocked, &key), key, relay::of_blocked(row))
        });
        repair(relayer, &mut found, states).await?;
    }
    let settings = relay::settings(plane).await?.into_iter().map(|(item, state)| {
        let key = item.row;
        (Place::of(AuthTopic::Settings, &key), key, state)
    });
    repair(relayer, &mut found, settings).await?;
    // Above all revisions that were found.
    make_secrets(plane).await?;
    repair_strangers(relayer, found).await
}

/// Makes, once for ever, what all data planes share.
async fn make_secrets(plane: &Plane) -> Result<(), Error> {
    let mut key = [0; 32];
    if SystemRandom::new().fill(&mut key).is_err() {
        tracing::warn!("the system gives no random numbers; what data planes share is not made");
        return Ok(());
    }
    plane.store.make_auth_secrets(key, tbmq_service::time::now_ms()).await?;
    Ok(())
}

/// Leaves marks for rows whose records differ.
async fn repair(
    relayer: &Relayer,
    found: &mut Found,
    states: impl Iterator<Item = (Place, String, State)>,
) -> Result<(), Error> {
    let plane = &relayer.plane;
    let mut different = Vec::new();
    for (place, key, state) in states {
        let held = found.held.remove(&place);
        let State::Whole(revision, value) = state else { continue };
        let hash = found.hasher.hash_one(&value);
        if held.is_none_or(|held| held.revision != revision || held.hash != hash) {
            different.push((place.item(), key, held.map_or(0, |held| held.revision)));
        }
    }
    if different.is_empty() {
        return Ok(());
    }
    plane.metrics.repairs.inc_by(different.len() as u64);
    plane.store.mark_auth_again(&different, tbmq_service::time::now_ms()).await?;
    plane.auth_dirty.notify_one();
    Ok(())
}

/// Withdraws what lies on the bus without standing in the store.
async fn repair_strangers(relayer: &Relayer, found: Found) -> Result<(), Error> {
    let plane = &relayer.plane;
    // Nothing is written meanwhile: what is created under an old key comes after its withdrawal.
    let _order = relayer.order.lock().await;
    let strangers: Vec<(Place, Held)> = found.held.into_iter().collect();
    let mut settings: Option<BTreeSet<String>> = None;
    for chunk in strangers.chunks(PAGE_ROWS_MAX as usize) {
        let rows_of =
            |topic| chunk.iter().map(|(place, _)| place.item()).filter(move |item| item.topic == topic);
        // Looked at again: it may have come since the scan.
        let ids: Vec<Uuid> =
            rows_of(AuthTopic::Credentials).filter_map(|item| item.row.parse().ok()).collect();
        let digests: Vec<String> = rows_of(AuthTopic::Blocked).map(|item| item.row).collect();
        let mut there: BTreeSet<Item> = BTreeSet::new();
        there.extend(plane.store.find_credentials(&ids).await?.iter().map(CredentialsRow::item));
        there.extend(plane.store.find_blocked(&digests).await?.iter().map(BlockedRow::item));
        if settings.is_none() {
            let all = relay::settings(plane).await?;
            settings = Some(all.into_iter().map(|(item, _)| item.row).collect());
        }
        let is_there = |item: &Item| match item.topic {
            AuthTopic::Settings => settings.as_ref().is_some_and(|keys| keys.contains(&item.row)),
            _ => there.contains(item),
        };
        let gone: Vec<BatchRecord> = chunk
            .iter()
            .filter(|(place, _)| !is_there(&place.item()))
            .map(|(place, held)| {
                tracing::warn!(what = %place.item(), "a record without a row is withdrawn");
                record::record(&plane.catalogue, place.topic(), &place.key(), held.revision, None)
            })
            .collect();
        plane.metrics.repairs.inc_by(gone.len() as u64);
        for batch in gone.chunks(BATCH_RECORDS) {
            relayer.write(batch.to_vec()).await?;
        }
    }
    Ok(())
}

async fn read(relayer: &Relayer) -> Result<Found, Error> {
    let plane = &relayer.plane;
    let client = plane.catalogue.client_id("auth-reconciler", &plane.service_id);
    let mut reader = plane.bus.reader(ReaderConfig::new(client, None)).await?;
    let mut open: HashMap<TopicPartition, AuthTopic> = HashMap::new();
    for topic in AuthTopic::ALL {
        let name = record::topic_name(&plane.catalogue, topic);
        // It may have been created by others, with another number of partitions.
        let partitions = plane.admin.topic(&name).await?.map_or(0, |info| info.partitions);
        for partition in 0..partitions {
            open.insert(TopicPartition::new(name.as_str(), partition), topic);
        }
    }
    for partition in open.keys() {
        reader.add(partition, Start::Earliest);
    }
    let mut found = Found::default();
    while !open.is_empty() {
        match reader.next().await {
            ReaderEvent::Batch { partition, records } => {
                let Some(topic) = open.get(&partition) else { continue };
                for record in records {
                    take(&mut found, *topic, &record);
                }
            }
            ReaderEvent::End { partition, .. } => {
                reader.remove(&partition);
                open.remove(&partition);
            }
            ReaderEvent::Gap { .. } => {}
            ReaderEvent::Gone { partition, .. } => {
                open.remove(&partition);
            }
        }
    }
    Ok(found)
}

fn take(found: &mut Found, topic: AuthTopic, record: &Record) {
    let key = record.key.as_ref().and_then(|key| std::str::from_utf8(key).ok());
    let revision = record.header(REVISION_HEADER).and_then(|text| text.parse().ok()).unwrap_or(0);
    found.revision_max = found.revision_max.max(revision);
    let Some(key) = key else { return };
    let place = Place::of(topic, key);
    match record.value.as_ref().filter(|value| !value.is_empty()) {
        Some(value) => {
            let hash = found.hasher.hash_one(value);
            found.held.insert(place, Held { revision, hash });
        }
        None => drop(found.held.remove(&place)),
    }
}
