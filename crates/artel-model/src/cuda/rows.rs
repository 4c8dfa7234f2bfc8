//! Rows of a step between its launches, for all layers.

use artel_device::cuda::{Context, DeviceBuffer};
use artel_layers::attention::AttentionShape;
use artel_layers::attention::decode::cuda::DecodeWorkspace;
use artel_layers::linear::cuda::{Linear, LinearWorkspace};
use artel_moe::layer::cuda::CodedRows;
use artel_moe::quant::BLOCK;
use artel_moe::quant::activations::ScaleBounds;
use artel_moe::quant::activations::cuda::{QuantizedRows, ScaleLayout};
use half::bf16;

use super::CudaLimits;
use crate::Result;

/// Widths of rows, the largest of all layers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Widths {
    /// Hidden states, `H`.
    pub(super) hidden: usize,
    /// Hidden states that a launch leaves beside those that it reads; 0 where none does.
    pub(super) next_hidden: usize,
    /// Outputs of a joint projection.
    pub(super) projected: usize,
    /// What a dense MLP's last map reads.
    pub(super) activated: usize,
    /// Query latents; 0 without any.
    pub(super) latents: usize,
    /// What shared experts make; 0 without any.
    pub(super) shared: usize,
    /// Inputs of maps that read codes; 0 without any.
    pub(super) codes: usize,
    /// Vocabulary.
    pub(super) vocabulary: usize,
    /// Elements of a head that turn.
    pub(super) rotary: usize,
}

impl Widths {
    /// Room for rows of both.
    pub(super) fn max(self, other: Self) -> Self {
        Self {
            hidden: self.hidden.max(other.hidden),
            next_hidden: self.next_hidden.max(other.next_hidden),
            projected: self.projected.max(other.projected),
            activated: self.activated.max(other.activated),
            latents: self.latents.max(other.latents),
            shared: self.shared.max(other.shared),
            codes: self.codes.max(other.codes),
            vocabulary: self.vocabulary.max(other.vocabulary),
            rotary: self.rotary.max(other.rotary),
        }
    }
}

/// FP8 rows, a scale for 128 columns.
#[derive(Debug)]
pub(super) struct CodeRows {
    pub(super) codes: DeviceBuffer<u8>,
    pub(super) scales: DeviceBuffer<f32>,
}

impl CodeRows {
    /// `tokens` rows as products read them.
    pub(super) fn rows(&mut self, tokens: usize) -> QuantizedRows<'_> {
        QuantizedRows {
            codes: self.codes.slice_mut(),
            scales: self.scales.slice_mut(),
            layout: ScaleLayout::ByGroup { rows: Linear::<bf16>::padded(tokens) },
            bounds: ScaleBounds::HIDDEN,
        }
    }

    /// The same rows as experts read them.
    pub(super) fn coded(&self, tokens: usize) -> CodedRows<'_> {
        let stride = Linear::<bf16>::padded(tokens);
        CodedRows { codes: self.codes.slice(), scales: self.scales.slice(), stride }
    }
}

/// Memory of a step. Rows that products read or write are padded to whole tiles.
#[derive(Debug)]
pub(super) struct Rows {
    /// Memory of linear maps.
    pub(super) linear: LinearWorkspace,
    /// The residual stream `[T, H]`.
    pub(super) hidden: DeviceBuffer<f32>,
    /// Where a launch that may not change the residual stream leaves the next one, `[T, H]`.
    pub(super) next_hidden: DeviceBuffer<f32>,
    /// What a block reads, `[T, H]`.
    pub(super) normed: DeviceBuffer<bf16>,
    /// What it adds, `[T, H]`.
    pub(super) delta: DeviceBuffer<bf16>,
    /// Codes of what a map reads.
    pub(super) codes: CodeRows,
    /// Queries, keys and values; or what they are made of; or gate and up.
    pub(super) projected: DeviceBuffer<bf16>,
    /// Between gate and up and the last map of a dense MLP.
    pub(super) activated: DeviceBuffer<bf16>,
    /// Normed query latents.
    pub(super) latents: DeviceBuffer<bf16>,
    /// What a shared expert makes of rows.
    pub(super) shared: DeviceBuffer<bf16>,
    /// Turned queries.
    pub(super) queries: DeviceBuffer<bf16>,
    /// Outputs of attention.
    pub(super) mixed: DeviceBuffer<bf16>,
    /// Parts of attention.
    pub(super) parts: DecodeWorkspace,
    /// Cosines and sines `[T, rotary]`.
    pub(super) angles: DeviceBuffer<f32>,
    /// Rows whose logits are wanted.
    pub(super) picked: DeviceBuffer<bf16>,
    /// Logits `[rows, V]`.
    pub(super) logits: DeviceBuffer<bf16>,
}

impl Rows {
    /// Room for steps within `limits`.
    pub(super) fn new(
        context: &Context,
        limits: &CudaLimits,
        widths: Widths,
        attention: &AttentionShape,
    ) -> Result<Self> {
        let tokens = Linear::<bf16>::padded(limits.tokens_max);
        let logits = Linear::<bf16>::padded(limits.logits_max);
        let codes = CodeRows {
            codes: context.buffer(tokens * widths.codes)?,
            scales: context.buffer(tokens * widths.codes.div_ceil(BLOCK))?,
        };
        // Zeros: padding is multiplied with the rows before it, and must not be what it was.
        let zeros = |width: usize| DeviceBuffer::zeroed(context, tokens * width);
        Ok(Self {
            linear: LinearWorkspace::new(context, tokens.max(logits))?,
            hidden: context.buffer(limits.tokens_max * widths.hidden)?,
            next_hidden: context.buffer(limits.tokens_max * widths.next_hidden)?,
            normed: zeros(widths.hidden)?,
            delta: zeros(widths.hidden)?,
            codes,
            projected: zeros(widths.projected)?,
            activated: zeros(widths.activated)?,
            latents: zeros(widths.latents)?,
            shared: zeros(widths.shared)?,
            queries: zeros(attention.query_width())?,
            mixed: zeros(attention.output_width())?,
            parts: DecodeWorkspace::new(context, attention, limits.sequences_max)?,
            angles: context.buffer(limits.tokens_max * widths.rotary)?,
            picked: DeviceBuffer::zeroed(context, logits * widths.hidden)?,
            logits: context.buffer(logits * widths.vocabulary)?,
        })
    }
}
