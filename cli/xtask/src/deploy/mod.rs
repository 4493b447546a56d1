//! `cargo xtask deploy`: what deploys and watches TBMQ (containers, Kubernetes, systemd, Prometheus, Grafana), each by its own
//! linter or schema, and by rules of ours: settings that exist, alerts with a runbook and tests, images of one version.

mod rules;

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail, ensure};
use tbmq_harness::{linters, prometheus};

use crate::tidy::{File, Violation, has_ending, tracked_files};

/// Overlays that must build, and be what Kubernetes and the custom resources' schemas want.
const OVERLAYS: [&str; 4] = ["one-node", "cluster", "linkerd", "istio"];

/// Exposure (systemd's own measure, times ten) that no unit may exceed.
const EXPOSURE: &str = "--threshold=20";

/// Says what can't be checked where something is missing; with `install`, that is an error.
pub(crate) fn run(root: &Path, install: bool) -> Result<()> {
    let files = tracked_files(root)?;
    let violations = rules::check(&files);
    for violation in &violations {
        println!("{violation}");
    }
    let mut failed = Vec::new();
    if !violations.is_empty() {
        failed.push("rules".to_owned());
    }
    let work = tempfile::tempdir()?;
    let all = Deployment { root, work: work.path(), files: &files };
    let linters = linters::availability();
    let systemd = wants("systemd-analyze", "--version", "systemd");
    let haproxy = wants("haproxy", "-v", "haproxy");
    let steps: [(&str, Result<(), String>, Check<'_>); 8] = [
        ("alerts", prometheus::availability(), Deployment::alerts),
        ("YAML", linters.clone(), Deployment::yaml),
        ("Compose", linters.clone(), Deployment::compose),
        ("Dockerfile", linters.clone(), Deployment::dockerfile),
        ("Kubernetes", linters.clone(), Deployment::kubernetes),
        ("dashboards", linters, Deployment::dashboards),
        ("systemd", systemd, Deployment::systemd),
        ("balancer", haproxy, Deployment::balancer),
    ];
    for (name, availability, check) in steps {
        let result = match availability {
            Ok(()) => check(&all),
            Err(missing) if install => Err(anyhow::anyhow!(missing)),
            Err(missing) => {
                println!("SKIPPED {name}: {missing}");
                continue;
            }
        };
        match result {
            Ok(()) => println!("{name}: ok"),
            Err(error) => {
                println!("{name}: {error:#}");
                failed.push(name.to_owned());
            }
        }
    }
    if failed.is_empty() { Ok(()) } else { bail!("failed: {}", failed.join(", ")) }
}

type Check<'a> = fn(&Deployment<'a>) -> Result<()>;

fn wants(program: &str, argument: &str, package: &str) -> Result<(), String> {
    match Command::new(program).arg(argument).output() {
        Ok(_) => Ok(()),
        Err(_) => Err(format!("{program} is missing: apt-get install -y {package}")),
    }
}

/// The tree, and a folder for what is made of it.
struct Deployment<'a> {
    root: &'a Path,
    work: &'a Path,
    files: &'a [File],
}

impl Deployment<'_> {
    fn folder(&self, name: &str) -> PathBuf {
        self.root.join("compose").join(name)
    }

    /// Paths below `compose/` with one of these endings.
    fn paths(&self, folder: &str, endings: &[&str]) -> Vec<&str> {
        let folder = format!("compose/{folder}");
        let paths = self.files.iter().map(|file| file.path.as_str());
        paths
            .filter(|path| path.starts_with(&folder) && endings.iter().any(|ending| has_ending(path, ending)))
            .collect()
    }

    fn alerts(&self) -> Result<()> {
        let folder = self.folder("prometheus");
        let promtool =
            |arguments: &[&str]| tell(Command::new("promtool").args(arguments).current_dir(&folder));
        promtool(&["check", "config", "--syntax-only", "prometheus.yml"])?;
        promtool(&["check", "rules", "--lint=all", "--lint-fatal", "rules.yml", "alerts.yml"])?;
        promtool(&["test", "rules", "alerts.test.yml"])
    }

    fn yaml(&self) -> Result<()> {
        let mut command = linters::python("yamllint");
        command.args(["--strict", "--config-data", YAML]).args(self.paths("", &["yml", "yaml"]));
        tell(command.current_dir(self.root))
    }

    fn compose(&self) -> Result<()> {
        let mut command = linters::python("check-jsonschema");
        command.args(["--builtin-schema", "vendor.compose-spec", "one-node.yaml", "cluster.yaml"]);
        tell(command.current_dir(self.folder("docker")))
    }

    fn dockerfile(&self) -> Result<()> {
        tell(
            linters::python("hadolint")
                .args(["--failure-threshold", "info", "Dockerfile"])
                .current_dir(self.root),
        )
    }

    fn kubernetes(&self) -> Result<()> {
        for overlay in OVERLAYS {
            let built = self.work.join(format!("{overlay}.yaml"));
            let folder = self.folder("kubernetes/overlays").join(overlay);
            tell(linters::kustomize().arg("build").arg(folder).arg("-o").arg(&built))?;
            // It passes over kinds that it does not know: the next one refuses those that nobody knows.
            tell(
                linters::python("kubernetes-validate").args(["--strict", "--quiet", "--no-warn"]).arg(&built),
            )
            .with_context(|| overlay.to_owned())?;
            tell(linters::node("custom-resources.mjs").arg(&built)).with_context(|| overlay.to_owned())?;
        }
        let example = self.folder("kubernetes/overlays/cluster/secret.example.yaml");
        tell(linters::python("kubernetes-validate").args(["--strict", "--quiet"]).arg(example))
    }

    fn dashboards(&self) -> Result<()> {
        // The compiler looks for the types beside the file.
        let typed = tempfile::Builder::new().suffix(".ts").tempfile_in(linters::node_folder())?;
        tell(linters::node("dashboards.mjs").arg(self.folder("grafana/dashboards")).arg(typed.path()))?;
        let mut compiler = linters::node("node_modules/typescript/bin/tsc");
        compiler.args(["--noEmit", "--strict", "--skipLibCheck", "--moduleResolution", "bundler"]);
        tell(compiler.args(["--module", "esnext", "--target", "es2022"]).arg(typed.path()))
    }

    fn systemd(&self) -> Result<()> {
        for path in self.paths("systemd", &["service"]) {
            tell(
                Command::new("systemd-analyze")
                    .args(["security", "--offline=true", EXPOSURE, path])
                    .current_dir(self.root),
            )?;
            // The programs are not installed here.
            let text = fs::read_to_string(self.root.join(path))?;
            let unit = self.work.join(path.rsplit('/').next().unwrap_or(path));
            fs::write(&unit, text.replace("ExecStart=/usr/bin/", "ExecStart=/bin/true "))?;
            let output = Command::new("systemd-analyze").args(["verify", "--man=no"]).arg(&unit).output()?;
            let said = String::from_utf8_lossy(&output.stderr);
            ensure!(output.status.success() && said.is_empty(), "{path}: {said}");
        }
        Ok(())
    }

    fn balancer(&self) -> Result<()> {
        // Names of containers are known in their network only; it starts without them (`init-addr none`).
        tell(Command::new("haproxy").args(["-c", "-f", "haproxy.cfg"]).current_dir(self.folder("docker")))
    }
}

/// Rules of yamllint: its own, but for lines, comments and lists in our style.
const YAML: &str = "{extends: default, rules: {line-length: {max: 260}, document-start: disable, comments: \
                    {min-spaces-from-content: 1}, brackets: {max-spaces-inside: 1}, braces: {max-spaces-inside: 1}, truthy: \
                    {check-keys: false}, indentation: {indent-sequences: consistent}}}";

/// Runs a command to its end; what it prints is the error when it fails.
fn tell(command: &mut Command) -> Result<()> {
    let output = command.output().with_context(|| format!("{command:?} could not be started"))?;
    let text = [output.stdout, output.stderr].concat();
    ensure!(
        output.status.success(),
        "{command:?} ended with {}:\n{}",
        output.status,
        String::from_utf8_lossy(&text)
    );
    Ok(())
}
