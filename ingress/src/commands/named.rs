//! What settings name: files, folders, variables. All of it is looked at before a store or a port is opened, and what cannot be used is
//! told with the setting that names it, where that is written, and what to do.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use turnflow_models::{EncoderConfig, InputType, ModelError, ModelHome};
use turnflow_pipeline::{
    Chooser, Config, PipelineError, TierConfig, TierKind, TlsConfig, check_chunks, chooser, verifier,
};

use super::{Context, keys};
use crate::door::{TlsError, certificate_until};
use crate::failure::Failure;
use crate::keys::KeysError;

/// What a setting names.
pub(super) struct Named {
    /// What kind of thing.
    pub(super) what: &'static str,
    /// Which.
    pub(super) subject: String,
    pub(super) found: Result<String, Wrong>,
}

/// Why it cannot be used.
pub(super) struct Wrong {
    /// The setting, with its section, and its value.
    setting: String,
    value: String,
    /// What is wrong, and what to do.
    reason: String,
}

impl Wrong {
    fn new(
        setting: impl Into<String>,
        value: impl Into<String>,
        reason: impl Into<anyhow::Error>,
        remedy: &str,
    ) -> Self {
        let reason = format!("{:#}{remedy}", reason.into());
        Self { setting: setting.into(), value: value.into(), reason }
    }

    /// The same for the path of what is there or not.
    fn at(setting: impl Into<String>, path: &Path, reason: impl Into<anyhow::Error>, remedy: &str) -> Self {
        let is_elsewhere = path.is_relative() && !path.as_os_str().is_empty() && !path.exists();
        let folder = std::env::current_dir().ok().filter(|_| is_elsewhere);
        let seen_from = folder.map_or_else(String::new, |folder| format!(", seen from {}", folder.display()));
        Self::new(setting, path.display().to_string(), reason, &format!("{seen_from}; {remedy}"))
    }

    /// In full, with where the setting is written; a reason may begin with the setting itself.
    pub(super) fn told(&self, origins: &BTreeMap<String, String>) -> String {
        let Self { setting, value, reason } = self;
        match origins.get(setting) {
            Some(place) if reason.starts_with(&format!("{setting} = ")) => format!("{place}: {reason}"),
            Some(place) => format!("{place}: {setting} = {value:?}: {reason}"),
            None => reason.clone(),
        }
    }
}

/// Refuses settings that name what cannot be used, all at once.
pub(super) fn require(context: &Context, data: &PathBuf) -> Result<(), Failure> {
    refuse(context, all(context, data)?)
}

/// Why the parts of a pipeline were not opened: by the settings, where they are at fault.
pub(super) fn blamed(context: &Context, error: PipelineError) -> Failure {
    let refused = of_parts(context).and_then(|named| refuse(context, named));
    refused.err().unwrap_or_else(|| error.into())
}

fn refuse(context: &Context, named: Vec<Named>) -> Result<(), Failure> {
    let wrong: Vec<Wrong> = named.into_iter().filter_map(|named| named.found.err()).collect();
    if wrong.is_empty() {
        return Ok(());
    }
    let origins = context.config.origins().map_err(Failure::usage)?;
    let told: Vec<String> = wrong.iter().map(|wrong| wrong.told(&origins)).collect();
    Err(Failure::usage(anyhow::anyhow!(told.join("\n  "))))
}

/// All that the settings name, and whether it can be used.
pub(super) fn all(context: &Context, data: &PathBuf) -> Result<Vec<Named>, Failure> {
    let keys = keys(context, data)?;
    let tls = &context.config.server.tls;
    let tls = tls.is_on().then(|| of_tls(tls));
    Ok(std::iter::once(keys).chain(tls).chain(of_parts(context)?).collect())
}

/// What the parts of a pipeline are opened from.
fn of_parts(context: &Context) -> Result<Vec<Named>, Failure> {
    let (config, home) = (&context.config, context.home()?);
    let mut all = Vec::new();
    if !config.encoder.is_shipped() {
        all.push(of_encoder(&config.encoder, &home));
    }
    all.extend(of_lengths(config, &home));
    // What is fitted to an encoder says nothing without one.
    if let Ok(encoder) = config.encoder.identity(&home) {
        all.push(of_verifier(config, &encoder));
        if config.routing.enabled {
            all.push(of_router(config, &encoder));
        }
    }
    let small = config.routing.enabled.then_some(("small-tier", &config.small_tier));
    for (section, tier) in std::iter::once(("tier", &config.tier)).chain(small) {
        match tier.kind {
            TierKind::Extractive => {}
            TierKind::Burn => all.push(of_model(section, tier, &home)),
            TierKind::Openai => all.push(of_server(section, tier)),
        }
    }
    Ok(all)
}

fn keys(context: &Context, data: &PathBuf) -> Result<Named, Failure> {
    let files = keys::files(context, Some(data))?;
    let found = files.load().and_then(|records| {
        if records.is_empty() {
            return Ok("none, so whoever reaches the server may call".to_owned());
        }
        files.pepper_of(&records)?;
        Ok(format!("{} keys", records.len()))
    });
    let found = found.map_err(|error| {
        let (gateway, remedy) =
            (&context.config.gateway, keys::remedy(&error).unwrap_or("mend it, or put one of a backup in its place"));
        match error {
            KeysError::PepperMissing { .. } | KeysError::PepperWrong { .. } | KeysError::PepperShort { .. } => {
                Wrong::at("gateway.pepper-file", &gateway.pepper_file, error, remedy)
            }
            error => Wrong::at("gateway.keys", &gateway.keys, error, remedy),
        }
    });
    Ok(Named { what: "keys", subject: files.path().display().to_string(), found })
}

/// What TLS is spoken with. Of its files, the first one that cannot be used is told.
fn of_tls(tls: &TlsConfig) -> Named {
    let found = certificate_until(tls).map(|until| format!("the certificate counts until {until}"));
    let found = found.map_err(|error| {
        let path = match &error {
            TlsError::Read { path, .. }
            | TlsError::Missing { path, .. }
            | TlsError::Unusable { path, .. }
            | TlsError::OutOfTime { path, .. } => path,
            TlsError::Mismatch { key, .. } => key,
        };
        let (leaf, remedy) = if path == &tls.cert_file {
            ("cert-file", "name the server's certificate in PEM, followed by those between it and its authority")
        } else if path == &tls.key_file {
            ("key-file", "name the private key of server.tls.cert-file in PEM, without a passphrase")
        } else {
            ("client-ca-file", "name certificates in PEM, of the authorities whose clients are let in")
        };
        Wrong::at(format!("server.tls.{leaf}"), &path.clone(), error, remedy)
    });
    Named { what: "TLS", subject: tls.cert_file.display().to_string(), found }
}

/// An encoder that does not ship.
fn of_encoder(config: &EncoderConfig, home: &ModelHome) -> Named {
    let found = config.open(home).map(|found| {
        let (megabytes, pooling) = (found.bytes() as f64 / 1e6, found.pooling);
        format!("{megabytes:.0} MB of weights, {pooling} pooling, {} word pieces at most", found.tokens_max)
    });
    let remedy = "name a checkpoint's folder, or pull one with `turnflow models pull ORG/NAME`";
    let found = found.map_err(|error| Wrong::at("encoder.model", &config.model, error, remedy));
    Named { what: "encoder", subject: config.folder(home).display().to_string(), found }
}

/// What the encoder reads of a chunk; none when it is not there, which is told elsewhere.
fn of_lengths(config: &Config, home: &ModelHome) -> Option<Named> {
    let found = match config.encoder.pieces_max(home, InputType::Passage) {
        Ok(most) => {
            let fits = format!("fit into the {most} word pieces that the encoder reads beside its passage prefix");
            let (setting, wanted) = ("knowledge.chunk-tokens-max", config.knowledge.chunk_tokens_max.to_string());
            check_chunks(config, most).map(|()| fits).map_err(|error| Wrong::new(setting, wanted, error, ""))
        }
        Err(error @ ModelError::Prefix { input, .. }) if config.encoder.open(home).is_ok() => {
            Err(Wrong::new(format!("encoder.{input}-prefix"), "…", error, ": shorten it"))
        }
        Err(_) => return None,
    };
    Some(Named { what: "chunks", subject: format!("{} word pieces at most", config.knowledge.chunk_tokens_max), found })
}

fn of_verifier(config: &Config, encoder: &str) -> Named {
    let name = &config.policy.verifier;
    let found = verifier(config, encoder).map(|found| match found {
        Some(_) => "fits the settings".to_owned(),
        None => "a plain rule stands in for it".to_owned(),
    });
    let remedy = "`turnflow policy fit` writes one, and \"shop\" is the one that ships";
    let found = found.map_err(|error| fitted("policy.verifier", name, error, remedy));
    Named { what: "verifier", subject: name.clone(), found }
}

fn of_router(config: &Config, encoder: &str) -> Named {
    let name = &config.routing.router;
    let found = chooser(config, encoder).map(|found| match found {
        Chooser::Plain(_) => "a plain rule".to_owned(),
        Chooser::Trained(..) => "fits the settings".to_owned(),
    });
    let remedy = "`turnflow router train` writes one, and \"shop\" is the one that ships";
    let found = found.map_err(|error| fitted("routing.router", name, error, remedy));
    Named { what: "router", subject: name.clone(), found }
}

fn of_model(section: &str, tier: &TierConfig, home: &ModelHome) -> Named {
    let found = tier.burn.open(home).and_then(|checkpoint| {
        checkpoint.check_dialect()?;
        let (kv, weights) = (tier.burn.kv_bytes_max as f64 / 1e6, checkpoint.weights.bytes() as f64 / 1e6);
        let family = checkpoint.config.family.name();
        Ok(format!("{family}, {weights:.0} MB of weights, {kv:.0} MB for keys and values"))
    });
    let remedy = "name a checkpoint's folder, or pull one with `turnflow models pull ORG/NAME`";
    let found = found.map_err(|error| Wrong::at(format!("{section}.burn.model"), &tier.burn.model, error, remedy));
    Named { what: "model", subject: tier.burn.folder(home).display().to_string(), found }
}

/// What the tier reads before it asks the server, which is not asked here.
fn of_server(section: &str, tier: &TierConfig) -> Named {
    let remote = &tier.openai;
    let found = remote.check_files().map_err(|(key, error)| {
        let setting = format!("{section}.openai.{key}");
        match (&remote.key_env, &remote.key_file, &remote.ca_file) {
            (Some(name), ..) if key == "key-env" => {
                Wrong::new(setting, name, error, "; set it where the server is started")
            }
            (_, Some(path), _) if key == "key-file" => {
                Wrong::at(setting, path, error, "write the key to it, and nothing else")
            }
            (.., path) => Wrong::at(
                setting,
                path.as_deref().unwrap_or(Path::new("")),
                error,
                "name a file of certificates in PEM",
            ),
        }
    });
    let found = found.map(|()| "its key and certificates, where there are any, can be read".to_owned());
    Named { what: "server", subject: remote.base_url.clone(), found }
}

/// What is wrong with what was fitted: an error that names its setting says what to do as well.
fn fitted(setting: &str, name: &str, error: PipelineError, remedy: &str) -> Wrong {
    match error {
        PipelineError::Model(error) => Wrong::at(setting, Path::new(name), error, remedy),
        error => Wrong::new(setting, name, error, ""),
    }
}
