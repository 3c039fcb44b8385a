//! Dialect: a conversation as the tokens that a checkpoint was trained on.
//!
//! Contract: the chat template alone makes control tokens. It is rendered with a placeholder for each text, and what stands
//! between the placeholders is tokenised as the template's; the texts are tokenised as data, for which no spelling of a
//! control token is one. So no text of a customer or of the knowledge base can close a section of the template, or open one.
//!
//! A model without a template is given the roles as headings.

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use tokenizers::Tokenizer;

use super::prompt::Measure;
use crate::checkpoint::{ChatMessage, ChatTemplate, Checkpoint};
use crate::error::{Cause, ModelError};

/// Around the number of a text in a rendered template: characters for private use, which no template holds.
const OPEN: char = '\u{F8F0}';
const CLOSE: char = '\u{F8F1}';

/// A checkpoint's tokenizer and template.
#[derive(Debug)]
pub(crate) struct Dialect {
    tokenizer: Arc<Tokenizer>,
    /// The same, but for the control tokens.
    plain: Tokenizer,
    control: HashSet<u32>,
    template: Option<ChatTemplate>,
    path: PathBuf,
    begin: Option<u32>,
    /// Tokens around a prompt, and around an exchange.
    around: (usize, usize),
}

impl Dialect {
    /// The dialect of a checkpoint, whose template is taken out of it.
    ///
    /// # Errors
    /// When the template does not take a system message, a question and earlier turns, or the tokenizer is of no use.
    pub(crate) fn of(checkpoint: &mut Checkpoint) -> Result<Self, ModelError> {
        let begin = checkpoint.config.bos;
        Self::new(Arc::clone(&checkpoint.tokenizer), checkpoint.chat.take(), checkpoint.folder.clone(), begin)
    }

    /// As [`of`](Self::of); `begin` is the token that begins a text where there is no template.
    pub(crate) fn new(
        tokenizer: Arc<Tokenizer>,
        template: Option<ChatTemplate>,
        path: PathBuf,
        begin: Option<u32>,
    ) -> Result<Self, ModelError> {
        let plain = without_added(&tokenizer).map_err(|source| ModelError::Parse { path: path.clone(), source })?;
        let control = tokenizer.get_added_tokens_decoder().into_keys().collect();
        let mut dialect = Self { tokenizer, plain, control, template, path, begin, around: (0, 0) };
        let probe = |roles: &[&str]| {
            let message = |role: &&str| ChatMessage { role: (*role).to_owned(), content: String::new() };
            dialect.tokens(&roles.iter().map(message).collect::<Vec<_>>(), SystemTime::UNIX_EPOCH)
        };
        let prompt = probe(&["system", "user"])?.len();
        let longer = probe(&["system", "user", "assistant", "user"])?.len();
        dialect.around = (prompt, longer.saturating_sub(prompt));
        Ok(dialect)
    }

    pub(crate) const fn tokenizer(&self) -> &Arc<Tokenizer> {
        &self.tokenizer
    }

    /// The tokens of a conversation, up to where the model's answer begins. `now` is for templates that tell the date.
    ///
    /// # Errors
    /// When the template refuses the conversation or leaves a part of it out, or a text cannot be tokenised.
    pub(crate) fn tokens(&self, messages: &[ChatMessage], now: SystemTime) -> Result<Vec<u32>, ModelError> {
        let rendered = self.render(messages, now)?;
        let mut used = vec![false; messages.len()];
        let mut parts = rendered.split(OPEN);
        let mut tokens = self.encode(&self.tokenizer, parts.next().unwrap_or_default())?.get_ids().to_vec();
        if self.template.is_none() {
            tokens.splice(0..0, self.begin);
        }
        for part in parts {
            let (number, after) = part.split_once(CLOSE).unwrap_or((part, ""));
            let place = number.parse::<usize>().ok().filter(|&place| place < messages.len());
            let place = place.ok_or_else(|| self.refuse("it changes the texts that it is given"))?;
            used[place] = true;
            tokens.extend(self.data(&messages[place].content)?);
            tokens.extend(self.encode(&self.tokenizer, after)?.get_ids());
        }
        match used.iter().position(|used| !used) {
            None => Ok(tokens),
            Some(place) => Err(self.refuse(&format!("it leaves out what the {} says", messages[place].role))),
        }
    }

    fn render(&self, messages: &[ChatMessage], now: SystemTime) -> Result<String, ModelError> {
        let placeholder = |place: usize| format!("{OPEN}{place}{CLOSE}");
        match &self.template {
            Some(template) => {
                let blank = |(place, message): (usize, &ChatMessage)| ChatMessage {
                    role: message.role.clone(),
                    content: placeholder(place),
                };
                template.render(&messages.iter().enumerate().map(blank).collect::<Vec<_>>(), true, now)
            }
            None => {
                let section =
                    |(place, message): (usize, &ChatMessage)| format!("{}:\n{}\n\n", message.role, placeholder(place));
                Ok(messages.iter().enumerate().map(section).chain(["assistant:\n".to_owned()]).collect())
            }
        }
    }

    /// The tokens of a text that is data: none of them is a control token.
    fn data(&self, text: &str) -> Result<Vec<u32>, ModelError> {
        let encoding = self.encode(&self.plain, text)?;
        let is_control = |id: &u32| self.control.contains(id);
        if !encoding.get_ids().iter().any(is_control) {
            return Ok(encoding.get_ids().to_vec());
        }
        // The model's own vocabulary holds the spelling: it is taken apart.
        let mut tokens = Vec::with_capacity(encoding.len());
        for (id, &(from, to)) in encoding.get_ids().iter().zip(encoding.get_offsets()) {
            if is_control(id) {
                for letter in text.get(from..to).unwrap_or_default().chars() {
                    let letter = self.encode(&self.plain, letter.encode_utf8(&mut [0; 4]))?;
                    tokens.extend(letter.get_ids().iter().filter(|id| !is_control(id)));
                }
            } else {
                tokens.push(*id);
            }
        }
        Ok(tokens)
    }

    fn encode(&self, tokenizer: &Tokenizer, text: &str) -> Result<tokenizers::Encoding, ModelError> {
        tokenizer.encode(text, false).map_err(|source| ModelError::Tokenise { bytes: text.len(), source })
    }

    fn refuse(&self, reason: &str) -> ModelError {
        ModelError::Template { path: self.path.clone(), source: reason.into() }
    }
}

impl Measure for Dialect {
    fn tokens(&self, text: &str) -> Result<usize, ModelError> {
        Ok(self.data(text)?.len())
    }

    fn around_prompt(&self) -> usize {
        self.around.0
    }

    fn around_exchange(&self) -> usize {
        self.around.1
    }
}

fn without_added(tokenizer: &Tokenizer) -> Result<Tokenizer, Cause> {
    let mut json = serde_json::to_value(tokenizer)?;
    json["added_tokens"] = serde_json::Value::Array(Vec::new());
    Tokenizer::from_bytes(serde_json::to_vec(&json)?)
}
