//! The HTTP server: chat completions and embeddings in OpenAI's shape, the knowledge base, and health, on a port of its own.
//!
//! [`serve`] owns the connections and nothing else, as [`grpc::serve`](crate::grpc::serve) does. It speaks HTTP/1.1: a connection carries
//! one request at a time, so the bound on connections bounds requests and streams as well. Every bound on what a connection may
//! hold, and how long, comes from `[http]`, `[limits]` and `[server]` of the configuration; none is left to a library's default.
//! What the routes are and say is described in `docs/API.md` and `openapi.json`.

mod answer;
mod articles;
mod cache;
mod chat;
mod embeddings;
mod error;
mod metrics;
mod models;
mod quota;
mod receive;
mod reload;
mod reply;
mod router;
mod ui;

use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;
use turnflow_pipeline::{Config, Pipeline};

use self::router::App;
use crate::door::{Acceptor, Gateway, Patience, Socket, Terms};

/// Least that a connection reads and writes at once, in bytes.
const BUFFER_BYTES: usize = 64 * 1024;

/// Serves HTTP on `listener`, to those whom `gateway` lets in, until `shutdown` resolves, then ends what is open.
///
/// After `shutdown` no connection and no request is taken, and what was taken is answered. Connections that are still open after
/// `server.shutdown-grace-s` are closed. The pipeline is left running: shut it down next.
///
/// Not cancel-safe: a dropped future closes all connections.
pub async fn serve(
    pipeline: Pipeline,
    gateway: Gateway,
    config: &Config,
    listener: TcpListener,
    shutdown: impl Future<Output = ()>,
) {
    let (stop, stopping) = watch::channel(false);
    let is_local = listener.local_addr().is_ok_and(|address| address.ip().is_loopback());
    let terms = Terms {
        name: "http",
        connections_max: config.http.connections_max,
        protocols: &[b"http/1.1"],
        without_tls: |_| error::without_tls(),
        patience: Patience::of(config),
    };
    let mut acceptor = Acceptor::new(listener, terms, &gateway);
    let app = Arc::new(App::new(pipeline.clone(), gateway, config, is_local, stopping.clone()));
    let live = tokio::spawn(app.live.clone().run(pipeline, stopping.clone()));
    let service = TowerToHyperService::new(router::router(app));
    let mut connections = JoinSet::new();
    let mut shutdown = std::pin::pin!(shutdown);
    loop {
        let (socket, held) = tokio::select! {
            biased;
            () = &mut shutdown => break,
            Some(_) = connections.join_next() => continue,
            accepted = acceptor.next() => accepted,
        };
        let (builder, service, stopping) = (builder(config), service.clone(), stopping.clone());
        connections.spawn(async move {
            serve_connection(builder.serve_connection(TokioIo::new(socket), service), stopping).await;
            drop(held);
        });
    }
    drop(acceptor);
    stop.send_replace(true);
    // It ends at once, and with nothing that anybody waits for.
    drop(live.await);
    let grace = Duration::from_secs(config.server.shutdown_grace_s);
    let ended = async { while connections.join_next().await.is_some() {} };
    if tokio::time::timeout(grace, ended).await.is_err() {
        tracing::warn!("HTTP connections were still open {grace:?} after shutdown began");
    }
}

fn builder(config: &Config) -> http1::Builder {
    let http = &config.http;
    let mut builder = http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(Duration::from_millis(http.head_wait_ms))
        .max_headers(http.headers_max)
        .max_header_size(http.header_bytes_max)
        .max_buf_size(http.header_bytes_max.max(BUFFER_BYTES))
        .keep_alive(true)
        // A client that closes its side is gone: nobody waits for its answer.
        .half_close(false)
        .pipeline_flush(false);
    builder
}

type Served = http1::Connection<TokioIo<Socket>, TowerToHyperService<axum::Router>>;

/// Serves a connection until it is closed, or idle after the server was told to stop.
async fn serve_connection(connection: Served, mut stopping: watch::Receiver<bool>) {
    let mut connection = std::pin::pin!(connection);
    let told_to_stop = async { drop(stopping.wait_for(|&stopping| stopping).await) };
    let served = tokio::select! {
        biased;
        served = connection.as_mut() => served,
        () = told_to_stop => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = served {
        // Clients come and go: their errors are theirs.
        tracing::debug!(error = &error as &dyn std::error::Error, "an HTTP connection ended early");
    }
}
