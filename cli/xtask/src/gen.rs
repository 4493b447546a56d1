//! `cargo xtask gen`: turns `proto/proto/**/*.proto` into `proto/src/generated/`, without `protoc`.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail, ensure};
use prost::Message as _;

const SOURCES: &[&str] = &[
    "queue.proto",
    "integration.proto",
    "tbmq/control/v1/access.proto",
    "tbmq/control/v1/credentials.proto",
    "tbmq/control/v1/event.proto",
    "tbmq/control/v1/integration.proto",
    "tbmq/control/v1/kafka.proto",
    "tbmq/control/v1/node.proto",
    "tbmq/control/v1/retained.proto",
    "tbmq/control/v1/session.proto",
    "tbmq/node/v1/node_session.proto",
    "tbmq/wire/v1/auth.proto",
    "tbmq/wire/v1/wire.proto",
];

/// Writes the generated files, or with `check` fails when one differs from what is in the tree.
pub(crate) fn run(root: &Path, check: bool) -> Result<()> {
    let fresh = generate(root)?;
    let target = root.join("proto/src/generated");
    if check {
        let present = read_all(&target)?;
        for (name, text) in &fresh {
            if present.get(name) != Some(text) {
                bail!("proto/src/generated/{name} is out of date; run `cargo xtask gen`");
            }
        }
        if let Some(name) = present.keys().find(|name| !fresh.contains_key(*name)) {
            bail!("proto/src/generated/{name} has no source any more; run `cargo xtask gen`");
        }
        return Ok(());
    }
    if target.exists() {
        fs::remove_dir_all(&target)?;
    }
    fs::create_dir_all(&target)?;
    for (name, text) in fresh {
        fs::write(target.join(name), text)?;
    }
    Ok(())
}

/// Writes the pages of `docs/` that are made from the code.
pub(crate) fn pages(root: &Path) -> Result<()> {
    let status = Command::new("cargo")
        .args(["test", "--quiet", "-p", "tbmq", "--bin", "tbmq", "reference"])
        .env("UPDATE_DOCS", "1")
        .current_dir(root)
        .status()
        .context("cargo could not be started")?;
    ensure!(status.success(), "a page of docs/ can't be made");
    Ok(())
}

fn generate(root: &Path) -> Result<BTreeMap<String, Vec<u8>>> {
    let include = root.join("proto/proto");
    let descriptors = protox::compile(SOURCES, [&include]).context("the .proto files do not compile")?;
    let out = tempfile::tempdir()?;
    tonic_prost_build::configure()
        .out_dir(out.path())
        .bytes(".")
        .build_transport(false)
        .client_mod_attribute(".", "#[cfg(feature = \"grpc\")]")
        .server_mod_attribute(".", "#[cfg(feature = \"grpc\")]")
        .compile_fds(descriptors.clone())
        .context("code generation failed")?;
    let mut files = read_all(out.path())?;
    files.insert("descriptors.bin".to_owned(), descriptors.encode_to_vec());
    Ok(files)
}

fn read_all(folder: &Path) -> Result<BTreeMap<String, Vec<u8>>> {
    let mut files = BTreeMap::new();
    if !folder.exists() {
        return Ok(files);
    }
    for entry in fs::read_dir(folder)? {
        let path: PathBuf = entry?.path();
        let name = path.file_name().context("a file without a name")?.to_string_lossy().into_owned();
        files.insert(name, fs::read(&path)?);
    }
    Ok(files)
}
