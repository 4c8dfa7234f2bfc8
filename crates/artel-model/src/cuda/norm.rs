//! Norms of the residual stream, to rows or to the codes that the next map reads.

use artel_device::cuda::{DeviceBuffer, Kernels, Stream};
use artel_layers::linear::cuda::LinearShape;
use artel_layers::rms_norm::RmsNorm;
use artel_layers::rms_norm::cuda::{
    Delta, NormRows, Normalize, NormalizeQuantize, Plain, Residual,
};
use artel_moe::layer::cuda::PairRows;
use half::bf16;

use super::linear::{Left, MapRows, reads_codes};
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
    /// Rows, or those of so many pairs a token.
    Pairs(usize),
}

/// What was left to be added.
#[derive(Debug, Clone, Copy)]
pub(super) enum Behind<'a> {
    /// By a map, or rows of whatever else.
    Map(Left),
    /// By experts.
    Experts(PairRows<'a, bf16>),
}

/// What a norm makes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Makes {
    /// Rows.
    Rows,
    /// Their codes.
    Codes,
    /// Both.
    RowsAndCodes,
}

impl Makes {
    /// What a map of `shape` reads.
    pub(super) fn of(shape: &LinearShape) -> Self {
        if reads_codes(shape) { Self::Codes } else { Self::Rows }
    }
}

/// A norm: the sum of the residual stream and what was added, and what the next map reads of it.
#[derive(Debug, Clone)]
pub(super) struct InputNorm {
    whole: NormKernel,
    /// For what comes in parts.
    of_parts: Option<NormKernel>,
    /// For what comes in pairs.
    of_pairs: Option<NormKernel>,
    adds: bool,
    width: usize,
}

#[derive(Debug, Clone)]
enum NormKernel {
    /// Rows.
    Plain(Normalize<f32, bf16>),
    /// Codes of rows that nobody else reads.
    Codes(NormalizeQuantize<f32, bf16>),
    /// Rows and their codes.
    Both(NormalizeQuantize<f32, bf16>),
}

impl InputNorm {
    /// Asks for the kernels of `norm` in front of what reads what it `makes`.
    pub(super) fn load(
        kernels: &mut Kernels,
        norm: &RmsNorm,
        added: Added,
        makes: Makes,
    ) -> Result<Self> {
        let mut load = |residual| NormKernel::load(kernels, norm, residual, makes);
        let (of_parts, of_pairs) = match added {
            Added::Nothing | Added::Rows => (None, None),
            Added::Parts(parts) => (Some(load(Residual::AddParts(parts))?), None),
            Added::Pairs(pairs) => (None, Some(load(Residual::AddPairs(pairs))?)),
        };
        let adds = added != Added::Nothing;
        let whole = load(if adds { Residual::Add } else { Residual::Alone })?;
        Ok(Self { whole, of_parts, of_pairs, adds, width: norm.width() })
    }

    /// Columns of its rows.
    pub(super) fn width(&self) -> usize {
        self.width
    }

    /// `hidden` plus what was left, and its norm to where [`input`](Self::input) finds it.
    pub(super) fn launch(
        &self,
        stream: &Stream,
        (tokens, behind): (usize, Behind<'_>),
        weight: &DeviceBuffer<f32>,
        rows: &mut Rows,
    ) -> Result<()> {
        let (kernel, delta) = match (behind, &self.of_parts, &self.of_pairs) {
            (Behind::Map(Left::Rows), ..) if !self.adds => (&self.whole, Delta::Nothing),
            (Behind::Map(Left::Rows), ..) => (&self.whole, Delta::Rows(rows.delta.slice())),
            (Behind::Map(Left::Parts(count)), Some(kernel), _) => {
                (kernel, Delta::Parts(rows.linear.parts(count)))
            }
            (Behind::Experts(pairs), _, Some(kernel)) => (kernel, Delta::Pairs(pairs)),
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
            NormKernel::Both(kernel) => {
                let out = Some(rows.normed.slice_mut());
                kernel.launch(stream, &input, out, &mut rows.codes.rows(tokens))?;
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
            NormKernel::Codes(_) | NormKernel::Both(_) => MapRows::Codes(codes),
        }
    }
}

impl NormKernel {
    fn load(
        kernels: &mut Kernels,
        norm: &RmsNorm,
        residual: Residual,
        makes: Makes,
    ) -> Result<Self> {
        let (width, epsilon) = (norm.width(), norm.epsilon());
        let codes = |kernels: &mut Kernels, plain| {
            NormalizeQuantize::load(kernels, width, epsilon, residual, plain)
        };
        Ok(match makes {
            Makes::Rows => Self::Plain(Normalize::load(kernels, width, epsilon, residual)?),
            Makes::Codes => Self::Codes(codes(kernels, Plain::Dropped)?),
            Makes::RowsAndCodes => Self::Both(codes(kernels, Plain::Kept)?),
        })
    }
}
