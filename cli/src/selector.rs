//! Which integrations are meant, by their labels: `zone=a,team!=core,canary,!legacy`.

use std::{collections::HashMap, str::FromStr};

/// Requirements that all must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Selector(Vec<Requirement>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Requirement {
    Equals(String, String),
    Differs(String, String),
    Has(String),
    Lacks(String),
}

impl FromStr for Selector {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        text.split(',').map(|part| Requirement::parse(part.trim())).collect::<Result<_, _>>().map(Self)
    }
}

impl Requirement {
    fn parse(text: &str) -> Result<Self, String> {
        let expected = || format!("{text:?} is none of KEY=VALUE, KEY!=VALUE, KEY and !KEY");
        let key = |key: &str| {
            let key = key.trim();
            if key.is_empty() || key.contains(['=', '!']) { Err(expected()) } else { Ok(key.to_owned()) }
        };
        let value = |value: &str| value.trim().to_owned();
        if let Some((left, right)) = text.split_once("!=") {
            return Ok(Self::Differs(key(left)?, value(right)));
        }
        if let Some((left, right)) = text.split_once('=') {
            return Ok(Self::Equals(key(left)?, value(right.strip_prefix('=').unwrap_or(right))));
        }
        match text.strip_prefix('!') {
            Some(absent) => Ok(Self::Lacks(key(absent)?)),
            None => Ok(Self::Has(key(text)?)),
        }
    }

    fn holds(&self, labels: &HashMap<String, String>) -> bool {
        match self {
            Self::Equals(key, value) => labels.get(key) == Some(value),
            Self::Differs(key, value) => labels.get(key) != Some(value),
            Self::Has(key) => labels.contains_key(key),
            Self::Lacks(key) => !labels.contains_key(key),
        }
    }
}

impl Selector {
    /// Whether an integration with these labels is meant.
    pub(crate) fn selects(&self, labels: &HashMap<String, String>) -> bool {
        self.0.iter().all(|requirement| requirement.holds(labels))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_requirements_must_hold() {
        let labels: HashMap<String, String> =
            [("zone", "a"), ("canary", "")].map(|(key, value)| (key.to_owned(), value.to_owned())).into();
        let selects = |text: &str| text.parse::<Selector>().unwrap().selects(&labels);
        for yes in [
            "zone=a",
            "zone == a",
            "zone!=b",
            "canary",
            "!legacy",
            "zone=a, canary ,!legacy",
            "team!=x",
            "canary=",
        ] {
            assert!(selects(yes), "{yes}");
        }
        for no in ["zone=b", "zone!=a", "legacy", "!zone", "zone=a,legacy"] {
            assert!(!selects(no), "{no}");
        }
    }

    #[test]
    fn what_is_no_requirement_is_refused() {
        for text in ["", "zone=a,", "=a", "!", "!=a", "!!a"] {
            assert!(text.parse::<Selector>().is_err(), "{text}");
        }
    }
}
