//! Who has claimed which downlink partition (architecture §4.18): the topic of owners as it was last read.

use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicU64, Ordering},
};

use parking_lot::RwLock;
use prost::Message as _;
use tbmq_bus::Record;
use tbmq_proto::{
    ids::{InvalidKind, Kind},
    wire::OwnerClaim,
};

/// Claims that are remembered at most.
const CLAIMS_MAX: usize = 100_000;

/// The latest claim of a downlink partition.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Claim {
    /// Its offset: a greater one is a later owner.
    pub(crate) epoch: u64,
    pub(crate) service_id: String,
    /// The claimant's process start.
    pub(crate) incarnation: String,
    /// Epoch ms by the claimant's clock.
    pub(crate) time_ms: i64,
}

/// The latest claims of all downlink partitions.
#[derive(Debug, Default)]
pub(crate) struct Claims {
    claims: RwLock<BTreeMap<(Kind, u32), Claim>>,
    version: AtomicU64,
}

impl Claims {
    /// Takes a record of the topic of owners.
    ///
    /// # Errors
    /// What is wrong with it, or that there are too many claims.
    pub(crate) fn take(&self, record: &Record) -> Result<(), String> {
        let key = record.key.as_deref().and_then(|key| std::str::from_utf8(key).ok()).ok_or("no key")?;
        let place = || format!("the key {key:?} names no partition");
        let (kind, partition) = key.rsplit_once('/').ok_or_else(place)?;
        let kind: Kind = kind.parse().map_err(|error: InvalidKind| error.to_string())?;
        let partition = partition.parse().map_err(|_| place())?;
        let mut claims = self.claims.write();
        let Some(value) = record.value.clone().filter(|value| !value.is_empty()) else {
            claims.remove(&(kind, partition));
            self.version.fetch_add(1, Ordering::Release);
            return Ok(());
        };
        let claim = OwnerClaim::decode(value).map_err(|error| error.to_string())?;
        if claims.len() >= CLAIMS_MAX && !claims.contains_key(&(kind.clone(), partition)) {
            return Err(format!("{CLAIMS_MAX} claims are remembered already"));
        }
        let claim = Claim {
            epoch: record.offset,
            service_id: claim.service_id,
            incarnation: claim.incarnation,
            time_ms: claim.time_ms,
        };
        claims.insert((kind, partition), claim);
        self.version.fetch_add(1, Ordering::Release);
        Ok(())
    }

    /// The latest claim of a partition.
    pub(crate) fn of(&self, kind: &Kind, partition: u32) -> Option<Claim> {
        self.claims.read().get(&(kind.clone(), partition)).cloned()
    }

    /// The topic is gone.
    pub(crate) fn clear(&self) {
        self.claims.write().clear();
        self.version.fetch_add(1, Ordering::Release);
    }

    /// Counts up with every change, after it.
    pub(crate) fn version(&self) -> u64 {
        self.version.load(Ordering::Acquire)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(key: &str, offset: u64, value: Option<&OwnerClaim>) -> Record {
        Record {
            offset,
            timestamp_ms: 0,
            key: Some(key.to_owned().into()),
            value: value.map(|claim| claim.encode_to_vec().into()),
            headers: Vec::new(),
        }
    }

    #[test]
    fn the_latest_claim_is_known_until_it_is_withdrawn() {
        let claims = Claims::default();
        let http: Kind = "HTTP".parse().unwrap();
        let by = |id: &str| OwnerClaim { service_id: id.to_owned(), ..OwnerClaim::default() };
        claims.take(&record("HTTP/3", 7, Some(&by("ie1")))).unwrap();
        claims.take(&record("HTTP/3", 9, Some(&by("ie2")))).unwrap();
        let claim = claims.of(&http, 3).unwrap();
        assert_eq!((claim.epoch, claim.service_id.as_str()), (9, "ie2"));
        assert_eq!(claims.of(&http, 4), None);
        claims.take(&record("HTTP/3", 10, None)).unwrap();
        assert_eq!(claims.of(&http, 3), None);
        for key in ["HTTP", "HTTP/x", "http/1"] {
            claims.take(&record(key, 11, Some(&by("ie1")))).unwrap_err();
        }
    }
}
