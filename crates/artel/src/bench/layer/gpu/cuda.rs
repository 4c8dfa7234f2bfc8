//! What touches the GPU: the read rate, and the timing of a layer.

use anyhow::{Context as _, Result, ensure};
use artel_device::cpu::CpuFeatures;
use artel_device::cuda::{Arguments, Context, DeviceBuffer, KernelSpec, Kernels};
use artel_moe::cuda::shipped;
use artel_moe::grouped_gemm::GemmFormat;
use artel_moe::grouped_gemm::prefill::cuda::HalfElement;
use artel_moe::layer::MoeLayer;
use artel_moe::layer::cuda::{CudaExperts, ExpertsKernels};
use artel_moe::plan::gpu::tune::{Search, Stopwatch, tune};
use artel_moe::plan::gpu::{GpuPlan, TuningRecord, Way};
use artel_moe::quant::Format;
use artel_moe::router::{Gate, Router, SelectionBias};
use artel_moe::weights::cuda::DeviceExperts;
use artel_moe::weights::{AnyExperts, ExpertWeights};
use half::{bf16, f16};

use super::timing::cuda::{Batch, REPLAYS, Trial, WrongResult, timed};
use super::{Options, RoutingKind, Row};
use crate::bench::layer::ceilings::median;
use crate::bench::layer::weights::{expert_over, random_buffer, random_floats, random_matrix};
use crate::shapes::NamedLayer;

/// Bytes that the read rate is measured over: many times the cache.
const READ_BYTES: usize = 2 << 30;
/// Words of one tile of the reading kernel.
const READ_TILE: usize = 4096;
/// Tokens of a batch that are compared with the definition: of a few the error may be half as large again.
const CHECKED_TOKENS: usize = 16;
/// Blocks of the reading kernel on one multiprocessor.
const READ_BLOCKS: usize = 8;

#[cutile::module]
mod kernels {
    use cutile::core::*;

    #[cutile::entry(unchecked_accesses = true)]
    pub unsafe fn sum_words<const B: i32>(words: *mut i32, sums: *mut i32, tiles: i32) {
        let block: i32 = get_tile_block_id().0;
        let blocks: i32 = get_num_tile_blocks().0;
        let lanes: Tile<i32, { [B] }> = iota(const_shape![B]);
        let base: PointerTile<*mut i32, { [] }> = pointer_to_tile(words);
        let base: PointerTile<*mut i32, { [1] }> = base.reshape(const_shape![1]);
        let base: PointerTile<*mut i32, { [B] }> = base.broadcast(const_shape![B]);
        let base: PointerTile<*mut i32, { [B] }> = base.offset_tile(lanes);
        let mut sum: Tile<i32, { [B] }> = constant(0i32, const_shape![B]);
        for turn in 0i32..(tiles / blocks) {
            let start: Tile<i32, { [B] }> =
                broadcast_scalar((turn * blocks + block) * B, const_shape![B]);
            let address: PointerTile<*mut i32, { [B] }> = base.offset_tile(start);
            // SAFETY: the tile lies below `tiles`, all of which are in the buffer.
            let (tile, _read): (Tile<i32, { [B] }>, Token) = unsafe {
                load_ptr_tko(
                    address,
                    ordering::Weak,
                    None::<scope::TileBlock>,
                    None,
                    None,
                    None,
                    Latency::<0>,
                )
            };
            sum = sum + tile;
        }
        let total: Tile<i32, { [] }> = reduce_sum(sum, 0i32);
        let out: PointerTile<*mut i32, { [] }> = pointer_to_tile(sums);
        let place: Tile<i32, { [] }> = scalar_to_tile(block);
        let out: PointerTile<*mut i32, { [] }> = out.offset_tile(place);
        // SAFETY: there is one sum a block.
        let _written: Token = unsafe {
            store_ptr_tko(
                out,
                total,
                ordering::Weak,
                None::<scope::TileBlock>,
                None,
                None,
                Latency::<0>,
            )
        };
    }
}

/// 1e12 bytes a second that this GPU reads and does nothing else.
///
/// # Errors
/// Without the kernel, or when the GPU fails.
pub fn read_rate(context: &Context, kernels: &mut Kernels) -> Result<f64> {
    let kernel = kernels.get(&read_kernel())?;
    let stream = context.stream()?;
    let words = random_floats(READ_TILE, 3);
    let mut buffer = DeviceBuffer::<f32>::zeroed(context, READ_BYTES / 4)?;
    for start in (0..READ_BYTES / 4).step_by(READ_BYTES / 64) {
        buffer.write(start, &words)?;
    }
    let blocks = context.multiprocessors()? * READ_BLOCKS;
    let mut sums = context.buffer::<i32>(blocks)?;
    let tiles = READ_BYTES / 4 / READ_TILE / blocks * blocks;
    let mut rates = Vec::new();
    for _ in 0..REPLAYS {
        let arguments =
            Arguments::new().slice(buffer.slice()).slice_mut(&sums.slice_mut()).size(tiles);
        let milliseconds = timed(&stream, |stream| {
            // SAFETY: the buffer holds `tiles` tiles and there is a sum for every block.
            Ok(unsafe { kernel.launch(stream, [blocks, 1, 1], arguments) }?)
        })?;
        rates.push((tiles * READ_TILE * 4) as f64 / milliseconds / 1e9);
    }
    Ok(median(rates))
}

fn read_kernel() -> KernelSpec {
    let module = kernels::__module_ast_self;
    KernelSpec::new("bench/read", module, "kernels", "sum_words")
        .generics([READ_TILE as i32])
        .pointers(["words", "sums"])
}

/// Measures every batch size of one shape; `add` gets the rows.
///
/// # Errors
/// As [`super::run`].
pub fn measure(
    options: &Options,
    context: &Context,
    kernels: &mut Kernels,
    shape: &NamedLayer,
    add: impl FnMut(Row),
) -> Result<()> {
    match random_experts(shape)? {
        AnyExperts::F16(experts) => measure_format(options, context, kernels, shape, experts, add),
        AnyExperts::Bf16(experts) => measure_format(options, context, kernels, shape, experts, add),
        AnyExperts::Fp8Block128(experts) => {
            measure_format(options, context, kernels, shape, experts, add)
        }
        AnyExperts::Fp8Tensor(experts) => {
            measure_format(options, context, kernels, shape, experts, add)
        }
        AnyExperts::Fp8Channel(experts) => {
            measure_format(options, context, kernels, shape, experts, add)
        }
        AnyExperts::Int8W8A8(experts) => {
            measure_format(options, context, kernels, shape, experts, add)
        }
        AnyExperts::Int8W8A16(experts) => {
            measure_format(options, context, kernels, shape, experts, add)
        }
        AnyExperts::Int4W4A16(experts) => {
            measure_format(options, context, kernels, shape, experts, add)
        }
        AnyExperts::Mxfp4(experts) => {
            measure_format(options, context, kernels, shape, experts, add)
        }
        AnyExperts::Mxfp8(experts) => {
            measure_format(options, context, kernels, shape, experts, add)
        }
        AnyExperts::Nvfp4(experts) => {
            measure_format(options, context, kernels, shape, experts, add)
        }
        other => anyhow::bail!("experts in {} have no GPU kernels", other.format()),
    }
}

/// All experts of a shape, random.
fn random_experts(shape: &NamedLayer) -> Result<AnyExperts> {
    let (format, sizes) = (shape.format, shape.config.shape());
    let (hidden_size, num_experts) = (sizes.hidden_size, sizes.num_experts);
    let intermediate_size = shape.config.local_intermediate_size();
    let numbers = 3 * hidden_size * intermediate_size;
    let buffer = random_buffer(format, numbers * num_experts, 1);
    let expert = |expert| expert_over(format, &buffer, expert, [hidden_size, intermediate_size]);
    let experts = (0..num_experts).map(expert).collect::<Result<Vec<_>>>()?;
    Ok(AnyExperts::new(experts)?)
}

fn measure_format<F: GemmFormat<Activation: HalfElement>>(
    options: &Options,
    context: &Context,
    kernels: &mut Kernels,
    shape: &NamedLayer,
    experts: ExpertWeights<F>,
    mut add: impl FnMut(Row),
) -> Result<()> {
    let architecture = context.architecture();
    let plan = super::plan(options, architecture, shape, tokens_max(options)?)?;
    let loaded = ExpertsKernels::load(kernels, &shape.config, shape.format, &plan)?;
    let weights = DeviceExperts::upload(context, &shape.config, &experts)?;
    let mut on_gpu = CudaExperts::<F>::new(context, shape.config.clone(), plan, loaded, weights)?;
    let reference = reference_layer(shape, experts)?;
    let mut wrong = 0;
    for &routing in &options.routings {
        for &tokens in &options.tokens {
            if options.path.is_some() {
                let plan = super::plan(options, architecture, shape, tokens)?;
                let loaded = ExpertsKernels::load(kernels, &shape.config, shape.format, &plan)?;
                on_gpu = on_gpu.replan(context, plan, loaded)?;
            }
            let batch = Batch { routing, tokens, checked: CHECKED_TOKENS };
            let mut trial = Trial::new(context, shape, &reference, batch)?;
            match trial.time(context, shape, &mut on_gpu) {
                Ok(row) => add(row),
                Err(error) if error.is::<WrongResult>() => {
                    println!("{tokens:>6} {:>8} WRONG: {error}", routing.name());
                    wrong += 1;
                }
                Err(error) => return Err(error),
            }
        }
    }
    ensure!(wrong == 0, "{wrong} results of {} are wrong; no time stands for them", shape.name);
    Ok(())
}

/// Measures what `record` does not know of one layer; `noted` is called after each time.
///
/// # Errors
/// As [`super::run`], but a wrong result is noted as such.
pub fn tune_layer(
    context: &Context,
    kernels: &mut Kernels,
    shape: &NamedLayer,
    record: &mut TuningRecord,
    tokens: &[usize],
    noted: impl FnMut(&TuningRecord, &Way, usize) -> Result<()>,
) -> Result<()> {
    let parts = (context, kernels, shape);
    match random_experts(shape)? {
        AnyExperts::F16(experts) => tune_format(parts, experts, record, tokens, noted),
        AnyExperts::Bf16(experts) => tune_format(parts, experts, record, tokens, noted),
        AnyExperts::Fp8Block128(experts) => tune_format(parts, experts, record, tokens, noted),
        AnyExperts::Fp8Tensor(experts) => tune_format(parts, experts, record, tokens, noted),
        AnyExperts::Fp8Channel(experts) => tune_format(parts, experts, record, tokens, noted),
        AnyExperts::Int8W8A8(experts) => tune_format(parts, experts, record, tokens, noted),
        AnyExperts::Int8W8A16(experts) => tune_format(parts, experts, record, tokens, noted),
        AnyExperts::Int4W4A16(experts) => tune_format(parts, experts, record, tokens, noted),
        AnyExperts::Mxfp4(experts) => tune_format(parts, experts, record, tokens, noted),
        AnyExperts::Mxfp8(experts) => tune_format(parts, experts, record, tokens, noted),
        AnyExperts::Nvfp4(experts) => tune_format(parts, experts, record, tokens, noted),
        other => anyhow::bail!("experts in {} have no GPU kernels", other.format()),
    }
}

fn tune_format<F: GemmFormat<Activation: HalfElement>>(
    (context, kernels, shape): (&Context, &mut Kernels, &NamedLayer),
    experts: ExpertWeights<F>,
    record: &mut TuningRecord,
    tokens: &[usize],
    noted: impl FnMut(&TuningRecord, &Way, usize) -> Result<()>,
) -> Result<()> {
    let (gpu, format) = (shipped::ceilings(context.architecture()), shape.format);
    let weights = DeviceExperts::upload(context, &shape.config, &experts)?;
    let plan = GpuPlan::new(gpu, &shape.config, format, None, 1)?;
    let loaded = ExpertsKernels::load(kernels, &shape.config, format, &plan)?;
    let on_gpu = CudaExperts::<F>::new(context, shape.config.clone(), plan, loaded, weights)?;
    let reference = reference_layer(shape, experts)?;
    let (on_gpu, trial) = (Some(on_gpu), None);
    let mut stopwatch = GraphStopwatch { context, kernels, shape, on_gpu, reference, trial };
    let search = Search { gpu, config: &shape.config, format };
    tune(record, &search, tokens, &mut stopwatch, noted)
}

/// Times of graphs, with the same weights for every way.
struct GraphStopwatch<'a, F: GemmFormat<Activation: HalfElement>> {
    context: &'a Context,
    kernels: &'a mut Kernels,
    shape: &'a NamedLayer,
    on_gpu: Option<CudaExperts<F>>,
    reference: MoeLayer<F>,
    /// Of the batch size that was measured last.
    trial: Option<Trial<F>>,
}

impl<F: GemmFormat<Activation: HalfElement>> GraphStopwatch<'_, F> {
    /// The same inputs for all ways to serve a batch size.
    fn trial(&mut self, tokens: usize) -> Result<Trial<F>> {
        if let Some(trial) = self.trial.take().filter(|trial| trial.tokens() == tokens) {
            return Ok(trial);
        }
        let batch = Batch { routing: RoutingKind::Uniform, tokens, checked: CHECKED_TOKENS };
        Trial::new(self.context, self.shape, &self.reference, batch)
    }
}

impl<F: GemmFormat<Activation: HalfElement>> Stopwatch for GraphStopwatch<'_, F> {
    type Error = anyhow::Error;

    fn measure(&mut self, way: &Way, tokens: usize) -> Result<Option<f64>> {
        let NamedLayer { config, format, .. } = self.shape;
        let gpu = shipped::ceilings(self.context.architecture());
        let plan = GpuPlan::new(gpu, config, *format, None, tokens)?.with_way(*way);
        let loaded = ExpertsKernels::load(self.kernels, config, *format, &plan)?;
        let on_gpu = self.on_gpu.take().context("an earlier measurement failed")?;
        let mut on_gpu = on_gpu.replan(self.context, plan, loaded)?;
        let mut trial = self.trial(tokens)?;
        let timed = trial.time(self.context, self.shape, &mut on_gpu);
        (self.on_gpu, self.trial) = (Some(on_gpu), Some(trial));
        match timed {
            Ok(row) => Ok(Some(row.microseconds)),
            Err(error) if error.is::<WrongResult>() => Ok(None),
            Err(error) => Err(error),
        }
    }
}

fn tokens_max(options: &Options) -> Result<usize> {
    options.tokens.iter().copied().max().context("no batch size was given")
}

/// Asks for every kernel that the measurement launches.
///
/// # Errors
/// When one is missing and cannot be made.
pub fn load(options: &Options, kernels: &mut Kernels) -> Result<()> {
    load_ceilings(kernels)?;
    for shape in &options.shapes {
        let planned = match options.path {
            None => vec![tokens_max(options)?],
            Some(_) => options.tokens.clone(),
        };
        for tokens in planned {
            let plan = super::plan(options, kernels.architecture(), shape, tokens)?;
            load_plan(kernels, shape, &plan)?;
        }
    }
    Ok(())
}

/// Asks for the kernels that measure the GPU itself.
///
/// # Errors
/// When one is missing and cannot be made.
pub fn load_ceilings(kernels: &mut Kernels) -> Result<()> {
    kernels.get(&read_kernel())?;
    Ok(())
}

/// Asks for every kernel that `artel tune` may try for a layer.
///
/// # Errors
/// When one is missing and cannot be made.
pub fn load_ways(kernels: &mut Kernels, shape: &NamedLayer) -> Result<()> {
    let architecture = kernels.architecture();
    let (config, format) = (&shape.config, shape.format);
    let gpu = shipped::ceilings(architecture);
    let search = Search { gpu, config, format };
    for tokens in super::TOKENS {
        for way in search.ways(tokens)? {
            // As the measurement plans: the kernels of one token are not those of several.
            let plan = GpuPlan::new(gpu, config, format, None, tokens)?.with_way(way);
            load_plan(kernels, shape, &plan)?;
        }
    }
    Ok(())
}

fn load_plan(kernels: &mut Kernels, shape: &NamedLayer, plan: &GpuPlan) -> Result<()> {
    let (config, format) = (&shape.config, shape.format);
    match format {
        Format::F16 => ExpertsKernels::<f16>::load(kernels, config, format, plan).map(drop)?,
        _ => ExpertsKernels::<bf16>::load(kernels, config, format, plan).map(drop)?,
    }
    Ok(())
}

/// The layer whose definition the output is compared with; its gate is not used.
fn reference_layer<F: GemmFormat>(
    shape: &NamedLayer,
    experts: ExpertWeights<F>,
) -> Result<MoeLayer<F>> {
    let gate = random_matrix(
        Format::Bf16,
        shape.config.shape().num_experts,
        shape.config.shape().hidden_size,
        9,
    )?;
    let bias = match shape.router.method().bias {
        SelectionBias::None => Vec::new(),
        SelectionBias::PerExpert => vec![0.0; shape.router.num_logits()],
    };
    let router = Router::with_bias(shape.router, bias)?;
    let features = CpuFeatures::detect();
    Ok(MoeLayer::new(shape.config.clone(), Gate::new(gate, None)?, router, experts, features)?)
}
