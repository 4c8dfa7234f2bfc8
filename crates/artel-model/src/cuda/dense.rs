//! The dense gated MLP of one layer on the GPU.

use artel_device::cuda::{Kernels, Stream};
use artel_layers::linear::Linear as HostLinear;
use artel_layers::linear::cuda::Linear;
use artel_moe::activation::cuda::{Activate, ActivationForm, GateUp};
use artel_moe::quant::activations::Granularity;
use artel_moe::quant::activations::cuda::{InputRows, Placement, Quantize};
use half::bf16;

use super::CudaLimits;
use super::linear::{MapRows, MapWeights, Products, codes_width, reads_codes, shape_of};
use super::norm::InputNorm;
use super::rows::{Rows, Widths};
use super::upload::Upload;
use crate::Result;
use crate::decoder::DenseMlp;

/// The maps to gate and up.
fn inputs_of(mlp: &DenseMlp) -> [&HostLinear; 2] {
    [&mlp.gate, &mlp.up]
}

/// Whether it reads codes.
pub(super) fn mlp_reads_codes(mlp: &DenseMlp) -> bool {
    reads_codes(&shape_of(&inputs_of(mlp)))
}

/// The kernels.
#[derive(Debug, Clone)]
pub(super) struct DenseKernels {
    inputs: Linear<bf16>,
    activate: Activate<bf16>,
    intermediate: usize,
    /// Of what the last map reads, where it reads codes.
    quantize: Option<Quantize<bf16>>,
    output: Linear<bf16>,
    pub(super) widths: Widths,
}

impl DenseKernels {
    /// Asks for them.
    pub(super) fn load(kernels: &mut Kernels, mlp: &DenseMlp, limits: &CudaLimits) -> Result<Self> {
        let (inputs, output) = (shape_of(&inputs_of(mlp)), shape_of(&[&mlp.down]));
        let intermediate = output.inputs;
        let form = ActivationForm {
            activation: mlp.activation,
            intermediate_size: intermediate,
            sorted: false,
        };
        let quantize = |kernels: &mut Kernels| {
            Quantize::load(kernels, intermediate, Granularity::Groups, Placement::InPlace)
        };
        Ok(Self {
            inputs: Linear::load(kernels, inputs, limits.tokens_max)?,
            activate: Activate::load(kernels, form)?,
            intermediate,
            quantize: reads_codes(&output).then(|| quantize(kernels)).transpose()?,
            output: Linear::load(kernels, output, limits.tokens_max)?,
            widths: Widths {
                projected: inputs.outputs,
                activated: intermediate,
                codes: codes_width(&inputs).max(codes_width(&output)),
                ..Widths::default()
            },
        })
    }

    /// Leaves what the MLP makes of what `norm` left.
    pub(super) fn forward(
        &self,
        stream: &Stream,
        (tokens, norm): (usize, &InputNorm),
        weights: &DenseWeights,
        rows: &mut Rows,
    ) -> Result<()> {
        let mut products = Products { stream, workspace: &mut rows.linear, tokens };
        let input = norm.input(&rows.normed, &rows.codes);
        let mut projected = rows.projected.slice_mut();
        products.launch((&self.inputs, &weights.inputs), input, &mut projected)?; // [T, 2 I]
        let gate_up = projected.as_slice().range(0, tokens * 2 * self.intermediate)?;
        let gate_up = GateUp { rows: gate_up, pairs: tokens, positions: None };
        self.activate.launch(stream, gate_up, &mut rows.activated.slice_mut())?; // [T, I]
        let input = match &self.quantize {
            None => MapRows::Plain(&rows.activated),
            Some(quantize) => {
                let values = rows.activated.slice();
                let input = InputRows { values, rows: tokens, positions: None };
                quantize.launch(stream, input, &mut rows.codes.rows(tokens))?;
                MapRows::Codes(&rows.codes)
            }
        };
        let out = &mut rows.delta.slice_mut();
        products.launch((&self.output, &weights.output), input, out) // [T, H]
    }
}

/// The weights.
#[derive(Debug)]
pub(super) struct DenseWeights {
    inputs: MapWeights,
    output: MapWeights,
}

impl DenseWeights {
    /// Copies them.
    pub(super) fn upload(upload: &mut Upload<'_>, mlp: &DenseMlp) -> Result<Self> {
        Ok(Self {
            inputs: MapWeights::upload(upload, &inputs_of(mlp))?,
            output: MapWeights::upload(upload, &[&mlp.down])?,
        })
    }
}
