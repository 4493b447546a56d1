//! Where the keys of secrets are, for the planes that need them.

use std::{fmt::Display, fs, path::PathBuf};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::config::{Secret, Setting};

/// The keys, at key `secrets`: one of the three is set, or none.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct SecretsConfig {
    /// `id:base64,…`, each 32 bytes: all of them decrypt, the first one encrypts.
    pub keys: Secret,
    /// One key, `id:base64` or base64 alone.
    pub key: Secret,
    /// A file with keys, one per line.
    pub key_file: Option<PathBuf>,
}

/// The keys can't be used. No text shows a key.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Invalid {
    /// More than one place is named.
    #[error("{0} and {1} are both set: keep the one with all keys")]
    Both(&'static str, &'static str),
    /// The file can't be read.
    #[error("can't read the keys in {} (TBMQ_SECRETS_KEY_FILE): {reason}", file.display())]
    File {
        /// The file.
        file: PathBuf,
        /// Why.
        reason: String,
    },
    /// They are no keys.
    #[error("bad value for {setting}: {reason}")]
    Keys {
        /// Where they come from.
        setting: &'static str,
        /// Why.
        reason: String,
    },
}

impl SecretsConfig {
    /// Environment name of `keys`.
    pub const KEYS: Setting = Setting { env: "TBMQ_SECRETS_KEYS", key: "secrets.keys" };
    /// Environment name of `key`.
    pub const KEY: Setting = Setting { env: "TBMQ_SECRETS_KEY", key: "secrets.key" };
    /// Environment name of `key_file`.
    pub const KEY_FILE: Setting = Setting { env: "TBMQ_SECRETS_KEY_FILE", key: "secrets.key-file" };

    /// Whether no keys are named.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Reads the keys, with what understands them. Without any it gets no text.
    ///
    /// # Errors
    /// When they can't be read, or are refused.
    pub fn read<T, E: Display>(&self, parse: impl FnOnce(&str) -> Result<T, E>) -> Result<T, Invalid> {
        let Self { keys, key, key_file } = self;
        let given = [
            (Self::KEYS.env, !keys.expose().trim().is_empty()),
            (Self::KEY.env, !key.expose().trim().is_empty()),
            (Self::KEY_FILE.env, key_file.is_some()),
        ];
        let mut given = given.into_iter().filter(|(_, is_given)| *is_given).map(|(setting, _)| setting);
        let setting = given.next().unwrap_or(Self::KEYS.env);
        if let Some(second) = given.next() {
            return Err(Invalid::Both(setting, second));
        }
        let text = match key_file {
            Some(file) => fs::read_to_string(file)
                .map_err(|error| Invalid::File { file: file.clone(), reason: error.to_string() })?,
            None => format!("{}{}", keys.expose(), key.expose()),
        };
        if key_file.is_some() && text.trim().is_empty() {
            return Err(Invalid::Keys { setting, reason: "the file holds no key".to_owned() });
        }
        parse(&text).map_err(|error| Invalid::Keys { setting, reason: error.to_string() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(config: &SecretsConfig) -> Result<String, Invalid> {
        config.read(|text| if text == "bad" { Err("no key") } else { Ok(text.to_owned()) })
    }

    #[test]
    fn keys_come_from_one_of_three_places() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("keys");
        fs::write(&file, "a\nb\n").unwrap();
        let keys = SecretsConfig { keys: Secret::new("a,b"), ..SecretsConfig::default() };
        let key = SecretsConfig { key: Secret::new("a"), ..SecretsConfig::default() };
        let from_file = SecretsConfig { key_file: Some(file), ..SecretsConfig::default() };
        assert_eq!(text(&SecretsConfig::default()).unwrap(), "");
        assert_eq!(text(&keys).unwrap(), "a,b");
        assert_eq!(text(&key).unwrap(), "a");
        assert_eq!(text(&from_file).unwrap(), "a\nb\n");
        let both = SecretsConfig { key: Secret::new("a"), ..keys };
        assert_eq!(text(&both), Err(Invalid::Both("TBMQ_SECRETS_KEYS", "TBMQ_SECRETS_KEY")));
    }

    #[test]
    fn what_is_wrong_is_told_with_its_setting() {
        let bad = SecretsConfig { key: Secret::new("bad"), ..SecretsConfig::default() };
        assert_eq!(text(&bad).unwrap_err().to_string(), "bad value for TBMQ_SECRETS_KEY: no key");
        let missing = SecretsConfig { key_file: Some("/no/such/file".into()), ..SecretsConfig::default() };
        let error = text(&missing).unwrap_err().to_string();
        assert!(
            error.starts_with("can't read the keys in /no/such/file (TBMQ_SECRETS_KEY_FILE): "),
            "{error}"
        );
    }
}
