//! Norms of the residual stream, to rows or to the codes that the next map reads.

use artel_device::cuda::{DeviceBuffer, Kernels, Stream};
use artel_layers::rms_norm::RmsNorm;
use artel_layers::rms_norm::cuda::{
    Delta, NormRows, Normalize, NormalizeQuantize, Plain, Residual,
};
use half::bf16;

use super::linear::{Left, MapRows};
use super::rows::{CodeRows, Rows};
use crate::Result;

/// What is added to the residual stream before a norm.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Added {
    /// Nothing: the first one.
    Nothing,
    /// Rows.
    Rows,
    /// Rows, of few tokens in so many parts.
    Parts(usize),
}

/// A norm: the sum of the residual stream and what was added, and what the next map reads of it.
#[derive(Debug, Clone)]
pub(super) struct InputNorm {
    whole: NormKernel,
    /// For what comes in parts.
    of_parts: Option<NormKernel>,
    adds: bool,
}

#[derive(Debug, Clone)]
enum NormKernel {
    /// Rows.
    Plain(Normalize<f32, bf16>),
    /// Codes of rows that nobody else reads.
    Codes(NormalizeQuantize<f32, bf16>),
}

impl InputNorm {
    /// Asks for the kernels of `norm` in front of a map that reads codes, or not.
    pub(super) fn load(
        kernels: &mut Kernels,
        norm: &RmsNorm,
        added: Added,
        codes: bool,
    ) -> Result<Self> {
        let mut load = |residual| NormKernel::load(kernels, norm, residual, codes);
        let of_parts = match added {
            Added::Nothing | Added::Rows => None,
            Added::Parts(parts) => Some(load(Residual::AddParts(parts))?),
        };
        let adds = added != Added::Nothing;
        let whole = load(if adds { Residual::Add } else { Residual::Alone })?;
        Ok(Self { whole, of_parts, adds })
    }

    /// `hidden` plus what was left, and its norm to where [`input`](Self::input) finds it.
    pub(super) fn launch(
        &self,
        stream: &Stream,
        (tokens, left): (usize, Left),
        weight: &DeviceBuffer<f32>,
        rows: &mut Rows,
    ) -> Result<()> {
        let (kernel, delta) = match (left, &self.of_parts) {
            (Left::Rows, _) if !self.adds => (&self.whole, Delta::Nothing),
            (Left::Rows, _) => (&self.whole, Delta::Rows(rows.delta.slice())),
            (Left::Parts(count), Some(kernel)) => (kernel, Delta::Parts(rows.linear.parts(count))),
            _ => panic!("this is a bug: parts in front of a norm that does not add them"),
        };
        let hidden = rows.hidden.slice_mut();
        let input = NormRows { hidden, delta, weight: weight.slice(), tokens };
        match kernel {
            NormKernel::Plain(kernel) => {
                kernel.launch(stream, &input, &mut rows.normed.slice_mut())?;
            }
            NormKernel::Codes(kernel) => {
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
        match &self.whole {
            NormKernel::Plain(_) => MapRows::Plain(normed),
            NormKernel::Codes(_) => MapRows::Codes(codes),
        }
    }
}

impl NormKernel {
    fn load(
        kernels: &mut Kernels,
        norm: &RmsNorm,
        residual: Residual,
        codes: bool,
    ) -> Result<Self> {
        let (width, epsilon) = (norm.width(), norm.epsilon());
        Ok(match codes {
            false => Self::Plain(Normalize::load(kernels, width, epsilon, residual)?),
            true => {
                let plain = Plain::Dropped;
                let kernel = NormalizeQuantize::load(kernels, width, epsilon, residual, plain)?;
                Self::Codes(kernel)
            }
        })
    }
}
