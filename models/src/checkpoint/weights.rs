//! Weights in safetensors files: one, or several with an index.
//!
//! Contract: opening reads the headers alone and checks that every file is as long as its header says; [`Weights::check`]
//! names every tensor that is missing, too many, of another shape or of a kind that is not understood. Tensors are read
//! one at a time, through a buffer of fixed size, so that loading takes little more memory than what it returns.
//! An index that points outside of its folder is refused.
//!
//! The format: <https://github.com/huggingface/safetensors#format>.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Component, Path, PathBuf};

use half::{bf16, f16};
use safetensors::Dtype;
use safetensors::tensor::Metadata;
use serde::Deserialize;

use super::layout::{HEAD, TensorSpec};
use super::{parse, read_small};
use crate::error::ModelError;

/// The name of weights in one file.
const SINGLE: &str = "model.safetensors";
/// The name of the index of weights in several.
const INDEX: &str = "model.safetensors.index.json";
/// Longest header accepted, in bytes: that of the largest models is a few hundred kilobytes.
const HEADER_BYTES_MAX: u64 = 64 * 1024 * 1024;
/// Most files that an index may name.
const SHARDS_MAX: usize = 1_000;
/// Problems listed in one error: a foreign file has hundreds.
const PROBLEMS_MAX: usize = 8;
/// Bytes that are converted at a time; a multiple of every number's size.
const BUFFER_BYTES: usize = 256 * 1024;

/// How a number is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Precision {
    /// IEEE 754 single precision.
    F32,
    /// IEEE 754 half precision.
    F16,
    /// The upper half of a single.
    Bf16,
}

impl Precision {
    /// Size of a number, in bytes.
    #[must_use]
    pub const fn bytes(self) -> u64 {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
        }
    }

    const fn of(dtype: Dtype) -> Option<Self> {
        match dtype {
            Dtype::F32 => Some(Self::F32),
            Dtype::F16 => Some(Self::F16),
            Dtype::BF16 => Some(Self::Bf16),
            _ => None,
        }
    }
}

impl std::fmt::Display for Precision {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
        })
    }
}

/// A tensor's numbers as they are stored, in row-major order.
#[derive(Clone, Debug, PartialEq)]
pub enum Numbers {
    /// Single precision.
    F32(Vec<f32>),
    /// Half precision.
    F16(Vec<f16>),
    /// The upper halves of singles.
    Bf16(Vec<bf16>),
}

impl Numbers {
    /// The same numbers in single precision; nothing is lost.
    #[must_use]
    pub fn into_f32(self) -> Vec<f32> {
        match self {
            Self::F32(numbers) => numbers,
            Self::F16(numbers) => numbers.into_iter().map(f16::to_f32).collect(),
            Self::Bf16(numbers) => numbers.into_iter().map(bf16::to_f32).collect(),
        }
    }
}

/// Where the tensors of a checkpoint are.
#[derive(Clone, Debug)]
pub struct Weights {
    /// What errors about all of them name: the single file, or the index.
    path: PathBuf,
    tensors: BTreeMap<String, Place>,
}

#[derive(Clone, Debug)]
struct Place {
    file: PathBuf,
    offset: u64,
    bytes: u64,
    dtype: Dtype,
    shape: Vec<usize>,
}

#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

impl Weights {
    /// Reads the headers of a checkpoint's weights: of `model.safetensors`, else of the files that its index names.
    ///
    /// # Errors
    /// When a file is missing, is no safetensors file or is cut short; when the index points outside of the folder, or
    /// two files hold the same tensor.
    pub fn open(folder: &Path) -> Result<Self, ModelError> {
        let (single, index) = (folder.join(SINGLE), folder.join(INDEX));
        if single.exists() || !index.exists() {
            let mut weights = Self { path: single.clone(), tensors: BTreeMap::new() };
            weights.add(&single)?;
            return Ok(weights);
        }
        let parsed: Index = parse(&index, &read_small(&index)?)?;
        let files: BTreeSet<&str> = parsed.weight_map.values().map(String::as_str).collect();
        let mut weights = Self { path: index, tensors: BTreeMap::new() };
        if files.is_empty() || files.len() > SHARDS_MAX {
            let reason = format!("it names {} files, expected 1 to {SHARDS_MAX}", files.len());
            return Err(weights.unusable(reason));
        }
        for name in files {
            let mut parts = Path::new(name).components();
            if !matches!((parts.next(), parts.next()), (Some(Component::Normal(_)), None)) {
                return Err(weights.unusable(format!("the file {name:?} is not in its folder")));
            }
            weights.add(&folder.join(name))?;
        }
        let misplaced = parsed.weight_map.iter().find(|(tensor, file)| {
            weights.tensors.get(*tensor).is_none_or(|place| place.file.file_name() != Some(file.as_str().as_ref()))
        });
        match misplaced {
            Some((tensor, file)) => Err(weights.wrong(vec![format!("tensor {tensor} is not in {file}")])),
            None => Ok(weights),
        }
    }

    /// Checks that the tensors are these, each of a kind that is understood. Rotary frequencies, which old versions
    /// stored, and a head that repeats the embedding are not counted as too many.
    ///
    /// # Errors
    /// [`ModelError::Tensors`], naming each that does not fit.
    pub fn check(&self, expected: &[TensorSpec]) -> Result<(), ModelError> {
        self.check_with(expected, |name| name != HEAD && !name.ends_with(".rotary_emb.inv_freq"))
    }

    /// Checks that the tensors are there, each of a kind that is understood, and no other whose name begins with `closed`, and leaves
    /// out all others.
    ///
    /// # Errors
    /// [`ModelError::Tensors`], naming each that does not fit.
    pub(crate) fn choose(&mut self, wanted: &[TensorSpec], closed: &str) -> Result<(), ModelError> {
        self.check_with(wanted, |name| name.starts_with(closed))?;
        self.keep(wanted);
        Ok(())
    }

    /// Checks that the tensors are these, and no others that count.
    fn check_with(&self, expected: &[TensorSpec], counts: impl Fn(&str) -> bool) -> Result<(), ModelError> {
        let mut problems = self.problems(expected);
        let known: BTreeSet<&str> = expected.iter().map(|spec| spec.name.as_str()).collect();
        let extra = self.tensors.keys().filter(|name| !known.contains(name.as_str()) && counts(name));
        problems.extend(extra.map(|name| format!("unexpected tensor {name}")));
        if problems.is_empty() { Ok(()) } else { Err(self.wrong(problems)) }
    }

    /// Checks that every number is finite. Reads all of them.
    ///
    /// # Errors
    /// [`ModelError::Tensors`], naming each that holds another; when a file cannot be read.
    pub fn check_finite(&self) -> Result<(), ModelError> {
        let mut problems = Vec::new();
        for (name, place) in &self.tensors {
            let is_finite = match Precision::of(place.dtype) {
                Some(Precision::F32) => place.is_finite(|bytes| f32::from_le_bytes(bytes).is_finite())?,
                Some(Precision::F16) => place.is_finite(|bytes| f16::from_le_bytes(bytes).is_finite())?,
                Some(Precision::Bf16) => place.is_finite(|bytes| bf16::from_le_bytes(bytes).is_finite())?,
                None => true,
            };
            if !is_finite {
                problems.push(format!("tensor {name} has numbers that are not finite"));
            }
        }
        if problems.is_empty() { Ok(()) } else { Err(self.wrong(problems)) }
    }

    /// Whether there is a tensor of this name.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// What does not fit of these tensors, each by name.
    fn problems(&self, expected: &[TensorSpec]) -> Vec<String> {
        let problem = |TensorSpec { name, shape }: &TensorSpec| match self.tensors.get(name) {
            None => Some(format!("missing tensor {name} of shape {shape:?}")),
            Some(place) if place.shape != *shape => {
                Some(format!("tensor {name} has shape {:?}, expected {shape:?}", place.shape))
            }
            Some(place) if Precision::of(place.dtype).is_none() => Some(not_understood(name, place)),
            Some(_) => None,
        };
        expected.iter().filter_map(problem).collect()
    }

    /// Leaves out all tensors but these, which are what a decoder reads: what else there is must not speak for its numbers.
    pub(super) fn keep(&mut self, wanted: &[TensorSpec]) {
        let wanted: BTreeSet<&str> = wanted.iter().map(|spec| spec.name.as_str()).collect();
        self.tensors.retain(|name, _| wanted.contains(name.as_str()));
    }

    /// Reads one tensor.
    ///
    /// # Shapes
    /// Those that the header says, in row-major order.
    ///
    /// # Errors
    /// When there is no such tensor, it is of a kind that is not understood, or the file cannot be read.
    pub fn read(&self, name: &str) -> Result<Numbers, ModelError> {
        let place = self.tensors.get(name).ok_or_else(|| self.wrong(vec![format!("missing tensor {name}")]))?;
        match Precision::of(place.dtype) {
            Some(Precision::F32) => place.read(f32::from_le_bytes).map(Numbers::F32),
            Some(Precision::F16) => place.read(f16::from_le_bytes).map(Numbers::F16),
            Some(Precision::Bf16) => place.read(bf16::from_le_bytes).map(Numbers::Bf16),
            None => Err(self.wrong(vec![not_understood(name, place)])),
        }
    }

    /// How the numbers are stored, each kind once. Of an opened [`Checkpoint`](crate::Checkpoint), only those that are used.
    #[must_use]
    pub fn precisions(&self) -> Vec<Precision> {
        let kinds: BTreeSet<_> = self.tensors.values().filter_map(|place| Precision::of(place.dtype)).collect();
        kinds.into_iter().collect()
    }

    /// The files that the tensors are in.
    pub(crate) fn files(&self) -> BTreeSet<&Path> {
        self.tensors.values().map(|place| place.file.as_path()).collect()
    }

    /// Bytes of the tensors on disk; of an opened [`Checkpoint`](crate::Checkpoint), of those that are used.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.tensors.values().map(|place| place.bytes).sum()
    }

    fn add(&mut self, path: &Path) -> Result<(), ModelError> {
        let (metadata, start) = header(path)?;
        for (name, info) in metadata.tensors() {
            let (begin, end) = info.data_offsets;
            let place = Place {
                file: path.to_owned(),
                offset: start + begin as u64,
                bytes: (end - begin) as u64,
                dtype: info.dtype,
                shape: info.shape.clone(),
            };
            if let Some(other) = self.tensors.insert(name.clone(), place) {
                let reason = format!("tensor {name} is in {} too", other.file.display());
                return Err(ModelError::Load { path: path.to_owned(), reason });
            }
        }
        Ok(())
    }

    fn unusable(&self, reason: String) -> ModelError {
        ModelError::Load { path: self.path.clone(), reason }
    }

    fn wrong(&self, mut problems: Vec<String>) -> ModelError {
        let more = problems.len().saturating_sub(PROBLEMS_MAX);
        if more > 0 {
            problems.truncate(PROBLEMS_MAX);
            problems.push(format!("and {more} more"));
        }
        ModelError::Tensors { path: self.path.clone(), problems }
    }
}

impl Place {
    fn read<const N: usize, T>(&self, number: impl Fn([u8; N]) -> T) -> Result<Vec<T>, ModelError> {
        // The header was checked: the shape's numbers take exactly these bytes, and the file has them.
        let mut numbers = Vec::with_capacity(usize::try_from(self.bytes).unwrap_or(usize::MAX) / N);
        self.pass(|part| numbers.extend(part.iter().map(|bytes| number(*bytes))))?;
        Ok(numbers)
    }

    /// Whether all numbers are finite.
    fn is_finite<const N: usize>(&self, is_finite: impl Fn([u8; N]) -> bool) -> Result<bool, ModelError> {
        let mut all = true;
        self.pass(|part| all &= part.iter().all(|bytes| is_finite(*bytes)))?;
        Ok(all)
    }

    /// Hands over the bytes of the numbers, in order and a part at a time.
    fn pass<const N: usize>(&self, mut take: impl FnMut(&[[u8; N]])) -> Result<(), ModelError> {
        let mut file = File::open(&self.file).map_err(ModelError::io("open", &self.file))?;
        file.seek(SeekFrom::Start(self.offset)).map_err(ModelError::io("read", &self.file))?;
        let mut left = usize::try_from(self.bytes).unwrap_or(usize::MAX);
        let mut buffer = vec![0; BUFFER_BYTES.min(left)];
        while left > 0 {
            let part = &mut buffer[..BUFFER_BYTES.min(left)];
            file.read_exact(part).map_err(ModelError::io("read", &self.file))?;
            take(part.as_chunks::<N>().0);
            left -= part.len();
        }
        Ok(())
    }
}

/// A file's header, and where the numbers begin.
fn header(path: &Path) -> Result<(Metadata, u64), ModelError> {
    let unusable = |reason: String| ModelError::Load { path: path.to_owned(), reason };
    let mut file = super::open(path)?;
    let size = file.metadata().map_err(ModelError::io("read", path))?.len();
    let mut length = [0; 8];
    if size < 8 {
        return Err(unusable(format!("it has {size} bytes, too few for a safetensors header")));
    }
    file.read_exact(&mut length).map_err(ModelError::io("read", path))?;
    let length = u64::from_le_bytes(length);
    if length > HEADER_BYTES_MAX || length > size - 8 {
        return Err(unusable(format!("no safetensors header: it would have {length} bytes")));
    }
    let mut json = Vec::new();
    file.take(length).read_to_end(&mut json).map_err(ModelError::io("read", path))?;
    let metadata: Metadata = parse(path, &json)?;
    let (start, data) = (8 + length, metadata.data_len() as u64);
    if size != start + data {
        return Err(ModelError::WrongSize { path: path.to_owned(), expected: start + data, found: size });
    }
    Ok((metadata, start))
}

fn not_understood(name: &str, place: &Place) -> String {
    format!("tensor {name} is of kind {:?}, expected F32, F16 or BF16", place.dtype)
}

#[cfg(test)]
#[path = "weights_tests.rs"]
mod tests;
