//! Keys and values of one sequence, contiguous for each layer and head.

use super::rows::Rows;
use super::{AttentionShape, ValueStorage};
use crate::LayersError;

/// The cached keys and values of one sequence for all layers, float32.
///
/// Each head of each layer is one run of memory that doubles when it is full and never exceeds the
/// declared capacity, so an empty cache costs nothing.
#[derive(Debug, Clone)]
pub struct KvCache {
    shape: AttentionShape,
    layers: Vec<LayerCache>,
    capacity: usize,
}

/// One layer of a [`KvCache`].
#[derive(Debug, Clone, Default)]
pub(super) struct LayerCache {
    pub(super) tokens: usize,
    pub(super) heads: Vec<HeadCache>,
}

impl LayerCache {
    /// Keys and values of one head.
    pub(super) fn head(&self, head: usize, shape: &AttentionShape) -> (Rows<'_>, Rows<'_>) {
        let HeadCache { keys, values } = &self.heads[head];
        let AttentionShape { key_dim, value_dim, .. } = *shape;
        let keys = Rows { elements: keys, stride: key_dim, width: key_dim };
        match shape.values {
            ValueStorage::Own => {
                (keys, Rows { elements: values, stride: value_dim, width: value_dim })
            }
            ValueStorage::KeyPrefix => (keys, Rows { width: value_dim, ..keys }),
        }
    }
}

/// One key-value head of one layer.
#[derive(Debug, Clone, Default)]
pub(super) struct HeadCache {
    /// `[tokens, key_dim]`.
    pub(super) keys: Vec<f32>,
    /// `[tokens, value_dim]`; empty when values are a prefix of the keys.
    pub(super) values: Vec<f32>,
}

impl KvCache {
    /// An empty cache of `layers` layers that will hold up to `capacity` tokens.
    pub fn new(layers: usize, shape: AttentionShape, capacity: usize) -> Self {
        let layer = LayerCache { tokens: 0, heads: vec![HeadCache::default(); shape.kv_heads] };
        Self { shape, layers: vec![layer; layers], capacity }
    }

    /// Tokens that every layer holds: the position of the next token.
    pub fn len(&self) -> usize {
        self.layers.iter().map(|layer| layer.tokens).min().unwrap_or(0)
    }

    /// Whether no layer-complete token is cached.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Tokens the cache was declared for.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Bytes that one token takes in all layers.
    pub fn bytes_per_token(layers: usize, shape: &AttentionShape) -> usize {
        layers * (shape.key_width() + shape.value_width()) * size_of::<f32>()
    }

    /// Bytes in use.
    pub fn bytes(&self) -> usize {
        let elements = |head: &HeadCache| head.keys.len() + head.values.len();
        let heads = self.layers.iter().flat_map(|layer| &layer.heads);
        heads.map(elements).sum::<usize>() * size_of::<f32>()
    }

    /// Forgets all but the first `tokens` tokens, also of a step that ended halfway.
    pub fn truncate(&mut self, tokens: usize) {
        for layer in &mut self.layers {
            layer.tokens = layer.tokens.min(tokens);
            for head in &mut layer.heads {
                head.keys.truncate(layer.tokens * self.shape.key_dim);
                head.values.truncate(layer.tokens * self.shape.value_dim);
            }
        }
    }

    pub(super) fn layer(&self, layer: usize) -> &LayerCache {
        &self.layers[layer]
    }

    pub(super) fn check_append(
        &self,
        layer: usize,
        shape: &AttentionShape,
        tokens: usize,
    ) -> Result<(), LayersError> {
        let Some(held) = self.layers.get(layer).map(|layer| layer.tokens) else {
            let allowed = format!("below {}, the layers of the cache", self.layers.len());
            return Err(LayersError::config("layer", layer, allowed));
        };
        if self.shape != *shape {
            let (found, expected) = (self.shape.key_width(), shape.key_width());
            return Err(LayersError::Shape { what: "a row of this cache", expected, found });
        }
        let tokens = held.saturating_add(tokens);
        if tokens > self.capacity {
            return Err(LayersError::ContextFull { tokens, capacity: self.capacity });
        }
        Ok(())
    }

    /// Adds rows `[tokens, kv_heads * dim]`, taken apart by head.
    pub(super) fn append(&mut self, layer: usize, keys: &[f32], values: &[f32]) {
        let AttentionShape { key_dim, value_dim, .. } = self.shape;
        let layer = &mut self.layers[layer];
        let tokens = keys.len() / self.shape.key_width();
        layer.tokens += tokens;
        for (index, head) in layer.heads.iter_mut().enumerate() {
            grow(&mut head.keys, tokens, key_dim, self.capacity);
            for row in keys.chunks_exact(self.shape.key_width()) {
                head.keys.extend_from_slice(&row[index * key_dim..(index + 1) * key_dim]);
            }
            if self.shape.values == ValueStorage::Own {
                grow(&mut head.values, tokens, value_dim, self.capacity);
                for row in values.chunks_exact(self.shape.value_width()) {
                    head.values.extend_from_slice(&row[index * value_dim..(index + 1) * value_dim]);
                }
            }
        }
    }
}

/// Makes room for `tokens` more rows: twice what is held or what is needed, within `capacity`.
fn grow(rows: &mut Vec<f32>, tokens: usize, width: usize, capacity: usize) {
    let needed = rows.len() + tokens * width;
    if needed > rows.capacity() {
        let target = needed.max((2 * rows.len()).min(capacity.saturating_mul(width)));
        rows.reserve_exact(target - rows.len());
    }
}
