//! Java's default partitioner, and where the shards of an integration lie: two nodes must agree where a key lives.

use crate::ids::ShardId;

/// The partition of a key: `toPositive(murmur2(key)) % partitions`, as Java's default partitioner chooses.
///
/// # Panics
/// When `partitions` is 0.
pub fn for_key(key: &[u8], partitions: u32) -> u32 {
    (murmur2(key) & 0x7fff_ffff) % partitions
}

/// The downlink partition of one of `count` shards: Java's choice for shard 0, and from there one stride on for each
/// further shard. The stride is the least number from `partitions / count` on that has no divisor in common with either:
/// shards lie far apart and in different residue classes, so that they spread over executors whether partitions are
/// dealt in blocks or in rounds.
///
/// # Panics
/// When `partitions` is 0.
pub fn for_shard(shard: &ShardId, count: u32, partitions: u32) -> u32 {
    let first = for_key(ShardId::first(shard.integration).downlink_key().as_bytes(), partitions);
    let distance = u64::from(shard.index) * u64::from(stride(count, partitions));
    ((u64::from(first) + distance) % u64::from(partitions)) as u32
}

fn stride(count: u32, partitions: u32) -> u32 {
    let least = partitions.div_ceil(count.max(1)).max(1);
    let is_coprime = |stride: &u32| divisor(*stride, partitions) == 1 && divisor(*stride, count.max(1)) == 1;
    // A prime comes soon.
    (least..=u32::MAX).find(is_coprime).unwrap_or(1)
}

/// The greatest common divisor.
fn divisor(one: u32, other: u32) -> u32 {
    if other == 0 { one } else { divisor(other, one % other) }
}

/// Kafka's murmur2 with its fixed seed.
pub fn murmur2(data: &[u8]) -> u32 {
    const SEED: u32 = 0x9747_b28c;
    const M: u32 = 0x5bd1_e995;
    const R: u32 = 24;
    let mut hash = SEED ^ (data.len() as u32);
    let (words, rest) = data.as_chunks::<4>();
    for word in words {
        let mut k = u32::from_le_bytes(*word).wrapping_mul(M);
        k ^= k >> R;
        hash = hash.wrapping_mul(M) ^ k.wrapping_mul(M);
    }
    if !rest.is_empty() {
        for (i, byte) in rest.iter().enumerate() {
            hash ^= u32::from(*byte) << (8 * i);
        }
        hash = hash.wrapping_mul(M);
    }
    hash ^= hash >> 13;
    hash = hash.wrapping_mul(M);
    hash ^ (hash >> 15)
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use uuid::Uuid;

    use super::*;
    use crate::ids::IntegrationId;

    fn shards(integration: u128, count: u32, partitions: u32) -> Vec<u32> {
        let integration = IntegrationId(Uuid::from_u128(integration));
        (0..count).map(|index| for_shard(&ShardId { integration, index }, count, partitions)).collect()
    }

    #[test]
    fn shard_0_lies_where_java_puts_its_key() {
        for id in 0..200 {
            for count in [1, 4, 64] {
                let key = IntegrationId(Uuid::from_u128(id)).to_string();
                assert_eq!(shards(id, count, 48)[0], for_key(key.as_bytes(), 48));
            }
        }
    }

    #[test]
    fn shards_lie_in_distinct_partitions_as_long_as_there_are_enough() {
        for partitions in [1, 2, 6, 48, 50, 97] {
            for count in 1..=64 {
                let places: BTreeSet<u32> = shards(7, count, partitions).into_iter().collect();
                assert_eq!(places.len() as u32, count.min(partitions), "{count} of {partitions}");
                assert!(places.iter().all(|place| *place < partitions));
            }
        }
    }

    #[test]
    fn as_many_shards_as_members_spread_over_them() {
        const PARTITIONS: u32 = 48;
        for members in [2, 3, 4, 6, 8, 12] {
            let (mut met, mut all) = (0, 0);
            for id in 0..500 {
                let places = shards(id, members, PARTITIONS);
                let rounds: BTreeSet<u32> = places.iter().map(|place| place % members).collect();
                assert_eq!(rounds.len() as u32, members, "{places:?} dealt to {members} in rounds");
                let mut blocks = BTreeMap::new();
                for place in &places {
                    *blocks.entry(place / (PARTITIONS / members)).or_insert(0) += 1;
                }
                // Where the ring of partitions is cut, two may fall into one block.
                assert!(
                    blocks.values().all(|shards| *shards <= 2),
                    "{places:?} dealt to {members} in blocks"
                );
                met += blocks.len() as u32;
                all += members;
            }
            assert!(met * 4 >= all * 3, "{met} of {all} blocks for {members} members");
        }
        let places = shards(1, 7, PARTITIONS);
        assert!(places.iter().map(|place| place % 7).collect::<BTreeSet<_>>().len() > 1, "{places:?}");
    }

    // Vectors: spec/integration.md §1.4.
    #[test]
    fn keys_go_where_java_puts_them() {
        for (key, hash, partition) in [
            ("00112233-4455-6677-8899-aabbccddeeff", 1_821_684_602, 2),
            ("3e3abdb2-12f9-4850-a654-50a0c8dbbed6", 1_465_648_747, 1),
            ("tbmq/mqtt-integration", -122_599_026, 2),
        ] {
            assert_eq!(murmur2(key.as_bytes()).cast_signed(), hash, "{key}");
            assert_eq!(for_key(key.as_bytes(), 6), partition, "{key}");
        }
    }
}
