//! RMS norm: within the rounding of the numbers of the reference; codes those of the rounded rows.

use artel_device::cuda::DeviceBuffer;
use artel_gpu_test::{Case, Gpu};
use artel_layers::LayersError;
use artel_layers::linear::cuda::PartSums;
use artel_layers::rms_norm::cuda::{
    Delta, NormRows, Normalize, NormalizeColumns, NormalizeQuantize, Plain, Residual,
};
use artel_layers::rms_norm::projection::cuda::NormalizeProjection;
use artel_layers::rms_norm::{NormColumns, RmsNorm, reference};
use artel_moe::layer::cuda::PairRows;
use artel_moe::quant::Element;
use artel_moe::quant::activations::cuda::{QuantizedRows, ScaleLayout};
use artel_moe::quant::activations::{Granularity, ScaleBounds, reference as quantized};
use half::{bf16, f16};

use crate::numbers::{assert_close, numbers, rounding, widened};

const EPSILON: f32 = 1e-6;

pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for residual in [Residual::Alone, Residual::Add, Residual::AddParts(2), Residual::AddParts(8)] {
        for width in [1, 3, 128, 129, 256, 2048, 2880, 3072, 8192, 16384] {
            cases.push(plain::<bf16, bf16>(width, residual));
            cases.push(plain::<f32, bf16>(width, residual));
        }
        cases.push(plain::<f16, f16>(2048, residual));
        if residual == Residual::AddParts(2) {
            continue;
        }
        for width in [1, 128, 130, 2048, 3072] {
            for plain in [Plain::Kept, Plain::Dropped] {
                cases.push(codes::<bf16, bf16>(width, residual, plain));
            }
        }
        cases.push(codes::<f32, f16>(2048, residual, Plain::Kept));
        for width in [256, 2048, 3072, 8192] {
            for plain in [Plain::Kept, Plain::Dropped] {
                cases.push(codes::<f32, bf16>(width, residual, plain));
            }
        }
    }
    for (pairs, width) in [(1, 256), (3, 3072), (8, 2048), (10, 8192), (16, 256)] {
        let residual = Residual::AddPairs(pairs);
        cases.push(plain::<f32, bf16>(width, residual));
        for plain in [Plain::Kept, Plain::Dropped] {
            cases.push(codes::<f32, bf16>(width, residual, plain));
        }
    }
    for (row_width, first, heads, width) in
        [(10, 1, 2, 4), (5120, 4096, 4, 128), (5120, 0, 32, 128), (8192, 0, 1, 6144), (24, 8, 3, 5)]
    {
        cases.push(columns::<bf16>(NormColumns { row_width, first, heads, width }));
    }
    cases.push(projection::<bf16>([6144, 1024], 2));
    cases.push(projection::<bf16>([40, 8], 4));
    cases.push(projection::<f16>([96, 32], 8));
    cases.push(columns::<f16>(NormColumns { row_width: 96, first: 0, heads: 1, width: 64 }));
    cases
}

const TOKENS: [usize; 5] = [0, 1, 7, 33, 130];

fn weights(width: usize) -> Vec<f32> {
    (0..width).map(|index| 0.5 + index as f32 / width as f32).collect()
}

/// The rows before and after what is added, which is nothing without a residual, or comes in parts.
struct Rows<T, A> {
    before: Vec<T>,
    delta: Vec<A>,
    parts: Vec<f32>,
    pairs: Pairs<A>,
    after: Vec<T>,
}

/// Rows of pairs, where they are, and what they are multiplied with.
struct Pairs<A> {
    rows: Vec<A>,
    positions: Vec<i32>,
    weights: Vec<f32>,
}

/// The last pairs come first, a row apart; every fifth has none. All of few bits, so that every order has
/// the same sum.
fn pairs<A: Element>([tokens, width]: [usize; 2], top_k: usize) -> (Pairs<A>, Vec<A>) {
    let count = tokens * top_k;
    let coarse = |number: &f32| A::from_f32((number * 16.0).round() / 16.0);
    let rows: Vec<A> = numbers::<f32>(2 * count * width, 2).iter().map(coarse).collect();
    let position = |pair| if pair % 5 == 2 { -1 } else { (2 * (count - pair) - 1) as i32 };
    let positions: Vec<i32> = (0..count).map(position).collect();
    let weights: Vec<f32> = (0..count).map(|pair| [0.5, 1.0, 0.25, 2.0][pair % 4]).collect();
    let sum = |at: usize| {
        let pairs = at / width * top_k..(at / width + 1) * top_k;
        let pairs = pairs.filter(|&pair| positions[pair] >= 0);
        let number = |pair| rows[positions[pair] as usize * width + at % width].to_f32();
        A::from_f32(pairs.map(|pair| weights[pair] * number(pair)).sum())
    };
    let sums = (0..tokens * width).map(sum).collect();
    (Pairs { rows, positions, weights }, sums)
}

/// Rows of a part: more than there are tokens, as tiles are whole.
fn part_rows(tokens: usize) -> usize {
    tokens + 3
}

fn rows<T: Element, A: Element>([tokens, width]: [usize; 2], residual: Residual) -> Rows<T, A> {
    let elements = tokens * width;
    let before = numbers::<T>(elements, 1);
    let (mut delta, mut parts) = (numbers::<A>(elements, 2), Vec::new());
    if let Residual::AddParts(count) = residual {
        // Of few bits, so that every order of them has the same sum.
        let coarse = |number: &f32| (number * 256.0).round() / 256.0;
        let numbers: Vec<f32> = numbers::<f32>(count * elements, 2).iter().map(coarse).collect();
        let sum = |at| (0..count).map(|part| numbers[part * elements + at]).sum();
        delta = (0..elements).map(|at| A::from_f32(sum(at))).collect();
        for part in 0..count {
            parts.extend_from_slice(&numbers[part * elements..][..elements]);
            parts.resize((part + 1) * part_rows(tokens) * width, f32::NAN);
        }
    }
    let (pairs, delta) = match residual {
        Residual::AddPairs(top_k) => pairs([tokens, width], top_k),
        _ => (pairs([0, width], 1).0, delta),
    };
    let sum = |(before, delta): (&T, &A)| T::from_f32(before.to_f32() + delta.to_f32());
    let after = match residual {
        Residual::Alone => before.clone(),
        Residual::Add | Residual::AddParts(_) | Residual::AddPairs(_) => {
            before.iter().zip(&delta).map(sum).collect()
        }
    };
    Rows { before, delta, parts, pairs, after }
}

/// What is added, on the device.
struct Added<A: Element> {
    residual: Residual,
    delta: DeviceBuffer<A>,
    parts: DeviceBuffer<f32>,
    part_rows: usize,
    pairs: (DeviceBuffer<A>, DeviceBuffer<i32>, DeviceBuffer<f32>),
}

impl<A: Element> Added<A> {
    fn new<T>(gpu: &Gpu, rows: &Rows<T, A>, tokens: usize, residual: Residual) -> Self {
        let (delta, parts) = (gpu.upload(&rows.delta), gpu.upload(&rows.parts));
        let Pairs { rows, positions, weights } = &rows.pairs;
        let pairs = (gpu.upload(rows), gpu.upload(positions), gpu.upload(weights));
        Self { residual, delta, parts, part_rows: part_rows(tokens), pairs }
    }

    fn get(&self) -> Delta<'_, A> {
        match self.residual {
            Residual::Alone => Delta::Nothing,
            Residual::Add => Delta::Rows(self.delta.slice()),
            Residual::AddParts(_) => {
                Delta::Parts(PartSums { sums: self.parts.slice(), rows: self.part_rows })
            }
            Residual::AddPairs(top_k) => {
                let (rows, positions, weights) = &self.pairs;
                let (rows, positions) = (rows.slice(), positions.slice());
                Delta::Pairs(PairRows { rows, positions, weights: weights.slice(), top_k })
            }
        }
    }
}

fn norm_rows<'a, T: Element, A: Element>(
    (hidden, delta): (&'a mut DeviceBuffer<T>, Delta<'a, A>),
    weight: &'a DeviceBuffer<f32>,
    tokens: usize,
) -> NormRows<'a, T, A> {
    let (hidden, weight) = (hidden.slice_mut(), weight.slice());
    NormRows { hidden, delta, weight, tokens }
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
    let input = rows::<T, A>([tokens, width], residual);
    let Rows { before, after, .. } = &input;
    let norm = RmsNorm::new(weights(width), EPSILON)?;
    let expected = reference::forward(&norm, &widened(after));
    let (mut hidden, added) = (gpu.upload(before), Added::new(gpu, &input, tokens, residual));
    let (weight, mut out) = (gpu.upload(&weights(width)), gpu.poisoned::<A>(tokens * width));
    let rows = norm_rows((&mut hidden, added.get()), &weight, tokens);
    normalize.launch(&gpu.stream, &rows, &mut out.slice_mut())?;
    assert_close(&gpu.download(&out), &expected, rounding::<A>());
    assert_eq!(&gpu.download(&hidden), after, "the residual");
    Ok(())
}

fn codes<T: Element, A: Element>(width: usize, residual: Residual, plain: Plain) -> Case {
    let (from, by) = (T::NAME, A::NAME);
    let name = format!("rms_norm::{from}_by_{by}_to_codes_{width}_{residual:?}_{plain:?}");
    let load = move |kernels: &mut _| {
        let kept = Normalize::<T, A>::load(kernels, width, EPSILON, residual)?;
        let codes = NormalizeQuantize::<T, A>::load(kernels, width, EPSILON, residual, plain)?;
        Ok::<_, LayersError>((kept, codes))
    };
    Case::new(name, load, move |gpu, (normalize, quantize)| {
        for tokens in TOKENS {
            let input = rows::<T, A>([tokens, width], residual);
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
    let weight = gpu.upload(&weights(width));
    let added = Added::new(gpu, input, tokens, residual);
    let delta = added.get();
    let mut hidden = gpu.upload(&input.before);
    let mut out = gpu.poisoned::<A>(tokens * width);
    let rows = norm_rows((&mut hidden, delta), &weight, tokens);
    normalize.launch(&gpu.stream, &rows, &mut out.slice_mut())?;
    let mut rows_of_codes = gpu.download(&out);

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
    let rows = norm_rows((&mut hidden, delta), &weight, tokens);
    let place = (plain == Plain::Kept).then(|| kept.slice_mut());
    quantize.launch(&gpu.stream, &rows, place, &mut quantized)?;
    if plain == Plain::Kept {
        let kept = gpu.download(&kept);
        // Sums in another order may round a number to its neighbour.
        let expected: Vec<f64> = widened(&rows_of_codes).into_iter().map(f64::from).collect();
        assert_close(&kept, &expected, rounding::<A>());
        rows_of_codes = kept;
    }
    let (expected_codes, expected_scales) =
        quantized::quantize(Granularity::Groups, width, &rows_of_codes);
    assert_eq!(gpu.download(&codes), expected_codes);
    let scales: Vec<f32> = gpu.download(&scales);
    for (index, expected) in expected_scales.iter().enumerate() {
        assert_eq!(scales[index % groups * tokens + index / groups], *expected, "scale {index}");
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

/// Queries and keys of a projection in parts, normalised as their rows would be; values are copied.
fn projection<A: Element>(widths: [usize; 2], parts: usize) -> Case {
    let [queries, keys] = widths;
    let width = queries + 2 * keys;
    let name = format!("rms_norm::{}_projection_{queries}_{keys}_in_{parts}_parts", A::NAME);
    let load = move |kernels: &mut _| {
        NormalizeProjection::<A>::load(kernels, widths, parts, [EPSILON, 0.5])
    };
    Case::new(name, load, move |gpu, normalize| {
        let norms = [RmsNorm::new(weights(queries), EPSILON)?, RmsNorm::new(weights(keys), 0.5)?];
        let weights = widths.map(|width| gpu.upload(&weights(width)));
        for tokens in TOKENS {
            let Rows { delta: rows, parts, .. } =
                rows::<A, A>([tokens, width], Residual::AddParts(parts));
            let (parts, mut out) = (gpu.upload(&parts), gpu.poisoned::<A>(tokens * width));
            let sums = PartSums { sums: parts.slice(), rows: part_rows(tokens) };
            let weights = weights.each_ref().map(DeviceBuffer::slice);
            let operands = (tokens, sums);
            normalize.launch(&gpu.stream, operands, weights, &mut out.slice_mut())?;
            let found = gpu.download(&out);
            for (row, found) in rows.chunks(width).zip(found.chunks(width)) {
                for (norm, range) in norms.iter().zip([0..queries, queries..queries + keys]) {
                    let expected = reference::forward(norm, &widened(&row[range.clone()]));
                    assert_close(&found[range], &expected, rounding::<A>());
                }
                assert_eq!(&found[queries + keys..], &row[queries + keys..], "values");
            }
        }
        Ok(())
    })
}
