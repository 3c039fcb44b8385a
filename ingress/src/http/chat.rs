//! `POST /v1/chat/completions`: what a client may ask, and what of it is the turn.
//!
//! The last message is the question, those before it are the history of the conversation. What Turnflow cannot do is refused
//! with the name of the field. What only tunes how a model writes is passed over, because an answer may come from a cache that many
//! share: so do other servers with what their models do not know.

use std::time::Duration;

use axum::http::HeaderMap;
use serde::Deserialize;
use serde_json::{Value, json};
use turnflow_pipeline::{Config, Submission, SystemMessages, Wishes};
use turnflow_state::{Channel, ConversationId, Exchange, TenantId, Turn, TurnId};

use super::cache;
use super::error::ApiError;
use super::models::tier_of;
use super::receive::header_text;
use crate::door::{OWN_CONVERSATION, conversation, now_ms, text};
use crate::object::Object;

/// Names the conversation, where the body does not.
pub(super) const CONVERSATION: &str = "x-conversation-id";
/// Names the turn: the same again gets the same answer.
const IDEMPOTENCY_KEY: &str = "idempotency-key";

/// The body of a request. Fields that are not here are passed over.
#[derive(Debug, Deserialize)]
pub(super) struct ChatRequest {
    pub(super) model: String,
    messages: Vec<Object<Message>>,
    #[serde(default)]
    stream: Option<bool>,
    #[serde(default)]
    stream_options: Option<Object<StreamOptions>>,
    /// The conversation; without one, a request is its own.
    #[serde(default)]
    conversation: Option<String>,
    /// Where the turn came from.
    #[serde(default)]
    channel: Option<String>,
    /// When the answer has to be complete, in milliseconds from now.
    #[serde(default)]
    deadline_ms: Option<u64>,
    // What a request must not ask, but may say that it does not.
    #[serde(default)]
    tools: Unasked,
    #[serde(default)]
    tool_choice: Unasked,
    #[serde(default)]
    functions: Unasked,
    #[serde(default)]
    function_call: Unasked,
    #[serde(default)]
    n: Unasked,
    #[serde(default)]
    response_format: Unasked,
    #[serde(default)]
    logprobs: Unasked,
    #[serde(default)]
    top_logprobs: Unasked,
    #[serde(default)]
    logit_bias: Unasked,
    #[serde(default)]
    stop: Unasked,
    #[serde(default)]
    modalities: Unasked,
    #[serde(default)]
    audio: Unasked,
    #[serde(default)]
    web_search_options: Unasked,
}

/// What a field says that is seldom there: small where it is not.
type Unasked = Option<Box<Value>>;

#[derive(Debug, Default, Deserialize)]
struct StreamOptions {
    #[serde(default)]
    include_usage: Option<bool>,
}

#[derive(Debug, Deserialize)]
struct Message {
    role: String,
    #[serde(default)]
    content: Value,
    #[serde(default)]
    tool_calls: Value,
}

impl ChatRequest {
    /// Refuses what is not done.
    fn check(&self) -> Result<(), ApiError> {
        // A field, the values of it that ask for nothing, and why it may have no other.
        let fields: [(_, _, fn() -> Value, _); 13] = [
            ("tools", &self.tools, || json!([[]]), "tools are not called"),
            ("tool_choice", &self.tool_choice, || json!(["none", "auto"]), "tools are not called"),
            ("functions", &self.functions, || json!([[]]), "functions are not called"),
            ("function_call", &self.function_call, || json!(["none", "auto"]), "functions are not called"),
            ("n", &self.n, || json!([1]), "there is one answer, so only 1 is taken"),
            ("response_format", &self.response_format, || json!([{ "type": "text" }]), "answers are text"),
            ("logprobs", &self.logprobs, || json!([false]), "probabilities are not told"),
            ("top_logprobs", &self.top_logprobs, || json!([0]), "probabilities are not told"),
            ("logit_bias", &self.logit_bias, || json!([{}]), "tokens are not biased"),
            ("stop", &self.stop, || json!([[]]), "an answer is not cut off at words of the caller's"),
            ("modalities", &self.modalities, || json!([["text"]]), "answers are text"),
            ("audio", &self.audio, || json!([]), "answers are text"),
            ("web_search_options", &self.web_search_options, || json!([]), "answers come from the knowledge base"),
        ];
        let is_harmless = |value: &Unasked, harmless: fn() -> Value| {
            let is_among = |value: &Value| harmless().as_array().is_some_and(|values| values.contains(value));
            value.as_deref().is_none_or(is_among)
        };
        match fields.into_iter().find(|(_, value, harmless, _)| !is_harmless(value, *harmless)) {
            Some((name, _, _, message)) => Err(ApiError::unsupported(name, message)),
            None => Ok(()),
        }
    }
}

/// What a request asks.
pub(super) struct Asked {
    pub(super) submission: Submission,
    pub(super) model: String,
    /// Whether the answer is to be streamed.
    pub(super) stream: bool,
    /// Whether the stream is to tell the usage at its end.
    pub(super) include_usage: bool,
}

impl Asked {
    /// Checks a request. `turn_id` is the name that its turn gets when the client gives it none.
    pub(super) fn read(
        tenant: TenantId,
        headers: &HeaderMap,
        request: ChatRequest,
        config: &Config,
        encoder: &str,
        turn_id: String,
    ) -> Result<Self, ApiError> {
        request.check()?;
        let size = tier_of(&request.model, config, encoder)?;
        let stream = request.stream.unwrap_or_default();
        if request.stream_options.is_some() && !stream {
            return Err(ApiError::invalid("stream_options", "only for a stream"));
        }
        let (told, question) = said(&request.messages, config)?;
        let (cache_control, wishes) = cache::control(headers)?;
        let key = header_text(headers, IDEMPOTENCY_KEY)?;
        let conversation = match (&request.conversation, header_text(headers, CONVERSATION)?) {
            (Some(named), _) => conversation("conversation", named)?,
            (None, Some(named)) => conversation(CONVERSATION, named)?,
            // A request without a conversation is its own, which no conversation with a name can be. Another request that comes with the
            // same key, as short ones do, is another.
            (None, None) => {
                let own = match key {
                    Some(key) => format!("{OWN_CONVERSATION}{key}:{}", digest(&told, &question)),
                    None => format!("{OWN_CONVERSATION}{turn_id}"),
                };
                ConversationId::new(own).map_err(|error| ApiError::invalid(IDEMPOTENCY_KEY, error))?
            }
        };
        let turn_id = key.map_or(turn_id, str::to_owned);
        let channel = request.channel.map_or(Ok(Channel::Api), |name| name.parse());
        let turn = Turn {
            tenant,
            conversation,
            id: TurnId::new(turn_id).map_err(|error| ApiError::invalid(IDEMPOTENCY_KEY, error))?,
            channel: channel.map_err(|error| ApiError::invalid("channel", error))?,
            text: question,
            at_ms: now_ms(),
            cache_control,
        };
        let time_max = request.deadline_ms.map(Duration::from_millis);
        let wishes = Wishes { size, ..wishes };
        let include_usage = request.stream_options.and_then(|options| options.include_usage).unwrap_or_default();
        Ok(Self {
            submission: Submission { turn, time_max, told, wishes },
            model: request.model,
            stream,
            include_usage,
        })
    }
}

/// What tells a question and its history from others.
fn digest(told: &[Exchange], question: &str) -> String {
    let mut hasher = blake3::Hasher::new();
    for text in
        told.iter().flat_map(|exchange| [&exchange.question, &exchange.answer]).map(String::as_str).chain([question])
    {
        hasher.update(&text.len().to_le_bytes()).update(text.as_bytes());
    }
    hasher.finalize().to_hex()[..16].to_owned()
}

/// What was said before, and the question.
fn said(messages: &[Object<Message>], config: &Config) -> Result<(Vec<Exchange>, String), ApiError> {
    let Some((last, before)) = messages.split_last() else {
        return Err(ApiError::invalid("messages", "there is none"));
    };
    let at = before.len();
    let field = format!("messages[{at}]");
    if last.role != "user" {
        return Err(ApiError::invalid(format!("{field}.role"), "the last message has to be the user's"));
    }
    let bytes_max = config.limits.text_bytes_max;
    let question = text(&format!("{field}.content"), content(&field, &last.content)?, bytes_max)?;
    let mut told: Vec<Exchange> = Vec::new();
    for (number, message) in before.iter().enumerate() {
        let field = format!("messages[{number}]");
        match message.role.as_str() {
            "system" | "developer" if config.http.system_messages == SystemMessages::Ignore => {}
            "system" | "developer" => {
                let message = "what answers are to be like is a setting of the server";
                return Err(ApiError::unsupported(&format!("{field}.role"), message));
            }
            "user" => {
                told.push(Exchange { question: content(&field, &message.content)?, answer: String::new() });
            }
            "assistant" if message.tool_calls.as_array().is_some_and(|calls| !calls.is_empty()) => {
                return Err(ApiError::unsupported(&format!("{field}.tool_calls"), "tools are not called"));
            }
            "assistant" => {
                let said = content(&field, &message.content)?;
                // A greeting before the first question is of no consequence.
                let Some(exchange) = told.last_mut() else { continue };
                if !exchange.answer.is_empty() {
                    exchange.answer.push('\n');
                }
                exchange.answer.push_str(&said);
            }
            "tool" | "function" => {
                return Err(ApiError::unsupported(&format!("{field}.role"), "tools are not called"));
            }
            role => {
                let message = format!("unknown value {role:?}, expected one of system, developer, user, assistant");
                return Err(ApiError::invalid(format!("{field}.role"), message));
            }
        }
    }
    // Older ones would not be used.
    told.drain(..told.len().saturating_sub(config.conversation.history_turns_max));
    let too_long = |said: &String| said.len() > bytes_max;
    if told.iter().any(|exchange| too_long(&exchange.question) || too_long(&exchange.answer)) {
        let message = format!("one of the last messages before the question has more than {bytes_max} bytes");
        return Err(ApiError::invalid("messages", message));
    }
    Ok((told, question))
}

/// The text of a message: as it is, or in parts.
fn content(field: &str, content: &Value) -> Result<String, ApiError> {
    match content {
        Value::String(text) => Ok(text.clone()),
        Value::Null => Ok(String::new()),
        Value::Array(parts) => {
            let part = |(at, part): (usize, &Value)| match (&part["type"], &part["text"]) {
                (Value::String(kind), Value::String(text)) if kind == "text" => Ok(text.clone()),
                (Value::String(kind), _) if kind != "text" => Err(ApiError::unsupported(
                    &format!("{field}.content[{at}].type"),
                    format!("{kind:?}, only text is read"),
                )),
                _ => Err(ApiError::invalid(
                    format!("{field}.content[{at}]"),
                    "a part with a type and a text is expected",
                )),
            };
            let texts: Vec<String> = parts.iter().enumerate().map(part).collect::<Result<_, _>>()?;
            Ok(texts.join("\n"))
        }
        _ => Err(ApiError::invalid(format!("{field}.content"), "a text, or a list of parts is expected")),
    }
}

#[cfg(test)]
mod tests {
    use turnflow_models::MODEL_NAME;
    use turnflow_state::CacheControl;

    use super::*;

    fn read(body: Value, headers: &[(&'static str, &str)]) -> Result<Asked, ApiError> {
        let tenant = TenantId::new("t").expect("valid id");
        let headers = headers
            .iter()
            .map(|(name, value)| (axum::http::HeaderName::from_static(name), value.parse().expect("a header")));
        let request = serde_json::from_value(body).expect("the shape of a request");
        Asked::read(tenant, &headers.collect(), request, &Config::defaults(), MODEL_NAME, "fresh".to_owned())
    }

    fn with(fields: Value) -> Value {
        let mut body = json!({ "model": "turnflow", "messages": [{ "role": "user", "content": "Hi?" }] });
        let Value::Object(fields) = fields else { panic!("fields") };
        body.as_object_mut().expect("an object").extend(fields);
        body
    }

    #[test]
    fn what_cannot_be_done_is_refused_by_name() {
        let check = |fields: Value, expected: Option<&str>| {
            let refused = read(with(fields.clone()), &[]).err();
            assert_eq!(refused.and_then(|error| error.param).as_deref(), expected, "{fields}");
        };
        check(json!({ "temperature": 0.2, "top_p": 1, "user": "u", "seed": 1, "max_tokens": 9, "store": true }), None);
        check(json!({ "tools": [], "tool_choice": "none", "n": 1, "stop": null, "logprobs": false }), None);
        check(json!({ "response_format": { "type": "text" }, "modalities": ["text"], "logit_bias": {} }), None);
        check(json!({ "tools": [{ "type": "function" }] }), Some("tools"));
        check(json!({ "tool_choice": "required" }), Some("tool_choice"));
        check(json!({ "n": 2 }), Some("n"));
        check(json!({ "response_format": { "type": "json_object" } }), Some("response_format"));
        check(json!({ "logprobs": true }), Some("logprobs"));
        check(json!({ "stop": "\n" }), Some("stop"));
        check(json!({ "audio": {} }), Some("audio"));
        check(json!({ "stream_options": { "include_usage": true } }), Some("stream_options"));
        check(json!({ "channel": "fax" }), Some("channel"));
        check(json!({ "conversation": "" }), Some("conversation"));
        check(json!({ "conversation": "request:k" }), Some("conversation"));
        check(json!({ "model": "gpt-4o" }), None);
        check(json!({ "model": MODEL_NAME }), Some("model"));
    }

    #[test]
    fn messages_are_a_history_and_a_question() {
        let said = |messages: Value| {
            let asked = read(with(json!({ "messages": messages })), &[]);
            asked.map(|Asked { submission, .. }| {
                let told =
                    submission.told.into_iter().map(|Exchange { question, answer }| (question, answer)).collect();
                (told, submission.turn.text)
            })
        };
        let check = |messages: Value, told: &[(&str, &str)], question: &str| {
            let found: (Vec<(String, String)>, String) = said(messages).expect("valid");
            let told: Vec<_> = told.iter().map(|&(q, a)| (q.to_owned(), a.to_owned())).collect();
            assert_eq!(found, (told, question.to_owned()));
        };
        let (user, assistant) = (
            |text: &str| json!({ "role": "user", "content": text }),
            |text: &str| json!({ "role": "assistant", "content": text }),
        );
        check(json!([user("a?")]), &[], "a?");
        check(
            json!([{ "role": "system", "content": "Be kind." }, assistant("Hello!"), user("a?"), assistant("b."), assistant("c."), user("d?")]),
            &[("a?", "b.\nc.")],
            "d?",
        );
        check(json!([user("a?"), user("b?")]), &[("a?", "")], "b?");
        let parts =
            json!({ "role": "user", "content": [{ "type": "text", "text": "a" }, { "type": "text", "text": "b" }] });
        check(json!([parts]), &[], "a\nb");
        let long: Vec<Value> =
            (0..9).flat_map(|n| [user(&format!("q{n}")), assistant("a")]).chain([user("z")]).collect();
        check(json!(long), &[("q5", "a"), ("q6", "a"), ("q7", "a"), ("q8", "a")], "z");

        let refused = |messages: Value, param: &str| {
            assert_eq!(said(messages).expect_err("refused").param.as_deref(), Some(param));
        };
        refused(json!([]), "messages");
        refused(json!([user("a"), assistant("b")]), "messages[1].role");
        refused(json!([user(" ")]), "messages[0].content");
        refused(json!([{ "role": "user", "content": 3 }]), "messages[0].content");
        refused(json!([{ "role": "user", "content": [{ "type": "image_url" }] }]), "messages[0].content[0].type");
        refused(json!([{ "role": "tool", "content": "x" }, user("a")]), "messages[0].role");
        refused(json!([{ "role": "bard", "content": "x" }, user("a")]), "messages[0].role");
        let calls = json!({ "role": "assistant", "tool_calls": [{}] });
        refused(json!([user("a"), calls, user("b")]), "messages[1].tool_calls");
        refused(json!([user(&"x".repeat(9_000)), assistant("b"), user("c")]), "messages");
    }

    #[test]
    fn a_conversation_has_a_name_or_is_the_requests_own() {
        let check = |fields: Value, headers: &[(&'static str, &str)], conversation: &str, turn: &str| {
            let found = read(with(fields), headers).expect("valid").submission.turn;
            assert_eq!((found.conversation.as_str(), found.id.as_str()), (conversation, turn));
        };
        check(json!({}), &[], "request:fresh", "fresh");
        check(json!({ "conversation": "c" }), &[(CONVERSATION, "d")], "c", "fresh");
        check(json!({}), &[(CONVERSATION, "d"), (IDEMPOTENCY_KEY, "k")], "d", "k");
        let own = |question: &str| {
            let messages = json!([{ "role": "user", "content": question }]);
            let asked = read(with(json!({ "messages": messages })), &[(IDEMPOTENCY_KEY, "k")]).expect("valid");
            (asked.submission.turn.conversation.to_string(), asked.submission.turn.id.to_string())
        };
        assert!(own("Hi?").0.starts_with("request:k:") && own("Hi?").1 == "k");
        assert!(own("Hi?") == own("Hi?") && own("Hi?").0 != own("Ho?").0, "the same key for something else");
        let asked = read(with(json!({ "deadline_ms": 5, "channel": "voice" })), &[("cache-control", "no-store")]);
        let submission = asked.expect("valid").submission;
        assert_eq!(submission.time_max, Some(Duration::from_millis(5)));
        assert_eq!((submission.turn.channel, submission.turn.cache_control), (Channel::Voice, CacheControl::ReadOnly));
    }
}
