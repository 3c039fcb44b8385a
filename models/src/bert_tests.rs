//! Loading with tiny weights files, what padding must not change, and the CPU's own executor at sizes that fill no vector.

use std::collections::BTreeMap;

use super::*;

const TINY: BertConfig = BertConfig {
    hidden_size: 4,
    num_hidden_layers: 2,
    num_attention_heads: 2,
    intermediate_size: 8,
    vocab_size: 5,
    max_position_embeddings: 6,
    type_vocab_size: 2,
    layer_norm_eps: 1e-12,
};

/// No size is a multiple of the vectors that kernels compute with.
const ODD: BertConfig = BertConfig {
    hidden_size: 28,
    num_hidden_layers: 2,
    num_attention_heads: 2,
    intermediate_size: 50,
    vocab_size: 40,
    max_position_embeddings: 256,
    type_vocab_size: 1,
    layer_norm_eps: 1e-12,
};

type Tensors = BTreeMap<String, Vec<usize>>;

/// Names and shapes as PyTorch writes them.
fn tensors(config: &BertConfig) -> Tensors {
    let (width, wide) = (config.hidden_size, config.intermediate_size);
    let mut tensors = Tensors::new();
    let mut linear = |name: &str, outputs, inputs| {
        tensors.insert(format!("{name}.weight"), vec![outputs, inputs]);
        tensors.insert(format!("{name}.bias"), vec![outputs]);
    };
    for layer in 0..config.num_hidden_layers {
        for part in ["attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense"] {
            linear(&format!("encoder.layer.{layer}.{part}"), width, width);
        }
        linear(&format!("encoder.layer.{layer}.intermediate.dense"), wide, width);
        linear(&format!("encoder.layer.{layer}.output.dense"), width, wide);
    }
    // Ignored: the encoder has no pooler.
    linear("pooler.dense", width, width);
    let norms = (0..config.num_hidden_layers)
        .flat_map(|layer| ["attention.output", "output"].map(|part| format!("encoder.layer.{layer}.{part}")));
    for name in norms.chain(["embeddings".to_owned()]) {
        tensors.insert(format!("{name}.LayerNorm.weight"), vec![width]);
        tensors.insert(format!("{name}.LayerNorm.bias"), vec![width]);
    }
    let tables = [
        ("word", config.vocab_size),
        ("position", config.max_position_embeddings),
        ("token_type", config.type_vocab_size),
    ];
    for (table, rows) in tables {
        tensors.insert(format!("embeddings.{table}_embeddings.weight"), vec![rows, width]);
    }
    tensors
}

/// A safetensors file: length of the header, header, numbers.
fn safetensors(tensors: &Tensors, dtype: &str) -> Vec<u8> {
    let mut header = serde_json::Map::new();
    let mut data: Vec<u8> = Vec::new();
    let width = if dtype == "F32" { 4 } else { 8 };
    for (seed, (name, shape)) in tensors.iter().enumerate() {
        let start = data.len();
        for index in 0..shape.iter().product::<usize>() {
            let value = ((seed * 31 + index * 7) as f32 * 0.61).sin();
            data.extend_from_slice(&value.to_le_bytes());
            data.resize(data.len() + width - 4, 0);
        }
        let entry = serde_json::json!({ "dtype": dtype, "shape": shape, "data_offsets": [start, data.len()] });
        header.insert(name.clone(), entry);
    }
    let header = serde_json::Value::Object(header).to_string();
    [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &data].concat()
}

fn load(file: &[u8]) -> Result<Bert, ModelError> {
    load_as(&TINY, Pooling::Mean, file)
}

fn load_as(config: &BertConfig, pooling: Pooling, file: &[u8]) -> Result<Bert, ModelError> {
    let dir = tempfile::tempdir().expect("a temporary folder");
    std::fs::write(dir.path().join("model.safetensors"), file).expect("a file");
    Bert::load(config, &BertWeights::open(config, dir.path())?, pooling, &Device::flex())
}

fn numbers(tensor: Tensor<2>) -> Vec<f32> {
    tensor.into_data().try_to_vec().expect("numbers")
}

fn ids<const N: usize>(rows: &[[i64; N]]) -> Tensor<2, Int> {
    Tensor::from_data(TensorData::new(rows.concat(), [rows.len(), N]), &Device::flex())
}

#[test]
fn padding_changes_nothing() {
    for pooling in [Pooling::Cls, Pooling::Mean] {
        padding_changes_nothing_with(pooling);
    }
}

fn padding_changes_nothing_with(pooling: Pooling) {
    let model = load_as(&TINY, pooling, &safetensors(&tensors(&TINY), "F32")).expect("loads");
    let alone = numbers(model.embed(ids(&[[2, 4, 3]]), None));
    let padding = [[false, false, false, true, true], [false; 5]].concat();
    let padding = Tensor::<2, Bool>::from_data(TensorData::new(padding, [2, 5]), &Device::flex());
    let together = numbers(model.embed(ids(&[[2, 4, 3, 0, 0], [2, 1, 1, 4, 3]]), Some(padding)));
    for (a, b) in alone.iter().zip(&together) {
        assert!((a - b).abs() < 1e-5, "{alone:?} {together:?}");
    }
    for vector in together.chunks(4) {
        assert!((vector.iter().map(|x| x * x).sum::<f32>() - 1.0).abs() < 1e-5, "unit length: {vector:?}");
    }
    assert!(numbers(model.embed(ids(&[[2, 4, 3]]), None)) != numbers(model.embed(ids(&[[2, 1, 3]]), None)));
}

#[test]
fn the_fused_executor_agrees_with_the_module() {
    let module = load_as(&ODD, Pooling::Mean, &safetensors(&tensors(&ODD), "F32")).expect("loads");
    let text = |length: usize| (0..length).map(|at| (at * 7 % 40) as u32).collect::<Vec<_>>();
    // The longest there is, the shortest, and together more than one pass.
    let texts = [256, 1, 2, 15, 16, 17, 200, 33, 90, 1].map(text);
    let expected: Vec<f32> = texts
        .iter()
        .flat_map(|text| {
            let ids = text.iter().map(|id| i64::from(*id)).collect::<Vec<_>>();
            numbers(module.embed(Tensor::from_data(TensorData::new(ids, [1, text.len()]), &Device::flex()), None))
        })
        .collect();
    let rows: Vec<&[u32]> = texts.iter().map(Vec::as_slice).collect();
    for (precision, least) in [(EncoderPrecision::F32, 0.999_999), (EncoderPrecision::Bf16, 0.999)] {
        let found = [1, 2, 3].map(|threads| {
            let options = EncoderOptions { precision, threads, ..EncoderOptions::default() };
            let mut found = vec![0.0; expected.len()];
            FusedBert::new(&module, &ODD, options).expect("an executor").embed(&rows, &mut found);
            found
        });
        for (found, expected) in found[0].chunks(ODD.hidden_size).zip(expected.chunks(ODD.hidden_size)) {
            let cosine = crate::vector::dot(found, expected);
            assert!(cosine > least, "{precision}: {cosine}");
        }
        assert!(found[0] == found[1] && found[0] == found[2], "{precision}: threads change nothing");
    }
}

#[test]
fn what_does_not_fit_is_named() {
    let check = |file: &[u8], expected: &[&str]| {
        let told = load(file).expect_err("does not fit").to_string();
        for part in expected {
            assert!(told.contains(part), "{told:?} should contain {part:?}");
        }
    };
    let mut missing = tensors(&TINY);
    missing.remove("encoder.layer.1.attention.self.key.weight");
    check(&safetensors(&missing, "F32"), &["missing tensor encoder.layer.1.attention.self.key.weight of shape [4, 4]"]);

    let mut misshaped = tensors(&TINY);
    misshaped.insert("embeddings.word_embeddings.weight".to_owned(), vec![5, 3]);
    misshaped.insert("encoder.layer.0.intermediate.dense.weight".to_owned(), vec![7, 4]);
    misshaped.insert("encoder.layer.0.output.dense.bias".to_owned(), vec![2, 2]);
    let parts = [
        "embeddings.word_embeddings.weight has shape [5, 3], expected [5, 4]",
        "encoder.layer.0.intermediate.dense.weight",
        "encoder.layer.0.output.dense.bias",
    ];
    check(&safetensors(&misshaped, "F32"), &parts);

    check(&safetensors(&tensors(&TINY), "I64"), &["do not fit the model", "and ", " more"]);
    check(&safetensors(&Tensors::new(), "F32"), &["missing tensor"]);
}

#[test]
fn an_encoder_may_be_a_part_of_a_larger_model() {
    let whole = tensors(&TINY).into_iter().map(|(name, shape)| (format!("bert.{name}"), shape)).collect();
    let ids = || ids(&[[2, 4, 3]]);
    let vector = |tensors: &Tensors| numbers(load(&safetensors(tensors, "F32")).expect("loads").embed(ids(), None));
    assert_eq!(vector(&whole), vector(&tensors(&TINY)));
}

#[test]
fn a_broken_file_is_an_error() {
    let whole = safetensors(&tensors(&TINY), "F32");
    for file in [&b""[..], b"short", &whole[..whole.len() / 2], &[0xff; 64]] {
        let error = load(file).expect_err("broken");
        assert!(matches!(error, ModelError::Load { .. } | ModelError::WrongSize { .. }), "{error}");
    }
}

#[test]
fn heads_must_share_the_width() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let path = dir.path().join("config.json");
    let mut json = serde_json::to_value(&TINY).expect("a value");
    json["model_type"] = "bert".into();
    json["hidden_act"] = "gelu".into();
    std::fs::write(&path, json.to_string()).expect("a file");
    assert_eq!(BertConfig::read(&path).expect("fits"), TINY);
    for heads in [0, 3] {
        json["num_attention_heads"] = heads.into();
        std::fs::write(&path, json.to_string()).expect("a file");
        let error = BertConfig::read(&path).expect_err("does not divide");
        assert!(error.to_string().contains(&format!("num_attention_heads {heads}")), "{error}");
    }
}
