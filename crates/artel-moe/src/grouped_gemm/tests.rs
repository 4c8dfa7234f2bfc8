use artel_device::HostBuffer;
use artel_device::cpu::{CpuFeatures, with_threads};
use half::{bf16, f16};
use proptest::prelude::*;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::*;
use crate::MoeError;
use crate::quant::{
    AnyMatrix, BLOCK, Bf16, DenseMatrix, Element, F16, F32, WeightMatrix, for_each_format,
};
use crate::quant::{Code, GroupedFormat, Nvfp4, Nvfp4Matrix};
use crate::quant::{Fp8Block128, Fp8BlockMatrix, Fp8Channel, Fp8ChannelMatrix, e4m3_from_f32};
use crate::quant::{Fp8Tensor, Fp8TensorMatrix, Int4Matrix, Int4W4A16, Int8ChannelMatrix};
use crate::quant::{Int8GroupMatrix, Int8W8A8, Int8W8A16, Mxfp4, Mxfp4Matrix, Mxfp8, Mxfp8Matrix};
use crate::weights::{ExpertMatrices, Stacked};

/// A format that tests can make matrices of, with its limit on `|out - reference| / |reference|`.
trait TestFormat: GemmFormat {
    const LIMIT: f64;
    /// The same of products that are not rounded to the activations' precision.
    const DENSE_LIMIT: f64 = 1e-5;
    fn matrix(rng: &mut ChaCha8Rng, rows: usize, columns: usize) -> Self::Matrix;
    fn any(matrix: Self::Matrix) -> AnyMatrix;
}

fn dense_matrix<T: Element>(rng: &mut ChaCha8Rng, rows: usize, columns: usize) -> DenseMatrix<T> {
    let elements = (0..rows * columns).map(|_| T::from_f32(rng.random_range(-1.0..1.0)));
    DenseMatrix::new(HostBuffer::from_vec(elements.collect::<Vec<T>>()), rows, columns).unwrap()
}

macro_rules! dense_format {
    ($format:ident, $element:ty, $limit:literal) => {
        impl TestFormat for $format {
            const LIMIT: f64 = $limit;
            fn matrix(rng: &mut ChaCha8Rng, rows: usize, columns: usize) -> DenseMatrix<$element> {
                dense_matrix(rng, rows, columns)
            }
            fn any(matrix: DenseMatrix<$element>) -> AnyMatrix {
                AnyMatrix::$format(matrix)
            }
        }
    };
}
dense_format!(F32, f32, 1e-5);
dense_format!(F16, f16, 1e-3);
dense_format!(Bf16, bf16, 5e-3);

impl TestFormat for Fp8Block128 {
    const LIMIT: f64 = 5e-3;
    fn matrix(rng: &mut ChaCha8Rng, rows: usize, columns: usize) -> Fp8BlockMatrix {
        let scales = scales(rng, rows.div_ceil(BLOCK) * columns.div_ceil(BLOCK));
        Fp8BlockMatrix::new(codes(rng, rows * columns), scales, rows, columns).unwrap()
    }
    fn any(matrix: Fp8BlockMatrix) -> AnyMatrix {
        AnyMatrix::Fp8Block128(matrix)
    }
}

impl TestFormat for Fp8Tensor {
    const LIMIT: f64 = 5e-3;
    fn matrix(rng: &mut ChaCha8Rng, rows: usize, columns: usize) -> Fp8TensorMatrix {
        let scale = rng.random_range(0.001..0.01);
        Fp8TensorMatrix::new(codes(rng, rows * columns), scale, rows, columns).unwrap()
    }
    fn any(matrix: Fp8TensorMatrix) -> AnyMatrix {
        AnyMatrix::Fp8Tensor(matrix)
    }
}

impl TestFormat for Fp8Channel {
    const LIMIT: f64 = 5e-3;
    fn matrix(rng: &mut ChaCha8Rng, rows: usize, columns: usize) -> Fp8ChannelMatrix {
        let scales = scales(rng, rows);
        Fp8ChannelMatrix::new(codes(rng, rows * columns), scales, rows, columns).unwrap()
    }
    fn any(matrix: Fp8ChannelMatrix) -> AnyMatrix {
        AnyMatrix::Fp8Channel(matrix)
    }
}

impl TestFormat for Int8W8A8 {
    const LIMIT: f64 = 5e-3;
    fn matrix(rng: &mut ChaCha8Rng, rows: usize, columns: usize) -> Int8ChannelMatrix {
        let (codes, scales) = (bytes(rng, rows * columns), scales(rng, rows));
        Int8ChannelMatrix::new(codes, scales, rows, columns).unwrap()
    }
    fn any(matrix: Int8ChannelMatrix) -> AnyMatrix {
        AnyMatrix::Int8W8A8(matrix)
    }
}

/// Random codes in groups of 32, every scale another.
macro_rules! grouped_format {
    ($format:ident, $matrix:ident, |$rng:ident, $rows:ident, $columns:ident| $make:expr) => {
        impl TestFormat for $format {
            const LIMIT: f64 = 5e-3;
            /// Tiles round scaled integers to bfloat16; dot products of integers take sixteen bits of
            /// activations.
            const DENSE_LIMIT: f64 = match Self::CODE {
                Code::Int4 | Code::Int8 => 2e-3,
                Code::E2m1 => 5e-5,
                Code::E4m3 => 1e-5,
            };
            fn matrix($rng: &mut ChaCha8Rng, $rows: usize, $columns: usize) -> $matrix {
                $make.unwrap()
            }
            fn any(matrix: $matrix) -> AnyMatrix {
                AnyMatrix::$format(matrix)
            }
        }
    };
}
grouped_format!(Int8W8A16, Int8GroupMatrix, |rng, rows, columns| {
    let scales = scales(rng, rows * columns.div_ceil(32));
    Int8GroupMatrix::new(bytes(rng, rows * columns), scales, [rows, columns], 32)
});
grouped_format!(Int4W4A16, Int4Matrix, |rng, rows, columns| {
    let scales = scales(rng, rows * columns.div_ceil(32));
    Int4Matrix::new(bytes(rng, rows * columns.div_ceil(2)), scales, [rows, columns], 32)
});
grouped_format!(Nvfp4, Nvfp4Matrix, |rng, rows, columns| {
    let scales = codes(rng, rows * columns.div_ceil(16));
    let codes = bytes(rng, rows * columns.div_ceil(2));
    Nvfp4Matrix::new(codes, scales, 1.5e-4, [rows, columns])
});
grouped_format!(Mxfp4, Mxfp4Matrix, |rng, rows, columns| {
    let scales = powers_of_two(rng, rows * columns.div_ceil(32));
    Mxfp4Matrix::new(bytes(rng, rows * columns.div_ceil(2)), scales, [rows, columns])
});
grouped_format!(Mxfp8, Mxfp8Matrix, |rng, rows, columns| {
    let scales = powers_of_two(rng, rows * columns.div_ceil(32));
    Mxfp8Matrix::new(codes(rng, rows * columns), scales, [rows, columns])
});

fn bytes(rng: &mut ChaCha8Rng, count: usize) -> HostBuffer {
    HostBuffer::from_vec((0..count).map(|_| rng.random::<u8>()).collect())
}

fn powers_of_two(rng: &mut ChaCha8Rng, count: usize) -> HostBuffer {
    HostBuffer::from_vec((0..count).map(|_| rng.random_range(117..125u8)).collect())
}

fn codes(rng: &mut ChaCha8Rng, count: usize) -> HostBuffer {
    let codes = (0..count).map(|_| e4m3_from_f32(rng.random_range(-448.0..448.0)));
    HostBuffer::from_vec(codes.collect::<Vec<u8>>())
}

fn scales(rng: &mut ChaCha8Rng, count: usize) -> HostBuffer {
    HostBuffer::from_vec((0..count).map(|_| rng.random_range(0.001f32..0.01)).collect())
}

/// Runs a generic function for every format: `for_each_format!(run_as(check(case)))`.
macro_rules! run_as {
    (($check:ident $arguments:tt) $($(#[doc = $doc:literal])* $Format:ident $field:ident)*) => {
        $($check::<$Format> $arguments;)*
    };
}

fn activations<A: Element>(rng: &mut ChaCha8Rng, count: usize) -> Vec<A> {
    (0..count).map(|_| A::from_f32(rng.random_range(-2.0..2.0))).collect()
}

/// `|found - expected| / |expected|` over all numbers.
fn relative_error<A: Element>(found: &[A], expected: &[f64]) -> f64 {
    let (mut difference, mut norm) = (0.0, 0.0);
    for (found, expected) in found.iter().zip(expected) {
        difference += (f64::from(found.to_f32()) - expected).powi(2);
        norm += expected.powi(2);
    }
    if norm == 0.0 { difference.sqrt() } else { (difference / norm).sqrt() }
}

/// Experts of two stacked parts, rows of one pair each unless `pairs_per_row` says more.
struct Case<'a> {
    part_rows: &'a [usize],
    columns: usize,
    experts: usize,
    ids: &'a [i32],
    pairs_per_row: usize,
    block_size: usize,
}

const SMALL: Case<'_> =
    Case { part_rows: &[5], columns: 7, experts: 3, ids: &[], pairs_per_row: 1, block_size: 1 };

/// Pairs sorted by expert and padded; the ids of -1 become blocks of expert -1.
fn assign(ids: &[i32], experts: usize, block_size: usize) -> Assignment {
    let mut assignment = Assignment { block_size, num_pairs: ids.len(), ..Assignment::default() };
    for expert in -1..experts as i32 {
        let mine = (0..ids.len() as i32).filter(|&pair| ids[pair as usize] == expert);
        assignment.sorted_token_ids.extend(mine);
        let padded = assignment.sorted_token_ids.len().next_multiple_of(block_size);
        assignment.sorted_token_ids.resize(padded, ids.len() as i32);
        assignment.expert_ids.resize(padded / block_size, expert);
    }
    assignment.num_tokens_post_padded = assignment.sorted_token_ids.len();
    assignment.sorted_token_ids.extend([-1, 99_999]);
    assignment
}

fn check(case: &Case<'_>) {
    for_each_format!(run_as(check_as(case)));
}

fn check_as<F: TestFormat>(case: &Case<'_>) {
    check_matrices::<F>(case, |rng, rows| F::matrix(rng, rows, case.columns));
}

fn check_matrices<F: TestFormat>(
    case: &Case<'_>,
    matrix: impl Fn(&mut ChaCha8Rng, usize) -> F::Matrix,
) {
    let mut rng = ChaCha8Rng::seed_from_u64(7);
    let stacked = |rng: &mut ChaCha8Rng| {
        let parts = case.part_rows.iter().map(|&rows| matrix(rng, rows));
        Stacked::new(parts.collect()).unwrap()
    };
    let matrices = (0..case.experts).map(|_| stacked(&mut rng)).collect();
    let plain = ExpertMatrices::<F>::new(matrices).unwrap();
    let biases = activations(&mut rng, case.experts * plain.rows());
    let with_biases = plain.clone().with_biases(biases).unwrap();
    let rows = activations(&mut rng, case.ids.len() / case.pairs_per_row * case.columns);
    let routed: Vec<f32> = activations(&mut rng, case.ids.len());
    let assignment = assign(case.ids, case.experts, case.block_size);
    let mut scratch = GemmScratch::default();
    for (weights, row_weights) in
        [(&plain, RowWeights::One), (&with_biases, RowWeights::Routed(&routed))]
    {
        let gemm = GroupedGemm {
            rows: &rows,
            pairs_per_row: case.pairs_per_row,
            weights,
            assignment: &assignment,
            row_weights,
        };
        let mut expected = vec![7.0; case.ids.len() * weights.rows()];
        reference::grouped_gemm(&gemm, &mut expected);
        let supported = CpuFeatures::every_supported();
        let invariant = supported.iter().map(|features| features.with_invariant_rows());
        for features in supported.iter().copied().chain(invariant) {
            let mut out = vec![F::Activation::from_f32(7.0); expected.len()];
            grouped_gemm(features, gemm, &mut out, &mut scratch).unwrap();
            let error = relative_error(&out, &expected);
            assert!(error <= F::LIMIT, "{} {:?}: error {error}", F::NAME, features.isa());
        }
    }
}

#[test]
fn no_pairs() {
    check(&SMALL);
}

#[test]
fn one_pair() {
    check(&Case { ids: &[1], ..SMALL });
}

#[test]
fn an_expert_with_none_and_ids_without_work() {
    check(&Case { ids: &[2, 0, -1, 2, 7, -2, 0], ..SMALL });
    check(&Case { ids: &[-1, -1], ..SMALL });
}

#[test]
fn one_expert_gets_all() {
    for rows in [15, 16, 17, 33, 127, 128, 129] {
        check(&Case { ids: &vec![1; rows], block_size: 16, ..SMALL });
    }
}

#[test]
fn blocks_of_one_expert_apart_from_each_other() {
    check(&Case { ids: &[1, 2, 1, 2, 1, 1, 0, 0], pairs_per_row: 2, ..SMALL });
    check(&Case { ids: &[1, 2, 1, 2, 1, 1, 0, 0], pairs_per_row: 4, block_size: 4, ..SMALL });
}

#[test]
fn widths_around_vectors_tiles_panels_and_blocks() {
    for columns in [1, 8, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129, 257] {
        check(&Case { ids: &[1, 0, 1, 1, 1, 1], columns, ..SMALL });
    }
    for rows in [1, 4, 15, 16, 17, 31, 32, 33, 64, 127, 128, 129, 160] {
        check(&Case { ids: &[1, 0, 1, 1, 1, 1], columns: 40, part_rows: &[rows], ..SMALL });
    }
}

#[test]
fn stacked_parts() {
    check(&Case { ids: &[1, 0, 1], part_rows: &[33, 33], columns: 130, ..SMALL });
    check(&Case { ids: &[1, 0, 1], part_rows: &[1, 2, 128], columns: 64, ..SMALL });
}

#[test]
fn matrices_cut_out_of_others() {
    let ids: Vec<i32> = (0..80).map(|pair| [0, 1, 1, 1][pair % 4]).collect();
    for (row, column) in [(0, 64), (192, 0), (64, 192), (7, 100), (130, 1), (16, 127)] {
        for (rows, columns) in [(192, 192), (5, 33), (70, 20), (129, 300)] {
            for ids in [&ids[..2], &ids[..14], &ids] {
                let case = Case { ids, part_rows: &[rows, rows], columns, ..SMALL };
                check_matrices::<Fp8Block128>(&case, |rng, rows| {
                    let whole = Fp8Block128::matrix(rng, row + rows + 40, column + columns + 40);
                    let cut = whole.cut_rows(row..row + rows).unwrap();
                    cut.cut_columns(column..column + columns).unwrap()
                });
            }
        }
    }
}

/// Groups of every size, with zero points and without, cut out of others or not.
#[test]
fn groups_of_every_size() {
    let ids: Vec<i32> = (0..60).map(|pair| [0, 1, 1, 1][pair % 4]).collect();
    for (group, columns) in [(16, 50), (32, 200), (64, 200), (128, 333), (512, 4500), (5000, 5000)]
    {
        for ids in [&ids[..2], &ids[..14], &ids] {
            let case = Case { ids, part_rows: &[5, 33], columns, ..SMALL };
            check_matrices::<Int4W4A16>(&case, |rng, rows| {
                let scales = scales(rng, rows * columns.div_ceil(group));
                let codes = bytes(rng, rows * columns.div_ceil(2));
                let zeros = (0..rows * columns.div_ceil(group)).map(|_| rng.random_range(0..16));
                let zeros: Vec<u8> = zeros.collect();
                let matrix = Int4Matrix::new(codes, scales, [rows, columns], group).unwrap();
                if rows == 5 { matrix.with_zeros(&zeros).unwrap() } else { matrix }
            });
            check_matrices::<Int8W8A16>(&case, |rng, rows| {
                let (codes, zeros) = (bytes(rng, rows * columns), bytes(rng, rows * columns));
                let scales = scales(rng, rows * columns.div_ceil(group));
                let zeros = &zeros.as_bytes()[..rows * columns.div_ceil(group)];
                let matrix = Int8GroupMatrix::new(codes, scales, [rows, columns], group).unwrap();
                if rows == 5 { matrix.with_zeros(zeros).unwrap() } else { matrix }
            });
        }
    }
    for column in [16, 64, 192] {
        let case = Case { ids: &ids, part_rows: &[33], columns: 300, ..SMALL };
        check_matrices::<Int4W4A16>(&case, |rng, rows| {
            let whole =
                Int4Matrix::new(bytes(rng, rows * 300), scales(rng, rows * 5), [rows, 600], 128);
            whole.unwrap().cut_columns(column..column + 300).unwrap()
        });
        check_matrices::<Mxfp8>(&case, |rng, rows| {
            Mxfp8::matrix(rng, rows, 600).cut_columns(column..column + 300).unwrap()
        });
    }
}

#[test]
fn activations_with_a_scale_that_was_measured() {
    for (scale, rows) in [(0.005, 3), (0.005, 40), (0.001, 40)] {
        let case = Case { ids: &vec![1; rows], columns: 300, part_rows: &[40, 40], ..SMALL };
        check_matrices::<Fp8Tensor>(&case, |rng, rows| {
            Fp8Tensor::matrix(rng, rows, 300).with_input_scale(scale).unwrap()
        });
    }
}

#[test]
fn dense_products_of_every_format() {
    fn check<F: TestFormat>(tokens: usize, rows: usize, columns: usize) {
        let mut rng = ChaCha8Rng::seed_from_u64(3);
        let matrix = F::matrix(&mut rng, rows, columns);
        let x: Vec<f32> = activations(&mut rng, tokens * columns);
        let mut expected = vec![0.0; tokens * rows];
        reference::dense::<F>(&x, &matrix, &mut expected);
        for features in CpuFeatures::every_supported() {
            let mut out = vec![7.0; expected.len()];
            let any = F::any(matrix.clone());
            dense(features, &x, &any, &mut out, &mut GemmScratch::default()).unwrap();
            let error = relative_error(&out, &expected);
            assert!(error <= F::DENSE_LIMIT, "{} {:?}: {error}", F::NAME, features.isa());
        }
    }
    for (tokens, rows, columns) in [(0, 3, 3), (1, 70, 300), (2, 33, 31), (40, 65, 200)] {
        for_each_format!(run_as(check(tokens, rows, columns)));
    }
}

#[test]
fn the_same_bits_whatever_the_threads_and_every_time() {
    fn check<F: TestFormat>() {
        let mut rng = ChaCha8Rng::seed_from_u64(5);
        let any = F::any(F::matrix(&mut rng, 400, 333));
        let x: Vec<f32> = activations(&mut rng, 50 * 333);
        for features in CpuFeatures::every_supported() {
            let run = |threads| {
                let mut out = vec![0.0; 50 * 400];
                let mut scratch = GemmScratch::default();
                let work = || dense(features, &x, &any, &mut out, &mut scratch);
                with_threads(threads, work).unwrap().unwrap();
                out
            };
            let first = run(1);
            assert!([1, 2, 3, 8].iter().all(|&threads| run(threads) == first));
        }
    }
    for_each_format!(run_as(check()));
}

/// 1 to 70 rows of one expert, among rows of another, against each row by itself.
#[test]
fn invariant_rows_do_not_see_each_other() {
    fn check<F: TestFormat>() {
        let mut rng = ChaCha8Rng::seed_from_u64(6);
        let columns = 333;
        let matrices =
            [130, 130].map(|rows| Stacked::new(vec![F::matrix(&mut rng, rows, columns)]));
        let weights = ExpertMatrices::<F>::new(matrices.map(Result::unwrap).into()).unwrap();
        let rows: Vec<F::Activation> = activations(&mut rng, 70 * columns);
        let run = |features, rows: &[F::Activation], ids: &[i32]| {
            let assignment = assign(ids, 2, TILE_ROWS);
            let weights = &weights;
            let (pairs_per_row, row_weights) = (1, RowWeights::One);
            let gemm =
                GroupedGemm { rows, pairs_per_row, weights, assignment: &assignment, row_weights };
            let mut out = vec![F::Activation::from_f32(7.0); ids.len() * 130];
            grouped_gemm(features, gemm, &mut out, &mut GemmScratch::default()).unwrap();
            out
        };
        for features in CpuFeatures::every_supported() {
            let features = features.with_invariant_rows();
            let alone: Vec<_> = rows.chunks(columns).map(|row| run(features, row, &[0])).collect();
            let alone = alone.concat();
            for count in 1..=70 {
                let others = (70 - count).min(count);
                let ids: Vec<i32> = (0..count + others).map(|i| i32::from(i >= count)).collect();
                let out = run(features, &rows[..ids.len() * columns], &ids);
                assert_eq!(out[..count * 130], alone[..count * 130], "{} {count}", F::NAME);
            }
        }
    }
    for_each_format!(run_as(check()));
}

#[test]
fn inputs_that_do_not_fit_are_errors() {
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    let matrices = vec![Stacked::new(vec![F32::matrix(&mut rng, 2, 3)]).unwrap(); 2];
    let weights = ExpertMatrices::<F32>::new(matrices).unwrap();
    let good = assign(&[0, 1], 2, 1);
    let run = |rows: &[f32], assignment: &Assignment, out: usize| {
        let gemm = GroupedGemm {
            rows,
            pairs_per_row: 1,
            weights: &weights,
            assignment,
            row_weights: RowWeights::One,
        };
        let mut scratch = GemmScratch::default();
        grouped_gemm(CpuFeatures::detect(), gemm, &mut vec![0.0; out], &mut scratch)
    };
    assert_eq!(run(&[0.0; 6], &good, 4), Ok(()));
    assert!(matches!(run(&[0.0; 5], &good, 4), Err(MoeError::Shape { .. })));
    assert!(matches!(run(&[0.0; 6], &good, 5), Err(MoeError::Shape { .. })));
    let beyond = Assignment { expert_ids: vec![0, 2], ..good.clone() };
    assert!(matches!(run(&[0.0; 6], &beyond, 4), Err(MoeError::Config { .. })));
    let too_long = Assignment { num_tokens_post_padded: 9, ..good.clone() };
    assert!(run(&[0.0; 6], &too_long, 4).is_err());
    let no_blocks = Assignment { block_size: 0, ..good };
    assert!(run(&[0.0; 6], &no_blocks, 4).is_err());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]
    #[test]
    fn padding_never_reaches_the_output(
        ids in prop::collection::vec(-1i32..4, 0..40),
        block_size in 1usize..20,
        columns in 1usize..70,
        rows in 1usize..40,
    ) {
        let mut rng = ChaCha8Rng::seed_from_u64(rows as u64);
        let matrices = (0..4).map(|_| Stacked::new(vec![Bf16::matrix(&mut rng, rows, columns)]));
        let weights = ExpertMatrices::<Bf16>::new(matrices.map(Result::unwrap).collect()).unwrap();
        let x = activations(&mut rng, ids.len() * columns);
        let run = |block_size| {
            let gemm = GroupedGemm {
                rows: &x,
                pairs_per_row: 1,
                weights: &weights,
                assignment: &assign(&ids, 4, block_size),
                row_weights: RowWeights::One,
            };
            let mut out = vec![bf16::NAN; ids.len() * rows];
            grouped_gemm(CpuFeatures::detect(), gemm, &mut out, &mut GemmScratch::default())
                .unwrap();
            out
        };
        let padded = run(block_size);
        prop_assert!(padded.iter().all(|x| !x.is_nan()));
        prop_assert_eq!(padded, run(1));
    }
}
