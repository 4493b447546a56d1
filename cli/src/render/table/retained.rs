//! Retained messages.

use tbmq_proto::control::RetainedMessage;

use super::{super::Look, super::json::time, facts, grid::grid, or_dash};

/// Characters of a payload in a list.
const PAYLOAD_CHARS: usize = 60;

/// TOPIC, QOS, BYTES, PUBLISHED, PAYLOAD; wide: EXPIRES, PUBLISHER.
pub(crate) fn retained(all: &[RetainedMessage], look: Look) -> String {
    let mut header = vec!["TOPIC", "QOS", "BYTES", "PUBLISHED", "PAYLOAD"];
    if look.wide {
        header.extend(["EXPIRES", "PUBLISHER"]);
    }
    let rows = all.iter().map(|one| {
        let mut row = vec![
            one.topic.clone(),
            one.qos.to_string(),
            one.payload_bytes.to_string(),
            or_dash(time(one.publish_time)),
            shortened(one),
        ];
        if look.wide {
            row.extend([
                time(one.expire_time).unwrap_or_else(|| "never".to_owned()),
                or_dash(Some(one.publisher.clone())),
            ]);
        }
        row
    });
    grid(&header, rows, look.coloured)
}

/// All about one of them.
pub(crate) fn retained_one(one: &RetainedMessage) -> String {
    let properties = one.properties.clone().unwrap_or_default();
    let format =
        properties.payload_format_indicator.map(|indicator| if indicator == 1 { "UTF-8" } else { "bytes" });
    let user: Vec<String> =
        properties.user_properties.iter().map(|one| format!("{}={}", one.key, one.value)).collect();
    let correlation = printable(&properties.correlation_data);
    let mut text = facts([
        ("Topic", one.topic.clone()),
        ("QoS", one.qos.to_string()),
        ("Bytes", one.payload_bytes.to_string()),
        ("Published", time(one.publish_time).unwrap_or_default()),
        ("Expires", time(one.expire_time).unwrap_or_else(|| "never".to_owned())),
        ("Publisher", one.publisher.clone()),
        ("Format", format.unwrap_or_default().to_owned()),
        ("Content type", properties.content_type),
        ("Response topic", properties.response_topic),
        ("Correlation", correlation),
        ("User properties", user.join(", ")),
    ]);
    text.extend(["\n", &printable(&one.payload)]);
    if one.payload_bytes > one.payload.len() as u64 {
        text.push_str(" ...");
    }
    text.push('\n');
    text
}

/// The beginning of a payload on one line.
fn shortened(one: &RetainedMessage) -> String {
    let text = printable(&one.payload);
    let mut shown: String =
        text.chars().take(PAYLOAD_CHARS).map(|c| if c.is_control() { ' ' } else { c }).collect();
    if text.chars().count() > PAYLOAD_CHARS || one.payload_bytes > one.payload.len() as u64 {
        shown.push_str("...");
    }
    shown
}

/// What is no text is shown as far as it is; nothing of it acts upon a terminal.
fn printable(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    text.chars().map(|c| if c.is_control() && c != '\n' && c != '\t' { '\u{fffd}' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_payload_is_shown_on_one_line_without_escapes() {
        let one = |payload: &str| RetainedMessage {
            payload: payload.to_owned().into(),
            payload_bytes: payload.len() as u64,
            ..RetainedMessage::default()
        };
        assert_eq!(shortened(&one("a\nb")), "a b");
        assert_eq!(shortened(&one("\u{1b}[2J")), "\u{fffd}[2J");
        assert_eq!(shortened(&one(&"x".repeat(61))), format!("{}...", "x".repeat(60)));
        assert_eq!(shortened(&RetainedMessage { payload_bytes: 9, ..one("abc") }), "abc...");
    }
}
