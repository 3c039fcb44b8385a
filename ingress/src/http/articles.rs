//! `/v1/articles`: the knowledge base. A version is an entity tag, and a write may depend on it.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::{Value, json};
use turnflow_pipeline::{ArticleDraft, DraftContent, Fall, Forecast};
use turnflow_state::{Article, ScoredChunk, TenantId};

use super::error::ApiError;
use super::receive::{ForKb, Id, Json, header_text, query};
use super::reply::{JsonReply, etag};
use super::router::App;
use crate::door::{self, Caller, Conflict, article_id, text};

/// Articles of a page, when the client does not say, and at most.
const PAGE_ARTICLES_DEFAULT: usize = 20;
const PAGE_ARTICLES_MAX: usize = 100;
/// Bytes of the texts of a page that has more than one article.
const PAGE_BYTES_MAX: usize = 1 << 20;
/// Chunks that a search finds, when the client does not say, and at most.
const FOUND_DEFAULT: usize = 5;
const FOUND_MAX: usize = 100;

/// An article as it is sent.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ArticleBody {
    #[serde(default)]
    id: Option<String>,
    #[serde(default)]
    title: String,
    #[serde(default)]
    body: String,
    #[serde(default)]
    metadata: BTreeMap<String, String>,
    #[serde(default)]
    version: Option<u64>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ListQuery {
    limit: Option<usize>,
    after: Option<String>,
    #[serde(default)]
    with_body: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WriteQuery {
    #[serde(default)]
    dry_run: bool,
}

/// The body of a search.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SearchBody {
    query: String,
    #[serde(default)]
    k: Option<usize>,
}

/// `GET /v1/articles`: a page, in the order of the ids.
pub(super) async fn list(
    State(app): State<Arc<App>>,
    ForKb(Caller { tenant, .. }): ForKb,
    uri: Uri,
) -> Result<JsonReply, ApiError> {
    let ListQuery { limit, after, with_body } = query(&uri)?;
    let limit = within("limit", limit.unwrap_or(PAGE_ARTICLES_DEFAULT), PAGE_ARTICLES_MAX)?;
    let after = after.map(|after| article_id("after", &after)).transpose()?;
    let knowledge = app.knowledge.clone();
    // One more, to know whether another page follows.
    let articles = app.work(async move { knowledge.list(&tenant, after.as_ref(), limit + 1).await }).await??;
    let found = articles.len();
    // A page has at least one.
    let mut bytes = 0;
    let fits = |article: &Article| {
        let before = bytes;
        bytes += article.title.len() + if with_body { article.body.len() } else { 0 };
        before == 0 || bytes <= PAGE_BYTES_MAX
    };
    let articles: Vec<Article> = articles.into_iter().take(limit).take_while(fits).collect();
    let has_more = found > articles.len();
    let last_id = articles.last().map(|last| last.id.to_string());
    let data: Vec<Value> = articles.into_iter().map(|found| article(found, with_body)).collect();
    Ok(JsonReply(json!({ "object": "list", "data": data, "has_more": has_more, "last_id": last_id })))
}

/// `GET /v1/articles/{id}`.
pub(super) async fn get(
    State(app): State<Arc<App>>,
    ForKb(Caller { tenant, .. }): ForKb,
    headers: HeaderMap,
    Id(id): Id,
) -> Result<Response, ApiError> {
    let id = article_id("id", &id)?;
    let (knowledge, named) = (app.knowledge.clone(), id.clone());
    let found = app.work(async move { knowledge.get(&tenant, &named).await }).await??.ok_or(Conflict::NotFound(id))?;
    let tag = etag(found.version);
    if headers.get(header::IF_NONE_MATCH).is_some_and(|known| *known == tag) {
        return Ok((StatusCode::NOT_MODIFIED, [(header::ETAG, tag)]).into_response());
    }
    Ok(([(header::ETAG, tag)], JsonReply(article(found, true))).into_response())
}

/// `POST /v1/articles`: writes an article that names itself.
pub(super) async fn post(
    State(app): State<Arc<App>>,
    ForKb(Caller { tenant, .. }): ForKb,
    headers: HeaderMap,
    uri: Uri,
    Json(sent): Json<ArticleBody>,
) -> Result<Response, ApiError> {
    let id = sent.id.clone().ok_or_else(|| ApiError::invalid("id", "missing"))?;
    write(&app, &tenant, &uri, drafted(&id, sent, &headers)?).await
}

/// `PUT /v1/articles/{id}`.
pub(super) async fn put(
    State(app): State<Arc<App>>,
    ForKb(Caller { tenant, .. }): ForKb,
    headers: HeaderMap,
    uri: Uri,
    Id(id): Id,
    Json(sent): Json<ArticleBody>,
) -> Result<Response, ApiError> {
    if sent.id.as_ref().is_some_and(|named| *named != id) {
        return Err(ApiError::invalid("id", "not the article that the address names"));
    }
    write(&app, &tenant, &uri, drafted(&id, sent, &headers)?).await
}

/// `DELETE /v1/articles/{id}`.
pub(super) async fn delete(
    State(app): State<Arc<App>>,
    ForKb(Caller { tenant, .. }): ForKb,
    headers: HeaderMap,
    uri: Uri,
    Id(id): Id,
) -> Result<Response, ApiError> {
    let draft = ArticleDraft { id: article_id("id", &id)?, content: None, expected_version: expected(&headers)? };
    write(&app, &tenant, &uri, draft).await
}

/// `POST /v1/articles/search`.
pub(super) async fn search(
    State(app): State<Arc<App>>,
    ForKb(Caller { tenant, .. }): ForKb,
    Json(SearchBody { query, k }): Json<SearchBody>,
) -> Result<JsonReply, ApiError> {
    let query = text("query", query, app.config.limits.text_bytes_max)?;
    let k = within("k", k.unwrap_or(FOUND_DEFAULT), FOUND_MAX)?;
    let knowledge = app.knowledge.clone();
    let found = app.work(async move { knowledge.search(&tenant, &query, k).await }).await??;
    let data: Vec<Value> = found.into_iter().map(found_chunk).collect();
    Ok(JsonReply(json!({ "object": "list", "data": data })))
}

fn found_chunk(ScoredChunk { chunk, score }: ScoredChunk) -> Value {
    json!({
        "object": "article.chunk",
        "article": chunk.id.article.as_str(),
        "version": chunk.version,
        "chunk": chunk.id.ordinal,
        "title": chunk.title,
        "text": chunk.text,
        "score": score,
    })
}

fn article(Article { id, title, body, metadata, version }: Article, with_body: bool) -> Value {
    let mut article =
        json!({ "id": id.as_str(), "object": "article", "title": title, "metadata": metadata, "version": version });
    if with_body {
        article["body"] = json!(body);
    }
    article
}

fn drafted(id: &str, sent: ArticleBody, headers: &HeaderMap) -> Result<ArticleDraft, ApiError> {
    let ArticleBody { title, body, metadata, version, .. } = sent;
    Ok(door::draft("", id, DraftContent { title, body, metadata, version }, expected(headers)?)?)
}

/// Writes, and answers with what that did; it is acknowledged by then.
async fn write(app: &App, tenant: &TenantId, uri: &Uri, draft: ArticleDraft) -> Result<Response, ApiError> {
    let WriteQuery { dry_run } = query(uri)?;
    let (id, is_deletion) = (draft.id.to_string(), draft.content.is_none());
    let (knowledge, tenant) = (app.knowledge.clone(), tenant.clone());
    let effect = app.work(async move { door::write(&knowledge, &tenant, draft, dry_run).await }).await??;
    let version = effect.outcome.version;
    let mut reply = json!({
        "id": id,
        "object": if is_deletion { "article.deleted" } else { "article.written" },
        "deleted": is_deletion && !dry_run,
        "version": version,
        "epoch": effect.epoch,
        "chunks": effect.outcome.chunks,
        "chunks_changed": effect.outcome.chunks_changed,
        "cached_answers_invalidated": effect.invalidated,
    });
    if dry_run {
        reply["dry_run"] = json!(true);
        reply["would_invalidate"] = effect.forecasts.into_iter().map(forecast).collect();
        return Ok(JsonReply(reply).into_response());
    }
    Ok(([(header::ETAG, etag(version))], JsonReply(reply)).into_response())
}

fn forecast(Forecast { entry, question, fall }: Forecast) -> Value {
    let reason = match fall {
        Fall::SupportChanged => "support_changed",
        Fall::Overtaken => "overtaken",
    };
    json!({ "entry": entry.0, "question": question, "reason": reason })
}

/// The version that an article must have to be written: 0 for one that must not exist, None for any.
fn expected(headers: &HeaderMap) -> Result<Option<u64>, ApiError> {
    let invalid = |message: &str| ApiError::invalid("If-Match", message);
    match (header_text(headers, "if-match")?, header_text(headers, "if-none-match")?) {
        (None, None) => Ok(None),
        (None, Some("*")) => Ok(Some(0)),
        (None, Some(_)) => Err(ApiError::invalid("If-None-Match", "only * is taken: the article must not exist")),
        (Some(tag), None) => {
            let version = tag
                .trim()
                .trim_matches('"')
                .parse()
                .map_err(|_| invalid("one version in quotes is expected, such as \"3\""))?;
            if version == 0 { Err(invalid("versions count from 1")) } else { Ok(Some(version)) }
        }
        (Some(_), Some(_)) => Err(invalid("not together with If-None-Match")),
    }
}

fn within(param: &str, number: usize, max: usize) -> Result<usize, ApiError> {
    if (1..=max).contains(&number) {
        Ok(number)
    } else {
        Err(ApiError::invalid(param, format!("{number}, 1 to {max} are allowed")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_write_may_depend_on_a_version() {
        let check = |headers: &[(&'static str, &str)], wanted: Result<Option<u64>, &str>| {
            let map: HeaderMap = headers
                .iter()
                .map(|(name, value)| (axum::http::HeaderName::from_static(name), value.parse().expect("a header")))
                .collect();
            let found = expected(&map).map_err(|error| error.param.unwrap_or_default());
            assert_eq!(found, wanted.map_err(str::to_owned), "{headers:?}");
        };
        check(&[], Ok(None));
        check(&[("if-match", "\"3\"")], Ok(Some(3)));
        check(&[("if-none-match", "*")], Ok(Some(0)));
        check(&[("if-match", "*")], Err("If-Match"));
        check(&[("if-match", "\"0\"")], Err("If-Match"));
        check(&[("if-match", "\"1\", \"2\"")], Err("If-Match"));
        check(&[("if-none-match", "\"3\"")], Err("If-None-Match"));
        check(&[("if-match", "\"3\""), ("if-none-match", "*")], Err("If-Match"));
    }
}
