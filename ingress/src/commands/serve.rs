//! `serve`: everything is checked and loaded before a port opens, and everything admitted is answered and written
//! before the process ends.

use std::net::SocketAddr;
use std::path::Path;

use anyhow::Context as _;
use serde_json::json;
use tokio::net::TcpListener;
use tokio::sync::watch;
use turnflow_pipeline::{Config, Knowledge, Pipeline};
use turnflow_state::TenantId;

use super::running::Running;
use super::signal::{Hangups, shutdown_signal};
use super::{Context, keys, named, open};
use crate::cli::{HttpArg, ServeArgs};
use crate::door::{Gateway, reload};
use crate::failure::Failure;
use crate::grpc::{self, TENANT_DEFAULT};
use crate::http;
use crate::sample;
use crate::say::say;

pub(super) fn run(context: &Context, args: &ServeArgs) -> Result<(), Failure> {
    let runtime = open::runtime()?;
    // A reload that is asked for while the server starts does not end it; it is done when the server is ready.
    let hangups = runtime.block_on(async { Hangups::new() })?;
    let dir = context.data_dir(args.store.data.as_ref())?;
    named::require(context, &dir)?;
    let files = keys::files(context, Some(&dir))?;
    let gateway = Gateway::open(files.clone(), TenantId::new(TENANT_DEFAULT)?).map_err(keys::failed)?;
    let gateway = gateway.with_tls(&context.config.server.tls).map_err(Failure::usage)?;
    gateway.limit(&context.config);
    let addresses = Addresses::of(context, args);
    // What is beside the store by default is where the server says from here on.
    let mut config = context.config.clone();
    config.gateway.keys = files.path().to_owned();
    config.storage.backup_folder = context.backup_folder(&dir);
    let context = &context.with(config);
    guard(&gateway, &addresses, context.config.gateway.open)?;
    let store = open::store(context, &dir)?;
    let parts = open::parts(context, store)?;
    runtime.block_on(async {
        // When it has returned, no cached answer of an earlier run is served that has become invalid.
        let pipeline = Pipeline::start(&context.config, &parts)?;
        let served = match stock(context, args, &pipeline.knowledge()).await {
            Ok(()) => serve(context, (&dir, &addresses), &gateway, &pipeline, hangups).await,
            Err(failure) => Err(failure),
        };
        pipeline.shutdown().await;
        tracing::info!("stopped");
        served
    })
}

/// Sees to it that there is a knowledge base, or says how to get one.
async fn stock(context: &Context, args: &ServeArgs, knowledge: &Knowledge) -> Result<(), Failure> {
    let stats = knowledge.stats();
    if stats.articles > 0 {
        say!("knowledge base: {} articles in {} chunks", stats.articles, stats.chunks);
    } else if args.sample {
        let articles = sample::articles(&context.config.limits)?;
        let summary = open::import(knowledge, &TenantId::new(TENANT_DEFAULT)?, articles).await?;
        say!("knowledge base: the sample shop, {} articles in {} chunks", summary.articles, summary.chunks);
    } else {
        say!("the knowledge base is empty, so every answer will be \"I do not know\"");
        say!("  import yours, now or later: turnflow kb import FILE.jsonl");
        say!("  or try the sample shop: turnflow serve --sample");
    }
    Ok(())
}

/// Where to listen.
struct Addresses {
    grpc: SocketAddr,
    http: Option<SocketAddr>,
}

impl Addresses {
    fn of(context: &Context, args: &ServeArgs) -> Self {
        let config = &context.config;
        let http = match args.http {
            Some(HttpArg::Off) => None,
            Some(HttpArg::At(listen)) => Some(listen),
            None => config.http.enabled.then_some(config.http.listen),
        };
        Self { grpc: args.listen.unwrap_or(config.server.listen), http }
    }
}

/// Keeps other machines out as long as nobody needs a key, and says who may call.
fn guard(gateway: &Gateway, addresses: &Addresses, open: bool) -> Result<(), Failure> {
    if gateway.needs_key() {
        return Ok(());
    }
    let outside = [Some(addresses.grpc), addresses.http].into_iter().flatten().find(|at| !at.ip().is_loopback());
    match outside {
        Some(address) if !open => {
            let (error, remedy) = keys::unguarded(address);
            return Err(Failure::usage(error).with_hint(remedy));
        }
        Some(address) => {
            tracing::warn!("there are no keys: everybody who reaches {address} may call");
        }
        None => tracing::info!("there are no keys: everybody on this machine may call"),
    }
    Ok(())
}

async fn serve(
    context: &Context,
    (dir, addresses): (&Path, &Addresses),
    gateway: &Gateway,
    pipeline: &Pipeline,
    hangups: Hangups,
) -> Result<(), Failure> {
    let config: &Config = &context.config;
    // Before a port opens, so that a signal that comes right after the announcement ends the server in order.
    let signal = shutdown_signal()?;
    let (of_pipeline, of_gateway) = (pipeline.clone(), gateway.clone());
    // What comes of it is in the log.
    let reloading = hangups.each(move || drop(reload(&of_pipeline, &of_gateway)));
    let (listener, address) = bind(addresses.grpc, "--listen").await?;
    let http = match addresses.http {
        Some(listen) => Some(bind(listen, "--http").await?),
        None => None,
    };
    let http_address = http.as_ref().map(|(_, address)| *address);
    let tls = config.server.tls.is_on();
    let running = Running { pid: std::process::id(), grpc: address, http: http_address, tls };
    // It serves without as well; only checks beside it do not know it then.
    let _announced =
        running.announce(dir).inspect_err(|error| tracing::warn!("a check will not know this server: {error}"));
    let (before, scheme) = if tls { ("https://", "https") } else { ("", "http") };
    let mut text = format!("listening on {before}{address}\n");
    if let Some(address) = http_address {
        text += &format!("listening on {scheme}://{address}\n");
    }
    context.print(&json!({ "listening": address, "http": http_address, "tls": tls }), text)?;

    let (stop, stopping) = watch::channel(false);
    let told_to_stop = || {
        let mut stopping = stopping.clone();
        // An error means that nobody can tell any more, so it is time.
        async move { drop(stopping.wait_for(|&stopping| stopping).await) }
    };
    let wait = async {
        tokio::select! {
            () = signal => say!("stopping: no new turns, finishing those that were admitted"),
            () = pipeline.drained() => say!("stopping, as an operator asked: finishing the turns that were admitted"),
            () = told_to_stop() => {}
            () = reloading => {}
        }
        stop.send_replace(true);
    };
    let grpc = async {
        let served = grpc::serve(pipeline.clone(), gateway.clone(), config, listener, told_to_stop()).await;
        // When it cannot serve, neither does the other.
        stop.send_replace(true);
        served
    };
    let http = async {
        if let Some((listener, _)) = http {
            http::serve(pipeline.clone(), gateway.clone(), config, listener, told_to_stop()).await;
        }
    };
    let (served, (), ()) = tokio::join!(grpc, http, wait);
    Ok(served?)
}

/// Listens at an address that `flag` can change.
async fn bind(listen: SocketAddr, flag: &str) -> Result<(TcpListener, SocketAddr), Failure> {
    let listener = TcpListener::bind(listen).await.with_context(|| format!("cannot listen on {listen}"));
    let listener = listener.map_err(|error| {
        Failure::from(error).with_hint(format!("choose another address with {flag}; port 0 takes a free one"))
    })?;
    let address = listener.local_addr().context("cannot read the address that is listened on")?;
    Ok((listener, address))
}
