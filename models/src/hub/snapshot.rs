//! A repository at a revision: its files, and which of them a decoder or a sentence encoder needs.
//!
//! What they need is settings, vocabulary and weights as safetensors, in one file or in the parts that the index
//! names. Weights in other formats, and whatever else lies in a repository, are left there.

use std::collections::BTreeSet;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::error::ModelError;

/// The weights in one file.
const WEIGHTS: &str = "model.safetensors";
const SAFETENSORS: &str = ".safetensors";
/// The list of the files that the weights are in.
pub(super) const INDEX: &str = "model.safetensors.index.json";
const REQUIRED: [&str; 2] = ["config.json", "tokenizer.json"];
const OPTIONAL: [&str; 8] = [
    "generation_config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "modules.json",
    "sentence_bert_config.json",
    "config_sentence_transformers.json",
    "1_Pooling/config.json",
];
/// Folders that a file may be in.
const DEPTH_MAX: usize = 1;
const NAME_BYTES_MAX: usize = 96;
const FILES_MAX: usize = 4096;
/// Largest file: so large that none is, and so small that the sizes of all can be added.
const FILE_BYTES_MAX: u64 = 1 << 50;

/// The name of a repository, `ORG/NAME`: safe as a path and in an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Repository(String);

impl Repository {
    /// # Errors
    /// [`ModelError::HubName`].
    pub(crate) fn parse(name: &str) -> Result<Self, ModelError> {
        match name.split('/').collect::<Vec<_>>()[..] {
            [organisation, model] if is_plain(organisation) && is_plain(model) => Ok(Self(name.to_owned())),
            _ => Err(ModelError::HubName { what: "model", name: name.to_owned(), expected: "ORG/NAME" }),
        }
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Repository {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A word that is safe as a folder, as a file and in an address.
pub(super) fn is_plain(word: &str) -> bool {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    (1..=NAME_BYTES_MAX).contains(&word.len()) && !word.starts_with(['.', '-']) && word.bytes().all(is_plain)
}

/// The name of a file in its repository: safe as a path and in an address.
pub(super) fn is_plain_path(name: &str) -> bool {
    name.split('/').count() <= DEPTH_MAX + 1 && name.split('/').all(is_plain)
}

/// A branch, a tag or a commit, as it stands in an address.
pub(super) fn revision_in_url(revision: &str) -> Result<String, ModelError> {
    if !revision.split('/').all(is_plain) {
        let expected = "a branch, a tag or a commit";
        return Err(ModelError::HubName { what: "revision", name: revision.to_owned(), expected });
    }
    Ok(revision.replace('/', "%2F"))
}

/// What proves that a file is intact.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Checksum {
    /// SHA-256 in hexadecimal, which the hub tells of large files.
    Sha256(String),
    /// The SHA-1 that Git names a file by, which the hub tells of small ones.
    GitBlob(String),
}

impl Checksum {
    /// A name for the file that no other content has.
    pub(super) fn as_str(&self) -> &str {
        match self {
            Self::Sha256(hex) | Self::GitBlob(hex) => hex,
        }
    }
}

/// A file of a repository.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RemoteFile {
    pub(crate) name: String,
    /// In bytes.
    pub(crate) size: u64,
    pub(crate) checksum: Checksum,
}

impl RemoteFile {
    /// Whether its name is safe as a path, and its size one that a file may have.
    pub(super) fn is_sound(&self) -> bool {
        is_plain_path(&self.name) && self.size <= FILE_BYTES_MAX
    }
}

/// Whether a checkpoint may have so many files, and each of them is sound.
pub(super) fn are_sound(files: &[RemoteFile]) -> bool {
    files.len() <= FILES_MAX && files.iter().all(RemoteFile::is_sound)
}

/// A repository's files, in its top folder and those directly below.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Snapshot {
    /// The commit.
    pub(crate) commit: String,
    pub(crate) files: Vec<RemoteFile>,
}

#[derive(Deserialize)]
struct Listed {
    sha: String,
    siblings: Vec<Sibling>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Sibling {
    rfilename: String,
    size: Option<u64>,
    blob_id: Option<String>,
    lfs: Option<Lfs>,
}

#[derive(Deserialize)]
struct Lfs {
    sha256: String,
    size: u64,
}

impl Snapshot {
    /// Reads what the hub says about a repository. Files whose size or checksum it does not tell are passed over.
    pub(super) fn parse(json: &[u8]) -> Result<Self, String> {
        let Listed { sha, siblings } =
            serde_json::from_slice(json).map_err(|error| format!("the list of files: {error}"))?;
        if !is_hex(&sha, 40) {
            return Err("the list of files: it names no commit".to_owned());
        }
        let files = siblings.into_iter().filter_map(|sibling| {
            let (size, checksum) = match sibling.lfs {
                Some(lfs) if is_hex(&lfs.sha256, 64) => (lfs.size, Checksum::Sha256(lfs.sha256.to_lowercase())),
                Some(_) => return None,
                None => {
                    let blob = sibling.blob_id.filter(|blob| is_hex(blob, 40))?;
                    (sibling.size?, Checksum::GitBlob(blob.to_lowercase()))
                }
            };
            Some(RemoteFile { name: sibling.rfilename, size, checksum }).filter(RemoteFile::is_sound)
        });
        Ok(Self { commit: sha, files: files.take(FILES_MAX).collect() })
    }

    fn file(&self, name: &str) -> Option<&RemoteFile> {
        self.files.iter().find(|file| file.name == name)
    }

    /// The settings, the vocabulary and the index of the weights, if there is one.
    ///
    /// # Errors
    /// What is missing.
    pub(super) fn settings(&self) -> Result<Vec<RemoteFile>, String> {
        if let Some(missing) = REQUIRED.iter().find(|name| self.file(name).is_none()) {
            return Err(format!("it has no {missing}, which a model needs"));
        }
        if self.file(INDEX).is_none() && self.file(WEIGHTS).is_none() {
            let others =
                ["pytorch_model.bin", "consolidated.safetensors"].into_iter().find(|name| self.file(name).is_some());
            let others = others.map_or_else(String::new, |name| format!(", only {name}"));
            return Err(format!("it has neither {WEIGHTS} nor {INDEX}{others}"));
        }
        // One file with everything goes before the parts, where a repository has both.
        let index = self.file(WEIGHTS).is_none().then_some(&INDEX);
        Ok(REQUIRED.iter().chain(&OPTIONAL).chain(index).filter_map(|name| self.file(name)).cloned().collect())
    }

    /// The weights' files; `index` is the content of the index, if there is one.
    ///
    /// # Errors
    /// What is missing, or wrong with the index.
    pub(super) fn weights(&self, index: Option<&[u8]>) -> Result<Vec<RemoteFile>, String> {
        let names = match index {
            None => BTreeSet::from([WEIGHTS.to_owned()]),
            Some(index) => {
                let index: Index = serde_json::from_slice(index).map_err(|error| format!("{INDEX}: {error}"))?;
                index.weight_map.into_values().collect()
            }
        };
        if names.is_empty() {
            return Err(format!("{INDEX} names no file"));
        }
        if let Some(other) = names.iter().find(|name| !name.ends_with(SAFETENSORS)) {
            return Err(format!("{INDEX} names {other:?}, which is no {SAFETENSORS} file"));
        }
        let found = |name: String| self.file(&name).cloned().ok_or_else(|| format!("it has no {name}"));
        names.into_iter().map(found).collect()
    }
}

#[derive(Deserialize)]
struct Index {
    weight_map: std::collections::BTreeMap<String, String>,
}

fn is_hex(text: &str, length: usize) -> bool {
    text.len() == length && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn listed(files: &[&str]) -> Snapshot {
        let file = |name: &&str| match name.ends_with(".safetensors") {
            true => {
                json!({"rfilename": name, "size": 1, "lfs": {"sha256": "AB".repeat(32), "size": 7, "pointerSize": 1}})
            }
            false => json!({"rfilename": name, "size": 3, "blobId": "c".repeat(40)}),
        };
        let siblings: Vec<_> = files.iter().map(file).collect();
        let list = json!({"sha": "d".repeat(40), "id": "org/name", "siblings": siblings});
        Snapshot::parse(list.to_string().as_bytes()).expect("a list")
    }

    fn names(files: Result<Vec<RemoteFile>, String>) -> Result<Vec<String>, String> {
        files.map(|files| files.into_iter().map(|file| file.name).collect())
    }

    #[test]
    fn names_are_safe_as_paths_and_in_addresses() {
        for name in ["HuggingFaceTB/SmolLM2-135M", "Qwen/Qwen2.5-0.5B", "a/b_c"] {
            assert_eq!(Repository::parse(name).expect("sound").as_str(), name);
        }
        for name in
            ["", "a", "a/", "/a", "a/b/c", "../b", "a/..", ".a/b", "a/b c", "a/b?c", "a/b%2e", "é/b", "-a/b", "a/b\n"]
        {
            Repository::parse(name).expect_err(name);
        }
        assert_eq!(revision_in_url("refs/pr/1").expect("sound"), "refs%2Fpr%2F1");
        for revision in ["", "../x", "a?b", "a//b", "a b"] {
            revision_in_url(revision).expect_err(revision);
        }
    }

    #[test]
    fn only_what_a_model_needs() {
        let rest =
            ["README.md", ".gitattributes", "pytorch_model.bin", "onnx/model.onnx", "original/model.safetensors"];
        let small = ["config.json", "tokenizer.json", "tokenizer_config.json", "vocab.json"];
        let snapshot = listed(&[&rest[..], &small, &["model.safetensors"]].concat());
        let settings = ["config.json", "tokenizer.json", "tokenizer_config.json"];
        assert_eq!(names(snapshot.settings()), Ok(settings.iter().map(ToString::to_string).collect()));
        let weights = snapshot.weights(None).expect("one file");
        let checksum = Checksum::Sha256("ab".repeat(32));
        assert_eq!(weights, [RemoteFile { name: "model.safetensors".into(), size: 7, checksum }]);

        let of_encoder = ["modules.json", "sentence_bert_config.json", "1_Pooling/config.json"];
        let not_needed = ["2_Normalize/config.json", "1_Pooling/../config.json", "a/b/config.json"];
        let snapshot = listed(&[&small[..2], &not_needed, &of_encoder, &["model.safetensors"]].concat());
        let needed = [&small[..2], &of_encoder].concat();
        assert_eq!(names(snapshot.settings()), Ok(needed.iter().map(ToString::to_string).collect()));

        let parts = ["model-1-of-2.safetensors", "model-2-of-2.safetensors", "model-extra.safetensors", INDEX];
        let snapshot = listed(&[&small[..], &parts].concat());
        assert_eq!(names(snapshot.settings()).expect("there").last().map(String::as_str), Some(INDEX));
        let index = |files: &[&str]| {
            let map: serde_json::Map<_, _> =
                files.iter().enumerate().map(|(n, file)| (n.to_string(), json!(file))).collect();
            json!({"metadata": {}, "weight_map": map}).to_string()
        };
        let found = |index: &str| names(snapshot.weights(Some(index.as_bytes())));
        let [one, two, ..] = parts;
        assert_eq!(found(&index(&[two, one, two])), Ok(vec![one.to_owned(), two.to_owned()]));
        assert_eq!(
            found(&index(&[one, "model-3-of-2.safetensors"])),
            Err("it has no model-3-of-2.safetensors".to_owned())
        );
        let other = |name: &str| Err(format!("{INDEX} names {name:?}, which is no .safetensors file"));
        for name in ["../../etc/passwd", "turnflow.json", "config.json"] {
            assert_eq!(found(&index(&[one, name])), other(name));
        }
        assert_eq!(found(&index(&[])), Err(format!("{INDEX} names no file")));
        found("{}").expect_err("no map");
    }

    #[test]
    fn what_is_missing_is_told() {
        let check = |files: &[&str], expected: &str| {
            assert_eq!(names(listed(files).settings()), Err(expected.to_owned()), "{files:?}");
        };
        check(&[], "it has no config.json, which a model needs");
        check(&["config.json", "model.safetensors"], "it has no tokenizer.json, which a model needs");
        let neither = format!("it has neither {WEIGHTS} nor {INDEX}");
        check(&["config.json", "tokenizer.json"], &neither);
        check(&["config.json", "tokenizer.json", "pytorch_model.bin"], &format!("{neither}, only pytorch_model.bin"));
    }

    #[test]
    fn sizes_can_be_added() {
        let lfs = |size: u64| json!({"sha256": "a".repeat(64), "size": size, "pointerSize": 1});
        let list = json!({"sha": "d".repeat(40), "siblings": [
            {"rfilename": "a.safetensors", "lfs": lfs(u64::MAX)},
            {"rfilename": "b.safetensors", "lfs": lfs(FILE_BYTES_MAX)},
            {"rfilename": "c.json", "size": u64::MAX, "blobId": "c".repeat(40)},
        ]});
        let files = Snapshot::parse(list.to_string().as_bytes()).expect("a list").files;
        assert_eq!(names(Ok(files)), Ok(vec!["b.safetensors".to_owned()]));
        assert!(FILE_BYTES_MAX.checked_mul(FILES_MAX as u64).is_some());
    }

    #[test]
    fn lists_that_are_none() {
        for list in ["", "[]", "{}", r#"{"sha": "abc", "siblings": []}"#, r#"{"siblings": []}"#] {
            Snapshot::parse(list.as_bytes()).expect_err(list);
        }
    }
}
