use artel_device::HostBuffer;
use artel_device::cpu::{CpuFeatures, with_threads};
use half::{bf16, f16};
use proptest::prelude::*;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::*;
use crate::MoeError;
use crate::quant::{AnyMatrix, Bf16, DenseMatrix, Element, F16, F32, Fp8Block128, Fp8BlockMatrix};
use crate::quant::{BLOCK, e4m3_from_f32};
use crate::weights::{ExpertMatrices, Stacked};

/// A format that tests can make matrices of, with its limit on `|out - reference| / |reference|`.
trait TestFormat: GemmFormat {
    const LIMIT: f64;
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
        let blocks = rows.div_ceil(BLOCK) * columns.div_ceil(BLOCK);
        let scales: Vec<f32> = (0..blocks).map(|_| rng.random_range(0.001..0.01)).collect();
        let codes = (0..rows * columns).map(|_| e4m3_from_f32(rng.random_range(-448.0..448.0)));
        let codes = HostBuffer::from_vec(codes.collect::<Vec<u8>>());
        Fp8BlockMatrix::new(codes, HostBuffer::from_vec(scales), rows, columns).unwrap()
    }
    fn any(matrix: Fp8BlockMatrix) -> AnyMatrix {
        AnyMatrix::Fp8Block128(matrix)
    }
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
    check_as::<F32>(case);
    check_as::<F16>(case);
    check_as::<Bf16>(case);
    check_as::<Fp8Block128>(case);
}

fn check_as<F: TestFormat>(case: &Case<'_>) {
    let mut rng = ChaCha8Rng::seed_from_u64(7);
    let stacked = |rng: &mut ChaCha8Rng| {
        let parts = case.part_rows.iter().map(|&rows| F::matrix(rng, rows, case.columns));
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
        for features in CpuFeatures::every_supported() {
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
            assert!(error <= 1e-5, "{} {:?}: error {error}", F::NAME, features.isa());
        }
    }
    for (tokens, rows, columns) in [(0, 3, 3), (1, 70, 300), (2, 33, 31), (40, 65, 200)] {
        check::<F32>(tokens, rows, columns);
        check::<F16>(tokens, rows, columns);
        check::<Bf16>(tokens, rows, columns);
        check::<Fp8Block128>(tokens, rows, columns);
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
    check::<F32>();
    check::<F16>();
    check::<Bf16>();
    check::<Fp8Block128>();
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
