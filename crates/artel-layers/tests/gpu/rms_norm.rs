//! RMS norm: within the rounding of the numbers of the reference; codes those of the rounded rows.

use artel_gpu_test::{Case, Gpu};
use artel_layers::LayersError;
use artel_layers::rms_norm::cuda::{
    NormRows, Normalize, NormalizeColumns, NormalizeQuantize, Plain, Residual,
};
use artel_layers::rms_norm::{NormColumns, RmsNorm, reference};
use artel_moe::quant::Element;
use artel_moe::quant::activations::cuda::{QuantizedRows, ScaleLayout};
use artel_moe::quant::activations::{Granularity, ScaleBounds, reference as quantized};
use half::{bf16, f16};

use crate::numbers::{assert_close, numbers, rounding, widened};

const EPSILON: f32 = 1e-6;

pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for residual in [Residual::Alone, Residual::Add] {
        for width in [1, 3, 128, 129, 2048, 2880, 3072, 16384] {
            cases.push(plain::<bf16, bf16>(width, residual));
            cases.push(plain::<f32, bf16>(width, residual));
        }
        cases.push(plain::<f16, f16>(2048, residual));
        for width in [1, 128, 130, 2048, 3072] {
            for plain in [Plain::Kept, Plain::Dropped] {
                cases.push(codes::<bf16, bf16>(width, residual, plain));
            }
        }
        cases.push(codes::<f32, f16>(2048, residual, Plain::Kept));
    }
    for (row_width, first, heads, width) in
        [(10, 1, 2, 4), (5120, 4096, 4, 128), (5120, 0, 32, 128), (8192, 0, 1, 6144), (24, 8, 3, 5)]
    {
        cases.push(columns::<bf16>(NormColumns { row_width, first, heads, width }));
    }
    cases.push(columns::<f16>(NormColumns { row_width: 96, first: 0, heads: 1, width: 64 }));
    cases
}

const TOKENS: [usize; 5] = [0, 1, 7, 33, 130];

fn weights(width: usize) -> Vec<f32> {
    (0..width).map(|index| 0.5 + index as f32 / width as f32).collect()
}

/// The rows before and after what is added, which is nothing without a residual.
struct Rows<T, A> {
    before: Vec<T>,
    delta: Vec<A>,
    after: Vec<T>,
}

fn rows<T: Element, A: Element>(elements: usize, residual: Residual) -> Rows<T, A> {
    let (before, delta) = (numbers::<T>(elements, 1), numbers::<A>(elements, 2));
    let sum = |(before, delta): (&T, &A)| T::from_f32(before.to_f32() + delta.to_f32());
    let after = match residual {
        Residual::Alone => before.clone(),
        Residual::Add => before.iter().zip(&delta).map(sum).collect(),
    };
    Rows { before, delta, after }
}

fn plain<T: Element, A: Element>(width: usize, residual: Residual) -> Case {
    let name = format!("rms_norm::{}_to_{}_{width}_{residual:?}", T::NAME, A::NAME);
    let load = move |kernels: &mut _| Normalize::<T, A>::load(kernels, width, EPSILON, residual);
    Case::new(name, load, move |gpu, normalize| {
        TOKENS.iter().try_for_each(|&tokens| check(gpu, normalize, [tokens, width], residual))
    })
}

fn check<T: Element, A: Element>(
    gpu: &Gpu,
    normalize: &Normalize<T, A>,
    [tokens, width]: [usize; 2],
    residual: Residual,
) -> Result<(), LayersError> {
    let Rows { before, delta, after } = rows::<T, A>(tokens * width, residual);
    let norm = RmsNorm::new(weights(width), EPSILON)?;
    let expected = reference::forward(&norm, &widened(&after));
    let (mut hidden, delta) = (gpu.upload(&before), gpu.upload(&delta));
    let (weight, mut out) = (gpu.upload(&weights(width)), gpu.poisoned::<A>(tokens * width));
    let rows = NormRows {
        hidden: hidden.slice_mut(),
        delta: (residual == Residual::Add).then_some(delta.slice()),
        weight: weight.slice(),
        tokens,
    };
    normalize.launch(&gpu.stream, &rows, &mut out.slice_mut())?;
    assert_close(&gpu.download(&out), &expected, rounding::<A>());
    assert_eq!(gpu.download(&hidden), after, "the residual");
    Ok(())
}

fn codes<T: Element, A: Element>(width: usize, residual: Residual, plain: Plain) -> Case {
    let name = format!("rms_norm::{}_to_codes_{width}_{residual:?}_{plain:?}", T::NAME);
    let load = move |kernels: &mut _| {
        let kept = Normalize::<T, A>::load(kernels, width, EPSILON, residual)?;
        let codes = NormalizeQuantize::<T, A>::load(kernels, width, EPSILON, residual, plain)?;
        Ok::<_, LayersError>((kept, codes))
    };
    Case::new(name, load, move |gpu, (normalize, quantize)| {
        for tokens in TOKENS {
            let input = rows::<T, A>(tokens * width, residual);
            check_codes(gpu, (normalize, quantize), &input, [tokens, width], (residual, plain))?;
        }
        Ok(())
    })
}

fn check_codes<T: Element, A: Element>(
    gpu: &Gpu,
    (normalize, quantize): (&Normalize<T, A>, &NormalizeQuantize<T, A>),
    input: &Rows<T, A>,
    [tokens, width]: [usize; 2],
    (residual, plain): (Residual, Plain),
) -> Result<(), LayersError> {
    let groups = Granularity::Groups.groups(width);
    let (weight, delta) = (gpu.upload(&weights(width)), gpu.upload(&input.delta));
    let delta = (residual == Residual::Add).then_some(delta.slice());
    let mut hidden = gpu.upload(&input.before);
    let mut out = gpu.poisoned::<A>(tokens * width);
    let rows = NormRows { hidden: hidden.slice_mut(), delta, weight: weight.slice(), tokens };
    normalize.launch(&gpu.stream, &rows, &mut out.slice_mut())?;
    let plain_rows = gpu.download(&out);
    let (expected_codes, expected_scales) =
        quantized::quantize(Granularity::Groups, width, &plain_rows);

    let mut hidden = gpu.upload(&input.before);
    let mut kept = gpu.poisoned::<A>(tokens * width);
    let (mut codes, mut scales) =
        (gpu.poisoned::<u8>(tokens * width), gpu.poisoned(tokens * groups));
    let mut quantized = QuantizedRows {
        codes: codes.slice_mut(),
        scales: scales.slice_mut(),
        layout: ScaleLayout::ByGroup { rows: tokens },
        bounds: ScaleBounds::HIDDEN,
    };
    let rows = NormRows { hidden: hidden.slice_mut(), delta, weight: weight.slice(), tokens };
    let place = (plain == Plain::Kept).then(|| kept.slice_mut());
    quantize.launch(&gpu.stream, &rows, place, &mut quantized)?;
    assert_eq!(gpu.download(&codes), expected_codes);
    let scales: Vec<f32> = gpu.download(&scales);
    for (index, expected) in expected_scales.iter().enumerate() {
        assert_eq!(scales[index % groups * tokens + index / groups], *expected, "scale {index}");
    }
    if plain == Plain::Kept {
        assert_eq!(gpu.download(&kept), plain_rows);
    }
    assert_eq!(gpu.download(&hidden), input.after, "the residual");
    Ok(())
}

fn columns<A: Element>(columns: NormColumns) -> Case {
    let NormColumns { row_width, first, heads, width } = columns;
    let name = format!("rms_norm::{}_{heads}_heads_of_{width}_from_{first}", A::NAME);
    let load = move |kernels: &mut _| NormalizeColumns::<A>::load(kernels, columns, EPSILON);
    Case::new(name, load, move |gpu, normalize| {
        for tokens in TOKENS {
            let before = numbers::<A>(tokens * row_width, 3);
            let norm = RmsNorm::new(weights(width), EPSILON)?;
            let (mut rows, weight) = (gpu.upload(&before), gpu.upload(&weights(width)));
            normalize.launch(&gpu.stream, tokens, weight.slice(), &mut rows.slice_mut())?;
            let after = gpu.download(&rows);
            let end = first + heads * width;
            for (before, after) in before.chunks(row_width).zip(after.chunks(row_width)) {
                let expected = reference::forward(&norm, &widened(&before[first..end]));
                assert_close(&after[first..end], &expected, rounding::<A>());
                assert_eq!((&before[..first], &before[end..]), (&after[..first], &after[end..]));
            }
        }
        Ok(())
    })
}
