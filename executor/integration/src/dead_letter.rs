//! Dead letters (architecture §4.6): key and value are the unchanged message record, headers say what became of it.
//!
//! Redrive is a copy back, without the headers that begin with [`PREFIX`].

/// Headers that begin so are ours; those of the message record stay before them.
pub const PREFIX: &str = "tbmq.dlq.";

/// What [`DeadLetter::headers`] writes, as told by the header `tbmq.dlq.version`.
pub const VERSION: u32 = 1;

/// Bytes of the text, at most.
pub const TEXT_BYTES_MAX: usize = 4 << 10;

/// What the headers of a dead letter say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeadLetter {
    /// A word: `timeout`, `status`, `unreadable`, ...
    pub class: String,
    /// Why the message was given up on; cut to [`TEXT_BYTES_MAX`].
    pub text: String,
    /// Attempts that were made; 0 when the record was not fit for one.
    pub attempts: u32,
    /// The topic from which the message came.
    pub source_topic: String,
    /// Its partition.
    pub source_partition: u32,
    /// Its offset.
    pub source_offset: u64,
    /// Generation of the message topic.
    pub generation: u64,
    /// Revision of the configuration in force.
    pub revision: u64,
    /// The executor's ownership epoch.
    pub epoch: u64,
    /// Epoch ms at which the first attempt began.
    pub first_ms: i64,
    /// Epoch ms at which the last attempt ended.
    pub last_ms: i64,
}

/// A record that is no dead letter.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// A header is not there.
    #[error("header {PREFIX}{0} is missing")]
    Missing(&'static str),
    /// A header is no number.
    #[error("header {PREFIX}{name} is {value:?}, which is no number")]
    NotANumber {
        /// Its name without the prefix.
        name: &'static str,
        /// What it says.
        value: String,
    },
    /// It was written by a later version.
    #[error("version {0} of a dead letter is not known")]
    Version(u32),
}

impl DeadLetter {
    /// Names and texts, in order.
    pub fn headers(&self) -> [(String, String); 12] {
        let name = |name: &str| format!("{PREFIX}{name}");
        [
            (name("version"), VERSION.to_string()),
            (name("class"), self.class.clone()),
            (name("text"), cut(&self.text).to_owned()),
            (name("attempts"), self.attempts.to_string()),
            (name("source-topic"), self.source_topic.clone()),
            (name("source-partition"), self.source_partition.to_string()),
            (name("source-offset"), self.source_offset.to_string()),
            (name("generation"), self.generation.to_string()),
            (name("revision"), self.revision.to_string()),
            (name("epoch"), self.epoch.to_string()),
            (name("first-ms"), self.first_ms.to_string()),
            (name("last-ms"), self.last_ms.to_string()),
        ]
    }

    /// Reads the headers; `header` finds one by its name.
    ///
    /// # Errors
    /// When one is missing or senseless.
    pub fn from_headers<'a>(header: impl Fn(&str) -> Option<&'a str>) -> Result<Self, Error> {
        let text = |name: &'static str| header(&format!("{PREFIX}{name}")).ok_or(Error::Missing(name));
        fn number<T: std::str::FromStr>(name: &'static str, text: Result<&str, Error>) -> Result<T, Error> {
            let text = text?;
            text.parse().map_err(|_| Error::NotANumber { name, value: text.to_owned() })
        }
        let version = number("version", text("version"))?;
        if version != VERSION {
            return Err(Error::Version(version));
        }
        Ok(Self {
            class: text("class")?.to_owned(),
            text: text("text")?.to_owned(),
            attempts: number("attempts", text("attempts"))?,
            source_topic: text("source-topic")?.to_owned(),
            source_partition: number("source-partition", text("source-partition"))?,
            source_offset: number("source-offset", text("source-offset"))?,
            generation: number("generation", text("generation"))?,
            revision: number("revision", text("revision"))?,
            epoch: number("epoch", text("epoch"))?,
            first_ms: number("first-ms", text("first-ms"))?,
            last_ms: number("last-ms", text("last-ms"))?,
        })
    }
}

fn cut(text: &str) -> &str {
    &text[..text.floor_char_boundary(TEXT_BYTES_MAX)]
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn letter() -> DeadLetter {
        DeadLetter {
            class: "status".to_owned(),
            text: "answered 500".to_owned(),
            attempts: 6,
            source_topic: "tbmq.msg.ie.0197e9ab-c9f1-7c54-9d1e-0242ac120002".to_owned(),
            source_partition: 3,
            source_offset: 1_234,
            generation: 2,
            revision: 17,
            epoch: 99,
            first_ms: 1_700_000_000_000,
            last_ms: 1_700_000_005_000,
        }
    }

    fn read(headers: &[(String, String)]) -> Result<DeadLetter, Error> {
        let headers: BTreeMap<_, _> =
            headers.iter().map(|(name, text)| (name.as_str(), text.as_str())).collect();
        DeadLetter::from_headers(|name| headers.get(name).copied())
    }

    // The format is fixed: a change is a new version.
    #[test]
    fn the_headers_are_these() {
        let headers = letter().headers();
        let lines: Vec<_> = headers.iter().map(|(name, text)| format!("{name}: {text}")).collect();
        assert_eq!(
            lines,
            [
                "tbmq.dlq.version: 1",
                "tbmq.dlq.class: status",
                "tbmq.dlq.text: answered 500",
                "tbmq.dlq.attempts: 6",
                "tbmq.dlq.source-topic: tbmq.msg.ie.0197e9ab-c9f1-7c54-9d1e-0242ac120002",
                "tbmq.dlq.source-partition: 3",
                "tbmq.dlq.source-offset: 1234",
                "tbmq.dlq.generation: 2",
                "tbmq.dlq.revision: 17",
                "tbmq.dlq.epoch: 99",
                "tbmq.dlq.first-ms: 1700000000000",
                "tbmq.dlq.last-ms: 1700000005000",
            ]
        );
        assert_eq!(read(&headers), Ok(letter()));
    }

    #[test]
    fn a_long_text_is_cut_between_characters() {
        let long = DeadLetter { text: "ä".repeat(3_000) + "x", ..letter() };
        let read = read(&long.headers()).unwrap();
        assert_eq!((read.text.len(), read.text.chars().count()), (4_096, 2_048));
        let odd = DeadLetter { text: format!("x{}", "ä".repeat(3_000)), ..letter() };
        assert_eq!(cut(&odd.text).len(), 4_095);
    }

    #[test]
    fn what_is_no_dead_letter_is_refused_with_the_header() {
        assert_eq!(read(&[]), Err(Error::Missing("version")));
        let with = |name: &str, text: &str| {
            let mut headers = letter().headers();
            for header in &mut headers {
                if header.0 == format!("{PREFIX}{name}") {
                    text.clone_into(&mut header.1);
                }
            }
            read(&headers)
        };
        assert_eq!(with("version", "2"), Err(Error::Version(2)));
        let error = Error::NotANumber { name: "epoch", value: "-1".to_owned() };
        assert_eq!(with("epoch", "-1"), Err(error));
    }
}
