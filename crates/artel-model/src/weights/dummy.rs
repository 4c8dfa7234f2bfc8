//! Weights for measurements of checkpoints that are not there: random numbers of the right shapes and
//! types, out of a few pools that all tensors share, so that a layer costs neither time nor memory.
//!
//! A tensor is a window of its pool; its name says where the window begins. A map leaves rows of about the
//! size that it read, embeddings are 1 in size and norms near 1. The last maps of attention and MLPs leave
//! less, the more layers there are: attention adds nearly the same to all tokens, which would be all that
//! is left of them after some layers, and all would choose the same experts.

use std::collections::BTreeMap;

use artel_device::HostBuffer;
use artel_moe::quant::e4m3_from_f32;
use half::bf16;
use rayon::prelude::*;

use crate::checkpoint::{Dtype, StoredTensor};
use crate::config::{ConfigReader, Quantization};
use crate::{ModelError, Result};

/// Windows of a pool begin at multiples of this within [`SLACK_BYTES`].
const WINDOW_BYTES: usize = 64;

/// How much longer a pool is than its longest tensor.
const SLACK_BYTES: usize = 1 << 20;

/// Bytes that are made by one task.
const CHUNK_BYTES: usize = 1 << 18;

/// Largest magnitude of codes.
const CODE_MAX: f32 = 240.0;

/// The power of two that is 1.
const E8M0_ONE: u32 = 127;

/// Quotient of the largest number and the standard deviation of a uniform distribution.
const UNIFORM_RANGE: f32 = 1.732_050_8;

/// Modules whose weights are plain numbers in every checkpoint.
const PLAIN_MODULES: [&str; 4] = ["embed_tokens", "lm_head", "gate", "shared_expert_gate"];

/// What a tensor is filled with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Filling {
    /// bfloat16 with a standard deviation of `2^-exponent`.
    Numbers { exponent: u32 },
    /// bfloat16 from 0.9 to 1.1.
    Ones,
    /// e4m3 codes up to [`CODE_MAX`].
    Codes,
    /// float32 scales that bring codes to a standard deviation of about `2^-exponent`.
    Scales { exponent: u32 },
    /// Bytes of any bits: two e2m1 codes each.
    Pairs,
    /// Powers of two, as bytes, that bring such codes to a standard deviation of about `2^-exponent`.
    Powers { exponent: u32 },
}

/// The pools of one model while it is loaded.
#[derive(Debug)]
pub(super) struct DummyTensors {
    has_codes: bool,
    /// Whether experts are those of gpt-oss in MXFP4.
    has_pairs: bool,
    layers: usize,
    /// Further modules whose weights are plain numbers.
    plain: Vec<String>,
    pools: BTreeMap<Filling, HostBuffer>,
}

impl DummyTensors {
    /// Pools for a checkpoint that stores its weights as `quantization` says.
    pub(super) fn new(config: &ConfigReader<'_>, quantization: Quantization) -> Result<Self> {
        let object = config.object("quantization_config")?;
        let method = object.as_ref().map(|object| object.text("quant_method")).transpose()?;
        let (has_codes, has_pairs) = match (quantization, method) {
            (Quantization::None, _) => (false, false),
            (Quantization::Fp8Block128 | Quantization::Fp8, _) => (true, false),
            (Quantization::Mxfp4, Some("mxfp4")) => (false, true),
            (other, _) => {
                let why = format!(
                    "there are no dummy weights for {other:?}, only for plain, FP8 and gpt-oss's MXFP4"
                );
                return Err(ModelError::Quantization { why });
            }
        };
        let plain = object.map(|object| object.texts("modules_to_not_convert")).transpose()?;
        let plain = plain.flatten().unwrap_or_default().into_iter().map(str::to_owned).collect();
        let layers = config.size("num_hidden_layers")?;
        Ok(Self { has_codes, has_pairs, layers, plain, pools: BTreeMap::new() })
    }

    /// Whether there is a tensor `name`, where checkpoints may store another one instead.
    pub(super) fn has(&self, name: &str) -> bool {
        self.has_pairs && name.ends_with("_blocks")
    }

    /// The tensor `name`.
    pub(super) fn tensor(&mut self, name: &str, shape: &[usize]) -> Result<StoredTensor> {
        let filling = self.filling(name, shape);
        let bytes = shape.iter().product::<usize>() * filling.number_bytes();
        let windows = SLACK_BYTES / WINDOW_BYTES;
        let start = hash(name) as usize % windows * WINDOW_BYTES;
        let pool = self.pools.entry(filling).or_insert_with(|| filling.pool(bytes));
        if pool.len() < bytes + SLACK_BYTES {
            *pool = filling.pool(bytes);
        }
        Ok(StoredTensor {
            dtype: filling.dtype(),
            shape: shape.to_vec(),
            bytes: pool.slice(start..start + bytes)?,
            file: "dummy weights".into(),
        })
    }

    fn filling(&self, name: &str, shape: &[usize]) -> Filling {
        let (module, tensor) = name.rsplit_once('.').unwrap_or(("", name));
        let last = module.rsplit('.').next().unwrap_or_default();
        let inputs = shape.last().copied().unwrap_or(1);
        let depth = self.layers.next_power_of_two().ilog2();
        let less = match last {
            "o_proj" => depth,
            "down_proj" | "w2" => depth.div_ceil(2),
            _ if tensor.starts_with("down_proj") => depth.div_ceil(2),
            _ => 0,
        };
        // Rows of so many numbers keep their size, or become less.
        let exponent = |inputs: usize| inputs.max(1).ilog2().div_ceil(2) + less;
        match tensor {
            "weight_scale_inv" => Filling::Scales { exponent: exponent(inputs * 128) },
            "weight_scale" => Filling::Scales { exponent: 5 },
            _ if self.has_pairs && tensor.ends_with("_blocks") => Filling::Pairs,
            _ if self.has_pairs && tensor.ends_with("_scales") => {
                Filling::Powers { exponent: exponent(inputs * 32) }
            }
            "weight" if last.ends_with("norm") => Filling::Ones,
            "weight" if last == "embed_tokens" => Filling::Numbers { exponent: 0 },
            "weight" if shape.len() == 2 && self.is_code(module, last) => Filling::Codes,
            _ if shape.len() >= 2 => Filling::Numbers { exponent: exponent(inputs) },
            _ => Filling::Numbers { exponent: 6 },
        }
    }

    /// Whether the weight of a module is stored as codes.
    fn is_code(&self, module: &str, last: &str) -> bool {
        let is_listed = |plain: &String| module == plain || module.ends_with(&format!(".{plain}"));
        self.has_codes && !PLAIN_MODULES.contains(&last) && !self.plain.iter().any(is_listed)
    }
}

impl Filling {
    fn dtype(self) -> Dtype {
        match self {
            Self::Numbers { .. } | Self::Ones => Dtype::BF16,
            Self::Codes => Dtype::F8_E4M3,
            Self::Scales { .. } => Dtype::F32,
            Self::Pairs | Self::Powers { .. } => Dtype::U8,
        }
    }

    fn number_bytes(self) -> usize {
        match self {
            Self::Numbers { .. } | Self::Ones => 2,
            Self::Codes | Self::Pairs | Self::Powers { .. } => 1,
            Self::Scales { .. } => 4,
        }
    }

    /// A pool for tensors of up to `bytes` bytes.
    fn pool(self, bytes: usize) -> HostBuffer {
        let bytes = bytes + SLACK_BYTES;
        match self {
            Self::Numbers { exponent } => {
                let largest = UNIFORM_RANGE / (1u64 << exponent) as f32;
                HostBuffer::from_vec(random(bytes / 2, |x| bf16::from_f32(x * largest)))
            }
            Self::Ones => {
                HostBuffer::from_vec(random(bytes / 2, |x| bf16::from_f32(1.0 + 0.1 * x)))
            }
            Self::Codes => HostBuffer::from_vec(random(bytes, |x| e4m3_from_f32(x * CODE_MAX))),
            Self::Scales { exponent } => {
                let size = UNIFORM_RANGE / CODE_MAX / (1u64 << exponent) as f32;
                HostBuffer::from_vec(random(bytes / 4, |x| size * (1.0 + 0.1 * x)))
            }
            Self::Pairs => HostBuffer::from_vec(random(bytes, |x| (127.5 + 127.5 * x) as u8)),
            Self::Powers { exponent } => {
                // Codes of any bits have a standard deviation of 2.9, of which two powers around it
                // make about 1.
                let base = E8M0_ONE - exponent - 2;
                HostBuffer::from_vec(random(bytes, |x| (base + u32::from(x > 0.0)) as u8))
            }
        }
    }
}

/// `count` numbers made of 16 random bits each, as a number from -1 to 1.
fn random<T: Copy + Send + Sync + bytemuck::Pod>(count: usize, make: impl Fn(f32) -> T) -> Vec<T> {
    // Every possible number once: making one is a look-up.
    let table: Vec<T> = (0..1 << 16).map(|bits| make(bits as f32 / 32767.5 - 1.0)).collect();
    let mut numbers = vec![T::zeroed(); count];
    let chunks = numbers.par_chunks_mut(CHUNK_BYTES / size_of::<T>()).enumerate();
    chunks.for_each(|(chunk, numbers)| {
        let mut state = (chunk as u64).wrapping_mul(0xd134_2543_de82_ef95) | 1;
        for numbers in numbers.chunks_mut(4) {
            let word = next(&mut state);
            for (index, number) in numbers.iter_mut().enumerate() {
                *number = table[(word >> (16 * index)) as usize & 0xffff];
            }
        }
    });
    numbers
}

/// The next word of a random stream: SplitMix64 (Steele, Lea and Flood, 2014).
fn next(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let word = (*state ^ (*state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}

/// A number for each name.
fn hash(name: &str) -> u64 {
    let mut state = name.len() as u64;
    for byte in name.bytes() {
        state = state.wrapping_add(u64::from(byte)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
    next(&mut state)
}
