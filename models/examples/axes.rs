//! Makes `models/src/axes.bin`: the principal axes of what the encoder makes of the texts of some files, one per line. Each
//! file counts alike, whatever its size.
//!
//! ```text
//! cargo run --release -p turnflow-models --example axes -- TEXTS.txt… models/src/axes.bin
//! ```
//!
//! The axes are the leading eigenvectors of the second moments, found by orthogonal iteration (Golub and Van Loan, Matrix
//! Computations, section 8.2.4). They say nothing about single texts, and whatever they are, what is computed with them
//! stays exact; good ones make it fast.

use std::path::Path;

use turnflow_models::{AXES, AdapterChoice, Encoder, EncoderOptions, ModelHome, WeightSource, default_home, ensure};

/// Sweeps over the moments; the subspace has settled long before.
const SWEEPS: usize = 60;
/// Texts that are encoded together.
const BATCH: usize = 64;
/// The whole number that stands for 1.
const AXIS_ONE: f64 = 32_767.0;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut files: Vec<String> = std::env::args().skip(1).collect();
    let out = files.pop().filter(|_| !files.is_empty()).ok_or("usage: axes TEXTS… OUT")?;
    let weights = ensure(&ModelHome::new(default_home()?), &WeightSource::defaults(None), &|_| {})?;
    // As it stands in front of everything: with the adapter that ships.
    let encoder = Encoder::load(&weights, EncoderOptions::default())?.adapted(AdapterChoice::Shop)?;
    let mut moments: Vec<Vec<f64>> = Vec::new();
    for file in files {
        let texts = std::fs::read_to_string(file)?;
        let texts: Vec<&str> = texts.lines().filter(|line| !line.trim().is_empty()).collect();
        let mut done = 0;
        for batch in texts.chunks(BATCH) {
            for vector in encoder.encode(batch)? {
                moments.resize_with(vector.len(), || vec![0.0; vector.len()]);
                for (row, &a) in moments.iter_mut().zip(vector.iter()) {
                    let a = f64::from(a) / texts.len() as f64;
                    row.iter_mut().zip(vector.iter()).for_each(|(sum, &b)| *sum += a * f64::from(b));
                }
            }
            done += batch.len();
            eprint!("\r{done} of {} texts", texts.len());
        }
        eprintln!();
    }
    let axes = leading(&moments, AXES);
    let bytes = axes.iter().flatten().flat_map(|&number| ((number * AXIS_ONE).round() as i16).to_le_bytes());
    std::fs::write(Path::new(&out), bytes.collect::<Vec<u8>>())?;
    eprintln!("{} axes of {} numbers written to {out}", axes.len(), moments.len());
    Ok(())
}

/// The leading eigenvectors of a symmetric matrix, in descending order.
fn leading(matrix: &[Vec<f64>], count: usize) -> Vec<Vec<f64>> {
    let dimension = matrix.len();
    let mut axes: Vec<Vec<f64>> = (0..count)
        .map(|at| (0..dimension).map(|i| if i == at { 1.0 } else { 1e-3 * ((i * 31 + at) as f64).sin() }).collect())
        .collect();
    for _ in 0..SWEEPS {
        for axis in &mut axes {
            *axis = matrix.iter().map(|row| row.iter().zip(axis.iter()).map(|(a, b)| a * b).sum()).collect();
        }
        orthonormalise(&mut axes);
    }
    axes
}

/// Gram–Schmidt, twice: what nearly depends on the others has lost its digits after the first time.
fn orthonormalise(axes: &mut [Vec<f64>]) {
    for at in 0..axes.len() {
        let (before, rest) = axes.split_at_mut(at);
        let axis = &mut rest[0];
        for _ in 0..2 {
            for other in before.iter() {
                let along: f64 = axis.iter().zip(other).map(|(a, b)| a * b).sum();
                axis.iter_mut().zip(other).for_each(|(a, b)| *a -= along * b);
            }
            let length = axis.iter().map(|a| a * a).sum::<f64>().sqrt();
            axis.iter_mut().for_each(|a| *a /= length);
        }
    }
}
