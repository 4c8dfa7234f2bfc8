//! Rotary embedding: pairs of elements of queries and keys are turned by an angle that grows with
//! the position, so that their product depends on the distance only.
//!
//! ```text
//! angle[t, i] = position[t] * inverse_frequency[i]           0 <= i < rotary_dim / 2
//! (a, b) -> (a cos - b sin, b cos + a sin) * attention_scaling
//! ```
//! NeoX style pairs element `i` with `i + rotary_dim / 2`; interleaved style pairs `2i` with
//! `2i + 1`. Elements of a head outside the rotary part pass unchanged.
//!
//! Example: rotary_dim 2 (one pair), theta any, position π/2, (a, b) = (1, 0) -> (0, 1).
//!
//! The frequencies are those of `transformers`, rounding included, because at position 100 000 one
//! unit in the last place of a frequency is an angle of half a degree. Sources: Su et al.,
//! "RoFormer", 2021; Peng et al., "YaRN", 2023; the Llama 3.1 release for its scaling.

mod cpu;
#[cfg(feature = "cuda")]
mod angles;
#[cfg(feature = "cuda")]
pub mod cuda;
#[cfg(feature = "cuda")]
pub(crate) mod heads;
mod frequencies;
pub mod reference;
#[cfg(test)]
mod tests;

use std::ops::Range;

use crate::LayersError;

/// Which elements of a head turn together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RopeStyle {
    /// Element `i` with `i + rotary_dim / 2`: most models.
    NeoX,
    /// Element `2i` with `2i + 1`: GPT-J, DeepSeek.
    Interleaved,
}

/// How the frequencies are stretched for contexts longer than those of training.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum RopeScaling {
    /// Not at all.
    None,
    /// Every frequency divided by `factor`.
    Linear {
        /// Ratio of the new context to the old.
        factor: f64,
    },
    /// Long wavelengths divided, short ones kept, a ramp between.
    Llama3(Llama3),
    /// YaRN.
    Yarn(Yarn),
}

/// The values of a checkpoint that stretches as Llama 3.1 does.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Llama3 {
    /// Ratio of the new context to the old.
    pub factor: f64,
    /// Wavelengths above `original_max_position / low_freq_factor` are divided by `factor`.
    pub low_freq_factor: f64,
    /// Wavelengths below `original_max_position / high_freq_factor` are kept.
    pub high_freq_factor: f64,
    /// Context of the training, tokens.
    pub original_max_position: usize,
}

/// The values of a checkpoint that uses YaRN.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Yarn {
    /// Ratio of the new context to the old.
    pub factor: f64,
    /// Frequencies that turn more often than this within the old context are kept; 32 by default.
    pub beta_fast: f64,
    /// Frequencies that turn less often are divided by `factor`; 1 by default.
    pub beta_slow: f64,
    /// Context of the training, tokens.
    pub original_max_position: usize,
    /// Where the scale of cosines and sines comes from.
    pub attention: YarnAttention,
    /// Whether the ends of the ramp are rounded to whole dimensions; true by default.
    pub truncate: bool,
}

/// The scale of cosines and sines under YaRN, which makes up for softer attention over more keys.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum YarnAttention {
    /// `0.1 ln(factor) + 1`: neither `attention_factor` nor both mscales are given.
    FromFactor,
    /// `attention_factor` of the checkpoint.
    Explicit(f64),
    /// The quotient of two such scales: DeepSeek's `mscale` and `mscale_all_dim`.
    Quotient {
        /// Weight of the numerator's logarithm.
        mscale: f64,
        /// Weight of the denominator's logarithm.
        mscale_all_dim: f64,
    },
}

/// What a checkpoint says about its rotary embedding.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RopeConfig {
    /// Elements of a head that turn: `head_dim`, or less with partial rotary. Even.
    pub rotary_dim: usize,
    /// Base of the wavelengths.
    pub theta: f64,
    /// Stretching.
    pub scaling: RopeScaling,
    /// Pairing.
    pub style: RopeStyle,
}

/// `0.1 * mscale * ln(factor) + 1`, and 1 for factors up to 1: YaRN's correction of attention.
///
/// DeepSeek multiplies its softmax scale by the square of this with `mscale_all_dim`.
pub fn yarn_mscale(factor: f64, mscale: f64) -> f64 {
    if factor <= 1.0 { 1.0 } else { 0.1 * mscale * factor.ln() + 1.0 }
}

/// A rotary embedding with its frequencies.
#[derive(Debug, Clone)]
pub struct Rope {
    style: RopeStyle,
    inverse_frequencies: Vec<f32>,
    attention_scaling: f32,
}

/// Where the rotary part lies in a row of `heads` heads.
#[derive(Debug, Clone, PartialEq)]
pub struct RopeTarget {
    /// Elements of a row that one token takes.
    pub row_width: usize,
    /// Columns of the row that hold heads.
    pub columns: Range<usize>,
    /// Elements of one head; divides the width of `columns`.
    pub head_dim: usize,
    /// First element of the rotary part within a head.
    pub offset: usize,
}

impl RopeTarget {
    /// Rows that are `heads` heads of `head_dim` and nothing else, rotary part first.
    pub fn heads(heads: usize, head_dim: usize) -> Self {
        let row_width = heads * head_dim;
        Self { row_width, columns: 0..row_width, head_dim, offset: 0 }
    }

    /// The same rows with the rotary part at `offset` within each head.
    pub fn at(self, offset: usize) -> Self {
        Self { offset, ..self }
    }
}

/// Cosines and sines of the tokens of one step, made once and used by every layer.
#[derive(Debug, Clone)]
pub struct RopeTable {
    style: RopeStyle,
    /// Pairs of a head, `rotary_dim / 2`.
    pairs: usize,
    /// `[T, pairs]`, scaled.
    cos: Vec<f32>,
    /// `[T, pairs]`, scaled.
    sin: Vec<f32>,
}

impl Rope {
    /// Computes the frequencies.
    ///
    /// # Errors
    /// [`LayersError::Config`] for an odd or empty rotary part and for values that are not finite
    /// and positive where they must be.
    pub fn new(config: &RopeConfig) -> Result<Self, LayersError> {
        frequencies::check(config)?;
        Ok(Self {
            style: config.style,
            inverse_frequencies: frequencies::inverse_frequencies(config),
            attention_scaling: frequencies::attention_scaling(config),
        })
    }

    /// Which elements turn together.
    pub fn style(&self) -> RopeStyle {
        self.style
    }

    /// Elements of a head that turn.
    pub fn rotary_dim(&self) -> usize {
        2 * self.inverse_frequencies.len()
    }

    /// Radians per token, one per pair.
    pub fn inverse_frequencies(&self) -> &[f32] {
        &self.inverse_frequencies
    }

    /// What cosines and sines are multiplied by: 1 except under YaRN.
    pub fn attention_scaling(&self) -> f32 {
        self.attention_scaling
    }

    /// Cosines and sines for the tokens at `positions` `[T]`. Costs one sine and one cosine per
    /// token and pair; nothing is kept between steps, so a long context costs no memory.
    pub fn table(&self, positions: &[usize]) -> RopeTable {
        cpu::table(self, positions)
    }
}

impl RopeTable {
    /// Tokens, `T`.
    pub fn tokens(&self) -> usize {
        self.cos.len() / self.pairs
    }

    /// Turns the rotary part of every head of every row in place.
    ///
    /// # Errors
    /// [`LayersError::Shape`] when `rows` does not hold one row for each position, and
    /// [`LayersError::Config`] when `target` does not fit its own row or the rotary part no head.
    pub fn apply(&self, target: &RopeTarget, rows: &mut [f32]) -> Result<(), LayersError> {
        self.check(target)?;
        let expected = self.tokens().saturating_mul(target.row_width);
        LayersError::check_shape("the rows to turn", expected, rows.len())?;
        cpu::apply(self, target, rows);
        Ok(())
    }

    fn check(&self, target: &RopeTarget) -> Result<(), LayersError> {
        let RopeTarget { row_width, columns, head_dim, offset } = target;
        if columns.start > columns.end
            || columns.end > *row_width
            || !columns.len().is_multiple_of(*head_dim)
        {
            let allowed = format!("whole heads of {head_dim} within 0..{row_width}");
            return Err(LayersError::config("rope columns", format!("{columns:?}"), allowed));
        }
        let end = offset.saturating_add(2 * self.pairs);
        if *head_dim > 0 && end > *head_dim {
            let allowed = format!("at most {head_dim}, the head dimension");
            return Err(LayersError::config("end of the rotary part", end, allowed));
        }
        Ok(())
    }
}
