//! Activation: within the rounding of the element type of the definition; codes within a step.

use artel_gpu_test::{Case, Gpu};
use artel_moe::MoeError;
use artel_moe::activation::cuda::{Activate, ActivateQuantize, ActivationForm, GateUp};
use artel_moe::activation::{Activation, GateLayout, reference};
use artel_moe::quant::activations::cuda::{QuantizedRows, ScaleLayout};
use artel_moe::quant::activations::{Granularity, ScaleBounds};
use artel_moe::quant::{Element, e4m3_to_f32};
use half::{bf16, f16};

/// Smallest scale of codes that activation makes.
const LEAST_SCALE: f64 = 1.0 / (448.0 * 512.0);

pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    let with_linear_beta = Activation::Situ { beta: 0.75, linear_beta: Some(3.0) };
    let named = Activation::NAMED.iter().map(|(_, activation)| *activation);
    for activation in named.chain([with_linear_beta]) {
        for intermediate_size in [1, 129, 768] {
            let form =
                ActivationForm { activation, intermediate_size, sorted: false, biased: None };
            cases.push(alone::<bf16>(form, 1.0 / 256.0));
            cases.push(alone::<f16>(form, 1.0 / 1024.0));
        }
    }
    let interleaved = GateLayout::Interleaved;
    let oai = Activation::SwigluOai { alpha: 1.702, limit: 7.0, layout: interleaved };
    for activation in [Activation::Silu, oai, Activation::Relu2NoMul] {
        for (intermediate_size, sorted) in [(127, true), (768, true), (1536, true), (130, false)] {
            let form = ActivationForm { activation, intermediate_size, sorted, biased: None };
            cases.push(alone::<bf16>(form, 1.0 / 256.0));
            for granularity in [Granularity::Groups, Granularity::Rows] {
                cases.push(with_codes::<bf16>(form, granularity));
            }
        }
    }
    for (intermediate_size, granularity) in
        [(130, Granularity::Groups), (768, Granularity::Groups), (192, Granularity::Rows)]
    {
        cases.push(codes_alone(intermediate_size, granularity));
    }
    cases.push(Case::new("activation::nan_is_not_hidden", load_all, nan_is_not_hidden));
    cases
}

/// No pair, one, a few; and where rows are short both sides of the switch to larger blocks.
fn batches(form: ActivationForm) -> &'static [usize] {
    match form.intermediate_size <= 130 {
        true => &[0, 1, 67, 4095, 4096, 4100],
        false => &[0, 1, 67],
    }
}

fn alone<A: Element>(form: ActivationForm, tolerance: f64) -> Case {
    let ActivationForm { activation, intermediate_size, sorted, .. } = form;
    let kind = format!("{activation:?}").replace([' ', '{', '}', ':'], "_");
    let name = format!("activation::{}_{kind}_{intermediate_size}_sorted_{sorted}", A::NAME);
    let run = move |gpu: &Gpu, activate: &Activate<A>| {
        for &pairs in batches(form) {
            let batch = Batch::<A>::new(gpu, form, pairs);
            let mut out = gpu.poisoned::<A>(batch.rows * intermediate_size);
            activate.launch(&gpu.stream, batch.gate_up(), &mut out.slice_mut())?;
            let found = gpu.download(&out);
            for row in 0..batch.rows {
                let found = &found[row * intermediate_size..][..intermediate_size];
                let Some(expected) = batch.expected(row) else {
                    assert!(found.iter().all(|found| found.to_f32().is_nan()), "untouched");
                    continue;
                };
                for (found, expected) in found.iter().zip(expected) {
                    let error = (f64::from(found.to_f32()) - expected).abs();
                    let limit = tolerance * (1.0 + expected.abs());
                    assert!(error <= limit, "{activation}: {found:?}, not {expected}");
                }
            }
        }
        Ok(())
    };
    Case::new(name, move |kernels| Activate::<A>::load(kernels, form), run)
}

fn with_codes<A: Element>(form: ActivationForm, granularity: Granularity) -> Case {
    let ActivationForm { activation, intermediate_size, sorted, .. } = form;
    let name = format!(
        "activation::codes_of_{activation}_{intermediate_size}_{granularity:?}_sorted_{sorted}"
    );
    let load = move |kernels: &mut _| ActivateQuantize::<A>::load(kernels, form, granularity);
    Case::new(name, load, move |gpu, activate| {
        for &pairs in batches(form) {
            check_codes(gpu, activate, &Batch::new(gpu, form, pairs), granularity)?;
        }
        Ok(())
    })
}

/// What a product has activated is only quantised.
fn codes_alone(intermediate_size: usize, granularity: Granularity) -> Case {
    let name = format!("activation::codes_of_activated_{intermediate_size}_{granularity:?}");
    let load = move |kernels: &mut _| {
        ActivateQuantize::<f32>::load_activated(kernels, intermediate_size, granularity)
    };
    Case::new(name, load, move |gpu, activate| {
        let activation = Activation::SiluNoMul;
        let form = ActivationForm { activation, intermediate_size, sorted: true, biased: None };
        for &pairs in batches(form) {
            let batch = Batch { is_activated: true, ..Batch::new(gpu, form, pairs) };
            check_codes(gpu, activate, &batch, granularity)?;
        }
        Ok(())
    })
}

fn check_codes<A: Element>(
    gpu: &Gpu,
    activate: &ActivateQuantize<A>,
    batch: &Batch<A>,
    granularity: Granularity,
) -> Result<(), MoeError> {
    let columns = batch.form.intermediate_size;
    let (groups, width) = (granularity.groups(columns), granularity.width(columns));
    let mut codes = gpu.poisoned::<u8>(batch.rows * columns);
    let mut scales = gpu.poisoned::<f32>(batch.rows * groups);
    // Odd numbers of pairs by row, even ones by group.
    let layout = match batch.pairs % 2 {
        1 => ScaleLayout::ByRow,
        _ => ScaleLayout::ByGroup { rows: batch.rows },
    };
    let (codes_out, scales_out) = (codes.slice_mut(), scales.slice_mut());
    let bounds = ScaleBounds::ACTIVATED;
    let mut out = QuantizedRows { codes: codes_out, scales: scales_out, layout, bounds };
    let [row_stride, group_stride] = out.scale_strides(groups);
    activate.launch(&gpu.stream, batch.gate_up(), &mut out)?;
    let (codes, scales) = (gpu.download(&codes), gpu.download(&scales));
    for row in 0..batch.rows {
        let Some(expected) = batch.expected(row) else { continue };
        for (group, expected) in expected.chunks(width).enumerate() {
            let scale = f64::from(scales[row * row_stride + group * group_stride]);
            let largest = expected.iter().fold(0.0f64, |largest, value| largest.max(value.abs()));
            let expected_scale = (largest / 448.0).max(LEAST_SCALE);
            let error = (scale - expected_scale).abs();
            assert!(error <= 1e-5 * expected_scale, "scale {scale}, not {expected_scale}");
            let codes = &codes[row * columns + group * width..][..expected.len()];
            for (&code, expected) in codes.iter().zip(expected) {
                let found = f64::from(e4m3_to_f32(code)) * scale;
                let step = (expected.abs() / 16.0).max(scale / 1024.0) * 1.001;
                assert!((found - expected).abs() <= step, "{found}, not {expected}");
            }
        }
    }
    Ok(())
}

/// Rows of the first product on the device, and what becomes of them.
struct Batch<A: Element> {
    form: ActivationForm,
    /// Whether the rows are what the activation made.
    is_activated: bool,
    pairs: usize,
    rows: usize,
    input: Vec<A>,
    /// Row of each pair; -1: none.
    positions: Vec<i32>,
    device_input: artel_device::cuda::DeviceBuffer<A>,
    device_positions: artel_device::cuda::DeviceBuffer<i32>,
}

impl<A: Element> Batch<A> {
    fn new(gpu: &Gpu, form: ActivationForm, pairs: usize) -> Self {
        // Sorted, every third pair is dropped and the others have free rows between them.
        let rows = if form.sorted { 2 * pairs + 1 } else { pairs };
        let position = |pair: usize| match form.sorted {
            true if pair % 3 == 2 => -1,
            true => 2 * (pairs - pair) as i32,
            false => pair as i32,
        };
        let positions: Vec<i32> = (0..pairs).map(position).collect();
        let columns = form.activation.input_columns(form.intermediate_size);
        let number = |i: usize| A::from_f32((i * 7919 % 2003) as f32 / 2003.0 * 24.0 - 12.0);
        let mut input: Vec<A> = (0..rows * columns).map(number).collect();
        if let Some(first) = positions.first() {
            // A row of zeros.
            input[*first as usize * columns..][..columns].fill(A::from_f32(0.0));
        }
        let (device_input, device_positions) = (gpu.upload(&input), gpu.upload(&positions));
        let is_activated = false;
        Self { form, is_activated, pairs, rows, input, positions, device_input, device_positions }
    }

    fn gate_up(&self) -> GateUp<'_, A> {
        let positions = self.form.sorted.then_some(self.device_positions.slice());
        GateUp { rows: self.device_input.slice(), pairs: self.pairs, positions, biases: None }
    }

    /// The activated row, unless it belongs to no pair.
    fn expected(&self, row: usize) -> Option<Vec<f64>> {
        let is_used = match self.form.sorted {
            true => row > 0 && row.is_multiple_of(2) && (self.pairs - row / 2) % 3 != 2,
            false => self.positions[row] >= 0,
        };
        let columns = self.form.activation.input_columns(self.form.intermediate_size);
        let input = &self.input[row * columns..][..columns];
        let input: Vec<f64> = input.iter().map(|value| f64::from(value.to_f32())).collect();
        let mut out = vec![0.0; self.form.intermediate_size];
        is_used.then(|| {
            match self.is_activated {
                true => out.copy_from_slice(&input),
                false => reference::activate_row(self.form.activation, &input, &mut out),
            }
            out
        })
    }
}

type Named = Vec<(Activation, Activate<bf16>)>;

fn load_all(kernels: &mut artel_device::cuda::Kernels) -> Result<Named, MoeError> {
    let load = |(_, activation): &(&str, Activation)| {
        let form = ActivationForm {
            activation: *activation,
            intermediate_size: 2,
            sorted: false,
            biased: None,
        };
        Ok((*activation, Activate::load(kernels, form)?))
    };
    Activation::NAMED.iter().map(load).collect()
}

fn nan_is_not_hidden(gpu: &Gpu, all: &Named) -> Result<(), MoeError> {
    for (activation, activate) in all {
        let mut row = vec![bf16::from_f32(-1e4); activation.input_columns(2)];
        row[1] = bf16::NAN;
        let (input, mut out) = (gpu.upload(&row), gpu.poisoned::<bf16>(2));
        let input = GateUp { rows: input.slice(), pairs: 1, positions: None, biases: None };
        activate.launch(&gpu.stream, input, &mut out.slice_mut())?;
        let found = gpu.download(&out);
        let nan_feature = usize::from(activation.layout() != GateLayout::Interleaved);
        assert!(found[nan_feature].is_nan(), "{activation} hides NaN: {found:?}");
        assert!(!found[1 - nan_feature].is_nan(), "{activation} makes NaN: {found:?}");
    }
    Ok(())
}
