//! The published policy, step by step: what [`Greedy`](super::Greedy) must equal.

/// Expert in each slot, `[P]`, for `slots` slots on `ranks` ranks; the sizes divide each other as
/// the published code asserts.
pub fn place(load: &[f32], groups: usize, nodes: usize, ranks: usize, slots: usize) -> Vec<i32> {
    let (groups, nodes) = if groups.is_multiple_of(nodes) { (groups, nodes) } else { (1, 1) };
    let group_size = load.len() / groups;
    let group_loads: Vec<f32> = load.chunks(group_size).map(|group| group.iter().sum()).collect();
    let mut physical_to_logical = Vec::new();
    for groups in pack(&group_loads, nodes) {
        let experts: Vec<usize> = groups
            .into_iter()
            .flat_map(|group| group * group_size..(group + 1) * group_size)
            .collect();
        let loads: Vec<f32> = experts.iter().map(|&expert| load[expert]).collect();
        let (copies, counts) = replicate(&loads, slots / nodes);
        let copy_loads: Vec<f32> =
            copies.iter().map(|&local| loads[local] / counts[local] as f32).collect();
        for copies_of_rank in pack(&copy_loads, ranks / nodes) {
            let experts = copies_of_rank.into_iter().map(|copy| experts[copies[copy]] as i32);
            physical_to_logical.extend(experts);
        }
    }
    physical_to_logical
}

/// Experts in the order in which their copies are made, and how many copies each has.
fn replicate(load: &[f32], slots: usize) -> (Vec<usize>, Vec<usize>) {
    let mut copies: Vec<usize> = (0..load.len()).collect();
    let mut counts = vec![1; load.len()];
    for _ in load.len()..slots {
        let load_a_copy = |expert: usize| load[expert] / counts[expert] as f32;
        let mut heaviest = 0;
        for expert in 1..load.len() {
            if load_a_copy(expert) > load_a_copy(heaviest) {
                heaviest = expert;
            }
        }
        copies.push(heaviest);
        counts[heaviest] += 1;
    }
    (copies, counts)
}

/// Indices of the loads in each pack, in the order in which they arrive.
fn pack(load: &[f32], packs: usize) -> Vec<Vec<usize>> {
    let room = load.len() / packs;
    if room == 1 {
        return (0..packs).map(|item| vec![item]).collect();
    }
    let mut descending: Vec<usize> = (0..load.len()).collect();
    descending.sort_by(|&a, &b| load[b].total_cmp(&load[a]));
    let mut members = vec![Vec::new(); packs];
    let mut pack_loads = vec![0f32; packs];
    for item in descending {
        let mut lightest = None;
        for pack in 0..packs {
            let lighter = lightest.is_none_or(|best: usize| pack_loads[pack] < pack_loads[best]);
            if members[pack].len() < room && lighter {
                lightest = Some(pack);
            }
        }
        let pack = lightest.expect("this is a bug: packs have room for all items");
        members[pack].push(item);
        pack_loads[pack] += load[item];
    }
    members
}
