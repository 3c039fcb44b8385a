//! How a checkpoint's makers suggest to sample from it: `generation_config.json`.

use std::path::Path;

use serde::Deserialize;

use super::config::Ids;
use super::{parse, read_small};
use crate::error::ModelError;
use crate::generation::Sampling;

/// What a checkpoint suggests; what it does not say is none.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GenerationConfig {
    /// The tokens that end an answer.
    pub eos: Vec<u32>,
    /// Whether to draw tokens at all: false takes the likeliest.
    pub sample: bool,
    /// Divides the logits.
    pub temperature: Option<f32>,
    /// Tokens that are drawn from: the likeliest so many.
    pub top_k: Option<usize>,
    /// Tokens that are drawn from: the likeliest that together have this probability.
    pub top_p: Option<f32>,
    /// Divides the logits of tokens that were there already, where above 0; multiplies those below.
    pub repetition_penalty: Option<f32>,
}

#[derive(Deserialize)]
struct File {
    eos_token_id: Option<Ids>,
    do_sample: Option<bool>,
    temperature: Option<f32>,
    top_k: Option<usize>,
    top_p: Option<f32>,
    repetition_penalty: Option<f32>,
}

impl GenerationConfig {
    /// Reads a `generation_config.json`; nothing is suggested where there is none.
    ///
    /// # Errors
    /// When the file cannot be read or parsed, or a number in it makes no sense; the field is named.
    pub fn read(path: &Path) -> Result<Self, ModelError> {
        if !path.exists() {
            return Ok(Self::default());
        }
        let file: File = parse(path, &read_small(path)?)?;
        let check = |field, value: Option<f32>, fits: fn(f32) -> bool, expected: &str| match value {
            Some(value) if !fits(value) => Err(ModelError::Architecture {
                path: path.to_owned(),
                field,
                found: value.to_string(),
                expected: expected.to_owned(),
            }),
            _ => Ok(value),
        };
        let finite = |value: f32| value.is_finite() && value >= 0.0;
        Ok(Self {
            eos: file.eos_token_id.map(Vec::from).unwrap_or_default(),
            sample: file.do_sample.unwrap_or(false),
            temperature: check("temperature", file.temperature, finite, "0 or more")?,
            top_k: file.top_k.filter(|&count| count > 0),
            top_p: check("top_p", file.top_p, |value| (0.0..=1.0).contains(&value), "0 to 1")?,
            repetition_penalty: check(
                "repetition_penalty",
                file.repetition_penalty,
                |value| value.is_finite() && value > 0.0,
                "above 0",
            )?,
        })
    }
}

impl GenerationConfig {
    /// The suggestion, with the draws of a seed.
    #[must_use]
    pub fn sampling(&self, seed: u64) -> Sampling {
        let repetition_penalty = self.repetition_penalty.unwrap_or(1.0);
        if !self.sample {
            return Sampling { repetition_penalty, seed, ..Sampling::GREEDY };
        }
        Sampling {
            temperature: self.temperature.unwrap_or(1.0),
            top_k: self.top_k.unwrap_or(0),
            top_p: self.top_p.filter(|&share| share > 0.0).unwrap_or(1.0),
            repetition_penalty,
            seed,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(json: &str) -> Result<GenerationConfig, String> {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("generation_config.json");
        std::fs::write(&path, json).expect("written");
        GenerationConfig::read(&path).map_err(|error| error.to_string().rsplit('/').next().unwrap_or("").to_owned())
    }

    #[test]
    fn suggestions_are_read() {
        let full = read(
            r#"{"eos_token_id": [7, 9], "do_sample": true, "temperature": 0.6, "top_k": 20, "top_p": 0.95,
                "repetition_penalty": 1.1, "transformers_version": "4.51.0"}"#,
        );
        let expected = GenerationConfig {
            eos: vec![7, 9],
            sample: true,
            temperature: Some(0.6),
            top_k: Some(20),
            top_p: Some(0.95),
            repetition_penalty: Some(1.1),
        };
        let drawn = Sampling { temperature: 0.6, top_k: 20, top_p: 0.95, repetition_penalty: 1.1, seed: 3 };
        assert_eq!(expected.sampling(3), drawn);
        let likeliest = GenerationConfig { sample: false, ..expected.clone() };
        assert_eq!(likeliest.sampling(3), Sampling { repetition_penalty: 1.1, seed: 3, ..Sampling::GREEDY });
        assert_eq!(full, Ok(expected));
        let short = GenerationConfig { eos: vec![2], ..GenerationConfig::default() };
        assert_eq!(read(r#"{"eos_token_id": 2, "top_k": 0, "temperature": null}"#), Ok(short));
        let none = GenerationConfig::read(Path::new("/nowhere/generation_config.json")).expect("nothing suggested");
        assert_eq!(none, GenerationConfig::default());
    }

    #[test]
    fn numbers_without_sense_are_refused() {
        let check = |json: &str, expected: &str| {
            assert_eq!(read(json), Err(format!("generation_config.json has {expected}")), "{json}");
        };
        check(r#"{"temperature": -1}"#, "temperature -1, expected 0 or more");
        check(r#"{"top_p": 1.5}"#, "top_p 1.5, expected 0 to 1");
        check(r#"{"repetition_penalty": 0}"#, "repetition_penalty 0, expected above 0");
        assert_eq!(read(r#"{"top_k": -1}"#), Err("generation_config.json".to_owned()));
    }
}
