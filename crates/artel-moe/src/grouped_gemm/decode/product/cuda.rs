//! One product of the aligned form, for layers whose activation is a step of its own.

use std::marker::PhantomData;

use artel_device::cuda::{
    Arguments, DeviceSlice, DeviceSliceMut, Kernel, KernelSpec, Kernels, Stream,
};

use super::super::DecodeTile;
use super::super::arguments::{BlockSlices, WeightSlices, constant};
use super::super::fp8_aligned::cuda::fp8_aligned;
use super::super::plain_aligned::cuda::plain_aligned;
use super::super::shape::tile_limit;
use crate::MoeError;
use crate::quant::Element;
use crate::quant::activations::Granularity;

/// Whose rows are multiplied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RowsFrom {
    /// Those of tokens, each with so many experts: the first product.
    Tokens {
        /// `K` of a token.
        top_k: usize,
    },
    /// Those of positions: the second product.
    Positions,
}

/// What is multiplied.
#[derive(Debug, Clone, Copy)]
pub struct ProductStep<'a> {
    /// Rows `[rows, K]`: numbers of the layer, or FP8.
    pub x: DeviceSlice<'a, u8>,
    /// Scales of FP8 rows: `[K / 128, rows]`, or `[1, rows]` where a scale of the weights covers all of
    /// `K`.
    pub x_scales: DeviceSlice<'a, f32>,
    /// Rows of `x`.
    pub rows: usize,
    /// `T * K`.
    pub pairs: usize,
    /// Blocks of as many rows as the tile has.
    pub blocks: BlockSlices<'a>,
    /// `[E, N, K]`.
    pub weights: WeightSlices<'a>,
}

macro_rules! product {
    ($(#[$docs:meta])* $name:ident, $scales:expr) => {
        $(#[$docs])*
        #[derive(Debug, Clone)]
        pub struct $name<A> {
            product: Product,
            element: PhantomData<A>,
        }

        impl<A: Element> $name<A> {
            /// Asks for the kernel of `experts` matrices of `features` `[N, K]`.
            ///
            /// # Errors
            /// [`MoeError::Config`] for a tile that does not fit, [`MoeError::Cuda`] when the kernel
            /// is missing and cannot be made.
            pub fn load(
                kernels: &mut Kernels,
                experts: usize,
                features: [usize; 2],
                scale_block: Option<[usize; 2]>,
                from: RowsFrom,
                tile: DecodeTile,
            ) -> Result<Self, MoeError> {
                let product = Product { experts, features, scale_block, from, tile, kernel: None };
                let product = product.load(kernels, A::NAME, $scales)?;
                Ok(Self { product, element: PhantomData })
            }

            /// Multiplies; row `p` of `out` `[positions, N]` is position `p`.
            ///
            /// # Errors
            /// [`MoeError`] for slices that are too short or a launch that fails.
            pub fn launch(
                &self,
                stream: &Stream,
                step: &ProductStep<'_>,
                out: &mut DeviceSliceMut<'_, A>,
            ) -> Result<(), MoeError> {
                self.product.launch::<A>(stream, step, out, $scales)
            }
        }
    };
}
product!(
    /// Rows and weights of the same plain numbers.
    PlainProduct, Scales::None
);
product!(
    /// FP8 rows and weights with scales.
    Fp8Product, Scales::Blocks
);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Scales {
    None,
    Blocks,
}

#[derive(Debug, Clone)]
struct Product {
    experts: usize,
    features: [usize; 2],
    scale_block: Option<[usize; 2]>,
    from: RowsFrom,
    tile: DecodeTile,
    kernel: Option<Kernel>,
}

impl Product {
    fn load(self, kernels: &mut Kernels, element: &str, scales: Scales) -> Result<Self, MoeError> {
        if self.scale_block.is_some() != (scales != Scales::None) {
            let allowed = "a scale block for FP8 weights, none for others";
            return Err(MoeError::config("scales", format!("{:?}", self.scale_block), allowed));
        }
        let [_, features_in] = self.features;
        self.tile.check(self.scale_block.map(|block| tile_limit(block, features_in)))?;
        let kernel = kernels.get(&self.spec(element, scales))?;
        Ok(Self { kernel: Some(kernel), ..self })
    }

    fn spec(&self, element: &str, scales: Scales) -> KernelSpec {
        let (operation, entry) = ("grouped_gemm/aligned_product", "aligned_product");
        let [scale_rows, scale_columns] = self.scale_block.unwrap_or([1, 1]).map(constant);
        let [features_out, features_in] = self.features.map(constant);
        let spec = match scales {
            Scales::None => {
                KernelSpec::new(operation, plain_aligned::__module_ast_self, "plain_aligned", entry)
            }
            Scales::Blocks => {
                KernelSpec::new(operation, fp8_aligned::__module_ast_self, "fp8_aligned", entry)
            }
        };
        let sizes = [self.tile.rows, self.tile.columns, self.tile.depth].map(constant);
        let spec = spec.element(element).generics(sizes).generics([features_out, features_in]);
        let spec = match scales {
            Scales::None => spec,
            Scales::Blocks => spec.generics([scale_rows, scale_columns]),
        };
        let top_k = match self.from {
            RowsFrom::Tokens { top_k } => constant(top_k),
            RowsFrom::Positions => 0,
        };
        let spec = match scales {
            Scales::None => spec,
            Scales::Blocks => spec.pointers(["x_scales", "w_scales"]),
        };
        let matrix = features_out * features_in;
        spec.generics([constant(self.experts), top_k])
            .pointers(["out", "x", "sorted_token_ids", "expert_ids", "num_tokens_post_padded"])
            .tensor("w", &[1; 4], &[matrix, matrix, features_in, 1])
            .warps(self.tile.warps)
            .occupancy(self.tile.occupancy)
            .programmatic()
    }

    fn launch<A: Element>(
        &self,
        stream: &Stream,
        step: &ProductStep<'_>,
        out: &mut DeviceSliceMut<'_, A>,
        scales: Scales,
    ) -> Result<(), MoeError> {
        let ([features_out, features_in], positions) =
            (self.features, step.blocks.blocks * self.tile.rows);
        let rows = match self.from {
            RowsFrom::Tokens { top_k } => step.pairs.div_ceil(top_k.max(1)),
            RowsFrom::Positions => positions,
        };
        let (bytes, row_scales) = match scales {
            Scales::None => (size_of::<A>(), 0),
            Scales::Blocks => {
                let [_, scale_columns] = self.scale_block.unwrap_or([1, 1]);
                let shared = Granularity::under(scale_columns, features_in);
                (1, shared.groups(features_in) * step.rows)
            }
        };
        MoeError::check_shape("rows of a product", rows.max(step.rows), step.rows)?;
        step.blocks.check(self.tile.rows)?;
        step.weights.check::<A>(self.experts, self.features, self.scale_block)?;
        step.x.expect_len("rows of a product (bytes)", step.rows * features_in * bytes)?;
        step.x_scales.expect_len("scales of the rows", row_scales)?;
        out.expect_len("rows of positions", positions * features_out)?;
        constant(step.rows * features_in);
        if positions == 0 || step.pairs == 0 {
            return Ok(());
        }
        let mut arguments = Arguments::new().slice_mut(out).slice(step.x);
        if scales != Scales::None {
            arguments = arguments.slice(step.x_scales);
        }
        arguments =
            arguments.tensor(step.weights.numbers, &[self.experts, 1, features_out, features_in]);
        if scales != Scales::None {
            arguments = arguments.slice(step.weights.scales);
        }
        arguments = arguments
            .slice(step.blocks.sorted_token_ids)
            .slice(step.blocks.expert_ids)
            .slice(step.blocks.num_tokens_post_padded)
            .size(step.pairs);
        if scales == Scales::Blocks {
            arguments = arguments.size(step.rows);
        }
        let grid = [features_out.div_ceil(self.tile.columns), step.blocks.blocks, 1];
        let kernel = self.kernel.as_ref().expect("this is a bug: a product that was not loaded");
        // SAFETY: the arguments are the kernel's; all lengths are compared above.
        unsafe { kernel.launch(stream, grid, arguments) }?;
        Ok(())
    }
}
