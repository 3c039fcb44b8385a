//! The decoder on a GPU, or a software driver of one, against the CPU; skipped aloud where there is neither.
//!
//! A program of its own, without the usual harness: the device is tried in a child process, which is this program again.

#![expect(clippy::expect_used, reason = "a test says what it expected")]

mod aloud;
mod fixtures;

use std::process::ExitCode;

use burn::tensor::Device;
use fixtures::{NAMES, difference, greedy, open, step};
use turnflow_models::{DeviceChoice, PlainDecoder, Precision, TriedDevice, probe_main};

const NAME: &str = "the_decoder_computes_on_wgpu_what_it_does_on_the_cpu";
const BLOCKS: usize = 20;
const BLOCK_TOKENS: usize = 8;
const TOKENS: usize = 8;

fn main() -> ExitCode {
    if let Some(code) = probe_main() {
        return code;
    }
    aloud::run(NAME, || {
        let tried = DeviceChoice::Wgpu.resolve().expect("a device");
        if let Some(reason) = tried.fallback {
            return Err(format!("there is no adapter: {reason}"));
        }
        println!("on {}, a GPU: {}, half precision: {}", tried.name, tried.gpu, tried.half);
        compare(&tried);
        Ok(())
    })
}

fn compare(tried: &TriedDevice) {
    // A software driver takes a minute to compile what one of them needs.
    let names = if tried.gpu { &NAMES[..] } else { &NAMES[3..4] };
    for name in names {
        let (checkpoint, reference) = open(name);
        let load = |device: &Device, precision| {
            let (config, weights) = (&checkpoint.config, &checkpoint.weights);
            PlainDecoder::load(config, weights, device, precision, BLOCKS, BLOCK_TOKENS).expect("a decoder")
        };
        let blocks: Vec<u32> = (0..BLOCKS as u32).rev().collect();
        let prompt = &reference.prompt;
        let expected = step(&mut load(&Device::flex(), Precision::F32), prompt, 0, &blocks);
        let mut model = load(&tried.device, Precision::F32);
        let found = step(&mut model, prompt, 0, &blocks);
        let apart = [difference(&found, &expected), difference(&found, &reference.logits[2])];
        println!("{name}: {apart:?} from the CPU and from transformers in f32");
        assert!(apart.iter().all(|&apart| apart <= 1e-3), "{name}: {apart:?}");
        let tokens = [prompt.as_slice(), &greedy(&mut model, prompt, &blocks, TOKENS)].concat();
        assert_eq!(tokens, reference.tokens()[..tokens.len()], "{name}");
        if tried.half && (tried.gpu || std::env::var_os("TURNFLOW_TEST_HALF").is_some()) {
            let apart = difference(&step(&mut load(&tried.device, Precision::F16), prompt, 0, &blocks), &expected);
            println!("{name}: {apart} from the CPU in f16");
            assert!(apart <= 3e-2, "{name}: {apart}");
        }
    }
}
