//! Checkpoints of sentence encoders: a BERT in the layout of sentence-transformers, and how its vectors are made.
//!
//! Contract: reads, never writes, and fetches nothing. A checkpoint that is opened without error describes exactly what
//! [`Encoder`](super::Encoder) computes; another architecture, module or pooling is an error that names the file and the field. Vectors have
//! unit length whether the checkpoint says so or not, because it is their direction that is compared; one that was trained to
//! compare longer vectors otherwise is refused. Opening reads settings, vocabulary and the headers of the weights.
//!
//! Names and defaults are those of <https://github.com/huggingface/sentence-transformers>, of its versions 2 to 5.

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::bert::{BertConfig, BertWeights, Pooling, is_bert};
use crate::checkpoint::{Precision, digest_of, parse, read_small, refuse};
use crate::error::ModelError;
use crate::prefixes::{PREFIX_BYTES_MAX, Prefixes};
use crate::tokenizer::TextTokenizer;
use crate::weights::MODEL_NAME;

const MODULES: &str = "modules.json";
/// The names of prompts, those that count first: what sentence-transformers looks for to encode what asks, and what answers.
const QUERY_PROMPTS: [&str; 1] = ["query"];
const PASSAGE_PROMPTS: [&str; 3] = ["document", "passage", "corpus"];
/// Shortest input that says something: a word piece between the two that frame it.
const TOKENS_MIN: usize = 3;
/// Longest input of the encoder that ships: what it was trained for.
const SHIPPED_TOKENS_MAX: usize = 256;

/// A sentence encoder, opened and checked.
#[derive(Clone, Debug)]
pub struct EncoderCheckpoint {
    /// Its folder.
    pub folder: PathBuf,
    /// What it computes.
    pub config: BertConfig,
    /// What makes one vector of those of a text's tokens.
    pub pooling: Pooling,
    /// Longest input, in word pieces with the two that frame it.
    pub tokens_max: usize,
    /// What its makers have stand before texts.
    pub prefixes: Prefixes,
    pub(crate) weights: BertWeights,
    pub(crate) tokenizer: TextTokenizer,
    /// The folder of the model itself.
    root: PathBuf,
    /// Whether texts are lower-cased before they come to the vocabulary.
    lowers: bool,
    is_shipped: bool,
}

/// What `modules.json` and the files that it names say.
struct Layout {
    root: PathBuf,
    pooling: Pooling,
    prefixes: Prefixes,
}

/// One line of `modules.json`.
#[derive(Deserialize)]
struct Module {
    path: String,
    r#type: String,
}

/// What counts of `config_sentence_transformers.json`.
#[derive(Default, Deserialize)]
struct Prompts {
    #[serde(default)]
    prompts: BTreeMap<String, String>,
    default_prompt_name: Option<String>,
    similarity_fn_name: Option<String>,
}

/// What counts of `sentence_bert_config.json`.
#[derive(Default, Deserialize)]
struct Lengths {
    max_seq_length: Option<usize>,
    #[serde(default)]
    do_lower_case: bool,
}

impl EncoderCheckpoint {
    /// Opens the checkpoint in a folder.
    ///
    /// # Errors
    /// When a file is missing, cannot be read or parsed, does not fit the others, or says what is not computed here; the file is named,
    /// and the field or tensor in it.
    pub fn open(folder: &Path) -> Result<Self, ModelError> {
        let Layout { root, pooling, prefixes } = Layout::read(folder)?;
        let config = BertConfig::read(&root.join("config.json"))?;
        let (tokens_max, lowers) = lengths(&root.join("sentence_bert_config.json"), &config)?;
        let opened = Self::with(folder, &root, config, tokens_max)?;
        let tokenizer = opened.tokenizer.lowering(lowers);
        prefixes.check(&tokenizer)?;
        Ok(Self { pooling, prefixes, lowers, tokenizer, ..opened })
    }

    /// Opens the encoder that ships, of which only the model itself is kept.
    pub(crate) fn shipped(folder: &Path) -> Result<Self, ModelError> {
        let config = BertConfig::read(&folder.join("config.json"))?;
        let opened = Self::with(folder, folder, config, SHIPPED_TOKENS_MAX)?;
        Ok(Self { is_shipped: true, ..opened })
    }

    fn with(folder: &Path, root: &Path, config: BertConfig, tokens_max: usize) -> Result<Self, ModelError> {
        let path = root.join("config.json");
        let tokenizer = TextTokenizer::load(&root.join("tokenizer.json"), tokens_max)?;
        let needed = tokenizer.vocabulary_size();
        if config.vocab_size < needed {
            let expected = format!("at least {needed}, for the tokenizer's word pieces");
            return Err(refuse(&path, "vocab_size", config.vocab_size, expected));
        }
        if config.max_position_embeddings < tokens_max {
            let expected = format!("at least {tokens_max}, the longest input");
            return Err(refuse(&path, "max_position_embeddings", config.max_position_embeddings, expected));
        }
        let weights = BertWeights::open(&config, root)?;
        Ok(Self {
            folder: folder.to_owned(),
            config,
            pooling: Pooling::Mean,
            tokens_max,
            prefixes: Prefixes::default(),
            weights,
            tokenizer,
            root: root.to_owned(),
            lowers: false,
            is_shipped: false,
        })
    }

    /// Whether a folder looks like that of a sentence encoder, usable or not.
    #[must_use]
    pub fn is_at(folder: &Path) -> bool {
        folder.join(MODULES).is_file() || is_bert(folder)
    }

    /// Whether it is the one that ships.
    #[must_use]
    pub const fn is_shipped(&self) -> bool {
        self.is_shipped
    }

    /// What decides about its vectors, prefixes and adapter aside: a digest of the files that make them, and how these are used. The one that ships has a
    /// name.
    ///
    /// # Errors
    /// When a file cannot be read.
    pub fn identity(&self) -> Result<String, ModelError> {
        if self.is_shipped {
            return Ok(MODEL_NAME.to_owned());
        }
        let Self { config, pooling, tokens_max, lowers, .. } = self;
        let BertConfig { num_hidden_layers, hidden_size, .. } = config;
        // The most that a folder is told apart by, and short enough to be read.
        let settings = ["config.json", "tokenizer.json"].map(|name| self.root.join(name));
        let files = settings.iter().map(PathBuf::as_path).chain(self.weights.files());
        let digest: String = digest_of(files)?.chars().take(16).collect();
        let lowered = if *lowers { ", in lower case" } else { "" };
        Ok(format!(
            "bert {digest} ({num_hidden_layers} layers of {hidden_size}, {pooling} pooling, {tokens_max} word pieces{lowered})"
        ))
    }

    /// How its numbers are stored, each kind once.
    #[must_use]
    pub fn precisions(&self) -> Vec<Precision> {
        self.weights.precisions()
    }

    /// Checks that every number of its weights is finite. Reads all of them.
    ///
    /// # Errors
    /// [`ModelError::Tensors`], naming the tensors that hold others; when a file cannot be read.
    pub fn check_finite(&self) -> Result<(), ModelError> {
        self.weights.check_finite()
    }

    /// Bytes of its tensors on disk.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.weights.bytes()
    }
}

impl Layout {
    fn read(folder: &Path) -> Result<Self, ModelError> {
        let path = folder.join(MODULES);
        let modules: Vec<Module> = parse(&path, &read_small(&path)?)?;
        // Types are the paths of Python's classes, which move from version to version.
        let kinds: Vec<&str> =
            modules.iter().map(|module| module.r#type.rsplit('.').next().unwrap_or_default()).collect();
        let is_normalised = match kinds[..] {
            ["Transformer", "Pooling"] => false,
            ["Transformer", "Pooling", "Normalize"] => true,
            _ => {
                let expected = "Transformer, Pooling, and Normalize or nothing".to_owned();
                return Err(refuse(&path, "type", kinds.join(", ").as_str(), expected));
            }
        };
        let place = |module: &Module| {
            let is_plain = |part| matches!(part, Component::Normal(_));
            match Path::new(&module.path).components().all(is_plain) {
                true => Ok(folder.join(&module.path)),
                false => {
                    Err(refuse(&path, "path", module.path.as_str(), "a folder within the checkpoint's".to_owned()))
                }
            }
        };
        let (root, pooling) = (place(&modules[0])?, pooling(&place(&modules[1])?.join("config.json"))?);
        let prefixes = prefixes(&folder.join("config_sentence_transformers.json"), is_normalised)?;
        Ok(Self { root, pooling, prefixes })
    }
}

/// Older files have a switch for each kind of pooling, newer ones name it.
fn pooling(path: &Path) -> Result<Pooling, ModelError> {
    let settings: Map<String, Value> = parse(path, &read_small(path)?)?;
    let switches = settings.iter().filter(|(_, value)| **value == Value::Bool(true));
    let switched = switches.filter_map(|(name, _)| name.strip_prefix("pooling_mode_"));
    let named = settings.get("pooling_mode").and_then(Value::as_str);
    let chosen: Vec<&str> = switched.chain(named).collect();
    if settings.get("include_prompt") == Some(&Value::Bool(false)) {
        return Err(refuse(path, "include_prompt", "false", "true".to_owned()));
    }
    match chosen[..] {
        ["cls_token" | "cls"] => Ok(Pooling::Cls),
        ["mean_tokens" | "mean"] => Ok(Pooling::Mean),
        [] => Err(refuse(path, "pooling_mode", "nothing", "cls or mean".to_owned())),
        _ => Err(refuse(path, "pooling_mode", chosen.join(" and ").as_str(), "cls or mean".to_owned())),
    }
}

fn prefixes(path: &Path, is_normalised: bool) -> Result<Prefixes, ModelError> {
    let Prompts { prompts, default_prompt_name, similarity_fn_name } = read_or_default(path)?;
    let similarity = similarity_fn_name.as_deref().unwrap_or("cosine");
    if similarity != "cosine" && !is_normalised {
        let expected = "cosine, since vectors are compared at unit length".to_owned();
        return Err(refuse(path, "similarity_fn_name", similarity, expected));
    }
    let default = match &default_prompt_name {
        None => String::new(),
        Some(name) => prompts.get(name).cloned().ok_or_else(|| {
            refuse(path, "default_prompt_name", name.as_str(), "the name of one of the prompts".to_owned())
        })?,
    };
    let first = |names: &[&str]| names.iter().find_map(|name| prompts.get(*name)).unwrap_or(&default).clone();
    let prefixes = Prefixes { query: first(&QUERY_PROMPTS), passage: first(&PASSAGE_PROMPTS) };
    match prefixes.query.len().max(prefixes.passage.len()) {
        bytes if bytes > PREFIX_BYTES_MAX => {
            let expected = format!("at most {PREFIX_BYTES_MAX}");
            Err(refuse(path, "prompts", format!("of {bytes} bytes"), expected))
        }
        _ => Ok(prefixes),
    }
}

/// The longest input, and whether texts are lower-cased.
fn lengths(path: &Path, config: &BertConfig) -> Result<(usize, bool), ModelError> {
    let Lengths { max_seq_length, do_lower_case } = read_or_default(path)?;
    let positions = config.max_position_embeddings;
    let tokens_max = max_seq_length.unwrap_or(positions);
    if (TOKENS_MIN..=positions).contains(&tokens_max) {
        return Ok((tokens_max, do_lower_case));
    }
    let expected = format!("{TOKENS_MIN} to max_position_embeddings {positions}");
    Err(refuse(path, "max_seq_length", tokens_max, expected))
}

/// A file that need not be there.
fn read_or_default<T: DeserializeOwned + Default>(path: &Path) -> Result<T, ModelError> {
    match read_small(path) {
        Err(ModelError::MissingFile { .. }) => Ok(T::default()),
        json => parse(path, &json?),
    }
}

#[cfg(test)]
#[path = "checkpoint_tests.rs"]
mod tests;
