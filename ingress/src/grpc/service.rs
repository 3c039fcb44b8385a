//! The calls of the `Conversations` service, and how the events of a turn get to a client.
//!
//! A turn belongs to the pipeline from its admission on. A client that goes away ends the tasks here, at once and
//! without a trace; its turn is answered and stored all the same, and the same turn again gets that answer.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::metadata::MetadataMap;
use tonic::{Request, Response, Status, Streaming};
use tracing::Instrument as _;
use turnflow_pipeline::{Feedback, Pipeline, TurnStream};
use turnflow_state::{Limits, TurnKey};

use super::converse::Session;
use super::convert;
use super::proto::conversations_server::Conversations;
use super::proto::{AskRequest, AskResponse, ConverseRequest, ConverseResponse, FeedbackRequest, FeedbackResponse};
use super::refusal::unknown_turn;
use crate::door::{Caller, Conflict, Gateway, LastWord, Outlet, Refusal, Untold, next_event, now_ms};
use crate::keys::Scope;

/// Where the events of one turn go.
type Answers = Outlet<Result<AskResponse, Status>>;

/// Where the responses of one call go.
pub(super) type Responses<R> = mpsc::Sender<Result<R, Status>>;

/// The `Conversations` service.
pub(super) struct Service {
    pipeline: Pipeline,
    gateway: Gateway,
    limits: Arc<Limits>,
    /// Turns true once, when the server is told to stop.
    stopping: watch::Receiver<bool>,
}

impl Service {
    pub(super) fn new(
        pipeline: Pipeline,
        gateway: Gateway,
        limits: Arc<Limits>,
        stopping: watch::Receiver<bool>,
    ) -> Self {
        Self { pipeline, gateway, limits, stopping }
    }

    /// Who calls, unless it is too late.
    fn caller(&self, metadata: &MetadataMap) -> Result<Caller, Refusal> {
        if *self.stopping.borrow() {
            return Err(Refusal::Unavailable);
        }
        self.gateway.caller(metadata.as_ref(), Scope::Chat)
    }
}

#[tonic::async_trait]
impl Conversations for Service {
    type ConverseStream = ReceiverStream<Result<ConverseResponse, Status>>;
    type AskStream = ReceiverStream<Result<AskResponse, Status>>;

    async fn converse(
        &self,
        request: Request<Streaming<ConverseRequest>>,
    ) -> Result<Response<Self::ConverseStream>, Status> {
        let caller = self.caller(request.metadata())?;
        let (out, last, responses) = Outlet::open(&self.limits);
        let session = Session::new(self.pipeline.clone(), Arc::clone(&self.limits), caller, out);
        // Its turns are part of the call.
        tokio::spawn(session.run(request.into_inner(), self.stopping.clone(), last).in_current_span());
        Ok(Response::new(responses))
    }

    async fn ask(&self, request: Request<AskRequest>) -> Result<Response<Self::AskStream>, Status> {
        let caller = self.caller(request.metadata())?;
        let of_call = call_time(request.metadata());
        let turn = request.into_inner().turn;
        // The shorter of the two.
        let time_max = convert::time_max(turn.as_ref()).into_iter().chain(of_call).min();
        let turn = convert::turn(caller.tenant.clone(), turn, &self.limits, now_ms())?;
        let key = turn.key();
        let events = self.pipeline.submit_within(turn, time_max).await.map_err(Refusal::from)?;
        let (out, last, responses) = Outlet::open(&self.limits);
        tokio::spawn(answer(caller, key, events, out, last));
        Ok(Response::new(responses))
    }

    async fn feedback(&self, request: Request<FeedbackRequest>) -> Result<Response<FeedbackResponse>, Status> {
        let caller = self.caller(request.metadata())?;
        let (turn, is_good) = convert::feedback(caller.tenant, request.get_ref())?;
        match self.pipeline.feedback(turn.clone(), is_good).await.map_err(Conflict::from)? {
            Feedback::Unknown => Err(unknown_turn(&turn)),
            outcome => Ok(Response::new(FeedbackResponse { counted: outcome == Feedback::Counted })),
        }
    }
}

/// How long a call may take, by its `grpc-timeout`: at most eight digits and a unit (gRPC over HTTP/2, "Timeout"). None where the
/// client sets no limit, or one that is malformed, which tonic lets pass as well.
fn call_time(metadata: &MetadataMap) -> Option<Duration> {
    let value = metadata.get("grpc-timeout")?.to_str().ok()?;
    let (digits, unit) = value.split_at_checked(value.len().checked_sub(1)?)?;
    let count: u64 = digits.parse().ok().filter(|_| digits.len() <= 8)?;
    match unit {
        "H" => Some(Duration::from_secs(count * 3_600)),
        "M" => Some(Duration::from_secs(count * 60)),
        "S" => Some(Duration::from_secs(count)),
        "m" => Some(Duration::from_millis(count)),
        "u" => Some(Duration::from_micros(count)),
        "n" => Some(Duration::from_nanos(count)),
        _ => None,
    }
}

/// Tells a client the events of a turn, for as long as its key counts.
async fn answer(
    caller: Caller,
    key: TurnKey,
    events: TurnStream,
    out: Answers,
    last: Option<LastWord<Result<AskResponse, Status>>>,
) {
    let told = tokio::select! {
        biased;
        () = caller.ended() => {
            return last.into_iter().for_each(|last| last.say(Err(Refusal::Unauthenticated.into())));
        }
        told = forward(key, events, out) => told,
    };
    if told == Err(Untold::Slow) {
        last.into_iter().for_each(LastWord::too_slow);
    }
}

/// Passes the events of a turn on, up to its terminal event.
async fn forward(key: TurnKey, mut events: TurnStream, out: Answers) -> Result<(), Untold> {
    while let Some(event) = next_event(&mut events, &out).await {
        let ended = event.is_terminal();
        out.tell(convert::ask_event(&key, event).map_err(Status::from)).await?;
        if ended {
            break;
        }
    }
    Ok(())
}
