//! Attention of a step with one token: launches that do several things for one row.

use artel_device::cuda::{DeviceBuffer, Kernels, Stream};
use artel_layers::attention::AttentionShape;
use artel_layers::attention::cuda::{AttentionParameters, CacheSlices, SequenceSlices};
use artel_layers::attention::decode::single::cuda::SingleAttention;
use artel_layers::linear::cuda::{Linear, LinearShape};
use artel_layers::linear::single::cuda::{ProjectAttention, ProjectNorm, ProjectNormRows};
use artel_layers::rms_norm::RmsNorm;
use half::bf16;

use super::linear::{Left, MapWeights};
use super::norm::Added;
use super::rows::Rows;
use crate::Result;

/// The kernels, where there are some.
#[derive(Debug, Clone)]
pub(super) struct SingleKernels {
    inputs: Option<ProjectNorm>,
    output: Option<(SingleAttention, ProjectAttention)>,
}

impl SingleKernels {
    /// Asks for them: `inputs` behind `norm`, and `output`, whose parts are those of `of_output`.
    pub(super) fn load(
        kernels: &mut Kernels,
        (norm, added): (&RmsNorm, Added),
        [inputs, output]: [LinearShape; 2],
        (attention, has_sinks): (&AttentionShape, bool),
        of_output: &Linear<bf16>,
    ) -> Result<Self> {
        let inputs = match added {
            Added::Rows | Added::Pairs(_) => ProjectNorm::load(kernels, inputs, norm.epsilon())?,
            Added::Nothing | Added::Parts(_) => None,
        };
        let output = match of_output.parts() {
            Some(parts) if !has_sinks => {
                let output = ProjectAttention::load(kernels, output, attention, parts)?;
                SingleAttention::load(kernels, attention)?.zip(output)
            }
            _ => None,
        };
        Ok(Self { inputs, output })
    }

    /// Whether hidden states are left beside those that are read.
    pub(super) fn moves_hidden(&self) -> bool {
        self.inputs.is_some()
    }

    /// Adds what is left to the residual stream and projects its norm; `false` where there is no kernel.
    pub(super) fn project(
        &self,
        stream: &Stream,
        (norm, weights): (&DeviceBuffer<f32>, &MapWeights),
        rows: &mut Rows,
    ) -> Result<bool> {
        let Some(kernel) = &self.inputs else { return Ok(false) };
        let input = ProjectNormRows {
            hidden: rows.hidden.slice(),
            delta: rows.delta.slice(),
            sums: rows.next_hidden.slice_mut(),
            norm: norm.slice(),
        };
        kernel.launch(stream, &input, weights.slices(), &mut rows.projected.slice_mut())?;
        std::mem::swap(&mut rows.hidden, &mut rows.next_hidden);
        Ok(true)
    }

    /// Attends and maps what comes of it back to hidden states, in parts; `None` where there is no kernel.
    pub(super) fn attend(
        &self,
        stream: &Stream,
        (sequences, cache): (&SequenceSlices<'_>, &CacheSlices<'_, bf16>),
        (parameters, weights): (&AttentionParameters<'_>, &MapWeights),
        rows: &mut Rows,
    ) -> Result<Option<Left>> {
        let Some((attention, output)) = &self.output else { return Ok(None) };
        let operands = (rows.queries.slice(), cache);
        let parts = &mut rows.parts;
        let parts = attention.launch(stream, operands, sequences, parameters, parts)?;
        output.launch(stream, &parts, weights.slices(), &mut rows.linear)?;
        Ok(Some(Left::Parts(1)))
    }
}
