use artel_device::HostBuffer;
use half::bf16;

use super::*;
use crate::quant::{BLOCK, Bf16, DenseMatrix, Fp8Block128, Fp8BlockMatrix};
use crate::quant::{ScaleGrid, Scales, e4m3_to_f32};

/// Codes and scales that differ from place to place.
fn blocks(rows: usize, columns: usize, seed: usize) -> Fp8BlockMatrix {
    let codes = (0..rows * columns).map(|i| ((i * 7 + seed) % 127) as u8).collect();
    let count = rows.div_ceil(BLOCK) * columns.div_ceil(BLOCK);
    let scales = (0..count).map(|i| (1 + i + 1000 * seed) as f32).collect();
    let (codes, scales) = (HostBuffer::from_vec::<u8>(codes), HostBuffer::from_vec::<f32>(scales));
    Fp8BlockMatrix::new(codes, scales, rows, columns).unwrap()
}

fn stack(parts: Vec<Fp8BlockMatrix>) -> ExpertMatrices<Fp8Block128> {
    let other = parts.iter().rev().cloned().collect();
    let experts: Result<_, _> = [parts, other].into_iter().map(Stacked::new).collect();
    ExpertMatrices::new(experts.unwrap()).unwrap()
}

/// What the buffers of a device say is what the matrices say.
fn check(matrices: &ExpertMatrices<Fp8Block128>, scale_block: [usize; 2]) {
    let layout = matrices.stack_layout();
    assert_eq!(layout.scale_block, Some(scale_block));
    let StackLayout { experts, rows, columns, .. } = layout;
    let [_, _, scale_columns] = layout.scale_shape();
    for expert in 0..experts {
        let mut codes = vec![0; layout.number_bytes_per_expert()];
        let mut scales = vec![0.0; layout.scales_per_expert()];
        matrices.write_numbers(expert, &mut codes).unwrap();
        matrices.write_scales(expert, &layout, &mut scales).unwrap();
        let mut expected = vec![0.0; columns];
        for row in 0..rows {
            matrices.matrix(expert).dequantize_row(row, &mut expected);
            for (column, &expected) in expected.iter().enumerate() {
                let scale = row / scale_block[0] * scale_columns + column / scale_block[1];
                let found = e4m3_to_f32(codes[row * columns + column]) * scales[scale];
                assert_eq!(found, expected, "expert {expert}, row {row}, column {column}");
            }
        }
    }
}

#[test]
fn whole_blocks_keep_the_scales_of_the_checkpoint() {
    check(&stack(vec![blocks(256, 384, 1), blocks(256, 384, 2)]), [128, 128]);
    check(&stack(vec![blocks(300, 130, 1)]), [128, 128]);
    let one = stack(vec![blocks(300, 130, 3)]);
    let mut scales = vec![0.0; 6];
    one.write_scales(0, &one.stack_layout(), &mut scales).unwrap();
    assert_eq!(Scales::F32(&scales), blocks(300, 130, 3).scales());
}

#[test]
fn parts_and_cuts_inside_a_block_repeat_scales() {
    let cut = |seed, start| blocks(576, 130, seed).cut_rows(start..start + 192).unwrap();
    for start in [0, 192, 384] {
        check(&stack(vec![cut(1, start), cut(2, start)]), [64, 128]);
    }
    let cut = |seed, start| blocks(130, 576, seed).cut_columns(start..start + 192).unwrap();
    check(&stack(vec![cut(1, 0)]), [128, 128]);
    check(&stack(vec![cut(1, 192)]), [128, 64]);
    check(&stack(vec![cut(1, 384)]), [128, 128]);
    check(&stack(vec![blocks(130, 300, 1).cut_columns(7..290).unwrap()]), [128, 1]);
    check(&stack(vec![blocks(96, 20, 1), blocks(96, 20, 2)]), [32, 128]);
    check(&stack(vec![blocks(5, 20, 1), blocks(5, 20, 2)]), [1, 128]);
}

#[test]
fn cuts_of_cuts_and_empty_cuts() {
    let whole = blocks(400, 400, 1);
    let cut = whole.cut_rows(70..390).unwrap().cut_rows(100..300).unwrap();
    let cut = cut.cut_columns(60..400).unwrap().cut_columns(90..340).unwrap();
    assert_eq!(cut.scale_grid(), ScaleGrid::Block { row_offset: 42, column_offset: 22 });
    let (mut expected, mut found) = (vec![0.0; 400], vec![0.0; 250]);
    for row in 0..200 {
        whole.dequantize_row(170 + row, &mut expected);
        cut.dequantize_row(row, &mut found);
        assert_eq!(found, expected[150..400]);
    }
    for empty in [0..0, 64..64, 128..128, 400..400] {
        let [rows, columns] = [whole.cut_rows(empty.clone()), whole.cut_columns(empty)];
        assert_eq!((rows.unwrap().rows(), columns.unwrap().columns()), (0, 0));
    }
    assert!(whole.cut_rows(0..401).is_err() && whole.cut_columns(1..401).is_err());
}

#[test]
fn plain_numbers_are_one_run_for_each_part() {
    let part = |first: u16| {
        let numbers = (0..6).map(|i| bf16::from_bits(first + i)).collect::<Vec<_>>();
        DenseMatrix::<bf16>::new(HostBuffer::from_vec(numbers), 2, 3).unwrap()
    };
    let experts = [Stacked::new(vec![part(0), part(6)]), Stacked::new(vec![part(20), part(40)])];
    let experts = experts.into_iter().map(Result::unwrap).collect();
    let matrices = ExpertMatrices::<Bf16>::new(experts).unwrap();
    let layout = matrices.stack_layout();
    assert_eq!((layout.rows, layout.columns, layout.number_bytes), (4, 3, 2));
    assert_eq!((layout.scale_block, layout.scales_per_expert()), (None, 0));
    let mut numbers = vec![0; layout.number_bytes_per_expert()];
    matrices.write_numbers(0, &mut numbers).unwrap();
    let expected: Vec<u8> = (0..12u16).flat_map(u16::to_ne_bytes).collect();
    assert_eq!(numbers, expected);
    matrices.write_scales(0, &layout, &mut []).unwrap();
    assert_eq!(part(0).cut_rows(1..2).unwrap().elements(), &part(0).elements()[3..]);
    assert_eq!(
        part(0).cut_columns(2..3).unwrap().elements(),
        [bf16::from_bits(2), bf16::from_bits(5)]
    );
}

#[test]
fn buffers_that_do_not_fit_are_errors() {
    let matrices = stack(vec![blocks(5, 20, 1)]);
    assert!(matrices.write_numbers(2, &mut [0; 100]).is_err());
    assert!(matrices.write_numbers(0, &mut [0; 99]).is_err());
    let layout = matrices.stack_layout();
    assert!(matrices.write_scales(2, &layout, &mut [0.0]).is_err());
    assert!(matrices.write_scales(0, &layout, &mut [0.0; 2]).is_err());
    let other = StackLayout { scale_block: Some([128, 96]), ..layout };
    assert!(matrices.write_scales(0, &other, &mut [0.0]).is_err());
}

#[test]
fn experts_cut_at_different_places_are_not_one_stack() {
    let cut = |start| Stacked::new(vec![blocks(576, 130, 1).cut_rows(start..start + 192).unwrap()]);
    let experts = vec![cut(0).unwrap(), cut(192).unwrap()];
    assert!(ExpertMatrices::<Fp8Block128>::new(experts).is_err());
}

#[test]
fn ranks_have_each_weight_once() {
    let (hidden, intermediate, ranks) = (130, 384, 2);
    let experts = |parts: Vec<Fp8BlockMatrix>| {
        ExpertWeights::new(stack(parts), stack(vec![blocks(hidden, intermediate, 9)])).unwrap()
    };
    let halves = vec![blocks(intermediate, hidden, 1), blocks(intermediate, hidden, 2)];
    let whole = experts(halves);
    let (mut expected, mut found) = (vec![0.0; intermediate], vec![0.0; intermediate / ranks]);
    for rank in 0..ranks {
        let shard = whole.shard(crate::activation::GateLayout::Halves, rank, ranks).unwrap();
        let first = rank * intermediate / ranks;
        assert_eq!(shard.intermediate_size(), intermediate / ranks);
        for row in 0..hidden {
            whole.w2().matrix(1).dequantize_row(row, &mut expected);
            shard.w2().matrix(1).dequantize_row(row, &mut found);
            assert_eq!(found, expected[first..first + intermediate / ranks]);
        }
        let (mut expected, mut found) = (vec![0.0; hidden], vec![0.0; hidden]);
        for row in 0..2 * intermediate / ranks {
            let half = row / (intermediate / ranks);
            let of_whole = half * intermediate + first + row % (intermediate / ranks);
            whole.w13().matrix(1).dequantize_row(of_whole, &mut expected);
            shard.w13().matrix(1).dequantize_row(row, &mut found);
            assert_eq!(found, expected);
        }
        check(shard.w13(), [64, 128]);
        check(shard.w2(), [128, if rank == 0 { 128 } else { 64 }]);
    }
}
