//! How settings are read: the embedded defaults with a user's file on top, and where in it each was written.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::{Config, check};

const DEFAULTS: &str = include_str!("../default.toml");

/// Why a configuration is not used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration {path}")]
    Read {
        /// Which file.
        path: PathBuf,
        /// The system's own words.
        #[source]
        source: std::io::Error,
    },
    /// The file is not TOML.
    #[error("{path}: {message}")]
    Syntax {
        /// Which file, and where in it.
        path: String,
        /// What is wrong.
        message: String,
    },
    /// A key is unknown, or its value has the wrong type, or is wrong and may hold a secret, so that it is not told.
    #[error("{place}: {key}: {message}")]
    Key {
        /// Which file and line.
        place: String,
        /// The key, with its section.
        key: String,
        /// What is wrong.
        message: String,
    },
    /// A value is outside what makes sense.
    #[error("{place}: {key} = {value}: {message}")]
    Value {
        /// Which file and line.
        place: String,
        /// The key, with its section.
        key: String,
        /// Its value.
        value: String,
        /// What would make sense.
        message: String,
    },
}

impl Config {
    /// The embedded defaults.
    ///
    /// # Panics
    /// When the embedded file is wrong, which a test rules out.
    #[must_use]
    pub fn defaults() -> Self {
        #[expect(clippy::expect_used, reason = "the file is part of the binary, and a test parses it")]
        Self::from_text("", "embedded defaults").expect("the embedded defaults are valid")
    }

    /// The defaults, overridden by a file if one is given.
    ///
    /// # Errors
    /// [`ConfigError`] with file, line and key when the file cannot be read or something in it is wrong.
    pub fn load(path: Option<&Path>) -> Result<Self, ConfigError> {
        let Some(path) = path else { return Ok(Self::defaults()) };
        let text =
            std::fs::read_to_string(path).map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        let config = Self::from_text(&text, &path.display().to_string())?;
        Ok(Self { file: Some(path.to_owned()), ..config })
    }

    /// Every setting with its value as TOML, by its dotted key.
    #[must_use]
    pub fn settings(&self) -> BTreeMap<String, String> {
        let mut settings = BTreeMap::new();
        // It was read from TOML, so it can be written as such.
        if let Ok(table) = toml::Table::try_from(self) {
            flatten("", &table, &mut settings);
        }
        settings
    }

    /// Where each setting that is no default was written, as file and line, by its dotted key.
    ///
    /// # Errors
    /// [`ConfigError`] when the file cannot be read.
    pub fn origins(&self) -> Result<BTreeMap<String, String>, ConfigError> {
        let Some(path) = &self.file else { return Ok(BTreeMap::new()) };
        let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Read { path: path.clone(), source })?;
        let name = path.display().to_string();
        let mut written = BTreeMap::new();
        flatten("", &parse(&text, &name)?, &mut written);
        let placed = written.into_keys().map(|key| {
            let place = place(&text, &name, &key);
            (key, place)
        });
        Ok(placed.collect())
    }

    /// The defaults, overridden by a text; `name` is what errors call it.
    ///
    /// # Errors
    /// As [`Config::load`].
    pub fn from_text(text: &str, name: &str) -> Result<Self, ConfigError> {
        let user = parse(text, name)?;
        let mut merged = parse(DEFAULTS, "embedded defaults")?;
        // A small tier has the defaults of a tier.
        if let Some(tier) = merged.get("tier").cloned() {
            merged.insert("small-tier".to_owned(), tier);
        }
        merge(&mut merged, user);
        let config: Self = serde_path_to_error::deserialize(merged).map_err(|error| {
            let (key, message) = (error.path().to_string(), error.inner().message().to_owned());
            // An unknown key is named in the message, not in the path.
            let unknown = message.split('`').nth(1).filter(|_| message.starts_with("unknown field"));
            let full = match unknown {
                Some(unknown) if key == "." => unknown.to_owned(),
                Some(unknown) if !key.ends_with(unknown) => format!("{key}.{unknown}"),
                _ => key,
            };
            ConfigError::Key { place: place(text, name, &full), key: full, message }
        })?;
        check::check(&config, text, name)?;
        Ok(config)
    }
}

fn parse(text: &str, name: &str) -> Result<toml::Table, ConfigError> {
    text.parse().map_err(|error: toml::de::Error| {
        let line = error.span().map_or(1, |span| line_at(text, span.start));
        ConfigError::Syntax { path: format!("{name}:{line}"), message: error.message().to_owned() }
    })
}

fn merge(into: &mut toml::Table, from: toml::Table) {
    for (key, value) in from {
        match (into.get_mut(&key), value) {
            // Of a target there is one.
            (Some(toml::Value::Table(into)), toml::Value::Table(from)) if key != "target" => merge(into, from),
            (_, value) => {
                into.insert(key, value);
            }
        }
    }
}

fn flatten(section: &str, table: &toml::Table, settings: &mut BTreeMap<String, String>) {
    for (key, value) in table {
        let key = if section.is_empty() { key.clone() } else { format!("{section}.{key}") };
        match value {
            toml::Value::Table(table) => flatten(&key, table, settings),
            value => {
                settings.insert(key, value.to_string());
            }
        }
    }
}

fn line_at(text: &str, offset: usize) -> usize {
    text.bytes().take(offset).filter(|byte| *byte == b'\n').count() + 1
}

/// File and line of a dotted key, as far as the file has it: a section's line when the key itself is written in
/// another way, the file alone when it is a default.
pub(super) fn place(text: &str, name: &str, key: &str) -> String {
    let (section, leaf) = key.rsplit_once('.').unwrap_or(("", key));
    let mut current = String::new();
    for (number, line) in text.lines().enumerate() {
        let line = line.trim();
        if let Some(header) = line.strip_prefix('[').and_then(|rest| rest.split(']').next()) {
            current = header.trim().to_owned();
            if current == key {
                return format!("{name}:{}", number + 1);
            }
        } else if let Some((written, _)) = line.split_once('=') {
            let written = written.trim().trim_matches('"');
            let full = if current.is_empty() { written.to_owned() } else { format!("{current}.{written}") };
            if full == key || (current == section && written == leaf) {
                return format!("{name}:{}", number + 1);
            }
        }
    }
    name.to_owned()
}
