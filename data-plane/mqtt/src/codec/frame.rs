//! The fixed header, and the numbers and strings that packets are made of.

use bytes::{Buf as _, BufMut, Bytes, BytesMut};

use super::{DecodeError, Limits};
use crate::packet::{ReasonCode, Text};

/// What the length in a fixed header says: where the body lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    /// Bytes of the header.
    pub(crate) header_length: usize,
    /// Bytes of header and body.
    pub(crate) total_length: usize,
}

/// Reads a fixed header; `None` when more bytes are needed.
pub(crate) fn header(bytes: &[u8], limits: Limits) -> Result<Option<Header>, DecodeError> {
    let Some(after_type) = bytes.get(1..) else { return Ok(None) };
    let Some((remaining, length)) = varint(after_type)? else { return Ok(None) };
    let header_length = 1 + length;
    let total_length = header_length + remaining as usize;
    if total_length > limits.packet_bytes {
        return Err(DecodeError::new(ReasonCode::PacketTooLarge, "the packet is larger than allowed"));
    }
    Ok(Some(Header { header_length, total_length }))
}

/// Reads a variable byte integer and its length; `None` when more bytes are needed.
pub(crate) fn varint(bytes: &[u8]) -> Result<Option<(u32, usize)>, DecodeError> {
    let mut value = 0;
    for (index, byte) in bytes.iter().take(4).enumerate() {
        value |= u32::from(byte & 0x7f) << (7 * index);
        if byte & 0x80 == 0 {
            // MQTT-1.5.5-1: the minimum number of bytes.
            if *byte == 0 && index > 0 {
                return Err(DecodeError::malformed("a length is not written in the fewest bytes"));
            }
            return Ok(Some((value, index + 1)));
        }
    }
    if bytes.len() >= 4 {
        return Err(DecodeError::malformed("a length has more than four bytes"));
    }
    Ok(None)
}

/// Writes a variable byte integer.
pub(crate) fn put_varint(into: &mut BytesMut, mut value: u32) {
    loop {
        let byte = (value & 0x7f) as u8;
        value >>= 7;
        if value == 0 {
            into.put_u8(byte);
            return;
        }
        into.put_u8(byte | 0x80);
    }
}

/// Bytes that a variable byte integer takes.
pub(crate) fn varint_length(value: usize) -> usize {
    match value {
        0..=0x7f => 1,
        0x80..=0x3fff => 2,
        0x4000..=0x1f_ffff => 3,
        _ => 4,
    }
}

/// Writes bytes after their two-byte length. Longer ones than that can tell are a bug of the caller and are cut, so
/// that what follows them on the connection stays readable.
pub(crate) fn put_binary(into: &mut BytesMut, bytes: &[u8]) {
    debug_assert!(u16::try_from(bytes.len()).is_ok());
    let length = bytes.len().min(usize::from(u16::MAX));
    into.put_u16(length as u16);
    into.put_slice(&bytes[..length]);
}

/// Reads the body of a packet from front to back.
#[derive(Debug)]
pub(crate) struct Body {
    bytes: Bytes,
    at: usize,
}

impl Body {
    pub(crate) fn new(bytes: Bytes) -> Self {
        Self { bytes, at: 0 }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.at == self.bytes.len()
    }

    fn take(&mut self, length: usize) -> Result<usize, DecodeError> {
        let start = self.at;
        let end = start.checked_add(length).filter(|end| *end <= self.bytes.len());
        self.at = end.ok_or(DecodeError::malformed("the packet ends too early"))?;
        Ok(start)
    }

    pub(crate) fn byte(&mut self) -> Result<u8, DecodeError> {
        let start = self.take(1)?;
        Ok(self.bytes[start])
    }

    pub(crate) fn two_bytes(&mut self) -> Result<u16, DecodeError> {
        let start = self.take(2)?;
        Ok(u16::from_be_bytes([self.bytes[start], self.bytes[start + 1]]))
    }

    pub(crate) fn packet_id(&mut self) -> Result<u16, DecodeError> {
        match self.two_bytes()? {
            // MQTT-2.2.1-3
            0 => Err(DecodeError::protocol("a packet identifier must not be 0")),
            id => Ok(id),
        }
    }

    pub(crate) fn binary(&mut self) -> Result<Bytes, DecodeError> {
        let length = usize::from(self.two_bytes()?);
        let start = self.take(length)?;
        Ok(self.bytes.slice(start..start + length))
    }

    pub(crate) fn text(&mut self) -> Result<Text, DecodeError> {
        Text::from_bytes(self.binary()?).ok_or(DecodeError::malformed("a text is not UTF-8"))
    }

    /// Takes a byte if it is 0.
    pub(crate) fn skip_zero(&mut self) -> bool {
        let is_zero = self.bytes.get(self.at) == Some(&0);
        self.at += usize::from(is_zero);
        is_zero
    }

    /// Properties with their length before them, unchecked.
    pub(crate) fn property_bytes(&mut self) -> Result<Bytes, DecodeError> {
        let (length, taken) =
            varint(&self.bytes[self.at..])?.ok_or(DecodeError::malformed("the packet ends too early"))?;
        self.at += taken;
        let start = self.take(length as usize)?;
        Ok(self.bytes.slice(start..start + length as usize))
    }

    pub(crate) fn rest(&mut self) -> Bytes {
        let mut bytes = std::mem::take(&mut self.bytes);
        bytes.advance(std::mem::take(&mut self.at));
        bytes
    }

    pub(crate) fn end(&self) -> Result<(), DecodeError> {
        if self.is_empty() {
            Ok(())
        } else {
            Err(DecodeError::malformed("the packet has bytes after its end"))
        }
    }
}
