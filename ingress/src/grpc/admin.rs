//! The calls of the `Admin` service.

use std::sync::Arc;

use tokio::sync::watch;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Request, Response, Status};
use tonic_types::{ErrorDetails, StatusExt};
use turnflow_pipeline::{LISTED_MAX, Pipeline};
use turnflow_state::Limits;

use super::article::{Room, count};
use super::entries::{entry, no_entry, selection};
use super::proto::admin_server::Admin;
use super::proto::{
    BackupRequest, BackupResponse, DrainRequest, DrainResponse, EntrySelection, FlushRequest, FlushResponse,
    GetEntryRequest, GetEntryResponse, ListEntriesRequest, ListEntriesResponse, StatsRequest, StatsResponse,
};
use super::service::stream;
use super::stats;
use crate::backup::{BackupError, BackupName, Backups};
use crate::door::{Caller, Conflict, Gateway, Refusal};
use crate::keys::Scope;

/// Cached answers of a list, when the client does not say.
const LISTED_DEFAULT: usize = 50;
/// How far apart the responses of `Stats` may be, in milliseconds, and how far they are when the client does not say.
const INTERVAL_MS: std::ops::RangeInclusive<u32> = 100..=60_000;
const INTERVAL_MS_DEFAULT: u32 = 1_000;

/// The `Admin` service.
pub(super) struct Service {
    pub(super) pipeline: Pipeline,
    pub(super) gateway: Gateway,
    pub(super) limits: Arc<Limits>,
    /// None where the configuration names no folder for them.
    pub(super) backups: Option<Backups>,
    /// Turns true once, when the server is told to stop.
    pub(super) stopping: watch::Receiver<bool>,
}

impl Service {
    /// Lets those through who may call, and have not called too often.
    fn admit<T>(&self, request: Request<T>, scope: Scope) -> Result<(Caller, T), Refusal> {
        if *self.stopping.borrow() {
            return Err(Refusal::Unavailable);
        }
        let caller = self.gateway.caller(request.metadata().as_ref(), scope)?;
        caller.request()?;
        Ok((caller, request.into_inner()))
    }
}

#[tonic::async_trait]
impl Admin for Service {
    type StatsStream = ReceiverStream<Result<StatsResponse, Status>>;

    async fn backup(&self, request: Request<BackupRequest>) -> Result<Response<BackupResponse>, Status> {
        let name = name(&self.admit(request, Scope::Operator)?.1.name)?;
        let Some(backups) = self.backups.clone() else {
            return Err(Status::failed_precondition("storage.backup-folder is not set"));
        };
        let made = tokio::task::spawn_blocking(move || backups.make(name)).await;
        let made = made.map_err(|panicked| failed(&panicked))?.map_err(|error| status(&error))?;
        Ok(Response::new(BackupResponse {
            name: made.name.as_str().to_owned(),
            path: made.path.display().to_string(),
            files: u32::try_from(made.files).unwrap_or(u32::MAX),
            bytes: made.bytes,
        }))
    }

    async fn stats(&self, request: Request<StatsRequest>) -> Result<Response<Self::StatsStream>, Status> {
        let (caller, StatsRequest { interval_ms }) = self.admit(request, Scope::Admin)?;
        let interval_ms = if interval_ms == 0 { INTERVAL_MS_DEFAULT } else { interval_ms };
        if !INTERVAL_MS.contains(&interval_ms) {
            let message = format!("{interval_ms}, {} to {} are allowed", INTERVAL_MS.start(), INTERVAL_MS.end());
            return Err(Conflict::invalid("interval_ms", message).into());
        }
        stream(caller, &self.limits, |caller, out, last| {
            stats::tell(self.pipeline.clone(), caller, interval_ms, out, last, self.stopping.clone())
        })
    }

    async fn list_entries(
        &self,
        request: Request<ListEntriesRequest>,
    ) -> Result<Response<ListEntriesResponse>, Status> {
        let (caller, ListEntriesRequest { selection: wanted, limit }) = self.admit(request, Scope::Admin)?;
        let limit = match limit as usize {
            0 => LISTED_DEFAULT,
            limit if limit <= LISTED_MAX => limit,
            limit => {
                return Err(Conflict::invalid("limit", format!("{limit}, at most {LISTED_MAX} are allowed")).into());
            }
        };
        let selection = selection(caller.tenant, wanted.unwrap_or_default())?;
        let listing = self.pipeline.caches().list(selection, limit).await.map_err(Conflict::from)?;
        let mut room = Room::default();
        let entries = listing.entries.iter().map(|found| entry(found, false)).take_while(|entry| room.takes(entry));
        Ok(Response::new(ListEntriesResponse { entries: entries.collect(), matched: listing.matched as u64 }))
    }

    async fn get_entry(&self, request: Request<GetEntryRequest>) -> Result<Response<GetEntryResponse>, Status> {
        let (caller, GetEntryRequest { id }) = self.admit(request, Scope::Admin)?;
        let wanted = EntrySelection { entry: Some(id), ..Default::default() };
        let selection = selection(caller.tenant, wanted)?;
        let found = self.pipeline.caches().list(selection, 1).await.map_err(Conflict::from)?.entries.pop();
        let found = found.ok_or_else(|| no_entry(id))?;
        Ok(Response::new(GetEntryResponse { entry: Some(entry(&found, true)) }))
    }

    async fn flush(&self, request: Request<FlushRequest>) -> Result<Response<FlushResponse>, Status> {
        let (caller, FlushRequest { selection: wanted, all, dry_run }) = self.admit(request, Scope::Admin)?;
        let wanted = wanted.unwrap_or_default();
        if (wanted == EntrySelection::default()) != all {
            let message = "set it for all cached answers, and otherwise an entry, an article or words in `selection`";
            return Err(Conflict::invalid("all", message).into());
        }
        let tenant = caller.tenant.clone();
        let selection = selection(caller.tenant, wanted.clone())?;
        let caches = self.pipeline.caches();
        if dry_run {
            let matched = caches.list(selection, 0).await.map_err(Conflict::from)?.matched;
            return Ok(Response::new(FlushResponse { entries: matched as u64, epoch: 0 }));
        }
        let flushed = caches.flush(selection).await.map_err(Conflict::from)?;
        let EntrySelection { entry, article_id: article, text } = wanted;
        // Words may be a customer's.
        let (has_text, count) = (!text.is_empty(), flushed.entries);
        tracing::info!(%tenant, entry, article, has_text, count, "the caches were flushed");
        Ok(Response::new(FlushResponse { entries: flushed.entries as u64, epoch: flushed.epoch }))
    }

    async fn drain(&self, request: Request<DrainRequest>) -> Result<Response<DrainResponse>, Status> {
        self.admit(request, Scope::Operator)?;
        tracing::info!("an operator asked for the end");
        self.pipeline.drain();
        Ok(Response::new(DrainResponse { turns_in_flight: count(self.pipeline.stats().turns_in_flight) }))
    }
}

fn name(text: &str) -> Result<Option<BackupName>, Status> {
    let name = (!text.is_empty()).then(|| text.parse()).transpose();
    name.map_err(|message: String| {
        let details = ErrorDetails::with_bad_request_violation("name", message.clone());
        Status::with_error_details(Code::InvalidArgument, format!("name: {message}"), details)
    })
}

fn status(error: &BackupError) -> Status {
    match error {
        BackupError::Exists(_) => Status::already_exists(error.to_string()),
        BackupError::Busy => Status::aborted(error.to_string()),
        _ => failed(error),
    }
}

fn failed(error: &(dyn std::error::Error + 'static)) -> Status {
    tracing::error!(error, "a backup failed");
    Refusal::Internal.into()
}
