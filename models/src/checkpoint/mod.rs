//! Checkpoints of decoders in the Hugging Face layout: a folder with `config.json`, weights and a tokenizer.
//!
//! Contract: reads, never writes, and fetches nothing. What does not fit is an error that names the file and the field
//! or tensor in it.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use crate::error::ModelError;

mod config;
mod layout;
mod weights;

pub use config::{DecoderConfig, Family, RopeScaling};
pub use layout::{EMBEDDING, FINAL_NORM, HEAD, Memory, TensorSpec, layer_tensor};
pub use weights::{Numbers, Precision, Weights};

/// Largest file of settings accepted, in bytes: templates and indexes of many shards are some hundred kilobytes.
const SETTINGS_BYTES_MAX: u64 = 16 * 1024 * 1024;

/// The bytes of a small file.
fn read_small(path: &Path) -> Result<Vec<u8>, ModelError> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Err(ModelError::MissingFile { path: path.to_owned() });
        }
        Err(error) => return Err(ModelError::io("open", path)(error)),
    };
    let mut bytes = Vec::new();
    file.take(SETTINGS_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(ModelError::io("read", path))?;
    if bytes.len() as u64 > SETTINGS_BYTES_MAX {
        return Err(ModelError::Load {
            path: path.to_owned(),
            reason: format!("more than {SETTINGS_BYTES_MAX} bytes"),
        });
    }
    Ok(bytes)
}
