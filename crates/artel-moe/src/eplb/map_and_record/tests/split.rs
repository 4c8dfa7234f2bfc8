//! Copies that do not all get the same: by shares, and by quotas.

use super::*;

fn two_copies(share_of_second: f64) -> LayerPlan {
    let placement = Placement::new(vec![0, 1, 0], 2).unwrap();
    let shares = vec![1.0 - share_of_second, 1.0, share_of_second];
    LayerPlan { shares: Shares::new(shares, &placement).unwrap(), placement }
}

#[test]
fn a_copy_with_the_whole_share_gets_every_token() {
    let placement = Placement::new(vec![0; 5], 1).unwrap();
    for chosen in 0..5 {
        let mut shares = vec![0.0; 5];
        shares[chosen] = 1.0;
        let shares = Shares::new(shares, &placement).unwrap();
        let plan = LayerPlan { placement: placement.clone(), shares };
        let (physical, load) = run_plan(&[0; 70_000], 1, &plan, self::shares(), (true, 70_000));
        assert!(physical.iter().all(|&slot| slot == chosen as i32));
        assert_eq!(load[chosen], 70_000);
    }
}

#[test]
fn copies_get_their_shares() {
    for share in [0.5, 0.75, 0.99] {
        let (_, load) = run_plan(&[0; 400], 1, &two_copies(share), shares(), (true, 400));
        let found = f64::from(load[2]) / 400.0;
        assert!((found - share).abs() < 0.1, "{found} of {share}");
        assert_eq!(load.iter().sum::<i32>(), 400);
        // Many tokens come close: five standard deviations of a fair draw.
        let ids = vec![0; 1 << 16];
        let (_, load) = run_plan(&ids, 1, &two_copies(share), shares(), (true, ids.len()));
        let found = f64::from(load[2]) / ids.len() as f64;
        let deviation = (share * (1.0 - share) / ids.len() as f64).sqrt();
        assert!((found - share).abs() < 5.0 * deviation, "{found} of {share}");
    }
}

#[test]
fn shares_without_weight_are_even() {
    let placement = Placement::new(vec![0, 0, 1, 1], 2).unwrap();
    let shares = Shares::in_proportion(&[0.0, 0.0, 1.0, 3.0], &placement).unwrap();
    let plan = LayerPlan { placement, shares };
    let ids = [0, 1].repeat(4000);
    let (_, load) = run_plan(&ids, 2, &plan, self::shares(), (true, 4000));
    for (slot, share) in [0.5, 0.5, 0.25, 0.75].into_iter().enumerate() {
        let found = f64::from(load[slot]) / 4000.0;
        assert!((found - share).abs() < 0.04, "slot {slot}: {found} of {share}");
    }
}

#[test]
fn quotas_deal_pairs_in_order() {
    let placement = Placement::new(vec![0, 1, 0, -1, 0], 2).unwrap();
    let ids = [0, 1, 0, 0, 1, 0, -1, 2, 0, 0];
    let step = |quotas: &[u32], gate| run_quotas(&ids, 2, &placement, quotas, gate);
    let whole = (true, usize::MAX);
    let (physical, load) = step(&[2, 2, 3, 0, 1], whole);
    assert_eq!(physical, [0, 1, 0, 2, 1, 2, -1, -1, 2, 4]);
    assert_eq!(load, [2, 2, 3, 0, 1]);
    assert_eq!(step(&[0, 2, 6, 0, 0], whole).1, [0, 2, 6, 0, 0]);
    // Padding is dealt out, but not counted.
    let (padded, load) = step(&[2, 2, 3, 0, 1], (true, 2));
    assert_eq!((padded, load), (physical.clone(), vec![2, 1, 1, 0, 0]));
    assert_eq!(step(&[2, 2, 3, 0, 1], (false, usize::MAX)), (physical, vec![0; 5]));
}

#[test]
fn quotas_of_another_batch_still_reach_the_right_expert() {
    let placement = Placement::new(vec![0, 1, 0, -1, 0], 2).unwrap();
    let ids = [0, 1, 0, 0, 1, 0];
    let step = |quotas: &[u32]| run_quotas(&ids, 2, &placement, quotas, (true, 3));
    // Too few, none, too many, and some for an empty slot.
    assert_eq!(step(&[1, 0, 1, 0, 1]), (vec![0, 1, 2, 4, 1, 4], vec![1, 2, 1, 0, 2]));
    assert_eq!(step(&[0; 5]), (vec![4, 1, 4, 4, 1, 4], vec![0, 2, 0, 0, 4]));
    assert_eq!(step(&[u32::MAX; 5]), (vec![0, 1, 0, 0, 1, 0], vec![4, 2, 0, 0, 0]));
    assert_eq!(step(&[3, 2, 0, 7, 1]), (vec![0, 1, 0, 0, 1, 4], vec![3, 2, 0, 0, 1]));
}

#[test]
fn quotas_in_edge_cases() {
    let placement = Placement::new(vec![0, 1, 0], 2).unwrap();
    let whole = (true, usize::MAX);
    assert_eq!(run_quotas(&[], 0, &placement, &[0; 3], whole), (vec![], vec![0; 3]));
    assert_eq!(run_quotas(&[], 8, &placement, &[5; 3], whole), (vec![], vec![0; 3]));
    let strangers = [-1, 2, i32::MIN, i32::MAX, -7, 3];
    let (physical, load) = run_quotas(&strangers, 3, &placement, &[0; 3], whole);
    assert_eq!((physical, load), (vec![-1; 6], vec![0; 3]));
}

#[test]
fn pairs_are_counted_by_expert() {
    let mut counts = vec![0, 7, u32::MAX];
    count_pairs(&[1, 0, 1, -1, 3, i32::MIN, i32::MAX, 2], &mut counts);
    assert_eq!(counts, [1, 9, u32::MAX]);
}

proptest! {
    #[test]
    fn shares_agree_with_the_reference(
        case in case(),
        weights in prop::collection::vec(prop_oneof![2 => Just(0.0), 5 => 0.0..1.0f64], 60),
    ) {
        let slots = case.placement.physical_to_logical().iter();
        let weights: Vec<f64> = slots
            .zip(weights)
            .map(|(&logical, weight)| if logical < 0 { 0.0 } else { weight })
            .collect();
        let shares = Shares::in_proportion(&weights, &case.placement).unwrap();
        let plan = LayerPlan { shares: shares.clone(), placement: case.placement };
        let gate = (true, case.unpadded_tokens);
        let (physical, load) = run_plan(&case.ids, case.top_k, &plan, self::shares(), gate);
        for (&logical, &slot) in case.ids.iter().zip(&physical) {
            match plan.placement.replicas(logical) {
                [] => prop_assert_eq!(slot, -1),
                slots => {
                    prop_assert!(slots.contains(&slot));
                    prop_assert!(shares.of_slots()[slot as usize] > 0.0, "no share, no token");
                }
            }
        }
        let real = &case.ids[..case.unpadded_tokens * case.top_k];
        let valid = real.iter().filter(|&&id| !plan.placement.replicas(id).is_empty()).count();
        prop_assert_eq!(load.iter().sum::<i32>(), valid as i32);
    }

    #[test]
    fn quotas_are_met_to_the_pair(case in case()) {
        let quotas = even_quotas(&case.ids, &case.placement);
        let whole = (true, usize::MAX);
        let (physical, load) = run_quotas(&case.ids, case.top_k, &case.placement, &quotas, whole);
        prop_assert_eq!(load, quotas.iter().map(|&quota| quota as i32).collect::<Vec<_>>());
        for (&logical, &slot) in case.ids.iter().zip(&physical) {
            match case.placement.replicas(logical) {
                [] => prop_assert_eq!(slot, -1),
                slots => prop_assert!(slots.contains(&slot)),
            }
        }
    }

    #[test]
    fn any_quotas_agree_with_the_reference(
        case in case(),
        quotas in prop::collection::vec(0u32..6, 60),
    ) {
        let quotas = &quotas[..case.placement.num_physical()];
        for gate in [(true, case.unpadded_tokens), (true, usize::MAX), (false, 9)] {
            let (physical, _) = run_quotas(&case.ids, case.top_k, &case.placement, quotas, gate);
            for (&logical, &slot) in case.ids.iter().zip(&physical) {
                match case.placement.replicas(logical) {
                    [] => prop_assert_eq!(slot, -1),
                    slots => prop_assert!(slots.contains(&slot)),
                }
            }
        }
    }
}
