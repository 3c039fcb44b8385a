//! The results of a replay: one JSON object per turn, in the log's order.
//!
//! | Field | Meaning |
//! |---|---|
//! | `conversation_id`, `turn` | as in the log |
//! | `verdict` | `exact`, `semantic`, `joined`, `miss` or `bypass`; `miss` for a turn that failed |
//! | `reason` | why, in words: on a miss, what the nearest cached question lacked |
//! | `tier` | the tier that wrote the answer, now or when it was cached; null for a turn that failed |
//! | `origin` | on a hit: `conversation_id` and `turn` whose answer was served, and `refreshed`: whether it was made anew since, after an edit; else null |
//! | `entry` | the cache entry that was served, or null |
//! | `similarity` | cosine of the two questions on a hit on a similar one, or null |
//! | `sources` | where the answer comes from, best first: `article_id`, `version`, `chunk` |
//! | `text` | the answer; empty for a turn that failed |
//! | `latency_us` | `total` as a caller saw it, counted from the scheduled time where the replay follows the log's clock, and the time in each stage |
//! | `error` | null, or what went wrong |

use std::io::{self, Write};

use serde::Serialize;
use serde_json::{Map, Value};
use turnflow_state::{CacheLevel, Completion, ConversationId, HitEvidence, Source, Tier, TurnError, TurnKey};

/// How one turn of the log ended.
#[derive(Clone, Debug)]
pub struct TurnResult {
    /// Which conversation.
    pub conversation: ConversationId,
    /// Which turn of it.
    pub turn: u64,
    /// What was asked.
    pub question: String,
    /// The answer, or why there is none.
    pub outcome: Result<Box<Completion>, TurnError>,
    /// Whether an earlier run had answered it, so that this one served the same answer again.
    pub answered_before: bool,
    /// Time that a caller waited, in microseconds.
    pub total_us: u64,
}

#[derive(Serialize)]
struct Line<'a> {
    conversation_id: &'a ConversationId,
    turn: u64,
    verdict: CacheLevel,
    reason: &'a str,
    tier: Option<Tier>,
    origin: Option<Origin<'a>>,
    entry: Option<String>,
    similarity: Option<f32>,
    evidence: Option<&'a HitEvidence>,
    sources: &'a [Source],
    text: &'a str,
    latency_us: Map<String, Value>,
    error: Option<String>,
}

#[derive(Serialize)]
struct Origin<'a> {
    conversation_id: &'a ConversationId,
    turn: Value,
    refreshed: bool,
}

impl<'a> Origin<'a> {
    fn of(key: &'a TurnKey, refreshed: bool) -> Self {
        // A turn that a replay submitted is named by its number; others may share the store.
        let turn = key.turn.as_str();
        let turn = turn.parse::<u64>().map_or_else(|_| Value::from(turn), Value::from);
        Self { conversation_id: &key.conversation, turn, refreshed }
    }
}

/// Writes one result as a line of JSON.
///
/// # Errors
/// When writing fails.
pub fn write_result(out: &mut impl Write, result: &TurnResult) -> io::Result<()> {
    let mut latency_us = Map::new();
    latency_us.insert("total".to_owned(), result.total_us.into());
    let (conversation_id, turn) = (&result.conversation, result.turn);
    let line = match &result.outcome {
        Ok(completion) => {
            latency_us.extend(completion.latency.iter().map(|(stage, us)| (stage.as_str().to_owned(), us.into())));
            let verdict = &completion.verdict;
            Line {
                conversation_id,
                turn,
                verdict: verdict.level,
                reason: &verdict.reason,
                tier: Some(completion.tier),
                origin: (verdict.origin.as_ref().filter(|_| verdict.level.is_hit()))
                    .map(|key| Origin::of(key, verdict.refreshed)),
                entry: verdict.entry.map(|entry| entry.to_string()),
                similarity: verdict.similarity,
                evidence: verdict.evidence.as_deref(),
                sources: &completion.sources,
                text: &completion.text,
                latency_us,
                error: None,
            }
        }
        Err(error) => Line {
            conversation_id,
            turn,
            verdict: CacheLevel::Miss,
            reason: "",
            tier: None,
            origin: None,
            entry: None,
            similarity: None,
            evidence: None,
            sources: &[],
            text: "",
            latency_us,
            error: Some(format!("{}: {}", error.kind, error.message)),
        },
    };
    serde_json::to_writer(&mut *out, &line)?;
    out.write_all(b"\n")
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use turnflow_state::{ArticleId, EntryId, Stage, StageLatencies, TenantId, TurnErrorKind, TurnId, Usage, Verdict};

    use super::*;

    fn hit(origin_turn: &str) -> Completion {
        let mut latency = StageLatencies::default();
        latency.add(Stage::Lookup, 12);
        let origin = TurnKey {
            tenant: TenantId::new("shop").expect("an id"),
            conversation: ConversationId::new("c0").expect("an id"),
            turn: TurnId::new(origin_turn).expect("an id"),
        };
        Completion {
            text: "We open at nine.".to_owned(),
            tier: Tier::Extractive,
            grounded: true,
            sources: vec![Source { article_id: ArticleId::new("hours").expect("an id"), version: 2, chunk: 0 }],
            usage: Usage::default(),
            cost_micros: 0,
            large_cost_micros: 0,
            verdict: Verdict {
                level: CacheLevel::Semantic,
                entry: Some(EntryId(7)),
                similarity: Some(0.5),
                question: None,
                origin: Some(origin),
                refreshed: false,
                evidence: None,
                route: None,
                reason: "similar".to_owned(),
                age_ms: None,
            },
            latency,
            total_us: 80,
            cut_off: false,
        }
    }

    fn written(outcome: Result<Box<Completion>, TurnError>) -> Value {
        let conversation = ConversationId::new("c1").expect("an id");
        let mut out = Vec::new();
        let result = TurnResult {
            conversation,
            turn: 2,
            question: "When do you open?".to_owned(),
            outcome,
            answered_before: false,
            total_us: 99,
        };
        write_result(&mut out, &result).expect("written");
        assert_eq!(out.iter().filter(|&&byte| byte == b'\n').count(), 1);
        serde_json::from_slice(&out).expect("JSON")
    }

    #[test]
    fn a_hit_names_its_origin() {
        let line = written(Ok(Box::new(hit("3"))));
        assert_eq!(line["origin"], json!({"conversation_id": "c0", "turn": 3, "refreshed": false}));
        let mut again = hit("3");
        again.verdict.refreshed = true;
        assert_eq!(written(Ok(Box::new(again)))["origin"]["refreshed"], json!(true));
        assert_eq!(line["sources"], json!([{"article_id": "hours", "version": 2, "chunk": 0}]));
        assert_eq!(
            (&line["verdict"], &line["entry"], &line["similarity"]),
            (&json!("semantic"), &json!("e7"), &json!(0.5))
        );
        assert_eq!((&line["latency_us"]["total"], &line["latency_us"]["lookup"]), (&json!(99), &json!(12)));
        assert_eq!((&line["tier"], &line["error"]), (&json!("extractive"), &Value::Null));
        assert_eq!(line["reason"], "similar");
        assert_eq!(written(Ok(Box::new(hit("first"))))["origin"]["turn"], json!("first"));
    }

    #[test]
    fn a_miss_has_no_origin_even_if_the_pipeline_names_one() {
        let mut completion = hit("3");
        completion.verdict.level = CacheLevel::Miss;
        assert_eq!(written(Ok(Box::new(completion)))["origin"], Value::Null);
    }

    #[test]
    fn a_failed_turn_is_a_miss_with_an_error() {
        let line = written(Err(TurnError::new(TurnErrorKind::Internal, "the tier failed")));
        assert_eq!((&line["verdict"], &line["error"]), (&json!("miss"), &json!("internal: the tier failed")));
        assert_eq!((&line["tier"], &line["text"]), (&Value::Null, &json!("")));
    }
}
