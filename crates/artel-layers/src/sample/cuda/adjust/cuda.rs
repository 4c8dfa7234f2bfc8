//! Launches that change logits, and that measure what was chosen of them.

use std::marker::PhantomData;

use artel_device::cuda::{Arguments, DeviceSlice, DeviceSliceMut, Kernel, Kernels, Stream};
use artel_moe::quant::Element;

use crate::LayersError;
use crate::sample::cuda::{ENTRIES, MEASURED_ROWS, RowAdjustments, RowSlices, spec};

/// Biases and penalties, and probabilities of tokens chosen under them.
#[derive(Debug, Clone)]
pub(crate) struct Adjust<L> {
    adjust: Kernel,
    measure: Kernel,
    vocabulary: usize,
    element: PhantomData<L>,
}

impl<L: Element> Adjust<L> {
    pub(crate) fn load(kernels: &mut Kernels, vocabulary: usize) -> Result<Self, LayersError> {
        let adjust = spec("adjust_entries").generics([ENTRIES as i32]).pointers([
            "starts",
            "ids",
            "counts",
            "biases",
            "penalties",
        ]);
        let measure = spec("measure_tokens")
            .element(L::NAME)
            .generics([MEASURED_ROWS as i32])
            .pointers(["normalizers", "tokens", "logprobs"]);
        let (adjust, measure) = (kernels.get(&adjust)?, kernels.get(&measure)?);
        Ok(Self { adjust, measure, vocabulary, element: PhantomData })
    }

    /// Changes the logits of the entries of each row.
    pub(crate) fn adjust(
        &self,
        stream: &Stream,
        rows: usize,
        adjustments: &RowAdjustments<'_>,
        logits: &mut DeviceSliceMut<'_, f32>,
    ) -> Result<(), LayersError> {
        let RowAdjustments { starts, ids, counts, biases, penalties, .. } = *adjustments;
        starts.expect_len("starts of adjustments", rows + 1)?;
        counts.expect_len("counts of adjusted tokens", ids.len())?;
        biases.expect_len("biases of adjusted tokens", ids.len())?;
        penalties.expect_len("penalties of rows", 3 * rows)?;
        logits.expect_len("logits to adjust", rows * self.vocabulary)?;
        let arguments = Arguments::new()
            .slice_mut(logits)
            .slice(starts)
            .slice(ids)
            .slice(counts)
            .slice(biases)
            .slice(penalties)
            .size(self.vocabulary);
        // SAFETY: the arguments are the kernel's, with the lengths checked above; the caller vouches
        // for the starts.
        unsafe { self.adjust.launch(stream, [rows, 1, 1], arguments) }?;
        Ok(())
    }

    /// Writes the probabilities of the tokens of all rows.
    pub(crate) fn measure(
        &self,
        stream: &Stream,
        logits: DeviceSlice<'_, L>,
        rows: &mut RowSlices<'_>,
    ) -> Result<(), LayersError> {
        let count = logits.len() / self.vocabulary;
        rows.check(count)?;
        let arguments = Arguments::new()
            .slice(logits)
            .slice_mut(&rows.normalizers)
            .slice_mut(&rows.tokens)
            .slice_mut(&rows.logprobs)
            .size(count)
            .size(self.vocabulary);
        // SAFETY: the arguments are the kernel's, with the lengths checked above.
        unsafe { self.measure.launch(stream, [count.div_ceil(MEASURED_ROWS), 1, 1], arguments) }?;
        Ok(())
    }
}
