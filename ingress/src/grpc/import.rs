//! One stream of `Import`: articles are written as they come, and what waits is written together.
//!
//! A batch is what the connection has received, up to the bounds below; while it is written nothing is read, so that a
//! client that sends faster than articles are written is held back by flow control.

use std::collections::HashSet;

use prost::Message as _;
use tokio::sync::watch;
use tonic::{Status, Streaming};
use turnflow_pipeline::{ArticleDraft, Knowledge};

use super::article::{count, draft};
use super::conflict::outcome_of;
use super::proto::import_response::Outcome;
use super::proto::{ArticleWritten, ImportRequest, ImportResponse};
use crate::door::{Caller, Conflict, CutOff as _, LastWord, Outlet, Refusal};

/// Articles that are written together.
const BATCH_ARTICLES_MAX: usize = 64;
/// Bytes of articles that are written together, but for the last one.
const BATCH_BYTES_MAX: usize = 1024 * 1024;

/// What goes to the client.
type Told = Result<ImportResponse, Status>;

/// One open stream.
pub(super) struct Import {
    pub(super) knowledge: Knowledge,
    pub(super) caller: Caller,
    pub(super) out: Outlet<Told>,
}

/// What comes behind a batch.
enum Next {
    /// A request that was read and belongs to the next batch.
    Read(ImportRequest),
    /// Nothing that has come yet.
    Later,
    /// The client's half-close, or a broken request.
    End(Result<(), Status>),
}

impl Import {
    /// Serves the stream to its end: the client's half-close, a broken request, the server's shutdown, or a client that is
    /// gone, does not read, or has a key that counts no more.
    pub(super) async fn run(
        self,
        mut requests: Streaming<ImportRequest>,
        mut stopping: watch::Receiver<bool>,
        last: Option<LastWord<Told>>,
    ) {
        let end = tokio::select! {
            biased;
            () = self.out.closed() => return,
            () = self.caller.ended() => Err(Refusal::Unauthenticated.into()),
            end = self.serve(&mut requests, &mut stopping) => end,
        };
        if let (Err(status), Some(last)) = (end, last) {
            last.say(Err(status));
        }
    }

    async fn serve(
        &self,
        requests: &mut Streaming<ImportRequest>,
        stopping: &mut watch::Receiver<bool>,
    ) -> Result<(), Status> {
        let (mut index, mut next) = (0, Next::Later);
        loop {
            let first = match next {
                Next::Read(request) => request,
                Next::End(end) => return end,
                Next::Later => tokio::select! {
                    biased;
                    _ = stopping.wait_for(|&stopping| stopping) => return Err(Refusal::Unavailable.into()),
                    request = requests.message() => match request? {
                        Some(request) => request,
                        None => return Ok(()),
                    },
                },
            };
            let batch;
            (batch, next) = gather(first, requests).await;
            index = self.write(batch, index).await?;
        }
    }

    /// Writes a batch whose first article has this place on the stream; returns the place of the next one.
    async fn write(&self, batch: Vec<ImportRequest>, mut index: u64) -> Result<u64, Status> {
        let mut ids = Vec::with_capacity(batch.len());
        let mut drafts: Vec<ArticleDraft> = Vec::new();
        // None for what is in the drafts.
        let mut refused: Vec<Option<Conflict>> = Vec::new();
        for ImportRequest { article, expected_version } in batch {
            // Echoed as it came even when it is not a valid id: the client knows its articles by nothing else.
            ids.push(article.as_ref().map_or_else(String::new, |article| article.id.clone()));
            refused.push(draft(article, expected_version).map(|draft| drafts.push(draft)).err());
        }
        let names: Vec<_> = drafts.iter().map(|draft| draft.id.clone()).collect();
        let receipt = self.knowledge.write(&self.caller.tenant, drafts).await.map_err(Conflict::from)?;
        let mut invalidated = count(receipt.invalidated.len());
        let mut outcomes = names.iter().zip(receipt.outcomes);
        let mut responses = Vec::with_capacity(ids.len());
        for (id, refused) in ids.into_iter().zip(refused) {
            let outcome = match refused {
                Some(conflict) => Err(conflict),
                None => match outcomes.next() {
                    Some((name, outcome)) => outcome.map_err(|error| Conflict::of_draft(name, error)),
                    None => Err(Refusal::Internal.into()),
                },
            };
            let outcome = match outcome {
                Ok(outcome) => Outcome::Written(ArticleWritten {
                    version: outcome.version,
                    epoch: receipt.epoch,
                    chunks: count(outcome.chunks),
                    chunks_changed: count(outcome.chunks_changed),
                    cached_answers_invalidated: 0,
                }),
                Err(conflict) => Outcome::Refused(outcome_of(conflict)?),
            };
            responses.push(ImportResponse { index, id, outcome: Some(outcome) });
            index += 1;
        }
        for response in responses.iter_mut().rev() {
            if let Some(Outcome::Written(written)) = &mut response.outcome {
                written.cached_answers_invalidated = std::mem::take(&mut invalidated);
            }
        }
        for response in responses {
            if self.out.tell(Ok(response)).await.is_err() {
                // A client that is gone is noticed in `run`; one that is not does not read.
                Told::too_slow(self.out.wait())?;
            }
        }
        Ok(index)
    }
}

/// What has come, without waiting for more. An article that is named again belongs to the next batch: the later one
/// counts.
async fn gather(first: ImportRequest, requests: &mut Streaming<ImportRequest>) -> (Vec<ImportRequest>, Next) {
    let (mut named, mut bytes) = (HashSet::from([id_of(&first)]), first.encoded_len());
    let mut batch = vec![first];
    while batch.len() < BATCH_ARTICLES_MAX && bytes < BATCH_BYTES_MAX {
        let request = tokio::select! {
            biased;
            request = requests.message() => request,
            () = std::future::ready(()) => return (batch, Next::Later),
        };
        match request {
            Ok(Some(request)) if named.insert(id_of(&request)) => {
                bytes += request.encoded_len();
                batch.push(request);
            }
            Ok(Some(request)) => return (batch, Next::Read(request)),
            Ok(None) => return (batch, Next::End(Ok(()))),
            Err(status) => return (batch, Next::End(Err(status))),
        }
    }
    (batch, Next::Later)
}

fn id_of(request: &ImportRequest) -> String {
    request.article.as_ref().map_or_else(String::new, |article| article.id.clone())
}
