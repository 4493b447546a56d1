//! `docs/mqtt-reason-codes.md` has every reason code that the broker's code names.

use std::{collections::BTreeMap, fs, path::Path};

use tbmq_mqtt::packet::ReasonCode;

use super::{path, read};

const PAGE: &str = "docs/mqtt-reason-codes.md";

/// Where answers to clients are made.
const SOURCES: [&str; 3] = ["data-plane/mqtt/src/codec", "data-plane/mqtt/src/session", "data-plane/src"];

/// Calls `look` with the text of each source file before its tests.
fn each_source(folder: &Path, look: &mut impl FnMut(&str)) {
    for entry in fs::read_dir(folder).expect("the folder is there") {
        let path = entry.expect("an entry").path();
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        if path.is_dir() {
            each_source(&path, look);
        } else if !name.starts_with("tests") && name != "interleavings" {
            let text = fs::read_to_string(&path).expect("a text");
            look(text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default());
        }
    }
}

#[test]
fn every_reason_code_that_is_sent_is_on_the_page() {
    let codes = (0..=u8::MAX).filter_map(|byte| Some((format!("{:?}", ReasonCode::from_byte(byte)?), byte)));
    let codes: BTreeMap<String, u8> = codes.collect();
    let (page, mut missing, mut seen) = (read(PAGE), Vec::new(), 0);
    for folder in SOURCES {
        each_source(&path(folder), &mut |text| {
            for rest in text.split("ReasonCode::").skip(1) {
                let name = rest.split(|c: char| !c.is_ascii_alphanumeric()).next().unwrap_or_default();
                let Some(byte) = codes.get(name) else { continue };
                seen += 1;
                if !page.contains(&format!("0x{byte:02X}")) {
                    missing.push(format!("{name} (0x{byte:02X})"));
                }
            }
        });
    }
    assert!(missing.is_empty(), "{PAGE} does not have {missing:?}");
    assert!(seen > 50, "only {seen} places name a reason code");
}
