//! The leader's side of a step: rows go out to the ranks of their slots and come back.

use std::sync::Arc;
use std::time::Instant;

use super::choice::Chooser;
use super::moves::{Move, MoveEvent};
use super::threads::Server;
use super::{Gone, Message, PlacementVersion, Port, RankOptions, Transport, Work};
use crate::MoeError;
use crate::eplb::map_and_record::LoadRecorder;
use crate::eplb::{Cluster, ExpertLoad};
use crate::quant::Element;
use crate::router::TopK;

/// What the leader knows.
#[derive(Debug)]
pub(super) struct Leader {
    pub cluster: Cluster,
    pub options: RankOptions,
    pub transport: Arc<dyn Transport>,
    pub ranks: Vec<Server>,
    pub movers: Vec<Server>,
    pub layers: Vec<LedLayer>,
    pub events: Vec<MoveEvent>,
    pub step: u64,
    /// Messages to use again, by rank; none while the rank has it.
    pub works: Vec<Option<Box<Work>>>,
    /// Slot of each pair.
    pub slots: Vec<i32>,
}

/// What the leader knows of one layer.
#[derive(Debug)]
pub(super) struct LedLayer {
    pub hidden_size: usize,
    pub expert_bytes: usize,
    pub chooser: Chooser,
    pub version: PlacementVersion,
    /// Number of the last placement that was tried.
    pub tried: u64,
    pub load: ExpertLoad,
    pub moving: Option<Move>,
}

/// Tokens and the experts that they need.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Batch<'a, A> {
    /// `[T, H]`.
    pub hidden_states: &'a [A],
    /// Experts of the model and weights, `[T, K]`.
    pub topk: &'a TopK,
    /// Whether weights are applied to the first product.
    pub weights_on_input: bool,
}

impl Leader {
    /// Computes the row of every pair whose expert exists; `out` is `[T * K, H]`.
    pub fn compute<A: Element>(
        &mut self,
        layer: usize,
        batch: Batch<'_, A>,
        out: &mut [A],
    ) -> Result<(), MoeError> {
        let (hidden_size, top_k) = (self.layers[layer].hidden_size, batch.topk.top_k);
        let pairs = batch.topk.ids.len();
        let tokens = pairs.checked_div(top_k).unwrap_or(0);
        MoeError::check_shape("hidden states", tokens * hidden_size, batch.hidden_states.len())?;
        MoeError::check_shape("rows of experts", pairs * hidden_size, out.len())?;
        self.choose_slots(layer, batch.topk)?;
        self.step += 1;
        self.deal_pairs(layer, &batch);
        for rank in 0..self.works.len() {
            self.ask(rank, layer, &batch)?;
        }
        for rank in 0..self.works.len() {
            if self.works[rank].is_some() {
                continue;
            }
            let work = self.answer_of(rank, layer)?;
            let rows = work.out.first::<A>(work.pairs.len() * hidden_size);
            for (&pair, row) in work.pairs.iter().zip(rows.chunks_exact(hidden_size)) {
                out[pair as usize * hidden_size..][..hidden_size].copy_from_slice(row);
            }
            self.works[rank] = Some(work);
        }
        Ok(())
    }

    /// Experts of the model to slots; counts the load.
    fn choose_slots(&mut self, layer: usize, topk: &TopK) -> Result<(), MoeError> {
        let LedLayer { chooser, load, .. } = &mut self.layers[layer];
        self.slots.clear();
        self.slots.extend_from_slice(&topk.ids);
        let slots = chooser.plan().placement.num_physical();
        let (expert_load, enabled) = load.counts(slots);
        let recorder = LoadRecorder { expert_load, enabled, unpadded_tokens: topk.tokens() };
        chooser.choose(&mut self.slots, topk.top_k, recorder)
    }

    /// Pairs to the ranks of their slots. A pair without a slot goes nowhere.
    fn deal_pairs<A>(&mut self, layer: usize, batch: &Batch<'_, A>) {
        let version = Some(self.layers[layer].version);
        for work in &mut self.works {
            let work = work.get_or_insert_default();
            (work.step, work.layer, work.version) = (self.step, layer, version);
            work.slots.clear();
            work.weights.clear();
            work.pairs.clear();
        }
        for (pair, &slot) in self.slots.iter().enumerate() {
            let Ok(slot) = usize::try_from(slot) else { continue };
            let rank = self.cluster.rank_of(slot);
            let Some(work) = &mut self.works[rank] else { continue };
            work.slots.push((slot - self.cluster.slots_of(rank).start) as i32);
            work.pairs.push(pair as u32);
            if batch.weights_on_input {
                work.weights.push(batch.topk.weights[pair]);
            }
        }
    }

    /// Sends a rank its rows, if it has any.
    fn ask<A: Element>(
        &mut self,
        rank: usize,
        layer: usize,
        batch: &Batch<'_, A>,
    ) -> Result<(), MoeError> {
        let has_rows = |work: &mut Box<Work>| !work.slots.is_empty();
        let Some(mut work) = self.works[rank].take_if(has_rows) else { return Ok(()) };
        let (hidden_size, top_k) = (self.layers[layer].hidden_size, batch.topk.top_k);
        let rows = work.rows.first_mut::<A>(work.pairs.len() * hidden_size);
        for (&pair, row) in work.pairs.iter().zip(rows.chunks_exact_mut(hidden_size)) {
            let token = pair as usize / top_k;
            row.copy_from_slice(&batch.hidden_states[token * hidden_size..][..hidden_size]);
        }
        let sent = self.transport.send(Port::Rank(rank), Message::Compute(work));
        sent.map_err(|Gone| self.rank_is_gone(rank, layer, COMPUTING))
    }

    /// Waits for the rows of this step.
    fn answer_of(&mut self, rank: usize, layer: usize) -> Result<Box<Work>, MoeError> {
        let until = Instant::now() + self.options.compute_timeout;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            match self.transport.receive(Port::Results(rank), Some(left)) {
                Ok(Some(Message::Computed(work, result))) if work.step == self.step => {
                    let failed = |why: MoeError| failure(rank, layer, COMPUTING, why.to_string());
                    return result.map(|()| work).map_err(failed);
                }
                // Late, from a step that has failed.
                Ok(Some(Message::Computed(..))) => {}
                Ok(Some(message)) => self.note(rank, message),
                Ok(None) => {
                    let seconds = self.options.compute_timeout.as_secs_f64();
                    let why = format!("no answer within {seconds} s");
                    return Err(failure(rank, layer, COMPUTING, why));
                }
                Err(Gone) => return Err(self.rank_is_gone(rank, layer, COMPUTING)),
            }
        }
    }

    /// The error of a rank whose ports are closed.
    pub fn rank_is_gone(&mut self, rank: usize, layer: usize, doing: &'static str) -> MoeError {
        failure(rank, layer, doing, self.ranks[rank].why_gone().to_owned())
    }

    /// The error of a rank whose mover's ports are closed.
    pub fn mover_is_gone(&mut self, rank: usize, layer: usize) -> MoeError {
        failure(rank, layer, MOVING, format!("mover: {}", self.movers[rank].why_gone()))
    }
}

/// What a rank does with rows.
pub(super) const COMPUTING: &str = "computing rows";

/// What a mover does.
pub(super) const MOVING: &str = "moving experts";

pub(super) fn failure(rank: usize, layer: usize, doing: &'static str, why: String) -> MoeError {
    MoeError::Rank { rank, layer, doing, why }
}

impl Drop for Leader {
    fn drop(&mut self) {
        for rank in 0..self.ranks.len() {
            self.transport.close(Port::Rank(rank));
            self.transport.close(Port::Mover(rank));
        }
        self.ranks.drain(..).chain(self.movers.drain(..)).for_each(Server::end);
    }
}
