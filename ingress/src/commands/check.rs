//! `check`: the effective settings, where those are written that are no defaults, and whether what they name can be used.
//! Changes nothing.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use serde::Serialize;
use turnflow_models::{ModelHome, verify};
use turnflow_pipeline::{Chooser, Config, TierConfig, TierKind, TlsConfig, chooser, verifier};
use turnflow_state::Store;

use super::{Context, keys};
use crate::cli::StoreArgs;
use crate::door::certificate_until;
use crate::failure::Failure;

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

pub(super) fn run(context: &Context, args: &StoreArgs) -> Result<(), Failure> {
    let config = &context.config;
    let (data, home) = (context.data_dir(args.data.as_ref())?, context.home()?);
    let mut findings = vec![
        finding("data folder", &data.display(), check_data(&data)),
        check_keys(context, &data)?,
        finding("weights", &home.model_dir().display(), check_weights(&home)),
        finding("verifier", &config.policy.verifier, check_verifier(config)),
        finding("port", &config.server.listen, check_port(config.server.listen)),
    ];
    if config.http.enabled {
        findings.push(finding("HTTP port", &config.http.listen, check_port(config.http.listen)));
    }
    if config.server.tls.is_on() {
        findings.push(finding("TLS", &config.server.tls.cert_file.display(), check_tls(&config.server.tls)));
    }
    if config.routing.enabled {
        findings.push(finding("router", &config.routing.router, check_router(config)));
    }
    let small = config.routing.enabled.then_some(&config.small_tier);
    for tier in std::iter::once(&config.tier).chain(small) {
        match tier.kind {
            TierKind::Extractive => {}
            TierKind::Burn => {
                let folder = tier.burn.folder(&home);
                findings.push(finding("model", &folder.display(), check_model(tier, &home)));
            }
            TierKind::Openai => findings.push(finding("server", &tier.openai.base_url, check_server(tier))),
        }
    }
    let usable = findings.iter().all(|finding| finding.usable);
    let origins = config.origins().map_err(Failure::usage)?;
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

fn finding(what: &'static str, subject: &dyn Display, found: anyhow::Result<String>) -> Finding {
    let usable = found.is_ok();
    Finding { what, subject: subject.to_string(), usable, detail: found.unwrap_or_else(|error| format!("{error:#}")) }
}

/// A store that is there must open; one that is not must have a folder that it can be made in.
fn check_data(dir: &Path) -> anyhow::Result<String> {
    if dir.join("CURRENT").exists() {
        let store = Store::open(dir)?;
        let entries = store.entry_ids(None)?.len();
        return Ok(format!("opens, {entries} cached answers"));
    }
    let existing = dir.ancestors().find(|folder| folder.exists()).unwrap_or(Path::new("."));
    anyhow::ensure!(existing.is_dir(), "{} is not a folder", existing.display());
    tempfile::tempfile_in(existing).with_context(|| format!("cannot write to {}", existing.display()))?;
    Ok("can be made".to_owned())
}

fn check_keys(context: &Context, data: &PathBuf) -> Result<Finding, Failure> {
    let files = keys::files(context, Some(data))?;
    let found = files.load().map_err(anyhow::Error::from).and_then(|records| {
        if records.is_empty() {
            return Ok("none, so whoever reaches the server may call".to_owned());
        }
        files.pepper_of(&records)?;
        Ok(format!("{} keys", records.len()))
    });
    Ok(finding("keys", &files.path().display(), found))
}

fn check_weights(home: &turnflow_models::ModelHome) -> anyhow::Result<String> {
    verify(home).context("missing or damaged, get them with: turnflow models pull")?;
    Ok("intact".to_owned())
}

fn check_verifier(config: &Config) -> anyhow::Result<String> {
    Ok(if verifier(config)?.is_some() { "fits the settings" } else { "a plain rule stands in for it" }.to_owned())
}

fn check_router(config: &Config) -> anyhow::Result<String> {
    Ok(match chooser(config)? {
        Chooser::Plain(_) => "a plain rule".to_owned(),
        Chooser::Trained(..) => "fits the settings".to_owned(),
    })
}

fn check_model(tier: &TierConfig, home: &ModelHome) -> anyhow::Result<String> {
    let checkpoint = tier.burn.open(home)?;
    checkpoint.check_dialect()?;
    let sizes = &checkpoint.config;
    let kv = tier.burn.kv_bytes_max as f64 / 1e6;
    let weights = checkpoint.weights.bytes() as f64 / 1e6;
    Ok(format!("{}, {weights:.0} MB of weights, {kv:.0} MB for keys and values", sizes.family.name()))
}

/// What the tier reads before it asks the server, which is not asked here.
fn check_server(tier: &TierConfig) -> anyhow::Result<String> {
    tier.openai.check_files()?;
    Ok("its key and certificates, where there are any, can be read".to_owned())
}

fn check_tls(tls: &TlsConfig) -> anyhow::Result<String> {
    Ok(format!("the certificate counts until {}", certificate_until(tls)?))
}

fn check_port(listen: SocketAddr) -> anyhow::Result<String> {
    TcpListener::bind(listen).context("cannot listen")?;
    Ok("free".to_owned())
}
