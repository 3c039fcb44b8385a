//! The calls of the `Admin` service.

use tokio::sync::watch;
use tonic::{Code, Request, Response, Status};
use tonic_types::{ErrorDetails, StatusExt};

use super::proto::admin_server::Admin;
use super::proto::{BackupRequest, BackupResponse};
use crate::backup::{BackupError, BackupName, Backups};
use crate::door::{Gateway, Refusal};
use crate::keys::Scope;

/// The `Admin` service.
pub(super) struct Service {
    pub(super) gateway: Gateway,
    /// None where the configuration names no folder for them.
    pub(super) backups: Option<Backups>,
    /// Turns true once, when the server is told to stop.
    pub(super) stopping: watch::Receiver<bool>,
}

impl Service {
    /// Lets those through who may call.
    fn admit<T>(&self, request: Request<T>) -> Result<T, Refusal> {
        if *self.stopping.borrow() {
            return Err(Refusal::Unavailable);
        }
        self.gateway.caller(request.metadata().as_ref(), Scope::Admin)?;
        Ok(request.into_inner())
    }
}

#[tonic::async_trait]
impl Admin for Service {
    async fn backup(&self, request: Request<BackupRequest>) -> Result<Response<BackupResponse>, Status> {
        let name = name(&self.admit(request)?.name)?;
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
