//! The answer to a chat completion: submitted, and told whole or as a stream of server-sent events.
//!
//! The head of a stream waits for the first piece, because only then it is known where the answer comes from: all of it for an answer
//! that comes whole, such as a hit, and of one that is being written no more than from which cache or tier. The rest is in the last chunk.
//!
//! OpenAI's clients cannot take back what they were told. So pieces that may yet become void, those of a small tier in whose place
//! the large one may be asked, are held back until it is known. Where others become void, the stream ends with an error.
//!
//! A client that goes away drops the turn's stream, as in gRPC.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use turnflow_state::{Completion, TierSize, TurnEvent, TurnKey};

use super::chat::{Asked, ChatRequest};
use super::error::{ApiError, Kind};
use super::receive::{ForChat, Received};
use super::reply::{self, Frame, JsonReply};
use super::router::App;
use crate::door::{Admitted, Amounts, Caller, CutOff, LastWord, Outlet, Refusal, Untold, admit, slow_reader};

/// `POST /v1/chat/completions`.
pub(super) async fn complete(
    State(app): State<Arc<App>>,
    ForChat(caller): ForChat,
    Received { headers, body }: Received<ChatRequest>,
) -> Result<Response, ApiError> {
    answer(&app, caller, &headers, body).await
}

/// Answers a caller.
pub(super) async fn answer(
    app: &App,
    caller: Caller,
    headers: &HeaderMap,
    request: ChatRequest,
) -> Result<Response, ApiError> {
    let asked = Asked::read(caller.tenant.clone(), headers, request, &app.config, &app.encoder, app.fresh_id())?;
    let Asked { submission, model, stream, include_usage } = asked;
    let (key, created_s) = (submission.turn.key(), submission.turn.at_ms / 1_000);
    // Who names a tier gets its answer and no other.
    let escalates = app.config.routing.enabled && app.config.routing.escalate && submission.wishes.size.is_none();
    let also = Amounts { streams: u64::from(stream), ..Amounts::default() };
    let answering = async {
        let events = admit(&app.pipeline, &caller, submission, also).await?;
        let answer = Answer::new(caller, key.clone(), events, escalates);
        let frame = Frame { key, model, created_s, include_usage };
        if stream { streamed(app, answer, frame).await } else { whole(answer, &frame).await }
    };
    // On the heap, so that a request that was refused before has moved little.
    Box::pin(answering).await
}

async fn whole(mut answer: Answer, frame: &Frame) -> Result<Response, ApiError> {
    loop {
        match answer.next().await {
            Next::End(_, completion) => {
                let headers = (frame.names(), reply::known(&completion));
                return Ok((headers, JsonReply(frame.completion(&completion))).into_response());
            }
            Next::Failed(refusal) => return Err(refusal.into()),
            // All of it is told at the end.
            Next::Piece(_) | Next::Void => {}
        }
    }
}

async fn streamed(app: &App, mut answer: Answer, frame: Frame) -> Result<Response, ApiError> {
    let (headers, body) = match answer.next().await {
        Next::Failed(refusal) => return Err(refusal.into()),
        // Nothing was told that could be void.
        Next::Void => return Err(ApiError::internal()),
        Next::End(rest, completion) => (reply::known(&completion), Body::from(at_once(&frame, &rest, &completion))),
        Next::Piece(piece) => match answer.events.completion() {
            Some(completion) => (reply::known(completion), Body::from(at_once(&frame, &piece, completion))),
            None => {
                let headers = reply::beginning(answer.events.beginning(), &app.pipeline);
                let (out, last, lines) = Outlet::open(&app.config.limits);
                tokio::spawn(forward(answer, frame.clone(), piece, out, last));
                (headers, Body::from_stream(lines))
            }
        },
    };
    let about = [
        (header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream; charset=utf-8")),
        (header::CACHE_CONTROL, HeaderValue::from_static("no-store")),
    ];
    Ok((about, frame.names(), headers, body).into_response())
}

/// A stream of which everything is known.
fn at_once(frame: &Frame, text: &str, completion: &Completion) -> Bytes {
    [frame.first(), frame.piece(text), frame.end(completion)].concat().into()
}

/// What a stream carries.
type Line = Result<Bytes, Infallible>;

impl CutOff for Line {
    fn too_slow(wait: Duration) -> Self {
        let status = StatusCode::REQUEST_TIMEOUT;
        Ok(error_event(&ApiError::new(status, Kind::InvalidRequest, "slow_reader", slow_reader(wait))))
    }
}

fn error_event(error: &ApiError) -> Bytes {
    reply::event(&error.body())
}

/// Passes an answer on as it is written, for as long as the caller's key counts.
async fn forward(answer: Answer, frame: Frame, first: String, out: Outlet<Line>, last: Option<LastWord<Line>>) {
    let caller = answer.caller.clone();
    let told = tokio::select! {
        biased;
        // Also while the client makes no room for what it was to be told.
        () = caller.ended() => {
            let end = error_event(&Refusal::Unauthenticated.into());
            return last.into_iter().for_each(|last| last.say(Ok(end.clone())));
        }
        told = tell(answer, &frame, &first, &out) => told,
    };
    if told == Err(Untold::Slow) {
        last.into_iter().for_each(LastWord::too_slow);
    }
}

/// Tells an answer to its end.
async fn tell(mut answer: Answer, frame: &Frame, first: &str, out: &Outlet<Line>) -> Result<(), Untold> {
    let mut told = out.tell(Ok([frame.first(), frame.piece(first)].concat().into())).await;
    while told.is_ok() {
        let next = tokio::select! {
            biased;
            () = out.closed() => return Err(Untold::Gone),
            next = answer.next() => next,
        };
        let (line, ended) = match next {
            Next::Piece(piece) => (frame.piece(&piece), false),
            Next::End(rest, completion) if rest.is_empty() => (frame.end(&completion), true),
            Next::End(rest, completion) => ([frame.piece(&rest), frame.end(&completion)].concat().into(), true),
            Next::Failed(refusal) => (error_event(&refusal.into()), true),
            Next::Void => (error_event(&withdrawn()), true),
        };
        told = out.tell(Ok(line)).await;
        if ended {
            break;
        }
    }
    told
}

fn withdrawn() -> ApiError {
    let message = "what was streamed so far is void: the answer it belonged to is not given after all; ask again";
    ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, Kind::Server, "answer_withdrawn", message)
}

/// An answer as it comes, for a client that cannot take anything back.
struct Answer {
    /// Who is told, for as long as its key counts.
    caller: Caller,
    key: TurnKey,
    events: Admitted,
    /// Whether the large tier may be asked in the small one's place.
    escalates: bool,
    /// Pieces that may yet become void.
    held: String,
    told: bool,
}

/// What to tell next.
enum Next {
    /// A piece of the answer.
    Piece(String),
    /// What is left of it, and how it ends.
    End(String, Box<Completion>),
    /// There is none.
    Failed(Refusal),
    /// What was told is void.
    Void,
}

impl Answer {
    const fn new(caller: Caller, key: TurnKey, events: Admitted, escalates: bool) -> Self {
        Self { caller, key, events, escalates, held: String::new(), told: false }
    }

    /// Cancel-safe.
    async fn next(&mut self) -> Next {
        loop {
            let event = tokio::select! {
                biased;
                () = self.caller.ended() => return Next::Failed(Refusal::Unauthenticated),
                event = self.events.next() => event,
            };
            match event {
                TurnEvent::Accepted => {}
                TurnEvent::Delta(piece) => {
                    self.held.push_str(&piece);
                    if !self.may_become_void() {
                        self.told = true;
                        return Next::Piece(std::mem::take(&mut self.held));
                    }
                }
                TurnEvent::Restart if self.told => return Next::Void,
                TurnEvent::Restart => self.held.clear(),
                TurnEvent::Done(completion) => return Next::End(std::mem::take(&mut self.held), completion),
                TurnEvent::Error(error) => return Next::Failed(Refusal::of_turn(error, &self.key)),
            }
        }
    }

    /// Whether the large tier may yet be asked in place of the one that writes.
    fn may_become_void(&self) -> bool {
        let is_large = self.events.writer() == Some(TierSize::Large);
        self.escalates && !is_large && self.events.completion().is_none()
    }
}
