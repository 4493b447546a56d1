//! Configuration: defaults → YAML file → environment (architecture §4.28).
//!
//! A component has a struct with `#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]`, `Default`,
//! `Serialize` and `Deserialize`, and a table of [`Setting`]s: which environment name sets which key. Several structs
//! share one file: each takes the keys that are in its own defaults, and what nobody takes is an error.
//! So every field is serialized (no `skip_serializing_if`), and an absent optional value is `null`.
//!
//! Text from the environment takes the type of its field: a number, a boolean, a list separated by commas. An empty
//! variable leaves an optional value absent.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    path::{Path, PathBuf},
};

use config::{ConfigError, Value, ValueKind};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize, de::DeserializeOwned};

/// Environment names beginning so are ours: one that nobody knows is warned about.
const PREFIXES: [&str; 5] = ["TB_", "TBMQ_", "MQTT_", "INTEGRATIONS_", "LISTENER_"];

/// The bytes a configuration file may have.
const FILE_BYTES_MAX: u64 = 4 << 20;

/// One environment name and the key that it sets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Setting {
    /// Environment name, such as `LISTENER_TCP_BIND_PORT`.
    pub env: &'static str,
    /// Dotted path in the tree, such as `listener.tcp.bind-port`.
    pub key: &'static str,
}

/// Loads one struct: defaults, then the file, then the process's environment. Warnings are logged.
pub fn load<T>(settings: &[&[Setting]], file: Option<&Path>) -> Result<T, Error>
where
    T: DeserializeOwned + Serialize + Default,
{
    load_from(settings, file, std::env::vars())
}

/// As [`load`], with this environment.
pub fn load_from<T>(
    settings: &[&[Setting]],
    file: Option<&Path>,
    environment: impl Iterator<Item = (String, String)>,
) -> Result<T, Error>
where
    T: DeserializeOwned + Serialize + Default,
{
    let mut loader = Loader::open(file, environment)?;
    let loaded = loader.load(T::default(), settings);
    for warning in loader.finish()? {
        tracing::warn!("{warning}");
    }
    Ok(loaded)
}

/// Loads several structs from one file and one environment, and collects all problems.
#[derive(Debug)]
pub struct Loader {
    file: Option<PathBuf>,
    /// Leaves of the file: what is not a table. A list is a leaf.
    leaves: Vec<Leaf>,
    environment: BTreeMap<String, String>,
    known: BTreeSet<String>,
    problems: Vec<Problem>,
}

#[derive(Debug)]
struct Leaf {
    path: Vec<String>,
    value: Value,
    taken: bool,
}

impl Loader {
    /// Reads the file. Fails when it can't be read or is not a YAML tree.
    pub fn open(
        file: Option<&Path>,
        environment: impl Iterator<Item = (String, String)>,
    ) -> Result<Self, Error> {
        let mut leaves = Vec::new();
        if let Some(path) = file {
            collect_leaves(&read_tree(path)?, &mut Vec::new(), &mut leaves);
        }
        Ok(Self {
            file: file.map(Path::to_owned),
            leaves,
            environment: environment.collect(),
            known: BTreeSet::new(),
            problems: Vec::new(),
        })
    }

    /// Tells of environment names that are read elsewhere, so that nobody is warned about them.
    pub fn knows(&mut self, names: &[&str]) {
        self.known.extend(names.iter().map(|name| (*name).to_owned()));
    }

    /// Loads one struct over these defaults. What is wrong is told by [`Loader::finish`]; the value that comes with a
    /// problem is the default.
    pub fn load<T>(&mut self, defaults: T, settings: &[&[Setting]]) -> T
    where
        T: DeserializeOwned + Serialize,
    {
        let tree = match serde_json::to_value(&defaults) {
            Ok(tree) => to_value(tree),
            Err(error) => {
                self.problems.push(Problem::Defaults { reason: error.to_string() });
                return defaults;
            }
        };
        let mut merged = tree.clone();
        let mut changed = false;
        let mut overrides = Vec::new();
        for leaf in &mut self.leaves {
            if holds(&tree, &leaf.path) {
                leaf.taken = true;
                let origin = Origin::File(self.file.clone().unwrap_or_default());
                overrides.push((leaf.path.clone(), vec![leaf.value.clone()], show(&leaf.value), origin));
            }
        }
        for setting in settings.iter().copied().flatten() {
            self.known.insert(setting.env.to_owned());
            let Some(text) = self.environment.get(setting.env) else { continue };
            let path: Vec<String> = setting.key.split('.').map(ToOwned::to_owned).collect();
            if text.trim().is_empty() && absent(&tree, &path) {
                continue;
            }
            let origin = Origin::Environment(setting.env.to_owned());
            overrides.push((path, candidates(text), text.clone(), origin));
        }
        for (path, candidates, shown, origin) in overrides {
            // Each is tried alone over the defaults, so that the culprit is known by name whatever serde says.
            let mut reason = None;
            let fitting = candidates.into_iter().find(|candidate| {
                let mut trial = tree.clone();
                set(&mut trial, &path, candidate.clone());
                match trial.try_deserialize::<T>() {
                    Ok(_) => true,
                    Err(error) => {
                        reason.get_or_insert_with(|| explain(&error));
                        false
                    }
                }
            });
            let key = path.join(".");
            match fitting {
                Some(value) => {
                    set(&mut merged, &path, value);
                    changed = true;
                }
                None => self.problems.push(Problem::Invalid {
                    value: if is_secret(&key) { "***".to_owned() } else { shown },
                    key,
                    origin,
                    reason: reason.unwrap_or_else(|| "no value".to_owned()),
                }),
            }
        }
        if !changed {
            return defaults;
        }
        match merged.try_deserialize() {
            Ok(loaded) => loaded,
            Err(error) => {
                self.problems.push(Problem::Together { reason: explain(&error) });
                defaults
            }
        }
    }

    /// Ends the loading: all problems at once, or the warnings.
    pub fn finish(mut self) -> Result<Vec<String>, Error> {
        let file = self.file.unwrap_or_default();
        self.problems.extend(
            self.leaves
                .iter()
                .filter(|leaf| !leaf.taken)
                .map(|leaf| Problem::Unknown { key: leaf.path.join("."), file: file.clone() }),
        );
        if !self.problems.is_empty() {
            return Err(Error { problems: self.problems });
        }
        let ours = |name: &String| PREFIXES.iter().any(|prefix| name.starts_with(prefix));
        Ok(self
            .environment
            .keys()
            .filter(|name| ours(name) && !self.known.contains(*name))
            .map(|name| format!("environment variable {name} is not known and has no effect"))
            .collect())
    }
}

/// What is wrong with a configuration: everything that was found.
#[derive(Debug)]
pub struct Error {
    /// At least one.
    pub problems: Vec<Problem>,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.problems.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            problem.fmt(f)?;
        }
        Ok(())
    }
}

impl std::error::Error for Error {}

impl From<Problem> for Error {
    fn from(problem: Problem) -> Self {
        Self { problems: vec![problem] }
    }
}

/// One thing that is wrong with a configuration.
#[derive(Debug, thiserror::Error)]
pub enum Problem {
    /// The file can't be read.
    #[error("can't read configuration file {}: {reason}", file.display())]
    Unreadable {
        /// The file.
        file: PathBuf,
        /// Why.
        reason: String,
    },
    /// The file is not a YAML tree.
    #[error("configuration file {} is not a YAML tree: {reason}", file.display())]
    Syntax {
        /// The file.
        file: PathBuf,
        /// Why.
        reason: String,
    },
    /// The file has a key that no component knows.
    #[error("unknown key {key} in {}", file.display())]
    Unknown {
        /// Dotted path.
        key: String,
        /// The file.
        file: PathBuf,
    },
    /// A value does not fit its key.
    #[error("bad value {value:?} for {key} ({origin}): {reason}")]
    Invalid {
        /// Dotted path.
        key: String,
        /// The value, or `***` for a secret.
        value: String,
        /// Where it came from.
        origin: Origin,
        /// Why it does not fit.
        reason: String,
    },
    /// Values that are good alone are not good together.
    #[error("the configuration does not fit together: {reason}")]
    Together {
        /// Why.
        reason: String,
    },
    /// The program's own defaults can't be used: a bug.
    #[error("the defaults can't be used: {reason}")]
    Defaults {
        /// Why.
        reason: String,
    },
}

/// Where a value came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// This file.
    File(PathBuf),
    /// The environment variable of this name.
    Environment(String),
    /// The configuration as a whole: found wrong after loading.
    Merged,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(f, "in {}", path.display()),
            Self::Environment(name) => write!(f, "environment variable {name}"),
            Self::Merged => f.write_str("configuration"),
        }
    }
}

/// A text that is not to be seen: `Debug` and `--print-config` show `***`.
#[derive(Clone, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(transparent)]
pub struct Secret(String);

impl Secret {
    /// Hides a text.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The text itself.
    pub fn expose(&self) -> &str {
        &self.0
    }

    fn shown(&self) -> &'static str {
        if self.0.is_empty() { "" } else { "***" }
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.shown().fmt(f)
    }
}

impl Serialize for Secret {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.shown())
    }
}

fn read_tree(path: &Path) -> Result<Value, Error> {
    let unreadable = |reason: String| Error::from(Problem::Unreadable { file: path.to_owned(), reason });
    let metadata = std::fs::metadata(path).map_err(|error| unreadable(error.to_string()))?;
    if metadata.len() > FILE_BYTES_MAX {
        return Err(unreadable(format!("it has {} bytes, more than {FILE_BYTES_MAX}", metadata.len())));
    }
    let text = std::fs::read_to_string(path).map_err(|error| unreadable(error.to_string()))?;
    if text.lines().all(|line| matches!(line.trim(), "" | "---") || line.trim_start().starts_with('#')) {
        return Ok(Value::new(None, ValueKind::Table(config::Map::new())));
    }
    let syntax =
        |error: ConfigError| Error::from(Problem::Syntax { file: path.to_owned(), reason: explain(&error) });
    config::Config::builder()
        .add_source(config::File::from_str(&text, config::FileFormat::Yaml))
        .build()
        .map_err(syntax)?
        .try_deserialize::<serde_json::Value>()
        .map(to_value)
        .map_err(syntax)
}

fn collect_leaves(value: &Value, path: &mut Vec<String>, leaves: &mut Vec<Leaf>) {
    match &value.kind {
        ValueKind::Table(table) => {
            let mut keys: Vec<_> = table.iter().collect();
            keys.sort_by_key(|(key, _)| *key);
            for (key, value) in keys {
                let depth = path.len();
                // As Spring does, `a.b: 1` means the same as `a: { b: 1 }`.
                path.extend(key.split('.').map(ToOwned::to_owned));
                collect_leaves(value, path, leaves);
                path.truncate(depth);
            }
        }
        // `key:` with nothing after it leaves the default.
        ValueKind::Nil => {}
        _ => leaves.push(Leaf { path: path.clone(), value: value.clone(), taken: false }),
    }
}

/// Whether a tree of defaults has a place for this path: the key itself, or something below an absent value or an
/// empty map, which the struct judges.
fn holds(tree: &Value, path: &[String]) -> bool {
    let mut at = tree;
    for key in path {
        match &at.kind {
            ValueKind::Table(table) => match table.get(key) {
                Some(value) => at = value,
                None => return table.is_empty() && !std::ptr::eq(at, tree),
            },
            _ => return true,
        }
    }
    true
}

fn absent(tree: &Value, path: &[String]) -> bool {
    let mut at = tree;
    for key in path {
        let ValueKind::Table(table) = &at.kind else { break };
        match table.get(key) {
            Some(value) => at = value,
            None => return true,
        }
    }
    matches!(at.kind, ValueKind::Nil)
}

fn set(tree: &mut Value, path: &[String], value: Value) {
    let Some((key, rest)) = path.split_first() else {
        *tree = value;
        return;
    };
    if !matches!(tree.kind, ValueKind::Table(_)) {
        tree.kind = ValueKind::Table(config::Map::new());
    }
    if let ValueKind::Table(table) = &mut tree.kind {
        set(table.entry(key.clone()).or_insert_with(|| Value::new(None, ValueKind::Nil)), rest, value);
    }
}

/// What a text from the environment may mean, the likeliest first. A field that takes texts gets the text; numbers
/// and booleans are also read from it where the field's type asks for them.
fn candidates(text: &str) -> Vec<Value> {
    let string = |text: &str| Value::new(None, ValueKind::String(text.to_owned()));
    let mut all = vec![string(text)];
    let trimmed = text.trim();
    if trimmed != text {
        all.push(string(trimmed));
    }
    // For types that look before they choose (untagged, flattened), which see only what the value is.
    if let Ok(number) = trimmed.parse::<i64>() {
        all.push(Value::new(None, ValueKind::I64(number)));
    } else if let Ok(number) = trimmed.parse::<u64>() {
        all.push(Value::new(None, ValueKind::U64(number)));
    } else if let Ok(number) = trimmed.parse::<f64>() {
        all.push(Value::new(None, ValueKind::Float(number)));
    } else if let Ok(truth) = trimmed.to_ascii_lowercase().parse::<bool>() {
        all.push(Value::new(None, ValueKind::Boolean(truth)));
    }
    let list = trimmed.split(',').map(str::trim).filter(|item| !item.is_empty()).map(string).collect();
    all.push(Value::new(None, ValueKind::Array(list)));
    all
}

fn to_value(json: serde_json::Value) -> Value {
    let kind = match json {
        serde_json::Value::Null => ValueKind::Nil,
        serde_json::Value::Bool(truth) => ValueKind::Boolean(truth),
        serde_json::Value::Number(number) => match (number.as_i64(), number.as_u64()) {
            (Some(number), _) => ValueKind::I64(number),
            (None, Some(number)) => ValueKind::U64(number),
            (None, None) => ValueKind::Float(number.as_f64().unwrap_or(f64::NAN)),
        },
        serde_json::Value::String(text) => ValueKind::String(text),
        serde_json::Value::Array(items) => ValueKind::Array(items.into_iter().map(to_value).collect()),
        serde_json::Value::Object(object) => {
            ValueKind::Table(object.into_iter().map(|(key, value)| (key, to_value(value))).collect())
        }
    };
    Value::new(None, kind)
}

fn show(value: &Value) -> String {
    match &value.kind {
        ValueKind::Array(items) => format!("[{}]", items.iter().map(show).collect::<Vec<_>>().join(", ")),
        ValueKind::Table(_) => "{…}".to_owned(),
        _ => value.clone().into_string().unwrap_or_default(),
    }
}

fn explain(error: &ConfigError) -> String {
    match error {
        ConfigError::At { error, .. } => explain(error),
        ConfigError::Type { expected, .. } => format!("expected {expected}"),
        ConfigError::FileParse { cause, .. } => cause.to_string(),
        other => other.to_string(),
    }
}

fn is_secret(key: &str) -> bool {
    let last = key.rsplit('.').next().unwrap_or_default();
    // An URL may hold a password.
    ["password", "secret", "token", "url", "config"].iter().any(|word| last.contains(word))
        || last == "headers"
        || key.starts_with("secrets.key")
}

#[cfg(test)]
mod tests {
    use std::{io::Write, num::NonZeroU32, time::Duration};

    use super::*;

    #[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
    #[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
    struct Broker {
        listener: Listeners,
        limits: Limits,
    }

    #[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
    #[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
    struct Listeners {
        tcp: Tcp,
    }

    #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
    #[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
    struct Tcp {
        enabled: bool,
        bind_port: u16,
        hosts: Vec<String>,
        comment: Option<String>,
        password: Secret,
        labels: BTreeMap<String, String>,
    }

    impl Default for Tcp {
        fn default() -> Self {
            Self {
                enabled: true,
                bind_port: 1883,
                hosts: vec!["a".to_owned()],
                comment: None,
                password: Secret::default(),
                labels: BTreeMap::new(),
            }
        }
    }

    #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
    #[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
    struct Limits {
        connections: NonZeroU32,
        #[serde(with = "humantime_serde")]
        patience: Duration,
        mode: Mode,
    }

    impl Default for Limits {
        fn default() -> Self {
            Self { connections: NonZeroU32::MIN, patience: Duration::from_secs(5), mode: Mode::SkipAll }
        }
    }

    #[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
    #[serde(rename_all = "SCREAMING_SNAKE_CASE")]
    enum Mode {
        SkipAll,
        RetryAll,
    }

    #[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
    #[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
    struct Other {
        service: BTreeMap<String, String>,
        listener: OtherListeners,
    }

    #[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
    #[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
    struct OtherListeners {
        backlog: u32,
    }

    const SETTINGS: &[Setting] = &[
        Setting { env: "LISTENER_TCP_ENABLED", key: "listener.tcp.enabled" },
        Setting { env: "LISTENER_TCP_BIND_PORT", key: "listener.tcp.bind-port" },
        Setting { env: "LISTENER_TCP_HOSTS", key: "listener.tcp.hosts" },
        Setting { env: "LISTENER_TCP_COMMENT", key: "listener.tcp.comment" },
        Setting { env: "LISTENER_TCP_PASSWORD", key: "listener.tcp.password" },
        Setting { env: "TBMQ_CONNECTIONS", key: "limits.connections" },
        Setting { env: "TBMQ_PATIENCE", key: "limits.patience" },
        Setting { env: "TB_MODE", key: "limits.mode" },
    ];

    fn environment(pairs: &[(&str, &str)]) -> std::vec::IntoIter<(String, String)> {
        pairs
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect::<Vec<_>>()
            .into_iter()
    }

    fn file(text: &str) -> tempfile::NamedTempFile {
        let mut file = tempfile::Builder::new().suffix(".yml").tempfile().unwrap();
        file.write_all(text.as_bytes()).unwrap();
        file
    }

    fn loaded(yaml: &str, pairs: &[(&str, &str)]) -> Result<Broker, Error> {
        load_from(&[SETTINGS], Some(file(yaml).path()), environment(pairs))
    }

    #[test]
    fn without_a_file_and_variables_the_defaults_hold() {
        let broker: Broker = load_from(&[SETTINGS], None, environment(&[])).unwrap();
        assert_eq!(broker, Broker::default());
    }

    #[test]
    fn the_environment_wins_over_the_file_and_the_file_over_the_defaults() {
        let broker = loaded(
            "listener:\n  tcp:\n    bind-port: 1884\n    enabled: false\n    labels: { zone: a }\nlimits.patience: 2m\n",
            &[("LISTENER_TCP_BIND_PORT", "1885")],
        )
        .unwrap();
        let mut expected = Broker::default();
        expected.listener.tcp.bind_port = 1885;
        expected.listener.tcp.enabled = false;
        expected.listener.tcp.labels.insert("zone".to_owned(), "a".to_owned());
        expected.limits.patience = Duration::from_mins(2);
        assert_eq!(broker, expected);
    }

    #[test]
    fn text_takes_the_type_of_its_field() {
        let broker = loaded(
            "",
            &[
                ("LISTENER_TCP_ENABLED", "False"),
                ("LISTENER_TCP_HOSTS", "x, y,"),
                ("LISTENER_TCP_COMMENT", "12"),
                ("LISTENER_TCP_PASSWORD", "0x12"),
                ("TBMQ_CONNECTIONS", " 70000 "),
                ("TBMQ_PATIENCE", "1500ms"),
                ("TB_MODE", "RETRY_ALL"),
            ],
        )
        .unwrap();
        assert!(!broker.listener.tcp.enabled);
        assert_eq!(broker.listener.tcp.hosts, ["x", "y"]);
        assert_eq!(broker.listener.tcp.comment.as_deref(), Some("12"));
        assert_eq!(broker.listener.tcp.password.expose(), "0x12");
        assert_eq!(broker.limits.connections.get(), 70_000);
        assert_eq!(broker.limits.patience, Duration::from_millis(1500));
        assert_eq!(broker.limits.mode, Mode::RetryAll);
    }

    #[test]
    fn an_empty_variable_leaves_an_optional_value_absent_and_empties_a_list() {
        let broker = loaded("", &[("LISTENER_TCP_COMMENT", ""), ("LISTENER_TCP_HOSTS", "")]).unwrap();
        assert_eq!(broker.listener.tcp.comment, None);
        assert!(broker.listener.tcp.hosts.is_empty());
        assert!(loaded("", &[("LISTENER_TCP_BIND_PORT", "")]).is_err());
    }

    #[test]
    fn every_problem_is_told_at_once_with_key_value_and_origin() {
        let path =
            file("listener:\n  tcp:\n    bind-prot: 1\n    enabled: maybe\nlimits:\n  connections: 0\n");
        let pairs = [("LISTENER_TCP_BIND_PORT", "70000"), ("TBMQ_PATIENCE", "soon"), ("TB_MODE", "NONE")];
        let error = load_from::<Broker>(&[SETTINGS], Some(path.path()), environment(&pairs)).unwrap_err();
        let text = error.to_string();
        assert_eq!(error.problems.len(), 6, "{text}");
        let name = path.path().display().to_string();
        for expected in [
            format!("unknown key listener.tcp.bind-prot in {name}"),
            format!("bad value \"maybe\" for listener.tcp.enabled (in {name})"),
            format!("bad value \"0\" for limits.connections (in {name})"),
            "bad value \"70000\" for listener.tcp.bind-port (environment variable LISTENER_TCP_BIND_PORT)"
                .to_owned(),
            "bad value \"soon\" for limits.patience (environment variable TBMQ_PATIENCE)".to_owned(),
            "bad value \"NONE\" for limits.mode (environment variable TB_MODE)".to_owned(),
        ] {
            assert!(text.contains(&expected), "{expected} is not in\n{text}");
        }
    }

    #[test]
    fn a_file_that_is_missing_or_no_tree_is_an_error_that_names_it() {
        let missing =
            load_from::<Broker>(&[], Some(Path::new("/nowhere/tbmq.yml")), environment(&[])).unwrap_err();
        assert!(missing.to_string().contains("/nowhere/tbmq.yml"), "{missing}");
        for text in ["- a\n- b\n", "a: [1\n", "just text"] {
            let error = loaded(text, &[]).unwrap_err().to_string();
            assert!(error.contains("not a YAML tree"), "{error}");
        }
        assert_eq!(loaded("# nothing\n", &[]).unwrap(), Broker::default());
    }

    #[test]
    fn several_structs_share_a_file_and_only_what_nobody_takes_is_unknown() {
        let path = file(
            "service: { id: tbmq1 }\nlistener:\n  backlog: 7\n  tcp:\n    bind-port: 1884\nqueue: { x: 1 }\n",
        );
        let mut loader = Loader::open(Some(path.path()), environment(&[])).unwrap();
        let broker = loader.load(Broker::default(), &[SETTINGS]);
        let other = loader.load(Other::default(), &[]);
        assert_eq!(broker.listener.tcp.bind_port, 1884);
        assert_eq!((other.listener.backlog, other.service["id"].as_str()), (7, "tbmq1"));
        let error = loader.finish().unwrap_err();
        assert!(matches!(&error.problems[..], [Problem::Unknown { key, .. }] if key == "queue.x"), "{error}");
    }

    #[test]
    fn unknown_variables_with_our_prefixes_are_warned_about() {
        let pairs =
            [("TB_NOTHING", "1"), ("TBMQ_DATA_DIR", "x"), ("LISTENER_TCP_BIND_PORT", "1"), ("HOME", "/")];
        let mut loader = Loader::open(None, environment(&pairs)).unwrap();
        loader.knows(&["TBMQ_DATA_DIR"]);
        loader.load(Broker::default(), &[SETTINGS]);
        let warnings = loader.finish().unwrap();
        assert_eq!(warnings, ["environment variable TB_NOTHING is not known and has no effect"]);
    }

    #[test]
    fn a_secret_is_never_shown() {
        let secret = Secret::new("hunter2");
        assert_eq!(format!("{secret:?}"), "\"***\"");
        assert_eq!(serde_json::to_string(&secret).unwrap(), "\"***\"");
        let error = loaded("listener: { tcp: { password: [hunter2] } }", &[]).unwrap_err().to_string();
        assert!(error.contains("listener.tcp.password") && !error.contains("hunter2"), "{error}");
    }
}
