//! `kb`: reads and writes the knowledge base as a client of its gRPC service, be it a server's or this process's own.

mod import;
mod reach;
mod show;

use std::io::Read as _;
use std::path::Path;

use anyhow::Context as _;
use serde_json::json;

use self::reach::{client, with_client};
use self::show::Effect;
use super::Context;
use super::reach::{refused, running};
use crate::cli::{KbCommand, KbDeleteArgs, KbGetArgs, KbListArgs, KbSearchArgs, KbUpsertArgs, KbWatchArgs};
use crate::failure::Failure;
use crate::grpc::proto::{Article, DeleteRequest, GetRequest, ListRequest, SearchRequest, UpsertRequest, WatchRequest};
use crate::say::say;

/// Articles of a page.
const PAGE_ARTICLES: u32 = 1_000;

pub(super) async fn run(context: &Context, command: KbCommand) -> Result<(), Failure> {
    match command {
        KbCommand::Import(args) => import::run(context, &args).await,
        KbCommand::Upsert(args) => upsert(context, args).await,
        KbCommand::Delete(args) => delete(context, args).await,
        KbCommand::Get(args) => get(context, args).await,
        KbCommand::List(args) => list(context, &args).await,
        KbCommand::Search(args) => search(context, args).await,
        KbCommand::Watch(args) => watch(context, args).await,
    }
}

async fn upsert(context: &Context, args: KbUpsertArgs) -> Result<(), Failure> {
    let KbUpsertArgs { id, title, body, body_file, meta, version, expect, dry_run, target } = args;
    let body = match (body, body_file) {
        (Some(body), _) => body,
        (None, Some(file)) => read_text(&file)?,
        (None, None) => String::new(),
    };
    let article = Article { id: id.clone(), title, body, metadata: meta.into_iter().collect(), version };
    let request = UpsertRequest { article: Some(article), expected_version: expect, dry_run };
    with_client(context, &target, async |mut client| {
        let done = client.upsert(request).await.map_err(|status| refused(&status))?.into_inner();
        let effect = Effect {
            chunks_changed: done.chunks_changed,
            invalidated: done.cached_answers_invalidated,
            would_invalidate: &done.would_invalidate,
        };
        let json = json!({
            "id": id,
            "version": done.version,
            "epoch": done.epoch,
            "chunks": done.chunks,
            "chunks_changed": done.chunks_changed,
            "cached_answers_invalidated": done.cached_answers_invalidated,
            "dry_run": dry_run,
            "would_invalidate": show::falling_json(&done.would_invalidate),
        });
        let verb = if dry_run { "would write" } else { "wrote" };
        context.print(&json, format!("{verb} {id}, version {}, in {} chunks; {effect}", done.version, done.chunks))
    })
    .await
}

async fn delete(context: &Context, args: KbDeleteArgs) -> Result<(), Failure> {
    let KbDeleteArgs { id, expect, dry_run, target } = args;
    with_client(context, &target, async |mut client| {
        let request = DeleteRequest { id: id.clone(), expected_version: expect, dry_run };
        let done = client.delete(request).await.map_err(|status| refused(&status))?.into_inner();
        let effect = Effect {
            chunks_changed: done.chunks_changed,
            invalidated: done.cached_answers_invalidated,
            would_invalidate: &done.would_invalidate,
        };
        let json = json!({
            "id": id,
            "version": done.version,
            "epoch": done.epoch,
            "chunks_changed": done.chunks_changed,
            "cached_answers_invalidated": done.cached_answers_invalidated,
            "dry_run": dry_run,
            "would_invalidate": show::falling_json(&done.would_invalidate),
        });
        let verb = if dry_run { "would delete" } else { "deleted" };
        context.print(&json, format!("{verb} {id}; {effect}"))
    })
    .await
}

async fn get(context: &Context, args: KbGetArgs) -> Result<(), Failure> {
    with_client(context, &args.target, async |mut client| {
        let found = client.get(GetRequest { id: args.id }).await.map_err(|status| refused(&status))?.into_inner();
        let article = found.article.unwrap_or_default();
        context.print(&show::article_json(&article, true), show::article_text(&article))
    })
    .await
}

async fn list(context: &Context, args: &KbListArgs) -> Result<(), Failure> {
    with_client(context, &args.target, async |mut client| {
        let (mut page_token, mut left) = (String::new(), args.limit.unwrap_or(usize::MAX));
        loop {
            let request = ListRequest { page_size: PAGE_ARTICLES, page_token, with_body: args.with_body };
            let page = client.list(request).await.map_err(|status| refused(&status))?.into_inner();
            for article in page.articles.iter().filter(|article| article.id.starts_with(&args.prefix)).take(left) {
                let line = if args.with_body { show::article_text(article) } else { show::article_line(article) };
                context.print(&show::article_json(article, args.with_body), line)?;
                left -= 1;
            }
            if page.next_page_token.is_empty() || left == 0 {
                return Ok(());
            }
            page_token = page.next_page_token;
        }
    })
    .await
}

async fn search(context: &Context, args: KbSearchArgs) -> Result<(), Failure> {
    if args.query.trim().is_empty() {
        return Err(Failure::usage(anyhow::anyhow!("empty query")));
    }
    let tenant = &args.target.tenant;
    with_client(context, &args.target, async |mut client| {
        let request = SearchRequest { query: args.query, k: args.k };
        let found = client.search(request).await.map_err(|status| refused(&status))?.into_inner().chunks;
        if found.is_empty() {
            say!("nothing found: is there a knowledge base for tenant {tenant}? turnflow kb import FILE");
        }
        context.print(&show::found_json(&found), show::found_text(&found))
    })
    .await
}

async fn watch(context: &Context, args: KbWatchArgs) -> Result<(), Failure> {
    let (connection, address) = running(context, args.endpoint, &args.access.into()).await?;
    let mut client = client(connection);
    let mut changes = client.watch(WatchRequest {}).await.map_err(|status| refused(&status))?.into_inner();
    say!("watching the server at {address}");
    while let Some(change) = changes.message().await.map_err(|status| refused(&status))? {
        context.print(&show::change_json(&change), show::change_text(&change))?;
    }
    Ok(())
}

fn read_text(file: &Path) -> anyhow::Result<String> {
    if file == Path::new("-") {
        let mut text = String::new();
        std::io::stdin().read_to_string(&mut text).context("cannot read standard input")?;
        return Ok(text);
    }
    std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))
}
