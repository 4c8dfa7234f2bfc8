//! What a product has to do, whatever does it: experts touched, bytes, operations.

use crate::MoeError;
use crate::activation::Gating;
use crate::config::MoeConfig;
use crate::grouped_gemm::decode::{DecodeShape, WeightNumbers};
use crate::grouped_gemm::prefill::PrefillForm;
use crate::grouped_gemm::words::{WordCode, WordFormat, WordShape};
use crate::quant::{BLOCK, Format};
use crate::weights::{StackLayout, WordStack};

use super::device::GpuCeilings;
use super::kernel::{GemmFamily, GpuProduct};

/// Sizes that decide how long the experts of a layer take, on one rank.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ExpertsShape {
    /// Experts that a token chooses from, over all ranks.
    pub experts: usize,
    /// Experts that lie on this rank.
    pub local_experts: usize,
    /// Experts of one token.
    pub top_k: usize,
    /// `H`.
    pub hidden_size: usize,
    /// `I` on this rank.
    pub intermediate_size: usize,
    /// Number format of the weights.
    pub format: Format,
    /// What becomes of gate and up.
    pub gating: Gating,
}

impl ExpertsShape {
    /// The part of a layer that lies on one rank.
    pub fn of(config: &MoeConfig, format: Format) -> Self {
        Self {
            experts: config.shape().num_experts,
            local_experts: config.local_experts(),
            top_k: config.shape().top_k,
            hidden_size: config.shape().hidden_size,
            intermediate_size: config.local_intermediate_size(),
            format,
            gating: config.gating(),
        }
    }

    /// Output and input features of one product.
    pub fn features(&self, product: GpuProduct) -> (usize, usize) {
        match product {
            GpuProduct::GateUp => (2 * self.intermediate_size, self.hidden_size),
            GpuProduct::Down => (self.hidden_size, self.intermediate_size),
        }
    }

    /// How GPU kernels find the weights' numbers; `None` for a format without such kernels.
    pub fn weight_numbers(&self) -> Option<WeightNumbers> {
        match self.format {
            Format::Bf16 | Format::F16 => Some(WeightNumbers::Plain),
            Format::Fp8Block128 => {
                // Gate and up, and the ranks' shards, may begin inside a block.
                let shared = BLOCK.min(1 << self.intermediate_size.trailing_zeros());
                Some(WeightNumbers::Fp8Blocks { w13: [shared, BLOCK], w2: [BLOCK, shared] })
            }
            // Gate and up have a scale each.
            Format::Fp8Tensor => Some(WeightNumbers::Fp8Blocks {
                w13: [self.intermediate_size, self.hidden_size],
                w2: [self.hidden_size, self.intermediate_size],
            }),
            Format::Fp8Channel => Some(WeightNumbers::Fp8Blocks {
                w13: [1, self.hidden_size],
                w2: [1, self.intermediate_size],
            }),
            _ => None,
        }
    }

    /// How the words of both products' weights are read; `None` for a format that is read otherwise.
    pub fn word_formats(&self) -> Option<[WordFormat; 2]> {
        let groups = match self.format {
            Format::Mxfp4 => return Some([WordFormat { code: WordCode::Mxfp4, group: 32 }; 2]),
            Format::Nvfp4 => return Some([WordFormat { code: WordCode::Nvfp4, group: 16 }; 2]),
            Format::Mxfp8 => return Some([WordFormat { code: WordCode::Mxfp8, group: 32 }; 2]),
            Format::Int8W8A8 => {
                return Some([WordFormat { code: WordCode::Int8Rows, group: BLOCK }; 2]);
            }
            // A rank's shard may begin inside a group, which becomes smaller ones.
            Format::Int4W4A16 | Format::Int8W8A16 => {
                [BLOCK, BLOCK.min(1 << self.intermediate_size.trailing_zeros()).max(64)]
            }
            _ => return None,
        };
        let code = match self.format {
            Format::Int4W4A16 => WordCode::Int4,
            _ => WordCode::Int8,
        };
        Some(groups.map(|group| WordFormat { code, group }))
    }

    /// Sizes as the kernels of weights in words take them.
    pub fn word_shape(&self) -> Option<WordShape> {
        Some(WordShape {
            experts: self.local_experts,
            top_k: self.top_k,
            hidden_size: self.hidden_size,
            intermediate_size: self.intermediate_size,
            formats: self.word_formats()?,
            gating: self.gating,
        })
    }

    /// Sizes as the kernels of small batches take them, where the format has GPU kernels.
    pub fn decode_shape(&self) -> Option<DecodeShape> {
        Some(DecodeShape {
            experts: self.local_experts,
            top_k: self.top_k,
            hidden_size: self.hidden_size,
            intermediate_size: self.intermediate_size,
            numbers: self.weight_numbers()?,
            gating: self.gating,
        })
    }

    /// One product's weights as a stack, where the format has GPU kernels.
    pub fn stack_layout(&self, product: GpuProduct) -> Option<StackLayout> {
        let (rows, columns) = self.features(product);
        let experts = self.local_experts;
        if let Some(formats) = self.word_formats() {
            let (format, parts) = match product {
                GpuProduct::GateUp => (formats[0], 2),
                GpuProduct::Down => (formats[1], 1),
            };
            let words = Some(WordStack { format, parts });
            let (number_bytes, scale_block) = (1, None);
            return Some(StackLayout { experts, rows, columns, number_bytes, scale_block, words });
        }
        let blocks = self.weight_numbers()?.scale_blocks();
        let scale_block = match product {
            GpuProduct::GateUp => blocks[0],
            GpuProduct::Down => blocks[1],
        };
        let number_bytes = if scale_block.is_some() { 1 } else { 2 };
        let words = None;
        Some(StackLayout { experts, rows, columns, number_bytes, scale_block, words })
    }

    /// What the prefill kernels of a family store of a product.
    pub fn prefill_form(&self, product: GpuProduct, family: GemmFamily) -> PrefillForm {
        match (product, self.format) {
            (GpuProduct::GateUp, _) if self.word_formats().is_some() => {
                PrefillForm::SiluAndMultiply
            }
            // Only SiLU stands in the other products.
            (GpuProduct::GateUp, _) if self.gating != Gating::SILU => PrefillForm::Sums,
            (GpuProduct::GateUp, Format::Bf16 | Format::F16) => PrefillForm::SiluAndMultiply,
            // Gates and ups of a tile have one scale each.
            (GpuProduct::GateUp, Format::Fp8Block128)
                if self.intermediate_size.is_multiple_of(64) =>
            {
                PrefillForm::SiluAndMultiply
            }
            // Scales that come last, which tiles of a fixed height leave to the activation.
            (GpuProduct::GateUp, Format::Fp8Channel | Format::Fp8Tensor)
                if family == GemmFamily::Warpgroup =>
            {
                PrefillForm::SiluAndMultiply
            }
            _ => PrefillForm::Sums,
        }
    }

    /// The error of a format without GPU kernels.
    pub fn without_kernels(&self) -> MoeError {
        let allowed = "any but f32 on a GPU";
        MoeError::config("format of the experts", self.format, allowed)
    }

    /// Rows of both matrices are multiples of the sixteen bytes that the copy engine moves.
    pub fn is_copied_by_tiles(&self) -> bool {
        GpuProduct::ALL.iter().all(|&product| {
            self.stack_layout(product).is_some_and(|layout| match layout.word_layout() {
                Some(words) => words.rows.is_multiple_of(4),
                None => (layout.columns * layout.number_bytes).is_multiple_of(16),
            })
        })
    }

    /// Pairs of a batch that lie on this rank, on average.
    pub fn pairs(&self, tokens: usize) -> f64 {
        let share = self.local_experts as f64 / self.experts as f64;
        tokens as f64 * self.top_k as f64 * share
    }

    /// Chance that a token chooses a given expert when all are equally popular.
    fn hit_rate(&self) -> f64 {
        (self.top_k as f64 / self.experts as f64).min(1.0)
    }

    /// Experts of this rank that at least one token of the batch chooses, on average.
    pub fn experts_touched(&self, tokens: usize) -> f64 {
        let missed = (1.0 - self.hit_rate()).powf(tokens as f64);
        self.local_experts as f64 * (1.0 - missed)
    }

    /// Blocks of `rows` rows that the pairs of a batch fill, on average: the sum over experts of
    /// `ceil(n / rows)`, `n` binomially distributed.
    pub fn blocks(&self, tokens: usize, rows: usize) -> f64 {
        let p = self.hit_rate();
        if p >= 1.0 {
            return (self.local_experts * tokens.div_ceil(rows)) as f64;
        }
        // Logarithms, because (1 - p)^T underflows for large batches.
        let odds = (p / (1.0 - p)).ln();
        let mut log_chance = tokens as f64 * (1.0 - p).ln();
        let mut expected = 0.0;
        for n in 0..=tokens {
            expected += log_chance.exp() * n.div_ceil(rows) as f64;
            log_chance += odds + ((tokens - n) as f64 / (n + 1) as f64).ln();
        }
        self.local_experts as f64 * expected
    }

    /// Bytes of one expert's matrix, scales included.
    pub fn matrix_bytes(&self, product: GpuProduct) -> f64 {
        let (rows, columns) = self.features(product);
        let weights = (rows * columns) as f64;
        match self.format {
            Format::F32 => weights * 4.0,
            Format::F16 | Format::Bf16 => weights * 2.0,
            Format::Fp8Block128 => {
                weights + (rows.div_ceil(BLOCK) * columns.div_ceil(BLOCK) * 4) as f64
            }
            Format::Fp8Tensor => weights + 4.0,
            Format::Fp8Channel | Format::Int8W8A8 => weights + (rows * 4) as f64,
            Format::Int8W8A16 => weights + (rows * columns.div_ceil(128) * 4) as f64,
            Format::Int4W4A16 => weights / 2.0 + (rows * columns.div_ceil(128) * 4) as f64,
            Format::Nvfp4 => weights / 2.0 + (rows * columns.div_ceil(16)) as f64,
            Format::Mxfp4 => weights / 2.0 + (rows * columns.div_ceil(32)) as f64,
            Format::Mxfp8 => weights + (rows * columns.div_ceil(32)) as f64,
        }
    }

    /// Bytes of one row of the product's input.
    pub fn row_bytes(&self, product: GpuProduct) -> f64 {
        let columns = self.features(product).1;
        match self.format {
            Format::F32 => (columns * 4) as f64,
            Format::F16 | Format::Bf16 => (columns * 2) as f64,
            Format::Fp8Block128 => (columns + columns.div_ceil(BLOCK) * 4) as f64,
            Format::Fp8Tensor | Format::Fp8Channel | Format::Int8W8A8 => (columns + 4) as f64,
            _ => (columns * 2) as f64,
        }
    }

    /// Operations a second of the units that this format multiplies on.
    ///
    /// # Errors
    /// [`MoeError::Config`] for a format without kernels on that GPU, with what there is.
    pub fn arithmetic(&self, gpu: &GpuCeilings) -> Result<f64, MoeError> {
        let unsupported = |allowed: &str| {
            let field = "number format of the experts";
            let message = format!("{allowed} on {} (convert with --format)", gpu.architecture);
            Err(MoeError::config(field, self.format, message))
        };
        match (self.format, gpu.fp8) {
            (Format::Bf16 | Format::F16, _) => Ok(gpu.bf16),
            (Format::Fp8Block128 | Format::Fp8Tensor | Format::Fp8Channel, Some(fp8)) => Ok(fp8),
            (Format::Int8W8A8, Some(fp8)) => Ok(fp8),
            (Format::F32, Some(_)) => unsupported("any format but f32"),
            // Both parts of activations through FP8 take longer than their sixteen bits at once would.
            (_, Some(_)) => Ok(gpu.bf16),
            (_, None) => unsupported("bf16 or f16"),
        }
    }

    /// No implementation is faster: weights of the touched experts, rows in and rows out read and
    /// written once, or the operations of the pairs without padding. Seconds.
    ///
    /// # Errors
    /// As [`arithmetic`](Self::arithmetic).
    pub fn floor(
        &self,
        product: GpuProduct,
        tokens: usize,
        gpu: &GpuCeilings,
    ) -> Result<f64, MoeError> {
        let (rows, columns) = self.features(product);
        let pairs = self.pairs(tokens);
        let rows_in = match product {
            GpuProduct::GateUp => tokens as f64,
            GpuProduct::Down => pairs,
        };
        let bytes = self.experts_touched(tokens) * self.matrix_bytes(product)
            + rows_in * self.row_bytes(product)
            + pairs * rows as f64 * 2.0;
        let operations = 2.0 * pairs * rows as f64 * columns as f64;
        Ok((bytes / gpu.read).max(operations / self.arithmetic(gpu)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::activation::Activation;
    use crate::grouped_gemm::decode::DecodeTile;

    const MINIMAX_TP2: ExpertsShape = ExpertsShape {
        experts: 256,
        local_experts: 256,
        top_k: 8,
        hidden_size: 3072,
        intermediate_size: 768,
        format: Format::Fp8Block128,
        gating: Gating::SILU,
    };

    /// Whatever activates gate and up in another way than by SiLU without biases needs both.
    #[test]
    fn products_of_many_rows_store_sums_for_other_activations() {
        let form_of = |format, gating, family| {
            let shape = ExpertsShape { format, gating, ..MINIMAX_TP2 };
            shape.prefill_form(GpuProduct::GateUp, family)
        };
        let form = |format, gating| form_of(format, gating, GemmFamily::Prefill);
        let gelu = Gating { activation: Activation::Gelu, biases: false };
        let biased = Gating { biases: true, ..Gating::SILU };
        for format in [Format::Bf16, Format::Fp8Block128] {
            assert_eq!(form(format, Gating::SILU), PrefillForm::SiluAndMultiply);
            assert_eq!([gelu, biased].map(|gating| form(format, gating)), [PrefillForm::Sums; 2]);
        }
        for format in [Format::Mxfp4, Format::Mxfp8] {
            assert_eq!(form(format, biased), PrefillForm::SiluAndMultiply);
        }
        for format in [Format::Fp8Channel, Format::Fp8Tensor] {
            assert_eq!(form(format, Gating::SILU), PrefillForm::Sums);
            let form = |gating| form_of(format, gating, GemmFamily::Warpgroup);
            assert_eq!(form(Gating::SILU), PrefillForm::SiluAndMultiply);
            assert_eq!(form(gelu), PrefillForm::Sums);
        }
    }

    #[test]
    fn averages_are_those_of_the_distribution() {
        assert_eq!(MINIMAX_TP2.experts_touched(1), 8.0);
        assert!((MINIMAX_TP2.experts_touched(64) - 222.45).abs() < 0.1);
        // One row a block: every pair is a block. Blocks as large as the batch: one an expert.
        for tokens in [1, 7, 64, 4096] {
            let pairs = MINIMAX_TP2.pairs(tokens);
            assert!((MINIMAX_TP2.blocks(tokens, 1) / pairs - 1.0).abs() < 1e-9);
            let touched = MINIMAX_TP2.experts_touched(tokens);
            assert!((MINIMAX_TP2.blocks(tokens, tokens) / touched - 1.0).abs() < 1e-9);
        }
        // Many rows an expert: half a block of padding each.
        let blocks = MINIMAX_TP2.blocks(16384, 16);
        assert!((blocks / 256.0 - (512.0 / 16.0 + 0.5 * 15.0 / 16.0)).abs() < 0.01, "{blocks}");
        let all = ExpertsShape { experts: 4, local_experts: 4, top_k: 4, ..MINIMAX_TP2 };
        assert_eq!((all.experts_touched(3), all.blocks(3, 2)), (4.0, 8.0));
        let half = ExpertsShape { local_experts: 128, ..MINIMAX_TP2 };
        assert_eq!((half.pairs(2), half.experts_touched(1)), (8.0, 4.0));
    }

    #[test]
    fn floors_are_bytes_at_first_and_operations_later() {
        let gpu = GpuCeilings::of_architecture("sm_90").unwrap();
        let floor = |product, tokens| MINIMAX_TP2.floor(product, tokens, gpu).unwrap() * 1e6;
        assert!((floor(GpuProduct::GateUp, 1) - 8.7).abs() < 0.1);
        assert!((floor(GpuProduct::Down, 64) - 121.9).abs() < 1.0);
        let operations = 2.0 * 8192.0 * 8.0 * 1536.0 * 3072.0 / 1362e12 * 1e6;
        assert!((floor(GpuProduct::GateUp, 8192) - operations).abs() < 1e-6);
    }

    #[test]
    fn scales_that_come_last_do_not_narrow_tiles() {
        let tiles = |format| {
            let shape = ExpertsShape { format, ..MINIMAX_TP2 }.decode_shape().unwrap();
            [DecodeTile::direct(&shape, 4), DecodeTile::aligned(&shape, 64)]
        };
        let blocks = tiles(Format::Fp8Block128);
        assert_eq!([Format::Fp8Tensor, Format::Fp8Channel].map(tiles), [blocks; 2]);
        let scales = |format| {
            let shape = ExpertsShape { format, ..MINIMAX_TP2 };
            GpuProduct::ALL.map(|product| shape.stack_layout(product).unwrap().scales_per_expert())
        };
        assert_eq!(scales(Format::Fp8Tensor), [2, 1]);
        assert_eq!(scales(Format::Fp8Channel), [1536, 3072]);
    }

    #[test]
    fn formats_without_kernels_are_refused_with_what_there_is() {
        let gpu = |name| GpuCeilings::of_architecture(name).unwrap();
        let refused = MINIMAX_TP2.arithmetic(gpu("sm_80")).unwrap_err().to_string();
        assert!(
            refused.contains("fp8-block128") && refused.contains("bf16 or f16 on sm_80"),
            "{refused}"
        );
        let floats = ExpertsShape { format: Format::F32, ..MINIMAX_TP2 };
        assert!(floats.arithmetic(gpu("sm_90")).is_err());
        let half = ExpertsShape { format: Format::Bf16, ..MINIMAX_TP2 };
        assert_eq!(half.arithmetic(gpu("sm_80")), Ok(218e12));
        assert_eq!(GpuCeilings::of_architecture("sm_75"), None);
    }
}
