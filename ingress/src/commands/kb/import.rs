//! `kb import`: files and folders to the knowledge base, article by article, on one stream.
//!
//! An article that is there already in the same version with the same content is left alone, so that an import can be
//! repeated. An item that is no article, or is refused, is named with file and line.

use std::collections::{BTreeMap, HashSet, VecDeque};

use anyhow::Context as _;
use serde_json::json;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status};

use super::super::Context;
use super::super::reach::refused;
use super::PAGE_ARTICLES;
use super::reach::{Client, with_client};
use super::show::{Effect, falling_json};
use crate::cli::{KbImportArgs, OnBadItem};
use crate::failure::Failure;
use crate::grpc::CURRENT_VERSION_KEY;
use crate::grpc::proto::import_response::Outcome;
use crate::grpc::proto::{
    Article, ArticleRefused, ArticleWritten, DeleteRequest, FallingAnswer, GetRequest, ImportRequest, ListRequest,
    UpsertRequest,
};
use crate::kb_file::{ArticleReader, Given};
use crate::lines::BadLine;
use crate::progress::{Meter, Unit};

/// Articles that are sent and not answered. More than the service writes together, so that it never waits for us.
const UNANSWERED_MAX: usize = 128;

pub(super) async fn run(context: &Context, args: &KbImportArgs) -> Result<(), Failure> {
    // The files first: a wrong name must not cost the opening of store and model.
    let reader = ArticleReader::open(&args.paths, &context.config.limits)?;
    with_client(context, &args.target, async |client| {
        let meter = Meter::new("importing", Unit::Things("articles"), reader.estimate());
        let mut import =
            Import { args, client, reader, meter, given: HashSet::new(), stopped: false, tally: Tally::default() };
        if args.dry_run {
            import.forecast().await?;
        } else {
            import.write().await.map_err(|failure| import.tally.so_far(failure))?;
        }
        if args.delete_missing {
            import.delete_missing().await?;
        }
        import.meter.finish();
        import.tally.report(context, args)
    })
    .await
}

struct Import<'a> {
    args: &'a KbImportArgs,
    client: Client,
    reader: ArticleReader,
    meter: Meter,
    /// The articles of the import, by id.
    given: HashSet<String>,
    /// A bad item ended the import.
    stopped: bool,
    tally: Tally,
}

/// What became of the import.
#[derive(Default)]
struct Tally {
    written: u64,
    unchanged: u64,
    deleted: u64,
    bad: u64,
    refused: u64,
    chunks: u64,
    chunks_changed: u32,
    invalidated: u32,
    /// On a dry run, by entry: an answer may fall by more than one article.
    would_invalidate: BTreeMap<u64, FallingAnswer>,
}

/// An article that waits for its answer.
struct Sent {
    given: Given,
    article: Article,
}

impl Import<'_> {
    async fn write(&mut self) -> Result<(), Failure> {
        let (sender, requests) = mpsc::channel(UNANSWERED_MAX);
        let mut sender = Some(sender);
        let stream = ReceiverStream::new(requests);
        let mut responses = self.client.import(stream).await.map_err(|status| refused(&status))?.into_inner();
        let mut unanswered: VecDeque<Sent> = VecDeque::new();
        loop {
            while let Some(requests) = sender.as_ref().filter(|_| unanswered.len() < UNANSWERED_MAX) {
                let Some(sent) = self.next()? else {
                    sender = None;
                    break;
                };
                // There is room; when the stream has ended already, its status says why.
                let _ =
                    requests.try_send(ImportRequest { article: Some(sent.article.clone()), expected_version: None });
                unanswered.push_back(sent);
            }
            let Some(response) = responses.message().await.map_err(|status| refused(&status))? else {
                let missing = unanswered.len();
                return if missing == 0 {
                    Ok(())
                } else {
                    Err(anyhow::anyhow!("{missing} articles got no answer").into())
                };
            };
            let sent = unanswered.pop_front().context("an answer that belongs to no article")?;
            match response.outcome.context("an answer without an outcome")? {
                Outcome::Written(written) => self.tally.wrote(&written),
                Outcome::Refused(refused) => self.refused(sent, &refused).await?,
            }
            self.meter.set(self.tally.items());
        }
    }

    async fn forecast(&mut self) -> Result<(), Failure> {
        while let Some(sent) = self.next()? {
            let article = Some(sent.article.clone());
            match self.client.upsert(UpsertRequest { article, expected_version: None, dry_run: true }).await {
                Ok(response) => {
                    let response = response.into_inner();
                    self.tally.wrote(&ArticleWritten {
                        chunks: response.chunks,
                        chunks_changed: response.chunks_changed,
                        ..ArticleWritten::default()
                    });
                    self.tally.would_fall(response.would_invalidate);
                }
                Err(status) if matches!(status.code(), Code::InvalidArgument | Code::FailedPrecondition) => {
                    self.refused(sent, &refusal(&status)).await?;
                }
                Err(status) => return Err(refused(&status)),
            }
            self.meter.set(self.tally.items());
        }
        Ok(())
    }

    /// The next article; None when there are no more, or a bad item ended the import.
    fn next(&mut self) -> Result<Option<Sent>, Failure> {
        while !self.stopped {
            match self.reader.next_article()? {
                None => return Ok(None),
                Some(Err(bad)) => {
                    self.tally.bad += 1;
                    self.bad_item("skipped", &bad);
                }
                Some(Ok(given)) => {
                    let content = given.draft.content.clone().unwrap_or_default();
                    let article = Article {
                        id: given.draft.id.to_string(),
                        title: content.title,
                        body: content.body,
                        metadata: content.metadata,
                        version: content.version,
                    };
                    self.given.insert(article.id.clone());
                    return Ok(Some(Sent { given, article }));
                }
            }
        }
        Ok(None)
    }

    async fn refused(&mut self, sent: Sent, refused: &ArticleRefused) -> Result<(), Failure> {
        let Sent { given, article } = sent;
        // What has this very version may be this very article, from an earlier import.
        if article.version.is_some() && article.version == refused.current_version {
            let found = self.client.get(GetRequest { id: article.id.clone() }).await;
            if found.is_ok_and(|found| found.into_inner().article == Some(article)) {
                self.tally.unchanged += 1;
                return Ok(());
            }
        }
        self.tally.refused += 1;
        self.bad_item("refused", &BadLine::new(&given.file, given.line, &refused.message));
        Ok(())
    }

    fn bad_item(&mut self, what: &str, bad: &BadLine) {
        self.meter.note(&format!("{what} {bad}"));
        self.stopped |= self.args.on_bad_item == OnBadItem::Stop;
    }

    /// Deletes the articles that are not in the import, unless some of them may be among what was not understood.
    async fn delete_missing(&mut self) -> Result<(), Failure> {
        if self.tally.bad > 0 || self.stopped || self.given.is_empty() {
            self.meter.note("nothing is deleted: not every article of the import is known");
            return Ok(());
        }
        let mut page_token = String::new();
        loop {
            let request = ListRequest { page_size: PAGE_ARTICLES, page_token, with_body: false };
            let page = self.client.list(request).await.map_err(|status| refused(&status))?.into_inner();
            for article in page.articles {
                if !self.given.contains(&article.id) {
                    self.delete(article.id).await?;
                }
            }
            if page.next_page_token.is_empty() {
                return Ok(());
            }
            page_token = page.next_page_token;
        }
    }

    async fn delete(&mut self, id: String) -> Result<(), Failure> {
        let request = DeleteRequest { id, expected_version: None, dry_run: self.args.dry_run };
        match self.client.delete(request).await {
            Ok(response) => {
                let response = response.into_inner();
                self.tally.deleted += 1;
                self.tally.chunks_changed += response.chunks_changed;
                if self.args.dry_run {
                    self.tally.would_fall(response.would_invalidate);
                } else {
                    self.tally.invalidated += response.cached_answers_invalidated;
                }
                Ok(())
            }
            // Somebody else was faster.
            Err(status) if status.code() == Code::NotFound => Ok(()),
            Err(status) => Err(refused(&status)),
        }
    }
}

/// What a call was refused for, as a stream would tell it.
fn refusal(status: &Status) -> ArticleRefused {
    let current = status.metadata().get(CURRENT_VERSION_KEY).and_then(|version| version.to_str().ok()?.parse().ok());
    ArticleRefused { message: status.message().to_owned(), current_version: current, ..ArticleRefused::default() }
}

impl Tally {
    fn wrote(&mut self, written: &ArticleWritten) {
        self.written += 1;
        self.chunks += u64::from(written.chunks);
        self.chunks_changed += written.chunks_changed;
        self.invalidated += written.cached_answers_invalidated;
    }

    fn would_fall(&mut self, answers: Vec<FallingAnswer>) {
        self.would_invalidate.extend(answers.into_iter().map(|answer| (answer.entry, answer)));
        self.invalidated = u32::try_from(self.would_invalidate.len()).unwrap_or(u32::MAX);
    }

    fn items(&self) -> u64 {
        self.written + self.unchanged + self.bad + self.refused
    }

    /// Says what an import had done when it came to an end before its own.
    fn so_far(&self, failure: Failure) -> Failure {
        match self.written {
            0 => failure,
            written => {
                let hint = format!("at least {written} articles were written by then; the same import can be repeated");
                failure.with_hint(hint)
            }
        }
    }

    fn report(self, context: &Context, args: &KbImportArgs) -> Result<(), Failure> {
        let answers: Vec<_> = self.would_invalidate.values().cloned().collect();
        let json = json!({
            "articles": self.written + self.unchanged,
            "unchanged": self.unchanged,
            "deleted": self.deleted,
            "bad": self.bad,
            "refused": self.refused,
            "chunks": self.chunks,
            "chunks_changed": self.chunks_changed,
            "cached_answers_invalidated": self.invalidated,
            "dry_run": args.dry_run,
            "would_invalidate": falling_json(&answers),
        });
        let verb = if args.dry_run { "would import" } else { "imported" };
        let mut text = format!("{verb} {} articles in {} chunks", self.written, self.chunks);
        for (number, what) in
            [(self.unchanged, "unchanged"), (self.deleted, "deleted"), (self.refused, "refused"), (self.bad, "skipped")]
        {
            if number > 0 {
                text += &format!(", {number} {what}");
            }
        }
        let Self { chunks_changed, invalidated, .. } = self;
        text += &format!("; {}", Effect { chunks_changed, invalidated, would_invalidate: &answers });
        context.print(&json, text)?;
        let missed = self.bad + self.refused;
        if missed > 0 {
            return Err(anyhow::anyhow!("{missed} items were not imported, see above").into());
        }
        if self.items() == 0 {
            let names: Vec<_> = args.paths.iter().map(|path| path.display().to_string()).collect();
            return Err(anyhow::anyhow!("no articles in {}", names.join(", ")).into());
        }
        Ok(())
    }
}
