//! What is asked: the pipeline of this process, or a server over gRPC. And what is heard of a turn.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tonic::{Code, Status};
use turnflow_models::{EncoderHandle, EncoderStats};
use turnflow_pipeline::{Pipeline, SubmitError};
use turnflow_state::{CacheControl, LoadLevel, TierSize, Turn, TurnError, TurnErrorKind, TurnEvent, Verdict};

use super::sample::Writer;
use crate::grpc::client::{Access, ConnectError, Keyed};
use crate::grpc::proto::ask_response::Event;
use crate::grpc::proto::conversations_client::ConversationsClient;
use crate::grpc::proto::{self, AskRequest};

/// Longest wait for the end of a turn, which counts as failed then.
pub const END_WAIT_MAX: Duration = Duration::from_secs(120);
/// Connections to a server. Each carries as many turns at once as the server allows a connection; more wait for their turn,
/// which counts in their time.
const CONNECTIONS: usize = 32;

/// What is asked. Clones ask the same.
#[derive(Clone)]
pub enum Target {
    /// The pipeline of this process.
    InProcess {
        /// The pipeline.
        pipeline: Pipeline,
        /// Its encoder, which tells how large its batches are.
        encoder: EncoderHandle,
    },
    /// A server.
    Server(Connections),
}

/// Connections to a server, which take turns.
#[derive(Clone)]
pub struct Connections {
    clients: Arc<[ConversationsClient<Keyed>]>,
    next: Arc<AtomicUsize>,
}

/// What was heard of a turn.
#[derive(Debug)]
pub(super) struct Heard {
    /// When the first piece of the answer came, or else the end.
    pub(super) first: Instant,
    /// When the turn ended.
    pub(super) end: Instant,
    pub(super) ending: Ending,
}

/// How a turn ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Ending {
    /// With an answer.
    Answered {
        /// What wrote it.
        writer: Writer,
        /// Whether load decided about those who begin when it was routed.
        is_loaded: bool,
    },
    /// With the advice to try again later.
    Refused,
    /// In any other way, and why.
    Failed(String),
}

impl Target {
    /// A server at `address`, which is `host:port` or a URL.
    ///
    /// # Errors
    /// When it cannot be connected to.
    pub async fn connect(address: &str, access: &Access) -> Result<Self, ConnectError> {
        let mut clients = Vec::with_capacity(CONNECTIONS);
        for _ in 0..CONNECTIONS {
            clients.push(ConversationsClient::new(access.connect(address).await?));
        }
        Ok(Self::Server(Connections { clients: clients.into(), next: Arc::default() }))
    }

    /// Asks one turn and waits for its end.
    pub(super) async fn ask(&self, turn: Turn) -> Heard {
        let mut first = None;
        let ending = async {
            match self {
                Self::InProcess { pipeline, .. } => ask_pipeline(pipeline, turn, &mut first).await,
                Self::Server(connections) => connections.ask(turn, &mut first).await,
            }
        };
        let ending = tokio::time::timeout(END_WAIT_MAX, ending).await;
        let ending = ending.unwrap_or_else(|_| Ending::Failed(format!("no end within {END_WAIT_MAX:?}")));
        let end = Instant::now();
        Heard { first: first.unwrap_or(end), end, ending }
    }

    /// What the encoder did so far, where it is known.
    pub(super) fn encoder_stats(&self) -> Option<EncoderStats> {
        match self {
            Self::InProcess { encoder, .. } => Some(encoder.stats()),
            Self::Server(_) => None,
        }
    }

    /// Whether this process does the work.
    pub(super) const fn is_in_process(&self) -> bool {
        matches!(self, Self::InProcess { .. })
    }
}

async fn ask_pipeline(pipeline: &Pipeline, turn: Turn, first: &mut Option<Instant>) -> Ending {
    let mut events = match pipeline.submit(turn).await {
        Ok(events) => events,
        Err(error) => return error.into(),
    };
    while let Some(event) = events.next().await {
        match event {
            TurnEvent::Delta(_) => {
                first.get_or_insert_with(Instant::now);
            }
            TurnEvent::Done(completion) => return (&completion.verdict).into(),
            TurnEvent::Error(error) => return error.into(),
            // What was said is taken back.
            TurnEvent::Restart => *first = None,
            TurnEvent::Accepted => {}
        }
    }
    Ending::Failed("the answer ended without its last event".to_owned())
}

impl Connections {
    async fn ask(&self, turn: Turn, first: &mut Option<Instant>) -> Ending {
        let place = self.next.fetch_add(1, Ordering::Relaxed) % self.clients.len();
        let mut client = self.clients[place].clone();
        answer(&mut client, turn, first).await.unwrap_or_else(Ending::from)
    }
}

async fn answer(
    client: &mut ConversationsClient<Keyed>,
    turn: Turn,
    first: &mut Option<Instant>,
) -> Result<Ending, Status> {
    let mut events = client.ask(AskRequest { turn: Some(request(turn)) }).await?.into_inner();
    while let Some(response) = events.message().await? {
        match response.event {
            Some(Event::Delta(_)) => {
                first.get_or_insert_with(Instant::now);
            }
            Some(Event::Done(done)) => return Ok(done.verdict.unwrap_or_default().into()),
            Some(Event::Restart(_)) => *first = None,
            Some(Event::Accepted(_)) | None => {}
        }
    }
    Ok(Ending::Failed("the answer ended without its last event".to_owned()))
}

fn request(turn: Turn) -> proto::Turn {
    let cache_control = match turn.cache_control {
        CacheControl::Default => proto::CacheControl::Default,
        CacheControl::Bypass => proto::CacheControl::Bypass,
        CacheControl::ReadOnly => proto::CacheControl::ReadOnly,
    };
    proto::Turn {
        conversation_id: turn.conversation.as_str().to_owned(),
        turn_id: turn.id.as_str().to_owned(),
        channel: proto::Channel::Api.into(),
        text: turn.text,
        cache_control: Some(cache_control.into()),
        deadline_ms: None,
    }
}

impl From<&Verdict> for Ending {
    fn from(verdict: &Verdict) -> Self {
        let route = verdict.route.as_ref();
        let is_loaded = route.is_some_and(|route| route.load > LoadLevel::Normal);
        Self::Answered { writer: Writer::of(route.map(|route| route.size)), is_loaded }
    }
}

impl From<proto::Verdict> for Ending {
    fn from(verdict: proto::Verdict) -> Self {
        let size = verdict.route.as_ref().map(|route| match route.size() {
            proto::TierSize::Small => TierSize::Small,
            proto::TierSize::Large | proto::TierSize::Unspecified => TierSize::Large,
        });
        let level = verdict.route.as_ref().map(proto::Route::load);
        let is_loaded = matches!(level, Some(proto::LoadLevel::Degraded | proto::LoadLevel::Shedding));
        Self::Answered { writer: Writer::of(size), is_loaded }
    }
}

impl From<SubmitError> for Ending {
    fn from(error: SubmitError) -> Self {
        match error {
            SubmitError::Overloaded { .. } => Self::Refused,
            other => Self::Failed(other.to_string()),
        }
    }
}

impl From<TurnError> for Ending {
    fn from(error: TurnError) -> Self {
        match error.kind {
            TurnErrorKind::Overloaded => Self::Refused,
            kind => Self::Failed(format!("{kind}: {}", error.message)),
        }
    }
}

impl From<Status> for Ending {
    fn from(status: Status) -> Self {
        match status.code() {
            Code::ResourceExhausted => Self::Refused,
            code => Self::Failed(format!("{code:?}: {}", status.message())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_advice_to_come_back_is_a_refusal() {
        assert_eq!(Ending::from(SubmitError::Overloaded { retry_after_ms: 1 }), Ending::Refused);
        assert_eq!(Ending::from(SubmitError::ShuttingDown), Ending::Failed("shutting down".to_owned()));
        assert_eq!(Ending::from(TurnError::new(TurnErrorKind::Overloaded, "busy")), Ending::Refused);
        let failed = Ending::from(TurnError::new(TurnErrorKind::Internal, "broken"));
        assert_eq!(failed, Ending::Failed("internal: broken".to_owned()));
        assert_eq!(Ending::from(Status::resource_exhausted("busy")), Ending::Refused);
        assert_eq!(Ending::from(Status::internal("broken")), Ending::Failed("Internal: broken".to_owned()));
    }

    #[test]
    fn a_verdict_tells_which_tier_was_asked_and_whether_under_load() {
        let verdict = |size: proto::TierSize, load: proto::LoadLevel| proto::Verdict {
            route: Some(proto::Route { size: size.into(), load: load.into(), ..proto::Route::default() }),
            ..proto::Verdict::default()
        };
        for (verdict, writer, is_loaded) in [
            (verdict(proto::TierSize::Small, proto::LoadLevel::Degraded), Writer::SmallTier, true),
            (verdict(proto::TierSize::Large, proto::LoadLevel::Normal), Writer::LargeTier, false),
            (proto::Verdict::default(), Writer::NoTier, false),
        ] {
            assert_eq!(Ending::from(verdict), Ending::Answered { writer, is_loaded });
        }
    }
}
