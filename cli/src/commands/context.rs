//! `tbmqctl context`.

use std::{io::Read, path::PathBuf};

use clap::{Args, Subcommand};
use serde_json::json;

use crate::{
    client::Target,
    context::{self, Config, Context, Flags, Settings, Token, TokenSource},
    failure::Failure,
    render::{Format, Output, note, table},
};

/// Bytes that a token may have.
const TOKEN_BYTES_MAX: u64 = 64 << 10;

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// List contexts
    List,
    /// Use a context from now on
    Use(One),
    /// Create a context or change it, from the flags that say which server is called and how
    #[command(
        after_help = "Examples:\n  tbmqctl context set prod --server https://tbmq.example.org:9090 --token-file ~/tbmq.token\n  \
                            tbmqctl token create me --role editor -o json | jq -r .secret | tbmqctl context set prod --token-stdin"
    )]
    Set(SetArguments),
    /// Delete a context
    Delete(One),
    /// Show which server is called and how: with a context, or as things are
    Show(ShowArguments),
}

#[derive(Debug, Args)]
pub(crate) struct One {
    /// Name of the context
    name: String,
}

#[derive(Debug, Args)]
pub(crate) struct SetArguments {
    /// Name of the context
    name: String,
    /// Keep the token that stdin holds in the file of contexts
    #[arg(long, conflicts_with = "token_file")]
    token_stdin: bool,
}

#[derive(Debug, Args)]
pub(crate) struct ShowArguments {
    /// Name of the context
    name: Option<String>,
}

pub(crate) fn run(
    command: Command,
    mut flags: Flags,
    variable: impl Fn(&str) -> Option<String>,
) -> Result<(), Failure> {
    let file = context::file(&variable).ok_or_else(|| {
        Failure::usage("there is no place for contexts: HOME is not set")
            .hint("TBMQCTL_CONFIG names a file for them")
    })?;
    let mut config = Config::load(&file)?;
    let output = Output::new(flags.output.unwrap_or(Format::Table));
    match command {
        Command::List => {
            let rows: Vec<_> = config.contexts.iter().map(|(name, one)| row(name, one, &config)).collect();
            output.print_named(
                || table::contexts(&rows),
                || config.contexts.keys().cloned().collect(),
                || rows.iter().map(Row::view).collect::<Vec<_>>(),
            )
        }
        Command::Use(One { name }) => {
            config.get(&name)?;
            config.current_context = Some(name.clone());
            config.save(&file)?;
            note(&format!("using {name}"));
            Ok(())
        }
        Command::Set(arguments) => set(arguments, flags, &mut config, &file),
        Command::Delete(One { name }) => {
            config.get(&name)?;
            config.contexts.remove(&name);
            if config.current_context.as_ref() == Some(&name) {
                config.current_context = None;
            }
            config.save(&file)?;
            note(&format!("deleted {name}"));
            Ok(())
        }
        Command::Show(ShowArguments { name }) => {
            flags.context = name.or(flags.context);
            let settings = Settings::decide(flags, variable, &config)?;
            let row = Row::from(&settings);
            output.print_named(
                || table::context(&row),
                || settings.context.iter().cloned().collect(),
                || row.view(),
            )
        }
    }
}

fn set(
    arguments: SetArguments,
    flags: Flags,
    config: &mut Config,
    file: &std::path::Path,
) -> Result<(), Failure> {
    let SetArguments { name, token_stdin } = arguments;
    if name.is_empty() || name.contains(|c: char| c.is_control() || c.is_whitespace()) {
        return Err(Failure::usage(format!("{name:?} is not a name of a context: it is one word")));
    }
    let mut one = config.contexts.get(&name).cloned().unwrap_or_default();
    one.server = flags.server.clone().or(one.server);
    if token_stdin {
        let mut token = String::new();
        std::io::stdin()
            .take(TOKEN_BYTES_MAX)
            .read_to_string(&mut token)
            .map_err(|error| Failure::usage(format!("can't read the token from stdin: {error}")))?;
        one.token = Some(Token(token.trim().to_owned()));
        one.token_file = None;
    }
    // It is used from other folders, too.
    let absolute = |file: Option<PathBuf>| {
        file.map(|file| {
            std::path::absolute(&file)
                .map_err(|error| Failure::usage(format!("{} is no file: {error}", file.display())))
        })
        .transpose()
    };
    if let Some(file) = absolute(flags.token_file)? {
        one.token_file = Some(file);
        one.token = None;
    }
    one.ca_file = absolute(flags.ca_file)?.or(one.ca_file);
    one.cert_file = absolute(flags.cert_file)?.or(one.cert_file);
    one.key_file = absolute(flags.key_file)?.or(one.key_file);
    one.plaintext_token |= flags.plaintext_token;
    one.output = flags.output.or(one.output);
    one.timeout = flags.timeout.or(one.timeout);
    config.contexts.insert(name.clone(), one);
    // What could not be used is not kept.
    let named = Flags { context: Some(name.clone()), ..Flags::default() };
    Target::try_from(&Settings::decide(named, |_| None, config)?)?;
    let is_first = config.current_context.is_none();
    if is_first {
        config.current_context = Some(name.clone());
    }
    config.save(file)?;
    note(&format!("saved {name} in {}{}", file.display(), if is_first { "; using it" } else { "" }));
    Ok(())
}

/// A context without its secrets.
#[derive(Clone, Debug, Default)]
pub(crate) struct Row {
    pub(crate) name: String,
    pub(crate) is_current: bool,
    pub(crate) server: String,
    /// Where the token comes from.
    pub(crate) token: String,
    pub(crate) ca_file: String,
    pub(crate) cert_file: String,
    pub(crate) key_file: String,
    pub(crate) output: Option<Format>,
    pub(crate) timeout: String,
}

fn row(name: &str, one: &Context, config: &Config) -> Row {
    let path =
        |path: &Option<PathBuf>| path.as_ref().map(|path| path.display().to_string()).unwrap_or_default();
    Row {
        name: name.to_owned(),
        is_current: config.current_context.as_deref() == Some(name),
        server: one.server.clone().unwrap_or_default(),
        token: match (&one.token, &one.token_file) {
            (Some(_), _) => "kept here".to_owned(),
            (None, file) => path(file),
        },
        ca_file: path(&one.ca_file),
        cert_file: path(&one.cert_file),
        key_file: path(&one.key_file),
        output: one.output,
        timeout: one.timeout.map(context::text).unwrap_or_default(),
    }
}

impl From<&Settings> for Row {
    fn from(from: &Settings) -> Self {
        let path =
            |path: &Option<PathBuf>| path.as_ref().map(|path| path.display().to_string()).unwrap_or_default();
        Self {
            name: from.context.clone().unwrap_or_default(),
            is_current: true,
            server: from.server.clone(),
            token: match &from.token {
                Some(TokenSource::Is(_)) => "given".to_owned(),
                Some(TokenSource::In(file)) => file.display().to_string(),
                None => String::new(),
            },
            ca_file: path(&from.ca_file),
            cert_file: path(&from.cert_file),
            key_file: path(&from.key_file),
            output: Some(from.output),
            timeout: context::text(from.timeout),
        }
    }
}

impl Row {
    fn view(&self) -> serde_json::Value {
        let mut view = json!({ "name": self.name, "current": self.is_current, "server": self.server });
        for (key, value) in [
            ("token", &self.token),
            ("caFile", &self.ca_file),
            ("certFile", &self.cert_file),
            ("keyFile", &self.key_file),
            ("timeout", &self.timeout),
        ] {
            if !value.is_empty() {
                view[key] = value.as_str().into();
            }
        }
        if let Some(output) = self.output {
            view["output"] = json!(output);
        }
        view
    }
}
