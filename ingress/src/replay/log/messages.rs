//! Conversations of which a record holds all messages: requests of OpenAI's batch interface, and ShareGPT's form.
//!
//! What the user says are the turns of one conversation, in their order and numbered from 1. What others say, a system
//! prompt, recorded answers or tools, is no turn. Neither form tells the time.

use jiff::Timestamp;
use serde::Deserialize;
use serde_json::Value;

use super::Said;
use crate::lines::parse_line;
use crate::object::Object;

/// A message as OpenAI's interfaces write it.
#[derive(Deserialize)]
pub(super) struct Message {
    role: String,
    #[serde(default)]
    content: Value,
}

impl Message {
    pub(super) fn is_from(&self, role: &str) -> bool {
        self.role == role
    }

    /// What it says: a text, or the parts of it that are text; empty when there are none.
    pub(super) fn text(&self) -> String {
        match &self.content {
            Value::String(text) => text.clone(),
            Value::Array(parts) => {
                let texts: Vec<_> = parts.iter().filter_map(|part| part.get("text")?.as_str()).collect();
                texts.join("\n")
            }
            _ => String::new(),
        }
    }
}

#[derive(Deserialize)]
struct BatchRequest {
    custom_id: String,
    body: Object<Body>,
}

#[derive(Deserialize)]
struct Body {
    messages: Vec<Object<Message>>,
}

/// The turns of a request to OpenAI's batch interface.
pub(super) fn parse_openai_batch(text: &str) -> Result<Vec<Said>, String> {
    let request: BatchRequest = parse_line(text)?;
    let said = request.body.messages.iter().filter(|message| message.is_from("user")).map(|message| message.text());
    conversation(&request.custom_id, said)
}

#[derive(Deserialize)]
struct SharedConversation {
    #[serde(default)]
    id: Value,
    conversations: Vec<Object<SharedMessage>>,
}

#[derive(Deserialize)]
struct SharedMessage {
    from: String,
    value: String,
}

/// The turns of a conversation in ShareGPT's form. One without an id is named by its line, and may be empty.
pub(super) fn parse_sharegpt(line: u64, text: &str) -> Result<Vec<Said>, String> {
    let shared: SharedConversation = parse_line(text)?;
    let id = name(&shared.id).unwrap_or_else(|| format!("line-{line}"));
    if shared.conversations.is_empty() {
        return Ok(Vec::new());
    }
    let messages = shared.conversations.into_iter().map(|Object(message)| message);
    let of_human = |message: &SharedMessage| matches!(message.from.as_str(), "human" | "user");
    conversation(&id, messages.filter(of_human).map(|message| message.value))
}

/// An id that is a text or a number.
pub(super) fn name(id: &Value) -> Option<String> {
    match id {
        Value::String(id) => Some(id.clone()),
        Value::Number(id) => Some(id.to_string()),
        _ => None,
    }
}

fn conversation(id: &str, said: impl Iterator<Item = String>) -> Result<Vec<Said>, String> {
    let turn = |(turn, text)| Said::plain(id.to_owned(), turn, Timestamp::UNIX_EPOCH, text);
    let turns: Vec<_> = (1..).zip(said).map(turn).collect();
    if turns.is_empty() { Err("no message of a user".to_owned()) } else { Ok(turns) }
}
