//! The shortest times that a GPU's memory and matrix units allow for a step of a model.

use artel_model::{Format, Group, Model, ModelConfig, Parameters};
use artel_moe::plan::gpu::GpuCeilings;

/// Bytes of a number of keys and values on a GPU.
const CACHE_NUMBER_BYTES: usize = 2;

/// A model as far as floors depend on it.
#[derive(Debug, Clone, Copy)]
pub struct Floors<'a> {
    parameters: &'a Parameters,
    config: &'a ModelConfig,
    ceilings: GpuCeilings,
}

/// What a step has to do at least.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Floor {
    /// Bytes to read, or operations to do.
    pub work: f64,
    /// Seconds that takes at the ceiling of the GPU.
    pub seconds: f64,
}

impl<'a> Floors<'a> {
    /// Of `model` on a GPU with these ceilings.
    pub fn new(model: &'a Model, ceilings: GpuCeilings) -> Self {
        Self { parameters: model.parameters(), config: model.config(), ceilings }
    }

    /// A step that decodes one token of each of so many sequences with `context` tokens each: weights
    /// of the experts that are used, all other weights but the embedding table, keys and values.
    /// `active_experts` of a layer, if that was measured; else every token chooses at random.
    pub fn decode(&self, sequences: usize, context: f64, active_experts: Option<f64>) -> Floor {
        let experts = self.config.experts.max(1) as f64;
        let share = self.config.experts_per_token as f64 / experts;
        let at_random = experts * (1.0 - (1.0 - share).powf(sequences as f64));
        let used = active_experts.unwrap_or(at_random) / experts;
        let weights = self.parameters.by_group().map(|(group, _, count)| match group {
            Group::Experts => count.bytes as f64 * used,
            Group::Embedding if !self.parameters.is_tied() => 0.0,
            _ => count.bytes as f64,
        });
        let cache = sequences as f64 * context * (self.cache_numbers() * CACHE_NUMBER_BYTES) as f64;
        let bytes = weights.sum::<f64>() + cache;
        Floor { work: bytes, seconds: bytes / self.ceilings.read }
    }

    /// Prompts of `tokens` tokens each: products with all active weights, each at the rate of its
    /// format, the output layer for one token a prompt, and attention to what is before.
    pub fn prefill(&self, prompts: usize, tokens: usize) -> Floor {
        let share = self.config.experts_per_token as f64 / self.config.experts.max(1) as f64;
        let (all, last) = ((prompts * tokens) as f64, prompts as f64);
        let mut floor = Floor { work: 0.0, seconds: 0.0 };
        for (group, format, count) in self.parameters.by_group() {
            let rows = match group {
                Group::Experts => all * share,
                Group::Head => last,
                Group::Embedding if self.parameters.is_tied() => last,
                Group::Embedding | Group::Norms => 0.0,
                _ => all,
            };
            floor.add(2.0 * rows * count.parameters as f64, self.products_per_second(format));
        }
        // Each token attends to half of its prompt on average.
        let pairs = all * tokens as f64 / 2.0;
        floor.add(pairs * self.config.attention_operations as f64, self.ceilings.bf16);
        floor
    }

    /// Numbers of keys and values of a token, all layers together.
    fn cache_numbers(&self) -> usize {
        self.config.cache_bytes_per_token / size_of::<f32>()
    }

    fn products_per_second(&self, format: &str) -> f64 {
        let is_fp8 = format.parse().is_ok_and(|format: Format| format.name().starts_with("fp8"));
        self.ceilings.fp8.filter(|_| is_fp8).unwrap_or(self.ceilings.bf16)
    }
}

impl Floor {
    fn add(&mut self, operations: f64, per_second: f64) {
        self.work += operations;
        self.seconds += operations / per_second;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::ModelArgs;
    use crate::source;

    #[test]
    fn floors_of_the_bundled_model() {
        let args = ModelArgs::of(None);
        let model = source::load_mapped(&args, &source::open(&args).unwrap()).unwrap();
        let h200 = *GpuCeilings::of_architecture("sm_90").unwrap();
        let floors = Floors::new(&model, h200);
        let all = floors.decode(1, 0.0, Some(model.config().experts as f64));
        let (parameters, tied) = (model.parameters(), model.parameters().is_tied());
        let embedding = parameters.by_group().find(|(group, ..)| *group == Group::Embedding);
        let embedding = embedding.filter(|_| !tied).map_or(0, |(.., count)| count.bytes);
        assert_eq!(all.work, (parameters.bytes() - embedding) as f64);
        assert_eq!(all.seconds, all.work / h200.read);
        let one = floors.decode(1, 100.0, None);
        let used = model.config().experts_per_token as f64;
        assert!((floors.decode(1, 100.0, Some(used)).work - one.work).abs() < 1.0);
        assert!(floors.decode(64, 100.0, None).work > one.work);
        // Twice as many prompts are twice the work; longer ones are more than that.
        let prompt = floors.prefill(1, 1024);
        assert!((floors.prefill(2, 1024).work - 2.0 * prompt.work).abs() < 1.0);
        assert!(floors.prefill(1, 2048).work > 2.0 * prompt.work * 0.99);
        let dense = 2.0 * 1024.0 * parameters.active() as f64;
        assert!(prompt.work < 2.0 * dense && prompt.work > 0.2 * dense, "{prompt:?} {dense}");
    }
}
