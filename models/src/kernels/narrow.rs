//! Rows of 16 bits, for products of bf16 with bf16, two at a time.

use super::pool::Pool;
use super::product::read;
use super::shared::Shared;
use super::simd::{Instructions, Kernel, LANES, Pair, Simd};

/// A place for rows, which is used again.
#[derive(Debug, Default)]
pub(crate) struct Narrow {
    pairs: Vec<Pair>,
}

impl Narrow {
    /// Rows rounded to bf16, filled up to whole pairs with zeros.
    ///
    /// # Shapes
    /// - `rows`: `[rows, width]`
    /// - output: `[rows, width / 2]`
    pub(crate) fn pairs(&mut self, pool: &mut Pool, set: Instructions, rows: &[f32], width: usize) -> &[Pair] {
        let (count, words) = (rows.len() / width, width.div_ceil(2));
        self.pairs.resize(count * words, Pair::default());
        let pairs = Shared::new(&mut self.pairs);
        pool.each_row(count, width, &|row| {
            // SAFETY: each row belongs to one task.
            let to = unsafe { pairs.slice_mut(row * words, words) };
            set.run(ToPairs { from: &rows[row * width..][..width], to });
        });
        &self.pairs
    }
}

struct ToPairs<'a> {
    from: &'a [f32],
    to: &'a mut [Pair],
}

impl Kernel for ToPairs<'_> {
    const PAIRS: bool = true;
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let (vectors, last) = self.from.as_chunks::<LANES>();
        let (whole, rest) = self.to.split_at_mut(vectors.len() * LANES / 2);
        for (to, vector) in whole.as_chunks_mut().0.iter_mut().zip(vectors) {
            simd.narrow_pairs(simd.load(vector), to);
        }
        let mut copy = [Pair::default(); LANES / 2];
        simd.narrow_pairs(read(simd, last), &mut copy);
        rest.copy_from_slice(&copy[..rest.len()]);
    }
}
