//! Configurations of each family, and those that make no sense.

use std::path::Path;

use serde_json::{Value, json};

use super::*;

fn read(change: &[(&str, Value)]) -> Result<DecoderConfig, ModelError> {
    let mut json = json!({
        "model_type": "llama", "hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4,
        "num_key_value_heads": 2, "intermediate_size": 96, "vocab_size": 300, "max_position_embeddings": 512,
        "rms_norm_eps": 1e-5, "bos_token_id": 1, "eos_token_id": [2, 3],
    });
    for (field, value) in change {
        json[field] = value.clone();
    }
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("config.json");
    std::fs::write(&path, json.to_string()).expect("written");
    DecoderConfig::read(&path)
}

fn refused(change: &[(&str, Value)]) -> String {
    let error = read(change).expect_err("refused").to_string();
    error.split_once("config.json has ").expect("names the file").1.to_owned()
}

#[test]
fn families_differ_in_what_they_leave_unsaid() {
    let llama = read(&[]).expect("llama");
    assert_eq!((llama.head_size, llama.rope_theta, llama.tied), (16, 10_000.0, false));
    assert_eq!((llama.bos, llama.eos.as_slice()), (Some(1), [2, 3].as_slice()));
    assert!(!llama.qkv_bias && !llama.qk_norm && llama.rotary == [true; 4]);
    let qwen2 = read(&[("model_type", json!("qwen2"))]).expect("qwen2");
    assert!(qwen2.qkv_bias && !qwen2.qk_norm);
    let qwen3 = read(&[("model_type", json!("qwen3")), ("head_dim", json!(32))]).expect("qwen3");
    assert!(!qwen3.qkv_bias && qwen3.qk_norm && qwen3.head_size == 32);
    let smollm3 = read(&[("model_type", json!("smollm3"))]).expect("smollm3");
    assert_eq!(smollm3.rotary, [true, true, true, false]);
    assert_eq!((smollm3.rope_theta, smollm3.tied), (2_000_000.0, true));
    let chosen = read(&[("model_type", json!("smollm3")), ("no_rope_layers", json!([0, 1, 1, 0]))]).expect("smollm3");
    assert_eq!(chosen.rotary, [false, true, true, false]);
}

#[test]
fn a_window_bounds_the_context() {
    let check = |change: &[(&str, Value)], expected| assert_eq!(read(change).expect("read").context_max, expected);
    check(&[("sliding_window", json!(64))], 512);
    check(&[("model_type", json!("mistral")), ("sliding_window", json!(64))], 64);
    check(&[("model_type", json!("mistral")), ("sliding_window", Value::Null)], 512);
    check(&[("model_type", json!("qwen2")), ("sliding_window", json!(64))], 512);
    check(&[("model_type", json!("qwen2")), ("sliding_window", json!(64)), ("use_sliding_window", json!(true))], 64);
}

#[test]
fn positions_are_scaled_as_either_version_writes_it() {
    let llama3 = json!({
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    });
    let old = read(&[("rope_theta", json!(5e5)), ("rope_scaling", llama3.clone())]).expect("version 4");
    let mut parameters = llama3;
    parameters["rope_theta"] = json!(5e5);
    let new = read(&[("rope_parameters", parameters)]).expect("version 5");
    assert_eq!(old, new);
    let frequencies = old.rotary_frequencies();
    // The first turns more than 4 times in 64 tokens and stays; the last turns less than once and is divided by 8.
    let plain = |pair: f64| 5e5_f64.powf(-pair / 8.0);
    assert!((frequencies[0] - 1.0).abs() < 1e-12 && (frequencies[7] - plain(7.0) / 8.0).abs() < 1e-15);
    // The second turns 64 × 0.19392 / 2π = 1.975 times: 0.325 of the way.
    let share = (64.0 * plain(1.0) / TAU - 1.0) / 3.0;
    assert!((frequencies[1] - plain(1.0) * (share + (1.0 - share) / 8.0)).abs() < 1e-12);
    let linear = read(&[("rope_scaling", json!({ "type": "linear", "factor": 2.0 }))]).expect("linear");
    assert!((linear.rotary_frequencies()[0] - 0.5).abs() < 1e-12);
    // Files that were made for either version name the kind twice; the newer name is the one that counts.
    let both = |older: &str| json!({ "type": older, "rope_type": "linear", "factor": 2.0 });
    assert_eq!(read(&[("rope_scaling", both("linear"))]).expect("both names"), linear);
    assert_eq!(read(&[("rope_scaling", both("default"))]).expect("both names"), linear);
}

#[test]
fn what_is_not_computed_is_refused_by_name() {
    let check = |field: &str, value: Value, expected: &str| assert_eq!(refused(&[(field, value)]), expected);
    check("model_type", json!("gpt2"), "model_type gpt2, expected one of llama, mistral, qwen2, qwen3, smollm3");
    check("hidden_act", json!("gelu"), "hidden_act gelu, expected silu");
    check("attention_bias", json!(true), "attention_bias true, expected false");
    check("mlp_bias", json!(true), "mlp_bias true, expected false");
    check("num_key_value_heads", json!(3), "num_key_value_heads 3, expected a divisor of num_attention_heads 4");
    check("num_hidden_layers", json!(0), "num_hidden_layers 0, expected 1 to 1000");
    check("head_dim", json!(7), "head_dim 7, expected an even number");
    check("partial_rotary_factor", json!(0.5), "partial_rotary_factor 0.5, expected 1");
    check(
        "quantization_config",
        json!({ "quant_method": "gptq" }),
        "quantization_config gptq, expected weights in f32, f16 or bf16",
    );
    check(
        "rope_scaling",
        json!({ "rope_type": "yarn", "factor": 4.0 }),
        "rope_scaling.rope_type yarn, expected default, linear or llama3",
    );
    check("rope_scaling", json!({ "type": "linear" }), "rope_scaling.factor nothing, expected a number above 0");
    let short = refused(&[("model_type", json!("smollm3")), ("no_rope_layers", json!([1]))]);
    assert_eq!(short, "no_rope_layers 1 numbers, expected one number for each of 4 layers");
}

#[test]
fn a_file_that_is_no_configuration_says_where() {
    let error = DecoderConfig::read(Path::new("/nowhere/config.json")).expect_err("no file");
    assert_eq!(error.to_string(), "missing file /nowhere/config.json");
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("config.json");
    std::fs::write(&path, "{").expect("written");
    assert!(DecoderConfig::read(&path).expect_err("half a file").to_string().starts_with("cannot parse "));
}
