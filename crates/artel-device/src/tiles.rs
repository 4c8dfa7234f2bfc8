//! Parallel work on the tiles of one matrix, where the rows of a tile may lie anywhere.
//!
//! A tile is a run of `row_ids` crossed with a run of columns. With 5 rows, `row_ids = [4, 0, 2]`,
//! groups ending at `[1, 3]` and columns `[0, 2, 4]` there are four tiles: row 4 and rows 0, 2,
//! each with columns 0..2 and with columns 2..4. Every tile is given to exactly one thread, so
//! that threads write one matrix without locks.

use std::marker::PhantomData;
use std::ops::Range;

/// Which tiles a matrix is cut into.
#[derive(Debug, Clone, Copy)]
pub struct TileGrid<'a> {
    /// Rows of the matrix in the order of the tiles. No row twice.
    pub row_ids: &'a [u32],
    /// Where in `row_ids` each group of rows ends: ascending, the last is `row_ids.len()`.
    pub group_ends: &'a [usize],
    /// Columns at which tiles begin and end: ascending, from 0 to the width of the matrix.
    pub column_bounds: &'a [usize],
}

/// A tile's place in the grid.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TileIndex {
    /// Which group of rows.
    pub group: usize,
    /// Which run of columns.
    pub panel: usize,
    /// The group's run of `row_ids`.
    pub rows: Range<usize>,
    /// The run of columns.
    pub columns: Range<usize>,
}

/// The numbers of one tile.
pub struct TileMut<'a, T> {
    base: *mut T,
    row_ids: &'a [u32],
    width: usize,
    columns: Range<usize>,
    matrix: PhantomData<&'a mut [T]>,
}

impl<T> TileMut<'_, T> {
    /// Number of rows.
    #[inline(always)]
    pub fn rows(&self) -> usize {
        self.row_ids.len()
    }

    /// Row `index` of the tile: as many numbers as the tile has columns.
    #[inline(always)]
    pub fn row(&mut self, index: usize) -> &mut [T] {
        let start = self.row_ids[index] as usize * self.width + self.columns.start;
        // SAFETY: `Tiles::run` has checked that row and columns lie inside the matrix and that no
        // other tile shares them; `&mut self` keeps this tile's rows from being lent twice.
        unsafe { std::slice::from_raw_parts_mut(self.base.add(start), self.columns.len()) }
    }
}

/// Checks grids and runs work over their tiles. Holds the scratch of the check.
#[derive(Debug, Clone, Default)]
pub struct Tiles {
    seen: Vec<bool>,
}

impl Tiles {
    /// Calls `work` once per tile of `matrix`, on all threads, `grain` neighbouring tiles at a
    /// time on one thread: the panels of a group first, then the next group.
    ///
    /// # Panics
    /// When the grid does not fit the matrix or names a row twice, which is a bug.
    pub fn run<T: Send>(
        &mut self,
        matrix: &mut [T],
        grid: TileGrid<'_>,
        grain: usize,
        work: impl Fn(TileIndex, TileMut<'_, T>) + Sync,
    ) {
        self.check(matrix.len(), &grid);
        let count = grid.group_ends.len() * (grid.column_bounds.len() - 1);
        let base = SharedBase(matrix.as_mut_ptr());
        split(0..count, grain.max(1), &|tile| {
            let (index, tile) = base.tile(&grid, tile);
            work(index, tile);
        });
    }

    fn check(&mut self, length: usize, grid: &TileGrid<'_>) {
        let width = *grid.column_bounds.last().expect("this is a bug: a grid without columns");
        assert_eq!(grid.column_bounds[0], 0, "this is a bug: columns do not begin at 0");
        assert!(grid.column_bounds.is_sorted(), "this is a bug: columns out of order");
        assert!(grid.group_ends.is_sorted(), "this is a bug: groups out of order");
        let grouped = grid.group_ends.last().copied().unwrap_or(0);
        assert!(grouped <= grid.row_ids.len(), "this is a bug: a group beyond the rows");
        let height = length.checked_div(width).unwrap_or(0);
        self.seen.clear();
        self.seen.resize(height, false);
        for &row in grid.row_ids {
            let seen = self.seen.get_mut(row as usize).expect("this is a bug: a row outside");
            assert!(!std::mem::replace(seen, true), "this is a bug: row {row} is in two tiles");
        }
    }
}

/// The matrix as the threads see it.
struct SharedBase<T>(*mut T);

// SAFETY: each thread only reaches the numbers of its own tiles, and those may be sent to it.
unsafe impl<T: Send> Sync for SharedBase<T> {}

impl<T> SharedBase<T> {
    fn tile<'a>(&self, grid: &TileGrid<'a>, tile: usize) -> (TileIndex, TileMut<'a, T>) {
        let panels = grid.column_bounds.len() - 1;
        let (group, panel) = (tile / panels, tile % panels);
        let first = if group == 0 { 0 } else { grid.group_ends[group - 1] };
        let rows = first..grid.group_ends[group];
        let columns = grid.column_bounds[panel]..grid.column_bounds[panel + 1];
        let width = grid.column_bounds[panels];
        let row_ids = &grid.row_ids[rows.clone()];
        let tile =
            TileMut { base: self.0, row_ids, width, columns: columns.clone(), matrix: PhantomData };
        (TileIndex { group, panel, rows, columns }, tile)
    }
}

/// Calls `work` for every index, halving the range over the threads down to `grain`.
pub fn split(range: Range<usize>, grain: usize, work: &(impl Fn(usize) + Sync)) {
    if range.len() <= grain {
        range.for_each(work);
        return;
    }
    let middle = range.start + range.len() / 2;
    rayon::join(
        || split(range.start..middle, grain, work),
        || split(middle..range.end, grain, work),
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    const GRID: TileGrid<'_> =
        TileGrid { row_ids: &[4, 0, 2], group_ends: &[1, 1, 3], column_bounds: &[0, 2, 5] };

    #[test]
    fn every_tile_is_written_once_in_its_place() {
        let mut matrix = vec![0u32; 25];
        Tiles::default().run(&mut matrix, GRID, 1, |index, mut tile| {
            for row in 0..tile.rows() {
                tile.row(row).iter_mut().for_each(|x| *x += 10 * (1 + index.group as u32));
                tile.row(row).iter_mut().for_each(|x| *x += index.panel as u32);
            }
        });
        let expected: [[u32; 5]; 5] =
            [[30, 30, 31, 31, 31], [0; 5], [30, 30, 31, 31, 31], [0; 5], [10, 10, 11, 11, 11]];
        assert_eq!(matrix, expected.as_flattened());
    }

    #[test]
    #[should_panic(expected = "row 4 is in two tiles")]
    fn a_row_in_two_tiles_is_refused() {
        let grid = TileGrid { row_ids: &[4, 4], group_ends: &[1, 2], ..GRID };
        Tiles::default().run(&mut [0; 25], grid, 1, |_, _| {});
    }

    #[test]
    #[should_panic(expected = "a row outside")]
    fn a_row_outside_is_refused() {
        let grid = TileGrid { row_ids: &[5], group_ends: &[1], ..GRID };
        Tiles::default().run(&mut [0; 25], grid, 1, |_, _| {});
    }
}
