//! Combine: within the rounding of the element type of the reference, whatever lies where.

use artel_gpu_test::{Case, Gpu};
use artel_moe::MoeError;
use artel_moe::combine::cuda::{
    Combine, CombineForm, CombineOperands, IdentityShare, PairWeights, RowOrder, WeightForm,
};
use artel_moe::combine::{Identity, Locality, RowWeights, Slots, reference};
use artel_moe::packing;
use artel_moe::quant::Element;
use half::{bf16, f16};

const NUM_EXPERTS: usize = 8;

pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for order in [RowOrder::Pairs, RowOrder::PackedPairs, RowOrder::Sorted] {
        for weights in [WeightForm::One, WeightForm::Routed, WeightForm::Packed] {
            for identity in [false, true] {
                let form = CombineForm {
                    top_k: 3,
                    hidden_size: 257,
                    order,
                    weights,
                    identity,
                    biased: None,
                };
                let name = format!("combine::{order:?}_{weights:?}_identity_{identity}");
                cases.push(case::<bf16>(name, form, 1.0 / 128.0));
            }
        }
    }
    for (top_k, hidden_size) in [(1, 1), (2, 255), (3, 256), (8, 3072), (4, 2880), (22, 1030)] {
        for order in [RowOrder::Pairs, RowOrder::Sorted] {
            let weights = WeightForm::Routed;
            let form =
                CombineForm { top_k, hidden_size, order, weights, identity: false, biased: None };
            let name = |element| format!("combine::{element}_{order:?}_{top_k}_of_{hidden_size}");
            cases.push(case::<bf16>(name("bf16"), form, 1.0 / 128.0));
            cases.push(case::<f16>(name("f16"), form, 1.0 / 1024.0));
            cases.push(case::<f32>(name("f32"), form, 4e-6));
        }
    }
    cases
}

fn case<A: Element>(name: String, form: CombineForm, tolerance: f64) -> Case {
    let run = move |gpu: &Gpu, combine: &Combine<A>| {
        let top_k = form.top_k;
        let cycle = |pairs: usize| (0..pairs).map(|pair| (pair * 5 % NUM_EXPERTS) as i32).collect();
        let odd = [-1, 2, NUM_EXPERTS as i32, -1, 7, i32::MAX, 0, i32::MIN, 3, 3];
        let mixed = (0..7 * top_k).map(|pair| odd[pair % odd.len()]).collect();
        let ids: [Vec<i32>; 5] =
            [Vec::new(), cycle(top_k), cycle(33 * top_k), vec![-1; 2 * top_k], mixed];
        ids.iter().try_for_each(|ids| check(gpu, combine, form, ids, tolerance))
    };
    Case::new(name, move |kernels| Combine::<A>::load(kernels, form), run)
}

fn check<A: Element>(
    gpu: &Gpu,
    combine: &Combine<A>,
    form: CombineForm,
    ids: &[i32],
    tolerance: f64,
) -> Result<(), MoeError> {
    let CombineForm { top_k, hidden_size, order, .. } = form;
    let tokens = ids.len() / top_k;
    let locality = Locality::All { num_experts: NUM_EXPERTS };
    let weights: Vec<f32> = (0..ids.len()).map(|pair| 0.25 + (pair % 50) as f32 / 16.0).collect();
    let mut rows: Vec<A> = numbers(ids.len() * hidden_size);
    for (row, &id) in rows.chunks_mut(hidden_size).zip(ids) {
        if !locality.computes(id) {
            row.fill(A::from_f32(f32::NAN));
        }
    }
    let shares = &weights[..tokens];
    let hidden_states: Vec<A> = numbers(tokens * hidden_size);
    let identity =
        form.identity.then_some(Identity { weights: shares, hidden_states: &hidden_states });
    let row_weights = match form.weights {
        WeightForm::One => RowWeights::One,
        WeightForm::Routed | WeightForm::Packed => RowWeights::Routed(&weights),
    };
    let slots = Slots { ids, weights: row_weights, top_k, locality };
    let work = artel_moe::combine::Combine { slots, rows: &rows, identity };
    let expected = reference::combine(&work, hidden_size);

    let packed: Vec<i32> =
        ids.iter().zip(&weights).map(|(&id, &weight)| pack(id, weight)).collect();
    let (sorted, positions) = sort(ids, &rows, hidden_size, locality);
    let (rows, selectors) = match order {
        RowOrder::Pairs => (gpu.upload(&rows), gpu.upload(ids)),
        RowOrder::PackedPairs => (gpu.upload(&rows), gpu.upload(&packed)),
        RowOrder::Sorted => (gpu.upload(&sorted), gpu.upload(&positions)),
    };
    let (shares, weights) = (gpu.upload(shares), gpu.upload(&weights));
    let (packed, hidden_states) = (gpu.upload(&packed), gpu.upload(&hidden_states));
    let weights = match form.weights {
        WeightForm::One => PairWeights::One,
        WeightForm::Routed => PairWeights::Routed(weights.slice()),
        WeightForm::Packed => PairWeights::Packed(packed.slice()),
    };
    let share = IdentityShare { weights: shares.slice(), hidden_states: hidden_states.slice() };
    let operands = CombineOperands {
        rows: rows.slice(),
        selectors: selectors.slice(),
        num_experts: NUM_EXPERTS,
        weights,
        identity: form.identity.then_some(share),
        biases: None,
    };
    let mut out = gpu.poisoned::<A>(expected.len());
    combine.launch(&gpu.stream, tokens, &operands, &mut out.slice_mut())?;
    let found = gpu.download(&out);
    for (found, expected) in found.iter().zip(&expected) {
        let error = (f64::from(found.to_f32()) - expected).abs();
        assert!(error <= tolerance * (1.0 + expected.abs()), "{found:?}, not {expected}");
    }
    combine.launch(&gpu.stream, tokens, &operands, &mut out.slice_mut())?;
    let again = gpu.download(&out);
    assert!(bytemuck::cast_slice::<A, u8>(&again) == bytemuck::cast_slice::<A, u8>(&found));
    Ok(())
}

fn numbers<A: Element>(count: usize) -> Vec<A> {
    (0..count).map(|i| A::from_f32((i * 37 % 101) as f32 / 50.0 - 1.0)).collect()
}

fn pack(id: i32, weight: f32) -> i32 {
    let id = if (-1..=packing::PACKED_ID_MAX).contains(&id) { id } else { -1 };
    id << 16 | i32::from(bf16::from_f32(weight).to_bits())
}

/// The rows of computed pairs backwards, a row of NaN behind each; and where each pair lies.
fn sort<A: Element>(
    ids: &[i32],
    rows: &[A],
    hidden_size: usize,
    locality: Locality<'_>,
) -> (Vec<A>, Vec<i32>) {
    let (mut sorted, mut positions) = (Vec::new(), vec![-1; ids.len()]);
    for (pair, &id) in ids.iter().enumerate().rev() {
        if locality.computes(id) {
            positions[pair] = (sorted.len() / hidden_size) as i32;
            sorted.extend_from_slice(&rows[pair * hidden_size..][..hidden_size]);
            sorted.extend(std::iter::repeat_n(A::from_f32(f32::NAN), hidden_size));
        }
    }
    (sorted, positions)
}
