use super::*;
use artel_device::HostBuffer;

use crate::quant::{Fit, MatrixTensors, NumberFormat, e2m1_to_f32};
use crate::quant::{
    Int4Matrix, Int4W4A16, Int8W8A8, Int8W8A16, Mxfp4, Mxfp4Matrix, Mxfp8, Mxfp8Matrix, Nvfp4,
};

fn value(index: usize) -> f32 {
    ((index * 7919) % 1013) as f32 / 100.0 - 5.0
}

fn expert<F: NumberFormat>(rows: usize, columns: usize) -> Stacked<F::Matrix> {
    let part = |part: usize| {
        F::quantize(rows, columns, Fit::Weights, |row, out| {
            let first = (part * rows + row) * columns;
            out.iter_mut().enumerate().for_each(|(at, out)| *out = value(first + at));
        })
    };
    Stacked::new(vec![part(0).unwrap(), part(1).unwrap()]).unwrap()
}

/// The number of a byte's plane, as kernels make it, times 2^6.
fn e2m1_of(byte: u8, upper: bool) -> f32 {
    let code = match upper {
        false => byte & 0x9c,
        true => (byte & 0x23) << 2 | byte >> 2 & 0x10,
    };
    crate::quant::e4m3_to_f32(code) * 64.0
}

fn layout(code: WordCode, group: usize, rows: usize, columns: usize) -> WordLayout {
    WordLayout { format: WordFormat { code, group }, parts: 2, rows, columns }
}

#[test]
fn bytes_of_two_planes_widen_to_the_numbers() {
    for lower in 0..16u8 {
        for upper in 0..16u8 {
            // Of two bytes the second has the codes the other way round.
            let pair = |first, second| u16::from_le_bytes([first, second]);
            let [first, second] = planes(pair(lower, upper), pair(upper, lower)).to_le_bytes();
            for (byte, lower, upper) in [(first, lower, upper), (second, upper, lower)] {
                assert_eq!(e2m1_of(byte, false), e2m1_to_f32(lower), "{lower} {upper}");
                assert_eq!(e2m1_of(byte, true), e2m1_to_f32(upper), "{lower} {upper}");
            }
        }
    }
}

fn words_of<M: WeightMatrix>(
    layout: &WordLayout,
    expert: &Stacked<M>,
) -> Result<ExpertWords, MoeError> {
    let mut words = ExpertWords::new(layout);
    layout.write_words(expert, &mut words)?;
    Ok(words)
}

/// The words as the head of this file describes them, one code and one scale at a time.
fn described<M: WeightMatrix>(layout: &WordLayout, expert: &Stacked<M>) -> ExpertWords {
    let WordLayout { format: WordFormat { code, group }, rows, columns, .. } = *layout;
    let (mut codes, mut words) = (Vec::new(), ExpertWords::new(layout));
    codes.resize(4 * layout.words_per_expert(), 0u8);
    for (index, part) in expert.parts().iter().enumerate() {
        let row_bytes = (columns * M::NUMBER_BITS).div_ceil(8);
        for (row, column) in (0..rows).flat_map(|row| (0..columns).map(move |at| (row, at))) {
            let stored = part.numbers()[row * row_bytes + column * M::NUMBER_BITS / 8];
            let nibble = stored >> (4 * (column % 2)) & 15;
            let (plane, byte) = (column / 128 % 2, column / 256 * 128 + column % 128);
            let bits = |code: u8, to: [u8; 4]| (0..4).map(|at| (code >> at & 1) << to[at]).sum();
            let (byte, value): (usize, u8) = match (code, plane) {
                (WordCode::Int8 | WordCode::Int8Rows | WordCode::Mxfp8, _) => (column, stored),
                (WordCode::Int4, _) => (byte, nibble << (4 * plane)),
                (_, 0) => (byte, bits(nibble, [2, 3, 4, 7])),
                (_, _) => (byte, bits(nibble, [0, 1, 6, 5])),
            };
            codes[4 * (index * rows + row) * layout.row_words() + byte] |= value;
        }
        let groups = if code == WordCode::Int8Rows { 1 } else { columns.div_ceil(group) };
        for (row, at) in (0..rows).flat_map(|row| (0..groups).map(move |at| (row, at))) {
            let per_word = layout.format.scales_per_word();
            let place = part.scale_grid().index(row, at * group, columns);
            let scale = match (part.scales(), part.zero_points()) {
                (Scales::E8m0(all) | Scales::E4m3(all), _) => u32::from(all[place]),
                (Scales::F32(all), None) if code != WordCode::Int4 => all[place].to_bits(),
                (Scales::F32(all), zero_points) => {
                    let zero_point = zero_points.map_or(0, |all| i32::from(all[place] as i8));
                    (all[place].to_bits() + 0x80) / 256 * 256 + (zero_point + 8) as u32
                }
            };
            let word = (index * layout.scale_words() + at / per_word) * rows + row;
            words.scales[word] |= scale << (8 * (at % per_word));
        }
        words.globals.push(match part.scales() {
            Scales::E8m0(all) => all.iter().map(|&code| e8m0_to_f32(code)).fold(0.0, f32::max),
            _ => part.global_scale().unwrap_or(1.0),
        });
    }
    words.codes = bytemuck::pod_collect_to_vec(&codes);
    words
}

#[test]
fn words_are_as_described() {
    fn check<F: NumberFormat>(code: WordCode, group: usize) {
        for [rows, columns] in [[3, 768], [2, 131], [5, 700], [4, 256], [1, 129]] {
            let layout = layout(code, group, rows, columns);
            let expert = expert::<F>(rows, columns);
            // Another expert's words lie there before.
            let mut words = ExpertWords::new(&layout);
            words.codes.fill(match code {
                WordCode::Int8 | WordCode::Int8Rows | WordCode::Mxfp8 => 0,
                _ => u32::MAX,
            });
            words.scales.fill(u32::MAX);
            layout.write_words(&expert, &mut words).unwrap();
            let expected = described(&layout, &expert);
            assert!(words == expected, "{code:?} in groups of {group}: {rows} x {columns}");
        }
    }
    check::<Int4W4A16>(WordCode::Int4, 128);
    check::<Int4W4A16>(WordCode::Int4, 32);
    check::<Mxfp4>(WordCode::Mxfp4, 32);
    check::<Nvfp4>(WordCode::Nvfp4, 16);
    check::<Mxfp8>(WordCode::Mxfp8, 32);
    check::<Int8W8A16>(WordCode::Int8, 128);
    check::<Int8W8A8>(WordCode::Int8Rows, 128);
}

#[test]
fn what_lies_behind_an_odd_last_column_is_left_out() {
    let codes = HostBuffer::from_vec(vec![0xffu8; 66]);
    let scales = HostBuffer::from_vec(vec![1f32; 2]);
    let matrix = Int4Matrix::new(codes, scales, [1, 131], 128).unwrap();
    let expert = Stacked::new(vec![matrix]).unwrap();
    let layout = WordLayout { parts: 1, ..layout(WordCode::Int4, 128, 1, 131) };
    assert_eq!(words_of(&layout, &expert).unwrap(), described(&layout, &expert));
}

/// All numbers again, from the words alone.
fn check<F: NumberFormat>(code: WordCode, group: usize, [rows, columns]: [usize; 2]) {
    let (expert, layout) = (expert::<F>(rows, columns), layout(code, group, rows, columns));
    let words = words_of(&layout, &expert).unwrap();
    assert_eq!(layout.row_words() % 32, 0);
    let mut expected = vec![0.0; columns];
    for row in 0..2 * rows {
        expert.dequantize_row(row, &mut expected);
        let codes = &words.codes[row * layout.row_words()..(row + 1) * layout.row_words()];
        for column in 0..layout.format.padded(columns) {
            let (step, plane, index) = (column / 256, column / 128 % 2, column % 128);
            let byte = codes[step * 32 + index / 4].to_le_bytes()[index % 4];
            let place = column / group;
            let per_word = layout.format.scales_per_word();
            let (part, row_of_part) = (row / rows, row % rows);
            let word = (part * layout.scale_words() + place / per_word) * rows + row_of_part;
            let word = words.scales[word];
            let number = match code {
                WordCode::Int4 => {
                    let code = f32::from(byte >> (4 * plane) & 15);
                    (code - (word & 255) as f32) * f32::from_bits(word & !255)
                }
                _ => {
                    let scale = word.to_le_bytes()[place % 4];
                    let scale = match code {
                        WordCode::Mxfp4 => e8m0_to_f32(scale),
                        _ => crate::quant::e4m3_to_f32(scale) * words.globals[part],
                    };
                    e2m1_of(byte, plane == 1) * scale
                }
            };
            // Behind the last column activations are zero; codes are too, whatever they stand for.
            let Some(&expected) = expected.get(column) else {
                let code = match code {
                    WordCode::Int4 => f32::from(byte >> (4 * plane) & 15),
                    _ => e2m1_of(byte, plane == 1),
                };
                assert_eq!(code, 0.0, "{row} {column}");
                continue;
            };
            let limit = expected.abs() * 2e-5;
            assert!((number - expected).abs() <= limit, "{row} {column}: {number} {expected}");
        }
    }
}

#[test]
fn words_hold_the_numbers_of_every_format() {
    for shape in [[3, 256], [4, 512], [2, 192], [1, 130]] {
        check::<Int4W4A16>(WordCode::Int4, 128, shape);
        check::<Int4W4A16>(WordCode::Int4, 32, shape);
        check::<Mxfp4>(WordCode::Mxfp4, 32, shape);
        check::<Nvfp4>(WordCode::Nvfp4, 16, shape);
    }
}

#[test]
fn matrices_of_another_kind_are_refused() {
    let coarse = layout(WordCode::Int4, 128, 2, 256);
    let error = words_of(&coarse, &expert::<Mxfp4>(2, 256)).unwrap_err().to_string();
    assert!(error.contains("groups of a multiple of 128"), "{error}");
    assert!(words_of(&coarse, &expert::<Int4W4A16>(3, 256)).is_err());
    let zero_points = |byte: i8| {
        let buffer = |bytes: Vec<u8>| HostBuffer::from_vec(bytes);
        let scales = HostBuffer::from_vec(vec![1f32; 2]);
        let matrix = Int4Matrix::new(buffer(vec![0; 128]), scales, [2, 128], 128).unwrap();
        let tensors = MatrixTensors {
            numbers: buffer(vec![0; 128]),
            scales: HostBuffer::from_vec(vec![1f32; 2]),
            zero_points: Some(buffer(vec![0, byte as u8])),
            global_scale: None,
            input_scale: None,
        };
        let matrix = matrix.over(tensors).unwrap();
        let layout = WordLayout { parts: 1, ..layout(WordCode::Int4, 128, 2, 128) };
        words_of(&layout, &Stacked::new(vec![matrix]).unwrap())
    };
    assert!(zero_points(-9).unwrap_err().to_string().contains("-9"));
    assert!(zero_points(121).unwrap_err().to_string().contains("from -8 to 120"));
    assert!(zero_points(120).is_ok());
    // A step is two groups wide.
    assert_eq!(zero_points(3).unwrap().scales, [0x3f80_0008, 0x3f80_000b, 0, 0]);
}

#[test]
fn scales_that_kernels_cannot_hold_are_refused() {
    let exponents = |exponent: u8| {
        let buffer = |byte: u8, count| HostBuffer::from_vec(vec![byte; count]);
        let matrix = Mxfp4Matrix::new(buffer(0x22, 128), buffer(exponent, 8), [2, 128]);
        let layout = WordLayout { parts: 1, ..layout(WordCode::Mxfp4, 32, 2, 128) };
        words_of(&layout, &Stacked::new(vec![matrix.unwrap()]).unwrap())
    };
    let of_bytes = |exponent: u8| {
        let buffer = |byte: u8, count| HostBuffer::from_vec(vec![byte; count]);
        let matrix = Mxfp8Matrix::new(buffer(0x22, 256), buffer(exponent, 8), [2, 128]);
        let layout = WordLayout { parts: 1, ..layout(WordCode::Mxfp8, 32, 2, 128) };
        words_of(&layout, &Stacked::new(vec![matrix.unwrap()]).unwrap())
    };
    for exponents in [&exponents as &dyn Fn(u8) -> Result<ExpertWords, MoeError>, &of_bytes] {
        assert!(exponents(EXPONENT_MAX).is_ok());
        let error = exponents(EXPONENT_MAX + 1).unwrap_err().to_string();
        assert!(error.contains("at most 2^65"), "{error}");
    }
}
