//! Products with packed weights against the plain way.

use proptest::prelude::*;

use super::*;
use crate::kernels::fixtures::{numbers, sets};

/// The plain way: `start + rows · weightsᵀ`, summed in f64.
fn plain(rows: &[f32], inputs: usize, weights: &[f32], start: impl Fn(usize, usize) -> f32) -> Vec<f32> {
    let outputs = weights.len() / inputs;
    let row = |(number, row): (usize, &[f32])| {
        let start = &start;
        let output = |output: usize| {
            let products = row.iter().zip(&weights[output * inputs..]).map(|(x, w)| f64::from(*x) * f64::from(*w));
            (f64::from(start(number, output)) + products.sum::<f64>()) as f32
        };
        (0..outputs).map(output).collect::<Vec<_>>()
    };
    rows.chunks_exact(inputs).enumerate().flat_map(row).collect()
}

fn rounded(weights: &[f32], precision: Precision) -> Vec<f32> {
    let round = |x: &f32| match precision {
        Precision::F32 => *x,
        Precision::F16 => f16::from_f32(*x).to_f32(),
        Precision::Bf16 => bf16::from_f32(*x).to_f32(),
    };
    weights.iter().map(round).collect()
}

fn gelu(x: f32) -> f32 {
    crate::kernels::fixtures::gelu(f64::from(x)) as f32
}

fn same(found: &[f32], expected: &[f32], inputs: usize) {
    let limit = 1e-6 * inputs as f32 + 1e-5;
    for (at, (found, expected)) in found.iter().zip(expected).enumerate() {
        assert!((found - expected).abs() <= limit, "{found} at {at}, expected {expected}");
    }
}

const PRECISIONS: [Precision; 3] = [Precision::F32, Precision::F16, Precision::Bf16];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn products_are_those_of_a_plain_loop(
        rows in 1_usize..20, inputs in 1_usize..90, outputs in 1_usize..70, threads in 1_usize..4, seed: u64
    ) {
        let mut pool = Pool::start(threads).expect("threads");
        let (x, weights) = (numbers(rows * inputs, seed), numbers(outputs * inputs, seed ^ 1));
        let (bias, there) = (numbers(outputs, seed ^ 2), numbers(rows * outputs, seed ^ 3));
        for (set, precision) in sets().into_iter().flat_map(|set| PRECISIONS.map(|precision| (set, precision))) {
            let matrix = Matrix::pack(precision, inputs, outputs, |output| &weights[output * inputs..][..inputs]);
            let weights = rounded(&weights, precision);
            let mut found = vec![f32::NAN; rows * outputs];
            matrix.product(&mut pool, set, &mut Narrow::default(), &x, (Start::Zero, Finish::Plain), &mut found);
            same(&found, &plain(&x, inputs, &weights, |_, _| 0.0), inputs);
            found.fill(f32::NAN);
            matrix.product(&mut pool, set, &mut Narrow::default(), &x, (Start::Bias(&bias), Finish::Plain), &mut found);
            same(&found, &plain(&x, inputs, &weights, |_, output| bias[output]), inputs);
            found.copy_from_slice(&there);
            matrix.product(&mut pool, set, &mut Narrow::default(), &x, (Start::There, Finish::Plain), &mut found);
            same(&found, &plain(&x, inputs, &weights, |row, output| there[row * outputs + output]), inputs);
            let mut row = vec![f32::NAN; inputs];
            matrix.row(outputs - 1, &mut row);
            prop_assert_eq!(&row, &weights[(outputs - 1) * inputs..]);
        }
    }

    #[test]
    fn starts_and_ends_are_those_of_a_plain_loop(
        rows in 1_usize..20, inputs in 1_usize..90, outputs in 1_usize..70, threads in 1_usize..4, seed: u64
    ) {
        let mut pool = Pool::start(threads).expect("threads");
        let (x, weights) = (numbers(rows * inputs, seed), numbers(outputs * inputs, seed ^ 1));
        let (bias, there) = (numbers(outputs, seed ^ 2), numbers(rows * outputs, seed ^ 3));
        let matrix = Matrix::pack(Precision::F32, inputs, outputs, |output| &weights[output * inputs..][..inputs]);
        let both = plain(&x, inputs, &weights, |row, output| there[row * outputs + output] + bias[output]);
        let gelus: Vec<f32> = plain(&x, inputs, &weights, |_, output| bias[output]).into_iter().map(gelu).collect();
        for set in sets() {
            let mut found = there.clone();
            let start = (Start::ThereAndBias(&bias), Finish::Plain);
            matrix.product(&mut pool, set, &mut Narrow::default(), &x, start, &mut found);
            same(&found, &both, inputs);
            let start = (Start::Bias(&bias), Finish::Gelu);
            matrix.product(&mut pool, set, &mut Narrow::default(), &x, start, &mut found);
            same(&found, &gelus, inputs);
        }
    }

    #[test]
    fn products_of_pairs_are_those_of_rounded_numbers(
        rows in 1_usize..20, inputs in 1_usize..90, outputs in 1_usize..70, threads in 1_usize..4, seed: u64
    ) {
        let mut pool = Pool::start(threads).expect("threads");
        let (x, weights) = (numbers(rows * inputs, seed), numbers(outputs * inputs, seed ^ 1));
        let bias = numbers(outputs, seed ^ 2);
        let matrix = Matrix::pack(Format::Pairs, inputs, outputs, |output| &weights[output * inputs..][..inputs]);
        let (x_rounded, weights) = (rounded(&x, Precision::Bf16), rounded(&weights, Precision::Bf16));
        let expected = plain(&x_rounded, inputs, &weights, |_, output| bias[output]);
        let mut narrow = Narrow::default();
        for set in sets() {
            let mut found = vec![f32::NAN; rows * outputs];
            matrix.product(&mut pool, set, &mut narrow, &x, (Start::Bias(&bias), Finish::Plain), &mut found);
            same(&found, &expected, inputs);
        }
    }

    #[test]
    fn gated_products_are_those_of_a_plain_loop(
        rows in 1_usize..15, inputs in 1_usize..50, width in 1_usize..50, threads in 1_usize..4, seed: u64
    ) {
        let mut pool = Pool::start(threads).expect("threads");
        let x = numbers(rows * inputs, seed);
        let (gate, up) = (numbers(width * inputs, seed ^ 1), numbers(width * inputs, seed ^ 2));
        for (set, precision) in sets().into_iter().flat_map(|set| PRECISIONS.map(|precision| (set, precision))) {
            let matrix = Matrix::pack_gated(precision.into(), inputs, &gate, &up);
            let mut found = vec![f32::NAN; rows * width];
            matrix.product(&mut pool, set, &mut Narrow::default(), &x, (Start::Zero, Finish::Gated), &mut found);
            let [gate, up] = [&gate, &up].map(|part| plain(&x, inputs, &rounded(part, precision), |_, _| 0.0));
            let expected: Vec<f32> = gate.iter().zip(&up).map(|(gate, up)| gate / (1.0 + (-gate).exp()) * up).collect();
            same(&found, &expected, inputs);
        }
    }
}

#[test]
fn a_row_is_the_same_beside_others() {
    let (inputs, outputs) = (100, 40);
    let (x, weights) = (numbers(17 * inputs, 1), numbers(outputs * inputs, 2));
    let mut pool = Pool::start(2).expect("threads");
    for set in sets() {
        let matrix = Matrix::pack(Precision::F32, inputs, outputs, |output| &weights[output * inputs..][..inputs]);
        let (mut all, mut one) = (vec![0.0; 17 * outputs], vec![0.0; outputs]);
        matrix.product(&mut pool, set, &mut Narrow::default(), &x, (Start::Zero, Finish::Plain), &mut all);
        for (x, expected) in x.chunks(inputs).zip(all.chunks(outputs)) {
            matrix.product(&mut pool, set, &mut Narrow::default(), x, (Start::Zero, Finish::Plain), &mut one);
            same(&one, expected, 1);
        }
        matrix.product(&mut pool, set, &mut Narrow::default(), &[], (Start::Zero, Finish::Plain), &mut []);
    }
}

#[test]
fn weights_that_are_no_numbers_stay_so() {
    let weights = [f32::INFINITY, f32::NAN, -0.0, 6e-8, -65504.0, 1e9];
    let mut row = vec![0.0; weights.len()];
    for set in sets() {
        let matrix = Matrix::pack(Precision::F16, 1, weights.len(), |output| &weights[output..=output]);
        matrix.product(
            &mut Pool::start(1).expect("threads"),
            set,
            &mut Narrow::default(),
            &[1.0],
            (Start::Zero, Finish::Plain),
            &mut row,
        );
        assert_eq!((row[0], row[4], row[5]), (f32::INFINITY, -65504.0, f32::INFINITY), "{}", set.name());
        assert!(row[1].is_nan() && (row[3] - 6e-8).abs() < 3e-8, "{}: {row:?}", set.name());
    }
}
