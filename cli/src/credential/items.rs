//! The documents of files, one by one: a file of a million credentials is never in memory.
//!
//! JSON is read as it comes: one value after another, arrays, and pages of TBMQ's REST API (`{"data": [...]}`). YAML is
//! read as a whole.

use std::{
    fmt,
    fs::File,
    io::{self, BufRead, BufReader},
    path::{Path, PathBuf},
};

use serde::de::{DeserializeSeed, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};
use tokio::sync::mpsc;

use crate::{failure::Failure, manifest};

/// Documents that wait to be taken.
const WAITING_MAX: usize = 2000;

/// A document and where it stands.
#[derive(Debug, PartialEq)]
pub(crate) struct Item {
    /// Path of the file, and the number of the document.
    pub(crate) place: String,
    pub(crate) value: Value,
}

/// Reads files on a thread of its own, and stdin for `-`; the first that can't be read ends it.
pub(crate) fn of_files(paths: Vec<PathBuf>) -> mpsc::Receiver<Result<Item, Failure>> {
    let (sender, receiver) = mpsc::channel(WAITING_MAX);
    std::thread::spawn(move || {
        for path in paths {
            let mut number = 0;
            let read = of_file(&path, &mut |value| {
                number += 1;
                let place = format!("{} [{number}]", path.display());
                // Nobody listens any more: then nothing more is to be read.
                sender.blocking_send(Ok(Item { place, value })).is_ok()
            });
            if let Err(failure) = read {
                sender.blocking_send(Err(failure)).ok();
                return;
            }
        }
    });
    receiver
}

/// Gives away what a file holds until it is told to stop.
fn of_file(path: &Path, give: &mut dyn FnMut(Value) -> bool) -> Result<(), Failure> {
    let name = path.display();
    let unread = |error: &dyn fmt::Display| Failure::usage(format!("can't read {name}: {error}"));
    let mut reader: Box<dyn BufRead> = if path.as_os_str() == "-" {
        Box::new(BufReader::new(io::stdin()))
    } else {
        Box::new(BufReader::new(File::open(path).map_err(|error| unread(&error))?))
    };
    if is_json(&mut reader).map_err(|error| unread(&error))? {
        let mut json = serde_json::Deserializer::from_reader(reader);
        while json.end().is_err() {
            let mut is_wanted = true;
            let taker = Taker { give: &mut *give, is_wanted: &mut is_wanted };
            let read = taker.deserialize(&mut json);
            if !is_wanted {
                return Ok(());
            }
            read.map_err(|error| Failure::usage(format!("{name} is not JSON: {error}")))?;
        }
        return Ok(());
    }
    let text = manifest::text_of(reader, &name.to_string())?;
    let items = manifest::items(&text).map_err(|problem| Failure::usage(format!("{name}: {problem}")))?;
    for item in items {
        let value = serde_json::from_str(&item).map_err(|error| Failure::bug(error.to_string()))?;
        if !give(value) {
            break;
        }
    }
    Ok(())
}

/// Whether it begins as JSON does; reads nothing but space before.
fn is_json(reader: &mut dyn BufRead) -> io::Result<bool> {
    loop {
        let buffer = reader.fill_buf()?;
        let Some(index) = buffer.iter().position(|byte| !byte.is_ascii_whitespace()) else {
            let length = buffer.len();
            if length == 0 {
                return Ok(false);
            }
            reader.consume(length);
            continue;
        };
        return Ok(matches!(buffer[index], b'{' | b'['));
    }
}

/// Takes values out of what is read, without keeping more than one.
struct Taker<'a> {
    give: &'a mut dyn FnMut(Value) -> bool,
    is_wanted: &'a mut bool,
}

impl Taker<'_> {
    fn give<E: serde::de::Error>(&mut self, value: Value) -> Result<(), E> {
        *self.is_wanted = (self.give)(value);
        if *self.is_wanted { Ok(()) } else { Err(E::custom("nobody wants more")) }
    }
}

impl<'de> DeserializeSeed<'de> for Taker<'_> {
    type Value = ();

    fn deserialize<D: serde::Deserializer<'de>>(self, from: D) -> Result<(), D::Error> {
        from.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Taker<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a document, an array of them, or a page of TBMQ's REST API")
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut values: A) -> Result<(), A::Error> {
        while let Some(value) = values.next_element()? {
            self.give(value)?;
        }
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut entries: A) -> Result<(), A::Error> {
        let mut document = Map::new();
        while let Some(key) = entries.next_key::<String>()? {
            if key == "data" {
                entries.next_value_seed(Taker { give: &mut *self.give, is_wanted: &mut *self.is_wanted })?;
                while entries.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
                return Ok(());
            }
            if document.insert(key.clone(), entries.next_value()?).is_some() {
                return Err(A::Error::custom(format!("{key:?} is there twice")));
            }
        }
        self.give(Value::Object(document))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Vec<String>, Failure> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        let mut receiver = of_files(vec![file.path().to_owned()]);
        let mut all = Vec::new();
        while let Some(item) = receiver.blocking_recv() {
            let Item { place, value } = item?;
            assert!(place.ends_with(&format!(" [{}]", all.len() + 1)), "{place}");
            all.push(value["n"].to_string());
        }
        Ok(all)
    }

    #[test]
    fn values_arrays_pages_and_yaml_are_read_one_by_one() {
        for text in [
            "{\"n\":1}\n{\"n\":2}\n",
            "  [{\"n\":1},{\"n\":2}]",
            "{\"totalPages\":1,\"data\":[{\"n\":1},{\"n\":2}],\"hasNext\":false}",
            "[{\"n\":1}]{\"n\":2}",
            "n: 1\n---\nn: 2\n",
            "- n: 1\n- n: 2\n",
        ] {
            assert_eq!(read(text).unwrap(), ["1", "2"], "{text}");
        }
        assert_eq!(read("").unwrap(), [""; 0]);
        assert_eq!(read("[]").unwrap(), [""; 0]);
    }

    #[test]
    fn what_breaks_off_is_told_after_what_came_before() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "[{\"n\":1},{\"n\":").unwrap();
        let mut receiver = of_files(vec![file.path().to_owned()]);
        assert!(receiver.blocking_recv().unwrap().is_ok());
        let failure = receiver.blocking_recv().unwrap().unwrap_err();
        assert!(failure.message.contains("is not JSON: EOF"), "{}", failure.message);
        assert!(receiver.blocking_recv().is_none());
        assert!(read("{\"n\":1,\"n\":2}").unwrap_err().message.contains("twice"));
        let mut nowhere = of_files(vec!["/nowhere/x.json".into()]);
        assert!(nowhere.blocking_recv().unwrap().unwrap_err().message.starts_with("can't read /nowhere"));
    }
}
