//! The endpoint's URL from the text that people write (spec §6.3.2).
//!
//! Like TBMQ: characters that a part of a URL can't hold are percent-encoded, so `{"a": 12}` may stand in a query.
//! Unlike TBMQ: valid escapes are not encoded once more, a host may hold `_` (the URL standard allows it, and container
//! names do), other schemes than `http` and `https` are refused at once instead of with every message, and so are user
//! names and passwords, which belong into `credentials`.

use url::Url;

/// TBMQ's text for a URL without a scheme.
const NO_SCHEME: &str = "Transport scheme(protocol) must be provided!";
/// TBMQ's text for a URL without a usable host.
const INVALID: &str = "Url string is invalid!";

/// Reads a URL.
///
/// # Errors
/// A text for people.
pub(super) fn parse(text: &str) -> Result<Url, String> {
    let text = text.trim();
    if text.is_empty() {
        return Err("REST endpoint URL is required".to_owned());
    }
    let (scheme, rest) = split_scheme(text).ok_or(NO_SCHEME)?;
    let rest = rest.strip_prefix("//").ok_or(INVALID)?;
    let (authority, rest) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
    if authority.is_empty() || authority.contains(['\\', ' ']) {
        return Err(INVALID.to_owned());
    }
    let scheme = scheme.to_ascii_lowercase();
    if scheme != "http" && scheme != "https" {
        return Err(format!("Url scheme {scheme} is not supported; use http or https"));
    }
    if authority.contains('@') {
        return Err("Url must not hold a user name or password; use credentials of type basic".to_owned());
    }
    // A fragment is never sent.
    let rest = rest.split_once('#').map_or(rest, |(rest, _)| rest);
    let (path, query) = match rest.split_once('?') {
        Some((path, query)) => (path, Some(query)),
        None => (rest, None),
    };
    let mut encoded = format!("{scheme}://{authority}");
    encode(&mut encoded, path, |byte| is_path(byte) || byte == b'/');
    if let Some(query) = query {
        encoded.push('?');
        encode(&mut encoded, query, |byte| is_path(byte) || byte == b'/' || byte == b'?');
    }
    let url = Url::parse(&encoded).map_err(|_| INVALID)?;
    if url.host_str().is_none_or(str::is_empty) {
        return Err(INVALID.to_owned());
    }
    Ok(url)
}

fn split_scheme(text: &str) -> Option<(&str, &str)> {
    let (scheme, rest) = text.split_once(':')?;
    let mut characters = scheme.bytes();
    let starts = characters.next().is_some_and(|byte| byte.is_ascii_alphabetic());
    let goes_on = characters.all(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte));
    (starts && goes_on).then_some((scheme, rest))
}

/// `pchar` of RFC 3986 without escapes.
fn is_path(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=:@".contains(&byte)
}

/// Writes `text`, with escapes for what is not `allowed`; valid escapes stay as they are.
fn encode(target: &mut String, text: &str, allowed: impl Fn(u8) -> bool) {
    const HEX: &[u8; 16] = b"0123456789ABCDEF";
    let bytes = text.as_bytes();
    for (i, &byte) in bytes.iter().enumerate() {
        let is_escape =
            byte == b'%' && bytes.len() > i + 2 && bytes[i + 1..i + 3].iter().all(u8::is_ascii_hexdigit);
        if is_escape || allowed(byte) {
            target.push(char::from(byte));
        } else {
            target.push('%');
            target.push(char::from(HEX[usize::from(byte >> 4)]));
            target.push(char::from(HEX[usize::from(byte & 15)]));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn illegal_characters_are_encoded_and_escapes_stay() {
        for (text, expected) in [
            (r#"http://192.168.1.1/data?d={"a": 12}"#, "http://192.168.1.1/data?d=%7B%22a%22:%2012%7D"),
            ("http://h/a b/%20c", "http://h/a%20b/%20c"),
            ("http://h/%zz/100%", "http://h/%25zz/100%25"),
            ("http://h/ü?q=ü", "http://h/%C3%BC?q=%C3%BC"),
            ("http://h/a%2Fb?x=%7B%3d", "http://h/a%2Fb?x=%7B%3d"),
            ("http://h?x=a|b[c]\\^`", "http://h/?x=a%7Cb%5Bc%5D%5C%5E%60"),
            ("http://h/a\\b|{c}", "http://h/a%5Cb%7C%7Bc%7D"),
            ("http://h/p?a=b=c&d=/?e#fragment", "http://h/p?a=b=c&d=/?e"),
            ("HTTPS://Example.ORG:8443", "https://example.org:8443/"),
            ("http://h:80/x", "http://h/x"),
            ("http://my_service:8080/x", "http://my_service:8080/x"),
            ("http://[::1]:8080/x", "http://[::1]:8080/x"),
            ("http://bücher.example/", "http://xn--bcher-kva.example/"),
            ("  http://h/x  ", "http://h/x"),
            ("http://h/a:b@c;d=e,f+g", "http://h/a:b@c;d=e,f+g"),
        ] {
            assert_eq!(parse(text).unwrap().as_str(), expected, "{text}");
        }
    }

    #[test]
    fn what_is_no_url_is_refused_with_tbmqs_texts() {
        for (text, expected) in [
            ("", "REST endpoint URL is required"),
            ("   ", "REST endpoint URL is required"),
            ("example.org/path", NO_SCHEME),
            ("//example.org/path", NO_SCHEME),
            ("192.168.1.1:8080/x", NO_SCHEME),
            ("localhost:8080/x", INVALID),
            ("http:/x", INVALID),
            ("http://", INVALID),
            ("http:///path", INVALID),
            ("http://:80/", INVALID),
            ("http://h:port/", INVALID),
            ("http://h:70000/", INVALID),
            ("http://a b/", INVALID),
            ("http://[::1/", INVALID),
            ("ftp://h/x", "Url scheme ftp is not supported; use http or https"),
            ("http://u:p@h/", "Url must not hold a user name or password; use credentials of type basic"),
        ] {
            assert_eq!(parse(text).unwrap_err(), expected, "{text}");
        }
    }
}
