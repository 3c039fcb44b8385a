//! `check`: the effective settings, where those are written that are no defaults, and whether what they name can be used.
//! Changes nothing.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::io::ErrorKind;
use std::net::{SocketAddr, TcpListener};
use std::path::Path;

use anyhow::Context as _;
use serde::Serialize;
use turnflow_models::{ModelHome, verify};
use turnflow_pipeline::Config;
use turnflow_state::{StateError, Store};

use super::named::{self, Named};
use super::{Context, open, probe};
use crate::cli::CheckArgs;
use crate::failure::Failure;

/// What is said of what a server of ours has.
const IN_USE: &str = "in use by a running server";

/// What was found out about one thing.
#[derive(Serialize)]
struct Finding {
    what: &'static str,
    subject: String,
    usable: bool,
    detail: String,
}

#[derive(Serialize)]
struct Findings<'a> {
    usable: bool,
    findings: &'a [Finding],
    config: &'a Config,
    /// Where those settings are written that are no defaults, as file and line.
    origins: BTreeMap<String, String>,
}

pub(super) fn run(context: &Context, args: &CheckArgs) -> Result<(), Failure> {
    let config = &context.config;
    let origins = config.origins().map_err(Failure::usage)?;
    let data = context.data_dir(args.store.data.as_ref())?;
    let mut findings = if args.settings_only { Vec::new() } else { machine(context, &data)? };
    let without_variables = args.settings_only.then(|| without_variables(context));
    let named = named::all(without_variables.as_ref().unwrap_or(context), &data)?;
    findings.extend(named.into_iter().map(|Named { what, subject, found }| {
        let detail = found.map_err(|wrong| anyhow::anyhow!(wrong.told(&origins)));
        finding(what, &subject, detail)
    }));
    let usable = findings.iter().all(|finding| finding.usable);
    let mut text = String::new();
    for (key, value) in config.settings() {
        let setting = format!("{key} = {value}");
        text += &match origins.get(&key) {
            // Beside the shorter values, one below the other.
            Some(place) => format!("{setting:<60}  # {place}\n"),
            None => format!("{setting}\n"),
        };
    }
    text += "\n";
    for finding in &findings {
        let mark = if finding.usable { "ok " } else { "BAD" };
        text += &format!("{mark} {:<12} {}: {}\n", finding.what, finding.subject, finding.detail);
    }
    context.print(&Findings { usable, findings: &findings, config, origins }, text)?;
    if usable {
        return Ok(());
    }
    let bad: Vec<_> = findings.iter().filter(|finding| !finding.usable).map(|finding| finding.what).collect();
    Err(Failure::usage(anyhow::anyhow!("not usable: {}", bad.join(", "))))
}

/// Who checks settings alone does so on a machine that has no secrets.
fn without_variables(context: &Context) -> Context {
    let mut config = context.config.clone();
    (config.tier.openai.key_env, config.small_tier.openai.key_env) = (None, None);
    context.with(config)
}

/// What this machine has for a server, or one that runs uses already.
fn machine(context: &Context, data: &Path) -> Result<Vec<Finding>, Failure> {
    let (home, ports) = (context.home()?, ports(&context.config)?);
    let is_running = ports.iter().any(|port| port.detail == IN_USE);
    let data = finding("data folder", &data.display(), check_data(data, is_running));
    // Another encoder's are looked at with what else the settings name.
    let is_shipped = context.config.encoder.is_shipped();
    let weights = is_shipped.then(|| finding("weights", &home.model_dir().display(), check_weights(&home)));
    Ok(std::iter::once(data).chain(weights).chain(ports).collect())
}

fn ports(config: &Config) -> Result<Vec<Finding>, Failure> {
    let (runtime, grpc, http) = (open::runtime()?, config.server.listen, config.http.listen);
    let tls = &config.server.tls;
    let other =
        if tls.is_on() { "another process, or by a server with another certificate" } else { "another process" };
    let found = check_port(grpc, other, || runtime.block_on(probe::grpc(grpc, tls)));
    let mut ports = vec![finding("port", &grpc, found)];
    if config.http.enabled {
        let found = check_port(http, other, || runtime.block_on(probe::http(http, tls)));
        ports.push(finding("HTTP port", &http, found));
    }
    Ok(ports)
}

fn finding(what: &'static str, subject: &dyn Display, found: anyhow::Result<String>) -> Finding {
    let usable = found.is_ok();
    Finding { what, subject: subject.to_string(), usable, detail: found.unwrap_or_else(|error| format!("{error:#}")) }
}

/// A store that is there must open, unless a server has it; one that is not must have a folder that it can be made in.
fn check_data(dir: &Path, is_running: bool) -> anyhow::Result<String> {
    if dir.join("CURRENT").exists() {
        let store = match Store::open(dir) {
            Err(StateError::Locked { .. }) if is_running => return Ok(IN_USE.to_owned()),
            opened => opened?,
        };
        let entries = store.entry_ids(None)?.len();
        return Ok(format!("opens, {entries} cached answers"));
    }
    let existing = dir.ancestors().find(|folder| folder.exists()).unwrap_or(Path::new("."));
    anyhow::ensure!(existing.is_dir(), "{} is not a folder", existing.display());
    tempfile::tempfile_in(existing).with_context(|| format!("cannot write to {}", existing.display()))?;
    Ok("can be made".to_owned())
}

fn check_weights(home: &ModelHome) -> anyhow::Result<String> {
    verify(home).context("missing or damaged, get them with: turnflow models pull")?;
    Ok("intact".to_owned())
}

/// A port must be free, or a server of ours have it.
fn check_port(listen: SocketAddr, other: &str, serves: impl FnOnce() -> bool) -> anyhow::Result<String> {
    match TcpListener::bind(listen) {
        Ok(_) => Ok("free".to_owned()),
        Err(error) if error.kind() == ErrorKind::AddrInUse => {
            anyhow::ensure!(serves(), "in use by {other}");
            Ok(IN_USE.to_owned())
        }
        Err(error) => Err(error).context("cannot listen"),
    }
}
