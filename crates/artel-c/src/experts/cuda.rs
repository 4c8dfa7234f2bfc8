//! Experts on a GPU over weights of the caller.

use std::ffi::{CStr, CString, c_void};
use std::fmt;
use std::sync::{Mutex, PoisonError};

use artel_device::cuda::{
    Compiler, Context, DeviceSlice, DeviceSliceMut, KernelPack, Kernels, Stream,
};
use artel_moe::MoeError;
use artel_moe::cuda::shipped;
use artel_moe::grouped_gemm::prefill::cuda::HalfElement;
use artel_moe::layer::cuda::{CudaExperts, DeviceRouting, ExpertsKernels};
use artel_moe::plan::gpu::GpuPlan;
use artel_moe::quant::{Bf16, F16, Format, Fp8Block128, Fp8Channel, Fp8Tensor, NumberFormat};
use artel_moe::weights::cuda::{DeviceExperts, DeviceMatrices};

use crate::failure::Failure;
use crate::settings::{Settings, Stack, not_null};

/// Experts, their kernels and their workspace.
pub(crate) struct Experts {
    context: Context,
    layer: Mutex<Box<dyn Layer>>,
    plan: CString,
    hidden_size: usize,
    top_k: usize,
    packed: bool,
}

/// Experts of any format.
trait Layer: Send {
    /// Launches one batch; addresses of hidden states, ids, weights (0: the ids are packed pairs)
    /// and output.
    ///
    /// # Safety
    /// The addresses hold what `sizes` says, on the stream's GPU, until the work has ended.
    unsafe fn forward(
        &mut self,
        stream: &Stream,
        addresses: [usize; 4],
        sizes: Sizes,
    ) -> Result<(), MoeError>;
}

/// Sizes of one batch.
#[derive(Debug, Clone, Copy)]
struct Sizes {
    tokens: usize,
    /// Elements of hidden states and output.
    states: usize,
    /// Elements of ids and of weights.
    pairs: usize,
}

impl<F: NumberFormat<Activation: HalfElement>> Layer for CudaExperts<F> {
    unsafe fn forward(
        &mut self,
        stream: &Stream,
        [hidden, ids, weights, out]: [usize; 4],
        Sizes { tokens, states, pairs }: Sizes,
    ) -> Result<(), MoeError> {
        // SAFETY: the caller vouches for all four.
        let (hidden, ids, mut out) = unsafe {
            (
                DeviceSlice::from_raw(hidden as u64, states),
                DeviceSlice::from_raw(ids as u64, pairs),
                DeviceSliceMut::from_raw(out as u64, states),
            )
        };
        let routing = match weights {
            0 => DeviceRouting::Packed(ids),
            weights => {
                // SAFETY: as above.
                let weights = unsafe { DeviceSlice::from_raw(weights as u64, pairs) };
                DeviceRouting::Pairs { ids, weights }
            }
        };
        Self::forward(self, stream, hidden, routing, tokens, &mut out)
    }
}

impl Experts {
    /// Experts as `settings` say. The addresses in them are device memory that outlives the experts:
    /// only `artel_moe_create` makes settings, and its caller vouches for that.
    pub(crate) fn new(settings: Settings) -> Result<Self, Failure> {
        let packs = settings.kernel_packs.iter().map(|path| KernelPack::load(path));
        let packs = packs.collect::<Result<Vec<_>, _>>()?;
        let context = Context::new(settings.device)?;
        check_places(&context, &settings)?;
        let (config, format) = (&settings.config, settings.format);
        // Up to a power of two the plan is that of the kernel packs; steps of sixteen or more begin
        // at aligned addresses whatever the sizes of a token.
        let tokens_per_step = settings.tokens_max.next_power_of_two().max(16);
        let plan = shipped::plan_in_steps(context.architecture(), config, format, tokens_per_step)?;
        let mut kernels = Kernels::open(&context, packs, Compiler::find().ok());
        let (hidden_size, top_k) = (config.shape().hidden_size, config.shape().top_k);
        let packed = settings.packed;
        let text = CString::new(plan.to_string()).unwrap_or_default();
        let layer: Box<dyn Layer> = match format {
            Format::F16 => layer::<F16>(&context, settings, plan, &mut kernels)?,
            Format::Bf16 => layer::<Bf16>(&context, settings, plan, &mut kernels)?,
            Format::Fp8Block128 => layer::<Fp8Block128>(&context, settings, plan, &mut kernels)?,
            Format::Fp8Tensor => layer::<Fp8Tensor>(&context, settings, plan, &mut kernels)?,
            Format::Fp8Channel => layer::<Fp8Channel>(&context, settings, plan, &mut kernels)?,
            other => {
                let (field, allowed) = ("format of experts on a GPU", "f16, bf16 or FP8");
                return Err(MoeError::config(field, other, allowed).into());
            }
        };
        Ok(Self { context, layer: Mutex::new(layer), plan: text, hidden_size, top_k, packed })
    }

    /// Launches one batch on a stream of the caller: addresses of hidden states, ids, weights and
    /// output. They are what the header says: only `artel_moe_forward` calls this, and its caller
    /// vouches for them.
    pub(crate) fn forward(
        &self,
        stream: *mut c_void,
        addresses: [usize; 4],
        tokens: u64,
    ) -> Result<(), Failure> {
        if tokens == 0 {
            return Ok(());
        }
        for (name, address) in ["hidden", "topk_ids", "topk_weights", "out"].iter().zip(addresses) {
            match self.packed && *name == "topk_weights" {
                false => not_null(name, address)?,
                true if address == 0 => {}
                true => {
                    let text = format!("{name} is {address:#x}, but must be null: ids are packed");
                    return Err(Failure::invalid(text));
                }
            }
        }
        let count = |per_token: usize| {
            let count =
                usize::try_from(tokens).ok().and_then(|tokens| tokens.checked_mul(per_token));
            count.filter(|&count| count <= isize::MAX as usize / 2)
        };
        let (Some(states), Some(pairs)) = (count(self.hidden_size), count(self.top_k)) else {
            return Err(Failure::invalid(format!("tokens is {tokens}, more than memory can hold")));
        };
        let sizes = Sizes { tokens: tokens as usize, states, pairs };
        // SAFETY: a stream of the device's primary context, says the header.
        let stream = unsafe { self.context.borrow_stream(stream) };
        // What a failed call left in the workspace, the next one writes anew.
        let mut layer = self.layer.lock().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: memory of these sizes, says the header.
        Ok(unsafe { layer.forward(&stream, addresses, sizes) }?)
    }

    pub(crate) fn plan(&self) -> &CStr {
        &self.plan
    }
}

/// Weights lie on the GPU that works with them; anything else would bring the whole context down.
fn check_places(context: &Context, settings: &Settings) -> Result<(), Failure> {
    let Settings { w13, w2, device, .. } = settings;
    let places = [
        ("w13.numbers", w13.numbers),
        ("w13.scales", w13.scales),
        ("w2.numbers", w2.numbers),
        ("w2.scales", w2.scales),
    ];
    for (name, address) in places.into_iter().filter(|(_, address)| *address != 0) {
        let place = match context.device_of(address)? {
            Some(found) if found == *device => continue,
            Some(other) => format!("on GPU {other}"),
            None => "not on a GPU".to_owned(),
        };
        let text = format!("{name} lies at {address:#x}, {place}, but must be on GPU {device}");
        return Err(Failure::invalid(text));
    }
    Ok(())
}

fn layer<F: NumberFormat<Activation: HalfElement>>(
    context: &Context,
    settings: Settings,
    plan: GpuPlan,
    kernels: &mut Kernels,
) -> Result<Box<dyn Layer>, MoeError> {
    let (config, format) = (&settings.config, settings.format);
    let loaded = match settings.packed {
        false => ExpertsKernels::load(kernels, config, format, &plan)?,
        true => ExpertsKernels::load_packed(kernels, config, format, &plan)?,
    };
    let matrices = |Stack { layout, numbers, scales }: Stack| {
        // SAFETY: memory of this layout that outlives the experts, as settings promise.
        unsafe { DeviceMatrices::from_raw(layout, numbers, scales) }
    };
    let weights = DeviceExperts::new(matrices(settings.w13), matrices(settings.w2));
    let experts = CudaExperts::<F>::new(context, settings.config, plan, loaded, weights)?;
    Ok(Box::new(experts))
}

impl fmt::Debug for Experts {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Experts").field("plan", &self.plan).finish_non_exhaustive()
    }
}
