//! `serve`: everything is checked and loaded before the port opens, and everything admitted is answered and written
//! before the process ends.

use std::net::SocketAddr;

use anyhow::Context as _;
use serde_json::json;
use tokio::net::TcpListener;
use turnflow_pipeline::{Config, Knowledge, Pipeline};
use turnflow_state::TenantId;

use super::signal::shutdown_signal;
use super::{Context, open};
use crate::cli::ServeArgs;
use crate::failure::Failure;
use crate::grpc::{self, TENANT_DEFAULT};
use crate::sample;

pub(super) fn run(context: &Context, args: &ServeArgs) -> Result<(), Failure> {
    let listen = args.listen.unwrap_or(context.config.server.listen);
    let dir = context.data_dir(args.store.data.as_ref())?;
    let store = open::store(context, &dir)?;
    let parts = open::parts(context, store)?;
    let runtime = open::runtime()?;
    runtime.block_on(async {
        // When it has returned, no cached answer of an earlier run is served that has become invalid.
        let pipeline = Pipeline::start(&context.config, &parts)?;
        let served = match stock(context, args, &pipeline.knowledge()).await {
            Ok(()) => serve(context, listen, &pipeline).await,
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
        eprintln!("knowledge base: {} articles in {} chunks", stats.articles, stats.chunks);
    } else if args.sample {
        let articles = sample::articles(&context.config.limits)?;
        let summary = open::import(knowledge, &TenantId::new(TENANT_DEFAULT)?, articles).await?;
        eprintln!("knowledge base: the sample shop, {} articles in {} chunks", summary.articles, summary.chunks);
    } else {
        eprintln!("the knowledge base is empty, so every answer will be \"I do not know\"");
        eprintln!("  import yours, now or later: turnflow kb import FILE.jsonl");
        eprintln!("  or try the sample shop: turnflow serve --sample");
    }
    Ok(())
}

async fn serve(context: &Context, listen: SocketAddr, pipeline: &Pipeline) -> Result<(), Failure> {
    let config: &Config = &context.config;
    // Before the port opens, so that a signal that comes right after the announcement ends the server in order.
    let signal = shutdown_signal()?;
    let listener = TcpListener::bind(listen).await.with_context(|| format!("cannot listen on {listen}"));
    let listener = listener.map_err(|error| {
        Failure::from(error).with_hint("choose another address with --listen; port 0 takes a free one")
    })?;
    let address = listener.local_addr().context("cannot read the address that is listened on")?;
    if !address.ip().is_loopback() {
        eprintln!("warning: {address} can be reached from outside, and there is no authentication");
    }
    context.print(&json!({ "listening": address }), format!("listening on {address}\n"))?;
    let told_to_stop = async {
        signal.await;
        eprintln!("stopping: no new turns, finishing those that were admitted");
    };
    Ok(grpc::serve(pipeline.clone(), config, listener, told_to_stop).await?)
}
