//! `tbmqctl export`: integrations as documents that `apply` takes back.

use std::{collections::HashMap, path::PathBuf};

use clap::Args;
use tbmq_proto::control::Integration;

use crate::{
    client::Target,
    compare::MASK,
    failure::Failure,
    inventory,
    render::{Format, Output, note, portable::Portable, write},
    selector::Selector,
};

/// Characters of a file's name before its ending.
const NAME_CHARS_MAX: usize = 100;

#[derive(Debug, Args)]
#[command(after_help = "\
Without -f the documents go to stdout, as YAML or, with -o json, as an array. With -f each goes into a file of its own, \
named after the integration; other files in the directory stay as they are. Secrets are written as ********.

Examples:
  tbmqctl export > integrations.yaml
  tbmqctl export -f integrations/ --selector team=core
  tbmqctl export --filter 'type = \"HTTP\" AND enabled = true' -o json")]
pub(crate) struct Arguments {
    /// Directory for one file per integration; made when it is missing
    #[arg(short = 'f', long = "file", value_name = "DIR")]
    folder: Option<PathBuf>,
    /// Only those with these labels, such as zone=a,team!=core,canary,!legacy
    #[arg(short = 'l', long, value_name = "LABELS")]
    selector: Option<Selector>,
    /// Only those that the server finds by this filter (AIP-160), such as 'type = "HTTP" AND labels.zone:*'
    #[arg(long, value_name = "FILTER", default_value = "", hide_default_value = true)]
    filter: String,
}

pub(crate) async fn run(arguments: Arguments, target: &Target, output: Output) -> Result<(), Failure> {
    let mut client = target.integrations().await?;
    let mut all = inventory::list(target, &mut client, &arguments.filter).await?;
    if let Some(selector) = &arguments.selector {
        all.retain(|one| selector.selects(&one.labels));
    }
    all.sort_by(|one, other| one.display_name.cmp(&other.display_name));
    let is_json = output.format == Format::Json;
    match arguments.folder {
        Some(folder) => {
            let failed = |error: std::io::Error| {
                Failure::usage(format!("can't write to {}: {error}", folder.display()))
            };
            std::fs::create_dir_all(&folder).map_err(failed)?;
            for (name, one) in names(&all).iter().zip(&all) {
                let portable = Portable::from(one);
                let (ending, text) =
                    if is_json { ("json", portable.json()?) } else { ("yaml", portable.yaml()?) };
                std::fs::write(folder.join(format!("{name}.{ending}")), text).map_err(failed)?;
            }
            let were = if all.len() == 1 { "integration was" } else { "integrations were" };
            note(&format!("{} {were} written to {}", all.len(), folder.display()));
        }
        None if is_json => {
            output.print(String::new, || all.iter().map(Portable::from).collect::<Vec<_>>())?;
        }
        None => {
            for one in &all {
                write(&format!("---\n{}", Portable::from(one).yaml()?))?;
            }
        }
    }
    let masked = all.iter().filter(|one| one.configuration_json.contains(&format!("\"{MASK}\""))).count();
    if masked > 0 {
        note(&format!(
            "the secrets of {masked} of them are shown as {MASK}: applied here again they keep what is saved; to create \
             an integration elsewhere, write its secrets into the document"
        ));
    }
    Ok(())
}

/// Names of files, each another one also where upper and lower case are the same.
fn names(all: &[Integration]) -> Vec<String> {
    let safe: Vec<String> = all.iter().map(|one| safe(&one.display_name)).collect();
    let mut counts: HashMap<String, usize> = HashMap::new();
    for name in &safe {
        *counts.entry(name.to_lowercase()).or_default() += 1;
    }
    let unique = |(name, one): (&String, &Integration)| {
        // A name that was changed may be another's own: the uid tells them apart.
        if counts[&name.to_lowercase()] == 1 && *name == one.display_name {
            name.clone()
        } else {
            format!("{name}-{}", one.uid)
        }
    };
    safe.iter().zip(all).map(unique).collect()
}

/// Letters, digits, `-`, `_` and `.`, not hidden and no option.
fn safe(name: &str) -> String {
    let keep = |c: char| if c.is_alphanumeric() || "-_.".contains(c) { c } else { '_' };
    let name: String = name.chars().take(NAME_CHARS_MAX).map(keep).collect();
    if name.starts_with(['.', '-']) || name.is_empty() { format!("_{name}") } else { name }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_files_are_safe_and_each_is_another_one() {
        let named = |uid: &str, name: &str| Integration {
            uid: uid.to_owned(),
            display_name: name.to_owned(),
            ..Integration::default()
        };
        let long = "x".repeat(255);
        let all = [
            named("1", "plain"),
            named("2", "../../etc/passwd"),
            named("3", "a/b"),
            named("4", "a_b"),
            named("5", "Case"),
            named("6", "case"),
            named("7", "-rf"),
            named("8", "größe"),
            named("9", &long),
        ];
        let names = names(&all);
        assert_eq!(
            &names[..8],
            ["plain", "_.._.._etc_passwd-2", "a_b-3", "a_b-4", "Case-5", "case-6", "_-rf-7", "größe"]
        );
        assert_eq!(names[8].len(), 102);
    }
}
