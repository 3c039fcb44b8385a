//! The decoder on a GPU, or a software driver of one, against the CPU; skipped aloud where there is neither.
//!
//! A program of its own, without the usual harness: the device is tried in a child process, which is this program again.

#![expect(clippy::expect_used, reason = "a test says what it expected")]

mod fixtures;

use std::process::ExitCode;

use burn::tensor::Device;
use fixtures::{difference, greedy, open, step};
use turnflow_models::{DeviceChoice, PlainDecoder, Precision, TriedDevice, probe_main};

const NAME: &str = "the_decoder_computes_on_wgpu_what_it_does_on_the_cpu";
const BLOCKS: usize = 20;
const BLOCK_TOKENS: usize = 8;

fn main() -> ExitCode {
    if let Some(code) = probe_main() {
        return code;
    }
    let mut filters = std::env::args().skip(1).filter(|argument| !argument.starts_with('-')).peekable();
    if filters.peek().is_some() && !filters.any(|filter| NAME.contains(&filter)) {
        return said("0 passed; 0 failed; 0 ignored");
    }
    println!("\nrunning 1 test");
    let home = tempfile::tempdir().expect("a folder");
    let tried = DeviceChoice::Wgpu.resolve(home.path()).expect("a device");
    if let Some(reason) = tried.fallback {
        println!("test {NAME} ... ignored, there is no adapter: {reason}");
        return said("0 passed; 0 failed; 1 ignored");
    }
    println!("on {}, half precision: {}", tried.name, tried.half);
    compare(&tried);
    println!("test {NAME} ... ok");
    said("1 passed; 0 failed; 0 ignored")
}

fn said(result: &str) -> ExitCode {
    println!("\ntest result: ok. {result}; 0 measured; 0 filtered out\n");
    ExitCode::SUCCESS
}

fn compare(tried: &TriedDevice) {
    // Llama's scaling, and normalised queries and keys with heads of an odd size.
    for name in ["llama3", "qwen3"] {
        let (checkpoint, reference) = open(name);
        let load = |device: &Device, precision| {
            let (config, weights) = (&checkpoint.config, &checkpoint.weights);
            PlainDecoder::load(config, weights, device, precision, BLOCKS, BLOCK_TOKENS).expect("a decoder")
        };
        let blocks: Vec<u32> = (0..BLOCKS as u32).rev().collect();
        let mut cpu = load(&Device::flex(), Precision::F32);
        let expected = step(&mut cpu, &reference.prompt, 0, &blocks);
        let mut gpu = load(&tried.device, Precision::F32);
        let apart = difference(&step(&mut gpu, &reference.prompt, 0, &blocks), &expected);
        println!("{name}: {apart} apart in f32");
        assert!(apart <= 1e-3, "{name}: {apart}");
        assert_eq!(greedy(&mut gpu, &reference.prompt, &blocks, 8), reference.greedy[..8], "{name}");
        if tried.half {
            let mut half = load(&tried.device, Precision::F16);
            let apart = difference(&step(&mut half, &reference.prompt, 0, &blocks), &expected);
            println!("{name}: {apart} apart in f16");
            assert!(apart <= 3e-2, "{name}: {apart}");
        }
    }
}
