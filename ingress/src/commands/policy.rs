//! `policy fit` and `policy eval`: make a verifier from labelled questions, and say how good one is.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use serde::Serialize;
use turnflow_models::{
    CONFIDENCE, Evidence, FitOptions, FitReport, FitStage, PairExample, QuestionExample, Verifier, fit,
};
use turnflow_pipeline::{fitted_with, policy, verifier};
use turnflow_state::HitEvidence;

use super::prepare::{Text, prepare};
use super::replay::check_output;
use super::{Context, open};
use crate::cli::{ExampleArgs, ExplainArgs, PolicyEvalArgs, PolicyFitArgs};
use crate::examples::{Examples, Label, Pair};
use crate::failure::Failure;
use crate::policy_report::{Accepts, Recalls, Reliability, reliability_svg};
use crate::say::say;

/// Errors that a fitted verifier is reported for.
const DELTAS: [f64; 4] = [0.005, 0.01, 0.02, 0.05];

pub(super) fn run_fit(context: &Context, args: &PolicyFitArgs) -> Result<(), Failure> {
    if args.examples.kb.is_none() {
        return Err(Failure::usage(anyhow::anyhow!(
            "--kb is missing: what a score means depends on the knowledge base"
        ))
        .with_hint("give the articles that the questions are about"));
    }
    check_output("--out", Some(&args.out), &read_from(&args.examples))?;
    let examples = Examples::read(&args.examples.data, &args.examples.source)?;
    let prepared = prepare(context, &examples.texts, args.examples.kb.as_ref())?;
    let questions: Vec<(usize, QuestionExample)> = prepared
        .iter()
        .enumerate()
        .filter_map(|(at, text)| {
            let Label { name: label, source } = examples.labels[at].clone()?;
            let Text { vector, mentions, article, .. } = text.clone();
            let article = article.map(|article| article.to_string());
            let mentions = mentions.to_string();
            Some((at, QuestionExample { text: examples.texts[at].clone(), vector, source, label, mentions, article }))
        })
        .collect();
    let place: BTreeMap<usize, usize> = questions.iter().enumerate().map(|(place, (at, _))| (*at, place)).collect();
    // A pair that mentions different things never comes before the verifier.
    let comes = |pair: &&Pair| prepared[pair.a].mentions == prepared[pair.b].mentions;
    let pairs: Vec<PairExample> = examples
        .pairs
        .iter()
        .filter(comes)
        .filter_map(|pair| Some(PairExample { a: *place.get(&pair.a)?, b: *place.get(&pair.b)?, same: pair.same }))
        .collect();
    let questions: Vec<QuestionExample> = questions.into_iter().map(|(_, question)| question).collect();
    let options = FitOptions { held_out_labels: args.held_out_labels, seed: args.seed, ..FitOptions::default() };
    let encoder = open::encoder_identity(context)?;
    let mut told = None;
    let (verifier, report) =
        fit(&questions, &pairs, &options, fitted_with(&context.config, &encoder), &mut |stage, step, loss| {
            let what = match stage {
                FitStage::Projection => "training the projection",
                FitStage::Network => "training the network",
                FitStage::Calibration => "calibrating",
            };
            if told != Some(stage) || (stage == FitStage::Projection && step % 100 == 0) || stage == FitStage::Network {
                say!("{what}: step {step}, loss {loss:.4}");
            }
            told = Some(stage);
        })
        .map_err(|error| anyhow::Error::from(error).context(format!("{} lines were read", examples.lines)))?;
    verifier.save(&args.out)?;
    let outcome = Fitted::of(&verifier, &report, &args.out);
    context.print(&outcome, &outcome)
}

/// The files that are read, and must not be written.
fn read_from(examples: &ExampleArgs) -> Vec<Option<&Path>> {
    examples.data.iter().chain(&examples.kb).map(|path| Some(path.as_path())).collect()
}

pub(super) fn run_eval(context: &Context, args: &PolicyEvalArgs) -> Result<(), Failure> {
    let verifier_file = args.verifier.as_deref();
    let read = [read_from(&args.examples), vec![verifier_file]].concat();
    check_output("--report", args.report.as_deref(), &read)?;
    let examples = Examples::read(&args.examples.data, &args.examples.source)?;
    if examples.pairs.is_empty() {
        return Err(Failure::usage(anyhow::anyhow!("no pairs of questions to judge a verifier on")));
    }
    let mut config = context.config.clone();
    if let Some(path) = &args.verifier {
        config.policy.verifier = path.display().to_string();
    }
    let Some(verifier) = verifier(&config, &open::encoder_identity(context)?)? else {
        return Err(Failure::usage(anyhow::anyhow!("policy.verifier is \"none\": there is nothing to judge"))
            .with_hint("name a verifier's file with --verifier"));
    };
    let context = &context.with(config);
    let prepared = prepare(context, &examples.texts, args.examples.kb.as_ref())?;
    let profiles: Vec<_> =
        examples.texts.iter().zip(&prepared).map(|(text, prepared)| verifier.profile(text, &prepared.vector)).collect();
    let judged: Vec<Judged<'_>> = examples
        .pairs
        .iter()
        .map(|pair| {
            let (a, b) = (&prepared[pair.a], &prepared[pair.b]);
            let cosine = turnflow_models::dot(&a.vector, &b.vector);
            let score = if a.mentions == b.mentions {
                verifier.compare(&profiles[pair.a], &profiles[pair.b], cosine).log_odds
            } else {
                f32::NEG_INFINITY
            };
            let evidence = Evidence::between(a.article.as_ref(), b.article.as_ref());
            Judged { pair, score, cosine, evidence }
        })
        .collect();
    let delta = context.config.policy.delta;
    let outcome = Evaluation::of(&judged, &verifier, delta);
    if let Some(path) = &args.report {
        let svg = reliability_svg(&outcome.reliability);
        std::fs::write(path, svg).map_err(|error| anyhow::anyhow!("cannot write {}: {error}", path.display()))?;
    }
    context.print(&outcome, &outcome)
}

/// `cache explain`: why two texts would or would not share an answer.
pub(super) fn run_explain(context: &Context, args: &ExplainArgs) -> Result<(), Failure> {
    if args.a.trim().is_empty() || args.b.trim().is_empty() {
        return Err(Failure::usage(anyhow::anyhow!("an empty text is no question")));
    }
    let examples = Examples::of([&args.a, &args.b]);
    let policy = policy(&context.config, &open::encoder_identity(context)?)?;
    let texts = prepare(context, &examples.texts, args.kb.as_ref())?;
    let [a, b] = texts.as_slice() else {
        let text = "yes: the two are the same in normal form, and answered by the exact cache\n";
        return context
            .print(&Explained { shared: true, level: "exact", reason: text.trim_end(), ..Explained::default() }, text);
    };
    let ready = |at: usize, text: &Text| policy.prepare(&examples.texts[at], Some(&text.vector), text.article.clone());
    let similarity = turnflow_models::dot(&a.vector, &b.vector);
    let (first, second) = (ready(0, a), ready(1, b));
    let judged = policy
        .judge(&first, &second, similarity, [0.0; 2])
        .map(|evidence| HitEvidence { reasons: policy.reasons(&first, &second, similarity), ..evidence })
        .map_err(|refusal| policy.explain(refusal, &first, &second, similarity));
    let about = [a, b].map(|text| text.article.as_ref().map(ToString::to_string));
    let explained = match &judged {
        Ok(evidence) => Explained {
            shared: true,
            level: "semantic",
            similarity: Some(similarity),
            about,
            evidence: Some(evidence),
            reason: "one answer serves both",
        },
        Err(reason) => {
            Explained { shared: false, level: "none", similarity: Some(similarity), about, evidence: None, reason }
        }
    };
    context.print(&explained, &explained)
}

/// Whether and why two texts share an answer.
#[derive(Default, Serialize)]
struct Explained<'a> {
    shared: bool,
    level: &'static str,
    similarity: Option<f32>,
    /// The article that each is clearly about.
    about: [Option<String>; 2],
    evidence: Option<&'a HitEvidence>,
    reason: &'a str,
}

impl fmt::Display for Explained<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}: {}", if self.shared { "yes" } else { "no" }, self.reason)?;
        if let Some(similarity) = self.similarity {
            writeln!(f, "  similarity {similarity:.3}")?;
        }
        for (name, about) in ["first", "second"].iter().zip(&self.about) {
            writeln!(
                f,
                "  the {name} is {}",
                about.as_ref().map_or_else(|| "clearly about no article".to_owned(), |a| format!("about article {a}"))
            )?;
        }
        if let Some(evidence) = self.evidence {
            writeln!(
                f,
                "  probability {:.5}, {:.5} is required; at most {:.2} % of such hits are wrong",
                evidence.probability,
                evidence.required,
                evidence.error_max * 100.0
            )?;
            for reason in &evidence.reasons {
                writeln!(f, "  {reason}")?;
            }
        }
        Ok(())
    }
}

/// A pair and what the verifier made of it.
struct Judged<'a> {
    pair: &'a Pair,
    score: f32,
    cosine: f32,
    evidence: Evidence,
}

/// What a fit came to.
#[derive(Serialize)]
struct Fitted {
    verifier: PathBuf,
    questions_trained: usize,
    questions_calibrated: usize,
    pairs: usize,
    loss: f32,
    levels: Vec<FittedLevel>,
}

#[derive(Serialize)]
struct FittedLevel {
    evidence: Evidence,
    delta: f64,
    /// None when no score keeps the error that low.
    probability_min: Option<f32>,
    accepted: u32,
    wrong: u32,
    error_max: Option<f64>,
}

impl Fitted {
    fn of(verifier: &Verifier, report: &FitReport, out: &Path) -> Self {
        let level = |evidence, delta| {
            let level = verifier.level(evidence, delta);
            FittedLevel {
                evidence,
                delta,
                probability_min: level.map(|level| level.probability_min()),
                accepted: level.map_or(0, |level| level.accepted),
                wrong: level.map_or(0, |level| level.wrong),
                error_max: level.map(|level| level.error_max),
            }
        };
        Self {
            verifier: out.to_owned(),
            questions_trained: report.trained,
            questions_calibrated: report.calibrated,
            pairs: report.pairs,
            loss: report.loss,
            levels: Evidence::ALL.iter().flat_map(|&e| DELTAS.map(|delta| level(e, delta))).collect(),
        }
    }
}

impl fmt::Display for Fitted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "trained on {} questions and {} pairs, calibrated on {} other questions; written to {}",
            self.questions_trained,
            self.pairs,
            self.questions_calibrated,
            self.verifier.display()
        )?;
        for level in &self.levels {
            let delta = level.delta * 100.0;
            match (level.probability_min, level.error_max) {
                (Some(probability), Some(error_max)) => writeln!(
                    f,
                    "  {}: at most {delta} % wrong needs {probability:.5}; {} of {} were wrong, at most {:.2} % with {:.0} % confidence",
                    level.evidence,
                    level.wrong,
                    level.accepted,
                    error_max * 100.0,
                    CONFIDENCE * 100.0
                )?,
                _ => writeln!(f, "  {}: at most {delta} % wrong cannot be shown for any score", level.evidence)?,
            }
        }
        Ok(())
    }
}

/// How good a verifier is on pairs.
#[derive(Serialize)]
struct Evaluation {
    delta: f64,
    /// Recall at bounded false accepts, of the verifier and of the cosine, by source.
    recalls: Vec<Recalls>,
    /// What the policy accepts, by source and kind.
    accepts: Vec<Accepts>,
    reliability: Vec<Reliability>,
}

impl Evaluation {
    fn of(judged: &[Judged<'_>], verifier: &Verifier, delta: f64) -> Self {
        let mut by_source = BTreeMap::<&str, Vec<&Judged<'_>>>::new();
        let mut by_kind = BTreeMap::<(&str, &str, bool), Vec<&Judged<'_>>>::new();
        for one in judged {
            let pair = one.pair;
            by_source.entry("all").or_default().push(one);
            by_source.entry(&pair.source).or_default().push(one);
            by_kind.entry((&pair.source, &pair.kind, pair.personal)).or_default().push(one);
        }
        let scored = |of: &[&Judged<'_>], score: fn(&Judged<'_>) -> f32| {
            of.iter().map(|one| (score(one), one.pair.same)).collect::<Vec<_>>()
        };
        let levels = Evidence::ALL.map(|evidence| (evidence, verifier.level(evidence, delta)));
        let is_accepted = |one: &Judged<'_>| {
            let level = levels.iter().find(|(evidence, _)| *evidence == one.evidence).and_then(|(_, level)| *level);
            level.is_some_and(|level| one.score >= level.log_odds_min)
        };
        let recalls = by_source
            .iter()
            .map(|(source, of)| Recalls::of(source, &scored(of, |one| one.score), &scored(of, |one| one.cosine)))
            .collect();
        let accepts = by_kind.iter().map(|((source, kind, personal), of)| Accepts {
            source: (*source).to_owned(),
            kind: (*kind).to_owned(),
            personal: *personal,
            pairs: of.len(),
            same: of.iter().filter(|one| one.pair.same).count(),
            accepted: of.iter().filter(|one| is_accepted(one)).count(),
            accepted_wrong: of.iter().filter(|one| !one.pair.same && is_accepted(one)).count(),
        });
        let reliability = Reliability::of(&scored(&by_source.get("all").cloned().unwrap_or_default(), |one| one.score));
        Self { delta, recalls, accepts: accepts.collect(), reliability }
    }
}

impl fmt::Display for Evaluation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "recall at 1 % and 5 % false accepts (cosine alone)")?;
        self.recalls.iter().try_for_each(|recalls| write!(f, "  {recalls}"))?;
        writeln!(f, "what the policy accepts at {} % wrong", self.delta * 100.0)?;
        self.accepts.iter().try_for_each(|accepts| write!(f, "  {accepts}"))?;
        writeln!(f, "probability told and share that was right")?;
        self.reliability.iter().try_for_each(|bin| write!(f, "  {bin}"))
    }
}
