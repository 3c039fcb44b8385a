//! Makes `models/src/adapter.bin` from labelled texts: JSON lines of `{"text", "label"}`, the titles and texts of articles
//! among them.
//!
//! ```text
//! cargo run --release --example adapter -- LABELLED.jsonl models/src/adapter.bin
//! ```
//!
//! A full map is trained by contrast; four fifths of its similarity are added to one fifth of the encoder's own, which keeps texts that no
//! label covers where they were. The sum is brought into one map by a Cholesky factorisation.

use std::collections::BTreeMap;

use turnflow_models::{
    ContrastOptions, Encoder, EncoderOptions, ModelHome, WeightSource, default_home, dot, ensure, train_map,
};

/// Share of the trained similarity; the rest is the encoder's own.
const SHARE: f64 = 0.8;
/// Texts that are encoded together.
const BATCH: usize = 64;

#[derive(serde::Deserialize)]
struct Row {
    text: String,
    label: String,
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let [texts, out] =
        std::env::args().skip(1).collect::<Vec<_>>().try_into().map_err(|_| "usage: adapter LABELLED OUT")?;
    let mut rows = Vec::new();
    for (number, line) in std::fs::read_to_string(&texts)?.lines().enumerate() {
        rows.push(serde_json::from_str::<Row>(line).map_err(|error| format!("{texts}:{}: {error}", number + 1))?);
    }
    rows.sort_by_key(|row| row.text.len());
    let encoder = Encoder::load(
        &ensure(&ModelHome::new(default_home()?), &WeightSource::defaults(None), &|_| {})?,
        EncoderOptions::default(),
    )?;
    let mut labels = BTreeMap::<&str, Vec<std::sync::Arc<[f32]>>>::new();
    for (done, batch) in rows.chunks(BATCH).enumerate() {
        let batch_texts: Vec<&str> = batch.iter().map(|row| row.text.as_str()).collect();
        for (row, vector) in batch.iter().zip(encoder.encode(&batch_texts)?) {
            labels.entry(&row.label).or_default().push(vector);
        }
        eprint!("\r{} of {} texts", (done * BATCH + batch.len()).min(rows.len()), rows.len());
    }
    let dimension = encoder.dimension();
    let vectors: Vec<Vec<&[f32]>> = labels.values().map(|texts| texts.iter().map(|text| &**text).collect()).collect();
    let identity: Vec<f32> =
        (0..dimension * dimension).map(|at| if at / dimension == at % dimension { 1.0 } else { 0.0 }).collect();
    let options = ContrastOptions { steps: 800, ..ContrastOptions::default() };
    let vectors = [vectors];
    let map = train_map(&vectors, &identity, dimension, &options, &mut |step, loss| {
        eprint!("\rstep {step} of {}, loss {loss:.3}   ", options.steps);
    })?;
    let triangle =
        cholesky(&mixed(&map, &vectors.concat().concat(), dimension)).ok_or("the sum is not positive definite")?;
    std::fs::write(&out, triangle.iter().flat_map(|&number| (number as f32).to_le_bytes()).collect::<Vec<u8>>())?;
    eprintln!("\nwritten to {out}");
    Ok(())
}

/// The similarity as a matrix: `(1 - SHARE) · I + SHARE · M Mᵀ`, with the map scaled so that mapped vectors have unit length
/// on average.
fn mixed(map: &[f32], vectors: &[&[f32]], dimension: usize) -> Vec<Vec<f64>> {
    let rows: Vec<&[f32]> = map.chunks_exact(dimension).collect();
    let mut inverse_lengths = 0.0;
    for vector in vectors {
        let mut mapped = vec![0.0_f32; dimension];
        for (number, row) in vector.iter().zip(&rows) {
            mapped.iter_mut().zip(*row).for_each(|(sum, weight)| *sum += number * weight);
        }
        inverse_lengths += 1.0 / f64::from(dot(&mapped, &mapped)).sqrt();
    }
    let scale = (inverse_lengths / vectors.len() as f64).powi(2);
    let own = |i: usize, j: usize| if i == j { 1.0 - SHARE } else { 0.0 };
    (0..dimension)
        .map(|i| (0..dimension).map(|j| own(i, j) + SHARE * scale * f64::from(dot(rows[i], rows[j]))).collect())
        .collect()
}

/// The lower triangle `L` with `L Lᵀ = A`, row by row; None when there is none.
fn cholesky(a: &[Vec<f64>]) -> Option<Vec<f64>> {
    let mut rows: Vec<Vec<f64>> = Vec::with_capacity(a.len());
    for (i, given) in a.iter().enumerate() {
        let mut row = Vec::with_capacity(i + 1);
        for j in 0..=i {
            let before: f64 = row.iter().zip(if j < i { &rows[j] } else { &row }).map(|(x, y)| x * y).sum();
            let rest = given[j] - before;
            row.push(if j < i { rest / rows[j][j] } else { (rest > 0.0).then(|| rest.sqrt())? });
        }
        rows.push(row);
    }
    Some(rows.concat())
}
