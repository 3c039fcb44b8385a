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
use turnflow_pipeline::{Feedback, Pipeline, TurnStream};
use turnflow_state::{Limits, TurnKey};

use super::converse::Session;
use super::convert;
use super::proto::conversations_server::Conversations;
use super::proto::{AskRequest, AskResponse, ConverseRequest, ConverseResponse, FeedbackRequest, FeedbackResponse};
use super::refusal::unknown_turn;
use crate::door::{Conflict, LastWord, Outlet, Refusal, Untold, next_event, now_ms, tenant_of};

/// Where the events of one turn go.
type Answers = Outlet<Result<AskResponse, Status>>;

/// Where the responses of one call go.
pub(super) type Responses<R> = mpsc::Sender<Result<R, Status>>;

/// The `Conversations` service.
pub(super) struct Service {
    pipeline: Pipeline,
    limits: Arc<Limits>,
    /// Turns true once, when the server is told to stop.
    stopping: watch::Receiver<bool>,
}

impl Service {
    pub(super) fn new(pipeline: Pipeline, limits: Arc<Limits>, stopping: watch::Receiver<bool>) -> Self {
        Self { pipeline, limits, stopping }
    }

    fn refuse_when_stopping(&self) -> Result<(), Refusal> {
        if *self.stopping.borrow() { Err(Refusal::Unavailable) } else { Ok(()) }
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
        self.refuse_when_stopping()?;
        let tenant = tenant_of(request.metadata().as_ref())?;
        let (out, last, responses) = Outlet::open(&self.limits);
        let session = Session::new(self.pipeline.clone(), Arc::clone(&self.limits), tenant, out);
        tokio::spawn(session.run(request.into_inner(), self.stopping.clone(), last));
        Ok(Response::new(responses))
    }

    async fn ask(&self, request: Request<AskRequest>) -> Result<Response<Self::AskStream>, Status> {
        self.refuse_when_stopping()?;
        let tenant = tenant_of(request.metadata().as_ref())?;
        let of_call = call_time(request.metadata());
        let turn = request.into_inner().turn;
        // The shorter of the two.
        let time_max = convert::time_max(turn.as_ref()).into_iter().chain(of_call).min();
        let turn = convert::turn(tenant, turn, &self.limits, now_ms())?;
        let key = turn.key();
        let events = self.pipeline.submit_within(turn, time_max).await.map_err(Refusal::from)?;
        let (out, last, responses) = Outlet::open(&self.limits);
        tokio::spawn(forward(key, events, out, last));
        Ok(Response::new(responses))
    }

    async fn feedback(&self, request: Request<FeedbackRequest>) -> Result<Response<FeedbackResponse>, Status> {
        self.refuse_when_stopping()?;
        let tenant = tenant_of(request.metadata().as_ref())?;
        let (turn, is_good) = convert::feedback(tenant, request.get_ref())?;
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

/// Passes the events of a turn on, up to its terminal event.
async fn forward(
    key: TurnKey,
    mut events: TurnStream,
    out: Answers,
    last: Option<LastWord<Result<AskResponse, Status>>>,
) {
    while let Some(event) = next_event(&mut events, &out).await {
        let ended = event.is_terminal();
        let response = convert::ask_event(&key, event).map_err(Status::from);
        match out.tell(response).await {
            Ok(()) if !ended => {}
            Err(Untold::Slow) => return last.into_iter().for_each(LastWord::too_slow),
            Ok(()) | Err(Untold::Gone) => return,
        }
    }
}
