//! The inner loop of all matrix products: a few rows times narrow panels of columns, summed in registers.

use super::prefetch::prefetch;
use super::simd::{Element, LANES, ROWS_MAX, Simd};

/// What a panel has for one input: a vector of weights.
pub(crate) type Line<E> = [E; LANES];

/// Lines between two looks ahead.
const CHUNK: usize = 32;
/// Bytes of a line of the caches.
const CACHE_LINE: usize = 64;

/// Weights that will be needed soon, and are asked for little by little.
#[derive(Clone, Copy)]
pub(crate) struct Ahead<'a, E> {
    pub(crate) lines: &'a [Line<E>],
    /// How many, for each few lines that are multiplied.
    pub(crate) step: usize,
}

impl<'a, E> Ahead<'a, E> {
    pub(crate) const NONE: Self = Self { lines: &[], step: 1 };

    /// The part of these lines that the `group`-th of `groups` passes should ask for, each over `panels` panels at once.
    #[inline(always)]
    pub(crate) fn share(lines: &'a [Line<E>], panels: usize, group: usize, groups: usize) -> Self {
        let share = lines.len().div_ceil(groups);
        let lines = &lines[lines.len().min(group * share)..lines.len().min((group + 1) * share)];
        Self { lines, step: (panels * CHUNK).div_ceil(groups) }
    }
}

/// `start + rows · panels`: the first numbers of each row, as many as a panel has lines, times these lines.
///
/// `U` sums, 1, 2 or 4, are kept for each output and added at the end, so that few rows do not wait for their own sums.
///
/// # Panics
/// When a row is shorter than the panels, or these differ in length.
#[inline(always)]
pub(crate) fn tile<S: Simd, E: Element, const M: usize, const N: usize, const U: usize>(
    simd: S,
    rows: [&[E::Input]; M],
    panels: [&[Line<E>]; N],
    ahead: Ahead<'_, E>,
    start: [[S::V; N]; M],
) -> [[S::V; N]; M] {
    let length = panels[0].len();
    assert!(panels.iter().all(|panel| panel.len() == length), "panels of different lengths");
    assert!(rows.iter().all(|row| row.len() >= length), "rows shorter than the panels");
    let mut sums = [[[simd.zero(); N]; M]; U];
    sums[0] = start;
    let mut ahead_lines = ahead.lines.chunks(ahead.step);
    let whole = length - length % CHUNK;
    for chunk in (0..whole).step_by(CHUNK) {
        if let Some(ahead) = ahead_lines.next() {
            for line in ahead.iter().step_by((CACHE_LINE / size_of::<Line<E>>()).max(1)) {
                prefetch(line);
            }
        }
        for few in (chunk..chunk + CHUNK).step_by(4) {
            for at in 0..4 {
                // SAFETY: this line's number is below `whole`, so below the length of panels and rows.
                unsafe { add_line(simd, &rows, &panels, few + at, &mut sums[at % U]) };
            }
        }
    }
    for at in whole..length {
        // SAFETY: `at` is below the length of panels and rows.
        unsafe { add_line(simd, &rows, &panels, at, &mut sums[0]) };
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
/// `at` must be below the length of every row and panel.
#[inline(always)]
unsafe fn add_line<S: Simd, E: Element, const M: usize, const N: usize>(
    simd: S,
    rows: &[&[E::Input]; M],
    panels: &[&[Line<E>]; N],
    at: usize,
    sums: &mut [[S::V; N]; M],
) {
    debug_assert!(rows.iter().all(|row| at < row.len()) && panels.iter().all(|panel| at < panel.len()));
    let mut weights = [simd.zero(); N];
    for n in 0..N {
        // SAFETY: promised by the caller; a check here would cost more than the product.
        weights[n] = E::load(simd, unsafe { panels[n].get_unchecked(at) });
    }
    for m in 0..M {
        // SAFETY: promised by the caller.
        let x = E::splat(simd, unsafe { *rows[m].get_unchecked(at) });
        for n in 0..N {
            sums[m][n] = E::mul_add(simd, x, weights[n], sums[m][n]);
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

/// Rows that lie one after the other, and panels that they are multiplied with.
pub(crate) struct Tiles<'a, E: Element, const N: usize> {
    /// `[count, stride]`, of which the first numbers of each row are multiplied.
    pub(crate) rows: &'a [E::Input],
    pub(crate) stride: usize,
    /// [`Simd::ROWS`] at most.
    pub(crate) count: usize,
    pub(crate) panels: [&'a [Line<E>]; N],
    pub(crate) ahead: Ahead<'a, E>,
}

/// The sums of a group of rows.
pub(crate) type Sums<const N: usize> = [[[f32; LANES]; N]; ROWS_MAX];

impl<E: Element, const N: usize> Tiles<'_, E, N> {
    /// `to = rows · panels`, compiled for each number of rows.
    #[inline(always)]
    pub(crate) fn run<S: Simd>(&self, simd: S, to: &mut Sums<N>) {
        match self.count {
            1 => self.tile::<S, 1, 4>(simd, to),
            2 => self.tile::<S, 2, 2>(simd, to),
            3 => self.tile::<S, 3, 2>(simd, to),
            4 => self.tile::<S, 4, 1>(simd, to),
            5 => self.tile::<S, 5, 1>(simd, to),
            6 => self.tile::<S, 6, 1>(simd, to),
            // Nothing of this is compiled for sets with fewer registers.
            _ if S::ROWS > 6 => match self.count {
                7 => self.tile::<S, 7, 1>(simd, to),
                8 => self.tile::<S, 8, 1>(simd, to),
                9 => self.tile::<S, 9, 1>(simd, to),
                10 => self.tile::<S, 10, 1>(simd, to),
                11 => self.tile::<S, 11, 1>(simd, to),
                _ => self.tile::<S, 12, 1>(simd, to),
            },
            _ => debug_assert!(false, "{} rows at once", self.count),
        }
    }

    #[inline(always)]
    fn tile<S: Simd, const M: usize, const U: usize>(&self, simd: S, to: &mut Sums<N>) {
        let mut rows: [&[E::Input]; M] = [&[]; M];
        for (m, row) in rows.iter_mut().enumerate() {
            *row = &self.rows[m * self.stride..];
        }
        let sums = tile::<S, E, M, N, U>(simd, rows, self.panels, self.ahead, [[simd.zero(); N]; M]);
        for m in 0..M {
            for n in 0..N {
                simd.store(sums[m][n], &mut to[m][n]);
            }
        }
    }
}
