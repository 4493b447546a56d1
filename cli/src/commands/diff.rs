//! `tbmqctl diff`: what `apply` would change.

use clap::Args;
use futures_util::StreamExt as _;
use serde::Serialize;
use serde_json::Value;
use similar::TextDiff;
use tbmq_proto::control::Integration;

use super::apply::{Files, Pruning, within};
use crate::{
    client::Target,
    failure::Failure,
    inventory::{Compared, Inventory},
    manifest::Manifest,
    render::{Output, portable::Portable},
};

#[derive(Debug, Args)]
#[command(after_help = "\
Everything that differs is validated as apply would have it validated; nothing is saved. Secrets are shown as ********, \
with a remark where apply would change one.

Exit codes: 0 when nothing differs, 4 when something does, 1 when something can't be compared, else as elsewhere.

Examples:
  tbmqctl diff -f integrations/
  tbmqctl diff -f integrations/ --prune --all")]
pub(crate) struct Arguments {
    #[command(flatten)]
    files: Files,
    #[command(flatten)]
    pruning: Pruning,
}

/// What would happen to one integration.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Change {
    action: &'static str,
    display_name: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    file: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    fields: Vec<&'static str>,
    /// In the unified form.
    diff: String,
}

pub(crate) async fn run(arguments: Arguments, target: &Target, output: Output) -> Result<(), Failure> {
    let manifests = arguments.files.read()?;
    let inventory = Inventory::take(target).await?;
    inventory.refuse_twins(&manifests)?;
    let (mut differ, mut failed) = (0, manifests.unreadable.len());
    for failure in &manifests.unreadable {
        failure.report();
    }
    let mut done = futures_util::stream::iter(&manifests.read)
        .map(async |manifest| (manifest, compare(&inventory, manifest).await))
        .buffered(arguments.files.concurrency.get());
    while let Some((manifest, result)) = done.next().await {
        match result {
            Ok(None) => {}
            Ok(Some(change)) => {
                differ += 1;
                output.print_item(
                    || change.diff.clone(),
                    || Some(change.display_name.clone()),
                    || Some(&change),
                )?;
            }
            Err(failure) => {
                failed += 1;
                within(&manifest.place, failure).report();
            }
        }
    }
    for one in arguments.pruning.of(&inventory, &manifests) {
        differ += 1;
        let change = Change {
            action: "prune",
            display_name: one.display_name.clone(),
            file: String::new(),
            fields: Vec::new(),
            diff: unified(&one.display_name, &text_of(one)?, ""),
        };
        output.print_item(|| change.diff.clone(), || Some(change.display_name.clone()), || Some(&change))?;
    }
    match (failed, differ) {
        (0, 0) => Ok(()),
        (0, 1) => Err(Failure::drift("1 of the integrations differs")),
        (0, _) => Err(Failure::drift(format!("{differ} of the integrations differ"))),
        _ => Err(Failure::refused(format!("{failed} can't be compared, as told above"))),
    }
}

async fn compare(inventory: &Inventory, manifest: &Manifest) -> Result<Option<Change>, Failure> {
    let Manifest { place, document } = manifest;
    let change = |action, fields, diff| {
        Some(Change {
            action,
            display_name: document.display_name.clone(),
            file: place.clone(),
            fields,
            diff,
        })
    };
    let Some(saved) = inventory.find(document) else {
        let preview = inventory.create(document, true).await?;
        return Ok(change("create", Vec::new(), unified(&preview.display_name, "", &text_of(&preview)?)));
    };
    let Compared { difference, secrets_differ } = inventory.difference(document, saved).await?;
    if difference.fields.is_empty() {
        return Ok(None);
    }
    let mut preview = inventory.change(document, saved, &difference.fields, true).await?;
    if secrets_differ
        && let Ok(mut configuration) = serde_json::from_str::<Value>(&preview.configuration_json)
    {
        difference.mark(&mut configuration, "******** (another one)");
        preview.configuration_json = configuration.to_string();
    }
    let diff = unified(&saved.display_name, &text_of(saved)?, &text_of(&preview)?);
    Ok(change("configure", difference.fields, diff))
}

fn text_of(integration: &Integration) -> Result<String, Failure> {
    // The uid of a preview means nothing, and no change concerns it.
    Portable::from(&Integration { uid: String::new(), ..integration.clone() }).yaml()
}

fn unified(name: &str, saved: &str, new: &str) -> String {
    let name = name.replace(char::is_control, " ");
    let side = |text: &str, side: &str| {
        if text.is_empty() { "/dev/null".to_owned() } else { format!("{side}/{name}") }
    };
    let (left, right) = (side(saved, "saved"), side(new, "files"));
    TextDiff::from_lines(saved, new).unified_diff().header(&left, &right).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_diff_names_both_sides() {
        let text = unified("x\n", "a: 1\nb: 2\n", "a: 1\nb: 3\n");
        assert_eq!(text, "--- saved/x \n+++ files/x \n@@ -1,2 +1,2 @@\n a: 1\n-b: 2\n+b: 3\n");
        assert!(unified("x", "", "a: 1\n").starts_with("--- /dev/null\n+++ files/x\n"));
        assert!(unified("x", "a: 1\n", "").starts_with("--- saved/x\n+++ /dev/null\n"));
    }
}
