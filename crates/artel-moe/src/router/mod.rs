//! Router: `router_logits` `[T, E]` to the experts of each token and their weights.
//!
//! 1. Every logit becomes a score, in float32; NaN and infinite scores count as 0.
//! 2. The selection key is score + bias. Keys decide, weights never see the bias.
//! 3. With groups, only the experts of the best groups stay in.
//! 4. The `K` largest keys are selected, in descending order; ties go to the lower expert id.
//! 5. Scores of the selected become weights, perhaps renormalised, times the scaling factor.
//! 6. Zero experts turn into an identity weight, shared experts are appended.
//!
//! Softmax with renormalisation over the logits of one token and three experts:
//!
//! ```
//! use artel_moe::router::{Logits, Router, RouterConfig, Routing, RoutingMethod, cpu};
//! let config = RouterConfig::new(RoutingMethod::softmax_renormalize(), 3, 2)?;
//! let logits = [0f32, 2f32.ln(), 2f32.ln()]; // scores 1/5, 2/5, 2/5
//! let mut routing = Routing::default();
//! cpu::route(&Router::new(config)?, &Logits::new(&logits, 1), &mut routing)?;
//! assert_eq!(routing.topk.ids, [1, 2]);
//! assert_eq!(routing.topk.weights, [0.5, 0.5]);
//! # Ok::<(), artel_moe::MoeError>(())
//! ```

pub mod gate;
mod config;
pub mod cpu;
#[cfg(feature = "cuda")]
pub mod cuda;
pub mod reference;
pub mod simulator;

#[cfg(test)]
mod properties;
#[cfg(test)]
mod tests;

pub use config::{
    FusedSharedExperts, Normalization, RouterConfig, RoutingMethod, RoutingMethodType, Scoring,
    ScoringFunction, SelectedFunction, Selection, SelectionBias,
};
pub use gate::Gate;

use std::ops::Range;

use crate::{MoeError, quant::Element};

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
        self.ids.len().checked_div(self.top_k).unwrap_or(0)
    }

    /// What some of the tokens chose.
    ///
    /// # Panics
    /// When the range does not lie inside the tokens.
    pub fn of_tokens(&self, tokens: Range<usize>) -> Self {
        let pairs = tokens.start * self.top_k..tokens.end * self.top_k;
        let (ids, weights) = (self.ids[pairs.clone()].to_vec(), self.weights[pairs].to_vec());
        Self { ids, weights, top_k: self.top_k }
    }

    /// Makes room for `tokens` rows of `top_k` slots; keeps the capacity. Old values remain
    /// where they were: the caller writes every element.
    pub fn resize(&mut self, tokens: usize, top_k: usize) {
        self.top_k = top_k;
        self.ids.resize(tokens * top_k, -1);
        self.weights.resize(tokens * top_k, 0.0);
    }
}

/// What a router writes. Reuse it: once it has seen the largest batch it allocates no more.
#[derive(Debug, Clone, Default)]
pub struct Routing {
    /// Experts and weights, [`RouterConfig::slots`] a token.
    pub topk: TopK,
    /// Weight of the unchanged hidden state of each token, `[T]`, to be added to the output of
    /// the experts. Empty when the router has no zero experts.
    pub identity_weights: Vec<f32>,
    scratch: Vec<f32>,
}

/// A router: its configuration and, where the method has one, the selection bias.
#[derive(Debug, Clone, PartialEq)]
pub struct Router {
    config: RouterConfig,
    bias: Vec<f32>,
}

impl Router {
    /// A router whose method has no selection bias.
    ///
    /// # Errors
    /// [`MoeError::Shape`] when the method needs a bias.
    pub fn new(config: RouterConfig) -> Result<Self, MoeError> {
        Self::with_bias(config, Vec::new())
    }

    /// A router with the bias of each logit (`e_score_correction_bias`).
    ///
    /// # Errors
    /// [`MoeError::Shape`] when there is not one number a logit, [`MoeError::Element`] when one is
    /// not finite.
    pub fn with_bias(config: RouterConfig, bias: Vec<f32>) -> Result<Self, MoeError> {
        let expected = match config.method().bias {
            SelectionBias::None => 0,
            SelectionBias::PerExpert => config.num_logits(),
        };
        MoeError::check_shape("the selection bias of the router", expected, bias.len())?;
        if let Some(position) = bias.iter().position(|bias| !bias.is_finite()) {
            let value = bias[position];
            return Err(MoeError::element("selection bias", position, value, "finite"));
        }
        Ok(Self { config, bias })
    }

    /// Its configuration.
    pub fn config(&self) -> &RouterConfig {
        &self.config
    }

    /// Selection bias of each logit; empty when the method has none.
    pub fn bias(&self) -> &[f32] {
        &self.bias
    }

    fn check<T>(&self, logits: &Logits<'_, T>) -> Result<(), MoeError> {
        let expected = logits.tokens.saturating_mul(self.config.num_logits());
        MoeError::check_shape("router logits", expected, logits.values.len())?;
        if logits.unpadded_tokens > logits.tokens {
            let allowed = format!("at most the number of tokens, {}", logits.tokens);
            return Err(MoeError::config("unpadded_tokens", logits.unpadded_tokens, allowed));
        }
        Ok(())
    }
}

/// Router logits `[T, E]`, row-major, of which the first rows are real tokens.
#[derive(Debug, Clone, Copy)]
pub struct Logits<'a, T> {
    values: &'a [T],
    tokens: usize,
    unpadded_tokens: usize,
}

impl<'a, T: Element> Logits<'a, T> {
    /// Logits of `tokens` tokens, all of them real.
    pub fn new(values: &'a [T], tokens: usize) -> Self {
        Self { values, tokens, unpadded_tokens: tokens }
    }

    /// The same with padding: rows from `unpadded_tokens` on get ids of -1 and weights of 0.
    pub fn with_unpadded_tokens(self, unpadded_tokens: usize) -> Self {
        Self { unpadded_tokens, ..self }
    }

    fn row(&self, token: usize, width: usize) -> &'a [T] {
        &self.values[token * width..][..width]
    }
}
