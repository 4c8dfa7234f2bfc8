//! Attention over a paged cache: within the rounding of the reference, whatever the length, the window
//! and the order of blocks; a sequence's bits do not depend on the batch.

mod decode;
mod heads;
mod prefill;
mod project;
mod single;

use artel_device::cuda::DeviceBuffer;
use artel_gpu_test::{Case, Gpu};
use artel_layers::attention::cuda::{AttentionParameters, SequenceSlices};
use artel_layers::attention::{Attention, AttentionShape, BLOCK_TOKENS, ValueStorage, reference};
use artel_moe::quant::Element;

use crate::numbers::{numbers, widened};

pub fn cases() -> Vec<Case> {
    [decode::cases(), prefill::cases(), heads::cases(), project::cases(), single::cases()]
        .into_iter()
        .flatten()
        .collect()
}

/// One layer and what is asked of it.
#[derive(Debug, Clone, Copy)]
struct Layer {
    shape: AttentionShape,
    window: Option<usize>,
    has_sinks: bool,
}

const SCALE: f32 = 0.25;

fn layer(query_heads: usize, kv_heads: usize, head_dim: usize) -> Layer {
    let (key_dim, value_dim, values) = (head_dim, head_dim, ValueStorage::Own);
    let shape = AttentionShape { query_heads, kv_heads, key_dim, value_dim, values };
    Layer { shape, window: None, has_sinks: false }
}

/// Heads that share a latent vector of `rank` elements and `rope_dim` that turn.
fn latent(query_heads: usize, rank: usize, rope_dim: usize) -> Layer {
    let (key_dim, values) = (rank + rope_dim, ValueStorage::KeyPrefix);
    let shape = AttentionShape { query_heads, kv_heads: 1, key_dim, value_dim: rank, values };
    Layer { shape, window: None, has_sinks: false }
}

/// Few heads, as many as DeepSeek-V3, and numbers of them that fill no block.
fn latent_layers() -> Vec<Layer> {
    vec![latent(128, 512, 64), latent(4, 128, 32), latent(24, 512, 16), latent(65, 256, 128)]
}

/// Grouped heads of every kind; windows shorter than a block, than a step and than a part.
fn layers() -> Vec<Layer> {
    let mut layers = vec![
        layer(32, 4, 128),
        layer(48, 8, 128),
        layer(64, 8, 64),
        layer(2, 2, 64),
        layer(12, 1, 128),
        layer(40, 2, 32),
        layer(4, 1, 256),
        Layer { has_sinks: true, ..layer(16, 2, 64) },
    ];
    for window in [1, 5, 16, 63, 64, 65, 128, 1000] {
        let has_sinks = window % 2 == 1;
        layers.push(Layer { window: Some(window), has_sinks, ..layer(8, 2, 64) });
    }
    layers
}

impl Layer {
    fn name(&self) -> String {
        let AttentionShape { query_heads, kv_heads, key_dim, value_dim, .. } = self.shape;
        let Self { window, has_sinks, .. } = self;
        if self.shape.values == ValueStorage::KeyPrefix {
            return format!(
                "{query_heads}_heads_of_latent_{value_dim}_and_{}",
                key_dim - value_dim
            );
        }
        format!("{query_heads}_{kv_heads}_heads_of_{key_dim}_window_{window:?}_sinks_{has_sinks}")
    }

    fn sinks(&self) -> Vec<f32> {
        if self.has_sinks { numbers(self.shape.query_heads, 23) } else { Vec::new() }
    }

    /// The outputs of a sequence's last tokens, as many as there are queries.
    fn expected<A: Element>(&self, queries: &[A], sequence: &Sequence<A>) -> Vec<f64> {
        let mut attention = Attention::new(self.shape, SCALE).expect("a legal shape");
        if let Some(window) = self.window {
            attention = attention.with_window(window).expect("a legal window");
        }
        if self.has_sinks {
            attention = attention.with_sinks(self.sinks()).expect("a sink a head");
        }
        let (keys, values) = (widened(&sequence.keys), widened(&sequence.values));
        reference::forward(&attention, &widened(queries), &keys, &values)
    }
}

/// Keys and values of all tokens of one sequence, `[tokens, kv_heads * D]`.
struct Sequence<A> {
    keys: Vec<A>,
    values: Vec<A>,
    tokens: usize,
}

impl<A: Element> Sequence<A> {
    fn new(shape: &AttentionShape, tokens: usize, seed: usize) -> Self {
        let keys = numbers(tokens * shape.key_width(), 3 * seed + 1);
        let values = numbers(tokens * shape.value_width(), 3 * seed + 2);
        Self { keys, values, tokens }
    }
}

/// A cache with the keys and values of some sequences, and NaN wherever no key lies.
struct Paged<A: Element> {
    keys: DeviceBuffer<A>,
    values: DeviceBuffer<A>,
    tables: DeviceBuffer<i32>,
    lengths: DeviceBuffer<i32>,
    table_stride: usize,
    sequences: usize,
}

impl<A: Element> Paged<A> {
    /// Blocks lie backwards, with one that belongs to nobody between any two.
    fn new(gpu: &Gpu, shape: &AttentionShape, sequences: &[Sequence<A>]) -> Self {
        let blocks_of = |sequence: &Sequence<A>| sequence.tokens.div_ceil(BLOCK_TOKENS);
        let table_stride = sequences.iter().map(blocks_of).max().unwrap_or(0) + 1;
        let blocks = 2 * sequences.iter().map(blocks_of).sum::<usize>() + 1;
        let (heads, dim) = (shape.kv_heads, shape.key_dim);
        let own_values = shape.values == ValueStorage::Own;
        let mut keys = vec![A::from_f32(f32::NAN); blocks * BLOCK_TOKENS * heads * dim];
        let mut values = if own_values { keys.clone() } else { Vec::new() };
        let mut tables = vec![i32::MAX; sequences.len() * table_stride];
        let mut free = blocks;
        for (sequence, table) in sequences.iter().zip(tables.chunks_mut(table_stride)) {
            for block in table.iter_mut().take(blocks_of(sequence)) {
                free -= 2;
                *block = free as i32;
            }
            for (token, head) in
                (0..sequence.tokens).flat_map(|token| (0..heads).map(move |head| (token, head)))
            {
                let block = table[token / BLOCK_TOKENS] as usize;
                let row = (block * heads + head) * BLOCK_TOKENS + token % BLOCK_TOKENS;
                let from = (token * heads + head) * dim;
                keys[row * dim..][..dim].copy_from_slice(&sequence.keys[from..][..dim]);
                if own_values {
                    values[row * dim..][..dim].copy_from_slice(&sequence.values[from..][..dim]);
                }
            }
        }
        let lengths: Vec<i32> = sequences.iter().map(|one| one.tokens as i32).collect();
        Self {
            keys: gpu.upload(&keys),
            values: gpu.upload(&values),
            tables: gpu.upload(&tables),
            lengths: gpu.upload(&lengths),
            table_stride,
            sequences: sequences.len(),
        }
    }
}

/// The tables of a paged cache, as launches take them.
fn sequences<'a>(
    tables: &'a DeviceBuffer<i32>,
    lengths: &'a DeviceBuffer<i32>,
    [table_stride, sequences]: [usize; 2],
) -> SequenceSlices<'a> {
    SequenceSlices { tables: tables.slice(), table_stride, lengths: lengths.slice(), sequences }
}

fn parameters<'a>(layer: &Layer, sinks: &'a DeviceBuffer<f32>) -> AttentionParameters<'a> {
    let sinks = layer.has_sinks.then_some(sinks.slice());
    AttentionParameters { scale: SCALE, window: layer.window, sinks }
}
