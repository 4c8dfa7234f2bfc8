//! Router weights on the input: hidden states are weighed before everything else, and outputs of
//! experts have weights of one.

use artel_device::cuda::{Context, DeviceBuffer, Stream};

use super::{DeviceRouting, Step};
use crate::MoeError;
use crate::grouped_gemm::prefill::cuda::HalfElement;
use crate::input_weight::cuda::WeighRows;

/// The launch with its memory.
#[derive(Debug)]
pub(super) struct Weighed<A: HalfElement> {
    kernel: WeighRows<A>,
    rows: DeviceBuffer<A>,
    ones: DeviceBuffer<f32>,
}

impl<A: HalfElement> Weighed<A> {
    /// Room for steps of up to `tokens` tokens with one expert each.
    pub(super) fn new(
        context: &Context,
        kernel: WeighRows<A>,
        tokens: usize,
        hidden_size: usize,
    ) -> Result<Self, MoeError> {
        Ok(Self {
            kernel,
            rows: context.buffer(tokens * hidden_size)?,
            ones: DeviceBuffer::from_host(context, &vec![1.0; tokens])?,
        })
    }

    /// The step with its weights in the rows.
    pub(super) fn launch<'a>(
        &'a mut self,
        stream: &Stream,
        step: Step<'a, A>,
    ) -> Result<Step<'a, A>, MoeError> {
        let DeviceRouting::Pairs { ids, weights } = step.routing else {
            panic!("this is a bug: packed pairs with weights on the input");
        };
        let operands = (step.hidden_states, weights);
        self.kernel.launch(stream, step.tokens, operands, &mut self.rows.slice_mut())?;
        let routing = DeviceRouting::Pairs { ids, weights: self.ones.slice() };
        Ok(Step { hidden_states: self.rows.slice(), routing, ..step })
    }
}
