//! Launches of both products on weights in words.

use std::marker::PhantomData;

use artel_device::cuda::{Arguments, DeviceSliceMut, Kernel, KernelSpec, Kernels, Stream};

use super::entries::entry;
use super::split::cuda::{HALVES, SplitShape, constant};
pub use super::split::cuda::{RowSource, RowsInUse, SplitRows};
use super::workspace::SplitBuffers;
pub use super::workspace::{RowForm, WordWorkspace};
use super::{WordCode, WordFormat, WordShape, WordTile};
use crate::MoeError;
use crate::assignment::cuda::IdForm;
use crate::grouped_gemm::decode::cuda::{AlignedStep, DirectStep, ExpertSlices, WeightSlices};
use crate::grouped_gemm::decode::gating::cuda::{gating_constants, with_biases};
use crate::quant::Element;
use crate::weights::words::WordLayout;

/// How rows come to their weights; see [`decode`](crate::grouped_gemm::decode).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WordForm {
    /// Nothing is sorted, and the second product sums the pairs of each token.
    Direct {
        /// Tokens with the same expert share one block. Without it every pair has its own.
        shared: bool,
        /// Where ids, and with them weights, come from.
        ids: IdForm,
    },
    /// Pairs are sorted by expert.
    Aligned,
    /// The same, with weights widened to bfloat16 for all rows of a block at once.
    Widened,
}

impl WordForm {
    /// What its products take of rows.
    pub fn rows(self) -> RowForm {
        match self {
            Self::Direct { .. } | Self::Aligned => RowForm::Parts,
            Self::Widened => RowForm::Halves,
        }
    }
}

/// Both products of one form.
#[derive(Debug, Clone)]
pub struct WordExperts<A> {
    shape: WordShape,
    form: WordForm,
    tiles: [WordTile; 2],
    kernels: [Kernel; 2],
    split: SplitRows,
    /// Of activations, where the first product does not store them as the second takes them.
    split_inner: Option<SplitRows>,
    element: PhantomData<A>,
}

/// Where the direct form's results go.
#[derive(Debug)]
pub struct DirectSums<'a, A: Element> {
    /// Rows of pairs, `[T * K, H]`.
    pub rows: DeviceSliceMut<'a, A>,
    /// `[T, H]`.
    pub out: DeviceSliceMut<'a, A>,
}

impl<A: Element> WordExperts<A> {
    /// Asks for the kernels.
    ///
    /// # Errors
    /// [`MoeError::Config`] for tiles that do not fit, [`MoeError::Cuda`] when a kernel is missing
    /// and cannot be made.
    pub fn load(
        kernels: &mut Kernels,
        shape: WordShape,
        form: WordForm,
        tiles: [WordTile; 2],
    ) -> Result<Self, MoeError> {
        tiles[0].check()?;
        tiles[1].check()?;
        if tiles[0].rows != tiles[1].rows {
            let allowed = "as many as of the first product";
            return Err(MoeError::config("rows of the second tile", tiles[1].rows, allowed));
        }
        let sources = match form {
            WordForm::Direct { .. } => [RowSource::Tokens, RowSource::Blocks(tiles[0].rows)],
            WordForm::Aligned | WordForm::Widened => {
                [RowSource::TokensOfPositions(shape.top_k), RowSource::Positions]
            }
        };
        if form == WordForm::Widened && !shape.formats.iter().all(WordFormat::is_widened) {
            let found = format!("{:?}", shape.formats);
            let allowed = "FP4, MXFP8, INT4 and INT8 with groups of 128";
            return Err(MoeError::config("weights that are widened", found, allowed));
        }
        let split = |element, columns, product: usize| {
            let format = shape.formats[product];
            SplitShape { element, columns, format, form: form.rows() }
        };
        let of_hidden = split(A::NAME, shape.hidden_size, 0);
        let of_inner = split("f32", shape.intermediate_size, 1);
        let split = SplitRows::load(kernels, of_hidden, sources[0])?;
        let split_inner = match form.rows() {
            RowForm::Parts => Some(SplitRows::load(kernels, of_inner, sources[1])?),
            RowForm::Halves => None,
        };
        let first = kernels.get(&spec::<A>(&shape, form, tiles[0], Product::First))?;
        let second = kernels.get(&spec::<A>(&shape, form, tiles[1], Product::Second))?;
        let element = PhantomData;
        let kernels = [first, second];
        Ok(Self { shape, form, tiles, kernels, split, split_inner, element })
    }

    /// How rows come to weights.
    pub fn form(&self) -> WordForm {
        self.form
    }

    /// Rows that the first and the second product of a step of so many tokens or positions take.
    pub fn rows(&self, count: usize) -> [usize; 2] {
        match self.form {
            WordForm::Direct { .. } => [count, count * self.shape.top_k * self.tiles[0].rows],
            WordForm::Aligned | WordForm::Widened => [count; 2],
        }
    }

    /// Runs both products over sorted pairs; row `p` of `out` `[positions, H]` is position `p`.
    ///
    /// # Errors
    /// [`MoeError`] for slices that are too short or a launch that fails.
    pub fn launch_sorted(
        &self,
        stream: &Stream,
        step: &AlignedStep<'_, A>,
        workspace: &mut WordWorkspace,
        out: &mut DeviceSliceMut<'_, A>,
    ) -> Result<(), MoeError> {
        let WordShape { top_k, hidden_size: hidden, intermediate_size: inner, .. } = self.shape;
        let positions = step.blocks.blocks * self.tiles[0].rows;
        step.blocks.check(self.tiles[0].rows)?;
        step.hidden_states.expect_len("hidden states", step.tokens * hidden)?;
        out.expect_len("rows of positions", positions * hidden)?;
        if self.split_inner.is_some() {
            workspace.inner.slice().expect_len("activations", positions * inner)?;
        }
        workspace.inner_parts.expect_rows(positions)?;
        self.shape.check_weights(&step.experts)?;
        if step.tokens == 0 || positions == 0 {
            return Ok(());
        }
        let rows = RowsInUse::of_step(step, top_k, positions);
        self.split.launch(stream, step.hidden_states, rows, &mut workspace.x)?;
        let blocks = |arguments: Arguments| {
            let sorted = &step.blocks;
            let arguments = arguments.slice(sorted.expert_ids).slice(sorted.num_tokens_post_padded);
            match self.form {
                WordForm::Aligned => {
                    arguments.slice(sorted.sorted_token_ids).size(step.tokens * top_k)
                }
                _ => arguments,
            }
        };
        let arguments = match &self.split_inner {
            Some(_) => Arguments::new().slice_mut(&workspace.inner.slice_mut()),
            None => Arguments::new().slice_mut(&workspace.inner_parts.parts.slice_mut()),
        };
        let arguments = self.product(Product::First, arguments, &workspace.x, step.experts.w13);
        let arguments = match &self.split_inner {
            Some(_) => blocks(arguments),
            None => blocks(arguments).size(workspace.inner_parts.rows),
        };
        let arguments = with_biases(arguments, step.experts.w13.biases);
        let grid = [self.column_blocks(Product::First), step.blocks.blocks, 1];
        // SAFETY: the arguments are the kernel's; all lengths are checked above.
        unsafe { self.kernels[0].launch(stream, grid, arguments) }?;
        if let Some(split) = &self.split_inner {
            let inner = workspace.inner.slice();
            split.launch(stream, inner, rows, &mut workspace.inner_parts)?;
        }
        let arguments = Arguments::new().slice_mut(out);
        let parts = &workspace.inner_parts;
        let arguments = self.product(Product::Second, arguments, parts, step.experts.w2);
        let grid = [self.column_blocks(Product::Second), step.blocks.blocks, 1];
        // SAFETY: as above.
        unsafe { self.kernels[1].launch(stream, grid, blocks(arguments)) }?;
        Ok(())
    }

    /// Runs both products of the direct form and the sum over each token's pairs.
    ///
    /// # Errors
    /// [`MoeError`] for more tokens than the tile has rows, slices that are too short, or a launch
    /// that fails.
    pub fn launch_direct(
        &self,
        stream: &Stream,
        step: &DirectStep<'_, A>,
        workspace: &mut WordWorkspace,
        out: &mut DirectSums<'_, A>,
    ) -> Result<(), MoeError> {
        let tokens = step.tokens;
        self.check_direct(step, workspace, out)?;
        if tokens == 0 {
            return Ok(());
        }
        let none = RowsInUse {
            sorted_token_ids: None,
            num_tokens_post_padded: None,
            count: tokens,
            rows: tokens,
        };
        self.split.launch(stream, step.hidden_states, none, &mut workspace.x)?;
        let arguments = Arguments::new().slice_mut(&workspace.inner.slice_mut());
        let arguments = self.product(Product::First, arguments, &workspace.x, step.experts.w13);
        let arguments = step.routing.ids(arguments).size(tokens);
        let arguments = with_biases(arguments, step.experts.w13.biases);
        let pairs = tokens * self.shape.top_k;
        let grid = [pairs, self.column_blocks(Product::First), 1];
        // SAFETY: the arguments are the kernel's; all lengths are checked above.
        unsafe { self.kernels[0].launch(stream, grid, arguments) }?;
        let rows = RowsInUse { rows: self.rows(tokens)[1], ..none };
        let inner = workspace.inner.slice();
        let split = self.split_inner.as_ref().expect("this is a bug: rows are not split");
        split.launch(stream, inner, rows, &mut workspace.inner_parts)?;
        let arguments = Arguments::new()
            .slice_mut(&out.out)
            .slice_mut(&out.rows)
            .slice_mut(&workspace.counters.slice_mut());
        let parts = &workspace.inner_parts;
        let arguments = self.product(Product::Second, arguments, parts, step.experts.w2);
        let arguments = step.routing.weights(step.routing.ids(arguments)).size(tokens);
        let arguments = with_biases(arguments, step.experts.w2.biases);
        let grid = [pairs, self.column_blocks(Product::Second), 1];
        // SAFETY: as above.
        unsafe { self.kernels[1].launch(stream, grid, arguments) }?;
        Ok(())
    }

    fn check_direct(
        &self,
        step: &DirectStep<'_, A>,
        workspace: &WordWorkspace,
        out: &DirectSums<'_, A>,
    ) -> Result<(), MoeError> {
        let WordShape { top_k, hidden_size, intermediate_size, .. } = self.shape;
        let (tokens, pairs) = (step.tokens, step.tokens * top_k);
        if tokens > self.tiles[0].rows {
            let allowed = format!("at most {} in this tile", self.tiles[0].rows);
            return Err(MoeError::config("tokens of a direct step", tokens, allowed));
        }
        step.hidden_states.expect_len("hidden states", tokens * hidden_size)?;
        if let WordForm::Direct { ids, .. } = self.form {
            step.routing.check(ids, pairs)?;
        }
        out.rows.expect_len("rows of pairs", pairs * hidden_size)?;
        out.out.expect_len("output hidden states", tokens * hidden_size)?;
        let [_, rows] = self.rows(tokens);
        workspace.inner.slice().expect_len("activations", rows * intermediate_size)?;
        let counters = self.column_blocks(Product::Second);
        workspace.counters.slice().expect_len("counters of columns", counters)?;
        self.shape.check_weights(&step.experts)
    }

    /// `arguments` with activations and weights.
    fn product(
        &self,
        product: Product,
        arguments: Arguments,
        x: &SplitBuffers,
        weights: WeightSlices<'_>,
    ) -> Arguments {
        let (layout, experts) = (layout(&self.shape, product), self.shape.experts);
        let WordLayout { parts, rows, .. } = layout;
        let scales = experts * layout.scales_per_expert();
        let globals = weights.scales.range(scales, experts * parts);
        let globals = globals.expect("this is a bug: lengths were not checked");
        x.arguments(arguments)
            .tensor(weights.numbers, &[experts, parts, rows, row_numbers(self.form, &layout)])
            .tensor(weights.scales, &[experts, parts, layout.scale_words(), rows])
            .slice(globals)
    }

    fn column_blocks(&self, product: Product) -> usize {
        let tile = self.tiles[product as usize];
        let layout = layout(&self.shape, product);
        (layout.parts * layout.rows).div_ceil(tile.columns)
    }
}

impl WordShape {
    /// Whether these are as many weights, scales and biases as the layer has.
    pub(in crate::grouped_gemm) fn check_weights(
        &self,
        weights: &ExpertSlices<'_>,
    ) -> Result<(), MoeError> {
        let Self { experts, hidden_size, intermediate_size, gating, .. } = *self;
        weights.check_biases(&gating, experts, [2 * intermediate_size, hidden_size])?;
        for (product, weights) in [(Product::First, weights.w13), (Product::Second, weights.w2)] {
            let layout = layout(self, product);
            let bytes = 4 * experts * layout.words_per_expert();
            weights.numbers.expect_len("words of the experts (bytes)", bytes)?;
            let scales = experts * (layout.scales_per_expert() + layout.parts);
            weights.scales.expect_len("scales of the experts", scales)?;
        }
        Ok(())
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Product {
    First,
    Second,
}

fn layout(shape: &WordShape, product: Product) -> WordLayout {
    let (hidden, inner) = (shape.hidden_size, shape.intermediate_size);
    let format: WordFormat = shape.formats[product as usize];
    match product {
        Product::First => WordLayout { format, parts: 2, rows: inner, columns: hidden },
        Product::Second => WordLayout { format, parts: 1, rows: hidden, columns: inner },
    }
}

fn spec<A: Element>(
    shape: &WordShape,
    form: WordForm,
    tile: WordTile,
    product: Product,
) -> KernelSpec {
    let layout = layout(shape, product);
    let WordLayout { format, parts, rows, .. } = layout;
    let (row_numbers, scale_words) = (row_numbers(form, &layout), layout.scale_words());
    let spec = match product {
        Product::First => entry(format, form, product),
        Product::Second => entry(format, form, product).element(A::NAME),
    };
    let spec = match form {
        WordForm::Direct { .. } | WordForm::Aligned => {
            let columns = constant(format.product_columns());
            let spec = match (format.code, format.number_bytes()) {
                (WordCode::Mxfp8, _) => spec,
                (_, 1) => spec.element("i8"),
                _ => spec.element("i32"),
            };
            let spec = spec.generics([format.kernel()]);
            spec.generics(sizes(shape, tile, product))
                .tensor("x", &[1; 4], &[-1, -1, columns, 1])
                .tensor("x_sums", &[1; 2], &[-1, 1])
                .pointers(["x_scales"])
        }
        WordForm::Widened => {
            let spec =
                spec.generics([format.kernel()]).generics(widened_sizes(shape, tile, product));
            spec.tensor("x", &[1; 3], &[-1, constant(HALVES), 1])
        }
    };
    let spec = match form {
        WordForm::Direct { shared, ids } => {
            let slots = constant(shape.top_k.next_power_of_two());
            let constants = [constant(shape.top_k), slots, i32::from(shared), ids.packed()];
            spec.generics(constants).pointers(["ids"])
        }
        WordForm::Aligned => {
            spec.pointers(["expert_ids", "num_tokens_post_padded", "sorted_token_ids"])
        }
        WordForm::Widened => spec.pointers(["expert_ids", "num_tokens_post_padded"]),
    };
    let spec = match (form, product) {
        (WordForm::Direct { .. }, Product::Second) => {
            let spec = spec.generics([i32::from(shape.gating.biases)]);
            spec.pointers(["rows_out", "counters", "weights", "biases"])
        }
        (_, Product::First) => spec.generics(gating_constants(&shape.gating)).pointers(["biases"]),
        _ => spec,
    };
    let of_part = rows * row_numbers;
    let strides = [parts * of_part, of_part, row_numbers, 1].map(constant);
    let of_part = rows * scale_words;
    let scale_strides = [parts * of_part, of_part, rows, 1].map(constant);
    spec.pointers(["out", "w_globals"])
        .tensor("w", &[1; 4], &strides)
        .tensor("w_scales", &[1; 4], &scale_strides)
        .warps(tile.warps)
        .occupancy(tile.occupancy)
        .programmatic()
}

/// Numbers that a row of weights has for the kernels of a form: words, or bytes of INT8 as they are.
fn row_numbers(form: WordForm, layout: &WordLayout) -> usize {
    match form {
        WordForm::Direct { .. } | WordForm::Aligned => {
            4 * layout.row_words() / layout.format.number_bytes()
        }
        WordForm::Widened => layout.row_words(),
    }
}

/// The constants that products in parts take after the format, in their order.
fn sizes(shape: &WordShape, tile: WordTile, product: Product) -> impl Iterator<Item = i32> {
    let layout = layout(shape, product);
    let format = layout.format;
    let (copies, columns) = (format.copies(), format.product_columns());
    let of_format = [
        format.products_per_plane(),
        copies,
        copies * tile.rows,
        format.depth() / 4,
        columns / 4,
        columns,
        tile.columns * columns / 4,
        tile.columns * columns,
        format.scale_words_per_plane(),
        4 * layout.row_words() / format.number_bytes(),
        layout.rows,
        shape.experts,
    ];
    of_tile(tile, product).chain(of_format).map(constant)
}

/// The same for products of bfloat16 numbers.
fn widened_sizes(shape: &WordShape, tile: WordTile, product: Product) -> impl Iterator<Item = i32> {
    let layout = layout(shape, product);
    let scale_words = tile.columns * layout.format.scale_words_per_plane();
    let of_halves = (product == Product::First).then_some([tile.columns / 8, tile.columns / 4]);
    let of_format = [
        tile.columns * 32,
        tile.columns * 128,
        tile.columns * HALVES,
        scale_words,
        4 * scale_words,
        layout.row_words(),
        layout.rows,
        shape.experts,
    ];
    let of_halves = of_halves.into_iter().flatten();
    of_tile(tile, product).chain(of_halves).chain(of_format).map(constant)
}

/// Rows and weight rows of a tile, and how many of these each part has.
fn of_tile(tile: WordTile, product: Product) -> impl Iterator<Item = usize> {
    let of_part = (product == Product::First).then_some(tile.columns / 2);
    [tile.rows, tile.columns].into_iter().chain(of_part)
}
