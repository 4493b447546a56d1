//! Damages packets without losing their frame too often, so that what lies inside is reached.
//!
//! The data plane's tests use this file, too, on the same corpus: packets that once were interesting, one a line in
//! hexadecimal digits. An input that has broken something is added there.

use rand::{Rng as _, SeedableRng as _, rngs::StdRng};

const CORPUS: &str = include_str!("../corpus.txt");

/// Bytes that mean something somewhere: limits, identifiers of properties, types of packets, options.
const INTERESTING: [u8; 24] = [
    0, 1, 2, 3, 4, 0x0b, 0x11, 0x1f, 0x21, 0x22, 0x23, 0x26, 0x27, 0x2a, 0x30, 0x3d, 0x40, 0x62, 0x7f, 0x80,
    0x82, 0xc0, 0xfe, 0xff,
];

/// The packets of the corpus of a version: `v311` or `v5`.
pub(crate) fn corpus(version: &str) -> Vec<Vec<u8>> {
    let digits = |text: &str| -> Vec<u8> {
        let bytes = text.as_bytes().chunks(2);
        bytes.map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap()).collect()
    };
    let lines = CORPUS.lines().filter(|line| !line.starts_with('#'));
    lines.filter_map(|line| line.strip_prefix(version)?.split_whitespace().next().map(digits)).collect()
}

/// Random damage that a seed repeats.
pub(crate) struct Mutator(pub(crate) StdRng);

impl Mutator {
    pub(crate) fn new(seed: u64) -> Self {
        Self(StdRng::seed_from_u64(seed))
    }

    /// A number below `end`, which is not 0.
    pub(crate) fn below(&mut self, end: usize) -> usize {
        self.0.random_range(0..end)
    }

    pub(crate) fn one_in(&mut self, count: usize) -> bool {
        self.below(count) == 0
    }

    pub(crate) fn pick<'a, T>(&mut self, all: &'a [T]) -> &'a T {
        &all[self.below(all.len())]
    }

    /// A packet of the corpus, as it is or damaged.
    pub(crate) fn packet(&mut self, corpus: &[Vec<u8>]) -> Vec<u8> {
        let mut packet = self.pick(corpus).clone();
        if self.one_in(3) {
            return packet;
        }
        for _ in 0..=self.below(3) {
            self.damage(&mut packet, corpus);
        }
        if !self.one_in(8) {
            frame(&mut packet);
        }
        packet
    }

    fn damage(&mut self, packet: &mut Vec<u8>, corpus: &[Vec<u8>]) {
        if packet.is_empty() {
            packet.push(self.0.random());
        }
        let at = self.below(packet.len());
        let end = at + self.below(packet.len() - at) + 1;
        match self.below(9) {
            0 => packet[at] ^= 1 << self.below(8),
            1 => packet[at] = *self.pick(&INTERESTING),
            2 => packet[at] = self.0.random(),
            3 => drop(packet.drain(at..end)),
            4 => {
                let part = packet[at..end].to_vec();
                packet.splice(at..at, part);
            }
            5 => {
                let byte = *self.pick(&INTERESTING);
                packet.insert(at, byte);
            }
            6 => {
                let other = self.pick(corpus).clone();
                let from = self.below(other.len());
                packet.truncate(at);
                packet.extend_from_slice(&other[from..]);
            }
            7 => packet.truncate(end),
            // A length of two bytes, too large, too small or just right.
            _ if packet.len() - at >= 2 => {
                let rest = (packet.len() - at - 2) as u16;
                let length = *self.pick(&[0, 1, rest.saturating_sub(1), rest, rest + 1, 0x7fff, 0xffff]);
                packet[at..at + 2].copy_from_slice(&length.to_be_bytes());
            }
            _ => packet.push(0),
        }
    }
}

/// Makes the length in the header what it is.
fn frame(packet: &mut Vec<u8>) {
    let Some(first) = packet.first().copied() else { return };
    let header = 1 + packet[1..].iter().take(4).take_while(|byte| **byte & 0x80 != 0).count() + 1;
    let body = packet.split_off(header.min(packet.len()));
    packet.clear();
    packet.push(first);
    let mut length = body.len();
    loop {
        let more = u8::from(length > 0x7f) << 7;
        packet.push((length & 0x7f) as u8 | more);
        length >>= 7;
        if length == 0 {
            break;
        }
    }
    packet.extend(body);
}
