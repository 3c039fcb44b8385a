//! What the tests of the cores share.

#![allow(dead_code, reason = "each test binary uses a part of it")]

use std::sync::Arc;

use turnflow_operators::audience::Audiences;
use turnflow_operators::generate::{Generate, GenerateSettings, Generator};
use turnflow_operators::load::Load;
use turnflow_operators::message::{Ask, Basis, RequestId, Step};
use turnflow_operators::policy::{Clarity, Policy};
use turnflow_operators::prioritise::{ChannelWeights, Order, QueueLimits};
use turnflow_operators::shell::Wake;
use turnflow_state::{
    Answer, CacheControl, CacheEntry, Channel, ConversationId, EntryId, Reach, ScopeId, Support, TenantId, Tier, Turn,
    TurnId, Usage,
};

/// A turn of the tenant `shop`.
pub(crate) fn turn(conversation: &str, id: &str, text: &str) -> Turn {
    Turn {
        tenant: TenantId::new("shop").expect("valid"),
        conversation: ConversationId::new(conversation).expect("valid"),
        id: TurnId::new(id).expect("valid"),
        channel: Channel::Web,
        text: text.into(),
        cache_control: CacheControl::Default,
        at_ms: 0,
    }
}

/// A scope of its own.
pub(crate) fn scope(name: &str) -> ScopeId {
    ScopeId::derive(&TenantId::new(name).expect("valid"), &[])
}

/// A policy that goes by the cosine alone.
pub(crate) fn policy(similarity_min: f32) -> Arc<Policy> {
    Arc::new(Policy::new(Clarity { relevance_min: 0.5, margin_min: 0.1 }, similarity_min, None, 0.01))
}

/// A turn on its way.
pub(crate) fn ask(number: u64, conversation: &str, id: &str, text: &str) -> Box<Ask> {
    Box::new(Ask::new(RequestId { worker: 0, number }, turn(conversation, id, text), scope("shop"), 0))
}

/// A grounded answer.
pub(crate) fn answer(text: &str) -> Arc<Answer> {
    let usage = Usage { input_tokens: 10, output_tokens: 5 };
    Arc::new(Answer {
        text: text.into(),
        tier: Tier::Extractive,
        sources: Vec::new(),
        usage,
        grounded: true,
        cut_off: false,
    })
}

/// A cached answer, made at the millisecond of its number.
pub(crate) fn entry(id: u64, scope: ScopeId, question: &str, vector: Option<Vec<f32>>) -> CacheEntry {
    CacheEntry {
        id: EntryId(id),
        scope,
        question: question.into(),
        vector: vector.map(Into::into),
        answer: answer(&format!("answer {id}")),
        support: Arc::new(Support { chunks: Vec::new(), floor: 0.0, read_epoch: 0 }),
        created_ms: id,
        origin: turn("c0", &format!("t{id}"), question).key(),
        about: None,
        refreshed: false,
    }
}

/// The turns that were given out.
pub(crate) fn numbers(steps: &[Step]) -> Vec<u64> {
    steps
        .iter()
        .map(|step| step.as_ref().map_or_else(|outcome| outcome.ask.request.number, |ask| ask.request.number))
        .collect()
}

/// What an answer follows from that rests on nothing.
pub(crate) fn basis(vector: &[f32]) -> Basis {
    let support = Arc::new(Support { chunks: Vec::new(), floor: 0.0, read_epoch: 0 });
    Basis { vector: vector.into(), support, valid_at: 0 }
}

/// A queue with room for everything, that ages nobody.
pub(crate) const QUEUE: QueueLimits = QueueLimits {
    order: Order::Priority,
    turns_max: 1_000,
    tokens_max: 1_000_000,
    patience_ms: 1_000,
    aged_ms: 1_000_000,
    aged_every: 4,
    weights: ChannelWeights { voice: 4.0, chat: 2.0, api: 1.0, email: 1.0 },
};

/// What generate keeps to.
pub(crate) fn settings() -> GenerateSettings {
    GenerateSettings { reach: Reach { chunks: 4, margin: 2.0 }, queue: QUEUE, routed: true, escalate: true, number: 0 }
}

/// A stage in front of a tier, whatever the load.
pub(crate) fn generate<G: Generator>(tier: G, audiences: Audiences, wake: &Wake) -> Generate<G> {
    Generate::new(tier, settings(), Load::ignored(), audiences, wake)
}
