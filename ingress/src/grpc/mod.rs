//! The gRPC server: conversations, the knowledge base, administration, health and reflection on one port.
//!
//! [`serve`] owns the connections and nothing else: the pipeline is started before it and shut down after it. Every
//! bound on what a connection may hold is set here or in `incoming`, and comes from the configured limits or from a
//! named constant; none is left to a library's default.

mod admin;
mod article;
mod changes;
pub mod client;
pub mod codec;
mod conflict;
mod converse;
mod convert;
mod entries;
mod import;
mod in_process;
mod incoming;
mod knowledge;
mod line;
mod observed;
pub mod proto;
mod refusal;
mod service;
mod stats;
mod web;

use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::watch;
use tonic::codec::CompressionEncoding;
use tonic::service::Routes;
use tonic::transport::Server;
use tonic_health::ServingStatus;
use tonic_health::server::{HealthReporter, health_reporter};
use turnflow_pipeline::{Config, Pipeline, ServerConfig};
use turnflow_state::Limits;

pub use self::conflict::CURRENT_VERSION_KEY;
pub use self::in_process::{InProcess, serve_in_process};
use self::proto::admin_server::AdminServer;
use self::proto::conversations_server::ConversationsServer;
use self::proto::knowledge_base_server::KnowledgeBaseServer;
use self::service::Service;
use crate::backup::Backups;
use crate::door::Gateway;
pub use crate::door::TENANT_DEFAULT;

/// Full name of the service of conversations, for health checks.
pub const SERVICE_NAME: &str = "turnflow.v1.Conversations";
/// Full name of the service of the knowledge base, for health checks.
pub const KNOWLEDGE_SERVICE_NAME: &str = "turnflow.v1.KnowledgeBase";
/// Full name of the service of those who run a server, for health checks.
pub const ADMIN_SERVICE_NAME: &str = "turnflow.v1.Admin";
/// The whole server's name, for health checks.
const WHOLE_SERVER: &str = "";

/// How long a call may take to its first response, on top of the wait for admission: enough to embed a large article.
const RESPONSE_HEAD_MAX: Duration = Duration::from_secs(120);
/// Bytes a stream may send before the server reads them. Turns are small; the rest waits at the client.
const STREAM_WINDOW_BYTES: u32 = 64 * 1024;
/// Bytes a connection may send before the server reads them.
const CONNECTION_WINDOW_BYTES: u32 = 1024 * 1024;
/// Streams that a client may open and reset before the server has seen them (the rapid reset attack).
const PENDING_RESETS_MAX: usize = 20;
/// Streams of a connection that the server may reset for the client's errors before it closes the connection.
const LOCAL_RESETS_MAX: usize = 256;
/// Largest response, in bytes: what clients of every gRPC library accept by default, unless requests may be larger.
const RESPONSE_BYTES_MAX: usize = 4 * 1024 * 1024;
/// What a message with an article may hold besides its text, in bytes.
const ARTICLE_ROOM_BYTES: usize = 64 * 1024;

/// How messages may be compressed; responses are where the client asks for it. What a message decompresses to is bounded as one that was not
/// compressed.
const GZIP: CompressionEncoding = CompressionEncoding::Gzip;

/// Why the server could not serve.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServeError {
    /// The descriptors that reflection serves are broken.
    #[error("preparing gRPC reflection")]
    Reflection(#[from] tonic_reflection::server::Error),
    /// The transport failed.
    #[error("serving gRPC")]
    Transport(#[from] tonic::transport::Error),
}

/// Serves gRPC on `listener`, to those whom `gateway` lets in, until `shutdown` resolves, then ends what is open.
///
/// After `shutdown` the health service says NOT_SERVING, no connection and no turn is taken, the turns that were
/// taken are answered, and their streams end with UNAVAILABLE. Streams that are still open after the configured grace,
/// such as those of a reader that does not read, are left to the end of the process. The pipeline is left running: shut it
/// down next, so that turns without a listener are answered and stored as well.
///
/// Not cancel-safe: a dropped future stops accepting, and leaves open connections without an end.
///
/// # Errors
/// [`ServeError`] when the server cannot start. What goes wrong on one connection stays there.
pub async fn serve(
    pipeline: Pipeline,
    gateway: Gateway,
    config: &Config,
    listener: TcpListener,
    shutdown: impl Future<Output = ()>,
) -> Result<(), ServeError> {
    let limits = &config.limits;
    let (stop, stopping) = watch::channel(false);
    let traffic = gateway.traffic().clone();
    let connections = incoming::accept(listener, &gateway, config);
    let (health, health_service) = health_reporter();
    set_health(&health, ServingStatus::Serving).await;

    let response_bytes_max = RESPONSE_BYTES_MAX.max(limits.message_bytes_max.saturating_mul(2));
    let admin = admin_service(&pipeline, gateway.clone(), config, stopping.clone());
    let knowledge_base = knowledge_service(&pipeline, gateway.clone(), limits, stopping.clone());
    let service = Service::new(pipeline, gateway, Arc::new(limits.clone()), stopping.clone());
    let conversations = ConversationsServer::new(service)
        .accept_compressed(GZIP)
        .send_compressed(GZIP)
        .max_decoding_message_size(limits.message_bytes_max)
        .max_encoding_message_size(response_bytes_max);
    let routes = Routes::new(health_service.max_decoding_message_size(limits.message_bytes_max))
        .add_service(reflection().build_v1()?.max_decoding_message_size(limits.message_bytes_max))
        .add_service(reflection().build_v1alpha()?.max_decoding_message_size(limits.message_bytes_max))
        .add_service(conversations)
        .add_service(knowledge_base)
        .add_service(admin.max_decoding_message_size(limits.message_bytes_max));
    let router = settings(&config.server, limits)
        .add_routes(web::for_pages(observed::observed(routes, traffic), &config.server.grpc_web_origins));

    let told_to_stop = async {
        shutdown.await;
        set_health(&health, ServingStatus::NotServing).await;
        stop.send_replace(true);
    };
    let grace = Duration::from_secs(config.server.shutdown_grace_s);
    tokio::select! {
        served = router.serve_with_incoming_shutdown(connections, told_to_stop) => served?,
        () = overdue(stopping, grace) => tracing::warn!("streams were still open {grace:?} after shutdown began"),
    }
    Ok(())
}

fn admin_service(
    pipeline: &Pipeline,
    gateway: Gateway,
    config: &Config,
    stopping: watch::Receiver<bool>,
) -> AdminServer<admin::Service> {
    let (pipeline, backups) = (pipeline.clone(), Backups::configured(config, pipeline.store()));
    let limits = Arc::new(config.limits.clone());
    AdminServer::new(admin::Service { pipeline, gateway, limits, backups, stopping })
        .accept_compressed(GZIP)
        .send_compressed(GZIP)
}

fn knowledge_service(
    pipeline: &Pipeline,
    gateway: Gateway,
    limits: &Limits,
    stopping: watch::Receiver<bool>,
) -> KnowledgeBaseServer<knowledge::Service> {
    let request_bytes_max = limits.article_bytes_max.saturating_add(ARTICLE_ROOM_BYTES);
    let (knowledge, limits) = (pipeline.knowledge(), Arc::new(limits.clone()));
    KnowledgeBaseServer::new(knowledge::Service { knowledge, limits, gateway, stopping })
        .accept_compressed(GZIP)
        .send_compressed(GZIP)
        .max_decoding_message_size(request_bytes_max)
        .max_encoding_message_size(RESPONSE_BYTES_MAX.saturating_add(request_bytes_max))
}

/// Resolves when streams have had their time to end.
async fn overdue(mut stopping: watch::Receiver<bool>, grace: Duration) {
    // An error means that the server ended first, and then nobody looks at this future again.
    let _ = stopping.wait_for(|&stopping| stopping).await;
    tokio::time::sleep(grace).await;
}

fn settings(server: &ServerConfig, limits: &Limits) -> Server {
    Server::builder()
        .accept_http1(!server.grpc_web_origins.is_empty())
        .timeout(RESPONSE_HEAD_MAX + Duration::from_millis(limits.admission_wait_ms))
        .max_concurrent_streams(limits.streams_per_connection_max)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        // Also bounds a flood of CONTINUATION frames.
        .http2_max_header_list_size(server.header_bytes_max)
        .http2_max_pending_accept_reset_streams(Some(PENDING_RESETS_MAX))
        .http2_max_local_error_reset_streams(Some(LOCAL_RESETS_MAX))
        .http2_keepalive_interval(Some(Duration::from_secs(server.keepalive_interval_s)))
        .http2_keepalive_timeout(Some(Duration::from_secs(server.keepalive_timeout_s)))
}

fn reflection() -> tonic_reflection::server::Builder<'static> {
    tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(proto::FILE_DESCRIPTOR_SET)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
}

async fn set_health(health: &HealthReporter, status: ServingStatus) {
    for name in [WHOLE_SERVER, SERVICE_NAME, KNOWLEDGE_SERVICE_NAME, ADMIN_SERVICE_NAME] {
        health.set_service_status(name, status).await;
    }
}

#[cfg(test)]
mod tests {
    use tonic::server::NamedService;

    use super::*;

    #[test]
    fn health_is_reported_under_the_services_names() {
        assert_eq!(<ConversationsServer<Service> as NamedService>::NAME, SERVICE_NAME);
        assert_eq!(<AdminServer<admin::Service> as NamedService>::NAME, ADMIN_SERVICE_NAME);
        assert_eq!(<KnowledgeBaseServer<knowledge::Service> as NamedService>::NAME, KNOWLEDGE_SERVICE_NAME);
    }
}
