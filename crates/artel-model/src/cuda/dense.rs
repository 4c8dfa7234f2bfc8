//! The dense gated MLP on the GPU: of a layer without experts, or an expert that every token uses.

use artel_device::cuda::{Kernels, Stream};
use artel_layers::linear::Linear as HostLinear;
use artel_layers::linear::cuda::Linear;
use artel_moe::activation::cuda::{Activate, ActivationForm, GateUp};
use artel_moe::quant::activations::Granularity;
use artel_moe::quant::activations::cuda::{InputRows, Placement, Quantize};
use half::bf16;

use super::CudaLimits;
use super::linear::{self, MapRows, MapWeights, Products, codes_width, reads_codes, shape_of};
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

/// What a dense MLP is in its layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    /// All there is behind attention: it reads what the norm left, codes perhaps.
    Layer,
    /// Beside routed experts: it reads the same rows, and its own are added to theirs.
    Shared,
}

/// The kernels.
#[derive(Debug, Clone)]
pub(super) struct DenseKernels {
    role: Role,
    reads_codes: bool,
    /// Of the rows that it reads, where these are not codes but should be.
    quantize_input: Option<Quantize<bf16>>,
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
    pub(super) fn load(
        kernels: &mut Kernels,
        (mlp, role): (&DenseMlp, Role),
        limits: &CudaLimits,
    ) -> Result<Self> {
        let (inputs, output) = (shape_of(&inputs_of(mlp)), shape_of(&[&mlp.down]));
        let intermediate = output.inputs;
        let form = ActivationForm {
            activation: mlp.activation,
            intermediate_size: intermediate,
            sorted: false,
            biased: None,
        };
        let mut quantize = |is_needed: bool, columns: usize| {
            let load = || Quantize::load(kernels, columns, Granularity::Groups, Placement::InPlace);
            is_needed.then(load).transpose()
        };
        let reads = reads_codes(&inputs);
        let quantize_input = quantize(reads && role == Role::Shared, inputs.inputs)?;
        let quantize = quantize(reads_codes(&output), intermediate)?;
        Ok(Self {
            role,
            reads_codes: reads,
            quantize_input,
            inputs: linear::load(kernels, inputs, limits.tokens_max)?,
            activate: Activate::load(kernels, form)?,
            intermediate,
            quantize,
            output: linear::load(kernels, output, limits.tokens_max)?,
            widths: Widths {
                projected: inputs.outputs,
                activated: intermediate,
                shared: if role == Role::Shared { output.outputs } else { 0 },
                codes: codes_width(&inputs).max(codes_width(&output)),
                ..Widths::default()
            },
        })
    }

    /// Leaves what the MLP makes of what the norm left.
    pub(super) fn forward(
        &self,
        stream: &Stream,
        tokens: usize,
        weights: &DenseWeights,
        rows: &mut Rows,
    ) -> Result<()> {
        if let Some(quantize) = &self.quantize_input {
            let input = InputRows { values: rows.normed.slice(), rows: tokens, positions: None };
            quantize.launch(stream, input, &mut rows.codes.rows(tokens))?;
        }
        let mut products = Products { stream, workspace: &mut rows.linear, tokens };
        let input = match self.reads_codes {
            false => MapRows::Plain(&rows.normed),
            true => MapRows::Codes(&rows.codes),
        };
        let mut projected = rows.projected.slice_mut();
        products.launch((&self.inputs, &weights.inputs), input, &mut projected)?; // [T, 2 I]
        let gate_up = projected.as_slice().range(0, tokens * 2 * self.intermediate)?;
        let gate_up = GateUp { rows: gate_up, pairs: tokens, positions: None, biases: None };
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
        let out = match self.role {
            Role::Layer => &mut rows.delta,
            Role::Shared => &mut rows.shared,
        };
        let out = &mut out.slice_mut();
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
