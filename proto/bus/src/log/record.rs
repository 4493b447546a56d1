//! A record's bytes, in the cache and in the storage: encoded once when it is submitted, sliced when it is read.
//!
//! ```text
//! timestamp i64 | cumulative u64 | flags u8 | headers u16 | key length u32 | value length u32
//! key | (name length u16, name, value length u32, value) per header | value
//! ```
//!
//! All numbers are big-endian. `cumulative` counts the bytes ever written to the partition, this record included,
//! so the size of any range is told by its two ends.

use bytes::Bytes;

use crate::{Header, Outgoing, Record};

const FIXED: usize = 27;
const HAS_KEY: u8 = 1;
const HAS_VALUE: u8 = 2;

/// Encodes a record; [`stamp`] fills in the rest. `None` when a part is too long to be written.
pub(crate) fn encode(record: &Outgoing<'_>) -> Option<Vec<u8>> {
    let key = record.key.unwrap_or_default();
    let value = record.value.unwrap_or_default();
    let headers: usize = record.headers.iter().map(|header| 6 + header.name.len() + header.value.len()).sum();
    let mut bytes = Vec::with_capacity(FIXED + key.len() + headers + value.len());
    bytes.extend_from_slice(&[0; 16]);
    let has_key = if record.key.is_some() { HAS_KEY } else { 0 };
    bytes.push(has_key | if record.value.is_some() { HAS_VALUE } else { 0 });
    bytes.extend_from_slice(&u16::try_from(record.headers.len()).ok()?.to_be_bytes());
    bytes.extend_from_slice(&u32::try_from(key.len()).ok()?.to_be_bytes());
    bytes.extend_from_slice(&u32::try_from(value.len()).ok()?.to_be_bytes());
    bytes.extend_from_slice(key);
    for header in record.headers {
        bytes.extend_from_slice(&u16::try_from(header.name.len()).ok()?.to_be_bytes());
        bytes.extend_from_slice(header.name.as_bytes());
        bytes.extend_from_slice(&u32::try_from(header.value.len()).ok()?.to_be_bytes());
        bytes.extend_from_slice(&header.value);
    }
    bytes.extend_from_slice(value);
    Some(bytes)
}

/// Fills in what is known only when the record gets its offset.
pub(crate) fn stamp(bytes: &mut [u8], timestamp_ms: i64, cumulative: u64) {
    bytes[..8].copy_from_slice(&timestamp_ms.to_be_bytes());
    bytes[8..16].copy_from_slice(&cumulative.to_be_bytes());
}

/// When it was written, epoch ms.
pub(crate) fn timestamp_ms(bytes: &[u8]) -> i64 {
    array(bytes, 0).map_or(0, i64::from_be_bytes)
}

/// Bytes written to the partition up to and including it.
pub(crate) fn cumulative(bytes: &[u8]) -> u64 {
    array(bytes, 8).map_or(0, u64::from_be_bytes)
}

/// Its key.
pub(crate) fn key(bytes: &[u8]) -> Option<&[u8]> {
    let (flags, length) = (*bytes.get(16)?, array(bytes, 19).map(u32::from_be_bytes)?);
    (flags & HAS_KEY != 0).then(|| bytes.get(FIXED..FIXED + length as usize)).flatten()
}

/// Whether its value is absent or empty, which deletes its key.
pub(crate) fn is_tombstone(bytes: &[u8]) -> bool {
    array(bytes, 23).map(u32::from_be_bytes) == Some(0)
}

/// Decodes a record without copying its parts; `None` when it is damaged.
pub(crate) fn decode(offset: u64, bytes: &Bytes) -> Option<Record> {
    let flags = *bytes.get(16)?;
    let headers = u16::from_be_bytes(array(bytes, 17)?);
    let key_length = u32::from_be_bytes(array(bytes, 19)?) as usize;
    let value_length = u32::from_be_bytes(array(bytes, 23)?) as usize;
    let mut rest = Cursor { bytes, at: FIXED };
    let key = rest.take(key_length)?;
    let headers = (0..headers)
        .map(|_| {
            let length = u16::from_be_bytes(rest.array()?);
            let name = rest.take(usize::from(length))?;
            let length = u32::from_be_bytes(rest.array()?);
            Some(Header { name: std::str::from_utf8(&name).ok()?.into(), value: rest.take(length as usize)? })
        })
        .collect::<Option<Vec<_>>>()?;
    let value = rest.take(value_length)?;
    Some(Record {
        offset,
        timestamp_ms: timestamp_ms(bytes),
        key: (flags & HAS_KEY != 0).then_some(key),
        value: (flags & HAS_VALUE != 0).then_some(value),
        headers,
    })
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at + N)?.try_into().ok()
}

struct Cursor<'a> {
    bytes: &'a Bytes,
    at: usize,
}

impl Cursor<'_> {
    fn take(&mut self, length: usize) -> Option<Bytes> {
        let end = self.at.checked_add(length).filter(|end| *end <= self.bytes.len())?;
        let part = self.bytes.slice(self.at..end);
        self.at = end;
        Some(part)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let part = array(self.bytes, self.at)?;
        self.at += N;
        Some(part)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_was_encoded_is_decoded(
            key in proptest::option::of(proptest::collection::vec(any::<u8>(), 0..20)),
            value in proptest::option::of(proptest::collection::vec(any::<u8>(), 0..20)),
            names in proptest::collection::vec("[a-z]{0,5}", 0..4),
        ) {
            let headers: Vec<_> = names.iter().map(|name| Header::text(name, name.repeat(2))).collect();
            let outgoing =
                Outgoing { partition: None, key: key.as_deref(), value: value.as_deref(), headers: &headers };
            let mut bytes = encode(&outgoing).unwrap();
            stamp(&mut bytes, -5, 77);
            prop_assert_eq!(super::key(&bytes), key.as_deref());
            prop_assert_eq!(cumulative(&bytes), 77);
            prop_assert_eq!(is_tombstone(&bytes), value.as_deref().unwrap_or_default().is_empty());
            let record = decode(3, &Bytes::from(bytes)).unwrap();
            let (key, value) = (key.map(Bytes::from), value.map(Bytes::from));
            prop_assert_eq!(record, Record { offset: 3, timestamp_ms: -5, key, value, headers });
        }

        #[test]
        fn damaged_bytes_are_no_record_and_no_panic(bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
            let bytes = Bytes::from(bytes);
            let (_, _, _) = (key(&bytes), is_tombstone(&bytes), decode(0, &bytes));
        }
    }
}
