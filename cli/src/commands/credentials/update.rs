//! `tbmqctl credentials update`.

use std::path::PathBuf;

use clap::Args;
use prost_types::FieldMask;
use tbmq_proto::control::{
    AccessRule, ClientType, Credentials, UpdateCredentialsRequest, credentials::Proof,
    x509_credentials::LeafRules,
};
use uuid::Uuid;

use super::{Client, get, name_of, print_one};
use crate::{
    client::Target,
    credential::{Document, Rule, document::Type},
    failure::Failure,
    manifest, password,
    render::{Output, note},
};

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Name or uid; not needed with a file that has a uid
    credential: Option<String>,
    /// JSON or YAML document that replaces all of it but a password that it does not have; `-` is stdin
    #[arg(short, long, value_name = "FILE", conflicts_with_all = ["name", "client_type", "password", "rules"])]
    file: Option<PathBuf>,
    /// New name
    #[arg(long)]
    name: Option<String>,
    /// What its clients are treated as from their next connection on
    #[arg(long, value_enum)]
    client_type: Option<Type>,
    #[command(flatten)]
    password: Password,
    #[command(flatten)]
    rules: Rules,
    /// Change it only if nobody else did since this etag was read; a printed document has its own
    #[arg(long)]
    etag: Option<String>,
    /// Do everything but save
    #[arg(long)]
    validate_only: bool,
}

#[derive(Debug, Args)]
#[group(id = "password", multiple = false)]
struct Password {
    /// Ask for a new password
    #[arg(long)]
    set_password: bool,
    /// File with a new password; `-` is stdin
    #[arg(long, value_name = "FILE")]
    password_file: Option<PathBuf>,
    /// Accept any password, or none, from now on
    #[arg(long)]
    any_password: bool,
}

#[derive(Debug, Args)]
#[group(id = "rules", multiple = true)]
struct Rules {
    /// New rule instead of all it has; may be repeated
    #[arg(long = "rule", value_name = "RULE", conflicts_with_all = ["add", "remove", "no_rules"])]
    set: Vec<Rule>,
    /// Rule to be added; may be repeated
    #[arg(long = "add-rule", value_name = "RULE")]
    add: Vec<Rule>,
    /// Rule to be taken away, as `get` shows it; may be repeated
    #[arg(long = "remove-rule", value_name = "RULE")]
    remove: Vec<Rule>,
    /// Take all rules away
    #[arg(long, conflicts_with_all = ["add", "remove"])]
    no_rules: bool,
    /// Of a certificate's rules: those for this pattern; not needed when there is one
    #[arg(long, value_name = "PATTERN")]
    leaf: Option<String>,
}

pub(super) async fn run(arguments: Arguments, target: &Target, output: Output) -> Result<(), Failure> {
    let mut client = target.credentials().await?;
    let validate_only = arguments.validate_only;
    let (credentials, mask) = if let Some(file) = &arguments.file {
        (of_file(&arguments, file, target, &mut client).await?, None)
    } else {
        let Some(given) = &arguments.credential else {
            return Err(Failure::usage(
                "which credential is to be changed: give its name or uid, or a file (-f)",
            ));
        };
        let saved = get(target, &mut client, given).await?;
        let (mut changed, paths) = arguments.changed(saved)?;
        changed.etag = arguments.etag.unwrap_or(changed.etag);
        (changed, Some(FieldMask { paths }))
    };
    let request = UpdateCredentialsRequest {
        credentials: Some(credentials),
        update_mask: mask,
        validate_only,
        request_id: Uuid::now_v7().to_string(),
    };
    let updated = client.update_credentials(target.request(request)).await?.into_inner();
    if validate_only {
        note("valid; nothing was saved");
        return Ok(());
    }
    print_one(&updated, output)
}

async fn of_file(
    arguments: &Arguments,
    file: &std::path::Path,
    target: &Target,
    client: &mut Client,
) -> Result<Credentials, Failure> {
    let document = Document::parse(&manifest::text_at(file)?)?;
    let given = match (&arguments.credential, document.uid) {
        (Some(given), _) => given.clone(),
        (None, Some(uid)) => uid.to_string(),
        (None, None) => document.display_name.clone(),
    };
    let name = name_of(target, client, &given).await?;
    let mut credentials = document.into_credentials().map_err(Failure::usage)?;
    credentials.name = name;
    if let Some(etag) = &arguments.etag {
        credentials.etag.clone_from(etag);
    }
    Ok(credentials)
}

impl Arguments {
    /// What flags make of a credential, and which of its fields they change.
    fn changed(&self, mut one: Credentials) -> Result<(Credentials, Vec<String>), Failure> {
        let mut paths = Vec::new();
        if let Some(name) = &self.name {
            one.display_name.clone_from(name);
            paths.push("display_name".to_owned());
        }
        if let Some(client_type) = self.client_type {
            one.client_type = ClientType::from(client_type).into();
            paths.push("client_type".to_owned());
        }
        if self.password.is_given() {
            paths.push(self.password.set(&mut one)?);
        }
        paths.extend(self.rules.set(&mut one)?);
        if paths.is_empty() {
            return Err(Failure::usage("what is to be changed? no flag says so"));
        }
        Ok((one, paths))
    }
}

impl Password {
    fn is_given(&self) -> bool {
        self.set_password || self.password_file.is_some() || self.any_password
    }

    fn set(&self, one: &mut Credentials) -> Result<String, Failure> {
        if matches!(one.proof, Some(Proof::X509(_)) | None) {
            return Err(Failure::usage(format!(
                "{:?} is for certificates, not for passwords",
                one.display_name
            )));
        }
        if self.any_password && matches!(one.proof, Some(Proof::Scram(_))) {
            return Err(Failure::usage("SCRAM needs a password: it is what is proven"));
        }
        let password = if self.any_password {
            None
        } else {
            Some(password::new(self.password_file.as_deref(), "New password", "--password-file")?)
        };
        let path = match &mut one.proof {
            Some(Proof::Basic(basic)) => {
                basic.password = password;
                "basic.password"
            }
            Some(Proof::Scram(scram)) => {
                scram.password = password;
                "scram"
            }
            Some(Proof::X509(_)) | None => "",
        };
        Ok(path.to_owned())
    }
}

impl Rules {
    /// The field that is changed, if any.
    fn set(&self, one: &mut Credentials) -> Result<Option<String>, Failure> {
        if self.set.is_empty() && self.add.is_empty() && self.remove.is_empty() && !self.no_rules {
            return match &self.leaf {
                Some(_) => {
                    Err(Failure::usage("--leaf says for whom the rules are: give --rule or --add-rule, too"))
                }
                None => Ok(None),
            };
        }
        let (rules, path) = match &mut one.proof {
            Some(Proof::Basic(basic)) => (&mut basic.rules, "basic.rules"),
            Some(Proof::Scram(scram)) => (&mut scram.rules, "scram.rules"),
            Some(Proof::X509(x509)) => (self.of_leaf(&mut x509.leaf_rules)?, "x509"),
            None => return Err(Failure::bug("the server knows a type of credentials that tbmqctl does not")),
        };
        self.apply(rules)?;
        Ok(Some(path.to_owned()))
    }

    fn of_leaf<'a>(&self, leaves: &'a mut Vec<LeafRules>) -> Result<&'a mut Vec<AccessRule>, Failure> {
        let index = match &self.leaf {
            None if leaves.len() == 1 => 0,
            None => {
                let patterns: Vec<_> = leaves.iter().map(|leaf| leaf.pattern.as_str()).collect();
                return Err(Failure::usage("it has rules for several patterns: --leaf says which are meant")
                    .hint(format!("patterns are {}", patterns.join(", "))));
            }
            Some(pattern) => leaves.iter().position(|leaf| leaf.pattern == *pattern).unwrap_or_else(|| {
                leaves.push(LeafRules { pattern: pattern.clone(), rules: Vec::new() });
                leaves.len() - 1
            }),
        };
        Ok(&mut leaves[index].rules)
    }

    fn apply(&self, rules: &mut Vec<AccessRule>) -> Result<(), Failure> {
        if self.no_rules {
            rules.clear();
        }
        if !self.set.is_empty() {
            *rules = self.set.iter().map(|Rule(rule)| rule.clone()).collect();
        }
        for rule in &self.remove {
            // By their lines, which leave out what is usual.
            let line = rule.to_string();
            let before = rules.len();
            rules.retain(|held| Rule(held.clone()).to_string() != line);
            if rules.len() == before {
                return Err(Failure::usage(format!("it has no rule {line:?}"))
                    .hint("`tbmqctl credentials get` shows its rules"));
            }
        }
        rules.extend(self.add.iter().map(|Rule(rule)| rule.clone()));
        Ok(())
    }
}
