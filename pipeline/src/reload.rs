//! Settings that change while the pipeline runs: the configuration's file is read again, checked as at the start, and compared
//! with what holds. Either all that differs changes, or nothing does.
//!
//! What may change is what no stage, engine or store was built from ([`LIVE`]); anything else needs a restart, and is named. A
//! turn that is under way may see some of it before and some of it after.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::{Arc, PoisonError};

use turnflow_operators::commit::Prices;

use crate::{Config, ConfigError, Pipeline};

/// Settings, and sections of them, that may change while the pipeline runs.
pub const LIVE: &[&str] = &[
    "gateway.limits",
    "limits.default-deadline-ms",
    "load.calm-ms",
    "load.calm-ms-max",
    "load.degraded-wait-ms",
    "load.hold-ms",
    "load.saturation-max",
    "load.shedding-wait-ms",
    "policy.delta",
    "server.tls",
    "small-tier.price",
    "tier.price",
];

/// A setting that has another value now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// The key, with its section.
    pub key: String,
    /// Its value before, as TOML.
    pub before: String,
    /// Its value now.
    pub after: String,
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} -> {}", self.key, self.before, self.after)
    }
}

/// Why nothing was changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReloadError {
    /// There is no file to read.
    #[error("the server was started without a configuration file")]
    NoFile,
    /// The file is not what it has to be.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Something differs that cannot change now.
    #[error("needs a restart, so that nothing was changed: {}", keys(.0))]
    Restart(Vec<Change>),
}

fn keys(changes: &[Change]) -> String {
    changes.iter().map(|change| change.key.as_str()).collect::<Vec<_>>().join(", ")
}

impl Pipeline {
    /// Reads the file that the configuration came from again, and has what differs hold from now on. Says what that is.
    ///
    /// # Errors
    /// [`ReloadError`]; then nothing has changed.
    pub fn reload(&self) -> Result<Vec<Change>, ReloadError> {
        self.reload_with(|_| Ok(()))
    }

    /// The same, for a server with more to renew: `also` gets the settings once they are known to be good, before any of them holds. When
    /// it fails, nothing changes.
    ///
    /// # Errors
    /// [`ReloadError`], and those of `also`.
    pub fn reload_with<E: From<ReloadError>>(
        &self,
        also: impl FnOnce(&Config) -> Result<(), E>,
    ) -> Result<Vec<Change>, E> {
        // Of two at once, the later one reads the file later.
        let _alone = self.0.reloading.lock().unwrap_or_else(PoisonError::into_inner);
        let before = self.config();
        let path = before.file.as_deref().ok_or(ReloadError::NoFile)?;
        let mut config = Config::load(Some(path)).map_err(ReloadError::from)?;
        config.keep_places(&before);
        // Whether TLS is spoken at all was decided when the ports were opened.
        let is_switched = before.server.tls.is_on() != config.server.tls.is_on();
        let is_live = |change: &Change| {
            let below = |section: &str| change.key.strip_prefix(section).is_some_and(|rest| rest.starts_with('.'));
            let is_bound = is_switched && below("server.tls");
            !is_bound && LIVE.iter().any(|live| change.key == *live || below(live))
        };
        let (changes, others): (Vec<_>, Vec<_>) = changes(&before, &config).into_iter().partition(is_live);
        if !others.is_empty() {
            return Err(ReloadError::Restart(others).into());
        }
        also(&config)?;
        self.0.load.lock().set_limits(config.load);
        self.0.parts.policy.set_delta(config.policy.delta);
        self.0.prices.set(Prices { small: config.small_tier.price, large: config.tier.price });
        *self.0.current.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(config);
        Ok(changes)
    }

    /// The settings that hold now.
    #[must_use]
    pub fn config(&self) -> Arc<Config> {
        self.0.current.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// What differs between two configurations, in the order of the keys.
fn changes(before: &Config, after: &Config) -> Vec<Change> {
    let (before, after) = (before.settings(), after.settings());
    let none = String::new();
    let keys: BTreeSet<&String> = before.keys().chain(after.keys()).collect();
    let values = keys.into_iter().map(|key| (key, before.get(key).unwrap_or(&none), after.get(key).unwrap_or(&none)));
    let changed = values.filter(|(_, before, after)| before != after);
    changed
        .map(|(key, before, after)| Change { key: key.clone(), before: before.clone(), after: after.clone() })
        .collect()
}
