//! A checkpoint's chat template: a conversation in, the text that the model was trained to continue out.
//!
//! Contract: what transformers' `apply_chat_template` renders, with the same settings of Jinja, the same functions
//! (`raise_exception`, `strftime_now`, `tojson`) and Python's methods of strings and dictionaries. What it deliberately
//! does not do: offer tools or documents, or let a model think aloud (`enable_thinking` is false), since what it writes
//! is read by a customer. A template is a program: only what comes with the checkpoint is run, never a message, and no longer than its bound of steps. The date
//! is that of `now`, in UTC.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use minijinja::value::{Kwargs, Value};
use minijinja::{Environment, Error, ErrorKind, context};
use serde::{Deserialize, Serialize};
use serde_json::ser::PrettyFormatter;

use super::{parse, read_small};
use crate::error::{Cause, ModelError};

const CONFIG: &str = "tokenizer_config.json";
const SPECIAL: &str = "special_tokens_map.json";
const FILE: &str = "chat_template.jinja";
const NAME: &str = "chat";
/// Steps that a template may take for one conversation: a thousand times those that long ones take, and a fraction of a second.
const STEPS_MAX: u64 = 10_000_000;
/// The tokens that a template may name.
const TOKENS: [&str; 6] = ["bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token"];

/// One message of a conversation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ChatMessage {
    /// Who says it: `system`, `user` or `assistant`; what else there is depends on the template.
    pub role: String,
    /// What is said.
    pub content: String,
}

/// A chat template, parsed.
#[derive(Clone, Debug)]
pub struct ChatTemplate {
    path: PathBuf,
    environment: Environment<'static>,
    tokens: BTreeMap<String, String>,
}

#[derive(Deserialize)]
struct Config {
    chat_template: Option<Templates>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Templates {
    One(String),
    Many(Vec<Named>),
}

#[derive(Deserialize)]
struct Named {
    name: String,
    template: String,
}

/// A special token: its text, or an object that has it.
#[derive(Deserialize)]
#[serde(untagged)]
enum Token {
    Text(String),
    Object { content: String },
}

impl ChatTemplate {
    /// Reads the template of a checkpoint: `chat_template.jinja`, else that of `tokenizer_config.json`, and of several
    /// the one named `default`. None when there is none.
    ///
    /// # Errors
    /// When a file cannot be read or parsed, or the template is no Jinja.
    pub fn open(folder: &Path) -> Result<Option<Self>, ModelError> {
        let (config, file) = (folder.join(CONFIG), folder.join(FILE));
        let mut tokens = BTreeMap::new();
        for path in [folder.join(SPECIAL), config.clone()] {
            if path.exists() {
                tokens.extend(special_tokens(&path)?);
            }
        }
        if file.exists() {
            let source = read_small(&file)?;
            let source = String::from_utf8(source).map_err(|error| refuse(&file, error))?;
            return Self::new(&file, &source, tokens).map(Some);
        }
        if !config.exists() {
            return Ok(None);
        }
        let templates = parse::<Config>(&config, &read_small(&config)?)?.chat_template;
        let source = match templates {
            None => return Ok(None),
            Some(Templates::One(source)) => source,
            Some(Templates::Many(several)) => {
                let names: Vec<_> = several.iter().map(|named| named.name.clone()).collect();
                let default = several.into_iter().find(|named| named.name == "default").map(|named| named.template);
                default.ok_or_else(|| refuse(&config, format!("none named default, only {}", names.join(", "))))?
            }
        };
        Self::new(&config, &source, tokens).map(Some)
    }

    fn new(path: &Path, source: &str, tokens: BTreeMap<String, String>) -> Result<Self, ModelError> {
        let mut environment = Environment::new();
        environment.set_fuel(Some(STEPS_MAX));
        environment.set_trim_blocks(true);
        environment.set_lstrip_blocks(true);
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_filter("tojson", to_json);
        environment.add_function("raise_exception", |message: String| -> Result<Value, Error> {
            Err(Error::new(ErrorKind::InvalidOperation, message))
        });
        environment.add_template_owned(NAME, without_generation(source)).map_err(|error| refuse(path, error))?;
        Ok(Self { path: path.to_owned(), environment, tokens })
    }

    /// The text for a conversation; with `add_generation_prompt` it ends where the assistant's answer begins.
    ///
    /// It is tokenised without further special tokens: the template has put them in.
    ///
    /// # Errors
    /// [`ModelError::Template`] when the template fails or refuses the conversation.
    pub fn render(
        &self,
        messages: &[ChatMessage],
        add_generation_prompt: bool,
        now: SystemTime,
    ) -> Result<String, ModelError> {
        let tokens = Value::from_serialize(&self.tokens);
        let strftime_now = Value::from_function(move |format: String| formatted(now, &format));
        let context = context! {
            messages,
            add_generation_prompt,
            enable_thinking => false,
            tools => (),
            documents => (),
            strftime_now,
            ..tokens
        };
        let template = self.environment.get_template(NAME);
        template.and_then(|template| template.render(context)).map_err(|error| match error.kind() {
            ErrorKind::OutOfFuel => refuse(&self.path, format!("it takes more than {STEPS_MAX} steps")),
            _ => refuse(&self.path, error),
        })
    }
}

/// `{% generation %}` marks what an assistant said, for training: here it is a block that always is.
fn without_generation(source: &str) -> String {
    let mut text = String::with_capacity(source.len());
    let mut rest = source;
    while let Some((before, tag)) = rest.split_once("{%") {
        text.push_str(before);
        text.push_str("{%");
        let Some((inside, after)) = tag.split_once("%}") else {
            rest = tag;
            continue;
        };
        let name = inside.trim_matches(|letter: char| letter.is_whitespace() || "+-".contains(letter));
        match name {
            "generation" => text.push_str(&inside.replace(name, "if true")),
            "endgeneration" => text.push_str(&inside.replace(name, "endif")),
            _ => text.push_str(inside),
        }
        text.push_str("%}");
        rest = after;
    }
    text.push_str(rest);
    text
}

fn special_tokens(path: &Path) -> Result<Vec<(String, String)>, ModelError> {
    let mut object: BTreeMap<String, serde_json::Value> = parse(path, &read_small(path)?)?;
    let token = |name: &str| {
        let text = match serde_json::from_value(object.remove(name)?).ok()? {
            Token::Text(text) | Token::Object { content: text } => text,
        };
        Some((name.to_owned(), text))
    };
    Ok(TOKENS.into_iter().filter_map(token).collect())
}

/// Python's `json.dumps`: nothing is escaped that need not be, and a space follows commas and colons.
#[expect(clippy::needless_pass_by_value, reason = "the engine passes arguments by value")]
fn to_json(value: Value, options: Kwargs) -> Result<String, Error> {
    let failed = |error: serde_json::Error| Error::new(ErrorKind::InvalidOperation, error.to_string());
    let indent: Option<usize> = options.get("indent")?;
    let ascii: Option<bool> = options.get("ensure_ascii")?;
    if ascii == Some(true) {
        return Err(Error::new(ErrorKind::InvalidOperation, "tojson(ensure_ascii=true) is not understood"));
    }
    options.assert_all_used()?;
    let mut json = Vec::new();
    match indent {
        Some(width) => {
            let indent = " ".repeat(width);
            let formatter = PrettyFormatter::with_indent(indent.as_bytes());
            value.serialize(&mut serde_json::Serializer::with_formatter(&mut json, formatter)).map_err(failed)?;
        }
        None => value.serialize(&mut serde_json::Serializer::with_formatter(&mut json, Spaced)).map_err(failed)?,
    }
    String::from_utf8(json).map_err(|error| Error::new(ErrorKind::InvalidOperation, error.to_string()))
}

/// One line, with Python's spaces.
struct Spaced;

impl serde_json::ser::Formatter for Spaced {
    fn begin_array_value<W: ?Sized + std::io::Write>(&mut self, writer: &mut W, first: bool) -> std::io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_key<W: ?Sized + std::io::Write>(&mut self, writer: &mut W, first: bool) -> std::io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_value<W: ?Sized + std::io::Write>(&mut self, writer: &mut W) -> std::io::Result<()> {
        writer.write_all(b": ")
    }
}

fn formatted(now: SystemTime, format: &str) -> Result<String, Error> {
    let failed = |error: jiff::Error| Error::new(ErrorKind::InvalidOperation, error.to_string());
    let now = jiff::Timestamp::try_from(now).map_err(failed)?.to_zoned(jiff::tz::TimeZone::UTC);
    jiff::fmt::strtime::format(format, &now).map_err(failed)
}

fn refuse(path: &Path, source: impl Into<Cause>) -> ModelError {
    ModelError::Template { path: path.to_owned(), source: source.into() }
}

#[cfg(test)]
#[path = "chat_tests.rs"]
mod tests;
