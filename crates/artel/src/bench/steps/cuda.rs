//! The steps and their buffers.

use anyhow::Result;
use artel_device::cuda::{CudaError, DeviceBuffer, Event, Graph, Kernels, Stream};
use artel_moe::eplb::Placement;
use artel_moe::eplb::map_and_record::cuda::{DevicePlacement, MapAndRecord, MapBuffers};
use artel_moe::eplb::map_and_record::{ReplicaRule, ReplicaSalt};
use artel_moe::packing::cuda::Pack;
use artel_moe::router::cuda::{Route, RouteBuffers};
use artel_moe::router::gate::cuda::{GateBuffers, GateElement, GateRoute};
use artel_moe::router::{RouterConfig, RoutingMethod, SelectionBias};
use half::bf16;
use rand::{RngExt, SeedableRng, rngs::StdRng};

use super::block::BlockSteps;
use super::rows::RowSteps;
use super::{Floor, LAUNCHES, Only, REPLAYS};

pub(super) const EXPERTS: usize = 256;
pub(super) const TOP_K: usize = 8;
pub(super) const HIDDEN: usize = 3072;
const REDUNDANT: usize = 32;
const WARM_UP: usize = 3;
/// Tokens that the gate is measured with, ascending.
const GATE_TOKENS: [usize; 5] = [1, 8, 64, 512, 4096];

/// Told of a step: name, tokens, what it takes at least, times of a launch ascending.
pub(super) type Report<'a> = dyn FnMut(&str, usize, Floor, &[f64]) + 'a;

/// Every kernel that is measured.
pub(super) struct Steps {
    pack: Pack<f32>,
    routes: Vec<(&'static str, RouterConfig, Route<f32>)>,
    map: MapAndRecord,
    narrow_gate: GateRoute<bf16>,
    wide_gate: GateRoute<f32>,
    rows: RowSteps,
    block: BlockSteps,
}

impl Steps {
    pub(super) fn load(kernels: &mut Kernels) -> Result<Self> {
        let config = |method| RouterConfig::new(method, EXPERTS, TOP_K);
        let minimax2 = config(RoutingMethod::minimax2())?;
        let methods = [
            ("route, softmax", config(RoutingMethod::softmax_renormalize())?),
            ("route, MiniMax-M2", minimax2),
            ("route, DeepSeek-V3", config(RoutingMethod::deepseek_v3(8, 4))?),
        ];
        let mut routes = Vec::new();
        for (name, config) in methods {
            routes.push((name, config, Route::load(kernels, &config)?));
        }
        let rule = ReplicaRule::Salted(ReplicaSalt::of_rank(0, 0));
        Ok(Self {
            pack: Pack::load(kernels)?,
            routes,
            map: MapAndRecord::load(kernels, TOP_K, EXPERTS + REDUNDANT, rule)?,
            narrow_gate: GateRoute::load(kernels, &minimax2, (HIDDEN, false), GATE_TOKENS[4])?,
            wide_gate: GateRoute::load(kernels, &minimax2, (HIDDEN, false), GATE_TOKENS[4])?,
            rows: RowSteps::load(kernels)?,
            block: BlockSteps::load(kernels)?,
        })
    }

    pub(super) fn measure(
        &self,
        stream: &Stream,
        only: &Only,
        mut report: impl FnMut(&str, usize, Floor, &[f64]),
    ) -> Result<()> {
        if only.wants("route") {
            for tokens in [1, 64, 8192] {
                self.pack(stream, tokens, &mut report)?;
            }
            for tokens in [1, 8, 64, 512, 4096, 65536] {
                self.route(stream, tokens, &mut report)?;
            }
            for tokens in [1, 64, 1024, 8192] {
                self.map(stream, tokens, &mut report)?;
            }
        }
        if only.wants("gate") {
            for tokens in GATE_TOKENS {
                gate(&self.narrow_gate, "gate bf16 and route", stream, tokens, &mut report)?;
                gate(&self.wide_gate, "gate f32 and route", stream, tokens, &mut report)?;
            }
        }
        if only.wants("rows") {
            self.rows.measure(stream, &mut report)?;
        }
        self.block.measure(stream, only, &mut report)
    }

    fn pack(&self, stream: &Stream, tokens: usize, report: &mut Report<'_>) -> Result<()> {
        let pairs = tokens * TOP_K;
        let ids = upload(stream, &random_ids(pairs))?;
        let weights = upload(stream, &noise(pairs))?;
        let mut packed = DeviceBuffer::<i32>::zeroed(stream.context(), pairs)?;
        let times = times(stream, |stream, _| {
            self.pack.launch(stream, ids.slice(), weights.slice(), &mut packed.slice_mut())
        })?;
        report("pack", tokens, Floor::bytes(pairs * 12), &times);
        Ok(())
    }

    fn route(&self, stream: &Stream, tokens: usize, report: &mut Report<'_>) -> Result<()> {
        let logits = upload(stream, &noise(tokens * EXPERTS))?;
        let bias = upload(stream, &noise(EXPERTS))?;
        let mut out = Routed::new(stream, tokens)?;
        for (name, config, route) in &self.routes {
            let times = times(stream, |stream, _| {
                let buffers = RouteBuffers {
                    logits: logits.slice(),
                    bias: bias.slice(),
                    unpadded_tokens: out.unpadded_tokens.slice(),
                    topk_ids: out.ids.slice_mut(),
                    topk_weights: out.weights.slice_mut(),
                    identity_weights: out.identity_weights.slice_mut(),
                };
                route.launch(stream, tokens, buffers)
            })?;
            let biased = config.method().bias == SelectionBias::PerExpert;
            let biases = if biased { EXPERTS * 4 } else { 0 };
            let floor = Floor::bytes(tokens * (EXPERTS * 4 + TOP_K * 8) + biases);
            report(name, tokens, floor, &times);
        }
        Ok(())
    }

    fn map(&self, stream: &Stream, tokens: usize, report: &mut Report<'_>) -> Result<()> {
        let pairs = tokens * TOP_K;
        let placement = Placement::initial(EXPERTS, REDUNDANT)?;
        let placement = DevicePlacement::new(stream.context(), &placement)?;
        let logical_ids = upload(stream, &random_ids(pairs))?;
        let unpadded_tokens = upload(stream, &[tokens as i32])?;
        let mut physical_ids = DeviceBuffer::<i32>::zeroed(stream.context(), pairs)?;
        let mut expert_load = DeviceBuffer::<i32>::zeroed(stream.context(), EXPERTS + REDUNDANT)?;
        for (name, record) in [("map and record", 1), ("map, not recording", 0)] {
            let record = upload(stream, &[record])?;
            let times = times(stream, |stream, _| {
                let buffers = MapBuffers {
                    logical_ids: logical_ids.slice(),
                    physical_ids: physical_ids.slice_mut(),
                    expert_load: expert_load.slice_mut(),
                    record: record.slice(),
                    unpadded_tokens: unpadded_tokens.slice(),
                };
                self.map.launch(stream, tokens, &placement, buffers)
            })?;
            report(name, tokens, Floor::bytes(pairs * 8), &times);
        }
        Ok(())
    }
}

/// A number type that random weights can be rounded to.
trait Rounded: GateElement {
    fn rounded(x: f32) -> Self;
}

impl Rounded for f32 {
    fn rounded(x: f32) -> Self {
        x
    }
}

impl Rounded for bf16 {
    fn rounded(x: f32) -> Self {
        Self::from_f32(x)
    }
}

fn gate<W: Rounded>(
    gate: &GateRoute<W>,
    name: &str,
    stream: &Stream,
    tokens: usize,
    report: &mut Report<'_>,
) -> Result<()> {
    let hidden: Vec<bf16> = noise(tokens * HIDDEN).into_iter().map(bf16::from_f32).collect();
    let weight: Vec<W> = noise(EXPERTS * HIDDEN).into_iter().map(W::rounded).collect();
    let (hidden, weight) = (upload(stream, &hidden)?, upload(stream, &weight)?);
    let selection_bias = upload(stream, &noise(EXPERTS))?;
    let logit_bias = upload::<f32>(stream, &[])?;
    let mut parts = DeviceBuffer::<f32>::zeroed(stream.context(), gate.parts_len(tokens))?;
    let mut out = Routed::new(stream, tokens)?;
    let times = times(stream, |stream, _| {
        let buffers = GateBuffers {
            hidden: hidden.slice(),
            weight: weight.slice(),
            logit_bias: logit_bias.slice(),
            selection_bias: selection_bias.slice(),
            unpadded_tokens: out.unpadded_tokens.slice(),
            parts: parts.slice_mut(),
            topk_ids: out.ids.slice_mut(),
            topk_weights: out.weights.slice_mut(),
            identity_weights: out.identity_weights.slice_mut(),
        };
        gate.launch(stream, tokens, buffers)
    })?;
    let bytes = EXPERTS * HIDDEN * size_of::<W>() + tokens * (HIDDEN * 2 + TOP_K * 8);
    report(name, tokens, Floor::bytes(bytes), &times);
    Ok(())
}

/// Where routing writes.
struct Routed {
    unpadded_tokens: DeviceBuffer<i32>,
    ids: DeviceBuffer<i32>,
    weights: DeviceBuffer<f32>,
    identity_weights: DeviceBuffer<f32>,
}

impl Routed {
    fn new(stream: &Stream, tokens: usize) -> Result<Self> {
        let context = stream.context();
        Ok(Self {
            unpadded_tokens: upload(stream, &[tokens as i32])?,
            ids: DeviceBuffer::zeroed(context, tokens * TOP_K)?,
            weights: DeviceBuffer::zeroed(context, tokens * TOP_K)?,
            identity_weights: DeviceBuffer::zeroed(context, 0)?,
        })
    }
}

pub(super) fn upload<T: bytemuck::Pod>(stream: &Stream, elements: &[T]) -> Result<DeviceBuffer<T>> {
    Ok(DeviceBuffer::from_host(stream.context(), elements)?)
}

pub(super) fn noise(count: usize) -> Vec<f32> {
    let mut random = StdRng::seed_from_u64(count as u64);
    (0..count).map(|_| random.random_range(-4.0..4.0)).collect()
}

pub(super) fn random_ids(count: usize) -> Vec<i32> {
    let mut random = StdRng::seed_from_u64(count as u64);
    (0..count).map(|_| random.random_range(0..EXPERTS as i32)).collect()
}

/// Microseconds of one launch, ascending, one number a replay. `launch` is told its number.
pub(super) fn times<E>(
    stream: &Stream,
    mut launch: impl FnMut(&Stream, usize) -> Result<(), E>,
) -> Result<Vec<f64>>
where
    E: From<CudaError> + std::error::Error + Send + Sync + 'static,
{
    let graph = Graph::capture(stream, |stream| {
        (0..LAUNCHES).try_for_each(|number| launch(stream, number))
    })?;
    let mut times = Vec::new();
    for replay in 0..WARM_UP + REPLAYS {
        let (start, end) = (Event::new(stream.context())?, Event::new(stream.context())?);
        start.record(stream)?;
        // SAFETY: the caller holds every buffer until all replays have ended.
        unsafe { graph.launch(stream) }?;
        end.record(stream)?;
        stream.synchronize()?;
        if replay >= WARM_UP {
            times.push(f64::from(start.elapsed_ms(&end)?) * 1e3 / LAUNCHES as f64);
        }
    }
    times.sort_by(f64::total_cmp);
    Ok(times)
}
