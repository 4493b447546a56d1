//! Java's default partitioner: two nodes must agree where a key lives.

/// The partition of a key: `toPositive(murmur2(key)) % partitions`, as Java's default partitioner chooses.
///
/// # Panics
/// When `partitions` is 0.
pub fn for_key(key: &[u8], partitions: u32) -> u32 {
    (murmur2(key) & 0x7fff_ffff) % partitions
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
    use super::*;

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
