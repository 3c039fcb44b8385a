//! The calls of the `Conversations` service, and how the events of a turn get to a client.
//!
//! A turn belongs to the pipeline from its admission on. A client that goes away ends the tasks here, at once and
//! without a trace; its turn is answered and stored all the same, and the same turn again gets that answer.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio_stream::wrappers::ReceiverStream;
use tonic::metadata::MetadataMap;
use tonic::{Request, Response, Status, Streaming};
use tracing::Instrument as _;
use turnflow_pipeline::{Feedback, Pipeline, Submission};
use turnflow_state::{Limits, TurnKey};

use super::converse::Session;
use super::convert;
use super::proto::conversations_server::Conversations;
use super::proto::{AskRequest, AskResponse, ConverseRequest, ConverseResponse, FeedbackRequest, FeedbackResponse};
use super::refusal::unknown_turn;
use crate::door::{
    Admitted, Amounts, Caller, Conflict, Gateway, LastWord, Outlet, Refusal, Untold, admit, next_event, now_ms,
};
use crate::keys::Scope;

/// Where the events of one turn go.
type Answers = Outlet<Result<AskResponse, Status>>;

/// What an open stream needs of its caller's limits.
const STREAM: Amounts = Amounts { requests: 0, tokens: 0, turns: 0, streams: 1, micros: 0 };

/// Opens a stream of responses, which takes its place among those of its caller until whatever serves it has ended.
pub(super) fn stream<R: Send + 'static, F: Future<Output = ()> + Send + 'static>(
    caller: Caller,
    limits: &Limits,
    serve: impl FnOnce(Caller, Outlet<R>, Option<LastWord<R>>) -> F,
) -> Result<Response<ReceiverStream<R>>, Status> {
    let place = caller.take(STREAM)?;
    let (out, last, responses) = Outlet::open(limits);
    let serving = serve(caller, out, last);
    let served = async move {
        serving.await;
        drop(place);
    };
    // What it does is part of the call.
    tokio::spawn(served.in_current_span());
    Ok(Response::new(responses))
}

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

    /// Who calls, unless it is too late, or has called too often.
    fn caller(&self, metadata: &MetadataMap) -> Result<Caller, Refusal> {
        if *self.stopping.borrow() {
            return Err(Refusal::Unavailable);
        }
        let caller = self.gateway.caller(metadata.as_ref(), Scope::Chat)?;
        caller.request()?;
        Ok(caller)
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
        stream(caller, &self.limits, |caller, out, last| {
            let session = Session::new(self.pipeline.clone(), Arc::clone(&self.limits), caller, out);
            session.run(request.into_inner(), self.stopping.clone(), last)
        })
    }

    async fn ask(&self, request: Request<AskRequest>) -> Result<Response<Self::AskStream>, Status> {
        let caller = self.caller(request.metadata())?;
        let of_call = call_time(request.metadata());
        let turn = request.into_inner().turn;
        // The shorter of the two.
        let time_max = convert::time_max(turn.as_ref()).into_iter().chain(of_call).min();
        let turn = convert::turn(caller.tenant.clone(), turn, &self.limits, now_ms())?;
        let key = turn.key();
        let events = admit(&self.pipeline, &caller, Submission { time_max, ..turn.into() }, STREAM).await?;
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
    events: Admitted,
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
async fn forward(key: TurnKey, mut events: Admitted, out: Answers) -> Result<(), Untold> {
    while let Some(event) = next_event(&mut events, &out).await {
        let ended = event.is_terminal();
        out.tell(convert::ask_event(&key, event).map_err(Status::from)).await?;
        if ended {
            break;
        }
    }
    Ok(())
}
