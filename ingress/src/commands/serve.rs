//! `serve`: everything is checked and loaded before the port opens, and everything admitted is answered and written
//! before the process ends.

use std::net::SocketAddr;

use anyhow::Context as _;
use serde_json::json;
use tokio::net::TcpListener;
use turnflow_pipeline::{Config, Parts, Pipeline};
use turnflow_state::TenantId;

use super::signal::shutdown_signal;
use super::{Context, open};
use crate::cli::{ServeArgs, TENANT_DEFAULT};
use crate::failure::Failure;
use crate::{grpc, sample};

pub(super) fn run(context: &Context, args: &ServeArgs) -> Result<(), Failure> {
    let listen = args.listen.unwrap_or(context.config.server.listen);
    let dir = context.data_dir(args.store.data.as_ref())?;
    let store = open::store(context, &dir)?;
    let parts = open::parts(context, store)?;
    stock(context, args, &parts)?;
    let runtime = open::runtime()?;
    runtime.block_on(async {
        let pipeline = Pipeline::start(&context.config, &parts)?;
        let served = serve(context, listen, &pipeline).await;
        pipeline.shutdown().await;
        tracing::info!("stopped");
        served
    })
}

/// Sees to it that there is a knowledge base, or says how to get one.
fn stock(context: &Context, args: &ServeArgs, parts: &Parts) -> Result<(), Failure> {
    let knowledge = parts.knowledge.stats();
    if knowledge.articles > 0 {
        eprintln!("knowledge base: {} articles in {} chunks", knowledge.articles, knowledge.chunks);
    } else if args.sample {
        let articles = sample::articles(&context.config.limits)?;
        let summary = open::import(context, parts, &TenantId::new(TENANT_DEFAULT)?, articles)?;
        eprintln!("knowledge base: the sample shop, {} articles in {} chunks", summary.articles, summary.chunks);
    } else {
        eprintln!("the knowledge base is empty, so every answer will be \"I do not know\"");
        eprintln!("  import yours while the server is stopped: turnflow kb import FILE.jsonl");
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
