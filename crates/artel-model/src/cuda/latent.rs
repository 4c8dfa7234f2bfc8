//! Multi-head latent attention of one layer on the GPU: the joint projection to query latents and to the
//! row of the cache, queries, their way into the latent space, attention there, the way out, and the map
//! back to hidden states.

use artel_device::cuda::{DeviceBuffer, DeviceSliceMut, Kernels, Stream};
use artel_layers::attention::cuda::{AttentionParameters, CacheSlices};
use artel_layers::attention::decode::cuda::{DecodeAttention, DecodeOut};
use artel_layers::attention::latent::LatentProjection;
use artel_layers::attention::latent::heads::HeadProductShape;
use artel_layers::attention::latent::heads::cuda::{HeadProduct, HeadRotation};
use artel_layers::attention::latent::project::cuda::{
    LatentInputs, LatentRows, ProjectLatents, QueryLatents,
};
use artel_layers::attention::prefill::cuda::{PrefillAttention, PrefillForm, PrefillOut};
use artel_layers::linear::Linear as HostLinear;
use artel_layers::linear::cuda::Linear;
use artel_layers::rms_norm::RmsNorm;
use artel_layers::rope::Rope;
use artel_moe::quant::activations::Granularity;
use artel_moe::quant::activations::cuda::{InputRows, Placement, Quantize};
use half::bf16;

use super::CudaLimits;
use super::attention::LayerCache;
use super::inputs::Inputs;
use super::linear::{
    self, Left, MapRows, MapWeights, Products, codes_width, reads_codes, shape_of,
};
use super::norm::{Added, Behind, InputNorm, Makes};
use super::rows::{Rows, Widths};
use super::upload::Upload;
use crate::Result;
use crate::decoder::{LatentAttention, LatentQuery};

/// The maps that read hidden states: to query latents or to queries, and to the row of the cache.
fn inputs_of(attention: &LatentAttention) -> [&HostLinear; 2] {
    match &attention.query {
        LatentQuery::Direct(query) => [query, &attention.latent],
        LatentQuery::ThroughLatent { down, .. } => [down, &attention.latent],
    }
}

/// The kernels.
#[derive(Debug, Clone)]
pub(super) struct LatentKernels {
    norm: InputNorm,
    inputs: Linear<bf16>,
    /// Whether few rows of the joint projection may come in parts.
    in_parts: bool,
    project: ProjectLatents<bf16>,
    /// From query latents to queries.
    queries: Option<QueryKernels>,
    into_latent: HeadProduct<bf16>,
    decode: DecodeAttention<bf16>,
    prefill: PrefillAttention<bf16>,
    out_of_latent: HeadProduct<bf16>,
    /// Of what the last map reads, where it reads codes.
    quantize: Option<Quantize<bf16>>,
    output: Linear<bf16>,
    pub(super) widths: Widths,
}

#[derive(Debug, Clone)]
struct QueryKernels {
    up: Linear<bf16>,
    reads_codes: bool,
}

impl LatentKernels {
    /// Asks for them.
    pub(super) fn load(
        kernels: &mut Kernels,
        (norm, added): (&RmsNorm, Added),
        (attention, rope): (&LatentAttention, &Rope),
        limits: &CudaLimits,
    ) -> Result<Self> {
        let shape = *attention.attention.shape();
        let decode = DecodeAttention::load(kernels, shape, false)?;
        let prefill = PrefillAttention::load(kernels, shape, PrefillForm::default())?;
        let (inputs, output) = (shape_of(&inputs_of(attention)), shape_of(&[&attention.output]));
        let load = |kernels: &mut Kernels, shape| linear::load(kernels, shape, limits.tokens_max);
        let (of_inputs, of_output) = (load(kernels, inputs)?, load(kernels, output)?);
        let (query_columns, query_epsilon, up) = match &attention.query {
            LatentQuery::Direct(query) => (query.outputs(), None, None),
            LatentQuery::ThroughLatent { down, norm, up } => {
                (down.outputs(), Some(norm.epsilon()), Some(shape_of(&[up])))
            }
        };
        let in_parts = up.is_some();
        let project = LatentProjection {
            query_columns,
            query_epsilon,
            rank: shape.value_dim,
            epsilon: attention.latent_norm.epsilon(),
            rope_dim: rope.rotary_dim(),
            style: rope.style(),
            codes: up.as_ref().is_some_and(reads_codes),
            parts: of_inputs.parts().filter(|_| in_parts).unwrap_or(1),
        };
        let queries = match up {
            None => None,
            Some(up) => {
                Some(QueryKernels { up: load(kernels, up)?, reads_codes: reads_codes(&up) })
            }
        };
        let [into_latent, out_of_latent] = head_products(attention, inputs.outputs);
        let rotation = HeadRotation { rope_dim: rope.rotary_dim(), style: rope.style() };
        let quantize = |kernels: &mut Kernels| {
            Quantize::load(kernels, output.inputs, Granularity::Groups, Placement::InPlace)
        };
        let widest = [inputs.outputs, into_latent.input_row, output.inputs];
        Ok(Self {
            norm: InputNorm::load(kernels, norm, added, Makes::of(&inputs))?,
            inputs: of_inputs,
            in_parts,
            project: ProjectLatents::load(kernels, project)?,
            queries,
            into_latent: HeadProduct::load(kernels, into_latent, Some(rotation))?,
            decode,
            prefill,
            out_of_latent: HeadProduct::load(kernels, out_of_latent, None)?,
            quantize: reads_codes(&output).then(|| quantize(kernels)).transpose()?,
            output: of_output,
            widths: Widths {
                projected: widest.into_iter().max().unwrap_or(0),
                latents: if up.is_some() { query_columns } else { 0 },
                codes: [Some(inputs), up, Some(output)]
                    .iter()
                    .flatten()
                    .map(codes_width)
                    .max()
                    .unwrap_or(0),
                rotary: rope.rotary_dim(),
                ..Widths::default()
            },
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
        weights: &LatentWeights,
        cache: &mut LayerCache,
        rows: &mut Rows,
    ) -> Result<Left> {
        let tokens = inputs.step.tokens;
        self.norm.launch(stream, (tokens, behind), &weights.norm, rows)?; // [T, H]
        let mut cache = cache.slices();
        self.project(stream, inputs, weights, &mut cache.keys, rows)?; // [T, heads (nope + rope)]
        let (queries, angles) = (rows.projected.slice(), rows.angles.slice());
        let operands = (queries, weights.into_latent.slice());
        let into = &mut rows.queries.slice_mut();
        self.into_latent.launch(stream, tokens, operands, Some(angles), into)?; // [T, heads (rank + rope)]
        self.attend(stream, inputs, weights, &cache, rows)?; // [T, heads rank]
        let operands = (rows.mixed.slice(), weights.out_of_latent.slice());
        let values = &mut rows.projected.slice_mut();
        self.out_of_latent.launch(stream, tokens, operands, None, values)?; // [T, heads value]
        let values = match &self.quantize {
            None => MapRows::Plain(&rows.projected),
            Some(quantize) => {
                let values = rows.projected.slice();
                let input = InputRows { values, rows: tokens, positions: None };
                quantize.launch(stream, input, &mut rows.codes.rows(tokens))?;
                MapRows::Codes(&rows.codes)
            }
        };
        let mut products = Products { stream, workspace: &mut rows.linear, tokens };
        let out = &mut rows.delta.slice_mut();
        products.launch_in_parts((&self.output, &weights.output), values, out) // [T, H]
    }

    /// Queries of the normed rows to `rows.projected`, rows of the cache to `keys`.
    fn project(
        &self,
        stream: &Stream,
        inputs: &Inputs<'_>,
        weights: &LatentWeights,
        keys: &mut DeviceSliceMut<'_, bf16>,
        rows: &mut Rows,
    ) -> Result<()> {
        let tokens = inputs.step.tokens;
        let mut products = Products { stream, workspace: &mut rows.linear, tokens };
        let input = self.norm.input(&rows.normed, &rows.codes);
        let (map, out) = ((&self.inputs, &weights.inputs), &mut rows.projected.slice_mut());
        let left = match self.in_parts {
            true => products.launch_in_parts(map, input, out)?,
            false => products.launch(map, input, out).map(|()| Left::Rows)?,
        };
        let projected = match left {
            Left::Rows => LatentRows::Whole(rows.projected.slice()),
            Left::Parts(count) => LatentRows::Parts(rows.linear.parts(count)),
        };
        let inputs = LatentInputs {
            rows: projected,
            tokens,
            angles: rows.angles.slice(),
            query_weight: weights.queries.as_ref().map(|(norm, _)| norm.slice()),
            weight: weights.latent_norm.slice(),
            slots: inputs.slots,
        };
        let (mut latents, mut codes) = (rows.latents.slice_mut(), rows.codes.rows(tokens));
        let (Some(kernels), Some((_, up))) = (&self.queries, &weights.queries) else {
            return Ok(self.project.launch(stream, &inputs, QueryLatents::None, keys)?);
        };
        let to = match kernels.reads_codes {
            false => QueryLatents::Rows(&mut latents),
            true => QueryLatents::Codes(&mut codes),
        };
        self.project.launch(stream, &inputs, to, keys)?;
        let latents = match kernels.reads_codes {
            false => MapRows::Plain(&rows.latents),
            true => MapRows::Codes(&rows.codes),
        };
        let mut products = Products { stream, workspace: &mut rows.linear, tokens };
        products.launch((&kernels.up, up), latents, &mut rows.projected.slice_mut())
    }

    fn attend(
        &self,
        stream: &Stream,
        inputs: &Inputs<'_>,
        weights: &LatentWeights,
        cache: &CacheSlices<'_, bf16>,
        rows: &mut Rows,
    ) -> Result<()> {
        let parameters = AttentionParameters { scale: weights.scale, window: None, sinks: None };
        let operands = (rows.queries.slice(), cache);
        let mut mixed = rows.mixed.slice_mut();
        if inputs.step.decode > 0 {
            let (sequences, parts) = (inputs.decoded(), &mut rows.parts);
            let out = DecodeOut::Rows(&mut mixed);
            self.decode.launch(stream, operands, &sequences, &parameters, parts, out)?;
        }
        if inputs.step.tiles > 0 {
            let sequences = (&inputs.all(), &inputs.tiles);
            let out = PrefillOut::Rows(&mut mixed);
            self.prefill.launch(stream, operands, sequences, &parameters, out)?;
        }
        Ok(())
    }
}

/// Into the latent space and out of it; queries made directly lie in rows of the joint projection, of
/// `projected` elements.
fn head_products(attention: &LatentAttention, projected: usize) -> [HeadProductShape; 2] {
    let LatentAttention { nope_dim, rope_dim, value_dim, .. } = *attention;
    let shape = attention.attention.shape();
    let (heads, rank) = (shape.query_heads, shape.value_dim);
    let query_dim = nope_dim + rope_dim;
    let into_latent = HeadProductShape {
        heads,
        inputs: nope_dim,
        input_stride: query_dim,
        input_row: match attention.query {
            LatentQuery::Direct(_) => projected,
            LatentQuery::ThroughLatent { .. } => heads * query_dim,
        },
        outputs: rank,
        output_stride: shape.key_dim,
    };
    let out_of_latent = HeadProductShape {
        heads,
        inputs: rank,
        input_stride: rank,
        input_row: heads * rank,
        outputs: value_dim,
        output_stride: value_dim,
    };
    [into_latent, out_of_latent]
}

/// The weights.
#[derive(Debug)]
pub(super) struct LatentWeights {
    norm: DeviceBuffer<f32>,
    inputs: MapWeights,
    /// The norm of query latents, and the map from them to queries.
    queries: Option<(DeviceBuffer<f32>, MapWeights)>,
    latent_norm: DeviceBuffer<f32>,
    /// `[heads, rank, nope_dim]`.
    into_latent: DeviceBuffer<bf16>,
    /// `[heads, value_dim, rank]`.
    out_of_latent: DeviceBuffer<bf16>,
    output: MapWeights,
    scale: f32,
}

impl LatentWeights {
    /// Copies them.
    pub(super) fn upload(
        upload: &mut Upload<'_>,
        norm: &RmsNorm,
        attention: &LatentAttention,
    ) -> Result<Self> {
        let queries = match &attention.query {
            LatentQuery::Direct(_) => None,
            LatentQuery::ThroughLatent { norm, up, .. } => {
                Some((upload.vector(norm.weight())?, MapWeights::upload(upload, &[up])?))
            }
        };
        Ok(Self {
            norm: upload.vector(norm.weight())?,
            inputs: MapWeights::upload(upload, &inputs_of(attention))?,
            queries,
            latent_norm: upload.vector(attention.latent_norm.weight())?,
            into_latent: upload.rounded(&attention.into_latent)?,
            out_of_latent: upload.rounded(&attention.out_of_latent)?,
            output: MapWeights::upload(upload, &[&attention.output])?,
            scale: attention.attention.scale(),
        })
    }
}
