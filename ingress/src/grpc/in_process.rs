//! The knowledge base's service without a network: for a process that is its own and only client.

use std::io;

use hyper_util::rt::TokioIo;
use tokio::sync::watch;
use tonic::transport::{Channel, Endpoint, Uri};
use tower::service_fn;
use turnflow_pipeline::{Config, Pipeline};
use turnflow_state::TenantId;

use super::{ServeError, knowledge_service, settings};
use crate::door::Gateway;

/// Bytes that are on their way from one end to the other.
const PIPE_BYTES: usize = 64 * 1024;

/// A connection to the pipeline of this process.
pub struct InProcess {
    /// The client's end.
    pub channel: Channel,
    /// The service takes its end for the wish to stop.
    _stop: watch::Sender<bool>,
}

/// Serves a tenant's knowledge base on one connection within this process, until the connection is dropped.
///
/// # Errors
/// [`ServeError`] when the connection cannot be set up.
pub async fn serve_in_process(pipeline: &Pipeline, config: &Config, tenant: TenantId) -> Result<InProcess, ServeError> {
    let (stop, stopping) = watch::channel(false);
    let (near, far) = tokio::io::duplex(PIPE_BYTES);
    let service = knowledge_service(pipeline, Gateway::keyless(tenant), &config.limits, stopping);
    // Returns once there are no more connections to accept; the one there is goes on.
    let connections = tokio_stream::once(Ok::<_, io::Error>(far));
    settings(&config.server, &config.limits).add_service(service).serve_with_incoming(connections).await?;
    let mut near = Some(near);
    let connector = service_fn(move |_: Uri| {
        let end = near.take().map(TokioIo::new).ok_or_else(|| io::Error::other("the connection was lost"));
        std::future::ready(end)
    });
    let channel = Endpoint::from_static("http://in-process").connect_with_connector(connector).await?;
    Ok(InProcess { channel, _stop: stop })
}
