//! Loading and launching.

use std::marker::PhantomData;

use artel_device::cuda::{
    Architecture, Arguments, Assembly, DeviceSlice, DeviceSliceMut, Kernel, KernelSpec, Kernels,
    Stream, TensorAxis, TensorMap,
};

use super::text::{Sizes, source};
use super::{BLOCK_ROWS, DEPTH, THREADS, check};
use crate::MoeError;
use crate::grouped_gemm::prefill::PrefillForm;
use crate::grouped_gemm::prefill::cuda::{Blocks, HalfElement};
use crate::weights::StackLayout;

/// One product in one 16-bit format, for blocks of [`BLOCK_ROWS`] rows.
#[derive(Debug, Clone)]
pub struct WarpgroupGemm<A> {
    kernel: Kernel,
    sizes: Sizes,
    element: PhantomData<A>,
}

impl<A: HalfElement> WarpgroupGemm<A> {
    /// Asks for the kernel that multiplies by weights of `layout`.
    ///
    /// # Errors
    /// [`MoeError`] when there is none for the weights, or it is missing and cannot be made.
    pub fn load(
        kernels: &mut Kernels,
        layout: &StackLayout,
        form: PrefillForm,
    ) -> Result<Self, MoeError> {
        check(layout, form)?;
        let StackLayout { experts, rows, columns, .. } = *layout;
        let parts = form.parts();
        let sizes = Sizes { experts, features: rows / parts, columns, parts, element: A::NAME };
        let assembly = Assembly {
            text: source(&sizes).into(),
            threads: THREADS,
            shared_bytes: sizes.shared_bytes(),
        };
        let generics = [experts, sizes.features, columns, parts].map(|size| size as i32);
        let name = "grouped_gemm/warpgroup";
        let spec = KernelSpec::assembly(name, assembly, "multiply", Architecture::Sm90)
            .element(A::NAME)
            .generics(generics)
            .programmatic();
        Ok(Self { kernel: kernels.get(&spec)?, sizes, element: PhantomData })
    }

    /// `out` `[M, N]` = `rows` `[M, K]` x `weights` `[E, N, K]`, or `[M, N / 2]` where the halves are
    /// gate and up; `M` is a multiple of [`BLOCK_ROWS`]. The blocks of an expert are neighbours, as
    /// an assignment leaves them. Rows of a block of no expert become zeros.
    ///
    /// # Errors
    /// [`MoeError::Cuda`] when a slice has another size or the launch fails.
    pub fn launch(
        &self,
        stream: &Stream,
        blocks: Blocks<'_>,
        rows: DeviceSlice<'_, A>,
        weights: DeviceSlice<'_, A>,
        out: &mut DeviceSliceMut<'_, A>,
    ) -> Result<(), MoeError> {
        let Sizes { experts, features, columns, parts, .. } = self.sizes;
        let positions = blocks.positions(out.len(), features, BLOCK_ROWS)?;
        rows.expect_len("rows", positions * columns)?;
        weights.expect_len("weights", experts * parts * features * columns)?;
        if positions == 0 {
            return Ok(());
        }
        let row_map = TensorMap::new(
            rows,
            &[
                TensorAxis { len: columns, stride: 1, of_box: DEPTH },
                TensorAxis { len: positions, stride: columns, of_box: BLOCK_ROWS },
            ],
        )?;
        let arguments = Arguments::new()
            .tensor_map(&self.weight_map(weights)?)
            .tensor_map(&row_map)
            .slice_mut(out)
            .slice(blocks.expert_ids)
            .slice(blocks.num_tokens_post_padded);
        let tiles = positions / BLOCK_ROWS * self.sizes.column_tiles();
        let grid = [tiles.min(stream.context().multiprocessors()?), 1, 1];
        // SAFETY: the arguments are the kernel's; the sizes of all were checked, rows are stored
        // within blocks in use, and what a box has over the edges of its tensor is not read.
        unsafe { self.kernel.launch(stream, grid, arguments) }?;
        Ok(())
    }

    /// Groups of 8 features, gates and ups in turn.
    fn weight_map(&self, weights: DeviceSlice<'_, A>) -> Result<TensorMap, MoeError> {
        let Sizes { experts, features, columns, parts, .. } = self.sizes;
        let groups = self.sizes.tile_features() / 8;
        let axes = [
            TensorAxis { len: columns, stride: 1, of_box: DEPTH },
            TensorAxis { len: 8, stride: columns, of_box: 8 },
            TensorAxis { len: parts, stride: features * columns, of_box: parts },
            TensorAxis { len: features / 8, stride: 8 * columns, of_box: groups },
            TensorAxis { len: experts, stride: parts * features * columns, of_box: 1 },
        ];
        Ok(TensorMap::new(weights, &axes)?)
    }
}
