//! The dense gated MLP: `down(activation(gate(x)) * up(x))`.

use artel_layers::linear::Linear;
use artel_moe::activation::{Activation, activate};

use super::workspace::{BlockWorkspace, MlpBuffers, sized};
use crate::Result;
use crate::weights::{Bias, Scope};

/// What a checkpoint calls the three projections of an MLP or an expert.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ProjectionNames {
    pub(crate) gate: &'static str,
    pub(crate) up: &'static str,
    pub(crate) down: &'static str,
}

/// The names that most checkpoints use.
pub(crate) const GATE_UP_DOWN: ProjectionNames =
    ProjectionNames { gate: "gate_proj", up: "up_proj", down: "down_proj" };

/// A dense MLP.
#[derive(Debug)]
pub(crate) struct DenseMlp {
    pub(crate) gate: Linear,
    pub(crate) up: Linear,
    pub(crate) down: Linear,
    pub(crate) activation: Activation,
}

impl DenseMlp {
    /// Reads the MLP of a layer without experts.
    pub(crate) fn read_layer(
        weights: &Scope<'_, '_>,
        hidden: usize,
        intermediate: usize,
        activation: Activation,
    ) -> Result<super::Mlp> {
        let mlp = Self::read(weights, hidden, intermediate, activation)?;
        Ok(super::Mlp::Dense(Box::new(mlp)))
    }

    /// Reads `gate_proj`, `up_proj` and `down_proj`.
    pub(crate) fn read(
        weights: &Scope<'_, '_>,
        hidden: usize,
        intermediate: usize,
        activation: Activation,
    ) -> Result<Self> {
        let linear = |name, shape| weights.linear(name, shape, Bias::None);
        Ok(Self {
            gate: linear(GATE_UP_DOWN.gate, [intermediate, hidden])?,
            up: linear(GATE_UP_DOWN.up, [intermediate, hidden])?,
            down: linear(GATE_UP_DOWN.down, [hidden, intermediate])?,
            activation,
        })
    }

    /// Hidden states `[T, H]` to what the MLP makes of them, `[T, H]`.
    pub(super) fn forward(
        &self,
        workspace: &mut BlockWorkspace,
        hidden: &[f32],
        out: &mut [f32],
    ) -> Result<()> {
        let intermediate = self.gate.outputs();
        let length = hidden.len() / self.gate.inputs() * intermediate;
        let ws = &mut workspace.layers;
        let MlpBuffers { gate, up, gate_up, activated, .. } = &mut workspace.mlp;
        let (gate, up) = (sized(gate, length), sized(up, length));
        let gate_up = sized(gate_up, 2 * length);
        let activated = sized(activated, length);

        self.gate.forward(ws, hidden, gate)?; // [T, I]
        self.up.forward(ws, hidden, up)?; // [T, I]
        side_by_side(gate, up, intermediate, gate_up); // [T, 2I]
        activate(ws.features(), self.activation, intermediate, gate_up, activated)?; // [T, I]
        Ok(self.down.forward(ws, activated, out)?) // [T, H]
    }
}

/// Rows of `left` and `right` joined to rows of twice the width.
fn side_by_side(left: &[f32], right: &[f32], width: usize, out: &mut [f32]) {
    let rows = left.chunks_exact(width).zip(right.chunks_exact(width));
    for ((left, right), out) in rows.zip(out.chunks_exact_mut(2 * width)) {
        let (out_left, out_right) = out.split_at_mut(width);
        out_left.copy_from_slice(left);
        out_right.copy_from_slice(right);
    }
}
