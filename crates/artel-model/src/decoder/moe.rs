//! Routed experts, and the experts beside them that every token uses.

use artel_device::cpu::CpuFeatures;
use artel_layers::linear::Linear;
use artel_moe::activation::Activation;
use artel_moe::config::{MoeConfig, MoeShape};
use artel_moe::dispatch::ExpertParallel;
use artel_moe::layer::AnyMoeLayer;
use artel_moe::router::{Gate, Router, RouterConfig};
use artel_moe::weights::{AnyExperts, ExpertTensors};

use super::mlp::{DenseMlp, ProjectionNames};
use super::workspace::{BlockWorkspace, sized};
use crate::Result;
use crate::weights::{Group, Scope};

/// What an architecture says about its routed experts.
#[derive(Debug, Clone)]
pub(crate) struct RoutedExperts {
    pub(crate) hidden: usize,
    pub(crate) intermediate: usize,
    pub(crate) activation: Activation,
    pub(crate) router: RouterConfig,
}

/// What the experts of one layer are made of.
#[derive(Debug)]
pub(crate) struct MoeParts {
    pub(crate) gate: Gate,
    pub(crate) router: Router,
    pub(crate) experts: NamedExperts,
    pub(crate) shared: Option<SharedExpert>,
}

/// The weights of the experts of one layer.
#[derive(Debug)]
pub(crate) struct NamedExperts {
    tensors: Vec<ExpertTensors>,
    /// Tensors of gate, up and down of each expert; empty where all experts share tensors.
    names: Vec<[String; 3]>,
}

impl From<Vec<ExpertTensors>> for NamedExperts {
    /// Experts that share tensors.
    fn from(tensors: Vec<ExpertTensors>) -> Self {
        Self { tensors, names: Vec::new() }
    }
}

/// The experts of one layer.
#[derive(Debug)]
pub(crate) struct MoeBlock {
    pub(crate) experts: AnyMoeLayer,
    pub(crate) shared: Option<SharedExpert>,
    /// As [`NamedExperts`] has them.
    names: Vec<[String; 3]>,
}

/// An expert that every token uses.
#[derive(Debug)]
pub(crate) struct SharedExpert {
    pub(crate) mlp: DenseMlp,
    /// A linear map to one number, whose sigmoid the output is multiplied by: Qwen2-MoE.
    pub(crate) gate: Option<Linear>,
}

impl RoutedExperts {
    /// Experts, `E`.
    pub(crate) fn experts(&self) -> usize {
        self.router.num_experts()
    }

    /// Reads the experts `experts.0`, `experts.1` and so on of a layer, each with three matrices.
    pub(crate) fn read_numbered(
        &self,
        weights: &Scope<'_, '_>,
        names: ProjectionNames,
    ) -> Result<NamedExperts> {
        let read = |expert: usize| {
            let expert = weights.scope(&format!("experts.{expert}"), Group::Experts);
            let names = [names.gate, names.up, names.down].map(|name| format!("{name}.weight"));
            let (hidden, intermediate) = (self.hidden, self.intermediate);
            let gate = expert.matrix(&names[0], [intermediate, hidden])?;
            let up = expert.matrix(&names[1], [intermediate, hidden])?;
            let w2 = expert.matrix(&names[2], [hidden, intermediate])?;
            let tensors = ExpertTensors { w13: vec![gate, up], w13_bias: None, w2, w2_bias: None };
            Ok((tensors, names.map(|name| expert.name(&name))))
        };
        let experts = (0..self.experts()).map(read).collect::<Result<Vec<_>>>()?;
        let (tensors, names) = experts.into_iter().unzip();
        Ok(NamedExperts { tensors, names })
    }

    /// Reads the matrix in front of the router, `gate.weight` `[E, H]`.
    pub(crate) fn read_gate(&self, weights: &Scope<'_, '_>) -> Result<Gate> {
        let gate = weights.scope("gate", Group::Router);
        Ok(Gate::new(gate.matrix("weight", [self.experts(), self.hidden])?, None)?)
    }

    /// Reads `e_score_correction_bias` `[E]` of a router that selects with a bias.
    pub(crate) fn read_biased_router(&self, weights: &Scope<'_, '_>) -> Result<Router> {
        let weights = weights.counted_as(Group::Router);
        let bias = weights.vector("e_score_correction_bias", self.experts())?;
        Ok(Router::with_bias(self.router, bias)?)
    }

    /// Puts the parts of a layer together.
    pub(crate) fn block(&self, features: CpuFeatures, parts: MoeParts) -> Result<super::Mlp> {
        let MoeParts { gate, router, experts, shared } = parts;
        let shape = MoeShape {
            hidden_size: self.hidden,
            intermediate_size: self.intermediate,
            num_experts: self.experts(),
            top_k: self.router.slots(),
        };
        let config = MoeConfig::new(shape, self.activation)?;
        let NamedExperts { tensors, names } = experts;
        let experts = AnyExperts::new(tensors)?;
        let experts = AnyMoeLayer::new(config, gate, router, experts, features)?;
        Ok(super::Mlp::Moe(Box::new(MoeBlock { experts, shared, names })))
    }
}

impl MoeBlock {
    /// The routed experts.
    pub(crate) fn experts(&self) -> &AnyMoeLayer {
        &self.experts
    }

    /// Tensors of gate, up and down of each expert; empty where all experts share tensors.
    pub(crate) fn names(&self) -> &[[String; 3]] {
        &self.names
    }

    /// Lets ranks compute the routed experts.
    pub(crate) fn spread(&mut self, ranks: ExpertParallel) -> Result<()> {
        self.experts = self.experts.clone().on_ranks(ranks)?;
        Ok(())
    }

    /// Hidden states `[T, H]` to what all their experts make of them, `[T, H]`.
    pub(super) fn forward(
        &self,
        workspace: &mut BlockWorkspace,
        hidden: &[f32],
        out: &mut [f32],
    ) -> Result<()> {
        self.experts.forward(hidden, &mut workspace.moe, out)?; // [T, H]
        workspace.expert_pairs.push(self.experts.take_expert_pairs(&mut workspace.moe));
        workspace.keep_inputs(&self.experts);
        match &self.shared {
            Some(shared) => shared.add(workspace, hidden, out),
            None => Ok(()),
        }
    }
}

impl SharedExpert {
    /// Adds what this expert makes of `hidden` `[T, H]` to `out`.
    fn add(&self, workspace: &mut BlockWorkspace, hidden: &[f32], out: &mut [f32]) -> Result<()> {
        let mut shared = std::mem::take(&mut workspace.mlp.shared);
        let shared_out = sized(&mut shared, out.len());
        let result = self.mlp.forward(workspace, hidden, shared_out);
        workspace.mlp.shared = shared;
        result?;

        let shared = &workspace.mlp.shared;
        let Some(gate) = &self.gate else {
            out.iter_mut().zip(shared).for_each(|(out, shared)| *out += shared);
            return Ok(());
        };
        let width = gate.inputs();
        let gates = sized(&mut workspace.mlp.shared_gate, hidden.len() / width); // [T]
        gate.forward(&mut workspace.layers, hidden, gates)?;
        let rows = out.chunks_exact_mut(width).zip(shared.chunks_exact(width));
        for ((out, shared), gate) in rows.zip(&*gates) {
            let open = 1.0 / (1.0 + (-gate).exp());
            out.iter_mut().zip(shared).for_each(|(out, shared)| *out += open * shared);
        }
        Ok(())
    }
}
