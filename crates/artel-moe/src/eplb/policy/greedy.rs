use std::{
    cmp::Reverse,
    collections::{BinaryHeap, binary_heap::PeekMut},
};

use super::{LayerPlan, LayerQuery, Policy, keep_slots, mask::check_room};
use crate::{
    MoeError,
    eplb::{Cluster, Placement},
};

/// The published policy (deepseek-ai/EPLB, vLLM's default), to the bit, in its `f32` arithmetic:
///
/// 1. Groups of experts go to nodes, the heaviest first, each to the lightest node with room.
/// 2. Inside each node every further slot goes to the expert with the most load a copy.
/// 3. Inside each node copies go to ranks, the heaviest first, each to the lightest with room.
///
/// When the nodes cannot share the groups evenly, all ranks count as one node and all experts as one
/// group. Of equals the first wins everywhere; a layer without load gives every further slot to
/// expert 0. Speeds are not looked at.
///
/// ```
/// use artel_moe::eplb::{Cluster, policy::Greedy};
/// let cluster = Cluster::new(2, 3)?;
/// let placement = Greedy { groups: 1 }.place(&[1.0, 8.0, 3.0, 2.0], &cluster)?;
/// assert_eq!(placement.physical_to_logical(), [2, 1, 0, 1, 1, 3]);
/// # Ok::<(), artel_moe::MoeError>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Greedy {
    /// Groups that the router chooses among first; 1 for routers without groups.
    pub groups: usize,
}

impl Greedy {
    /// Experts in slots, as published: whatever was there before does not count. Dead ranks get
    /// nothing; nodes that lost different numbers of ranks count as one.
    ///
    /// # Errors
    /// [`MoeError`] for no group, groups of different size, or fewer slots than experts.
    pub fn place(&self, load: &[f64], cluster: &Cluster) -> Result<Placement, MoeError> {
        check_room(load.len(), cluster)?;
        let living: Vec<usize> = cluster.living().collect();
        let (groups, nodes) = self.hierarchy(load.len(), &living, cluster)?;
        // Adding zero makes -0 into 0, so that bits are in the order of values.
        let load: Vec<f32> = load.iter().map(|&load| load as f32 + 0.0).collect();
        let experts = experts_by_node(&load, groups, nodes);
        let ranks = living.len() / nodes;
        let mut physical_to_logical = vec![-1; cluster.slots()];
        let mut packer = Packer::default();
        for (node, experts) in experts.chunks(load.len() / nodes).enumerate() {
            packer.take(&load, experts, ranks * cluster.slots_per_rank());
            packer.pack(ranks, |rank, place, copy| {
                let slot = cluster.slots_of(living[node * ranks + rank]).start + place;
                physical_to_logical[slot] = experts[copy];
            });
        }
        Placement::new(physical_to_logical, load.len())
    }

    /// Groups and nodes to work with.
    fn hierarchy(
        &self,
        experts: usize,
        living: &[usize],
        cluster: &Cluster,
    ) -> Result<(usize, usize), MoeError> {
        if self.groups == 0 {
            return Err(MoeError::config("groups of experts", 0, "1 or more"));
        }
        let nodes = cluster.nodes();
        let living_of = |node| living.iter().filter(|&&rank| cluster.node_of(rank) == node).count();
        let even = (1..nodes).all(|node| living_of(node) == living_of(0));
        if !even || !self.groups.is_multiple_of(nodes) {
            return Ok((1, 1));
        }
        match experts.is_multiple_of(self.groups) {
            true => Ok((self.groups, nodes)),
            false => {
                let allowed = format!("a divisor of the number of experts, {experts}");
                Err(MoeError::config("groups of experts", self.groups, allowed))
            }
        }
    }
}

impl Policy for Greedy {
    fn name(&self) -> &'static str {
        "greedy"
    }

    fn plan(&self, query: &LayerQuery<'_>) -> Result<LayerPlan, MoeError> {
        query.check()?;
        let placement = self.place(query.load, query.cluster)?;
        Ok(LayerPlan::equal(keep_slots(query.current, &placement, query.cluster)?))
    }
}

/// All experts in the order of the nodes they go to; each node gets the same number.
fn experts_by_node(load: &[f32], groups: usize, nodes: usize) -> Vec<i32> {
    let group_size = load.len() / groups;
    let mut packer = Packer::default();
    for (group, loads) in load.chunks(group_size).enumerate() {
        packer.push(loads.iter().sum(), group);
    }
    let groups_per_node = groups / nodes;
    let mut group_of = vec![0; groups];
    packer.pack(nodes, |node, place, group| group_of[node * groups_per_node + place] = group);
    let experts = |group| (group * group_size) as i32..((group + 1) * group_size) as i32;
    group_of.into_iter().flat_map(experts).collect()
}

/// Things with a load, and packs of equal size to put them into. A key is a load and an index:
/// the bits of floats that are not negative are in the order of their values.
#[derive(Debug, Default)]
struct Packer {
    /// Load above the index of the thing, both so that the largest key comes first.
    descending: Vec<u64>,
    /// What each index stands for.
    things: Vec<usize>,
}

impl Packer {
    fn push(&mut self, load: f32, thing: usize) {
        self.descending.push(largest_first(load, self.things.len()));
        self.things.push(thing);
    }

    /// Starts anew with `slots` copies of experts: one of each, then again and again one of the
    /// expert with the most load a copy.
    fn take(&mut self, load: &[f32], experts: &[i32], slots: usize) {
        let load_of = |local: usize| load[experts[local] as usize];
        let mut counts = vec![1u32; experts.len()];
        let keys = (0..experts.len()).map(|local| largest_first(load_of(local), local));
        let mut heap: BinaryHeap<u64> = keys.collect();
        self.things.clear();
        self.things.extend(0..experts.len());
        for _ in experts.len()..slots {
            let Some(mut top) = heap.peek_mut() else { break };
            let local = index_of(*top);
            counts[local] += 1;
            *top = largest_first(load_of(local) / counts[local] as f32, local);
            self.things.push(local);
        }
        self.descending.clear();
        let copies = self.things.iter().enumerate();
        self.descending.extend(copies.map(|(position, &local)| {
            largest_first(load_of(local) / counts[local] as f32, position)
        }));
    }

    /// Puts everything into packs and tells `put` the pack, the place in it, and the thing.
    fn pack(&mut self, packs: usize, mut put: impl FnMut(usize, usize, usize)) {
        let room = self.things.len() / packs;
        if room == 1 {
            // As published: with one thing a pack there is nothing to choose.
            let things = self.things.iter().enumerate();
            return things.for_each(|(pack, &thing)| put(pack, 0, thing));
        }
        self.descending.sort_unstable_by_key(|&key| Reverse(key));
        let mut filled = vec![0; packs];
        let mut lightest: BinaryHeap<Reverse<u64>> =
            (0..packs).map(|pack| Reverse(pack as u64)).collect();
        for &key in &self.descending {
            let Some(mut top) = lightest.peek_mut() else { break };
            let pack = (top.0 & 0xffff_ffff) as usize;
            put(pack, filled[pack], self.things[index_of(key)]);
            filled[pack] += 1;
            if filled[pack] == room {
                PeekMut::pop(top);
            } else {
                let load = load_in(top.0) + load_in(key);
                *top = Reverse(u64::from(load.to_bits()) << 32 | pack as u64);
            }
        }
    }
}

/// A key by which the heaviest comes first in descending order, and of equals the lowest index.
fn largest_first(load: f32, index: usize) -> u64 {
    u64::from(load.to_bits()) << 32 | u64::from(!(index as u32))
}

fn index_of(key: u64) -> usize {
    !(key as u32) as usize
}

fn load_in(key: u64) -> f32 {
    f32::from_bits((key >> 32) as u32)
}
