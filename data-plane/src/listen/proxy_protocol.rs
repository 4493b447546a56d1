//! The PROXY protocol, versions 1 and 2: a proxy says first who its client is.

use std::{io, net::SocketAddr};

use ppp::{HeaderResult, PartialResult as _, v1, v2};
use tokio::{io::AsyncReadExt as _, net::TcpStream};

/// Bytes of a header of version 2 with its extensions; proxies send some hundred.
const HEADER_BYTES_MAX: usize = 4096;

/// Bytes of a header of version 1.
const V1_BYTES_MAX: usize = 107;

#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error("it is not one")]
    Invalid,
    #[error("it names no source address")]
    NoSource,
    #[error("it has more than {HEADER_BYTES_MAX} bytes")]
    TooLong,
}

/// Reads the header, and not a byte after it. As with TBMQ (broker spec §1.1) a connection without a header, or with one
/// that names no source address, is refused.
pub(super) async fn read(socket: &mut TcpStream) -> Result<SocketAddr, Error> {
    let mut header = vec![0; HEADER_BYTES_MAX];
    let mut length = 0;
    loop {
        if length == header.len() {
            return Err(Error::TooLong);
        }
        let peeked = socket.peek(&mut header[length..]).await?;
        if peeked == 0 {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
        let parsed = parse(&header[..length + peeked])?;
        // What belongs to an unfinished header is taken, so that the next look waits for more.
        let end = parsed.map_or(length + peeked, |(end, _)| end);
        socket.read_exact(&mut header[length..end]).await?;
        length = end;
        if let Some((_, source)) = parsed {
            return source.ok_or(Error::NoSource);
        }
    }
}

/// Length and source of the header at the beginning; `None`: it is unfinished.
fn parse(bytes: &[u8]) -> Result<Option<(usize, Option<SocketAddr>)>, Error> {
    let result = HeaderResult::parse(bytes);
    // The library takes a port of which no digit has come for a bad one, and a line that lacks a port for unfinished.
    let is_line = b"PROXY ".iter().zip(bytes).all(|(expected, found)| expected == found);
    let is_unfinished =
        if is_line { bytes.len() < V1_BYTES_MAX && !bytes.contains(&b'\n') } else { result.is_incomplete() };
    if is_unfinished {
        return Ok(None);
    }
    let (length, source) = match result {
        HeaderResult::V1(Ok(header)) => (
            header.header.len(),
            match header.addresses {
                v1::Addresses::Tcp4(ip) => Some((ip.source_address, ip.source_port).into()),
                v1::Addresses::Tcp6(ip) => Some((ip.source_address, ip.source_port).into()),
                v1::Addresses::Unknown => None,
            },
        ),
        HeaderResult::V2(Ok(header)) => (
            header.len(),
            match header.addresses {
                _ if header.command == v2::Command::Local => None,
                v2::Addresses::IPv4(ip) => Some((ip.source_address, ip.source_port).into()),
                v2::Addresses::IPv6(ip) => Some((ip.source_address, ip.source_port).into()),
                v2::Addresses::Unix(_) | v2::Addresses::Unspecified => None,
            },
        ),
        HeaderResult::V1(Err(_)) | HeaderResult::V2(Err(_)) => return Err(Error::Invalid),
    };
    Ok(Some((length, source)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const V1: &[u8] = b"PROXY TCP4 192.0.2.7 192.0.2.1 5000 1883\r\n";
    const V1_6: &[u8] = b"PROXY TCP6 2001:db8::7 2001:db8::1 5000 1883\r\n";
    const V2: &[u8] = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\xc0\0\x02\x07\xc0\0\x02\x01\x13\x88\x07\x5b";
    /// With an extension.
    const V2_TLV: &[u8] =
        b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x11\xc0\0\x02\x07\xc0\0\x02\x01\x13\x88\x07\x5b\x02\0\x02hi";

    #[test]
    fn a_header_is_unfinished_until_its_last_byte_and_ends_there() {
        for (header, source) in [
            (V1, "192.0.2.7:5000"),
            (V1_6, "[2001:db8::7]:5000"),
            (V2, "192.0.2.7:5000"),
            (V2_TLV, "192.0.2.7:5000"),
        ] {
            for length in 0..header.len() {
                assert!(matches!(parse(&header[..length]), Ok(None)), "{:?}", &header[..length]);
            }
            let bytes = [header, b"\x10\x0c\0\x04MQTT"].concat();
            let (length, found) = parse(&bytes).unwrap().unwrap();
            assert_eq!((length, found), (header.len(), Some(source.parse().unwrap())));
        }
    }

    #[test]
    fn what_is_no_header_is_known_at_once() {
        let line_without_end = [b"PROXY TCP4 ".as_slice(), &[b'1'; 100]].concat();
        for bytes in [
            b"\x10".as_slice(),
            b"GET / HTTP/1.1\r\n",
            b"PROXY TCP4 192.0.2.7\r\n",
            b"PROXY TCP4 192.0.2.300 192.0.2.1 5000 1883\r\n",
            b"\r\n\r\n\0\r\nQUIT\n\x31\x11\0\x0c",
            &line_without_end,
        ] {
            assert!(matches!(parse(bytes), Err(Error::Invalid)), "{bytes:?}");
        }
    }

    #[test]
    fn a_header_may_name_no_source() {
        for header in [
            b"PROXY UNKNOWN\r\n".as_slice(),
            b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0",
            b"\r\n\r\n\0\r\nQUIT\n\x20\x11\0\x0c\xc0\0\x02\x07\xc0\0\x02\x01\x13\x88\x07\x5b",
        ] {
            assert!(
                matches!(parse(header), Ok(Some((length, None))) if length == header.len()),
                "{header:?}"
            );
        }
    }
}
