//! Files that say what is not computed here, one at a time.

use std::fs;

use super::*;

/// The fixtures that `tests/fixtures/make_encoders.py` made.
fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

/// A copy of a fixture, with one of its files changed; without it where there is no content.
fn changed(name: &str, file: &str, content: Option<&str>) -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    fs::create_dir(folder.path().join("1_Pooling")).expect("a folder");
    let files = ["config.json", "tokenizer.json", "modules.json", "1_Pooling/config.json", "sentence_bert_config.json"];
    for file in files.into_iter().chain(["config_sentence_transformers.json", "model.safetensors"]) {
        fs::copy(fixture(name).join(file), folder.path().join(file)).expect("copied");
    }
    match content {
        Some(content) => fs::write(folder.path().join(file), content).expect("written"),
        None => fs::remove_file(folder.path().join(file)).expect("removed"),
    }
    folder
}

fn opened(name: &str, file: &str, content: Option<&str>) -> Result<EncoderCheckpoint, String> {
    let folder = changed(name, file, content);
    let told = |error: ModelError| crate::error::chain(&error).replace(&folder.path().display().to_string(), "FOLDER");
    EncoderCheckpoint::open(folder.path()).map_err(told)
}

fn config(field: &str, value: Value) -> String {
    let text = fs::read_to_string(fixture("bert-mean").join("config.json")).expect("a configuration");
    let mut config: Map<String, Value> = serde_json::from_str(&text).expect("JSON");
    config.insert(field.to_owned(), value);
    Value::Object(config).to_string()
}

#[test]
fn what_is_said_is_understood() {
    let mean = EncoderCheckpoint::open(&fixture("bert-mean")).expect("opens");
    assert_eq!((mean.pooling, mean.tokens_max, mean.config.hidden_size), (Pooling::Mean, 44, 48));
    assert_eq!((mean.prefixes.query.as_str(), mean.prefixes.passage.as_str()), ("query: ", "passage: "));
    let cls = EncoderCheckpoint::open(&fixture("bert-cls")).expect("opens");
    assert_eq!((cls.pooling, cls.precisions()), (Pooling::Cls, vec![Precision::Bf16]));
    assert_eq!((cls.prefixes.query.as_str(), cls.prefixes.passage.as_str()), ("ask: ", ""));
    // What need not be there.
    let open = |file: &str, content| opened("bert-mean", file, content).expect("opens");
    assert_eq!(open("sentence_bert_config.json", None).tokens_max, 50);
    assert_eq!(open("config_sentence_transformers.json", None).prefixes, Prefixes::default());
    let default = r#"{"prompts": {"all": "a: ", "corpus": "c: "}, "default_prompt_name": "all"}"#;
    let Prefixes { query, passage } = open("config_sentence_transformers.json", Some(default)).prefixes;
    assert_eq!((query.as_str(), passage.as_str()), ("a: ", "c: "));
    let moved = r#"[{"path": "", "type": "a.b.Transformer"}, {"path": "1_Pooling", "type": "Pooling"}]"#;
    assert_eq!(open("modules.json", Some(moved)).pooling, Pooling::Mean);
}

#[test]
fn what_is_not_computed_is_refused_by_name() {
    let check = |file: &str, content: Option<&str>, parts: &[&str]| {
        let told = opened("bert-mean", file, content).expect_err(file);
        let name = format!("FOLDER/{file}");
        for part in parts.iter().chain([&name.as_str()]) {
            assert!(told.contains(part), "{told:?} should contain {part:?}");
        }
    };
    check("modules.json", None, &["missing file"]);
    check("modules.json", Some("[]"), &["Transformer, Pooling, and Normalize or nothing"]);
    let dense = r#"[{"path": "", "type": "x.Transformer"}, {"path": "1_Pooling", "type": "x.Pooling"}, {"path": "2_Dense", "type": "x.Dense"}]"#;
    check("modules.json", Some(dense), &["Transformer, Pooling, Dense"]);
    let outside = r#"[{"path": "../other", "type": "x.Transformer"}, {"path": "1_Pooling", "type": "x.Pooling"}]"#;
    check("modules.json", Some(outside), &["path ../other"]);

    check("1_Pooling/config.json", None, &["missing file"]);
    check(
        "1_Pooling/config.json",
        Some(r#"{"pooling_mode_max_tokens": true}"#),
        &["pooling_mode max_tokens", "cls or mean"],
    );
    let both = r#"{"pooling_mode_cls_token": true, "pooling_mode_mean_tokens": true}"#;
    check("1_Pooling/config.json", Some(both), &["cls_token and mean_tokens"]);
    check("1_Pooling/config.json", Some(r#"{"pooling_mode": "lasttoken"}"#), &["pooling_mode lasttoken"]);
    check("1_Pooling/config.json", Some("{}"), &["pooling_mode nothing"]);
    let without_prompt = r#"{"pooling_mode": "mean", "include_prompt": false}"#;
    check("1_Pooling/config.json", Some(without_prompt), &["include_prompt false"]);

    check("sentence_bert_config.json", Some(r#"{"max_seq_length": 51}"#), &["max_seq_length 51", "50"]);
    check("sentence_bert_config.json", Some(r#"{"max_seq_length": 2}"#), &["max_seq_length 2", "3 to"]);
    let named = r#"{"prompts": {}, "default_prompt_name": "query"}"#;
    check("config_sentence_transformers.json", Some(named), &["default_prompt_name query"]);

    check("config.json", Some(&config("model_type", "roberta".into())), &["model_type roberta", "bert"]);
    check("config.json", Some(&config("hidden_act", "relu".into())), &["hidden_act relu", "gelu"]);
    check("config.json", Some(&config("position_embedding_type", "relative_key".into())), &["relative_key"]);
    check("config.json", Some(&config("type_vocab_size", 0.into())), &["type_vocab_size 0"]);
    check("config.json", Some(&config("vocab_size", 7.into())), &["vocab_size 7", "at least 60"]);
    for epsilon in [-1e-12, 1e300] {
        check("config.json", Some(&config("layer_norm_eps", epsilon.into())), &["layer_norm_eps", "0 to 0.1"]);
    }
    check("model.safetensors", None, &["missing file"]);
    check("tokenizer.json", Some("{}"), &["cannot parse"]);
    let words = serde_json::json!({
        "version": "1.0", "added_tokens": [], "normalizer": null, "pre_tokenizer": null, "post_processor": null, "decoder": null,
        "model": { "type": "WordLevel", "vocab": { "[UNK]": 0, "[CLS]": 1, "[SEP]": 2 }, "unk_token": "[UNK]" },
    });
    check("tokenizer.json", Some(&words.to_string()), &["model.type WordLevel", "WordPiece"]);
    let prompts = |query: &str| serde_json::json!({ "prompts": { "query": query } }).to_string();
    check("config_sentence_transformers.json", Some(&prompts(&"a".repeat(1025))), &["prompts of 1025 bytes", "1024"]);
    let told = opened("bert-mean", "config_sentence_transformers.json", Some(&prompts(&"a ".repeat(42))));
    assert!(told.expect_err("no room").contains("the query prefix has 42 word pieces, and the encoder reads 42"));
    let named = serde_json::json!({ "default_prompt_name": "n".repeat(10_000) }).to_string();
    let told = opened("bert-mean", "config_sentence_transformers.json", Some(&named)).expect_err("no such prompt");
    assert!(told.len() < 400, "a long text is not repeated: {told}");
    let told = opened("bert-mean", "config.json", Some(&config("num_hidden_layers", 3.into()))).expect_err("too few");
    assert!(told.contains("missing tensor encoder.layer.2.attention.self.query.weight"), "{told}");
    let told = opened("bert-mean", "config.json", Some(&config("num_hidden_layers", 1.into()))).expect_err("too many");
    assert!(told.contains("unexpected tensor encoder.layer.1.attention.output.LayerNorm.bias"), "{told}");
    // One that was trained for the product of vectors as they are.
    let long = r#"[{"path": "", "type": "x.Transformer"}, {"path": "1_Pooling", "type": "x.Pooling"}]"#;
    let folder = changed("bert-mean", "modules.json", Some(long));
    let path = folder.path().join("config_sentence_transformers.json");
    for similarity in ["dot", "euclidean", "manhattan"] {
        fs::write(&path, format!(r#"{{"similarity_fn_name": "{similarity}"}}"#)).expect("written");
        let error = EncoderCheckpoint::open(folder.path()).expect_err("no unit vectors").to_string();
        assert!(error.contains(&format!("similarity_fn_name {similarity}")), "{error}");
    }
}

#[test]
fn an_identity_is_of_content_and_of_how_it_is_used() {
    let identity = |folder: &Path| EncoderCheckpoint::open(folder).expect("opens").identity().expect("read");
    let lengths = fs::read_to_string(fixture("bert-mean").join("sentence_bert_config.json")).expect("settings");
    let copy = || changed("bert-mean", "sentence_bert_config.json", Some(&lengths));
    let (copy, other) = (copy(), copy());
    let own = identity(copy.path());
    assert!(own.ends_with("(2 layers of 48, mean pooling, 44 word pieces)"), "{own}");
    assert_eq!(identity(other.path()), own, "wherever it lies");
    let pooled = changed("bert-mean", "1_Pooling/config.json", Some(r#"{"pooling_mode": "cls"}"#));
    assert_eq!(identity(pooled.path()), own.replace("mean pooling", "cls pooling"));
    // One that also lower-cases, as bge does, makes others; what is not read changes nothing.
    let lowered = lengths.replace("false", "true");
    let lowered = changed("bert-mean", "sentence_bert_config.json", Some(&lowered));
    assert_eq!(identity(lowered.path()), own.replace("word pieces", "word pieces, in lower case"));
    fs::write(other.path().join("train_log.json"), "{}").expect("written");
    assert_eq!(identity(other.path()), own, "a file that is not read");
    let weights = fixture("bert-mean").join("model.safetensors");
    let mut bytes = fs::read(weights).expect("read");
    *bytes.last_mut().expect("not empty") ^= 1;
    fs::write(copy.path().join("model.safetensors"), bytes).expect("written");
    assert_ne!(identity(copy.path()), own, "a number that changed");
}
