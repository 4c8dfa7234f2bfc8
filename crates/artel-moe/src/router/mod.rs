//! Router: `router_logits` `[T, E]` to the experts of each token and their weights.

/// What routing decides: for each token its `K` experts and their weights.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct TopK {
    /// Expert of each (token, slot), `[T, K]` row-major. `-1` is "no expert" (padding).
    pub ids: Vec<i32>,
    /// Weight of each (token, slot), `[T, K]` row-major, float32.
    pub weights: Vec<f32>,
    /// Experts per token, `K`.
    pub top_k: usize,
}

impl TopK {
    /// Number of tokens, `T`.
    pub fn tokens(&self) -> usize {
        if self.top_k == 0 { 0 } else { self.ids.len() / self.top_k }
    }
}
