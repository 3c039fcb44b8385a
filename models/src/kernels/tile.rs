//! The inner loop of all matrix products: a few rows times a narrow panel of columns, summed in registers.

use super::simd::{Element, LANES, Simd};

/// `N` vectors of weights: what a panel has for one input.
pub(crate) type Line<E, const N: usize> = [[E; LANES]; N];

/// Lines between two looks ahead.
const CHUNK: usize = 32;
/// Bytes of a line of the caches.
const CACHE_LINE: usize = 64;

/// Weights that will be needed soon, and are asked for little by little.
#[derive(Clone, Copy)]
pub(crate) struct Ahead<'a, E, const N: usize> {
    pub(crate) lines: &'a [Line<E, N>],
    /// How many, for each few lines that are multiplied.
    pub(crate) step: usize,
}

impl<'a, E, const N: usize> Ahead<'a, E, N> {
    pub(crate) const NONE: Self = Self { lines: &[], step: 1 };

    /// The part of these lines that the `group`-th of `groups` passes over as many should ask for.
    #[inline(always)]
    pub(crate) fn share(lines: &'a [Line<E, N>], group: usize, groups: usize) -> Self {
        let share = lines.len().div_ceil(groups);
        let lines = &lines[lines.len().min(group * share)..lines.len().min((group + 1) * share)];
        Self { lines, step: CHUNK.div_ceil(groups) }
    }
}

/// `start + rows · panel`: the first `panel.len()` numbers of each row, times the panel's lines.
///
/// `U` sums, 1, 2 or 4, are kept for each output and added at the end, so that few rows do not wait for their own sums.
///
/// # Panics
/// When a row is shorter than the panel.
#[inline(always)]
pub(crate) fn tile<S: Simd, E: Element, const M: usize, const N: usize, const U: usize>(
    simd: S,
    rows: [&[f32]; M],
    panel: &[Line<E, N>],
    ahead: Ahead<'_, E, N>,
    start: [[S::V; N]; M],
) -> [[S::V; N]; M] {
    assert!(rows.iter().all(|row| row.len() >= panel.len()), "rows shorter than the panel");
    let mut sums = [[[simd.zero(); N]; M]; U];
    sums[0] = start;
    let (chunks, rest) = panel.as_chunks::<CHUNK>();
    let mut ahead_lines = ahead.lines.chunks(ahead.step);
    for (chunk, lines) in chunks.iter().enumerate() {
        if let Some(ahead) = ahead_lines.next() {
            for line in ahead.iter().step_by((CACHE_LINE / size_of::<Line<E, N>>()).max(1)) {
                simd.prefetch(line);
            }
        }
        for (few, lines) in lines.as_chunks::<U>().0.iter().enumerate() {
            for u in 0..U {
                // SAFETY: this line's number is below the panel's length, and no row is shorter.
                unsafe { add_line(simd, &rows, chunk * CHUNK + few * U + u, &lines[u], &mut sums[u]) };
            }
        }
    }
    for (at, line) in rest.iter().enumerate() {
        // SAFETY: as above.
        unsafe { add_line(simd, &rows, chunks.len() * CHUNK + at, line, &mut sums[0]) };
    }
    let mut total = sums[0];
    for more in &sums[1..] {
        for m in 0..M {
            for n in 0..N {
                total[m][n] = simd.add(total[m][n], more[m][n]);
            }
        }
    }
    total
}

/// Adds what one input gives to all sums.
///
/// # Safety
/// `at` must be below the length of every row.
#[inline(always)]
unsafe fn add_line<S: Simd, E: Element, const M: usize, const N: usize>(
    simd: S,
    rows: &[&[f32]; M],
    at: usize,
    line: &Line<E, N>,
    sums: &mut [[S::V; N]; M],
) {
    let mut weights = [simd.zero(); N];
    for n in 0..N {
        weights[n] = E::load(simd, &line[n]);
    }
    for m in 0..M {
        debug_assert!(at < rows[m].len());
        // SAFETY: promised by the caller; a check here would cost more than the product.
        let x = simd.splat(unsafe { *rows[m].get_unchecked(at) });
        for n in 0..N {
            sums[m][n] = simd.mul_add(x, weights[n], sums[m][n]);
        }
    }
}

/// Splits `rows` into runs of nearly equal length, none above `most`: where each begins, and its length.
#[inline(always)]
pub(crate) fn groups(rows: usize, most: usize) -> impl ExactSizeIterator<Item = (usize, usize)> {
    let count = rows.div_ceil(most);
    let (base, longer) = (rows / count.max(1), rows % count.max(1));
    (0..count).map(move |group| (group * base + group.min(longer), base + usize::from(group < longer)))
}
