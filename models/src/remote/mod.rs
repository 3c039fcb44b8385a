//! The tier that asks a server which speaks OpenAI's chat-completions protocol: vLLM, llama.cpp, Ollama, or a provider.
//!
//! Contract: [`RemoteTier`] keeps the contract of a tier whatever the server does. Every wait, every buffer and the number
//! of requests at once are bounded. A request is repeated only when nothing of an answer was handed out and repeating is safe;
//! a server that keeps failing is left alone for a while. A job that is cancelled closes its connection. The key is in no log, no error and no
//! debug output.
//!
//! How it is split: `sse.rs` cuts a stream into events, `wire.rs` says what they mean, `http.rs` makes one attempt,
//! `retry.rs` and `breaker.rs` decide on the next, `gate.rs` keeps the line, `tier.rs` puts them together. It deliberately
//! speaks HTTP/1.1 alone, follows no redirects, uses no proxy, and calls no tools.

mod breaker;
mod fault;
mod gate;
mod http;
mod retry;
mod sse;
mod tier;
mod wire;

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use breaker::BreakerState;
pub use fault::{Phase, RemoteFault};
pub use tier::{RemoteHealth, RemoteStats, RemoteTier};
pub(crate) use wire::ErrorBody;
pub use wire::LimitField;

use crate::error::ModelError;
use crate::secret::{Secret, is_variable};

/// A setting that cannot be used. What it is set to is not told where it may hold a secret.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{key} {reason}")]
pub struct WrongSetting {
    /// Its name, such as `base-url`.
    pub key: &'static str,
    /// What would be right: what follows after the name.
    pub reason: String,
}

/// Which server is asked, and how.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct RemoteConfig {
    /// The server's base address, such as `http://127.0.0.1:8000/v1`; `/chat/completions` is added.
    pub base_url: String,
    /// The model's name there.
    pub model: String,
    /// The environment variable that holds the key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_env: Option<String>,
    /// The file that holds the key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_file: Option<PathBuf>,
    /// A file with certificates, in PEM, that are trusted besides the public ones.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_file: Option<PathBuf>,
    /// The field that the bound on an answer's tokens is sent in.
    pub limit_field: LimitField,
    /// Sampling temperature; the server's own where it is not set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub temperature: Option<f32>,
    /// Probability mass that is sampled from; the server's own where it is not set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub top_p: Option<f32>,
    /// Seed of sampling, for servers that know one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seed: Option<u64>,
    /// Longest time to connect, TLS included.
    pub connect_ms_max: u64,
    /// Longest time from the request to the first token.
    pub first_token_ms_max: u64,
    /// Longest time from a token to the next.
    pub between_tokens_ms_max: u64,
    /// Longest time for an answer, its wait in line and all attempts included.
    pub total_ms_max: u64,
    /// How often a request is repeated.
    pub retries_max: u32,
    /// Longest wait before the first repetition; it doubles with each.
    pub retry_wait_ms: u64,
    /// Longest wait before any repetition, unless the server asks for more.
    pub retry_wait_ms_max: u64,
    /// Failures in a row after which the server is left alone.
    pub breaker_failures: u32,
    /// For how long.
    pub breaker_rest_ms: u64,
    /// Requests at once.
    pub in_flight_max: usize,
    /// Jobs that may wait, in each lane.
    pub queue_max: usize,
    /// Longest answer, in bytes as they are sent.
    pub response_bytes_max: usize,
    /// Longest line of an answer, in bytes.
    pub line_bytes_max: usize,
}

impl RemoteConfig {
    /// The default settings for a model on a server.
    #[must_use]
    pub fn new(base_url: impl Into<String>, model: impl Into<String>) -> Self {
        Self {
            base_url: base_url.into(),
            model: model.into(),
            key_env: None,
            key_file: None,
            ca_file: None,
            limit_field: LimitField::MaxTokens,
            temperature: None,
            top_p: None,
            seed: None,
            connect_ms_max: 3000,
            first_token_ms_max: 20_000,
            between_tokens_ms_max: 10_000,
            total_ms_max: 60_000,
            retries_max: 2,
            retry_wait_ms: 250,
            retry_wait_ms_max: 4000,
            breaker_failures: 5,
            breaker_rest_ms: 10_000,
            in_flight_max: 16,
            queue_max: 4,
            response_bytes_max: 4 * 1024 * 1024,
            line_bytes_max: 256 * 1024,
        }
    }

    /// Checks what can be checked without reading files and without asking the server.
    ///
    /// # Errors
    /// The first setting that is wrong.
    pub fn check(&self) -> Result<(), WrongSetting> {
        let refused = |key, reason: &str| Err(WrongSetting { key, reason: reason.to_owned() });
        if let Err(reason) = http::uri_of(&self.base_url) {
            return refused("base-url", reason);
        }
        if self.model.trim().is_empty() {
            return refused("model", "must name a model");
        }
        if self.key_env.is_some() && self.key_file.is_some() {
            return refused("key-file", "must not be set beside key-env");
        }
        if self.key_env.as_ref().is_some_and(|name| !is_variable(name)) {
            // Somebody may have written the key itself.
            return refused("key-env", "must be the name of an environment variable: letters, digits and _");
        }
        for (key, value) in [
            ("connect-ms-max", self.connect_ms_max),
            ("first-token-ms-max", self.first_token_ms_max),
            ("between-tokens-ms-max", self.between_tokens_ms_max),
            ("total-ms-max", self.total_ms_max),
            ("breaker-failures", u64::from(self.breaker_failures)),
            ("in-flight-max", self.in_flight_max as u64),
            ("queue-max", self.queue_max as u64),
            ("response-bytes-max", self.response_bytes_max as u64),
            ("line-bytes-max", self.line_bytes_max as u64),
        ] {
            if value == 0 {
                return refused(key, "must be at least 1");
            }
        }
        if self.first_token_ms_max >= self.total_ms_max {
            return refused("first-token-ms-max", &format!("must be less than total-ms-max, {}", self.total_ms_max));
        }
        for (key, value, max) in [("temperature", self.temperature, 2.0), ("top-p", self.top_p, 1.0)] {
            if value.is_some_and(|value| !(0.0..=max).contains(&value)) {
                return refused(key, &format!("must lie between 0 and {max}"));
            }
        }
        Ok(())
    }

    /// Checks that the key and the certificates can be read, as [`RemoteTier::start`] reads them.
    ///
    /// # Errors
    /// The setting that names what cannot be used, and what is wrong with it.
    pub fn check_files(&self) -> Result<(), (&'static str, ModelError)> {
        let of_key = if self.key_env.is_some() { "key-env" } else { "key-file" };
        self.key().map_err(|error| (of_key, error))?;
        http::tls(self).map(drop).map_err(|error| ("ca-file", error))
    }

    const fn total(&self) -> Duration {
        Duration::from_millis(self.total_ms_max)
    }

    /// The key, where one is configured.
    pub(crate) fn key(&self) -> Result<Option<Secret>, ModelError> {
        match (&self.key_env, &self.key_file) {
            (Some(variable), _) => Secret::from_env(variable).map(Some),
            (None, Some(path)) => Secret::from_file(path).map(Some),
            (None, None) => Ok(None),
        }
    }
}

#[cfg(test)]
mod server;
#[cfg(test)]
mod tests;
