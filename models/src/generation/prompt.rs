//! Prompts: what a language model is told, within a budget of tokens.
//!
//! The system message holds the operator's own words, the instructions and the articles, best first; then come the earlier turns
//! that the question leans on, and the question. So questions that are about the same share the beginning of their prompts.
//!
//! Contract: the question and the instructions are never left out: where they alone do not fit, there is no prompt. What does
//! not fit of the rest is left out whole: of the history the oldest turns, of the articles the worst. Texts of customers and
//! of the knowledge base are data; that none of it becomes a control token is for whoever makes tokens of it to see to. What
//! an article tells a model to do, it may do: the instructions say not to, and no more can be promised.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use turnflow_state::{Answer, ScoredChunk, Source, Tier, Usage, normalise};

use super::citations::Citations;
use crate::checkpoint::ChatMessage;
use crate::error::ModelError;
use crate::tier::TierRequest;

/// How a model is asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct PromptConfig {
    /// Longest prompt, in tokens.
    pub prompt_tokens_max: usize,
    /// Most tokens of it for earlier turns.
    pub history_tokens_max: usize,
    /// Longest answer, in tokens.
    pub answer_tokens_max: usize,
    /// What the model is to do. `{unknown}` stands for `unknown-text`.
    pub instructions: String,
    /// What it is to say when it does not know.
    pub unknown_text: String,
}

/// How answers begin that say nothing, besides the configured one; in normal form.
const UNKNOWN: &[&str] = &["i do not know", "i don't know", "i'm sorry, i don't know", "i am sorry, i do not know"];

/// A prompt, before it is made tokens of.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Prompt {
    /// The conversation, ending with the question.
    pub(crate) messages: Vec<ChatMessage>,
    /// The chunks in it, in the order of their numbers.
    pub(crate) shown: Vec<ScoredChunk>,
}

/// How long texts are for a model.
pub(crate) trait Measure {
    /// Tokens of a text.
    fn tokens(&self, text: &str) -> Result<usize, ModelError>;

    /// Tokens around a prompt of a system message and a question.
    fn around_prompt(&self) -> usize;

    /// Tokens around an earlier turn, question and answer.
    fn around_exchange(&self) -> usize;
}

/// Writes prompts and reads answers.
#[derive(Clone, Debug)]
pub(crate) struct Author {
    config: PromptConfig,
    /// What comes before the articles.
    head: String,
}

impl Author {
    /// For an operator's own words to the model, which may be empty, and the language of the answers.
    pub(crate) fn new(config: PromptConfig, system_prompt: &str, language: &str) -> Self {
        let instructions = config.instructions.replace("{unknown}", &config.unknown_text);
        let language = match language {
            "en" => String::new(),
            other => format!("Write your answer in the language with the code {other}."),
        };
        let parts = [system_prompt.trim(), instructions.trim(), &language];
        let head = parts.into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join("\n\n");
        Self { config, head }
    }

    /// Everything that may change an answer.
    pub(crate) fn identity(&self) -> String {
        format!("{:?} {:?}", self.head, self.config)
    }

    pub(crate) const fn answer_tokens_max(&self) -> usize {
        self.config.answer_tokens_max
    }

    pub(crate) const fn prompt_tokens_max(&self) -> usize {
        self.config.prompt_tokens_max
    }

    /// The prompt for a question, of at most `tokens_max` tokens, or what is configured if that is less.
    ///
    /// # Errors
    /// [`ModelError::PromptTooLong`], or when a text cannot be measured.
    pub(crate) fn prompt(
        &self,
        request: &TierRequest,
        measure: &impl Measure,
        tokens_max: usize,
    ) -> Result<Prompt, ModelError> {
        let limit = self.config.prompt_tokens_max.min(tokens_max);
        let question = request.question.trim();
        let fixed = measure.around_prompt() + measure.tokens(&self.head)? + measure.tokens(question)?;
        let mut left = limit.checked_sub(fixed).ok_or(ModelError::PromptTooLong { tokens: fixed, limit })?;
        let mut history_left = self.config.history_tokens_max.min(left);
        let mut first = request.history.len();
        for exchange in request.history.iter().rev() {
            let (question, answer) =
                (measure.tokens(exchange.question.trim())?, measure.tokens(exchange.answer.trim())?);
            let tokens = question + answer + measure.around_exchange();
            let Some(rest) = history_left.checked_sub(tokens) else { break };
            (history_left, left, first) = (rest, left - tokens, first - 1);
        }
        let mut system = self.head.clone();
        let mut shown = Vec::new();
        for found in &request.retrieved {
            let section = section(shown.len() + 1, found);
            if let Some(rest) = left.checked_sub(measure.tokens(&section)?) {
                left = rest;
                system.push_str(&section);
                shown.push(found.clone());
            }
        }
        let message = |role: &str, content: &str| ChatMessage { role: role.to_owned(), content: content.to_owned() };
        let mut messages = vec![message("system", &system)];
        for exchange in &request.history[first..] {
            messages.push(message("user", exchange.question.trim()));
            messages.push(message("assistant", exchange.answer.trim()));
        }
        messages.push(message("user", question));
        Ok(Prompt { messages, shown })
    }

    fn is_unknown(&self, text: &str) -> bool {
        let plain = |text: &str| normalise(&text.replace('\u{2019}', "'"));
        let text = plain(text);
        let configured = plain(&self.config.unknown_text);
        text.is_empty()
            || (!configured.is_empty() && text.starts_with(&configured))
            || UNKNOWN.iter().any(|unknown| text.starts_with(unknown))
    }
}

/// Makes an answer of what a model writes, piece by piece.
///
/// It rests on what it cites; where it cites nothing, on all that its writer was shown, best first. It is not grounded, and
/// rests on nothing, when it says that it does not know, or when its writer was shown nothing.
#[derive(Debug)]
pub(crate) struct Reader {
    author: Arc<Author>,
    shown: Vec<ScoredChunk>,
    citations: Citations,
    text: String,
}

impl Reader {
    /// For the answer to a prompt in which these chunks are.
    pub(crate) fn new(author: Arc<Author>, shown: Vec<ScoredChunk>) -> Self {
        let citations = Citations::new(shown.iter().map(|found| found.chunk.id.article.to_string()).collect());
        Self { author, shown, citations, text: String::new() }
    }

    /// What may be shown after another piece, if anything.
    pub(crate) fn push(&mut self, piece: &str) -> Option<String> {
        let piece = self.citations.push(piece);
        self.text.push_str(&piece);
        (!piece.is_empty()).then_some(piece)
    }

    /// The answer, and the last piece of it that is to be shown, if there is one.
    pub(crate) fn finish(mut self, tier: Tier, usage: Usage) -> (Option<String>, Answer) {
        let mut last = self.citations.finish();
        self.text.push_str(&last);
        if self.text.is_empty() {
            last.clone_from(&self.author.config.unknown_text);
            self.text.clone_from(&last);
        }
        let grounded = !self.shown.is_empty() && !self.author.is_unknown(&self.text);
        let source = |found: &ScoredChunk| Source::of(&found.chunk);
        let sources = match self.citations.cited() {
            _ if !grounded => Vec::new(),
            [] => self.shown.iter().map(source).collect(),
            cited => cited.iter().filter_map(|&place| self.shown.get(place)).map(source).collect(),
        };
        let answer = Answer { text: self.text, tier, sources, usage, grounded, cut_off: false };
        ((!last.is_empty()).then_some(last), answer)
    }
}

fn section(number: usize, found: &ScoredChunk) -> String {
    let chunk = &found.chunk;
    let (id, title) = (&chunk.id.article, chunk.title.trim());
    let name = if title.is_empty() { id.to_string() } else { format!("{title} ({id})") };
    format!("\n\n[{number}] {name}\n{}", chunk.text.trim())
}

#[cfg(test)]
#[path = "prompt_tests.rs"]
pub(super) mod tests;
