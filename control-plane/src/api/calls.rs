//! What a call brings along beside its message: its identity, and how long its caller waits.

use std::{
    collections::{BTreeMap, HashMap},
    time::Duration,
};

use sha2::{Digest as _, Sha256};
use tbmq_integration::entity::Violation;
use tonic::{Status, metadata::MetadataMap};
use uuid::Uuid;

use super::error;
use crate::store::{self, Store};

/// The identity of a request by its id, for 10 minutes (AIP-155); `hash` takes all that it asks for.
pub(super) fn remembered(
    method: &'static str,
    id: &str,
    hash: impl FnOnce(&mut Sha256),
) -> Result<Option<store::Request>, Status> {
    if id.is_empty() {
        return Ok(None);
    }
    if id.len() > 128 || id.chars().any(char::is_control) {
        return Err(error::invalid_field("request_id", "must have at most 128 characters, none of control"));
    }
    let mut sha = Sha256::new();
    hash(&mut sha);
    let fingerprint = sha.finalize().iter().fold(String::with_capacity(64), |mut text, byte| {
        use std::fmt::Write as _;
        write!(text, "{byte:02x}").expect("writing to a String does not fail");
        text
    });
    Ok(Some(store::Request { method, id: id.to_owned(), fingerprint }))
}

/// What an equal request has made already.
pub(super) async fn replayed(
    store: &Store,
    remembered: Option<&store::Request>,
) -> Result<Option<Uuid>, store::Error> {
    let Some(remembered) = remembered else { return Ok(None) };
    match store.recall(remembered, tbmq_service::time::now_ms()).await {
        Ok(()) => Ok(None),
        Err(store::Error::Replayed(id)) => Ok(Some(id)),
        Err(error) => Err(error),
    }
}

/// The id of something new, which the caller may choose.
pub(super) fn new_id(field: &str, chosen: &str, violations: &mut Vec<Violation>) -> Uuid {
    if chosen.is_empty() {
        return Uuid::new_v4();
    }
    chosen.parse().unwrap_or_else(|_| {
        violations.push(Violation::new(field, "is not a UUID"));
        Uuid::nil()
    })
}

/// Labels apart, since their order on the wire is by chance.
pub(super) fn hash_request(
    hash: &mut Sha256,
    bare: &impl prost::Message,
    labels: Option<HashMap<String, String>>,
) {
    hash.update(bare.encode_to_vec());
    let labels: BTreeMap<String, String> = labels.into_iter().flatten().collect();
    for (key, value) in labels {
        hash.update(key.len().to_be_bytes());
        hash.update(key);
        hash.update(value.len().to_be_bytes());
        hash.update(value);
    }
}

/// The wait, shortened by the caller's own deadline, so that he gets our answer and not his timeout.
pub(super) fn shortened(metadata: &MetadataMap, patience: Duration) -> Duration {
    let Some(own) = metadata.get("grpc-timeout").and_then(|text| text.to_str().ok()).and_then(parse_timeout)
    else {
        return patience;
    };
    let margin = (own / 10).min(Duration::from_millis(500));
    patience.min(own.saturating_sub(margin))
}

fn parse_timeout(text: &str) -> Option<Duration> {
    let (number, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let number: u64 = number.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(number.saturating_mul(3_600)),
        "M" => Duration::from_secs(number.saturating_mul(60)),
        "S" => Duration::from_secs(number),
        "m" => Duration::from_millis(number),
        "u" => Duration::from_micros(number),
        "n" => Duration::from_nanos(number),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_callers_deadline_shortens_the_wait() {
        let with = |text: &'static str| {
            let mut metadata = MetadataMap::new();
            metadata.insert("grpc-timeout", text.parse().unwrap());
            shortened(&metadata, Duration::from_secs(30))
        };
        assert_eq!(with("1000m"), Duration::from_millis(900));
        assert_eq!(with("20S"), Duration::from_millis(19_500));
        assert_eq!(with("1H"), Duration::from_secs(30));
        assert_eq!(with("x"), Duration::from_secs(30));
        assert_eq!(shortened(&MetadataMap::new(), Duration::from_secs(30)), Duration::from_secs(30));
    }
}
