//! Feed on the GPU. Bytes: 16 a row.

// The launchers that the macro generates carry no documentation.
#![allow(missing_docs)]

use artel_device::cuda::{
    Arguments, DeviceSlice, DeviceSliceMut, Kernel, KernelSpec, Kernels, Stream,
};

use crate::LayersError;

#[cutile::module]
mod kernels {
    use artel_moe::cuda::device_code::*;
    use cutile::core::*;

    /// Grid: stretches of `B` rows.
    #[cutile::entry(unchecked_accesses = true)]
    pub unsafe fn feed<const B: i32, const PDL: i32>(
        ids: *mut i32,
        sources: *mut i32,
        chosen: *mut i32,
        rows: i32,
        chosen_rows: i32,
    ) {
        // SAFETY: launched as its specification says, after whatever chose the tokens.
        let ready: Token = unsafe { hand_over::<PDL>() };
        let row: Tile<i32, { [B] }> = count_from::<B>(get_tile_block_id().0 * B);
        let is_row: Tile<bool, { [B] }> = below(row, rows);
        // SAFETY: there is a source for each row.
        let source: Tile<i32, { [B] }> = unsafe { gather(sources, row, is_row, -1i32, ready) };
        let none: Tile<i32, { [B] }> = constant(-1i32, const_shape![B]);
        let is_fed: Tile<bool, { [B] }> = is_row & gt_tile(source, none);
        let exists: Tile<bool, { [B] }> = is_fed & below(source, chosen_rows);
        // SAFETY: tokens that exist.
        let id: Tile<i32, { [B] }> = unsafe { gather(chosen, source, exists, -1i32, ready) };
        let id: Tile<i32, { [B] }> = select(exists, id, none);
        // SAFETY: there is an id for each row.
        unsafe { scatter(ids, row, is_fed, id, ready) };
    }
}

/// Rows of a block.
const ROWS: usize = 256;

/// The kernel.
#[derive(Debug, Clone)]
pub struct Feed {
    kernel: Kernel,
}

impl Feed {
    /// Asks for the kernel.
    ///
    /// # Errors
    /// [`LayersError::Cuda`] when it is missing and cannot be made.
    pub fn load(kernels: &mut Kernels) -> Result<Self, LayersError> {
        let module = kernels::__module_ast_self;
        let spec = KernelSpec::new("feed/feed", module, "kernels", "feed")
            .generics([ROWS as i32])
            .pointers(["ids", "sources", "chosen"])
            .warps(4)
            .programmatic();
        Ok(Self { kernel: kernels.get(&spec)? })
    }

    /// Overwrites `ids` with tokens of `chosen` where `sources` `[R]` names one; one beyond them gives
    /// -1.
    ///
    /// # Errors
    /// [`LayersError::Cuda`] when there are fewer ids than sources or the launch fails.
    pub fn launch(
        &self,
        stream: &Stream,
        ids: &mut DeviceSliceMut<'_, i32>,
        sources: DeviceSlice<'_, i32>,
        chosen: DeviceSlice<'_, i32>,
    ) -> Result<(), LayersError> {
        let rows = sources.len();
        ids.expect_len("token ids to feed", rows)?;
        let arguments = Arguments::new()
            .slice_mut(ids)
            .slice(sources)
            .slice(chosen)
            .size(rows)
            .size(chosen.len());
        // SAFETY: the arguments are the kernel's; sources beyond the chosen tokens are not followed.
        unsafe { self.kernel.launch(stream, [rows.div_ceil(ROWS), 1, 1], arguments) }?;
        Ok(())
    }
}
