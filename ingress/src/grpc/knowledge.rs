//! The calls of the `KnowledgeBase` service.

use std::sync::Arc;

use tokio::sync::watch;
use tokio_stream::wrappers::ReceiverStream;
use tonic::metadata::MetadataMap;
use tonic::{Request, Response, Status, Streaming};
use turnflow_pipeline::{ArticleDraft, Knowledge};
use turnflow_state::{Limits, TenantId};

use super::article::{Room, article, count, draft, falling, found};
use super::changes;
use super::import::Import;
use super::proto::knowledge_base_server::KnowledgeBase;
use super::proto::{
    DeleteRequest, DeleteResponse, GetRequest, GetResponse, ImportRequest, ImportResponse, ListRequest, ListResponse,
    SearchRequest, SearchResponse, UpsertRequest, UpsertResponse, WatchRequest, WatchResponse,
};
use super::service::stream;
use crate::door::{Caller, Conflict, Gateway, Refusal, article_id, text, write};
use crate::keys::Scope;

/// Articles of a page, when the client does not say.
const PAGE_ARTICLES_DEFAULT: u32 = 100;
/// Articles of a page at most.
const PAGE_ARTICLES_MAX: u32 = 1_000;
/// Articles that are read from the store at once, bodies and all.
const READ_ARTICLES_MAX: usize = 64;
/// Chunks that a search returns at most.
const FOUND_MAX: u32 = 100;

/// The `KnowledgeBase` service.
pub(super) struct Service {
    pub(super) knowledge: Knowledge,
    pub(super) limits: Arc<Limits>,
    /// Knows whose knowledge base a call is about.
    pub(super) gateway: Gateway,
    /// Turns true once, when the server is told to stop.
    pub(super) stopping: watch::Receiver<bool>,
}

impl Service {
    /// Whose knowledge base a call is about, unless it comes too late, or its caller has called too often.
    fn caller(&self, metadata: &MetadataMap) -> Result<Caller, Refusal> {
        if *self.stopping.borrow() {
            return Err(Refusal::Unavailable);
        }
        let caller = self.gateway.caller(metadata.as_ref(), Scope::Kb)?;
        caller.request()?;
        Ok(caller)
    }

    async fn page(&self, tenant: &TenantId, request: &ListRequest) -> Result<ListResponse, Conflict> {
        let size = match request.page_size {
            0 => PAGE_ARTICLES_DEFAULT as usize,
            size if size <= PAGE_ARTICLES_MAX => size as usize,
            size => {
                return Err(Conflict::invalid("page_size", format!("{size}, at most {PAGE_ARTICLES_MAX} are allowed")));
            }
        };
        let mut after = match request.page_token.as_str() {
            "" => None,
            token => Some(article_id("page_token", token)?),
        };
        let mut page = ListResponse::default();
        let mut room = Room::default();
        loop {
            // One more than there is room for, to know whether another page follows.
            let wanted = READ_ARTICLES_MAX.min(size - page.articles.len() + 1);
            let articles = self.knowledge.list(tenant, after.as_ref(), wanted).await?;
            let read = articles.len();
            for next in articles {
                let id = next.id.clone();
                let next = article(next, request.with_body);
                if page.articles.len() == size || !room.takes(&next) {
                    page.next_page_token = after.map(String::from).unwrap_or_default();
                    return Ok(page);
                }
                page.articles.push(next);
                after = Some(id);
            }
            if read < wanted {
                return Ok(page);
            }
        }
    }
}

#[tonic::async_trait]
impl KnowledgeBase for Service {
    type ImportStream = ReceiverStream<Result<ImportResponse, Status>>;
    type WatchStream = ReceiverStream<Result<WatchResponse, Status>>;

    async fn upsert(&self, request: Request<UpsertRequest>) -> Result<Response<UpsertResponse>, Status> {
        let caller = self.caller(request.metadata())?;
        let UpsertRequest { article, expected_version, dry_run } = request.into_inner();
        let effect = write(&self.knowledge, &caller.tenant, draft(article, expected_version)?, dry_run).await?;
        Ok(Response::new(UpsertResponse {
            version: effect.outcome.version,
            epoch: effect.epoch,
            chunks: count(effect.outcome.chunks),
            chunks_changed: count(effect.outcome.chunks_changed),
            cached_answers_invalidated: count(effect.invalidated),
            would_invalidate: falling(effect.forecasts),
        }))
    }

    async fn delete(&self, request: Request<DeleteRequest>) -> Result<Response<DeleteResponse>, Status> {
        let caller = self.caller(request.metadata())?;
        let DeleteRequest { id, expected_version, dry_run } = request.into_inner();
        let draft = ArticleDraft { id: article_id("id", &id)?, content: None, expected_version };
        let effect = write(&self.knowledge, &caller.tenant, draft, dry_run).await?;
        Ok(Response::new(DeleteResponse {
            version: effect.outcome.version,
            epoch: effect.epoch,
            chunks_changed: count(effect.outcome.chunks_changed),
            cached_answers_invalidated: count(effect.invalidated),
            would_invalidate: falling(effect.forecasts),
        }))
    }

    async fn get(&self, request: Request<GetRequest>) -> Result<Response<GetResponse>, Status> {
        let caller = self.caller(request.metadata())?;
        let id = article_id("id", &request.into_inner().id)?;
        let found = self.knowledge.get(&caller.tenant, &id).await.map_err(Conflict::from)?;
        let found = found.ok_or(Conflict::NotFound(id))?;
        Ok(Response::new(GetResponse { article: Some(article(found, true)) }))
    }

    async fn list(&self, request: Request<ListRequest>) -> Result<Response<ListResponse>, Status> {
        let caller = self.caller(request.metadata())?;
        Ok(Response::new(self.page(&caller.tenant, request.get_ref()).await?))
    }

    async fn search(&self, request: Request<SearchRequest>) -> Result<Response<SearchResponse>, Status> {
        let caller = self.caller(request.metadata())?;
        let SearchRequest { query, k } = request.into_inner();
        let query = text("query", query, self.limits.text_bytes_max)?;
        if !(1..=FOUND_MAX).contains(&k) {
            return Err(Conflict::invalid("k", format!("{k}, 1 to {FOUND_MAX} are allowed")).into());
        }
        let chunks = self.knowledge.search(&caller.tenant, &query, k as usize).await.map_err(Conflict::from)?;
        Ok(Response::new(SearchResponse { chunks: found(chunks) }))
    }

    async fn import(&self, request: Request<Streaming<ImportRequest>>) -> Result<Response<Self::ImportStream>, Status> {
        let caller = self.caller(request.metadata())?;
        stream(caller, &self.limits, |caller, out, last| {
            let import = Import { knowledge: self.knowledge.clone(), caller, out };
            import.run(request.into_inner(), self.stopping.clone(), last)
        })
    }

    async fn watch(&self, request: Request<WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let caller = self.caller(request.metadata())?;
        // Subscribed before the headers are sent: the client misses nothing that it does after it has them.
        stream(caller, &self.limits, |caller, out, last| {
            changes::forward(caller, self.knowledge.watch(), out, last, self.stopping.clone())
        })
    }
}
