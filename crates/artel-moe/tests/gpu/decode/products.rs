//! One product alone, on the same quantised numbers.

use artel_device::cuda::Kernels;
use artel_gpu_test::{Case, Gpu};
use artel_moe::MoeError;
use artel_moe::assignment::{AlignOptions, Assignment, Workspace, cpu};
use artel_moe::grouped_gemm::decode::DecodeTile;
use artel_moe::grouped_gemm::decode::cuda::{
    BlockSlices, Fp8Product, PlainProduct, ProductStep, QuantizeRows, Release, RowsFrom,
};
use artel_moe::quant::activations::{Granularity, ScaleBounds};
use artel_moe::quant::{Bf16, Fp8Block128, e4m3_from_f32, e4m3_to_f32};
use half::bf16;

use super::experts::weight_slices;
use super::layer::{Layer, Sizes, check_close, hidden_states, kept, multiply};

const SIZES: Sizes = Sizes { experts: 5, top_k: 3, hidden: 320, inner: 192 };
const TILE: DecodeTile = DecodeTile { rows: 16, columns: 64, depth: 64, warps: 4, occupancy: 2 };
const FEATURES: [usize; 2] = [2 * SIZES.inner, SIZES.hidden];
const TOKENS: usize = 11;
const FROM: RowsFrom = RowsFrom::Tokens { top_k: SIZES.top_k };

pub fn cases() -> Vec<Case> {
    let plain = |kernels: &mut Kernels| {
        PlainProduct::<bf16>::load(kernels, SIZES.experts, FEATURES, None, FROM, TILE)
    };
    let channel = |kernels: &mut Kernels| {
        let scales = Some([1, SIZES.hidden]);
        Fp8Product::<bf16>::load(kernels, SIZES.experts, FEATURES, scales, FROM, TILE)
    };
    vec![
        Case::new("decode::product_plain", plain, check_plain),
        Case::new("decode::product_blocks", load_blocks, check_blocks),
        Case::new("decode::product_channels", channel, check_channels),
    ]
}

fn load_blocks(kernels: &mut Kernels) -> Result<(QuantizeRows, Fp8Product<bf16>), MoeError> {
    let quantize =
        QuantizeRows::load(kernels, "bf16", SIZES.hidden, Granularity::Groups, Release::AfterWait)?;
    let scales = Some([64, 128]);
    let product = Fp8Product::load(kernels, SIZES.experts, FEATURES, scales, FROM, TILE)?;
    Ok((quantize, product))
}

fn ids() -> Vec<i32> {
    let pairs = TOKENS * SIZES.top_k;
    (0..pairs).map(|pair| (pair * 7 % 6) as i32 - i32::from(pair % 9 == 4)).collect()
}

/// Positions of an assignment and its buffers.
struct Blocks {
    sorted: Vec<i32>,
    buffers: [artel_device::cuda::DeviceBuffer<i32>; 3],
    blocks: usize,
}

impl Blocks {
    fn new(gpu: &Gpu) -> Self {
        let (mut scratch, mut out) = (Workspace::default(), Assignment::default());
        let options = AlignOptions::new(SIZES.experts, TILE.rows);
        cpu::align(&ids(), &options, &mut scratch, &mut out).expect("a legal block size");
        let blocks = out.sorted_token_ids.len().div_ceil(TILE.rows);
        let mut sorted = out.sorted_token_ids.clone();
        sorted.resize(blocks * TILE.rows, out.num_pairs as i32);
        let padded = [out.num_tokens_post_padded as i32];
        let buffers = [gpu.upload(&sorted), gpu.upload(&out.expert_ids), gpu.upload(&padded)];
        Self { sorted, buffers, blocks }
    }

    fn slices(&self) -> BlockSlices<'_> {
        BlockSlices {
            sorted_token_ids: self.buffers[0].slice(),
            expert_ids: self.buffers[1].slice(),
            num_tokens_post_padded: self.buffers[2].slice(),
            blocks: self.blocks,
        }
    }

    /// Compares the row of every pair whose expert exists.
    fn check(&self, out: &[bf16], expected: impl Fn(usize, usize) -> Vec<f64>) {
        let (mut found, mut wanted) = (Vec::<bf16>::new(), Vec::new());
        for (pair, &id) in ids().iter().enumerate() {
            if (0..SIZES.experts as i32).contains(&id) {
                let position = self.sorted.iter().position(|&entry| entry == pair as i32);
                let position = position.expect("pairs with an expert have a position");
                found.extend(&out[position * FEATURES[0]..(position + 1) * FEATURES[0]]);
                wanted.extend(expected(pair / SIZES.top_k, id as usize));
            }
        }
        check_close(&found, &wanted, 5e-3, "one product");
    }
}

fn row(x: &[bf16], token: usize) -> Vec<f32> {
    x[token * SIZES.hidden..][..SIZES.hidden].iter().map(|x| x.to_f32()).collect()
}

fn check_plain(gpu: &Gpu, product: &PlainProduct<bf16>) -> Result<(), MoeError> {
    let layer = Layer::<Bf16>::new(SIZES);
    let (numbers, _) = Layer::<Bf16>::stack(&layer.w13);
    let x = hidden_states::<Bf16>(TOKENS, SIZES.hidden);
    let (numbers, bytes) = (gpu.upload(&numbers), gpu.upload::<u8>(bytemuck::cast_slice(&x)));
    let (no_scales, blocks) = (gpu.upload::<f32>(&[]), Blocks::new(gpu));
    let mut out = gpu.poisoned::<bf16>(blocks.blocks * TILE.rows * FEATURES[0]);
    let step = ProductStep {
        x: bytes.slice(),
        x_scales: no_scales.slice(),
        rows: TOKENS,
        pairs: TOKENS * SIZES.top_k,
        blocks: blocks.slices(),
        weights: weight_slices(&numbers, &no_scales),
    };
    product.launch(&gpu.stream, &step, &mut out.slice_mut())?;
    blocks.check(&gpu.download(&out), |token, expert| {
        multiply(&layer.w13, expert, &kept::<Bf16>(&row(&x, token), None, 0.0))
    });
    Ok(())
}

fn check_blocks(
    gpu: &Gpu,
    (quantize, product): &(QuantizeRows, Fp8Product<bf16>),
) -> Result<(), MoeError> {
    let layer = Layer::<Fp8Block128>::new(SIZES);
    let (numbers, scales) = Layer::<Fp8Block128>::stack(&layer.w13);
    let x = hidden_states::<Fp8Block128>(TOKENS, SIZES.hidden);
    let (numbers, scales, x_device) = (gpu.upload(&numbers), gpu.upload(&scales), gpu.upload(&x));
    let mut codes = gpu.poisoned::<u8>(TOKENS * SIZES.hidden);
    let mut x_scales = gpu.poisoned::<f32>(SIZES.hidden.div_ceil(128) * TOKENS);
    let target = (codes.slice_mut(), x_scales.slice_mut(), TOKENS);
    quantize.launch(&gpu.stream, x_device.slice(), TOKENS, target, ScaleBounds::HIDDEN)?;
    let blocks = Blocks::new(gpu);
    let mut out = gpu.poisoned::<bf16>(blocks.blocks * TILE.rows * FEATURES[0]);
    let step = ProductStep {
        x: codes.slice(),
        x_scales: x_scales.slice(),
        rows: TOKENS,
        pairs: TOKENS * SIZES.top_k,
        blocks: blocks.slices(),
        weights: weight_slices(&numbers, &scales),
    };
    product.launch(&gpu.stream, &step, &mut out.slice_mut())?;
    let x_scales = gpu.download(&x_scales);
    for (token, codes) in gpu.download(&codes).chunks(SIZES.hidden).enumerate() {
        for (column, (&code, x)) in codes.iter().zip(row(&x, token)).enumerate() {
            let scale = x_scales[column / 128 * TOKENS + token];
            assert_eq!(code, e4m3_from_f32(x / scale), "token {token}, column {column}");
        }
    }
    blocks.check(&gpu.download(&out), |token, expert| {
        multiply(&layer.w13, expert, &kept::<Fp8Block128>(&row(&x, token), None, 1e-10 / 448.0))
    });
    Ok(())
}

fn check_channels(gpu: &Gpu, product: &Fp8Product<bf16>) -> Result<(), MoeError> {
    let numbers = SIZES.experts * FEATURES[0] * FEATURES[1];
    let code = |index: usize| e4m3_from_f32(((index * 37 % 1009) as f32 - 504.0) * 0.8);
    let codes: Vec<u8> = (0..numbers).map(code).collect();
    let scales: Vec<f32> =
        (0..SIZES.experts * FEATURES[0]).map(|n| 1e-4 * (1 + n % 7) as f32).collect();
    let x: Vec<u8> = (0..TOKENS * FEATURES[1]).map(|index| code(index * 3 + 5)).collect();
    let x_scales: Vec<f32> = (0..TOKENS).map(|token| 0.01 * (1 + token) as f32).collect();
    let (codes_device, scales_device) = (gpu.upload(&codes), gpu.upload(&scales));
    let (x_device, x_scales_device) = (gpu.upload(&x), gpu.upload(&x_scales));
    let blocks = Blocks::new(gpu);
    let mut out = gpu.poisoned::<bf16>(blocks.blocks * TILE.rows * FEATURES[0]);
    let step = ProductStep {
        x: x_device.slice(),
        x_scales: x_scales_device.slice(),
        rows: TOKENS,
        pairs: TOKENS * SIZES.top_k,
        blocks: blocks.slices(),
        weights: weight_slices(&codes_device, &scales_device),
    };
    product.launch(&gpu.stream, &step, &mut out.slice_mut())?;
    blocks.check(&gpu.download(&out), |token, expert| {
        let x = &x[token * FEATURES[1]..][..FEATURES[1]];
        let feature = |n: usize| {
            let row = expert * FEATURES[0] + n;
            let weights = &codes[row * FEATURES[1]..][..FEATURES[1]];
            let wide = |code: u8| f64::from(e4m3_to_f32(code));
            let sum: f64 = weights.iter().zip(x).map(|(&w, &x)| wide(w) * wide(x)).sum();
            sum * f64::from(scales[row]) * f64::from(x_scales[token])
        };
        (0..FEATURES[0]).map(feature).collect()
    });
    Ok(())
}
