//! What values make sense.

use std::fmt::Display;

use turnflow_models::{
    AdapterChoice, BATCH_TOKENS_MAX, BurnConfig, EncoderConfig, JOB_TEXTS_MAX, MODEL_NAME, PREFIX_BYTES_MAX, Sampling,
    Target, WrongSetting,
};
use turnflow_operators::load::LoadLimits;
use turnflow_operators::prioritise::{ChannelWeights, QueueLimits};

use super::file::place;
use super::{Config, ConfigError, TierConfig, TierKind, TlsConfig};

/// Most threads of a kind.
const THREADS_MAX: usize = 256;
/// Longest queue.
const QUEUE_MAX: usize = 1 << 17;
/// Largest value of any other count.
const COUNT_MAX: usize = 1 << 28;

/// Least buffer that the HTTP library takes, in bytes.
const HEADER_BYTES_LEAST: usize = 8192;

/// Checks a configuration that was read from a text; `name` is what errors call it.
pub(super) fn check(config: &Config, text: &str, name: &str) -> Result<(), ConfigError> {
    let source = Source { text, name };
    source.counts(config)?;
    if let Err(error) = config.processor.instructions.resolve() {
        return Err(source.wrong("processor.instructions", &config.processor.instructions, error.to_string()));
    }
    source.encoder(&config.encoder)?;
    source.cache(config)?;
    source.load(config)?;
    source.callers(config)?;
    source.listen(config)?;
    source.origins(&config.server.grpc_web_origins)?;
    source.tls(&config.server.tls)?;
    source.tier("tier", &config.tier)?;
    if config.routing.enabled {
        source.tier("small-tier", &config.small_tier)?;
    }
    Ok(())
}

/// Where a configuration was read.
struct Source<'a> {
    text: &'a str,
    name: &'a str,
}

impl Source<'_> {
    fn wrong(&self, key: impl Into<String>, value: &dyn Display, message: impl Into<String>) -> ConfigError {
        let key = key.into();
        let place = place(self.text, self.name, &key);
        ConfigError::Value { place, key, value: value.to_string(), message: message.into() }
    }

    /// Settings of which there must be at least one, and not too many.
    fn counts(&self, config: &Config) -> Result<(), ConfigError> {
        for (key, value) in counts(config) {
            if value == 0 {
                return Err(self.wrong(key, &value, "must be at least 1"));
            }
            // Queues of this length are allocated when they are made, and every thread has a stack.
            let most = match key.rsplit_once('.').map_or(key.as_str(), |(_, leaf)| leaf) {
                "threads" | "search-threads" => THREADS_MAX,
                "bytes-max" | "tenant-bytes-max" | "kv-bytes-max" => usize::MAX,
                "batch-tokens-max" => BATCH_TOKENS_MAX,
                "batch-texts-max" => JOB_TEXTS_MAX,
                "commit-queue-max"
                | "turns-in-flight-max"
                | "queue-max"
                | "turns-max"
                | "writes-waiting-max"
                | "events-kept-max"
                | "in-flight-max" => QUEUE_MAX,
                _ => COUNT_MAX,
            };
            if value > most {
                return Err(self.wrong(key, &value, format!("must be at most {most}")));
            }
        }
        let limits = &config.limits;
        if config.storage.commit_queue_max < limits.turns_in_flight_max {
            let least = format!("must be at least limits.turns-in-flight-max, {}", limits.turns_in_flight_max);
            return Err(self.wrong("storage.commit-queue-max", &config.storage.commit_queue_max, least));
        }
        if limits.message_bytes_max < limits.text_bytes_max {
            let least = format!("must be at least limits.text-bytes-max, {}", limits.text_bytes_max);
            return Err(self.wrong("limits.message-bytes-max", &limits.message_bytes_max, least));
        }
        let body_least = limits.article_bytes_max.max(limits.text_bytes_max);
        if config.http.body_bytes_max < body_least {
            let least = format!("must be at least limits.article-bytes-max and limits.text-bytes-max, {body_least}");
            return Err(self.wrong("http.body-bytes-max", &config.http.body_bytes_max, least));
        }
        if config.http.header_bytes_max < HEADER_BYTES_LEAST {
            let least = format!("must be at least {HEADER_BYTES_LEAST}");
            return Err(self.wrong("http.header-bytes-max", &config.http.header_bytes_max, least));
        }
        Ok(())
    }

    fn encoder(&self, encoder: &EncoderConfig) -> Result<(), ConfigError> {
        if encoder.model.as_os_str().is_empty() {
            let message = format!("must be {MODEL_NAME}, the folder of a checkpoint, or ORG/NAME as it was pulled");
            return Err(self.wrong("encoder.model", &"\"\"", message));
        }
        for (key, prefix) in
            [("encoder.query-prefix", &encoder.query_prefix), ("encoder.passage-prefix", &encoder.passage_prefix)]
        {
            if prefix.len() > PREFIX_BYTES_MAX {
                let length = format!("{} bytes", prefix.len());
                return Err(self.wrong(key, &length, format!("must be at most {PREFIX_BYTES_MAX} bytes")));
            }
        }
        if encoder.adapter == AdapterChoice::Shop && !encoder.is_shipped() {
            let message = format!("goes with {MODEL_NAME} alone: set it to \"none\" for another encoder.model");
            return Err(self.wrong("encoder.adapter", &encoder.adapter, message));
        }
        Ok(())
    }

    /// When a cached answer is served, and what it is compared with.
    fn cache(&self, config: &Config) -> Result<(), ConfigError> {
        let similarity = config.cache.similarity_min;
        if !(0.0..=1.0).contains(&similarity) {
            return Err(self.wrong("cache.similarity-min", &similarity, "must lie between 0 and 1"));
        }
        let delta = config.policy.delta;
        if !(delta > 0.0 && delta < 1.0) {
            let message = "must lie between 0 and 1, as the share of hits that may be wrong";
            return Err(self.wrong("policy.delta", &delta, message));
        }
        let (share, disagreement) = (config.audit.share, config.audit.disagreement_max);
        if !(0.0..=1.0).contains(&share) {
            return Err(self.wrong("audit.share", &share, "must lie between 0 and 1"));
        }
        if !(disagreement > 0.0 && disagreement < 1.0) {
            let message = "must lie between 0 and 1, as the share that may disagree";
            return Err(self.wrong("audit.disagreement-max", &disagreement, message));
        }
        if !(config.audit.step > 0.0 && config.audit.step.is_finite()) {
            return Err(self.wrong("audit.step", &config.audit.step, "must be a number above 0, as log odds"));
        }
        let (margin, clear) = (config.knowledge.score_margin, config.policy.margin_min);
        if !(margin > 0.0 && margin <= 2.0) {
            return Err(self.wrong(
                "knowledge.score-margin",
                &margin,
                "must be above 0, and at most 2, where all cosines lie",
            ));
        }
        if clear > margin {
            let message = format!(
                "must be at most knowledge.score-margin, {margin}: edits of what is further away concern no answer"
            );
            return Err(self.wrong("policy.margin-min", &clear, message));
        }
        for (key, value) in [
            ("routing.plain.relevance-min", config.routing.plain.relevance_min),
            ("routing.plain.margin-min", config.routing.plain.margin_min),
            ("policy.relevance-min", config.policy.relevance_min),
            ("policy.margin-min", config.policy.margin_min),
            ("extractive.confidence-min", config.extractive.confidence_min),
        ] {
            if !(-1.0..=1.0).contains(&value) {
                return Err(self.wrong(key, &value, "must lie between -1 and 1"));
            }
        }
        Ok(())
    }

    fn callers(&self, config: &Config) -> Result<(), ConfigError> {
        for (section, limits) in [("key", config.gateway.limits.key), ("tenant", config.gateway.limits.tenant)] {
            limits.check().map_err(|(leaf, message)| {
                self.wrong(format!("gateway.limits.{section}.{leaf}"), &limits.budget_per_day, message)
            })?;
        }
        Ok(())
    }

    /// Whether both servers have a port of their own; a port of 0 is whatever is free, and an unspecified address is every one.
    fn listen(&self, config: &Config) -> Result<(), ConfigError> {
        let (grpc, http) = (config.server.listen, config.http.listen);
        let overlap = grpc.ip() == http.ip() || grpc.ip().is_unspecified() || http.ip().is_unspecified();
        if !config.http.enabled || grpc.port() != http.port() || !overlap || grpc.port() == 0 {
            return Ok(());
        }
        let other = place(self.text, self.name, "http.listen");
        let message = format!("must have another port than http.listen, which is {http} in {other}");
        Err(self.wrong("server.listen", &grpc, message))
    }

    /// Whether these are origins as browsers write them.
    fn origins(&self, origins: &[String]) -> Result<(), ConfigError> {
        let is_origin = |origin: &str| {
            let host = origin.strip_prefix("https://").or_else(|| origin.strip_prefix("http://"));
            let is_part = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b".-:[]".contains(&byte);
            host.is_some_and(|host| !host.is_empty() && host.bytes().all(is_part))
        };
        match origins.iter().find(|origin| !is_origin(origin)) {
            None => Ok(()),
            Some(origin) => {
                let message = "must be origins as browsers write them, such as https://shop.example, without a path";
                Err(self.wrong("server.grpc-web-origins", &format!("{origin:?}"), message))
            }
        }
    }

    /// Whether the files that belong together are all named. What is in them is for the server to see.
    fn tls(&self, tls: &TlsConfig) -> Result<(), ConfigError> {
        let has_key = !tls.key_file.as_os_str().is_empty();
        let has_authority = !tls.client_ca_file.as_os_str().is_empty();
        let (leaf, message) = match tls.is_on() {
            true if !has_key => ("key-file", "must name the private key of server.tls.cert-file"),
            false if has_key => ("cert-file", "must name the certificate of server.tls.key-file"),
            false if has_authority => {
                ("cert-file", "must name a certificate, because server.tls.client-ca-file is set")
            }
            _ => return Ok(()),
        };
        Err(self.wrong(format!("server.tls.{leaf}"), &"\"\"", message))
    }

    fn load(&self, config: &Config) -> Result<(), ConfigError> {
        let ChannelWeights { voice, chat, api, email } = config.queue.weights;
        for (key, weight) in [
            ("queue.weights.voice", voice),
            ("queue.weights.chat", chat),
            ("queue.weights.api", api),
            ("queue.weights.email", email),
        ] {
            if !(weight.is_finite() && weight > 0.0) {
                return Err(self.wrong(key, &weight, "must be a finite number above 0"));
            }
        }
        let LoadLimits { degraded_wait_ms, shedding_wait_ms, calm_ms, calm_ms_max, saturation_max, .. } = config.load;
        if shedding_wait_ms < degraded_wait_ms {
            let least = format!("must be at least load.degraded-wait-ms, {degraded_wait_ms}");
            return Err(self.wrong("load.shedding-wait-ms", &shedding_wait_ms, least));
        }
        if calm_ms_max < calm_ms {
            let least = format!("must be at least load.calm-ms, {calm_ms}");
            return Err(self.wrong("load.calm-ms-max", &calm_ms_max, least));
        }
        if !(saturation_max > 0.0 && saturation_max <= 1.0) {
            return Err(self.wrong("load.saturation-max", &saturation_max, "must be above 0 and at most 1"));
        }
        let (key, share) = match config.routing.target {
            Target::Quality(share) => ("routing.target.quality", share),
            Target::LargeShare(share) => ("routing.target.large-share", share),
        };
        if !(0.0..=1.0).contains(&share) {
            return Err(self.wrong(key, &share, "must lie between 0 and 1"));
        }
        Ok(())
    }

    fn tier(&self, section: &str, tier: &TierConfig) -> Result<(), ConfigError> {
        let key = |leaf: &str| format!("{section}.{leaf}");
        for (leaf, value) in [
            ("price.input-per-million", tier.price.input_per_million),
            ("price.output-per-million", tier.price.output_per_million),
        ] {
            if !value.is_finite() || value < 0.0 {
                return Err(self.wrong(key(leaf), &value, "must be a finite number, not negative"));
            }
        }
        let Sampling { temperature, top_p, repetition_penalty, .. } = tier.sampling;
        if !(temperature.is_finite() && temperature >= 0.0) {
            return Err(self.wrong(key("sampling.temperature"), &temperature, "must be a finite number, not negative"));
        }
        if !(top_p > 0.0 && top_p <= 1.0) {
            return Err(self.wrong(key("sampling.top-p"), &top_p, "must be above 0 and at most 1"));
        }
        if !(repetition_penalty.is_finite() && repetition_penalty > 0.0) {
            return Err(self.wrong(
                key("sampling.repetition-penalty"),
                &repetition_penalty,
                "must be a finite number above 0",
            ));
        }
        let BurnConfig { model, engine, .. } = &tier.burn;
        if engine.step_tokens_max < engine.sequences_max {
            let least = format!("must be at least {}, {}", key("burn.engine.sequences-max"), engine.sequences_max);
            return Err(self.wrong(key("burn.engine.step-tokens-max"), &engine.step_tokens_max, least));
        }
        if tier.kind == TierKind::Burn && model.as_os_str().is_empty() {
            let message = format!("must name the folder of a checkpoint, because {} is \"burn\"", key("kind"));
            return Err(self.wrong(key("burn.model"), &"\"\"", message));
        }
        if tier.kind == TierKind::Openai
            && let Err(WrongSetting { key: leaf, reason }) = tier.openai.check()
        {
            let key = key(&format!("openai.{leaf}"));
            return Err(ConfigError::Key { place: place(self.text, self.name, &key), key, message: reason });
        }
        Ok(())
    }
}

// What is counted in 64 bits is bounded all the same.
fn count(value: u64) -> usize {
    usize::try_from(value).unwrap_or(usize::MAX)
}

fn counts(config: &Config) -> Vec<(String, usize)> {
    let (limits, queue) = (&config.limits, &config.queue);
    let QueueLimits { turns_max, tokens_max, aged_every, .. } = queue;
    let mut counts = [
        ("storage.commit-queue-max", config.storage.commit_queue_max),
        ("workers.threads", config.workers.threads),
        ("workers.search-threads", config.workers.search_threads),
        ("limits.text-bytes-max", limits.text_bytes_max),
        ("limits.message-bytes-max", limits.message_bytes_max),
        ("limits.streams-per-connection-max", limits.streams_per_connection_max as usize),
        ("limits.turns-per-stream-max", limits.turns_per_stream_max),
        ("limits.turns-in-flight-max", limits.turns_in_flight_max),
        ("limits.tenant-turns-in-flight-max", limits.tenant_turns_in_flight_max),
        ("limits.turns-per-conversation-max", limits.turns_per_conversation_max),
        ("limits.article-bytes-max", limits.article_bytes_max),
        ("cache.bytes-max", config.cache.bytes_max),
        ("cache.tenant-bytes-max", config.cache.tenant_bytes_max),
        ("refresh.queue-max", config.refresh.queue_max),
        ("refresh.in-flight-max", config.refresh.in_flight_max),
        ("refresh.tries-max", config.refresh.tries_max as usize),
        ("audit.queue-max", config.audit.queue_max),
        ("audit.in-flight-max", config.audit.in_flight_max),
        ("queue.turns-max", *turns_max),
        ("queue.tokens-max", *tokens_max),
        ("queue.aged-every", *aged_every as usize),
        ("queue.patience-ms", count(queue.patience_ms)),
        ("load.degraded-wait-ms", count(config.load.degraded_wait_ms)),
        ("load.calm-ms", count(config.load.calm_ms)),
        ("limits.reader-wait-ms", count(limits.reader_wait_ms)),
        ("knowledge.recent-chunks-max", config.knowledge.recent_chunks_max),
        ("knowledge.writes-waiting-max", config.knowledge.writes_waiting_max),
        ("knowledge.events-kept-max", config.knowledge.events_kept_max),
        ("knowledge.chunks-retrieved", config.knowledge.chunks_retrieved),
        ("knowledge.chunk-tokens-max", config.knowledge.chunk_tokens_max),
        ("conversation.history-turns-max", config.conversation.history_turns_max),
        ("encoder.threads", config.encoder.threads),
        ("encoder.queue-max", config.encoder.queue_max),
        ("encoder.batch-tokens-max", config.encoder.batch_tokens_max),
        ("encoder.batch-texts-max", config.encoder.batch_texts_max),
        ("extractive.passages-max", config.extractive.passages_max),
        ("extractive.articles-max", config.extractive.articles_max),
        ("server.header-bytes-max", config.server.header_bytes_max as usize),
        ("server.tls.handshake-wait-ms", count(config.server.tls.handshake_wait_ms)),
        ("http.connections-max", config.http.connections_max),
        ("http.headers-max", config.http.headers_max),
        ("http.body-bytes-max", config.http.body_bytes_max),
        ("http.head-wait-ms", count(config.http.head_wait_ms)),
        ("http.body-wait-ms", count(config.http.body_wait_ms)),
        ("http.work-in-flight-max", config.http.work_in_flight_max),
        ("http.inputs-max", config.http.inputs_max),
    ]
    .map(|(key, value)| (key.to_owned(), value))
    .to_vec();
    for (section, TierConfig { queue_max, threads, prompt, burn, openai, .. }) in
        [("tier", &config.tier), ("small-tier", &config.small_tier)]
    {
        let of_tier = [
            ("queue-max", *queue_max),
            ("threads", *threads),
            ("prompt.prompt-tokens-max", prompt.prompt_tokens_max),
            ("prompt.answer-tokens-max", prompt.answer_tokens_max),
            ("burn.kv-bytes-max", count(burn.kv_bytes_max)),
            ("burn.block-tokens", burn.block_tokens),
            ("burn.answer-ms-max", count(burn.answer_ms_max)),
            ("burn.threads", burn.threads),
            ("burn.engine.queue-max", burn.engine.queue_max),
            ("burn.engine.sequences-max", burn.engine.sequences_max),
            ("burn.engine.step-tokens-max", burn.engine.step_tokens_max),
            ("burn.engine.step-ms-max", count(burn.engine.step_ms_max)),
            ("openai.in-flight-max", openai.in_flight_max),
            ("openai.queue-max", openai.queue_max),
        ];
        counts.extend(of_tier.map(|(leaf, value)| (format!("{section}.{leaf}"), value)));
    }
    counts
}
