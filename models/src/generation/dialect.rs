//! Dialect: a conversation as the tokens that a checkpoint was trained on.
//!
//! Contract: the chat template alone makes control tokens. It is rendered with a placeholder for each text, and what stands
//! between the placeholders is tokenised as the template's; the texts are tokenised as data, for which no spelling of a
//! control token is one. So no text of a customer or of the knowledge base can close a section of the template, or open one.
//!
//! A text begins as the tokenizer begins what follows other text: what SentencePiece's tokenizers put before each text they are
//! given is put only where the rendered conversation, tokenised whole, has it.
//!
//! A template that takes no system message is given what it says before the first question. A model without a template is
//! given the roles as headings, and each line of a text with a space before it, so that none of them is a heading.

use std::borrow::Cow;
use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use serde_json::Value;
use tokenizers::{NormalizerWrapper, PreTokenizerWrapper, Tokenizer};

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
    /// The same, but for what it puts before a text.
    inner: Tokenizer,
    /// Whether something is put before what follows a control token, too.
    each: bool,
    control: HashSet<u32>,
    template: Option<ChatTemplate>,
    /// Whether what the system says is put before the first question.
    folded: bool,
    path: PathBuf,
    begin: Option<u32>,
    /// Tokens around a prompt, and around an exchange.
    around: (usize, usize),
}

impl Checkpoint {
    /// Tries whether the checkpoint can be talked with, as a tier does when it opens it.
    ///
    /// # Errors
    /// When its chat template refuses a system message and a question, or earlier turns, or leaves a part of them out; or when
    /// the tokenizer is of no use.
    pub fn check_dialect(&self) -> Result<(), ModelError> {
        let tokenizer = Arc::clone(&self.tokenizer);
        Dialect::new(tokenizer, self.chat.clone(), self.folder.clone(), self.config.bos).map(drop)
    }
}

impl Dialect {
    /// The dialect of a checkpoint, whose template is taken out of it.
    ///
    /// # Errors
    /// When the template does not take a question, what the system says and earlier turns, or the tokenizer is of no use.
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
        let unusable = |source| ModelError::Parse { path: path.clone(), source };
        let plain = without_added(&tokenizer).map_err(unusable)?;
        let (inner, each) = without_beginning(&plain).map_err(unusable)?;
        let control = tokenizer.get_added_tokens_decoder().into_keys().collect();
        let (folded, around) = (false, (0, 0));
        let mut dialect = Self { tokenizer, plain, inner, each, control, template, folded, path, begin, around };
        dialect.around = dialect.tried().or_else(|refused| {
            dialect.folded = true;
            // What it says to the usual form is what there is to mend.
            dialect.tried().map_err(|_| refused)
        })?;
        Ok(dialect)
    }

    /// Tokens around a prompt, and around an exchange.
    fn tried(&self) -> Result<(usize, usize), ModelError> {
        let count = |roles: &[&str]| {
            let message = |role: &&str| ChatMessage { role: (*role).to_owned(), content: String::new() };
            let messages: Vec<_> = roles.iter().map(message).collect();
            self.tokens(&messages, SystemTime::UNIX_EPOCH).map(|tokens| tokens.len())
        };
        let (prompt, longer) = (count(&["system", "user"])?, count(&["system", "user", "assistant", "user"])?);
        Ok((prompt, longer.saturating_sub(prompt)))
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
            let data = self.data(&messages[place].content, self.begins(&tokens))?;
            tokens.extend(data);
            let template = self.template_part(after, self.begins(&tokens))?;
            tokens.extend(template);
        }
        match used.iter().position(|used| !used) {
            None => Ok(tokens),
            Some(place) => Err(self.refuse(&format!("it leaves out what the {} says", messages[place].role))),
        }
    }

    fn render(&self, messages: &[ChatMessage], now: SystemTime) -> Result<String, ModelError> {
        let placeholder = |place: usize| format!("{OPEN}{place}{CLOSE}");
        let blank = |(place, message): (usize, &ChatMessage)| ChatMessage {
            role: message.role.clone(),
            content: placeholder(place),
        };
        let mut blanks: Vec<_> = messages.iter().enumerate().map(blank).collect();
        let Some(template) = &self.template else {
            let section = |it: &ChatMessage| format!("{}:\n{}\n\n", it.role, it.content);
            return Ok(blanks.iter().map(section).chain(["assistant:\n".to_owned()]).collect());
        };
        let place = |role: &str| blanks.iter().position(|message| message.role == role);
        if let (true, Some(system), Some(question)) = (self.folded, place("system"), place("user")) {
            blanks[question].content = format!("{}\n\n{}", blanks[system].content, blanks[question].content);
            blanks.remove(system);
        }
        template.render(&blanks, true, now)
    }

    /// Whether what follows these tokens begins a text, for the tokenizer.
    fn begins(&self, tokens: &[u32]) -> bool {
        tokens.last().is_none_or(|last| self.each && self.control.contains(last))
    }

    /// The tokens of a part of the template.
    fn template_part(&self, text: &str, begins: bool) -> Result<Vec<u32>, ModelError> {
        let whole = self.encode(&self.tokenizer, text)?;
        if begins {
            return Ok(whole.get_ids().to_vec());
        }
        // What is put before a text is put before the first piece, which ends at the first control token.
        let mut places = whole.get_ids().iter().zip(whole.get_offsets());
        let end = places.find(|(id, _)| self.control.contains(id)).map_or(text.len(), |(_, &(from, _))| from);
        let (first, rest) = text.split_at_checked(end).unwrap_or((text, ""));
        let mut tokens = self.encode(&self.inner, first)?.get_ids().to_vec();
        tokens.extend(self.encode(&self.tokenizer, rest)?.get_ids());
        Ok(tokens)
    }

    /// The tokens of a text that is data: none of them is a control token.
    fn data(&self, text: &str, begins: bool) -> Result<Vec<u32>, ModelError> {
        let text = if self.template.is_some() { Cow::Borrowed(text) } else { Cow::Owned(indented(text)) };
        let encoding = self.encode(if begins { &self.plain } else { &self.inner }, &text)?;
        let is_control = |id: &u32| self.control.contains(id);
        if !encoding.get_ids().iter().any(is_control) {
            return Ok(encoding.get_ids().to_vec());
        }
        // The model's own vocabulary holds the spelling: it is taken apart.
        let mut tokens = Vec::with_capacity(encoding.len());
        for (id, &(from, to)) in encoding.get_ids().iter().zip(encoding.get_offsets()) {
            if is_control(id) {
                for letter in text.get(from..to).unwrap_or_default().chars() {
                    let letter = self.encode(&self.inner, letter.encode_utf8(&mut [0; 4]))?;
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
        // As many as it takes anywhere.
        Ok(self.data(text, self.each)?.len())
    }

    fn around_prompt(&self) -> usize {
        self.around.0
    }

    fn around_exchange(&self) -> usize {
        self.around.1
    }
}

/// A text whose every line begins with a space, so that none is a heading; whatever a model may take for the end of a line
/// ends one.
fn indented(text: &str) -> String {
    let mut indented = String::with_capacity(text.len() + 1);
    indented.push(' ');
    let mut letters = text.chars().peekable();
    while let Some(letter) = letters.next() {
        indented.push(letter);
        let is_end = matches!(letter, '\n'..='\r' | '\u{1C}'..='\u{1E}' | '\u{85}' | '\u{2028}' | '\u{2029}');
        if is_end && !(letter == '\r' && letters.peek() == Some(&'\n')) {
            indented.push(' ');
        }
    }
    indented
}

fn without_added(tokenizer: &Tokenizer) -> Result<Tokenizer, Cause> {
    let mut json = serde_json::to_value(tokenizer)?;
    json["added_tokens"] = Value::Array(Vec::new());
    Tokenizer::from_bytes(serde_json::to_vec(&json)?)
}

/// A tokenizer that puts nothing before a text, and whether it did so before every piece between control tokens.
fn without_beginning(tokenizer: &Tokenizer) -> Result<(Tokenizer, bool), Cause> {
    let (mut inner, mut each) = (tokenizer.clone(), false);
    let normalizer = without_prefix(serde_json::to_value(tokenizer.get_normalizer())?, &mut each);
    let pre_tokenizer = without_prefix(serde_json::to_value(tokenizer.get_pre_tokenizer())?, &mut each);
    inner.with_normalizer(serde_json::from_value::<Option<NormalizerWrapper>>(normalizer)?);
    inner.with_pre_tokenizer(serde_json::from_value::<Option<PreTokenizerWrapper>>(pre_tokenizer)?);
    Ok((inner, each))
}

/// A normalizer or pre-tokenizer less what it puts before a text; nothing, of one that does no more.
fn without_prefix(mut part: Value, each: &mut bool) -> Value {
    match part["type"].as_str() {
        Some("Prepend") => {
            *each = true;
            return Value::Null;
        }
        Some("Metaspace") => {
            *each |= part["prepend_scheme"] == "always";
            part["prepend_scheme"] = "never".into();
        }
        Some("ByteLevel") if part["add_prefix_space"] == true => {
            *each = true;
            part["add_prefix_space"] = false.into();
        }
        Some("Sequence") => {
            for list in ["normalizers", "pretokenizers"] {
                if let Some(Value::Array(parts)) = part.get_mut(list) {
                    let kept = std::mem::take(parts).into_iter().map(|part| without_prefix(part, each));
                    *parts = kept.filter(|part| !part.is_null()).collect();
                }
            }
        }
        _ => {}
    }
    part
}

#[cfg(test)]
#[path = "dialect_tests.rs"]
mod tests;
