//! Loading and launching.

use artel_device::cuda::{
    Architecture, Arguments, Assembly, DeviceSlice, DeviceSliceMut, Kernel, KernelSpec, Kernels,
    Stream,
};
use artel_moe::quant::activations::ScaleBounds;
use half::bf16;

use super::attention::{attention_bytes, of_attention};
use super::norm::of_norm;
use super::text::{Cut, GROUP};
use crate::LayersError;
use crate::attention::AttentionShape;
use crate::attention::decode::Cut as KeyCut;
use crate::attention::decode::cuda::DecodeParts;
use crate::attention::decode::single::cuda::SingleAttention;
use crate::linear::cuda::{LinearNumbers, LinearShape, LinearWeight, LinearWorkspace};

/// Whether there are such kernels for weights of `shape` at all.
fn is_known(kernels: &Kernels, shape: &LinearShape) -> bool {
    kernels.architecture() == Architecture::Sm90
        && shape.numbers == LinearNumbers::Fp8Block128
        && !shape.bias
}

fn spec(name: &'static str, text: String, cut: &Cut, shared_bytes: usize) -> KernelSpec {
    let assembly = Assembly { text: text.into(), threads: cut.threads(), shared_bytes };
    let Cut { outputs, inputs, across, groups, down, tiles, blocks } = *cut;
    let sizes = [outputs, inputs, across, groups, down, tiles, blocks].map(|size| size as i32);
    KernelSpec::assembly(name, assembly, "project", Architecture::Sm90)
        .generics(sizes)
        .programmatic()
}

fn check_weight(weight: &LinearWeight<'_>, cut: &Cut) -> Result<(), LayersError> {
    let scales = cut.outputs.div_ceil(GROUP) * cut.inputs / GROUP;
    weight.numbers.expect_len("the weight of a linear map (bytes)", cut.outputs * cut.inputs)?;
    weight.scales.expect_len("scales of the weight of a linear map", scales)?;
    Ok(())
}

/// The norm of one row of the residual stream, with what is added to it, and its product.
#[derive(Debug, Clone)]
pub struct ProjectNorm {
    kernel: Kernel,
    cut: Cut,
    epsilon: f32,
}

/// The row and what is added.
#[derive(Debug)]
pub struct ProjectNormRows<'a> {
    /// The residual stream `[H]`, which stays as it is: other blocks may still read it.
    pub hidden: DeviceSlice<'a, f32>,
    /// What is added, `[H]`.
    pub delta: DeviceSlice<'a, bf16>,
    /// Where the sum goes, `[H]`.
    pub sums: DeviceSliceMut<'a, f32>,
    /// Weights of the norm, `[H]`.
    pub norm: DeviceSlice<'a, f32>,
}

impl ProjectNorm {
    /// Asks for the kernel; `None` where there is none for such weights.
    ///
    /// # Errors
    /// [`LayersError::Cuda`] when the kernel is missing and cannot be made.
    pub fn load(
        kernels: &mut Kernels,
        shape: LinearShape,
        epsilon: f32,
    ) -> Result<Option<Self>, LayersError> {
        let Some(cut) = Cut::whole(shape.outputs, shape.inputs) else { return Ok(None) };
        if !is_known(kernels, &shape) {
            return Ok(None);
        }
        let spec = spec("linear/project_norm", of_norm(&cut), &cut, cut.shared_bytes());
        Ok(Some(Self { kernel: kernels.get(&spec)?, cut, epsilon }))
    }

    /// `out` `[N]` = weight x codes of norm(hidden + delta), rounded to bfloat16.
    ///
    /// # Errors
    /// [`LayersError::Cuda`] when a slice is too short or the launch fails.
    pub fn launch(
        &self,
        stream: &Stream,
        rows: &ProjectNormRows<'_>,
        weight: LinearWeight<'_>,
        out: &mut DeviceSliceMut<'_, bf16>,
    ) -> Result<(), LayersError> {
        check_weight(&weight, &self.cut)?;
        rows.hidden.expect_len("the residual stream", self.cut.inputs)?;
        rows.delta.expect_len("what is added to the residual", self.cut.inputs)?;
        rows.sums.expect_len("the sum of the residual", self.cut.inputs)?;
        rows.norm.expect_len("weights of an RMS norm", self.cut.inputs)?;
        out.expect_len("the output of a linear map", self.cut.outputs)?;
        let bounds = ScaleBounds::HIDDEN;
        let arguments = Arguments::new()
            .slice(rows.hidden)
            .slice(rows.delta)
            .slice_mut(&rows.sums)
            .slice(rows.norm)
            .slice(weight.numbers)
            .slice(weight.scales)
            .slice_mut(out)
            .f32(self.epsilon)
            .f32(bounds.least)
            .f32(bounds.most);
        // SAFETY: the arguments are the kernel's, with the lengths checked above.
        unsafe { self.kernel.launch(stream, [self.cut.blocks, 1, 1], arguments) }?;
        Ok(())
    }
}

/// The sum of the parts that [`SingleAttention`] left, and its product in parts.
#[derive(Debug, Clone)]
pub struct ProjectAttention {
    kernel: Kernel,
    cut: Cut,
    heads: usize,
    keys: KeyCut,
}

impl ProjectAttention {
    /// Asks for the kernel; `None` where there is none for such weights or heads. The result comes in
    /// `parts` parts.
    ///
    /// # Errors
    /// [`LayersError::Cuda`] when the kernel is missing and cannot be made.
    pub fn load(
        kernels: &mut Kernels,
        shape: LinearShape,
        attention: &AttentionShape,
        parts: usize,
    ) -> Result<Option<Self>, LayersError> {
        let Some(cut) = Cut::in_parts(shape.outputs, shape.inputs, parts) else { return Ok(None) };
        let heads = attention.query_heads;
        let is_heads = attention.value_dim == GROUP && heads * GROUP == shape.inputs;
        if !is_known(kernels, &shape) || !is_heads {
            return Ok(None);
        }
        let keys = SingleAttention::cut(attention);
        let (text, bytes) = (of_attention(&cut, keys), attention_bytes(&cut, keys));
        let KeyCut { parts_max, step_keys, part_keys_min } = keys;
        let spec = spec("linear/project_attention", text, &cut, bytes)
            .generics([parts_max, step_keys, part_keys_min].map(|size| size as i32));
        Ok(Some(Self { kernel: kernels.get(&spec)?, cut, heads, keys }))
    }

    /// Leaves weight x codes of the sum of the parts of one token, in the parts of `workspace`, one row each.
    ///
    /// # Errors
    /// [`LayersError::Cuda`] when a slice is too short or the launch fails.
    ///
    /// # Panics
    /// When attention has sinks.
    pub fn launch(
        &self,
        stream: &Stream,
        attention: &DecodeParts<'_>,
        weight: LinearWeight<'_>,
        workspace: &mut LinearWorkspace,
    ) -> Result<(), LayersError> {
        check_weight(&weight, &self.cut)?;
        assert!(attention.sinks.is_none(), "this is a bug: sinks have no kernel here");
        let rows = self.heads * self.keys.parts_max;
        attention.sums.expect_len("sums of parts of attention", rows * GROUP)?;
        attention.largests.expect_len("largest logits of parts", rows)?;
        attention.totals.expect_len("weights of parts", rows)?;
        attention.lengths.expect_len("lengths of sequences", 1)?;
        let sums = workspace.sums_mut();
        sums.expect_len("sums of parts", self.cut.parts() * self.cut.outputs)?;
        let bounds = ScaleBounds::HIDDEN;
        let arguments = Arguments::new()
            .slice(attention.sums)
            .slice(attention.largests)
            .slice(attention.totals)
            .slice(attention.lengths)
            .slice(weight.numbers)
            .slice(weight.scales)
            .slice_mut(&sums)
            .i32(attention.window)
            .f32(bounds.least)
            .f32(bounds.most);
        let grid = [self.cut.blocks, self.cut.parts(), 1];
        // SAFETY: the arguments are the kernel's, with the lengths checked above.
        unsafe { self.kernel.launch(stream, grid, arguments) }?;
        Ok(())
    }
}
