//! `tbmqctl credentials create`.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};
use tbmq_proto::control::{CreateCredentialsRequest, Credentials};
use uuid::Uuid;

use super::print_one;
use crate::{
    client::Target,
    credential::{
        Document, Rule,
        document::{Basic, Leaf, Scram, Secret, Type, X509},
    },
    failure::Failure,
    manifest, password,
    render::{Output, note},
};

#[derive(Debug, Args)]
#[command(
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true,
    subcommand_value_name = "TYPE",
    subcommand_help_heading = "Types"
)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    of_type: Option<OfType>,
    /// JSON or YAML document, as `get -o yaml` prints it; `-` is stdin
    #[arg(short, long, required = true)]
    file: Option<PathBuf>,
    #[command(flatten)]
    how: How,
}

#[derive(Debug, Subcommand)]
enum OfType {
    /// By user name, client id or both, with a password
    #[command(after_help = "\
        The password is asked for, unless a flag says where it is. Without --rule its clients may do nothing.\n\n\
        Examples:\n  tbmqctl credentials create basic pumps --username pumps --rule 'allow both pumps/${clientId}/#'\n  \
        pwgen 20 1 | tee pw | tbmqctl credentials create basic p7 --client-id p7 --password-file - --rule 'allow publish p/#'")]
    Basic(BasicArguments),
    /// By a certificate that an authority of the listener has signed
    #[command(after_help = "\
        Examples:\n  tbmqctl credentials create x509 gw --cn gw.example.org --rule 'allow both gw/#'\n  \
        tbmqctl credentials create x509 fleet --cn 'Fleet CA' --leaf 'car-[0-9]+' --rule 'allow publish cars/${cn}/#'")]
    X509(X509Arguments),
    /// By SCRAM, the enhanced authentication of MQTT 5.0: the password is never sent
    Scram(ScramArguments),
}

/// What all types have.
#[derive(Debug, Args)]
struct Common {
    /// Name, for people; sessions show it
    name: String,
    /// What its clients are treated as
    #[arg(long, value_enum, default_value = "device")]
    client_type: Type,
    /// What its clients may do; may be repeated. A rule is `allow|deny publish|subscribe|both [qos=0,1,2] [retain=yes|no]`
    /// and a topic filter, with ${clientId}, ${username} and ${cn} in it, or `regex:` and a pattern of the whole topic.
    /// Denial wins; what no rule allows is denied
    #[arg(long = "rule", value_name = "RULE")]
    rules: Vec<Rule>,
    #[command(flatten)]
    how: How,
}

#[derive(Debug, Args)]
struct How {
    /// Uid of the new credential; chosen by the server when absent
    #[arg(long, value_name = "UUID")]
    id: Option<Uuid>,
    /// Do everything but save
    #[arg(long)]
    validate_only: bool,
}

#[derive(Debug, Args)]
struct BasicArguments {
    #[command(flatten)]
    common: Common,
    /// User name of its clients; any when absent
    #[arg(long, value_name = "NAME", required_unless_present = "client_id")]
    username: Option<String>,
    /// Client id of its client; any when absent
    #[arg(long, value_name = "ID")]
    client_id: Option<String>,
    #[command(flatten)]
    password: Password,
}

#[derive(Debug, Args)]
#[group(multiple = false)]
struct Password {
    /// File with the password; `-` is stdin
    #[arg(long, value_name = "FILE")]
    password_file: Option<PathBuf>,
    /// File with a hash of the password: bcrypt, or argon2id as `$argon2id$…`; `-` is stdin
    #[arg(long, value_name = "FILE")]
    password_hash_file: Option<PathBuf>,
    /// Accept any password, or none
    #[arg(long)]
    any_password: bool,
}

#[derive(Debug, Args)]
struct X509Arguments {
    #[command(flatten)]
    common: Common,
    #[command(flatten)]
    name: CommonName,
    /// For which of its clients the rules are: a pattern of the whole common name of the client's own certificate
    #[arg(long, value_name = "PATTERN", default_value = ".*")]
    leaf: String,
}

#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
struct CommonName {
    /// Common name of a certificate of the client's chain
    #[arg(long, value_name = "NAME")]
    cn: Option<String>,
    /// Pattern that is found anywhere in such a common name
    #[arg(long, value_name = "PATTERN")]
    cn_pattern: Option<String>,
}

#[derive(Debug, Args)]
struct ScramArguments {
    #[command(flatten)]
    common: Common,
    /// User name of its clients
    #[arg(long, value_name = "NAME")]
    username: String,
    /// File with the password; `-` is stdin
    #[arg(long, value_name = "FILE")]
    password_file: Option<PathBuf>,
    /// Which SCRAM
    #[arg(long, value_enum, default_value = "sha-256")]
    algorithm: Algorithm,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Algorithm {
    /// SCRAM-SHA-256
    #[value(name = "sha-256")]
    Sha256,
    /// SCRAM-SHA-512
    #[value(name = "sha-512")]
    Sha512,
}

pub(super) async fn run(arguments: Arguments, target: &Target, output: Output) -> Result<(), Failure> {
    let (document, how) = match (arguments.of_type, arguments.file) {
        (Some(of_type), _) => of_type.document()?,
        (None, Some(file)) => (Document::parse(&manifest::text_at(&file)?)?, arguments.how),
        (None, None) => return Err(Failure::usage("what is to be created: give a type or a file (-f)")),
    };
    document.brings_its_password().map_err(Failure::usage)?;
    let id = how.id.or(document.uid).map(|uid| uid.to_string()).unwrap_or_default();
    let credentials = document.into_credentials().map_err(Failure::usage)?;
    let request = CreateCredentialsRequest {
        // These say which one it was where the document was printed.
        credentials: Some(Credentials { name: String::new(), etag: String::new(), ..credentials }),
        id,
        validate_only: how.validate_only,
        // So that a call that is sent twice creates one.
        request_id: Uuid::now_v7().to_string(),
    };
    let created = target.credentials().await?.create_credentials(target.request(request)).await?.into_inner();
    if how.validate_only {
        note("valid; nothing was saved");
        return Ok(());
    }
    print_one(&created, output)
}

impl OfType {
    fn document(self) -> Result<(Document, How), Failure> {
        let named = |name, client_type| Document { display_name: name, client_type, ..Document::default() };
        match self {
            Self::Basic(BasicArguments { common, username, client_id, password }) => {
                let (password, password_hash) = password.read()?;
                let basic = Basic {
                    client_id,
                    user_name: username,
                    password,
                    password_hash,
                    has_password: None,
                    rules: common.rules,
                };
                Ok((Document { basic: Some(basic), ..named(common.name, common.client_type) }, common.how))
            }
            Self::X509(X509Arguments { common, name, leaf }) => {
                let x509 = X509 {
                    is_pattern: name.cn_pattern.is_some(),
                    common_name: name.cn.or(name.cn_pattern).unwrap_or_default(),
                    leaf_rules: vec![Leaf { pattern: leaf, rules: common.rules }],
                };
                Ok((Document { x509: Some(x509), ..named(common.name, common.client_type) }, common.how))
            }
            Self::Scram(ScramArguments { common, username, password_file, algorithm }) => {
                let password = password::new(password_file.as_deref(), "Password", "--password-file")?;
                let scram = Scram {
                    user_name: username,
                    algorithm: match algorithm {
                        Algorithm::Sha256 => "SHA_256".to_owned(),
                        Algorithm::Sha512 => "SHA_512".to_owned(),
                    },
                    password: Some(Secret(password)),
                    keys: None,
                    rules: common.rules,
                };
                Ok((Document { scram: Some(scram), ..named(common.name, common.client_type) }, common.how))
            }
        }
    }
}

impl Password {
    /// The password or its hash; neither where any is accepted.
    fn read(self) -> Result<(Option<Secret>, Option<Secret>), Failure> {
        if self.any_password {
            return Ok((None, None));
        }
        if let Some(file) = &self.password_hash_file {
            return Ok((None, Some(Secret(password::of_file(file)?))));
        }
        let password = password::new(self.password_file.as_deref(), "Password", "--password-file").map_err(
            |failure| match failure.hint.clone() {
                Some(hint) => failure.hint(format!("{hint}; --any-password accepts any")),
                None => failure,
            },
        )?;
        Ok((Some(Secret(password)), None))
    }
}
