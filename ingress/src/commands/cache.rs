//! `cache list`, `show` and `flush`: the caches of a running server.

use serde_json::{Value, json};
use turnflow_state::ArticleId;

use super::Context;
use super::reach::{self, refused};
use crate::cli::{CacheFlushArgs, CacheListArgs, CacheShowArgs, CacheTarget};
use crate::failure::Failure;
use crate::grpc::client::Keyed;
use crate::grpc::proto::admin_client::AdminClient;
use crate::grpc::proto::{
    Entry, EntrySelection, FlushRequest, GetEntryRequest, ListEntriesRequest, ListEntriesResponse, Source,
};

pub(super) async fn list(context: &Context, args: CacheListArgs) -> Result<(), Failure> {
    let selection = Some(meant(None, args.article.as_ref(), args.text));
    let request = ListEntriesRequest { selection, limit: args.limit };
    let mut client = client(context, args.target).await?;
    let response = client.list_entries(request).await.map_err(|status| refused(&status))?;
    let ListEntriesResponse { matched, entries } = response.into_inner();
    let json = json!({ "matched": matched, "entries": entries.iter().map(entry_json).collect::<Value>() });
    let lines: String = entries.iter().map(line).collect();
    context.print(&json, format!("{matched} cached answers\n{lines}"))
}

pub(super) async fn show(context: &Context, args: CacheShowArgs) -> Result<(), Failure> {
    let mut client = client(context, args.target).await?;
    let response = client.get_entry(GetEntryRequest { id: args.entry }).await.map_err(|status| refused(&status))?;
    let entry = response.into_inner().entry.unwrap_or_default();
    let Entry { audits, agreed, disagreed, .. } = entry;
    let origin = entry.origin.clone().unwrap_or_default();
    let how = if entry.refreshed { ", made anew since" } else { "" };
    let text = format!(
        "{}\n{}\n  sources   {}\n  rests on  {}\n  came      with turn {} of {}{how}\n  audits    {audits}, of which {agreed} agreed and {disagreed} did not\n",
        line(&entry).trim_end(),
        indented(&entry.answer),
        entry.sources.iter().map(cited).collect::<Vec<_>>().join(", "),
        entry.rests_on.join(", "),
        origin.turn_id,
        origin.conversation_id,
    );
    context.print(&entry_json(&entry), text)
}

pub(super) async fn flush(context: &Context, args: CacheFlushArgs) -> Result<(), Failure> {
    let CacheFlushArgs { entry, article, text, all, dry_run, target } = args;
    let selection = Some(meant(entry, article.as_ref(), text));
    let mut client = client(context, target).await?;
    let response = client.flush(FlushRequest { selection, all, dry_run }).await.map_err(|status| refused(&status))?;
    let entries = response.into_inner().entries;
    let text = if dry_run { "cached answers would be gone" } else { "cached answers are gone" };
    context.print(&json!({ "entries": entries, "dry_run": dry_run }), format!("{entries} {text}\n"))
}

async fn client(context: &Context, target: CacheTarget) -> Result<AdminClient<Keyed>, Failure> {
    let (connection, _) = reach::running(context, target.endpoint, &target.access.into()).await?;
    Ok(AdminClient::new(connection))
}

fn meant(entry: Option<u64>, article: Option<&ArticleId>, text: Option<String>) -> EntrySelection {
    let article_id = article.map(ToString::to_string).unwrap_or_default();
    EntrySelection { entry, article_id, text: text.unwrap_or_default() }
}

/// An entry in one line: its number, how often it was served, whom it serves, and the question.
fn line(entry: &Entry) -> String {
    let serves = if entry.shared { "similar" } else { "same" };
    format!("  {:>6}  {:>6} hits  {serves:7}  {}\n", entry.id, entry.hits, entry.question)
}

fn indented(text: &str) -> String {
    text.lines().map(|line| format!("  | {line}")).collect::<Vec<_>>().join("\n")
}

fn cited(Source { article_id, version, .. }: &Source) -> String {
    format!("{article_id} (version {version})")
}

fn entry_json(entry: &Entry) -> Value {
    let sources = entry.sources.iter().map(
        |Source { article_id, version, chunk }| json!({ "article": article_id, "version": version, "chunk": chunk }),
    );
    let origin = entry.origin.clone().unwrap_or_default();
    json!({
        "id": entry.id,
        "question": entry.question,
        "answer": entry.answer,
        "grounded": entry.grounded,
        "cut_off": entry.cut_off,
        "sources": sources.collect::<Value>(),
        "rests_on": entry.rests_on,
        "origin": { "conversation": origin.conversation_id, "turn": origin.turn_id },
        "refreshed": entry.refreshed,
        "created_ms": entry.created_ms,
        "hits": entry.hits,
        "shared": entry.shared,
        "audits": entry.audits,
        "agreed": entry.agreed,
        "disagreed": entry.disagreed,
    })
}
