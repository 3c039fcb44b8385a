//! `check`: the effective settings, where those are written that are no defaults, and whether what they name can be used.
//! Changes nothing.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::io::ErrorKind;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use serde::Serialize;
use turnflow_models::{ModelHome, verify};
use turnflow_pipeline::Config;
use turnflow_state::{StateError, Store};

use super::named::{self, Named};
use super::running::Running;
use super::{Context, keys, probe};
use crate::cli::CheckArgs;
use crate::door::{certificates, read};
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

/// What this machine has for a server, or one that runs on this store uses already.
fn machine(context: &Context, data: &PathBuf) -> Result<Vec<Finding>, Failure> {
    let (home, config, running) = (context.home()?, &context.config, Running::at(data));
    let running = running.as_ref();
    // Without the encoder's files nobody can tell, and that they are missing is told below.
    let encoder = config.encoder.identity(&home).ok();
    let folder = finding("data folder", &data.display(), check_data(data, running.is_some(), encoder.as_deref()));
    // Another encoder's are looked at with what else the settings name.
    let is_shipped = config.encoder.is_shipped();
    let weights = is_shipped.then(|| finding("weights", &home.model_dir().display(), check_weights(&home)));
    // Keys that cannot be read are told with what else the settings name.
    let is_keyless = keys::files(context, Some(data))?.load().is_ok_and(|keys| keys.is_empty());
    let guarded = !is_keyless || config.gateway.open;
    let [grpc, http] = [("port", config.server.listen), ("HTTP port", config.http.listen)]
        .map(|(what, listen)| finding(what, &listen, check_port(listen, guarded, running)));
    let of_server = running.map(|running| {
        let subject = format!("process {}", running.pid);
        finding("server", &subject, Ok(changes(running, config)))
    });
    let http = config.http.enabled.then_some(http);
    Ok(std::iter::once(folder).chain(weights).chain([grpc]).chain(http).chain(of_server).collect())
}

/// What a running server has otherwise than these settings say, and when they count.
fn changes(running: &Running, config: &Config) -> String {
    let (server, wanted_http) = (&config.server, config.http.enabled.then_some(config.http.listen));
    let is_at = |at: SocketAddr, wanted: SocketAddr| at == wanted || wanted.port() == 0 && at.ip() == wanted.ip();
    let named = |at: Option<SocketAddr>| at.map_or_else(|| "nowhere".to_owned(), |at| at.to_string());
    let mut at_restart = Vec::new();
    if !is_at(running.grpc, server.listen) {
        at_restart.push(format!("gRPC moves from {} to {}", running.grpc, server.listen));
    }
    if !running.http.zip(wanted_http).map_or(running.http == wanted_http, |(at, wanted)| is_at(at, wanted)) {
        at_restart.push(format!("HTTP moves from {} to {}", named(running.http), named(wanted_http)));
    }
    if running.tls != server.tls.is_on() {
        at_restart.push(format!("TLS is switched {}", if running.tls { "off" } else { "on" }));
    }
    let mut said = Vec::new();
    if !at_restart.is_empty() {
        said.push(format!("at a restart with these settings, {}", at_restart.join(", and ")));
    }
    if running.tls && server.tls.is_on() && !shows(running.grpc, &server.tls.cert_file) {
        said.push("at a reload, another certificate is shown, that of server.tls.cert-file".to_owned());
    }
    if said.is_empty() { "runs with these ports and certificates".to_owned() } else { said.join("; ") }
}

/// Whether who listens there shows the certificate of a file. One that cannot be read is told elsewhere.
fn shows(address: SocketAddr, cert_file: &Path) -> bool {
    let in_file = read(cert_file).and_then(|pem| certificates(cert_file, &pem)).ok();
    in_file.is_none_or(|chain| probe::certificate(address).is_none_or(|shown| chain.first() == Some(&shown)))
}

fn finding(what: &'static str, subject: &dyn Display, found: anyhow::Result<String>) -> Finding {
    let usable = found.is_ok();
    Finding { what, subject: subject.to_string(), usable, detail: found.unwrap_or_else(|error| format!("{error:#}")) }
}

/// A store that is there must open and hold vectors of the encoder, unless a server has it; one that is not must have a folder that it
/// can be made in.
fn check_data(dir: &Path, is_running: bool, encoder: Option<&str>) -> anyhow::Result<String> {
    if dir.join("CURRENT").exists() {
        let store = match Store::open(dir) {
            Err(StateError::Locked { .. }) if is_running => return Ok(IN_USE.to_owned()),
            opened => opened?,
        };
        if let Some(encoder) = encoder {
            let remedy = "set [encoder] back, or name another folder with --data";
            store.check_encoder(encoder).map_err(|error| anyhow::anyhow!("{error}: {remedy}"))?;
        }
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

/// A port must be free, or be one of the server's that runs on this store; and out of others' reach where nobody needs a key.
fn check_port(listen: SocketAddr, guarded: bool, running: Option<&Running>) -> anyhow::Result<String> {
    if !guarded && !listen.ip().is_loopback() {
        let (error, remedy) = keys::unguarded(listen);
        anyhow::bail!("{error}: {remedy}");
    }
    match TcpListener::bind(listen) {
        Ok(_) => Ok("free".to_owned()),
        Err(error) if error.kind() == ErrorKind::AddrInUse => {
            anyhow::ensure!(
                running.is_some_and(|running| running.has(listen)),
                "in use by another process than a server of this store"
            );
            Ok(IN_USE.to_owned())
        }
        Err(error) => Err(error).context("cannot listen"),
    }
}
