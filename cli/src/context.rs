//! Which server is called, and as whom: flags, the environment, and contexts, which are named servers kept in a file.
//!
//! What is given nearer wins: a flag, then a context named by `--context`, then the environment, then the context in use,
//! then the default. A context's credentials go to the context's own server and to no other.

use std::{
    collections::BTreeMap,
    fmt,
    fs::{DirBuilder, File},
    io::{self, Read, Write},
    os::unix::fs::{DirBuilderExt, MetadataExt},
    path::{Path, PathBuf},
    time::Duration,
};

use serde::{Deserialize, Serialize};

use crate::{duration, failure::Failure, render::Format};

/// Where `tbmq` listens unless it is told otherwise.
const SERVER: &str = "http://127.0.0.1:9090";

/// Longest wait for the answer to one call.
const TIMEOUT: Duration = Duration::from_secs(40);

/// Bytes that the file may have.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// Variables of the environment, in the order of the fields of [`Given`].
const SERVER_VARIABLE: &str = "TBMQCTL_SERVER";
const TOKEN_VARIABLE: &str = "TBMQCTL_TOKEN";
const CA_FILE_VARIABLE: &str = "TBMQCTL_CA_FILE";
const CERT_FILE_VARIABLE: &str = "TBMQCTL_CERT_FILE";
const KEY_FILE_VARIABLE: &str = "TBMQCTL_KEY_FILE";
const CONTEXT_VARIABLE: &str = "TBMQCTL_CONTEXT";
const CONFIG_VARIABLE: &str = "TBMQCTL_CONFIG";

/// Flags that say which server is called, and how its answers appear. All but the first can be kept in a context.
#[derive(Clone, Debug, Default, clap::Args)]
#[command(next_help_heading = "Server and output")]
pub(crate) struct Flags {
    /// Context to use: a server kept under a name by `tbmqctl context set` [env: TBMQCTL_CONTEXT=]
    #[arg(long, global = true, value_name = "NAME")]
    pub(crate) context: Option<String>,
    /// Address of the control plane's gRPC endpoint, http:// or https:// [env: TBMQCTL_SERVER=] [default:
    /// http://127.0.0.1:9090]
    #[arg(long, global = true, value_name = "URL")]
    pub(crate) server: Option<String>,
    /// File that holds the API token or JWT to call with; the environment may hold it itself [env: TBMQCTL_TOKEN=]
    #[arg(long, global = true, value_name = "FILE", hide_short_help = true)]
    pub(crate) token_file: Option<PathBuf>,
    /// PEM file of the authorities that the server's certificate may come from, instead of the system's [env:
    /// TBMQCTL_CA_FILE=]
    #[arg(long, global = true, value_name = "FILE", hide_short_help = true)]
    pub(crate) ca_file: Option<PathBuf>,
    /// PEM file of the certificate to show to the server [env: TBMQCTL_CERT_FILE=]
    #[arg(long, global = true, value_name = "FILE", hide_short_help = true)]
    pub(crate) cert_file: Option<PathBuf>,
    /// PEM file of that certificate's key [env: TBMQCTL_KEY_FILE=]
    #[arg(long, global = true, value_name = "FILE", hide_short_help = true)]
    pub(crate) key_file: Option<PathBuf>,
    /// Send the token over http:// to another machine, where everybody on the way can read it
    #[arg(long, global = true, hide_short_help = true)]
    pub(crate) plaintext_token: bool,
    /// Form of the output [default: table]
    #[arg(short, long, global = true, value_enum)]
    pub(crate) output: Option<Format>,
    /// Longest wait for the answer to one call, or for all that `wait` waits for, such as 500ms, 40s or 2m [default: 40s]
    #[arg(long, global = true, value_name = "DURATION", value_parser = duration)]
    pub(crate) timeout: Option<Duration>,
}

/// The file: contexts by name, and which is used when none is named.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct Config {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) current_context: Option<String>,
    pub(crate) contexts: BTreeMap<String, Context>,
}

/// A server under a name, and how it is called.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct Context {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) server: Option<String>,
    /// At most one of this and `token_file`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) token: Option<Token>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) token_file: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) ca_file: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) cert_file: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) key_file: Option<PathBuf>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub(crate) plaintext_token: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) output: Option<Format>,
    #[serde(skip_serializing_if = "Option::is_none", with = "as_text")]
    pub(crate) timeout: Option<Duration>,
}

/// A secret; `Debug` does not show it.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct Token(pub(crate) String);

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// Where a token comes from.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum TokenSource {
    Is(Token),
    In(PathBuf),
}

/// What a command works with.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Settings {
    pub(crate) server: String,
    /// The context that says something about this call.
    pub(crate) context: Option<String>,
    pub(crate) token: Option<TokenSource>,
    pub(crate) ca_file: Option<PathBuf>,
    pub(crate) cert_file: Option<PathBuf>,
    pub(crate) key_file: Option<PathBuf>,
    pub(crate) plaintext_token: bool,
    pub(crate) output: Format,
    pub(crate) timeout: Duration,
}

/// What one place says about the server and how it is called.
#[derive(Clone, Debug, Default)]
struct Given {
    server: Option<String>,
    token: Option<TokenSource>,
    ca_file: Option<PathBuf>,
    cert_file: Option<PathBuf>,
    key_file: Option<PathBuf>,
    plaintext_token: bool,
    output: Option<Format>,
    timeout: Option<Duration>,
}

impl From<Flags> for Given {
    fn from(from: Flags) -> Self {
        Self {
            server: from.server,
            token: from.token_file.map(TokenSource::In),
            ca_file: from.ca_file,
            cert_file: from.cert_file,
            key_file: from.key_file,
            plaintext_token: from.plaintext_token,
            output: from.output,
            timeout: from.timeout,
        }
    }
}

impl From<Context> for Given {
    fn from(from: Context) -> Self {
        Self {
            server: from.server,
            token: from.token.map(TokenSource::Is).or_else(|| from.token_file.map(TokenSource::In)),
            ca_file: from.ca_file,
            cert_file: from.cert_file,
            key_file: from.key_file,
            plaintext_token: from.plaintext_token,
            output: from.output,
            timeout: from.timeout,
        }
    }
}

impl Settings {
    /// Decides from flags, variables of the environment (an empty one counts as absent) and contexts.
    ///
    /// # Errors
    /// When the context that is named does not exist.
    pub(crate) fn decide(
        flags: Flags,
        variable: impl Fn(&str) -> Option<String>,
        config: &Config,
    ) -> Result<Self, Failure> {
        let variable = |name: &str| variable(name).filter(|value| !value.is_empty());
        let is_flag = flags.context.is_some();
        let context = flags
            .context
            .clone()
            .or_else(|| variable(CONTEXT_VARIABLE))
            .or_else(|| config.current_context.clone());
        let held = match &context {
            Some(name) => config.get(name)?.clone(),
            None => Context::default(),
        };
        let environment = Given {
            server: variable(SERVER_VARIABLE),
            token: variable(TOKEN_VARIABLE).map(|token| TokenSource::Is(Token(token))),
            ca_file: variable(CA_FILE_VARIABLE).map(PathBuf::from),
            cert_file: variable(CERT_FILE_VARIABLE).map(PathBuf::from),
            key_file: variable(KEY_FILE_VARIABLE).map(PathBuf::from),
            ..Given::default()
        };
        let own_server = held.server.clone().unwrap_or_else(|| SERVER.to_owned());
        let mut held = Given { server: context.is_some().then(|| own_server.clone()), ..held.into() };
        let flags = Given::from(flags);
        let server = if is_flag {
            flags.server.clone().or_else(|| held.server.clone())
        } else {
            flags.server.clone().or_else(|| environment.server.clone()).or_else(|| held.server.clone())
        };
        let server = server.unwrap_or_else(|| SERVER.to_owned());
        if server != own_server {
            held = Given { output: held.output, timeout: held.timeout, ..Given::default() };
        }
        let places = if is_flag { [flags, held, environment] } else { [flags, environment, held] };
        // A certificate and its key belong together.
        let identity = places.iter().find(|place| place.cert_file.is_some() || place.key_file.is_some());
        let (cert_file, key_file) =
            identity.map(|place| (place.cert_file.clone(), place.key_file.clone())).unwrap_or_default();
        Ok(Self {
            server,
            context,
            token: places.iter().find_map(|place| place.token.clone()),
            ca_file: places.iter().find_map(|place| place.ca_file.clone()),
            cert_file,
            key_file,
            plaintext_token: places.iter().any(|place| place.plaintext_token),
            output: places.iter().find_map(|place| place.output).unwrap_or(Format::Table),
            timeout: places.iter().find_map(|place| place.timeout).unwrap_or(TIMEOUT),
        })
    }
}

impl Config {
    /// A context by its name.
    pub(crate) fn get(&self, name: &str) -> Result<&Context, Failure> {
        self.contexts.get(name).ok_or_else(|| {
            Failure::usage(format!("there is no context named {name:?}")).hint(
                "`tbmqctl context list` shows what exists, `tbmqctl context set NAME --server URL` makes one",
            )
        })
    }

    pub(crate) fn holds_a_token(&self) -> bool {
        self.contexts.values().any(|context| context.token.is_some())
    }

    /// Reads the file; one that does not exist holds nothing.
    pub(crate) fn load(file: &Path) -> Result<Self, Failure> {
        let cant = |error: &dyn fmt::Display| {
            Failure::usage(format!("can't read the contexts in {}: {error}", file.display()))
                .hint("TBMQCTL_CONFIG names another file")
        };
        let opened = match File::open(file) {
            Ok(opened) => opened,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(error) => return Err(cant(&error)),
        };
        let mut text = String::new();
        opened.take(FILE_BYTES_MAX).read_to_string(&mut text).map_err(|error| cant(&error))?;
        if text.trim().is_empty() {
            return Ok(Self::default());
        }
        serde_norway::from_str(&text).map_err(|error| cant(&error))
    }

    /// Replaces the file at once, readable by its owner only.
    pub(crate) fn save(&self, file: &Path) -> Result<(), Failure> {
        self.replace(file).map_err(|error| {
            Failure::usage(format!("can't write the contexts to {}: {error}", file.display()))
                .hint("TBMQCTL_CONFIG names another file")
        })
    }

    fn replace(&self, file: &Path) -> io::Result<()> {
        // What a link leads to is replaced, not the link.
        let file = file.canonicalize().unwrap_or_else(|_| file.to_owned());
        let folder = match file.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => folder,
            _ => Path::new("."),
        };
        DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
        let text = serde_norway::to_string(self).map_err(io::Error::other)?;
        // Such a file has mode 0600 from the beginning.
        let mut new = tempfile::NamedTempFile::new_in(folder)?;
        new.write_all(text.as_bytes())?;
        new.as_file().sync_all()?;
        new.persist(&file)?;
        Ok(())
    }
}

/// The file that contexts are kept in: `$TBMQCTL_CONFIG`, else `tbmqctl/config.yaml` in `$XDG_CONFIG_HOME` or `~/.config`.
pub(crate) fn file(variable: impl Fn(&str) -> Option<String>) -> Option<PathBuf> {
    let variable = |name: &str| variable(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    variable(CONFIG_VARIABLE).or_else(|| {
        // Relative paths are to be ignored, says the XDG specification.
        let folder = variable("XDG_CONFIG_HOME").filter(|folder| folder.is_absolute());
        let folder = folder.or_else(|| variable("HOME").map(|home| home.join(".config")))?;
        Some(folder.join("tbmqctl").join("config.yaml"))
    })
}

/// Whether others than its owner may read a file.
pub(crate) fn is_readable_by_others(file: &Path) -> bool {
    file.metadata().is_ok_and(|metadata| metadata.mode() & 0o077 != 0)
}

/// Durations as flags take them.
mod as_text {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serializer, de::Error as _};

    #[expect(clippy::ref_option, reason = "serde's signature")]
    pub(super) fn serialize<S: Serializer>(value: &Option<Duration>, to: S) -> Result<S::Ok, S::Error> {
        match value {
            Some(value) => to.serialize_str(&super::text(*value)),
            None => to.serialize_none(),
        }
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Duration>, D::Error> {
        let text = Option::<String>::deserialize(from)?;
        text.map(|text| crate::duration(&text).map_err(D::Error::custom)).transpose()
    }
}

/// A duration as flags take it.
pub(crate) fn text(duration: Duration) -> String {
    let ms = duration.as_millis();
    if ms.is_multiple_of(1000) { format!("{}s", ms / 1000) } else { format!("{ms}ms") }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn contexts() -> Config {
        let context = |server: &str| Context {
            server: Some(server.to_owned()),
            token: Some(Token(format!("token of {server}"))),
            cert_file: Some("c".into()),
            key_file: Some("k".into()),
            output: Some(Format::Wide),
            ..Context::default()
        };
        Config {
            current_context: Some("near".to_owned()),
            contexts: [("near", context("https://near")), ("far", context("https://far"))]
                .map(|(name, context)| (name.to_owned(), context))
                .into(),
        }
    }

    fn decide(flags: Flags, variables: &[(&str, &str)], config: &Config) -> Settings {
        let variable =
            |name: &str| variables.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned());
        Settings::decide(flags, variable, config).unwrap()
    }

    fn token(of: &Settings) -> Option<&str> {
        match of.token.as_ref()? {
            TokenSource::Is(token) => Some(&token.0),
            TokenSource::In(file) => file.to_str(),
        }
    }

    #[test]
    fn without_anything_given_it_is_the_local_server() {
        let settings = decide(Flags::default(), &[("TBMQCTL_SERVER", "")], &Config::default());
        assert_eq!(settings.server, "http://127.0.0.1:9090");
        assert_eq!((settings.output, settings.timeout), (Format::Table, Duration::from_secs(40)));
        assert_eq!((settings.token, settings.context), (None, None));
    }

    #[test]
    fn what_is_given_nearer_wins() {
        let config = contexts();
        let near = decide(Flags::default(), &[], &config);
        assert_eq!((near.server.as_str(), token(&near)), ("https://near", Some("token of https://near")));
        assert_eq!(near.output, Format::Wide);
        let variables = [("TBMQCTL_CONTEXT", "far"), ("TBMQCTL_TOKEN", "t"), ("TBMQCTL_CA_FILE", "ca")];
        let far = decide(Flags::default(), &variables, &config);
        assert_eq!((far.server.as_str(), token(&far)), ("https://far", Some("t")));
        assert_eq!(far.ca_file, Some("ca".into()));
        let flags = Flags { token_file: Some("f".into()), output: Some(Format::Json), ..Flags::default() };
        let flags = decide(flags, &variables, &config);
        assert_eq!((token(&flags), flags.output), (Some("f"), Format::Json));
    }

    #[test]
    fn a_context_that_is_named_by_a_flag_wins_over_the_environment() {
        let flags = Flags { context: Some("far".to_owned()), ..Flags::default() };
        let variables = [("TBMQCTL_SERVER", "https://other"), ("TBMQCTL_TOKEN", "t")];
        let settings = decide(flags, &variables, &contexts());
        assert_eq!(
            (settings.server.as_str(), token(&settings)),
            ("https://far", Some("token of https://far"))
        );
    }

    #[test]
    fn a_contexts_credentials_go_to_its_own_server_only() {
        let settings = decide(Flags::default(), &[("TBMQCTL_SERVER", "https://other")], &contexts());
        assert_eq!((&settings.token, &settings.cert_file, &settings.key_file), (&None, &None, &None));
        assert_eq!(settings.output, Format::Wide, "how answers appear is no secret");
        let same = decide(Flags::default(), &[("TBMQCTL_SERVER", "https://near")], &contexts());
        assert_eq!(token(&same), Some("token of https://near"));
    }

    #[test]
    fn a_certificate_is_never_joined_with_another_ones_key() {
        let flags = Flags { cert_file: Some("mine".into()), ..Flags::default() };
        let settings = decide(flags, &[("TBMQCTL_KEY_FILE", "other")], &contexts());
        assert_eq!((settings.cert_file, settings.key_file), (Some("mine".into()), None));
    }

    #[test]
    fn a_context_that_does_not_exist_is_told() {
        let flags = Flags { context: Some("x".to_owned()), ..Flags::default() };
        let failure = Settings::decide(flags, |_| None, &contexts()).unwrap_err();
        assert_eq!(failure.message, "there is no context named \"x\"");
    }

    #[test]
    fn the_file_is_where_the_environment_says() {
        let at = |variables: &[(&str, &str)]| {
            file(|name| variables.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned()))
        };
        assert_eq!(at(&[("HOME", "/h")]), Some("/h/.config/tbmqctl/config.yaml".into()));
        assert_eq!(at(&[("HOME", "/h"), ("XDG_CONFIG_HOME", "/x")]), Some("/x/tbmqctl/config.yaml".into()));
        assert_eq!(at(&[("HOME", "/h"), ("XDG_CONFIG_HOME", "x")]), at(&[("HOME", "/h")]));
        assert_eq!(at(&[("HOME", "/h"), ("TBMQCTL_CONFIG", "c")]), Some("c".into()));
        assert_eq!(at(&[]), None);
    }

    #[test]
    fn the_file_is_read_as_it_was_written_and_by_its_owner_only() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("new/config.yaml");
        let mut config = contexts();
        config.contexts.get_mut("far").unwrap().timeout = Some(Duration::from_millis(1500));
        config.save(&file).unwrap();
        assert_eq!(Config::load(&file).unwrap(), config);
        assert_eq!(file.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        std::fs::set_permissions(&file, PermissionsExt::from_mode(0o644)).unwrap();
        assert!(is_readable_by_others(&file));
        config.save(&file).unwrap();
        assert!(!is_readable_by_others(&file));
    }

    #[test]
    fn a_file_that_is_wrong_is_named_with_its_problem() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("c.yaml");
        assert_eq!(Config::load(&file).unwrap(), Config::default());
        for (text, problem) in [
            ("contexts: { a: { sevrer: x } }", "sevrer"),
            ("contexts: { a: { timeout: soon } }", "not a duration"),
            ("[1]", "can't read the contexts"),
        ] {
            std::fs::write(&file, text).unwrap();
            let failure = Config::load(&file).unwrap_err();
            assert!(failure.message.contains(problem), "{}", failure.message);
        }
    }

    #[test]
    fn a_token_is_not_shown_by_debug() {
        assert!(!format!("{:?}", contexts()).contains("token of"));
    }
}
