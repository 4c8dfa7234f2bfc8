//! Quantised activations and permuted rows: bit for bit the reference's.

use artel_gpu_test::{Case, Gpu};
use artel_moe::MoeError;
use artel_moe::permute::cuda::Permute;
use artel_moe::quant::activations::cuda::{
    InputRows, Placement, Quantize, QuantizeStatic, QuantizedRows, ScaleLayout,
};
use artel_moe::quant::activations::{Granularity, ScaleBounds, reference};
use artel_moe::quant::{Element, e4m3_to_f32};
use half::{bf16, f16};

const TOP_K: usize = 3;

pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for columns in [1, 127, 128, 130, 1024, 2880, 3072, 5000] {
        for granularity in [Granularity::Groups, Granularity::Rows] {
            for placement in [Placement::InPlace, Placement::Sorted { top_k: TOP_K }] {
                let name = |element| {
                    format!("quantize::{element}_{columns}_{granularity:?}_{placement:?}")
                };
                cases.push(dynamic::<bf16>(name("bf16"), columns, granularity, placement));
                if columns == 130 {
                    cases.push(dynamic::<f16>(name("f16"), columns, granularity, placement));
                    cases.push(dynamic::<f32>(name("f32"), columns, granularity, placement));
                }
            }
        }
        for placement in [Placement::InPlace, Placement::Sorted { top_k: TOP_K }] {
            let name = format!("quantize::static_{columns}_{placement:?}");
            let load = move |kernels: &mut _| QuantizeStatic::load(kernels, columns, placement);
            cases.push(Case::new(name, load, move |gpu, quantize| {
                batches(columns)
                    .iter()
                    .try_for_each(|&rows| given(gpu, quantize, columns, rows, placement))
            }));
        }
        let load = move |kernels: &mut _| Permute::load(kernels, columns, TOP_K);
        cases.push(Case::new(format!("permute::{columns}"), load, move |gpu, permute| {
            batches(columns).iter().try_for_each(|&rows| permuted(gpu, permute, columns, rows))
        }));
    }
    cases
}

/// No row, one, a few; and where rows are short both sides of the switch to larger blocks.
fn batches(columns: usize) -> &'static [usize] {
    match columns <= 130 {
        true => &[0, 1, 67, 1023, 1024, 1030],
        false => &[0, 1, 67],
    }
}

fn dynamic<A: Element>(
    name: String,
    columns: usize,
    granularity: Granularity,
    placement: Placement,
) -> Case {
    let load = move |kernels: &mut _| Quantize::load(kernels, columns, granularity, placement);
    Case::new(name, load, move |gpu, quantize: &Quantize<A>| {
        for &rows in batches(columns) {
            for by_group in [false, true] {
                chosen(gpu, quantize, [rows, columns], granularity, placement, by_group)?;
            }
        }
        Ok(())
    })
}

/// Scales from tiny to large; a row of zeros, and one with NaN.
fn values<A: Element>(rows: usize, columns: usize) -> Vec<A> {
    let mut state = 1u64;
    let mut values: Vec<A> = (0..rows * columns)
        .map(|index| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888);
            let uniform = (state >> 40) as f32 / 8_388_608.0 - 1.0;
            A::from_f32(uniform * 10f32.powi((index / 128 % 9) as i32 - 4))
        })
        .collect();
    if rows > 3 {
        values[columns..2 * columns].fill(A::from_f32(0.0));
        values[3 * columns - 1] = A::from_f32(f32::NAN);
    }
    values
}

/// Every third copy goes nowhere, the others far apart.
fn positions(rows: usize) -> (Vec<i32>, usize) {
    let pairs = rows * TOP_K;
    let position = |pair| if pair % 3 == 2 { -1 } else { (2 * (pairs - pair)) as i32 };
    ((0..pairs).map(position).collect(), 2 * pairs + 1)
}

fn same_code(found: u8, expected: u8) -> bool {
    found == expected || e4m3_to_f32(found).is_nan() && e4m3_to_f32(expected).is_nan()
}

fn check_codes(columns: usize, pairs: &[(usize, usize)], found: &[u8], expected: &[u8]) {
    for &(source, target) in pairs {
        let expected = &expected[source * columns..][..columns];
        let found = &found[target * columns..][..columns];
        for (column, (&found, &expected)) in found.iter().zip(expected).enumerate() {
            assert!(
                same_code(found, expected),
                "row {source} column {column} of {columns}: {found:#x}, not {expected:#x}"
            );
        }
    }
}

/// Source and target row of every row that is written; and the rows of the result.
fn moves(rows: usize, placement: Placement) -> (Vec<(usize, usize)>, usize) {
    match placement {
        Placement::InPlace => ((0..rows).map(|row| (row, row)).collect(), rows),
        Placement::Sorted { .. } => {
            let (positions, out_rows) = positions(rows);
            let kept = positions.iter().enumerate().filter(|(_, position)| **position >= 0);
            (kept.map(|(pair, &position)| (pair / TOP_K, position as usize)).collect(), out_rows)
        }
    }
}

fn chosen<A: Element>(
    gpu: &Gpu,
    quantize: &Quantize<A>,
    [rows, columns]: [usize; 2],
    granularity: Granularity,
    placement: Placement,
    by_group: bool,
) -> Result<(), MoeError> {
    let values = values::<A>(rows, columns);
    let (expected_codes, expected_scales) = reference::quantize(granularity, columns, &values);
    let (moves, out_rows) = moves(rows, placement);
    let groups = granularity.groups(columns);
    let (input, positions) = (gpu.upload(&values), gpu.upload(&positions(rows).0));
    let mut codes = gpu.poisoned::<u8>(out_rows * columns);
    let mut scales = gpu.poisoned::<f32>(out_rows * groups);
    let layout =
        if by_group { ScaleLayout::ByGroup { rows: out_rows } } else { ScaleLayout::ByRow };
    let (codes_out, scales_out) = (codes.slice_mut(), scales.slice_mut());
    let bounds = ScaleBounds::HIDDEN;
    let mut out = QuantizedRows { codes: codes_out, scales: scales_out, layout, bounds };
    let [row_stride, group_stride] = out.scale_strides(groups);
    let positions = (placement != Placement::InPlace).then_some(positions.slice());
    let input = InputRows { values: input.slice(), rows, positions };
    quantize.launch(&gpu.stream, input, &mut out)?;
    let (codes, scales) = (gpu.download(&codes), gpu.download(&scales));
    check_codes(columns, &moves, &codes, &expected_codes);
    let mut written = 0;
    for &(source, target) in &moves {
        for group in 0..groups {
            let found = scales[target * row_stride + group * group_stride];
            assert_eq!(found, expected_scales[source * groups + group], "row {source}");
            written += 1;
        }
    }
    let poisoned = scales.iter().filter(|scale| scale.to_bits() == u32::MAX).count();
    assert_eq!(poisoned, scales.len() - written, "nothing else is written");
    Ok(())
}

fn given(
    gpu: &Gpu,
    quantize: &QuantizeStatic<bf16>,
    columns: usize,
    rows: usize,
    placement: Placement,
) -> Result<(), MoeError> {
    let (values, scale) = (values::<bf16>(rows, columns), 0.0123);
    let (moves, out_rows) = moves(rows, placement);
    let (input, positions) = (gpu.upload(&values), gpu.upload(&positions(rows).0));
    let scale_buffer = gpu.upload(&[scale]);
    let mut codes = gpu.poisoned::<u8>(out_rows * columns);
    let positions = (placement != Placement::InPlace).then_some(positions.slice());
    let input = InputRows { values: input.slice(), rows, positions };
    quantize.launch(&gpu.stream, input, scale_buffer.slice(), &mut codes.slice_mut())?;
    let expected = reference::quantize_static(scale, &values);
    check_codes(columns, &moves, &gpu.download(&codes), &expected);
    Ok(())
}

fn permuted(
    gpu: &Gpu,
    permute: &Permute<bf16>,
    columns: usize,
    rows: usize,
) -> Result<(), MoeError> {
    let values = values::<bf16>(rows, columns);
    let (positions, out_rows) = positions(rows);
    let mut expected = vec![bf16::from_bits(0xffff); out_rows * columns];
    artel_moe::permute::reference::permute(&values, columns, &positions, &mut expected);
    let (input, positions) = (gpu.upload(&values), gpu.upload(&positions));
    let mut out = gpu.poisoned::<bf16>(expected.len());
    permute.launch(&gpu.stream, rows, input.slice(), positions.slice(), &mut out.slice_mut())?;
    let bits = |values: &[bf16]| values.iter().map(|value| value.to_bits()).collect::<Vec<_>>();
    assert_eq!(bits(&gpu.download(&out)), bits(&expected));
    Ok(())
}
