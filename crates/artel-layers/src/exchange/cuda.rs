//! Exchange on the GPU. Bytes: twice those of the words. Words of the host are read before the kernel waits
//! for the one ahead of it.

// The launchers that the macro generates carry no documentation.
#![allow(missing_docs)]

use std::fmt;

use artel_device::cuda::{
    Arguments, Context, DeviceSlice, DeviceSliceMut, Kernel, KernelSpec, Kernels, PinnedBuffer,
    Stream,
};

use super::Piece;
use crate::LayersError;

#[cutile::module]
mod kernels {
    use artel_moe::cuda::device_code::*;
    use cutile::core::*;

    /// Copies pieces of four words each: buffer, start, length, nothing. Grid: stretches of `B` words,
    /// pieces.
    #[cutile::entry(unchecked_accesses = true)]
    pub unsafe fn bring<const B: i32, const PDL: i32>(
        pieces: *mut i32,
        from: *mut i32,
        from_second: *mut i32,
        to: *mut i32,
        to_second: *mut i32,
    ) {
        let (stretch, piece, _): (i32, i32, i32) = get_tile_block_id();
        // The host has written all words before it launched.
        let written: Token = new_token_unordered();
        // SAFETY: four words a piece.
        let buffer: i32 = unsafe { load_i32(pieces, 4i32 * piece, written) };
        // SAFETY: as above.
        let start: i32 = unsafe { load_i32(pieces, 4i32 * piece + 1i32, written) };
        // SAFETY: as above.
        let len: i32 = unsafe { load_i32(pieces, 4i32 * piece + 2i32, written) };
        let place: Tile<i32, { [B] }> = count_from::<B>(start + stretch * B);
        let first: Tile<bool, { [B] }> = below(place, start + len * (1i32 - buffer));
        let second: Tile<bool, { [B] }> = below(place, start + len * buffer);
        // SAFETY: pieces lie inside their buffer on both sides.
        let word: Tile<i32, { [B] }> = unsafe { gather(from, place, first, 0i32, written) };
        // SAFETY: as above.
        let word_of_second: Tile<i32, { [B] }> =
            unsafe { gather(from_second, place, second, 0i32, written) };
        // SAFETY: launched as its specification says, after whatever read the targets.
        let ready: Token = unsafe { hand_over::<PDL>() };
        // SAFETY: as above.
        unsafe { scatter(to, place, first, word, ready) };
        // SAFETY: as above.
        unsafe { scatter(to_second, place, second, word_of_second, ready) };
    }

    /// Copies `rows` tokens and their probabilities. Grid: stretches of `B` rows.
    #[cutile::entry(unchecked_accesses = true)]
    pub unsafe fn tell<const B: i32, const PDL: i32>(
        tokens: *mut i32,
        logprobs: *mut f32,
        to_tokens: *mut i32,
        to_logprobs: *mut f32,
        rows: i32,
    ) {
        // SAFETY: launched as its specification says, after whatever chose the tokens.
        let ready: Token = unsafe { hand_over::<PDL>() };
        let row: Tile<i32, { [B] }> = count_from::<B>(get_tile_block_id().0 * B);
        let is_row: Tile<bool, { [B] }> = below(row, rows);
        // SAFETY: both sides have `rows` of both.
        let token: Tile<i32, { [B] }> = unsafe { gather(tokens, row, is_row, -1i32, ready) };
        // SAFETY: as above.
        let logprob: Tile<f32, { [B] }> = unsafe { gather(logprobs, row, is_row, 0.0f32, ready) };
        // SAFETY: as above.
        unsafe { scatter(to_tokens, row, is_row, token, ready) };
        // SAFETY: as above.
        unsafe { scatter(to_logprobs, row, is_row, logprob, ready) };
    }
}

/// Words of a piece that a block copies.
const WORDS: usize = 512;

/// Rows of a block.
const ROWS: usize = 256;

/// A list of pieces that the device can read.
pub struct Pieces {
    list: Vec<Piece>,
    words: PinnedBuffer<i32>,
}

impl Pieces {
    /// Room for `most` pieces.
    ///
    /// # Errors
    /// [`LayersError::Cuda`] when the system has no such memory left.
    pub fn new(context: &Context, most: usize) -> Result<Self, LayersError> {
        let words = PinnedBuffer::zeroed(context, 4 * most)?;
        Ok(Self { list: Vec::with_capacity(most), words })
    }

    /// Puts `pieces` in place of what it lists. The launch that read the earlier list has ended.
    ///
    /// # Errors
    /// [`LayersError::Shape`] for more than there is room for.
    pub fn set(&mut self, pieces: impl IntoIterator<Item = Piece>) -> Result<(), LayersError> {
        self.list.clear();
        self.list.extend(pieces.into_iter().filter(|piece| piece.len > 0));
        let most = self.words.as_slice().len() / 4;
        LayersError::check_shape("pieces of an exchange", self.list.len().max(most), most)?;
        let places = self.words.as_mut_slice().chunks_exact_mut(4);
        for (place, &Piece { buffer, start, len }) in places.zip(&self.list) {
            place.copy_from_slice(&[buffer as i32, start as i32, len as i32, 0]);
        }
        Ok(())
    }
}

impl fmt::Debug for Pieces {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_list().entries(&self.list).finish()
    }
}

/// The kernels.
#[derive(Debug, Clone)]
pub struct Exchange {
    bring: Kernel,
    tell: Kernel,
}

impl Exchange {
    /// Asks for the kernels.
    ///
    /// # Errors
    /// [`LayersError::Cuda`] when one is missing and cannot be made.
    pub fn load(kernels: &mut Kernels) -> Result<Self, LayersError> {
        let spec = |entry, size: usize| {
            let module = kernels::__module_ast_self;
            KernelSpec::new("exchange", module, "kernels", entry).generics([size as i32])
        };
        let bring = spec("bring", WORDS)
            .pointers(["pieces", "from", "from_second", "to", "to_second"])
            .warps(4)
            .programmatic();
        let tell = spec("tell", ROWS)
            .pointers(["tokens", "logprobs", "to_tokens", "to_logprobs"])
            .warps(4)
            .programmatic();
        Ok(Self { bring: kernels.get(&bring)?, tell: kernels.get(&tell)? })
    }

    /// Brings pieces of two buffers of the host to the same places of two of the device.
    ///
    /// # Safety
    /// `pieces` and `from` stay as they are, and alive, until the launch has ended.
    ///
    /// # Errors
    /// [`LayersError::Cuda`] when a piece leaves a buffer or the launch fails.
    pub unsafe fn bring(
        &self,
        stream: &Stream,
        pieces: &Pieces,
        from: [&PinnedBuffer<i32>; 2],
        to: [&mut DeviceSliceMut<'_, i32>; 2],
    ) -> Result<(), LayersError> {
        // SAFETY: the caller keeps all of it.
        let (list, from) =
            unsafe { (pieces.words.on_device(), from.map(|words| words.on_device())) };
        for &Piece { buffer, start, len } in &pieces.list {
            from[buffer].expect_len("words of the host", start + len)?;
            to[buffer].expect_len("words of the device", start + len)?;
        }
        let Some(longest) = pieces.list.iter().map(|piece| piece.len).max() else {
            return Ok(());
        };
        let arguments = Arguments::new().slice(list).slice(from[0]).slice(from[1]);
        let arguments = arguments.slice_mut(to[0]).slice_mut(to[1]);
        let grid = [longest.div_ceil(WORDS), pieces.list.len(), 1];
        // SAFETY: the arguments are the kernel's, with the lengths checked above.
        unsafe { self.bring.launch(stream, grid, arguments) }?;
        Ok(())
    }

    /// Tells the host the tokens of all rows and their probabilities.
    ///
    /// # Safety
    /// Nobody reads, writes or frees the places of the host until the launch has ended.
    ///
    /// # Errors
    /// [`LayersError::Cuda`] when there are not enough places or the launch fails.
    pub unsafe fn tell(
        &self,
        stream: &Stream,
        (tokens, logprobs): (DeviceSlice<'_, i32>, DeviceSlice<'_, f32>),
        (to_tokens, to_logprobs): (&mut PinnedBuffer<i32>, &mut PinnedBuffer<f32>),
    ) -> Result<(), LayersError> {
        let rows = tokens.len();
        logprobs.expect_len("probabilities of chosen tokens", rows)?;
        // SAFETY: the caller leaves them alone.
        let (to_tokens, to_logprobs) =
            unsafe { (to_tokens.on_device_mut(), to_logprobs.on_device_mut()) };
        to_tokens.expect_len("places of tokens", rows)?;
        to_logprobs.expect_len("places of probabilities", rows)?;
        let arguments = Arguments::new().slice(tokens).slice(logprobs);
        let arguments = arguments.slice_mut(&to_tokens).slice_mut(&to_logprobs).size(rows);
        // SAFETY: the arguments are the kernel's, with the lengths checked above.
        unsafe { self.tell.launch(stream, [rows.div_ceil(ROWS), 1, 1], arguments) }?;
        Ok(())
    }
}
