//! The chat-completions protocol: what is sent, and what the events of an answer mean.
//!
//! Contract: a [`Transcript`] takes the data of each event in order, hands out each piece of text, and at the end says
//! what the answer is. It believes nothing: an error in the stream, a refusal, an answer without an end or without text are
//! told apart, and a usage that is missing or makes no sense is replaced by an estimate. Only the first choice counts. The key is in
//! no fault, and in no text, however it is cut into pieces, unless it is so short that it may be there by chance.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use turnflow_state::Usage;

use super::fault::RemoteFault;
use crate::checkpoint::ChatMessage;
use crate::secret::{Redactor, Secret};

/// Longest part of a server's words that an error tells, in characters.
pub(crate) const WORDS_MAX: usize = 300;
/// Bytes of a token in an estimate: about right for English and the usual vocabularies.
const TOKEN_BYTES: usize = 4;

/// The name of the field that bounds an answer: servers differ.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LimitField {
    /// `max_tokens`, which nearly all servers know.
    #[default]
    MaxTokens,
    /// `max_completion_tokens`, which OpenAI wants for its newer models.
    MaxCompletionTokens,
}

/// A request's body.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Body<'a> {
    pub(crate) model: &'a str,
    pub(crate) messages: &'a [ChatMessage],
    pub(crate) stream: bool,
    pub(crate) stream_options: StreamOptions,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) max_tokens: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) max_completion_tokens: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) temperature: Option<f32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) top_p: Option<f32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) seed: Option<u64>,
}

#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct StreamOptions {
    pub(crate) include_usage: bool,
}

/// How an answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Finish {
    /// The model came to an end.
    Complete,
    /// The bound on tokens cut it off.
    Length,
    /// The model declined to answer; the text says so.
    Refused,
}

/// A whole answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Reply {
    pub(crate) text: String,
    pub(crate) finish: Finish,
    pub(crate) usage: Usage,
    /// Whether the server told no usage, so that it is estimated from the texts' lengths.
    pub(crate) usage_is_estimate: bool,
}

/// What an event meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Seen {
    /// The model is at work: a piece of the answer, or of its reasoning, which is not shown.
    Token,
    /// Nothing that a customer waits for.
    Other,
    /// The server says that nothing follows.
    End,
}

#[derive(Deserialize)]
struct Event {
    choices: Option<Vec<Choice>>,
    usage: Option<Value>,
    error: Option<Value>,
}

#[derive(Deserialize)]
struct Choice {
    #[serde(default)]
    index: u64,
    delta: Option<Delta>,
    finish_reason: Option<String>,
}

#[derive(Deserialize)]
struct Delta {
    content: Option<String>,
    refusal: Option<String>,
    // Servers differ in the name, and some send both.
    reasoning: Option<Value>,
    reasoning_content: Option<Value>,
}

/// An answer while it comes in.
#[derive(Default)]
pub(crate) struct Transcript<'a> {
    key: Option<&'a Secret>,
    redactor: Redactor<'a>,
    text: String,
    is_refusal: bool,
    finish_reason: Option<String>,
    usage: Option<Usage>,
}

impl<'a> Transcript<'a> {
    /// Nothing yet, from a server that was sent this key.
    pub(crate) fn new(key: Option<&'a Secret>) -> Self {
        Self { key, redactor: Redactor::new(key), ..Self::default() }
    }

    /// Takes the data of the next event.
    ///
    /// # Errors
    /// [`RemoteFault::Reported`] or [`RemoteFault::Protocol`].
    pub(crate) fn take(&mut self, data: &[u8], on_delta: &mut dyn FnMut(String)) -> Result<Seen, RemoteFault> {
        if data.trim_ascii() == b"[DONE]" {
            return Ok(Seen::End);
        }
        let event: Event = serde_json::from_slice(data).map_err(|error| RemoteFault::Protocol {
            reason: format!("an event is {}: {}", self.told(&plain(data)), self.told(&error.to_string())),
        })?;
        if let Some(error) = event.error.filter(|error| !error.is_null()) {
            return Err(RemoteFault::Reported { message: words_of(&error, self.key) });
        }
        if let Some(usage) = event.usage.as_ref().and_then(usage_of) {
            self.usage = Some(usage);
        }
        let mut seen = Seen::Other;
        for choice in event.choices.into_iter().flatten().filter(|choice| choice.index == 0) {
            self.finish_reason = choice.finish_reason.or(self.finish_reason.take());
            let Some(delta) = choice.delta else { continue };
            let refusal = delta.refusal.filter(|text| !text.is_empty());
            self.is_refusal |= refusal.is_some();
            if [&delta.reasoning, &delta.reasoning_content].into_iter().flatten().any(says_something) {
                seen = Seen::Token;
            }
            for piece in [delta.content.filter(|text| !text.is_empty()), refusal].into_iter().flatten() {
                let piece = self.redactor.push(piece);
                self.tell(piece, on_delta);
                seen = Seen::Token;
            }
        }
        Ok(seen)
    }

    fn tell(&mut self, piece: String, on_delta: &mut dyn FnMut(String)) {
        if !piece.is_empty() {
            self.text.push_str(&piece);
            on_delta(piece);
        }
    }

    /// Whether the server has said why the answer ends, so that it is whole even without an end mark.
    pub(crate) const fn is_finished(&self) -> bool {
        self.finish_reason.is_some()
    }

    /// The answer to a request with a prompt of so many bytes. Hands out the last piece, if one was held back.
    ///
    /// # Errors
    /// [`RemoteFault::Withheld`], or [`RemoteFault::Reported`] when the server gave up.
    pub(crate) fn end(mut self, prompt_bytes: usize, on_delta: &mut dyn FnMut(String)) -> Result<Reply, RemoteFault> {
        let reason = self.finish_reason.take();
        let reason = reason.as_deref().unwrap_or("stop");
        if matches!(reason, "abort" | "error") {
            return Err(RemoteFault::Reported { message: format!("it ended with the finish reason {reason}") });
        }
        if reason == "content_filter" {
            return Err(RemoteFault::Withheld { reason: "the server's content filter stopped it".to_owned() });
        }
        let last = self.redactor.finish();
        self.tell(last, on_delta);
        if self.text.trim().is_empty() {
            let reason = format!("it is empty, with the finish reason {}", self.told(reason));
            return Err(RemoteFault::Withheld { reason });
        }
        let finish = match reason {
            _ if self.is_refusal => Finish::Refused,
            "length" => Finish::Length,
            _ => Finish::Complete,
        };
        let tokens = |bytes| u32::try_from(tokens_of(bytes)).unwrap_or(u32::MAX);
        let estimate = || Usage { input_tokens: tokens(prompt_bytes), output_tokens: tokens(self.text.len()) };
        let usage_is_estimate = self.usage.is_none();
        Ok(Reply { usage: self.usage.unwrap_or_else(estimate), text: self.text, finish, usage_is_estimate })
    }

    fn told(&self, words: &str) -> String {
        told(words, self.key)
    }
}

/// Whether there is a piece of reasoning in its field.
fn says_something(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::String(text) => !text.is_empty(),
        Value::Array(items) => !items.is_empty(),
        _ => true,
    }
}

/// Usage as the server counts it; None where it makes no sense. An answer has at least one token of each kind.
fn usage_of(value: &Value) -> Option<Usage> {
    let count =
        |field| value.get(field)?.as_u64().and_then(|count| u32::try_from(count).ok()).filter(|count| *count > 0);
    Some(Usage { input_tokens: count("prompt_tokens")?, output_tokens: count("completion_tokens")? })
}

/// Tokens of a text of so many bytes: an estimate.
pub(crate) const fn tokens_of(bytes: usize) -> usize {
    bytes.div_ceil(TOKEN_BYTES)
}

/// What an error object, or a body that holds one, says.
fn words_of(value: &Value, key: Option<&Secret>) -> String {
    let error = value.get("error").filter(|error| !error.is_null()).unwrap_or(value);
    let message = error.get("message").or_else(|| value.get("message")).or_else(|| value.get("detail"));
    let text = message.unwrap_or(error);
    told(&text.as_str().map_or_else(|| text.to_string(), str::to_owned), key)
}

/// The body of an error, or as much of it as came.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ErrorBody<'a> {
    pub(crate) bytes: &'a [u8],
    /// Whether there is more of it.
    pub(crate) is_cut: bool,
}

impl ErrorBody<'_> {
    /// What it says; `fallback` where it says nothing.
    pub(crate) fn words(self, fallback: Option<&'static str>, key: Option<&Secret>) -> String {
        if let Ok(value) = serde_json::from_slice(self.bytes) {
            return words_of(&value, key);
        }
        let text = String::from_utf8_lossy(self.bytes);
        let text = match key {
            Some(key) if self.is_cut => key.redact_cut(&text),
            Some(key) => key.redact(&text),
            None => text.into_owned(),
        };
        if text.trim().is_empty() { fallback.unwrap_or("no words").to_owned() } else { shortened(&text) }
    }
}

/// Data as a text in which nothing is hidden by the escapes of JSON.
fn plain(data: &[u8]) -> String {
    serde_json::from_slice(data)
        .map_or_else(|_| String::from_utf8_lossy(data).into_owned(), |value: Value| value.to_string())
}

/// A server's words without the key, on one line, shortened: in this order, because of half a key nobody could tell.
pub(crate) fn told(words: &str, key: Option<&Secret>) -> String {
    key.map_or_else(|| shortened(words), |key| shortened(&key.redact(words)))
}

/// Words on one line, shortened.
fn shortened(text: &str) -> String {
    let mut words = text.split_whitespace().collect::<Vec<_>>().join(" ").replace(char::is_control, "?");
    if let Some((cut, _)) = words.char_indices().nth(WORDS_MAX) {
        words.truncate(cut);
        words.push('…');
    }
    words
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(events: &[Value]) -> Result<(Reply, Vec<String>), RemoteFault> {
        let mut transcript = Transcript::default();
        let mut pieces = Vec::new();
        for event in events {
            transcript.take(event.to_string().as_bytes(), &mut |piece| pieces.push(piece))?;
        }
        let reply = transcript.end(40, &mut |piece| pieces.push(piece))?;
        assert_eq!(pieces.concat(), reply.text);
        Ok((reply, pieces))
    }

    fn delta(delta: &Value) -> Value {
        json!({"id": "x", "object": "chat.completion.chunk", "choices": [{"index": 0, "delta": delta}]})
    }

    fn finish(reason: &str) -> Value {
        json!({"choices": [{"index": 0, "delta": {}, "finish_reason": reason}]})
    }

    #[test]
    fn an_answer_with_its_usage() {
        let events = [
            delta(&json!({"role": "assistant", "content": ""})),
            delta(&json!({"content": "Within ", "refusal": null})),
            json!({"choices": [{"index": 1, "delta": {"content": "another choice"}}]}),
            delta(&json!({"content": "30 days."})),
            finish("stop"),
            json!({"choices": [], "usage": {"prompt_tokens": 12, "completion_tokens": 5, "total_tokens": 17}}),
        ];
        let (reply, pieces) = read(&events).expect("an answer");
        assert_eq!(pieces, ["Within ", "30 days."]);
        let usage = Usage { input_tokens: 12, output_tokens: 5 };
        let text = "Within 30 days.".to_owned();
        assert_eq!(reply, Reply { text, finish: Finish::Complete, usage, usage_is_estimate: false });
    }

    #[test]
    fn a_usage_that_makes_no_sense_is_estimated() {
        let answer = delta(&json!({"content": "Yes, twelve."}));
        for usage in [
            json!(null),
            json!({}),
            json!("many"),
            json!({"prompt_tokens": 12}),
            json!({"prompt_tokens": 0, "completion_tokens": 0}),
            json!({"prompt_tokens": -1, "completion_tokens": 5}),
            json!({"prompt_tokens": 1e30, "completion_tokens": 5}),
            json!({"prompt_tokens": 99_999_999_999_u64, "completion_tokens": 5}),
        ] {
            let (reply, _) = read(&[answer.clone(), json!({"choices": [], "usage": usage})]).expect("an answer");
            let estimate = Usage { input_tokens: 10, output_tokens: 3 };
            assert_eq!((reply.usage, reply.usage_is_estimate), (estimate, true), "{usage}");
        }
    }

    #[test]
    fn how_answers_end() {
        let check = |events: &[Value], expected: Result<Finish, &str>| {
            let found = read(events).map(|(reply, _)| reply.finish).map_err(|fault| fault.to_string());
            assert_eq!(found, expected.map_err(str::to_owned), "{events:?}");
        };
        let text = delta(&json!({"content": "Yes."}));
        check(std::slice::from_ref(&text), Ok(Finish::Complete));
        check(&[text.clone(), finish("length")], Ok(Finish::Length));
        check(&[text.clone(), finish("eos")], Ok(Finish::Complete));
        check(&[delta(&json!({"refusal": "I can't help with that."})), finish("stop")], Ok(Finish::Refused));
        check(&[text.clone(), finish("content_filter")], Err("no answer: the server's content filter stopped it"));
        for reason in ["abort", "error"] {
            let told = format!("the server reports an error: it ended with the finish reason {reason}");
            check(&[text.clone(), finish(reason)], Err(&told));
        }
        check(&[finish("tool_calls")], Err("no answer: it is empty, with the finish reason tool_calls"));
        check(
            &[delta(&json!({"content": " \n"})), finish("length")],
            Err("no answer: it is empty, with the finish reason length"),
        );
        check(
            &[text.clone(), json!({"error": {"message": "out of\nmemory"}})],
            Err("the server reports an error: out of memory"),
        );
        check(&[json!({"error": "overloaded"})], Err("the server reports an error: overloaded"));
        check(&[json!({"error": {"code": 7}})], Err("the server reports an error: {\"code\":7}"));
    }

    #[test]
    fn what_each_event_means() {
        let mut transcript = Transcript::default();
        let mut see = |data: &str| transcript.take(data.as_bytes(), &mut |_| {});
        assert_eq!(see(r#"{"choices": [{"delta": {"role": "assistant", "content": ""}}]}"#), Ok(Seen::Other));
        assert_eq!(see(r#"{"choices": [{"delta": {"reasoning_content": "Hm"}}]}"#), Ok(Seen::Token));
        assert_eq!(see(r#"{"choices": [{"delta": {"reasoning": "Hm", "content": null}}]}"#), Ok(Seen::Token));
        let both = r#"{"choices": [{"delta": {"reasoning": "Hm", "reasoning_content": "Hm", "content": ""}}]}"#;
        assert_eq!(see(both), Ok(Seen::Token));
        let neither = r#"{"choices": [{"delta": {"reasoning": [], "reasoning_content": "", "content": ""}}]}"#;
        assert_eq!(see(neither), Ok(Seen::Other));
        assert_eq!(see(r#"{"choices": [{"delta": {"content": "A"}, "finish_reason": null}]}"#), Ok(Seen::Token));
        assert_eq!(see(r#"{"choices": null, "error": null}"#), Ok(Seen::Other));
        assert_eq!(see(" [DONE] "), Ok(Seen::End));
        for rubbish in ["", "rubbish", "[1]", "{\"choices\": 7}", "{\"choices\": [{\"delta\": {\"content\": [1]}}]}"] {
            assert!(matches!(see(rubbish), Err(RemoteFault::Protocol { .. })), "{rubbish:?}");
        }
    }

    #[test]
    fn words_of_a_server() {
        for (value, expected) in [
            (json!({"error": {"message": "no such model", "type": "x"}}), "no such model"),
            (json!({"message": "no such model", "code": 404}), "no such model"),
            (json!({"detail": "Not Found"}), "Not Found"),
            (json!({"error": "bad"}), "bad"),
            (json!("plain\u{7}"), "plain?"),
        ] {
            assert_eq!(words_of(&value, None), expected);
        }
        assert_eq!(shortened(&"ü".repeat(1000)).chars().count(), WORDS_MAX + 1);
    }

    fn key(text: &str) -> Secret {
        let file = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(file.path(), text).expect("written");
        Secret::from_file(file.path()).expect("a key")
    }

    #[test]
    fn the_key_is_in_no_words() {
        let key = key("sk-0123456789");
        let words = |bytes: &str, is_cut| ErrorBody { bytes: bytes.as_bytes(), is_cut }.words(Some("Bad"), Some(&key));
        assert_eq!(words(r#"{"error": "key sk\u002d0123456789"}"#, false), "key [secret]", "hidden by JSON");
        assert_eq!(words("key sk-0123456789", false), "key [secret]");
        assert_eq!(words("key sk-01234", true), "key");
        assert_eq!(words("sk-01234", true), "Bad");
        let at_the_end = format!("{}sk-0123456789", "x".repeat(WORDS_MAX - 4));
        assert!(!words(&at_the_end, false).contains("sk-"), "shortened within the key");
        let mut transcript = Transcript::new(Some(&key));
        let mut take = |data: &str| transcript.take(data.as_bytes(), &mut |_| {}).expect_err(data).to_string();
        for rubbish in [r#"{"choices": "sk\u002d0123456789"}"#, r#"{"error": "sk\u002d0123456789"}"#, "sk-0123456789"] {
            let told = take(rubbish);
            assert!(told.contains("[secret]") && !told.contains("0123456789"), "{told}");
        }
    }

    #[test]
    fn a_dummy_key_leaves_answers_alone() {
        for dummy in ["x", "none", "null"] {
            let key = key(dummy);
            let mut transcript = Transcript::new(Some(&key));
            let event =
                json!({"choices": [{"index": 0, "delta": {"content": format!("{dummy} extra"), "refusal": null}}]});
            let mut pieces = Vec::new();
            let seen = transcript.take(event.to_string().as_bytes(), &mut |piece| pieces.push(piece));
            assert_eq!((seen, pieces), (Ok(Seen::Token), vec![format!("{dummy} extra")]));
        }
        let key = key("sk-0123456789");
        let mut transcript = Transcript::new(Some(&key));
        let event = r#"{"choices": [{"delta": {"content": "It is sk\u002d0123456789."}}]}"#;
        transcript.take(event.as_bytes(), &mut |piece| assert_eq!(piece, "It is [secret].")).expect("a token");
    }

    #[test]
    fn what_is_sent() {
        let messages = [ChatMessage { role: "user".to_owned(), content: "Hi".to_owned() }];
        let body = Body {
            model: "m",
            messages: &messages,
            stream: true,
            stream_options: StreamOptions { include_usage: true },
            max_tokens: Some(7),
            max_completion_tokens: None,
            temperature: Some(0.2),
            top_p: None,
            seed: None,
        };
        assert_eq!(
            serde_json::to_string(&body).expect("JSON"),
            r#"{"model":"m","messages":[{"role":"user","content":"Hi"}],"stream":true,"stream_options":{"include_usage":true},"max_tokens":7,"temperature":0.2}"#
        );
    }
}
