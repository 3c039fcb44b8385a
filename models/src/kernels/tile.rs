//! The inner loop of all matrix products: a few rows times a narrow panel of columns, summed in registers.

use super::simd::{Element, LANES, Simd};

/// `N` vectors of weights: what a panel has for one input.
pub(crate) type Line<E, const N: usize> = [[E; LANES]; N];

/// `start + rows · panel`: the first `panel.len()` numbers of each row, times the panel's lines.
///
/// While it works, it asks for the memory of `ahead`, an item for each line of the panel.
///
/// `U` sums are kept for each output and added at the end, so that few rows do not wait for each other's sums.
///
/// # Panics
/// When a row is shorter than the panel.
#[inline(always)]
pub(crate) fn tile<S: Simd, E: Element, A, const M: usize, const N: usize, const U: usize>(
    simd: S,
    rows: [&[f32]; M],
    panel: &[Line<E, N>],
    ahead: &[A],
    start: [[S::V; N]; M],
) -> [[S::V; N]; M] {
    assert!(rows.iter().all(|row| row.len() >= panel.len()), "rows shorter than the panel");
    let mut sums = [[[simd.zero(); N]; M]; U];
    sums[0] = start;
    let (chunks, rest) = panel.as_chunks::<U>();
    let mut ahead = ahead.iter();
    for (chunk, lines) in chunks.iter().enumerate() {
        for u in 0..U {
            if let Some(line) = ahead.next() {
                simd.prefetch(line);
            }
            // SAFETY: `chunk * U + u` is below the panel's length, and no row is shorter.
            unsafe { add_line(simd, &rows, chunk * U + u, &lines[u], &mut sums[u]) };
        }
    }
    for (at, line) in rest.iter().enumerate() {
        // SAFETY: as above.
        unsafe { add_line(simd, &rows, chunks.len() * U + at, line, &mut sums[0]) };
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
pub(crate) fn groups(rows: usize, most: usize) -> impl Iterator<Item = (usize, usize)> {
    let count = rows.div_ceil(most);
    let (base, longer) = (rows / count.max(1), rows % count.max(1));
    (0..count).map(move |group| (group * base + group.min(longer), base + usize::from(group < longer)))
}
