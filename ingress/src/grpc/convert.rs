//! Requests to turns and events to responses.
//!
//! A turn is checked here field by field, so that a client hears which field is at fault; past this module a turn is
//! valid by type. Enums are matched, not cast, so that a new value on either side has to be handled here.

use std::time::Duration;

use turnflow_state::{
    CacheControl, CacheLevel, Channel, Completion, ConversationId, HitEvidence, IdError, Limits, LoadLevel,
    RouteEvidence, Source, Stage, StageLatencies, TenantId, Tier, TierSize, Turn, TurnEvent, TurnId, TurnKey, Verdict,
};

use super::proto::{self, ask_response, converse_response};
use super::refusal::event_of;
use crate::door::{Refusal, conversation, text};

/// How long the answer to a request's turn may take; None for as long as it takes.
pub(super) fn time_max(turn: Option<&proto::Turn>) -> Option<Duration> {
    turn.and_then(|turn| turn.deadline_ms).map(Duration::from_millis)
}

/// Checks a request's turn, which came at this time.
pub(super) fn turn(tenant: TenantId, turn: Option<proto::Turn>, limits: &Limits, at_ms: u64) -> Result<Turn, Refusal> {
    let Some(turn) = turn else {
        return Err(Refusal::Invalid { field: Some("turn".to_owned()), message: "missing".to_owned() });
    };
    let bad_id = |field: &'static str| move |error: IdError| Refusal::invalid(field, error.to_string());
    Ok(Turn {
        tenant,
        conversation: conversation("conversation_id", &turn.conversation_id)?,
        id: TurnId::new(&turn.turn_id).map_err(bad_id("turn_id"))?,
        channel: channel(turn.channel)?,
        cache_control: cache_control(turn.cache_control)?,
        text: text("turn.text", turn.text, limits.text_bytes_max)?,
        at_ms,
    })
}

fn channel(value: i32) -> Result<Channel, Refusal> {
    use proto::Channel as Wire;
    Ok(match Wire::try_from(value) {
        Ok(Wire::Web) => Channel::Web,
        Ok(Wire::MobileApp) => Channel::MobileApp,
        Ok(Wire::Whatsapp) => Channel::Whatsapp,
        Ok(Wire::Email) => Channel::Email,
        Ok(Wire::Voice) => Channel::Voice,
        Ok(Wire::Sms) => Channel::Sms,
        Ok(Wire::Api) => Channel::Api,
        Ok(Wire::Unspecified) => return Err(Refusal::invalid("channel", "unspecified")),
        Err(error) => return Err(Refusal::invalid("channel", error.to_string())),
    })
}

fn cache_control(value: Option<i32>) -> Result<CacheControl, Refusal> {
    use proto::CacheControl as Wire;
    let Some(value) = value else {
        return Ok(CacheControl::Default);
    };
    Ok(match Wire::try_from(value) {
        Ok(Wire::Default) => CacheControl::Default,
        Ok(Wire::Bypass) => CacheControl::Bypass,
        Ok(Wire::ReadOnly) => CacheControl::ReadOnly,
        Ok(Wire::Unspecified) => return Err(Refusal::invalid("cache_control", "unspecified")),
        Err(error) => return Err(Refusal::invalid("cache_control", error.to_string())),
    })
}

/// Checks a judgement: which turn, and whether its answer was good.
pub(super) fn feedback(tenant: TenantId, request: &proto::FeedbackRequest) -> Result<(TurnKey, bool), Refusal> {
    let invalid = |field: &str, message: String| Refusal::Invalid { field: Some(field.to_owned()), message };
    let bad_id = |field: &'static str| move |error: IdError| invalid(field, error.to_string());
    let conversation = ConversationId::new(&request.conversation_id).map_err(bad_id("conversation_id"))?;
    let turn = TurnId::new(&request.turn_id).map_err(bad_id("turn_id"))?;
    let is_good = match proto::Judgement::try_from(request.judgement) {
        Ok(proto::Judgement::Good) => true,
        Ok(proto::Judgement::Wrong) => false,
        Ok(proto::Judgement::Unspecified) => return Err(invalid("judgement", "unspecified".to_owned())),
        Err(error) => return Err(invalid("judgement", error.to_string())),
    };
    Ok((TurnKey { tenant, conversation, turn }, is_good))
}

/// An event of an admitted turn on a stream of many.
pub(super) fn converse_event(key: &TurnKey, event: TurnEvent) -> proto::ConverseResponse {
    use converse_response::Event;
    let event = match event {
        TurnEvent::Accepted => Event::Accepted(proto::Accepted {}),
        TurnEvent::Delta(text) => Event::Delta(proto::Delta { text }),
        TurnEvent::Restart => Event::Restart(proto::Restart {}),
        TurnEvent::Done(completion) => Event::Done(done(*completion)),
        TurnEvent::Error(error) => Event::Error(event_of(Refusal::of_turn(error, key))),
    };
    proto::ConverseResponse {
        conversation_id: key.conversation.to_string(),
        turn_id: key.turn.to_string(),
        event: Some(event),
    }
}

/// An event of a turn on its own, or the refusal that ends the call.
pub(super) fn ask_event(key: &TurnKey, event: TurnEvent) -> Result<proto::AskResponse, Refusal> {
    use ask_response::Event;
    let event = match event {
        TurnEvent::Accepted => Event::Accepted(proto::Accepted {}),
        TurnEvent::Delta(text) => Event::Delta(proto::Delta { text }),
        TurnEvent::Restart => Event::Restart(proto::Restart {}),
        TurnEvent::Done(completion) => Event::Done(done(*completion)),
        TurnEvent::Error(error) => return Err(Refusal::of_turn(error, key)),
    };
    Ok(proto::AskResponse { event: Some(event) })
}

fn done(completion: Completion) -> proto::Done {
    proto::Done {
        text: completion.text,
        tier: tier(completion.tier).into(),
        grounded: completion.grounded,
        sources: completion.sources.iter().map(source).collect(),
        usage: Some(proto::Usage {
            input_tokens: completion.usage.input_tokens,
            output_tokens: completion.usage.output_tokens,
        }),
        cost_micros: completion.cost_micros,
        latency: Some(latency(&completion.latency, completion.total_us)),
        verdict: Some(verdict(completion.verdict)),
        cut_off: completion.cut_off,
    }
}

pub(super) fn tier(tier: Tier) -> proto::Tier {
    match tier {
        Tier::Extractive => proto::Tier::Extractive,
        Tier::Scripted => proto::Tier::Scripted,
        Tier::Burn => proto::Tier::Burn,
        Tier::Openai => proto::Tier::Openai,
    }
}

pub(super) fn source(source: &Source) -> proto::Source {
    proto::Source { article_id: source.article_id.to_string(), version: source.version, chunk: source.chunk }
}

fn latency(stages: &StageLatencies, total_us: u64) -> proto::Latency {
    let mut latency = proto::Latency { total_us, ..proto::Latency::default() };
    for (stage, elapsed_us) in stages.iter() {
        let field = match stage {
            Stage::Recall => &mut latency.recall_us,
            Stage::Dedupe => &mut latency.dedupe_us,
            Stage::Embed => &mut latency.embed_us,
            Stage::Retrieve => &mut latency.retrieve_us,
            Stage::Lookup => &mut latency.lookup_us,
            Stage::Prioritise => &mut latency.prioritise_us,
            Stage::Generate => &mut latency.generate_us,
            Stage::Commit => &mut latency.commit_us,
        };
        *field = elapsed_us;
    }
    latency
}

fn verdict(verdict: Verdict) -> proto::Verdict {
    let level = match verdict.level {
        CacheLevel::Exact => proto::CacheLevel::Exact,
        CacheLevel::Semantic => proto::CacheLevel::Semantic,
        CacheLevel::Joined => proto::CacheLevel::Joined,
        CacheLevel::Miss => proto::CacheLevel::Miss,
        CacheLevel::Bypass => proto::CacheLevel::Bypass,
    };
    proto::Verdict {
        level: level.into(),
        entry: verdict.entry.map(|entry| entry.0),
        similarity: verdict.similarity,
        question: verdict.question,
        origin: verdict.origin.as_ref().map(turn_name),
        refreshed: verdict.refreshed,
        reason: verdict.reason,
        evidence: verdict.evidence.map(|evidence| evidence_of(*evidence)),
        route: verdict.route.map(|route| route_of(*route)),
    }
}

pub(super) fn turn_name(turn: &TurnKey) -> proto::TurnName {
    proto::TurnName { conversation_id: turn.conversation.to_string(), turn_id: turn.turn.to_string() }
}

fn route_of(route: RouteEvidence) -> proto::Route {
    let RouteEvidence { size, reason, probability, load, escalated } = route;
    let size = match size {
        TierSize::Small => proto::TierSize::Small,
        TierSize::Large => proto::TierSize::Large,
    };
    proto::Route { size: size.into(), reason, probability, load: load_level(load).into(), escalated }
}

pub(super) const fn load_level(level: LoadLevel) -> proto::LoadLevel {
    match level {
        LoadLevel::Normal => proto::LoadLevel::Normal,
        LoadLevel::Degraded => proto::LoadLevel::Degraded,
        LoadLevel::Shedding => proto::LoadLevel::Shedding,
    }
}

fn evidence_of(evidence: HitEvidence) -> proto::Evidence {
    let HitEvidence { probability, log_odds, required, error_max, same_article, reasons, age_ms, audits, agreed } =
        evidence;
    let reasons = reasons.into_iter().map(|reason| proto::Reason {
        name: reason.name,
        value: reason.value,
        weight: reason.weight,
    });
    let reasons = reasons.collect();
    proto::Evidence { probability, log_odds, required, error_max, same_article, reasons, age_ms, audits, agreed }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_stage_has_a_field_of_its_own() {
        let mut stages = StageLatencies::default();
        for (position, &stage) in Stage::ALL.iter().enumerate() {
            stages.add(stage, 1 << position);
        }
        let wire = latency(&stages, 7);
        let mut found = [
            wire.recall_us,
            wire.dedupe_us,
            wire.embed_us,
            wire.retrieve_us,
            wire.lookup_us,
            wire.prioritise_us,
            wire.generate_us,
            wire.commit_us,
        ];
        found.sort_unstable();
        assert_eq!(found.to_vec(), (0..Stage::ALL.len()).map(|position| 1 << position).collect::<Vec<u32>>());
        assert_eq!(wire.total_us, 7);
    }
}
