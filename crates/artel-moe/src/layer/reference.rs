//! The definition of the layer behind its router: the definitions of its steps one after the
//! other, with the cast at the end of each; and the same for kernels that do several steps at once.

use rayon::prelude::*;

use super::MoeLayer;
use crate::MoeError;
use crate::activation::reference::activate_row;
use crate::assignment::{Assignment, reference::direct};
use crate::combine::{Combine, Locality, RowWeights, Slots, reference::combine};
use crate::config::{Parallelism, RouterWeight};
use crate::grouped_gemm::reference::{expert_row, grouped_gemm};
use crate::grouped_gemm::{GemmFormat, GroupedGemm};
use crate::quant::reference::{LEAST_ACTIVATED, LEAST_MAGNITUDE, quantized_row};
use crate::quant::{ActivationScales, Element};
use crate::router::TopK;

impl<F: GemmFormat> MoeLayer<F> {
    /// Hidden states `[T, H]` and their experts to hidden states `[T, H]`, before the last cast.
    ///
    /// # Errors
    /// [`MoeError`] when pairs are too many to be numbered.
    pub fn experts_reference(
        &self,
        hidden_states: &[F::Activation],
        topk: &TopK,
    ) -> Result<Vec<f64>, MoeError> {
        let (config, top_k) = (self.config(), topk.top_k);
        let local = self.local_ids(&topk.ids);
        let assignment = direct(&local, self.experts.experts())?;
        let routed = RowWeights::Routed(&topk.weights);
        let (on_input, on_output) = match config.router_weight() {
            RouterWeight::OnInput => (routed, RowWeights::One),
            RouterWeight::OnOutput => (RowWeights::One, routed),
        };
        let (w13, w2) = (self.experts.w13(), self.experts.w2());
        let first = GroupedGemm::<F> {
            rows: hidden_states,
            pairs_per_row: top_k,
            weights: w13,
            assignment: &assignment,
            row_weights: on_input,
        };
        let gate_up = product(&first);
        let mut activated = vec![0.0; local.len() * w2.columns()];
        let exact: Vec<f64> = gate_up.iter().map(|x| f64::from(x.to_f32())).collect();
        for (out, row) in activated.chunks_mut(w2.columns()).zip(exact.chunks(w13.rows())) {
            activate_row(config.activation(), row, out);
        }
        let second = GroupedGemm::<F> {
            rows: &cast::<F>(&activated),
            pairs_per_row: 1,
            weights: w2,
            assignment: &assignment,
            row_weights: RowWeights::One,
        };
        let locality = Locality::All { num_experts: self.experts.experts() };
        let slots = Slots { ids: &local, weights: on_output, top_k, locality };
        let rows = product(&second);
        Ok(combine(&Combine { slots, rows: &rows, identity: None }, w2.rows()))
    }

    /// As [`experts_reference`](Self::experts_reference) for kernels that activate where they
    /// multiply: gate, up and the activation are not rounded before they become the second product's
    /// operand. Rows of the experts are rounded, as before; router weights are on the output.
    ///
    /// # Errors
    /// [`MoeError`] for a configuration with router weights on the input.
    pub fn fused_experts_reference(
        &self,
        hidden_states: &[F::Activation],
        topk: &TopK,
    ) -> Result<Vec<f64>, MoeError> {
        if self.config().router_weight() == RouterWeight::OnInput {
            return Err(MoeError::config("router weight", "on the input", "on the output"));
        }
        let hidden_size = self.config().shape().hidden_size;
        let ids = self.local_ids(&topk.ids);
        let mut out = vec![0.0; hidden_states.len()];
        let tokens = out.par_chunks_mut(hidden_size).zip(hidden_states.par_chunks(hidden_size));
        let pairs = ids.par_chunks(topk.top_k).zip(topk.weights.par_chunks(topk.top_k));
        tokens.zip(pairs).for_each(|((out, hidden_state), (ids, weights))| {
            let row = |&id: &i32| {
                let expert = usize::try_from(id).ok().filter(|&id| id < self.experts.experts())?;
                Some(self.fused_expert_row(hidden_state, expert))
            };
            let rows: Vec<Option<Vec<f64>>> = ids.par_iter().map(row).collect();
            for (row, &weight) in rows.iter().zip(weights) {
                let row = row.iter().flatten();
                out.iter_mut().zip(row).for_each(|(out, row)| *out += f64::from(weight) * row);
            }
        });
        Ok(out)
    }

    /// One token with one expert.
    fn fused_expert_row(&self, hidden_state: &[F::Activation], expert: usize) -> Vec<f64> {
        let (w13, w2) = (self.experts.w13(), self.experts.w2());
        let x: Vec<f32> = hidden_state.iter().map(|x| x.to_f32()).collect();
        let x = quantized_row(F::ACTIVATION_SCALES, w13.input_scale(), LEAST_MAGNITUDE, &x);
        let (mut gate_up, mut row) = (vec![0.0; w13.rows()], vec![0.0; w2.rows()]);
        expert_row(w13, expert, &x, &mut gate_up);
        let mut activated = vec![0.0; w2.columns()];
        activate_row(self.config().activation(), &gate_up, &mut activated);
        let activated: Vec<f32> = match F::ACTIVATION_SCALES {
            ActivationScales::None => cast::<F>(&activated).iter().map(|x| x.to_f32()).collect(),
            _ => activated.iter().map(|&x| x as f32).collect(),
        };
        let x = quantized_row(F::ACTIVATION_SCALES, w2.input_scale(), LEAST_ACTIVATED, &activated);
        expert_row(w2, expert, &x, &mut row);
        cast::<F>(&row).iter().map(|x| f64::from(x.to_f32())).collect()
    }

    fn local_ids(&self, ids: &[i32]) -> Vec<i32> {
        let local = |&id: &i32| match self.config().parallelism() {
            Parallelism::Expert(map) => map.local(id).map_or(-1, |id| id as i32),
            Parallelism::Single | Parallelism::Tensor { .. } => id,
        };
        ids.iter().map(local).collect()
    }
}

fn product<F: GemmFormat>(gemm: &GroupedGemm<'_, F>) -> Vec<F::Activation> {
    let Assignment { num_pairs, .. } = gemm.assignment;
    let mut out = vec![0.0; num_pairs * gemm.weights.rows()];
    grouped_gemm(gemm, &mut out);
    cast::<F>(&out)
}

fn cast<F: GemmFormat>(values: &[f64]) -> Vec<F::Activation> {
    values.iter().map(|&value| Element::from_f32(value as f32)).collect()
}
