//! Weights in one file and in several, and files that are damaged.

use std::path::Path;

use safetensors::tensor::TensorView;

use super::*;

const NUMBERS: [f32; 4] = [1.0, -2.5, 0.0, 1024.0];

fn bytes(dtype: Dtype) -> Vec<u8> {
    match dtype {
        Dtype::F16 => NUMBERS.iter().flat_map(|&number| f16::from_f32(number).to_le_bytes()).collect(),
        Dtype::BF16 => NUMBERS.iter().flat_map(|&number| bf16::from_f32(number).to_le_bytes()).collect(),
        _ => NUMBERS.iter().flat_map(|number| number.to_le_bytes()).collect(),
    }
}

fn write(path: &Path, tensors: &[(&str, Dtype, &[usize])]) {
    let data: Vec<_> = tensors.iter().map(|(_, dtype, _)| bytes(*dtype)).collect();
    let views = tensors.iter().zip(&data).map(|((name, dtype, shape), data)| {
        (*name, TensorView::new(*dtype, shape.to_vec(), data).expect("a tensor of four numbers"))
    });
    std::fs::write(path, safetensors::serialize(views, None).expect("serialised")).expect("written");
}

fn spec(name: &str, shape: &[usize]) -> TensorSpec {
    TensorSpec { name: name.to_owned(), shape: shape.to_vec() }
}

fn told(error: &ModelError, folder: &Path) -> String {
    error.to_string().replace(&folder.display().to_string(), "FOLDER")
}

#[test]
fn numbers_are_read_in_each_precision() {
    let folder = tempfile::tempdir().expect("a folder");
    let tensors: [(&str, Dtype, &[usize]); 3] =
        [("a", Dtype::F32, &[4]), ("b", Dtype::F16, &[2, 2]), ("c", Dtype::BF16, &[1, 4])];
    write(&folder.path().join(SINGLE), &tensors);
    let weights = Weights::open(folder.path()).expect("opened");
    for name in ["a", "b", "c"] {
        assert_eq!(weights.read(name).expect("read").into_f32(), NUMBERS, "{name}");
    }
    assert!(matches!(weights.read("c").expect("read"), Numbers::Bf16(_)));
    assert_eq!(weights.precisions(), [Precision::F32, Precision::F16, Precision::Bf16]);
    assert_eq!(weights.bytes(), 32);
}

#[test]
fn a_tensor_with_a_number_that_is_not_finite_is_named() {
    let folder = tempfile::tempdir().expect("a folder");
    let (path, tensors) = (folder.path().join(SINGLE), [Dtype::F32, Dtype::F16, Dtype::BF16]);
    for dtype in tensors {
        write(&path, &[("good", Dtype::F32, &[4]), ("odd", dtype, &[4])]);
        let weights = Weights::open(folder.path()).expect("opened");
        weights.check_finite().expect("four numbers");
        let place = &weights.tensors["odd"];
        let mut bytes = std::fs::read(&path).expect("read");
        // The most significant byte of the last number, little endian: an exponent of ones.
        let last = usize::try_from(place.offset + place.bytes).expect("small") - 1;
        (bytes[last - 1], bytes[last]) = (0xff, 0xff);
        std::fs::write(&path, bytes).expect("written");
        let error = weights.check_finite().expect_err("refused");
        assert!(told(&error, folder.path()).ends_with(": tensor odd has numbers that are not finite"), "{error}");
    }
}

#[test]
fn large_tensors_are_read_whole() {
    let folder = tempfile::tempdir().expect("a folder");
    let numbers: Vec<f32> = (0..BUFFER_BYTES as u32 / 4 + 7).map(|number| number as f32).collect();
    let data: Vec<u8> = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
    let view = TensorView::new(Dtype::F32, vec![numbers.len()], &data).expect("a tensor");
    let file = safetensors::serialize([("a", view)], None).expect("serialised");
    std::fs::write(folder.path().join(SINGLE), file).expect("written");
    assert_eq!(Weights::open(folder.path()).expect("opened").read("a").expect("read").into_f32(), numbers);
}

#[test]
fn what_does_not_fit_is_named() {
    let folder = tempfile::tempdir().expect("a folder");
    let tensors: [(&str, Dtype, &[usize]); 5] = [
        ("shape", Dtype::F32, &[2, 2]),
        ("kind", Dtype::I32, &[4]),
        ("extra", Dtype::F32, &[4]),
        ("lm_head.weight", Dtype::F32, &[4]),
        ("model.layers.0.self_attn.rotary_emb.inv_freq", Dtype::F32, &[4]),
    ];
    write(&folder.path().join(SINGLE), &tensors);
    let weights = Weights::open(folder.path()).expect("opened");
    let error = weights.check(&[spec("shape", &[4]), spec("kind", &[4]), spec("none", &[3, 1])]).expect_err("wrong");
    let expected = "weights in FOLDER/model.safetensors do not fit the model: tensor shape has shape [2, 2], expected [4]; \
                    tensor kind is of kind I32, expected F32, F16 or BF16; missing tensor none of shape [3, 1]; \
                    unexpected tensor extra";
    assert_eq!(told(&error, folder.path()), expected);
    let error = weights.read("kind").expect_err("wrong");
    assert!(error.to_string().ends_with("tensor kind is of kind I32, expected F32, F16 or BF16"));
    let many: Vec<_> = (0..20).map(|index| spec(&format!("t{index}"), &[1])).collect();
    assert!(weights.check(&many).expect_err("wrong").to_string().ends_with("; and 15 more"));
    let all = [spec("shape", &[2, 2]), spec("extra", &[4])];
    let error = weights.check(&all).expect_err("wrong");
    assert_eq!(told(&error, folder.path()).rsplit(": ").next(), Some("unexpected tensor kind"));
}

#[test]
fn tensors_that_are_not_used_do_not_speak_for_the_others() {
    let folder = tempfile::tempdir().expect("a folder");
    let tensors: [(&str, Dtype, &[usize]); 3] = [
        ("used", Dtype::BF16, &[2, 2]),
        ("lm_head.weight", Dtype::F16, &[4]),
        ("model.layers.0.self_attn.rotary_emb.inv_freq", Dtype::F32, &[4]),
    ];
    write(&folder.path().join(SINGLE), &tensors);
    let mut weights = Weights::open(folder.path()).expect("opened");
    let wanted = [spec("used", &[2, 2])];
    weights.check(&wanted).expect("harmless");
    weights.keep(&wanted);
    assert_eq!((weights.precisions().as_slice(), weights.bytes()), ([Precision::Bf16].as_slice(), 8));
    assert_eq!(weights.read("used").expect("read").into_f32(), NUMBERS);
}

#[test]
fn shards_are_found_through_their_index_alone() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| folder.path().join(name);
    let open = |index: &str| {
        std::fs::write(path(INDEX), index).expect("written");
        Weights::open(folder.path()).map_err(|error| told(&error, folder.path()))
    };
    write(&path("one.safetensors"), &[("a", Dtype::F32, &[4])]);
    write(&path("two.safetensors"), &[("b", Dtype::F16, &[4])]);
    write(&path("twin.safetensors"), &[("a", Dtype::F32, &[4])]);
    let weights = open(r#"{"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}"#).expect("two files");
    weights.check(&[spec("a", &[4]), spec("b", &[4])]).expect("both");
    assert_eq!(weights.read("b").expect("read").into_f32(), NUMBERS);
    let check = |index: &str, expected: &str| assert_eq!(open(index).expect_err("refused"), expected);
    let cannot = "cannot load weights from FOLDER/model.safetensors.index.json";
    for outside in ["../one.safetensors", "/etc/passwd", "sub/one.safetensors", "..", "."] {
        let index = format!(r#"{{"weight_map": {{"a": "{outside}"}}}}"#);
        check(&index, &format!("{cannot}: the file {outside:?} is not in its folder"));
    }
    check(r#"{"weight_map": {}}"#, &format!("{cannot}: it names 0 files, expected 1 to 1000"));
    check(r#"{"weight_map": {"a": "three.safetensors"}}"#, "missing file FOLDER/three.safetensors");
    check(
        r#"{"weight_map": {"b": "one.safetensors"}}"#,
        "weights in FOLDER/model.safetensors.index.json do not fit the model: tensor b is not in one.safetensors",
    );
    check(
        r#"{"weight_map": {"a": "one.safetensors", "b": "twin.safetensors"}}"#,
        "cannot load weights from FOLDER/twin.safetensors: tensor a is in FOLDER/one.safetensors too",
    );
    check("{}", "cannot parse FOLDER/model.safetensors.index.json");
}

#[test]
fn damaged_files_are_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join(SINGLE);
    let check = |bytes: &[u8], expected: &str| {
        std::fs::write(&path, bytes).expect("written");
        let error = Weights::open(folder.path()).expect_err("refused");
        assert_eq!(told(&error, folder.path()), expected);
    };
    let error = Weights::open(folder.path()).expect_err("nothing there");
    assert_eq!(told(&error, folder.path()), "missing file FOLDER/model.safetensors");
    let cannot = "cannot load weights from FOLDER/model.safetensors";
    check(b"short", &format!("{cannot}: it has 5 bytes, too few for a safetensors header"));
    check(&[255; 32], &format!("{cannot}: no safetensors header: it would have 18446744073709551615 bytes"));
    check(b"\x02\0\0\0\0\0\0\0[]", "cannot parse FOLDER/model.safetensors");
    write(&path, &[("a", Dtype::F32, &[4])]);
    let whole = std::fs::read(&path).expect("read");
    let expected = format!("FOLDER/model.safetensors has {} bytes, expected {}", whole.len() - 1, whole.len());
    check(&whole[..whole.len() - 1], &expected);
    // Every cut is an error, never a panic.
    for length in 0..whole.len() {
        std::fs::write(&path, &whole[..length]).expect("written");
        assert!(Weights::open(folder.path()).is_err(), "{length} bytes");
    }
}
