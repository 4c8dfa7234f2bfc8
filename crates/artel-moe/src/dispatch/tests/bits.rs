use super::*;
use crate::eplb::{RecordFlag, Shares};

/// The bits of a layer on `ranks` ranks before, during and after 100 moves.
fn check(format: Format, features: CpuFeatures, ranks: usize, router_weight: RouterWeight) {
    let local = layer(format, features, router_weight);
    let mut ws = workspace(features);
    let hidden: Vec<Vec<f32>> = [1, 2, 40].map(hidden_states).into();
    let expected: Vec<Vec<f32>> =
        hidden.iter().map(|hidden| forward(&local, &mut ws, hidden).unwrap()).collect();

    let rng = &mut ChaCha8Rng::seed_from_u64(23);
    let cluster = Cluster::new(ranks, (EXPERTS + 6).div_ceil(ranks)).unwrap();
    let slots = cluster.slots();
    let first = LayerPlan::equal(random_placement(rng, slots, EXPERTS));
    let layers = vec![local.for_ranks(first, salted())];
    let slots_per_switch = [3, 1000][ranks % 4 / 2];
    let options =
        RankOptions { slots_per_switch, in_rounds: ranks == 4, ..options(features, ranks) };
    let group = RankGroup::start(cluster, layers, options).unwrap();
    let spread = local.clone().on_ranks(group.layer(0).unwrap()).unwrap();
    let mut step = 0;
    let mut compute = |what: &str| {
        let case = step % hidden.len();
        step += 1;
        let out = forward(&spread, &mut ws, &hidden[case]).unwrap();
        assert_eq!(out, expected[case], "{format}, {}, {ranks} ranks, {what}", features.isa());
    };
    (0..3).for_each(|_| compute("before"));
    for turn in 0..100 {
        let plan = LayerPlan::equal(random_placement(rng, slots, EXPERTS));
        group.begin_move(0, plan.clone()).unwrap();
        let mut events = group.poll();
        while group.is_moving(0) {
            compute("during");
            events.extend(group.poll());
            group.switch_ready().unwrap();
        }
        events.extend(group.poll());
        assert!(matches!(events[..], [MoveEvent::Moved { layer: 0, .. }]), "{turn}: {events:?}");
        assert_eq!(group.layers()[0].plan(), plan);
        compute("after");
    }
}

fn check_everywhere(ranks: usize) {
    for features in CpuFeatures::every_supported() {
        for format in Format::ALL {
            check(format, features, ranks, RouterWeight::OnOutput);
        }
    }
}

#[test]
fn two_ranks_have_the_bits_of_one_through_100_moves() {
    check_everywhere(2);
}

#[test]
fn four_ranks_have_the_bits_of_one_through_100_moves() {
    check_everywhere(4);
}

#[test]
fn eight_ranks_have_the_bits_of_one_through_100_moves() {
    check_everywhere(8);
}

#[test]
fn router_weights_on_the_input_travel_with_their_rows() {
    for format in [Format::F32, Format::Fp8Tensor] {
        check(format, CpuFeatures::detect(), 2, RouterWeight::OnInput);
    }
}

#[test]
fn how_copies_are_chosen_changes_the_load_and_no_bit() {
    let features = CpuFeatures::detect();
    let local = layer(Format::Bf16, features, RouterWeight::OnOutput);
    let mut ws = workspace(features);
    let hidden = hidden_states(64);
    let expected = forward(&local, &mut ws, &hidden).unwrap();
    let slots = (0..20).map(|slot| slot % EXPERTS as i32).collect();
    let plan = LayerPlan::equal(Placement::new(slots, EXPERTS).unwrap());
    let cluster = Cluster::new(4, 5).unwrap();
    let layers = vec![local.for_ranks(plan.clone(), salted())];
    let group = RankGroup::start(cluster, layers, options(features, 4)).unwrap();
    let flag = RecordFlag::new(false);
    group.follow(&flag);
    let handle = group.layer(0).unwrap();
    let spread = local.on_ranks(handle.clone()).unwrap();
    let mut loads = Vec::new();
    let mut run = || {
        assert_eq!(forward(&spread, &mut ws, &hidden).unwrap(), expected);
        let load = handle.take_load();
        loads.push(load.clone());
        load
    };
    assert!(run().iter().all(|&load| load == 0), "recording is off");
    flag.set(true);
    assert_eq!(run().iter().sum::<i32>(), 64 * 3);
    for memory_bound_below in [0, 1000] {
        handle.set_choice(CopyChoice::Quotas { memory_bound_below }).unwrap();
        run();
    }
    let salt = ReplicaSalt::of_replicated_tokens(0);
    handle.set_choice(ReplicaRule::Shares(salt).into()).unwrap();
    let of_slots = (0..20).map(|slot| f64::from(u8::from(slot < 10))).collect();
    let shares = Shares::new(of_slots, &plan.placement).unwrap();
    group.begin_move(0, LayerPlan { shares, ..plan }).unwrap();
    let events = group.finish_moves(Duration::from_secs(9)).unwrap();
    assert!(matches!(events[..], [MoveEvent::Moved { slots: 0, bytes: 0, .. }]), "{events:?}");
    assert!(run()[10..].iter().all(|&load| load == 0), "shares are in force without a move");
    // Ranks 0 and 2 have the same experts, and so have 1 and 3: each pair of ranks shares evenly.
    let of_rank = |rank: usize| loads[2][rank * 5..][..5].iter().sum::<i32>();
    assert!(of_rank(0).abs_diff(of_rank(2)) <= 1 && of_rank(1).abs_diff(of_rank(3)) <= 1);
}
