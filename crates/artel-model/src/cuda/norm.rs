//! Norms of the residual stream, to rows or to the codes that the next map reads.

use artel_device::cuda::{DeviceBuffer, Kernels, Stream};
use artel_layers::rms_norm::RmsNorm;
use artel_layers::rms_norm::cuda::{NormRows, Normalize, NormalizeQuantize, Plain, Residual};
use half::bf16;

use super::linear::MapRows;
use super::rows::{CodeRows, Rows};
use crate::Result;

/// A norm: the sum of the residual stream and what was added, and what the next map reads of it.
#[derive(Debug, Clone)]
pub(super) enum InputNorm {
    /// Rows.
    Plain(Normalize<f32, bf16>, Residual),
    /// Codes of rows that nobody else reads.
    Codes(NormalizeQuantize<f32, bf16>, Residual),
}

impl InputNorm {
    /// Asks for the kernel of `norm` in front of a map that reads codes, or not.
    pub(super) fn load(
        kernels: &mut Kernels,
        norm: &RmsNorm,
        residual: Residual,
        codes: bool,
    ) -> Result<Self> {
        let (width, epsilon) = (norm.width(), norm.epsilon());
        Ok(match codes {
            false => Self::Plain(Normalize::load(kernels, width, epsilon, residual)?, residual),
            true => {
                let plain = Plain::Dropped;
                let kernel = NormalizeQuantize::load(kernels, width, epsilon, residual, plain)?;
                Self::Codes(kernel, residual)
            }
        })
    }

    /// `hidden += delta`, and its norm to where [`input`](Self::input) finds it.
    pub(super) fn launch(
        &self,
        stream: &Stream,
        tokens: usize,
        weight: &DeviceBuffer<f32>,
        rows: &mut Rows,
    ) -> Result<()> {
        let (Self::Plain(_, residual) | Self::Codes(_, residual)) = self;
        let delta = (*residual == Residual::Add).then(|| rows.delta.slice());
        let hidden = rows.hidden.slice_mut();
        let input = NormRows { hidden, delta, weight: weight.slice(), tokens };
        match self {
            Self::Plain(kernel, _) => {
                kernel.launch(stream, &input, &mut rows.normed.slice_mut())?;
            }
            Self::Codes(kernel, _) => {
                kernel.launch(stream, &input, None, &mut rows.codes.rows(tokens))?;
            }
        }
        Ok(())
    }

    /// What the next map reads: the normed rows, or their codes.
    pub(super) fn input<'a>(
        &self,
        normed: &'a DeviceBuffer<bf16>,
        codes: &'a CodeRows,
    ) -> MapRows<'a> {
        match self {
            Self::Plain(..) => MapRows::Plain(normed),
            Self::Codes(..) => MapRows::Codes(codes),
        }
    }
}
