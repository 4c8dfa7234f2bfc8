use std::ops::Range;

use crate::{
    MoeError,
    eplb::{Cluster, Placement},
};

/// Which ranks can serve which expert, made once a placement and asked in every step. A *seat* is an
/// expert on a rank: one slot, or several when a rank holds an expert more than once.
#[derive(Debug, Clone)]
pub struct Copies {
    pub(super) speeds: Vec<f64>,
    slots: usize,
    /// First seat of each expert, `[L + 1]`.
    offsets: Vec<u32>,
    /// Rank of each seat; ascending inside an expert.
    pub(super) rank_of: Vec<u32>,
    /// Expert of each seat.
    pub(super) expert_of: Vec<u32>,
    /// First of each seat's slots in `slot_ids`, `[seats + 1]`.
    slot_offsets: Vec<u32>,
    slot_ids: Vec<u32>,
    /// Experts with seats on several ranks.
    pub(super) spread: Vec<u32>,
    /// First of each rank's seats in `seat_ids`, `[ranks + 1]`: those of spread experts only.
    rank_offsets: Vec<u32>,
    seat_ids: Vec<u32>,
}

impl Copies {
    /// The seats of a placement.
    ///
    /// # Errors
    /// [`MoeError`] for other ranks than the placement's, or slots of dead ranks in use.
    pub fn new(placement: &Placement, cluster: &Cluster) -> Result<Self, MoeError> {
        cluster.check(placement)?;
        let mut copies = Self {
            speeds: cluster.speeds().to_vec(),
            slots: cluster.slots(),
            offsets: vec![0],
            rank_of: Vec::with_capacity(cluster.slots()),
            expert_of: Vec::with_capacity(cluster.slots()),
            slot_offsets: vec![0],
            slot_ids: Vec::with_capacity(cluster.slots()),
            spread: Vec::new(),
            rank_offsets: Vec::new(),
            seat_ids: Vec::new(),
        };
        for expert in 0..placement.num_logical() {
            copies.seat(expert, placement.replicas(expert as i32), cluster);
        }
        copies.seats_by_rank();
        Ok(copies)
    }

    fn seat(&mut self, expert: usize, slots: &[i32], cluster: &Cluster) {
        let of_one_rank =
            |a: &i32, b: &i32| cluster.rank_of(*a as usize) == cluster.rank_of(*b as usize);
        for slots in slots.chunk_by(of_one_rank) {
            self.rank_of.push(cluster.rank_of(slots[0] as usize) as u32);
            self.expert_of.push(expert as u32);
            self.slot_ids.extend(slots.iter().map(|&slot| slot as u32));
            self.slot_offsets.push(self.slot_ids.len() as u32);
        }
        self.offsets.push(self.rank_of.len() as u32);
        if self.seats(expert).len() > 1 {
            self.spread.push(expert as u32);
        }
    }

    /// Counting sort of the seats of spread experts by rank.
    fn seats_by_rank(&mut self) {
        let mut offsets = vec![0; self.ranks() + 1];
        let spread = || self.spread.iter().flat_map(|&expert| self.seats(expert as usize));
        spread().for_each(|seat| offsets[self.rank_of[seat] as usize + 1] += 1);
        (0..self.ranks()).for_each(|rank| offsets[rank + 1] += offsets[rank]);
        let mut next = offsets.clone();
        let mut seat_ids = vec![0; offsets[self.ranks()] as usize];
        for seat in spread() {
            let position = &mut next[self.rank_of[seat] as usize];
            seat_ids[*position as usize] = seat as u32;
            *position += 1;
        }
        (self.rank_offsets, self.seat_ids) = (offsets, seat_ids);
    }

    /// Experts of the model, `L`.
    pub fn num_logical(&self) -> usize {
        self.offsets.len() - 1
    }

    /// Slots, `P`.
    pub fn num_physical(&self) -> usize {
        self.slots
    }

    /// Number of ranks, dead ones included.
    pub fn ranks(&self) -> usize {
        self.speeds.len()
    }

    /// Seats of an expert.
    pub(super) fn seats(&self, expert: usize) -> Range<usize> {
        self.offsets[expert] as usize..self.offsets[expert + 1] as usize
    }

    /// Seats of all experts.
    pub(super) fn num_seats(&self) -> usize {
        self.rank_of.len()
    }

    /// Slots of a seat, at least one.
    pub(super) fn slots_of(&self, seat: usize) -> &[u32] {
        let slots = self.slot_offsets[seat] as usize..self.slot_offsets[seat + 1] as usize;
        &self.slot_ids[slots]
    }

    /// Seats on a rank whose expert has other seats too.
    pub(super) fn spread_seats_on(&self, rank: usize) -> &[u32] {
        &self.seat_ids[self.rank_offsets[rank] as usize..self.rank_offsets[rank + 1] as usize]
    }
}
