use crate::eplb::{
    Cluster, LayerQuery, Placement, Policy,
    policy::{Balanced, NAMES, by_name, mask_ranks, rehome},
};

fn placement(slots: &[i32], experts: usize) -> Placement {
    Placement::new(slots.to_vec(), experts).unwrap()
}

/// The cases of TensorRT-LLM's `reconfigureMaskOnly`.
#[test]
fn masked_ranks_lose_their_copies() {
    let cluster = |slots| Cluster::new(4, slots).unwrap().without(&[2]).unwrap();
    let before = placement(&[0, 1, 0, 2, 1, 3, 2, 3], 4);
    let masked = mask_ranks(&before, &cluster(2)).unwrap();
    assert_eq!(masked.logical_replica_count(), [2, 1, 2, 1]);
    assert_eq!(masked.physical_to_logical(), [0, 1, 0, 2, -1, -1, 2, 3]);
    let last = mask_ranks(&placement(&[0, 1, 2, 3], 4), &cluster(1)).unwrap_err().to_string();
    assert!(last.starts_with("logical_replica_count[2] is 0"), "{last}");
    assert!(mask_ranks(&before, &cluster(1)).is_err());
}

#[test]
fn lost_experts_find_a_slot() {
    let cluster = Cluster::new(4, 2).unwrap().without(&[2]).unwrap();
    let before = placement(&[0, 1, 0, 1, 2, 3, 0, 1], 4);
    // Expert 1 is lighter, so two of its three copies can go.
    let after = rehome(&before, &[9.0, 2.0, 3.0, 4.0], &cluster).unwrap();
    assert_eq!(after.physical_to_logical(), [0, 3, 0, 2, -1, -1, 0, 1]);
    // Nothing is lost: nothing moves.
    let all = Cluster::new(4, 2).unwrap();
    assert_eq!(rehome(&before, &[1.0; 4], &all).unwrap(), before);
    // An empty slot is taken before a copy goes.
    let with_room = placement(&[0, 1, 0, -1, 2, 3, 2, 1], 4);
    let after = rehome(&with_room, &[1.0; 4], &cluster).unwrap();
    assert_eq!(after.physical_to_logical(), [0, 1, 0, 3, -1, -1, 2, 1]);
}

#[test]
fn too_few_living_slots_are_an_error_with_the_numbers() {
    let cluster = Cluster::new(4, 1).unwrap().without(&[2]).unwrap();
    let before = placement(&[0, 1, 2, 3], 4);
    let expect = "slots of living ranks is 3, but must be 4 or more, the number of experts";
    assert_eq!(rehome(&before, &[1.0; 4], &cluster).unwrap_err().to_string(), expect);
    let query = LayerQuery { load: &[1.0; 4], cluster: &cluster, current: &before };
    for name in NAMES {
        let error = by_name(name).unwrap().plan(&query).unwrap_err().to_string();
        assert_eq!(error, expect, "{name}");
    }
}

#[test]
fn every_policy_survives_dead_ranks() {
    let cluster = Cluster::new(4, 3).unwrap().with_nodes(2).unwrap().without(&[0, 3]).unwrap();
    let current = Placement::initial(6, 6).unwrap();
    let load = [5.0, 1.0, 4.0, 2.0, 2.0, 3.0];
    let query = LayerQuery { load: &load, cluster: &cluster, current: &current };
    let few_moves = Balanced { max_moves_per_layer: Some(2), cross_node_penalty: 0.1 };
    let policies = NAMES.iter().map(|name| by_name(name).unwrap());
    for policy in policies.chain([Box::new(few_moves) as Box<dyn Policy>]) {
        let plan = policy.plan(&query).unwrap();
        cluster.check(&plan.placement).unwrap();
    }
}
