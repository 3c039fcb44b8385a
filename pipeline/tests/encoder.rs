//! A pipeline with another encoder than the one that ships: a tiny one with prefixes, from the tests of `models`.

#![expect(clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod support;

use turnflow_models::{InputType, ModelHome, dot};
use turnflow_pipeline::{Config, Parts, Pipeline, PipelineError};
use turnflow_state::{StateError, Store};

use self::support::{asked, import, tenant, turn};

const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../models/tests/fixtures/bert-mean");
const QUESTION: &str = "Where is my parcel?";

/// Settings under which the encoder can be used, with more of section `[encoder]` and others.
fn settings(encoder: &str, more: &str) -> Config {
    let text = format!(
        "[refresh]\nenabled = false\n[audit]\nenabled = false\n[knowledge]\nchunk-tokens-max = 40\n[extractive]\nconfidence-min = -1.0\n\
         [encoder]\nmodel = {FOLDER:?}\nadapter = \"none\"\n{encoder}\n[policy]\n{more}"
    );
    Config::from_text(&text, "t.toml").expect("valid")
}

fn open(config: &Config, store: Store) -> Result<Parts, PipelineError> {
    let checkpoint = config.encoder.open(&ModelHome::new("/no/such/home")).expect("a checkpoint");
    Parts::open(config, store, &checkpoint)
}

const PLAIN: &str = "verifier = \"none\"";

#[tokio::test(flavor = "multi_thread")]
async fn what_asks_and_what_answers_have_their_own_prefixes() {
    let config = settings("", PLAIN);
    let parts = open(&config, Store::memory()).expect("parts");
    let pipeline = Pipeline::start(&config, &parts).expect("started");
    import(&pipeline).await;
    let knowledge = pipeline.knowledge();
    let vector = async |input| {
        let embedded = knowledge.embed(input, vec![QUESTION.to_owned()]).await.expect("a vector");
        embedded.vectors[0].clone()
    };
    let (query, passage) = (vector(InputType::Query).await, vector(InputType::Passage).await);
    assert!(dot(&query, &passage) < 0.999, "the prefix makes a difference: {}", dot(&query, &passage));

    // A search and a turn ask, and find chunks that were encoded as what answers.
    let found = knowledge.search(&tenant(), QUESTION, 5).await.expect("found");
    for chunk in &found {
        assert!((chunk.score - dot(&query, &chunk.chunk.vector)).abs() < 1e-4, "{}", chunk.score);
    }
    let chunk = &found[0].chunk;
    let texts = vec![chunk.title.clone(), format!("{}\n{}", chunk.title, chunk.text)];
    let vectors = knowledge.embed(InputType::Passage, texts).await.expect("vectors").vectors;
    let [title, text] = vectors.as_slice() else { panic!("{} vectors", vectors.len()) };
    let mixed: Vec<f32> = title.iter().zip(&**text).map(|(title, text)| 0.4 * title + 0.6 * text).collect();
    assert!(dot(&turnflow_models::to_unit(mixed), &chunk.vector) > 0.99999);

    // Cached questions are compared with one another as what asks.
    asked(&pipeline, turn("a", "1", QUESTION)).await;
    pipeline.shutdown().await;
    let id = parts.store.entry_ids(None).expect("reads")[0];
    let entry = parts.store.entry(id).expect("reads").expect("kept");
    assert!(dot(&query, &entry.vector.expect("it may serve similar questions")) > 0.99999);
}

#[test]
fn what_was_made_for_another_encoder_is_refused() {
    let refused = |config: &Config, store: Store| open(config, store).err().expect("refused");
    // The verifier that ships, and a router, say nothing of another encoder's vectors.
    let error = refused(&settings("", "verifier = \"shop\""), Store::memory()).to_string();
    assert!(error.contains("was fitted with the encoder all-MiniLM-L6-v2 with adapter shop, not bert "), "{error}");
    let mut routed = settings("", PLAIN);
    routed.routing.enabled = true;
    let error = refused(&routed, Store::memory()).to_string();
    assert!(error.contains("routing.router = \"shop\" was trained with the encoder all-MiniLM-L6-v2"), "{error}");
    // The end of a longer chunk would not be read.
    let mut long = settings("", PLAIN);
    long.knowledge.chunk_tokens_max = 41;
    let error = refused(&long, Store::memory());
    assert!(matches!(error, PipelineError::Chunks { wanted: 41, most: 40 }), "{error}");
    // Nor can a store's vectors be compared with those after another prefix.
    let folder = tempfile::tempdir().expect("a folder");
    let store = || Store::open(folder.path()).expect("a store");
    drop(open(&settings("", PLAIN), store()).expect("new"));
    drop(open(&settings("", PLAIN), store()).expect("the same"));
    let prefixed = refused(&settings("query-prefix = \"ask: \"", PLAIN), store());
    let is_told =
        matches!(&prefixed, PipelineError::State(StateError::Encoder { wanted, .. }) if wanted.contains("\"ask: \""));
    assert!(is_told, "{prefixed:?}");
}

#[test]
fn the_adapter_that_ships_goes_with_the_encoder_that_ships() {
    let text = "[encoder]\nmodel = \"org/name\"\nadapter = \"shop\"\n";
    let error = Config::from_text(text, "t.toml").expect_err("made for another").to_string();
    assert!(error.contains("t.toml:3") && error.contains("encoder.adapter") && error.contains("\"none\""), "{error}");
    for (text, part) in [
        ("[encoder]\nmodel = \"\"", "encoder.model"),
        ("[encoder]\nbatch-tokens-max = 16385", "must be at most 16384"),
        ("[encoder]\nbatch-texts-max = 1025", "must be at most 1024"),
    ] {
        let error = Config::from_text(text, "t.toml").expect_err(part).to_string();
        assert!(error.contains("t.toml:2") && error.contains(part), "{error}");
    }
    let long = format!("[encoder]\npassage-prefix = {:?}", "a".repeat(1025));
    let error = Config::from_text(&long, "t.toml").expect_err("too long").to_string();
    assert!(error.contains("1025 bytes") && error.contains("at most 1024 bytes"), "{error}");
}
