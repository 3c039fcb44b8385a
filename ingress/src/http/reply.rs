//! Answers in the shape of chat completions, whole and in chunks, and the headers that say where they came from.

use std::fmt::Display;

use axum::body::Bytes;
use axum::http::{HeaderMap, HeaderName, HeaderValue, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};
use turnflow_pipeline::{Beginning, Pipeline};
use turnflow_state::{CacheLevel, Completion, Source, Tier, TurnKey, Verdict};

use super::chat::CONVERSATION;

const CACHE: HeaderName = HeaderName::from_static("x-turnflow-cache");
const SIMILARITY: HeaderName = HeaderName::from_static("x-turnflow-similarity");
const ENTRY: HeaderName = HeaderName::from_static("x-turnflow-entry");
const TIER: HeaderName = HeaderName::from_static("x-turnflow-tier");
const TURN: HeaderName = HeaderName::from_static("x-turnflow-turn");
const SERVER_TIMING: HeaderName = HeaderName::from_static("server-timing");

/// A response of JSON.
pub(super) struct JsonReply(pub(super) Value);

impl IntoResponse for JsonReply {
    fn into_response(self) -> Response {
        json_text(self.0.to_string())
    }
}

/// A response of JSON that is written already.
pub(super) fn json_text(text: String) -> Response {
    ([(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))], Bytes::from(text)).into_response()
}

/// What all responses to one request have in common.
#[derive(Clone)]
pub(super) struct Frame {
    pub(super) key: TurnKey,
    pub(super) model: String,
    /// When the request came, in seconds since 1970.
    pub(super) created_s: u64,
    /// Whether a stream tells the usage at its end.
    pub(super) include_usage: bool,
}

impl Frame {
    /// The whole answer.
    pub(super) fn completion(&self, completion: &Completion) -> Value {
        let message = json!({ "role": "assistant", "content": completion.text, "refusal": null });
        let choice =
            json!({ "index": 0, "message": message, "logprobs": null, "finish_reason": finish_reason(completion) });
        json!({
            "id": self.id(),
            "object": "chat.completion",
            "created": self.created_s,
            "model": self.model,
            "choices": [choice],
            "usage": usage(completion),
            "turnflow": self.turnflow(completion),
        })
    }

    /// The first chunk, which says who speaks.
    pub(super) fn first(&self) -> Bytes {
        event(&self.chunk(&json!({ "role": "assistant", "content": "" }), &Value::Null))
    }

    /// A piece of the answer.
    pub(super) fn piece(&self, text: &str) -> Bytes {
        event(&self.chunk(&json!({ "content": text }), &Value::Null))
    }

    /// The end of a stream: why it ends, the usage where it is wanted, and the mark that nothing follows.
    pub(super) fn end(&self, completion: &Completion) -> Bytes {
        let mut last = self.chunk(&json!({}), &json!(finish_reason(completion)));
        last["turnflow"] = self.turnflow(completion);
        let mut bytes = event(&last).to_vec();
        if self.include_usage {
            let mut chunk = self.chunk(&Value::Null, &Value::Null);
            chunk["choices"] = json!([]);
            chunk["usage"] = usage(completion);
            bytes.extend(event(&chunk));
        }
        bytes.extend(DONE);
        bytes.into()
    }

    fn chunk(&self, delta: &Value, finish_reason: &Value) -> Value {
        let mut chunk = json!({
            "id": self.id(),
            "object": "chat.completion.chunk",
            "created": self.created_s,
            "model": self.model,
            "choices": [{ "index": 0, "delta": delta, "logprobs": null, "finish_reason": finish_reason }],
        });
        if self.include_usage {
            chunk["usage"] = Value::Null;
        }
        chunk
    }

    fn id(&self) -> String {
        format!("chatcmpl-{}", self.key.turn)
    }

    /// What OpenAI's shape has no place for.
    fn turnflow(&self, completion: &Completion) -> Value {
        let Completion { tier, grounded, sources, cost_micros, verdict, latency, total_us, .. } = completion;
        let sources = sources.iter().map(|Source { article_id, version, chunk }| {
            json!({ "article": article_id.as_str(), "version": version, "chunk": chunk })
        });
        let stages: serde_json::Map<String, Value> =
            latency.iter().map(|(stage, elapsed_us)| (stage.to_string(), json!(elapsed_us))).collect();
        json!({
            "conversation": self.key.conversation.as_str(),
            "turn": self.key.turn.as_str(),
            "cache": cache(verdict),
            "tier": tier.as_str(),
            "route": verdict.route,
            "grounded": grounded,
            "sources": sources.collect::<Vec<_>>(),
            "cost_micros": cost_micros,
            "latency_us": stages,
            "total_us": total_us,
        })
    }

    /// Headers that name conversation and turn.
    pub(super) fn names(&self) -> HeaderMap {
        let mut headers = HeaderMap::new();
        let names =
            [(HeaderName::from_static(CONVERSATION), self.key.conversation.as_str()), (TURN, self.key.turn.as_str())];
        // Ids have no control characters, so that every one of them is a header's value.
        headers.extend(
            names.into_iter().filter_map(|(name, id)| Some((name, HeaderValue::from_bytes(id.as_bytes()).ok()?))),
        );
        headers
    }
}

/// What ends a stream.
const DONE: &[u8] = b"data: [DONE]\n\n";

/// One server-sent event.
pub(super) fn event(data: &impl Display) -> Bytes {
    // JSON has no line feeds outside of its texts, and escapes those inside.
    format!("data: {data}\n\n").into()
}

/// Why an answer ends, in OpenAI's words.
const fn finish_reason(completion: &Completion) -> &'static str {
    if completion.cut_off { "length" } else { "stop" }
}

fn usage(completion: &Completion) -> Value {
    let (read, written) = (completion.usage.input_tokens, completion.usage.output_tokens);
    json!({ "prompt_tokens": read, "completion_tokens": written, "total_tokens": u64::from(read) + u64::from(written) })
}

fn cache(verdict: &Verdict) -> Value {
    let Verdict { level, entry, similarity, question, refreshed, reason, evidence, age_ms, .. } = verdict;
    // Not whose turn was answered first: who knows a conversation's name may continue it.
    json!({
        "level": level,
        "entry": entry.map(|entry| entry.0),
        "similarity": similarity,
        "question": question,
        "refreshed": refreshed,
        "age_ms": age_ms,
        "reason": reason,
        "evidence": evidence,
    })
}

/// Headers of an answer that is complete.
pub(super) fn known(completion: &Completion) -> HeaderMap {
    let verdict = &completion.verdict;
    let mut headers = begun(verdict.level, completion.tier);
    if let Some(similarity) = verdict.similarity {
        headers.extend(value(format!("{similarity:.4}")).map(|value| (SIMILARITY, value)));
    }
    if let Some(entry) = verdict.entry {
        headers.insert(ENTRY, HeaderValue::from(entry.0));
    }
    if let Some(age_ms) = verdict.age_ms {
        headers.insert(header::AGE, HeaderValue::from(age_ms / 1_000));
    }
    let stages = completion.latency.iter().filter(|(_, elapsed_us)| *elapsed_us > 0);
    let millis = |elapsed_us: f64| elapsed_us / 1_000.0;
    let mut timing: Vec<String> =
        stages.map(|(stage, elapsed_us)| format!("{stage};dur={:.3}", millis(f64::from(elapsed_us)))).collect();
    #[expect(clippy::cast_precision_loss, reason = "a time below a century")]
    timing.push(format!("total;dur={:.3}", millis(completion.total_us as f64)));
    headers.extend(value(timing.join(", ")).map(|value| (SERVER_TIMING, value)));
    headers
}

/// Headers of an answer of which only the beginning is known; without a beginning of its own, it is another turn's.
pub(super) fn beginning(beginning: Option<Beginning>, pipeline: &Pipeline) -> HeaderMap {
    match beginning {
        Some(Beginning { level, size, .. }) => begun(level, pipeline.tier_of(size)),
        None => HeaderMap::from_iter([(CACHE, HeaderValue::from_static(CacheLevel::Joined.as_str()))]),
    }
}

fn begun(level: CacheLevel, tier: Tier) -> HeaderMap {
    let values = [(CACHE, level.as_str()), (TIER, tier.as_str())];
    values.map(|(name, value)| (name, HeaderValue::from_static(value))).into_iter().collect()
}

fn value(text: String) -> Option<HeaderValue> {
    HeaderValue::try_from(text).ok()
}

/// The version of an article as an entity tag.
pub(super) fn etag(version: u64) -> HeaderValue {
    HeaderValue::try_from(format!("\"{version}\"")).unwrap_or(HeaderValue::from_static("\"\""))
}
