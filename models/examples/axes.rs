//! Makes `models/src/axes.bin`: the principal axes of what the encoder makes of the texts of a file, one per line.
//!
//! ```text
//! cargo run --release -p turnflow-models --example axes -- QUESTIONS.txt models/src/axes.bin
//! ```
//!
//! The axes are the leading eigenvectors of the second moments, found by orthogonal iteration (Golub and Van Loan, Matrix
//! Computations, section 8.2.4). They say nothing about single texts, and whatever they are, what is computed with them
//! stays exact; good ones make it fast.

use std::path::Path;

use turnflow_models::{AXES, Encoder, ModelHome, WeightSource, default_home, ensure};

/// Sweeps over the moments; the subspace has settled long before.
const SWEEPS: usize = 60;
/// Texts that are encoded together.
const BATCH: usize = 64;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let [texts, out] = std::env::args().skip(1).collect::<Vec<_>>().try_into().map_err(|_| "usage: axes TEXTS OUT")?;
    let texts = std::fs::read_to_string(texts)?;
    let texts: Vec<&str> = texts.lines().filter(|line| !line.trim().is_empty()).collect();
    let encoder = Encoder::load(&ensure(&ModelHome::new(default_home()?), &WeightSource::defaults(None), &|_| {})?)?;
    let mut vectors = Vec::with_capacity(texts.len());
    for batch in texts.chunks(BATCH) {
        vectors.extend(encoder.encode(batch)?);
        eprint!("\r{} of {} texts", vectors.len(), texts.len());
    }
    let dimension = vectors.first().ok_or("no texts")?.len();
    let mut moments = vec![vec![0.0_f64; dimension]; dimension];
    for vector in &vectors {
        for (row, &a) in moments.iter_mut().zip(vector.iter()) {
            row.iter_mut().zip(vector.iter()).for_each(|(sum, &b)| *sum += f64::from(a) * f64::from(b));
        }
    }
    let axes = leading(&moments, AXES);
    let bytes: Vec<u8> = axes.iter().flatten().flat_map(|&number| (number as f32).to_le_bytes()).collect();
    std::fs::write(Path::new(&out), bytes)?;
    eprintln!("\n{} axes of {dimension} numbers written to {out}", axes.len());
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

fn orthonormalise(axes: &mut [Vec<f64>]) {
    for at in 0..axes.len() {
        let (before, rest) = axes.split_at_mut(at);
        let axis = &mut rest[0];
        for other in before.iter() {
            let along: f64 = axis.iter().zip(other).map(|(a, b)| a * b).sum();
            axis.iter_mut().zip(other).for_each(|(a, b)| *a -= along * b);
        }
        let length = axis.iter().map(|a| a * a).sum::<f64>().sqrt();
        axis.iter_mut().for_each(|a| *a /= length);
    }
}
