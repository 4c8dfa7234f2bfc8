//! Which ways there are to serve a batch: what the kernels' authors found worth measuring, and what
//! they found fastest.

use super::device::GpuCeilings;
use super::kernel::{ExpertKernels, GemmFamily, GemmKernel, GpuPath, GpuProduct, Tile, Way};
use super::work::ExpertsShape;
use crate::MoeError;
use crate::activation::Gating;
use crate::assignment::{AssignmentPath, PathQuery, choose_path};
use crate::config::{MoeConfig, Parallelism};
use crate::grouped_gemm::decode::DecodeTile;
use crate::grouped_gemm::decode::streamed::{self as in_one_launch, StreamedShape};
use crate::grouped_gemm::prefill::warpgroup::words::WordsTile;
use crate::grouped_gemm::prefill::{PrefillTile, warpgroup as by_warpgroup};
use crate::grouped_gemm::words::{WordFormat, WordTile};
use crate::quant::{BLOCK, Format};

/// Most tokens of the direct form, whose tiles have a row for every token.
pub(super) const DIRECT_TOKENS_MAX: usize = 64;
/// Rows of a block where experts have few.
const DECODE_ROWS: [usize; 4] = [8, 16, 32, 64];
/// Rows of a block of two tiles that read a weight once: experts of 64 rows on average rarely have more.
const SPLIT_ROWS: usize = 80;
/// Rows of a block where weights in words are widened for all rows of a block at once.
const WIDENED_ROWS: [usize; 4] = [16, 32, 64, 128];
/// Rows of a block where integers are multiplied as they are.
const INTEGER_ROWS: [usize; 5] = [8, 16, 32, 64, 128];

impl From<DecodeTile> for GemmKernel {
    fn from(DecodeTile { rows, columns, depth, warps, occupancy }: DecodeTile) -> Self {
        let tile = Tile { rows, columns, depth, warps, occupancy };
        Self { family: GemmFamily::Decode, tile }
    }
}

impl From<WordTile> for GemmKernel {
    fn from(WordTile { rows, columns, warps, occupancy }: WordTile) -> Self {
        let tile = Tile { rows, columns, depth: BLOCK, warps, occupancy };
        Self { family: GemmFamily::Decode, tile }
    }
}

impl From<PrefillTile> for GemmKernel {
    fn from(PrefillTile { rows, columns, depth, warps, occupancy }: PrefillTile) -> Self {
        let tile = Tile { rows, columns, depth, warps, occupancy };
        Self { family: GemmFamily::Prefill, tile }
    }
}

/// Every way that is worth measuring; none for a format or sizes without kernels.
pub(super) fn all(
    gpu: &GpuCeilings,
    config: &MoeConfig,
    format: Format,
    tokens: usize,
) -> Vec<Way> {
    let shape = ExpertsShape::of(config, format);
    let mut ways = Vec::new();
    if let Some(rows) = direct_rows(config, tokens).filter(|_| has_direct_tiles(gpu, &shape)) {
        ways.extend(decode(&shape, GpuPath::Direct, rows));
    }
    let split = shape.word_shape().is_none().then_some(&SPLIT_ROWS);
    for &rows in decode_rows(&shape).iter().chain(split) {
        ways.extend(decode(&shape, GpuPath::Aligned { block_size: rows }, rows));
    }
    if is_widened(&shape) {
        ways.extend(WIDENED_ROWS.into_iter().flat_map(widened_ways));
    }
    let [firsts, seconds] = GpuProduct::ALL.map(|product| {
        let layout = shape.stack_layout(product);
        let form = shape.prefill_form(product, GemmFamily::Prefill);
        let candidates = |layout| PrefillTile::candidates(&layout, form);
        layout.map_or_else(Vec::new, candidates)
    });
    for &first in &firsts {
        let same_rows = seconds.iter().filter(|second| second.rows == first.rows);
        ways.extend(same_rows.map(|&second| prefill(first, second)));
    }
    ways.extend(streamed(gpu, config, &shape, tokens));
    ways.extend(warpgroup_words(gpu, &shape, tokens));
    ways.extend(low_integers(gpu, &shape));
    // What a plan without times chooses must get times.
    for favourite in favourites(gpu, config, format, tokens) {
        if !ways.contains(&favourite) {
            ways.push(favourite);
        }
    }
    ways.retain(|_| shape.is_copied_by_tiles());
    ways
}

/// The way of each path and family that was fastest where its authors measured.
pub(super) fn favourites(
    gpu: &GpuCeilings,
    config: &MoeConfig,
    format: Format,
    tokens: usize,
) -> Vec<Way> {
    let shape = ExpertsShape::of(config, format);
    let direct = streamed(gpu, config, &shape, tokens).into_iter().next().or_else(|| {
        direct_rows(config, tokens).filter(|_| has_direct_tiles(gpu, &shape))?;
        usual(&shape, true, tokens).ok()
    });
    let aligned = usual(&shape, false, tokens).ok();
    let ways = direct.into_iter().chain(aligned).chain(usual_prefill(&shape, tokens));
    let high = [GemmFamily::Warpgroup, GemmFamily::Long];
    let ways = ways.chain(high.into_iter().filter_map(|family| warpgroup(gpu, &shape, family)));
    let ways = ways.chain(warpgroup_words(gpu, &shape, tokens).into_iter().next());
    ways.filter(|_| shape.is_copied_by_tiles()).collect()
}

/// The decode kernels that were fastest for so many tokens of one form.
///
/// # Errors
/// [`MoeError::Config`] for a format without kernels.
pub(super) fn usual(shape: &ExpertsShape, is_direct: bool, tokens: usize) -> Result<Way, MoeError> {
    if let Some(formats) = shape.word_formats() {
        return Ok(usual_words(shape, formats, is_direct, tokens));
    }
    let decode = shape.decode_shape().ok_or_else(|| shape.without_kernels())?;
    let [first, second] = match is_direct {
        true => DecodeTile::direct(&decode, tokens),
        false => DecodeTile::aligned(&decode, tokens),
    };
    let path = match is_direct {
        true => GpuPath::Direct,
        false => GpuPath::Aligned { block_size: first.rows },
    };
    Ok(way(path, first, second))
}

/// The same for weights in words.
fn usual_words(
    shape: &ExpertsShape,
    formats: [WordFormat; 2],
    is_direct: bool,
    tokens: usize,
) -> Way {
    let (path, rows) = match is_direct {
        true => (GpuPath::Direct, tokens.next_power_of_two().max(DECODE_ROWS[0])),
        false => {
            let share = shape.pairs(tokens) / shape.local_experts.max(1) as f64;
            let all = decode_rows(shape);
            let rows = (share as usize).next_power_of_two().clamp(all[0], all[all.len() - 1]);
            (GpuPath::Aligned { block_size: rows }, rows)
        }
    };
    // Both products have the same codes.
    let [first, second] = WordTile::fastest(formats[0].code, is_direct, rows);
    way(path, first, second)
}

/// Rows of blocks where experts have few.
fn decode_rows(shape: &ExpertsShape) -> &'static [usize] {
    match shape.word_shape() {
        // More rows of activations in parts do not fit the registers.
        Some(_) if is_widened(shape) => &DECODE_ROWS[..2],
        Some(_) => &INTEGER_ROWS,
        None => &DECODE_ROWS,
    }
}

/// Whether weights in words are widened where experts have many rows.
fn is_widened(shape: &ExpertsShape) -> bool {
    shape.word_formats().is_some_and(|formats| formats.iter().all(WordFormat::is_widened))
}

/// Ways to serve blocks of so many rows with widened weights, the usual one first.
fn widened_ways(rows: usize) -> impl Iterator<Item = Way> {
    let kernel = |tile: WordTile| GemmKernel { family: GemmFamily::Prefill, ..tile.into() };
    let tiles = WordTile::widened(rows).into_iter().map(kernel);
    let path = GpuPath::Aligned { block_size: rows };
    let with = move |first: GemmKernel| tiles.clone().map(move |second| way(path, first, second));
    WordTile::widened(rows).into_iter().map(kernel).flat_map(with)
}

/// The prefill kernels that were fastest for so many rows an expert, if both products have such.
fn usual_prefill(shape: &ExpertsShape, tokens: usize) -> Option<Way> {
    let share = shape.pairs(tokens) / shape.local_experts.max(1) as f64;
    if is_widened(shape) {
        let rows = (share as usize).next_power_of_two();
        return widened_ways(rows.clamp(WIDENED_ROWS[0], WIDENED_ROWS[3])).next();
    }
    let fastest = |product| {
        let form = shape.prefill_form(product, GemmFamily::Prefill);
        PrefillTile::fastest(&shape.stack_layout(product)?, form, share as usize).ok()
    };
    let (first, second) = (fastest(GpuProduct::GateUp)?, fastest(GpuProduct::Down)?);
    (first.rows == second.rows).then(|| prefill(first, second))
}

/// The way of tiles as high as an expert has rows, or of [`GemmFamily::Long`] of rows on the long side, where
/// the GPU and the weights have its kernels.
fn warpgroup(gpu: &GpuCeilings, shape: &ExpertsShape, family: GemmFamily) -> Option<Way> {
    // Products of words leave no other activation to a step of its own.
    let is_activated = shape.gating == Gating::SILU || shape.word_formats().is_none();
    if gpu.architecture != by_warpgroup::ARCHITECTURE || !is_activated {
        return None;
    }
    let kernel = |product| {
        let form = shape.prefill_form(product, family);
        let layout = shape.stack_layout(product)?;
        let sums = if layout.scale_block.is_some() { 2 } else { 1 };
        let (fits, rows, weights) = match family {
            GemmFamily::Long => (
                by_warpgroup::check_long(&layout, form),
                by_warpgroup::LONG_ROWS,
                by_warpgroup::LONG_FEATURES,
            ),
            _ => {
                let fits = match layout.words {
                    Some(_) => by_warpgroup::check_integers(&layout, form),
                    None => by_warpgroup::check(&layout, form),
                };
                (fits, by_warpgroup::rows_max(sums), by_warpgroup::WEIGHTS)
            }
        };
        fits.ok()?;
        let columns = weights / form.parts();
        let depth = by_warpgroup::depth(layout.number_bytes);
        Some(GemmKernel { family, tile: Tile { rows, columns, depth, warps: 8, occupancy: 1 } })
    };
    let path = GpuPath::Aligned { block_size: by_warpgroup::BLOCK_ROWS };
    Some(way(path, kernel(GpuProduct::GateUp)?, kernel(GpuProduct::Down)?))
}

/// The same of integers in tiles of half as many rows, which leave room for more stages.
fn low_integers(gpu: &GpuCeilings, shape: &ExpertsShape) -> Option<Way> {
    shape.word_shape()?;
    let mut way = warpgroup(gpu, shape, GemmFamily::Warpgroup)?;
    for kernel in [&mut way.kernels.first, &mut way.kernels.second] {
        kernel.tile.rows = by_warpgroup::rows_max(2);
    }
    Some(way)
}

/// The same for weights of four bits in words, whose kernels have tiles of several sizes: all ways, the usual one for
/// so many tokens first.
fn warpgroup_words(gpu: &GpuCeilings, shape: &ExpertsShape, tokens: usize) -> Vec<Way> {
    let words = shape.word_shape().filter(by_warpgroup::words::is_served);
    let Some(words) = words.filter(|_| gpu.architecture == by_warpgroup::ARCHITECTURE) else {
        return Vec::new();
    };
    let kernel = |WordsTile { rows, weights }, parts| {
        let (columns, depth) = (weights / parts, by_warpgroup::words::DEPTH);
        let tile = Tile { rows, columns, depth, warps: weights / 16, occupancy: 1 };
        GemmKernel { family: GemmFamily::Warpgroup, tile }
    };
    let path = GpuPath::Aligned { block_size: by_warpgroup::BLOCK_ROWS };
    // Half as many rows again as an expert has on average are rarely too few.
    let rows = shape.pairs(tokens) / shape.local_experts.max(1) as f64 * 1.5;
    let mut tiles = by_warpgroup::words::tiles(words.formats[0].code);
    let usual = tiles.iter().position(|tile| rows <= tile.rows as f64);
    let usual = usual.unwrap_or(tiles.len() - 1);
    tiles.swap(0, usual);
    let with = |first| tiles.map(|second| way(path, kernel(first, 2), kernel(second, 1)));
    tiles.into_iter().flat_map(with).collect()
}

/// The experts as the kernel of both products in one launch takes them.
fn streamed_shape(shape: &ExpertsShape) -> Option<StreamedShape> {
    let of_words = shape.word_shape().map(StreamedShape::from);
    of_words.or_else(|| shape.decode_shape().map(StreamedShape::from))
}

/// Whether the direct form has one launch for few tokens.
fn is_streamed(gpu: &GpuCeilings, shape: &ExpertsShape) -> bool {
    let served = streamed_shape(shape).is_some_and(|shape| shape.is_served());
    served && gpu.architecture == in_one_launch::ARCHITECTURE
}

/// Whether the direct form has tiles, too: those of FP8 would be less exact than one launch.
fn has_direct_tiles(gpu: &GpuCeilings, shape: &ExpertsShape) -> bool {
    shape.word_shape().is_some() || !is_streamed(gpu, shape)
}

/// The ways of both products in one launch, up to as many tokens as it takes, also where tiles would sort;
/// the fastest first: tasks of one or two tokens are small.
fn streamed(
    gpu: &GpuCeilings,
    config: &MoeConfig,
    shape: &ExpertsShape,
    tokens: usize,
) -> Vec<Way> {
    let rows = in_one_launch::TOKENS_MAX;
    let is_spread = matches!(config.parallelism(), Parallelism::Expert(_));
    if tokens > rows || is_spread || !is_streamed(gpu, shape) {
        return Vec::new();
    }
    let kernel = |[columns, depth]: [usize; 2]| GemmKernel {
        family: GemmFamily::Streamed,
        tile: Tile { rows, columns, depth, warps: 8, occupancy: 1 },
    };
    let way =
        |[first, second]: [[usize; 2]; 2]| way(GpuPath::Direct, kernel(first), kernel(second));
    let mut ways: Vec<Way> = streamed_shape(shape)
        .map_or_else(Vec::new, |shape| shape.cuts())
        .into_iter()
        .map(way)
        .collect();
    if tokens > 2 {
        ways.reverse();
    }
    ways
}

/// Rows of the tiles of the direct form; none where it does not serve the batch.
fn direct_rows(config: &MoeConfig, tokens: usize) -> Option<usize> {
    let query = PathQuery {
        tokens,
        top_k: config.shape().top_k,
        num_experts: config.shape().num_experts,
        has_expert_map: matches!(config.parallelism(), Parallelism::Expert(_)),
        ..PathQuery::default()
    };
    let serves = tokens <= DIRECT_TOKENS_MAX && choose_path(&query) == AssignmentPath::Direct;
    serves.then(|| tokens.next_power_of_two().max(DECODE_ROWS[0]))
}

fn decode(shape: &ExpertsShape, path: GpuPath, rows: usize) -> Vec<Way> {
    if let Some(formats) = shape.word_formats() {
        let candidates = |format| WordTile::candidates(format, path == GpuPath::Direct, rows);
        let [firsts, seconds] = formats.map(candidates);
        let with = |&first: &WordTile| seconds.iter().map(move |&second| way(path, first, second));
        return firsts.iter().flat_map(with).collect();
    }
    let Some(decode) = shape.decode_shape() else { return Vec::new() };
    let [firsts, seconds] = DecodeTile::candidates(&decode, path == GpuPath::Direct, rows);
    let with = |first: DecodeTile| seconds.iter().map(move |&second| way(path, first, second));
    firsts.into_iter().flat_map(with).collect()
}

fn prefill(first: PrefillTile, second: PrefillTile) -> Way {
    way(GpuPath::Aligned { block_size: first.rows }, first, second)
}

fn way(path: GpuPath, first: impl Into<GemmKernel>, second: impl Into<GemmKernel>) -> Way {
    Way { path, kernels: ExpertKernels { first: first.into(), second: second.into() } }
}
