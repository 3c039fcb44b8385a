//! The Hugging Face hub, or a server of the same kind: what files a repository has, and the files themselves.
//!
//! Contract: a download that breaks off is continued where it stopped, as long as each attempt gets further and there are not too
//! many; no more bytes are read than were announced, and a server that falls silent is given up on. A hub that has never answered is not
//! asked twice. What was read is not verified here. The token goes to the hub's host and port alone, never to another that it
//! redirects to, and into no error.
//!
//! How it is split: this file speaks HTTP, `snapshot.rs` says which files of a repository a model needs, `install.rs`
//! puts them in their place, verified.

mod install;
mod snapshot;

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek as _, Write as _};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

pub(crate) use install::RECORD;
pub use install::{Installed, InstalledFile, install, installed};
pub(crate) use snapshot::{Checksum, RemoteFile};

use crate::error::ModelError;
use crate::remote::ErrorBody;
use crate::secret::Secret;
use snapshot::{Repository, Snapshot};
use ureq::http::{Response, Uri, header, uri};

const HUB: &str = "https://huggingface.co";
/// A closed network must be noticed quickly.
const CONNECT_SECONDS_MAX: u64 = 5;
/// A server that says nothing for so long is given up on.
const SILENCE_SECONDS_MAX: u64 = 30;
/// Attempts in a row that get no further.
const ATTEMPTS_MAX: u32 = 4;
/// Attempts in all: so many for any file, and one more for each of its mebibytes.
const ATTEMPTS_FILE_MAX: u64 = 16;
const WAIT_FIRST: Duration = Duration::from_millis(250);
const REDIRECTS_MAX: usize = 10;
const LIST_BYTES_MAX: u64 = 16 * 1024 * 1024;
const WORDS_BYTES_MAX: u64 = 4096;
const COPY_BUFFER_BYTES: usize = 256 * 1024;
const NOT_PARTIAL: &str = "the server continues where it was not asked to";

/// A hub, and the leave to ask it.
#[derive(Clone, Debug)]
pub struct Hub {
    agent: ureq::Agent,
    endpoint: String,
    token: Option<Secret>,
    wait_first: Duration,
    /// Whether it has ever answered: else there may be no way to it.
    has_answered: Arc<AtomicBool>,
}

/// How an attempt to read a file ended, when it did not end well.
enum Broken {
    /// Trying again cannot help.
    Final(ModelError),
    /// It can.
    Passing(ModelError),
}

impl Hub {
    /// The hub that the environment names: `HF_ENDPOINT`, else Hugging Face's, with the token in `HF_TOKEN` if there is one.
    ///
    /// # Errors
    /// [`ModelError::Secret`] when the token is none.
    pub fn from_env() -> Result<Self, ModelError> {
        let set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
        let token = set("HF_TOKEN").then(|| Secret::from_env("HF_TOKEN")).transpose()?;
        let endpoint = std::env::var("HF_ENDPOINT").ok().filter(|endpoint| !endpoint.is_empty());
        Ok(Self::new(endpoint.as_deref().unwrap_or(HUB), token))
    }

    /// The hub at this address.
    #[must_use]
    pub fn new(endpoint: &str, token: Option<Secret>) -> Self {
        let seconds = |seconds| Some(Duration::from_secs(seconds));
        let config = ureq::Agent::config_builder()
            .timeout_resolve(seconds(CONNECT_SECONDS_MAX))
            .timeout_connect(seconds(CONNECT_SECONDS_MAX))
            .timeout_recv_response(seconds(SILENCE_SECONDS_MAX))
            .timeout_per_read(seconds(SILENCE_SECONDS_MAX))
            .http_status_as_error(false)
            .max_redirects(0)
            // Sizes, ranges and checksums are those of files as they are.
            .accept_encoding("identity")
            .user_agent(concat!("turnflow/", env!("CARGO_PKG_VERSION")))
            .build();
        let agent = ureq::Agent::new_with_config(config);
        let endpoint = endpoint.trim_end_matches('/').to_owned();
        Self { agent, endpoint, token, wait_first: WAIT_FIRST, has_answered: Arc::default() }
    }

    #[cfg(test)]
    pub(crate) fn impatient(endpoint: &str, token: Option<Secret>) -> Self {
        Self { wait_first: Duration::from_millis(1), ..Self::new(endpoint, token) }
    }

    /// The files of a repository at a revision.
    pub(crate) fn snapshot(&self, repository: &Repository, revision: &str) -> Result<Snapshot, ModelError> {
        let revision = snapshot::revision_in_url(revision)?;
        let url = format!("{}/api/models/{repository}/revision/{revision}?blobs=true", self.endpoint);
        let mut response = self.get(&url, 0)?;
        if response.status() != 200 {
            return Err(self.refusal(&url, response));
        }
        let failed = |source| ModelError::Download { url: url.clone(), source };
        let list = response.body_mut().with_config().limit(LIST_BYTES_MAX).read_to_vec();
        Snapshot::parse(&list.map_err(|error| failed(Box::new(error)))?).map_err(|reason| failed(reason.into()))
    }

    /// Reads a file, `bytes_max` long at most, to the end of `to`, which may hold the beginning of it already. One byte more is read,
    /// so that a longer file is found out by its size.
    ///
    /// # Errors
    /// [`ModelError::Hub`] when the hub refuses, [`ModelError::Download`] when it gets no further.
    pub(crate) fn download(
        &self,
        place: &FilePlace<'_>,
        bytes_max: u64,
        to: &Path,
        progress: &dyn Fn(u64),
    ) -> Result<(), ModelError> {
        let io = |action| ModelError::io(action, to);
        let mut file = OpenOptions::new().create(true).append(true).open(to).map_err(io("write"))?;
        let url = format!("{}/{}/resolve/{}/{}", self.endpoint, place.repository, place.revision, place.file);
        let attempts_max = ATTEMPTS_FILE_MAX + (bytes_max >> 20);
        let (mut attempts, mut fruitless) = (0, 0);
        loop {
            let before = file.metadata().map_err(io("read"))?.len();
            if before > bytes_max {
                file.set_len(0).map_err(io("shorten"))?;
                continue;
            }
            match self.read_on(&url, before, bytes_max, &mut file, to, progress) {
                Ok(()) => return file.sync_all().map_err(io("write")),
                Err(Broken::Final(error)) => return Err(error),
                Err(Broken::Passing(error)) => {
                    let after = file.metadata().map_err(io("read"))?.len();
                    fruitless = if after > before { 0 } else { fruitless + 1 };
                    attempts += 1;
                    if fruitless >= ATTEMPTS_MAX || attempts >= attempts_max {
                        return Err(error);
                    }
                    tracing::warn!(error = crate::error::chain(&error), bytes = after, "a download goes on");
                    std::thread::sleep(self.wait_first.saturating_mul(1 << fruitless));
                }
            }
        }
    }

    /// One attempt at the rest of a file. `done` bytes are there.
    fn read_on(
        &self,
        url: &str,
        done: u64,
        bytes_max: u64,
        file: &mut File,
        path: &Path,
        progress: &dyn Fn(u64),
    ) -> Result<(), Broken> {
        let failed = |source| Broken::Passing(ModelError::Download { url: url.to_owned(), source });
        let local = |action| move |error| Broken::Final(ModelError::io(action, path)(error));
        let has_answered = || self.has_answered.load(Ordering::Relaxed);
        let unreached = |error| if has_answered() { Broken::Passing(error) } else { Broken::Final(error) };
        let mut response = self.get(url, done).map_err(unreached)?;
        let mut done = match response.status().as_u16() {
            // A file that is there in full has no rest.
            416 if done == bytes_max => return Ok(()),
            206 if begins_at(&response) == Some(done) => done,
            206 => return Err(failed(NOT_PARTIAL.into())),
            // The server gives the whole file, asked for the rest or not; or has another, shorter one.
            200 | 416 => {
                file.set_len(0).map_err(local("shorten"))?;
                0
            }
            status => {
                let error = self.refusal(url, response);
                let is_passing = matches!(status, 408 | 429 | 500..=599);
                return Err(if is_passing { Broken::Passing(error) } else { Broken::Final(error) });
            }
        };
        if response.status() == 416 {
            return Err(failed("the server has no more than what is there already".into()));
        }
        file.seek(std::io::SeekFrom::End(0)).map_err(local("write"))?;
        // The client refuses bodies over 10 MB unless it is told how many bytes are expected.
        let body = response.body_mut().with_config().limit(bytes_max + 2).reader();
        let mut body = body.take(bytes_max + 1 - done);
        let mut buffer = vec![0; COPY_BUFFER_BYTES];
        loop {
            let read = body.read(&mut buffer).map_err(|error| failed(Box::new(error)))?;
            if read == 0 {
                return Ok(());
            }
            file.write_all(&buffer[..read]).map_err(local("write"))?;
            done += read as u64;
            progress(done);
        }
    }

    /// Asks for a resource from byte `from` on.
    fn get(&self, url: &str, from: u64) -> Result<Response<ureq::Body>, ModelError> {
        let failed = |source| ModelError::Download { url: url.to_owned(), source };
        let hub: Uri = url.parse().map_err(|error: uri::InvalidUri| failed(error.into()))?;
        let mut place = hub.clone();
        for _ in 0..=REDIRECTS_MAX {
            let mut request = self.agent.get(&place);
            if let Some(token) = &self.token
                && (place.scheme(), place.authority()) == (hub.scheme(), hub.authority())
            {
                request = request.header(header::AUTHORIZATION, token.bearer());
            }
            if from > 0 {
                request = request.header(header::RANGE, format!("bytes={from}-"));
            }
            let response = request.call().map_err(|error| failed(error.into()))?;
            self.has_answered.store(true, Ordering::Relaxed);
            match redirection(&place, &response) {
                Some(next) => place = next,
                None => return Ok(response),
            }
        }
        Err(failed(format!("more than {REDIRECTS_MAX} redirects").into()))
    }

    /// The error of a response that is none of those expected, in the hub's words.
    fn refusal(&self, url: &str, mut response: Response<ureq::Body>) -> ModelError {
        let status = response.status().as_u16();
        let told = response.headers().get("x-error-message").map(|value| value.as_bytes().to_owned());
        let words = told.or_else(|| response.body_mut().with_config().limit(WORDS_BYTES_MAX).read_to_vec().ok());
        let body = ErrorBody { bytes: &words.unwrap_or_default(), is_cut: false };
        let message = body.words(response.status().canonical_reason(), self.token.as_ref());
        ModelError::Hub { url: url.to_owned(), status, message }
    }
}

/// Where a file is on the hub.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FilePlace<'a> {
    /// `ORG/NAME`.
    pub(crate) repository: &'a str,
    /// A commit.
    pub(crate) revision: &'a str,
    /// The file's name.
    pub(crate) file: &'a str,
}

/// Where a response of what is at `place` sends to: another address, or another path there.
fn redirection<B>(place: &Uri, response: &Response<B>) -> Option<Uri> {
    if !matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308) {
        return None;
    }
    let next: Uri = response.headers().get(header::LOCATION)?.to_str().ok()?.parse().ok()?;
    if next.authority().is_some() {
        return Some(next);
    }
    let mut parts = place.clone().into_parts();
    parts.path_and_query = next.into_parts().path_and_query;
    Uri::from_parts(parts).ok()
}

/// The first byte of a partial response.
fn begins_at<B>(response: &Response<B>) -> Option<u64> {
    let range = response.headers().get("content-range")?.to_str().ok()?;
    range.strip_prefix("bytes ")?.split('-').next()?.parse().ok()
}

#[cfg(test)]
mod server;
#[cfg(test)]
mod tests;
