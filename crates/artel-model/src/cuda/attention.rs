//! Attention of one layer on the GPU: joint projection, norms, rotation with the write to the cache,
//! attention, and the map back to hidden states.

use artel_device::cuda::{Context, DeviceBuffer, Kernels, Stream};
use artel_layers::attention::cuda::{AttentionParameters, CacheSlices};
use artel_layers::attention::decode::cuda::{DecodeAttention, DecodeOut};
use artel_layers::attention::prefill::cuda::{PrefillAttention, PrefillForm, PrefillOut};
use artel_layers::attention::{Attention as HostMixing, AttentionShape, BLOCK_TOKENS};
use artel_layers::linear::Linear as HostLinear;
use artel_layers::linear::cuda::Linear;
use artel_layers::rms_norm::cuda::NormalizeColumns;
use artel_layers::rms_norm::projection::cuda::NormalizeProjection;
use artel_layers::rms_norm::{NormColumns, RmsNorm};
use artel_layers::rope::Rope;
use artel_layers::rope::cuda::{HeadNorm, RotateAndCache, RotateInputs, RotateRows, RotateShape};
use artel_moe::quant::BLOCK;
use artel_moe::quant::activations::Granularity;
use artel_moe::quant::activations::cuda::{InputRows, Placement, Quantize};
use half::bf16;

use super::CudaLimits;
use super::inputs::Inputs;
use super::linear::{
    self, Left, MapRows, MapWeights, Products, codes_width, reads_codes, shape_of,
};
use super::norm::{Added, Behind, InputNorm, Makes};
use super::rows::{Rows, Widths};
use super::single::SingleKernels;
use super::upload::Upload;
use crate::decoder::GroupedQueryAttention;
use crate::{ModelError, Result};

/// The maps to queries, keys and values.
fn inputs_of(attention: &GroupedQueryAttention) -> [&HostLinear; 3] {
    [&attention.query, &attention.key, &attention.value]
}

/// How queries and keys are normalised before they turn.
enum Norms<'a> {
    None,
    ByHead(&'a RmsNorm, &'a RmsNorm),
    Whole(&'a RmsNorm, &'a RmsNorm),
}

fn norms_of(attention: &GroupedQueryAttention) -> Result<Norms<'_>> {
    let AttentionShape { query_heads, kv_heads, key_dim, .. } = *attention.attention.shape();
    let Some((query, key)) = &attention.norms else { return Ok(Norms::None) };
    match (query.width(), key.width()) {
        (queries, keys) if (queries, keys) == (key_dim, key_dim) => Ok(Norms::ByHead(query, key)),
        (queries, keys) if (queries, keys) == (query_heads * key_dim, kv_heads * key_dim) => {
            Ok(Norms::Whole(query, key))
        }
        (queries, keys) => {
            let why =
                format!("norms of {queries} and {keys} elements; of a head or of all are known");
            Err(ModelError::NotOnGpu { what: "the norm of queries and keys", why })
        }
    }
}

/// Norms over all heads of queries and of keys.
#[derive(Debug, Clone)]
struct WholeNorms {
    of_rows: [NormalizeColumns<bf16>; 2],
    /// Of a projection that comes in parts.
    of_parts: Option<NormalizeProjection<bf16>>,
}

impl WholeNorms {
    /// Asks for the norms of queries and keys in rows of `row_width`, which may come in `parts` parts.
    fn load(
        kernels: &mut Kernels,
        row_width: usize,
        norms: [&RmsNorm; 2],
        parts: Option<usize>,
    ) -> Result<Self> {
        let (widths, epsilons) = (norms.map(RmsNorm::width), norms.map(RmsNorm::epsilon));
        let columns = |first, width| NormColumns { row_width, first, heads: 1, width };
        let of_queries = NormalizeColumns::load(kernels, columns(0, widths[0]), epsilons[0])?;
        let of_keys = columns(widths[0], widths[1]);
        let of_keys = NormalizeColumns::load(kernels, of_keys, epsilons[1])?;
        let of_parts =
            parts.map(|parts| NormalizeProjection::load(kernels, widths, parts, epsilons));
        Ok(Self { of_rows: [of_queries, of_keys], of_parts: of_parts.transpose()? })
    }
}

/// The kernels.
#[derive(Debug, Clone)]
pub(super) struct AttentionKernels {
    norm: InputNorm,
    inputs: Linear<bf16>,
    whole_norms: Option<WholeNorms>,
    rotate: RotateAndCache<bf16>,
    decode: DecodeAttention<bf16>,
    prefill: PrefillAttention<bf16>,
    /// Of what the last map reads, where it reads codes.
    quantize: Option<Quantize<bf16>>,
    output: Linear<bf16>,
    /// Of a step with one token.
    single: SingleKernels,
    pub(super) widths: Widths,
}

impl AttentionKernels {
    /// Asks for them.
    pub(super) fn load(
        kernels: &mut Kernels,
        (norm, added): (&RmsNorm, Added),
        (attention, rope): (&GroupedQueryAttention, &Rope),
        limits: &CudaLimits,
    ) -> Result<Self> {
        if attention.clip.is_some() {
            let why = "it clips queries, keys and values (clip_qkv)".to_owned();
            return Err(ModelError::NotOnGpu { what: "attention", why });
        }
        let shape = *attention.attention.shape();
        let (inputs, output) = (shape_of(&inputs_of(attention)), shape_of(&[&attention.output]));
        let load = |kernels: &mut Kernels, shape| linear::load(kernels, shape, limits.tokens_max);
        let (of_inputs, of_output) = (load(kernels, inputs)?, load(kernels, output)?);
        let (head_norm, whole_norms) = match norms_of(attention)? {
            Norms::None => (HeadNorm::None, None),
            Norms::ByHead(query, _) => (HeadNorm::ByHead { epsilon: query.epsilon() }, None),
            Norms::Whole(query, key) => {
                let of_parts = of_inputs.parts();
                let norms = WholeNorms::load(kernels, inputs.outputs, [query, key], of_parts)?;
                (HeadNorm::None, Some(norms))
            }
        };
        let rotate = RotateShape {
            query_heads: shape.query_heads,
            kv_heads: shape.kv_heads,
            head_dim: shape.key_dim,
            rotary_dim: rope.rotary_dim(),
            style: rope.style(),
            norm: head_norm,
            // A norm over all heads comes between parts and rotation.
            parts: of_inputs.parts().filter(|_| whole_norms.is_none()).unwrap_or(1),
        };
        let has_sinks = !attention.attention.sinks().is_empty();
        let form = PrefillForm {
            sinks: has_sinks,
            window: attention.attention.window().is_some(),
            codes: reads_codes(&output) && shape.value_dim == BLOCK,
        };
        let quantize = |kernels: &mut Kernels| {
            Quantize::load(kernels, output.inputs, Granularity::Groups, Placement::InPlace)
        };
        let of_attention = (&shape, has_sinks);
        let single = SingleKernels::load(
            kernels,
            (norm, added),
            [inputs, output],
            of_attention,
            &of_output,
        )?;
        Ok(Self {
            norm: InputNorm::load(kernels, norm, added, Makes::of(&inputs))?,
            inputs: of_inputs,
            whole_norms,
            rotate: RotateAndCache::load(kernels, rotate)?,
            decode: DecodeAttention::load(kernels, shape, has_sinks)?,
            prefill: PrefillAttention::load(kernels, shape, form)?,
            quantize: reads_codes(&output).then(|| quantize(kernels)).transpose()?,
            output: of_output,
            widths: Widths {
                next_hidden: if single.moves_hidden() { inputs.inputs } else { 0 },
                projected: inputs.outputs,
                codes: codes_width(&inputs).max(codes_width(&output)),
                rotary: rope.rotary_dim(),
                ..Widths::default()
            },
            single,
        })
    }

    /// What the last map leaves.
    pub(super) fn leaves(&self) -> Added {
        self.output.parts().map_or(Added::Rows, Added::Parts)
    }

    /// Adds what is left to the residual stream, and leaves what attention makes of its norm.
    pub(super) fn forward(
        &self,
        stream: &Stream,
        (inputs, behind): (&Inputs<'_>, Behind<'_>),
        weights: &AttentionWeights,
        cache: &mut LayerCache,
        rows: &mut Rows,
    ) -> Result<Left> {
        let tokens = inputs.step.tokens;
        let is_single = tokens == 1 && inputs.step.decode == 1;
        let single = &self.single;
        let maps = (&weights.norm, &weights.inputs);
        let is_of_rows = matches!(behind, Behind::Map(Left::Rows));
        let projected = match is_single && is_of_rows && single.project(stream, maps, rows)? {
            true => Left::Rows,
            false => {
                self.norm.launch(stream, (tokens, behind), &weights.norm, rows)?; // [T, H]
                self.project(stream, tokens, weights, rows)? // [T, (Q + 2 KV) D]
            }
        };
        let left = self.normalize(stream, tokens, (projected, weights), rows)?;
        let norm_weights = match &weights.qk_norms {
            QkWeights::ByHead([query, key]) => Some([query.slice(), key.slice()]),
            QkWeights::None | QkWeights::Whole(_) => None,
        };
        let projected = match left {
            Left::Rows => RotateRows::Whole(rows.projected.slice()),
            Left::Parts(count) => RotateRows::Parts(rows.linear.parts(count)),
        };
        let (angles, slots) = (rows.angles.slice(), inputs.slots);
        let turned = RotateInputs { rows: projected, tokens, angles, norm_weights, slots };
        let mut cache = cache.slices();
        self.rotate.launch(stream, &turned, &mut rows.queries.slice_mut(), &mut cache)?;
        if is_single {
            let sequences = (&inputs.decoded(), &cache);
            let operands = (&weights.parameters(), &weights.output);
            if let Some(left) = single.attend(stream, sequences, operands, rows)? {
                return Ok(left);
            }
        }
        self.attend(stream, inputs, weights, &cache, rows)?; // [T, Q D]
        let mut products = Products { stream, workspace: &mut rows.linear, tokens };
        let mixed = match self.quantize {
            None => MapRows::Plain(&rows.mixed),
            Some(_) => MapRows::Codes(&rows.codes),
        };
        let out = &mut rows.delta.slice_mut();
        products.launch_in_parts((&self.output, &weights.output), mixed, out) // [T, H]
    }

    /// Queries, keys and values of the normed rows.
    fn project(
        &self,
        stream: &Stream,
        tokens: usize,
        weights: &AttentionWeights,
        rows: &mut Rows,
    ) -> Result<Left> {
        let mut products = Products { stream, workspace: &mut rows.linear, tokens };
        let mut projected = rows.projected.slice_mut();
        let input = self.norm.input(&rows.normed, &rows.codes);
        let map = (&self.inputs, &weights.inputs);
        products.launch_in_parts(map, input, &mut projected)
    }

    /// The norms over all heads of what was projected.
    fn normalize(
        &self,
        stream: &Stream,
        tokens: usize,
        (left, weights): (Left, &AttentionWeights),
        rows: &mut Rows,
    ) -> Result<Left> {
        let mut projected = rows.projected.slice_mut();
        let (Some(kernels), QkWeights::Whole(norms)) = (&self.whole_norms, &weights.qk_norms)
        else {
            return Ok(left);
        };
        let weights = norms.each_ref().map(DeviceBuffer::slice);
        match (left, &kernels.of_parts) {
            (Left::Parts(count), Some(kernel)) => {
                let sums = rows.linear.parts(count);
                kernel.launch(stream, (tokens, sums), weights, &mut projected)?;
            }
            _ => {
                for (kernel, weight) in kernels.of_rows.iter().zip(weights) {
                    kernel.launch(stream, tokens, weight, &mut projected)?;
                }
            }
        }
        Ok(Left::Rows)
    }

    /// Leaves rows, or codes of them where the map back to hidden states reads those.
    fn attend(
        &self,
        stream: &Stream,
        inputs: &Inputs<'_>,
        weights: &AttentionWeights,
        cache: &CacheSlices<'_, bf16>,
        rows: &mut Rows,
    ) -> Result<()> {
        let parameters = weights.parameters();
        let step = &inputs.step;
        let queries = rows.queries.slice();
        let mut mixed = rows.mixed.slice_mut();
        let mut codes = rows.codes.rows(step.tokens);
        let prompts_to_codes = self.prefill.form().codes;
        let decodes_to_codes = prompts_to_codes && self.decode.makes_codes();
        if step.decode > 0 {
            let sequences = inputs.decoded();
            let parts = &mut rows.parts;
            let operands = (queries, cache);
            let out = match decodes_to_codes {
                true => DecodeOut::Codes(&mut codes),
                false => DecodeOut::Rows(&mut mixed),
            };
            self.decode.launch(stream, operands, &sequences, &parameters, parts, out)?;
        }
        if step.tiles > 0 {
            let sequences = (&inputs.all(), &inputs.tiles);
            let out = match prompts_to_codes {
                true => PrefillOut::Codes(&mut codes),
                false => PrefillOut::Rows(&mut mixed),
            };
            self.prefill.launch(stream, (queries, cache), sequences, &parameters, out)?;
        }
        // Rows that decode come first.
        let plain = match (prompts_to_codes, decodes_to_codes) {
            (_, true) => 0,
            (true, false) => step.decode,
            (false, false) => step.tokens,
        };
        match &self.quantize {
            Some(quantize) if plain > 0 => {
                let input = InputRows { values: mixed.as_slice(), rows: plain, positions: None };
                Ok(quantize.launch(stream, input, &mut codes)?)
            }
            _ => Ok(()),
        }
    }
}

/// The weights.
#[derive(Debug)]
pub(super) struct AttentionWeights {
    norm: DeviceBuffer<f32>,
    inputs: MapWeights,
    qk_norms: QkWeights,
    output: MapWeights,
    scale: f32,
    window: Option<usize>,
    sinks: Option<DeviceBuffer<f32>>,
}

#[derive(Debug)]
enum QkWeights {
    None,
    ByHead([DeviceBuffer<f32>; 2]),
    Whole([DeviceBuffer<f32>; 2]),
}

impl AttentionWeights {
    /// Copies them.
    pub(super) fn upload(
        upload: &mut Upload<'_>,
        norm: &RmsNorm,
        attention: &GroupedQueryAttention,
    ) -> Result<Self> {
        let mut both = |query: &RmsNorm, key: &RmsNorm| {
            Ok::<_, ModelError>([upload.vector(query.weight())?, upload.vector(key.weight())?])
        };
        let qk_norms = match norms_of(attention)? {
            Norms::None => QkWeights::None,
            Norms::ByHead(query, key) => QkWeights::ByHead(both(query, key)?),
            Norms::Whole(query, key) => QkWeights::Whole(both(query, key)?),
        };
        let mixing: &HostMixing = &attention.attention;
        let sinks = mixing.sinks();
        Ok(Self {
            norm: upload.vector(norm.weight())?,
            inputs: MapWeights::upload(upload, &inputs_of(attention))?,
            qk_norms,
            output: MapWeights::upload(upload, &[&attention.output])?,
            scale: mixing.scale(),
            window: mixing.window(),
            sinks: (!sinks.is_empty()).then(|| upload.vector(sinks)).transpose()?,
        })
    }

    fn parameters(&self) -> AttentionParameters<'_> {
        let sinks = self.sinks.as_ref().map(DeviceBuffer::slice);
        AttentionParameters { scale: self.scale, window: self.window, sinks }
    }
}

/// Keys and values of one layer, `[blocks, kv_heads, 16, D]` each; keys alone where values are their
/// beginnings.
#[derive(Debug)]
pub(super) struct LayerCache {
    keys: DeviceBuffer<bf16>,
    values: DeviceBuffer<bf16>,
}

impl LayerCache {
    /// Room for `blocks` blocks.
    pub(super) fn new(context: &Context, shape: &AttentionShape, blocks: usize) -> Result<Self> {
        // Zeros, because weights of zero are multiplied with values that nobody has written.
        let zeros = |width: usize| DeviceBuffer::zeroed(context, blocks * BLOCK_TOKENS * width);
        Ok(Self { keys: zeros(shape.key_width())?, values: zeros(shape.value_width())? })
    }

    /// Bytes of a block.
    pub(super) fn block_bytes(shape: &AttentionShape) -> usize {
        BLOCK_TOKENS * (shape.key_width() + shape.value_width()) * size_of::<bf16>()
    }

    pub(super) fn slices(&mut self) -> CacheSlices<'_, bf16> {
        CacheSlices { keys: self.keys.slice_mut(), values: self.values.slice_mut() }
    }
}
