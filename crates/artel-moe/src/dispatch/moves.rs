//! The leader's side of moves: orders, what movers report, and the switch.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::choice::Chooser;
use super::leader::{COMPUTING, Leader, LedLayer, MOVING, failure};
use super::message::Outgoing;
use super::{CopyChoice, Gone, Message, PlacementVersion, Port, Report, StageOrder};
use crate::MoeError;
use crate::eplb::movement::{self, MovePlan, Transfer};
use crate::eplb::{Cluster, LayerPlan, Placement};

/// What became of a move.
#[derive(Debug, Clone, PartialEq)]
pub enum MoveEvent {
    /// All slots hold what the plan wanted, and its shares are in force.
    Moved {
        /// Which layer.
        layer: usize,
        /// Slots that changed.
        slots: usize,
        /// Bytes that went from one rank to another.
        bytes: usize,
        /// From the beginning of the move to the last switch.
        took: Duration,
    },
    /// The move was given up. The placement before it, or one on the way, is in force.
    Aborted {
        /// Which layer.
        layer: usize,
        /// What went wrong.
        why: MoeError,
    },
}

/// A layer whose experts move.
#[derive(Debug)]
pub(super) struct Move {
    /// What comes after the current stage, in order.
    stages: VecDeque<LayerPlan>,
    current: Stage,
    started: Instant,
    slots: usize,
    bytes: usize,
}

/// One step on the way: slots that change together.
#[derive(Debug)]
struct Stage {
    next: Chooser,
    version: PlacementVersion,
    /// Transfers that wait for those before them to arrive.
    rounds: VecDeque<Vec<Transfer>>,
    /// Transfers that were ordered and have not arrived.
    under_way: Vec<Transfer>,
    /// Ranks that have not staged, or after the switch not switched.
    waiting_for: Vec<usize>,
    switched: bool,
    progress: Instant,
}

impl Stage {
    fn is_ready(&self) -> bool {
        !self.switched && self.waiting_for.is_empty()
    }

    /// What is waited for when nothing has happened for `limit`.
    fn is_stuck(&self, layer: usize, limit: Duration) -> Option<MoeError> {
        if self.progress.elapsed() < limit {
            return None;
        }
        let rank = *self.waiting_for.first()?;
        let mut why = format!("nothing has happened for {} s", limit.as_secs_f64());
        for Transfer { expert, from, to, .. } in &self.under_way {
            why += &format!(", expert {expert} of rank {from} has not reached rank {to}");
        }
        Some(failure(rank, layer, MOVING, why))
    }
}

impl Leader {
    /// See [`RankGroup::begin_move`](super::RankGroup::begin_move).
    pub fn begin_move(&mut self, layer: usize, plan: LayerPlan) -> Result<(), MoeError> {
        if self.layers[layer].moving.is_some() {
            return Err(MoeError::config("layer to move", layer, "one that is not moving"));
        }
        let choice = self.layers[layer].chooser.choice();
        let last = Chooser::new(plan.clone(), choice, &self.cluster)?;
        let now = &self.layers[layer].chooser.plan().placement;
        // Slots of dead ranks are left at once: no placement on the way may use them.
        let slots_max = match self.cluster.check(now) {
            Ok(()) => self.options.slots_per_switch,
            Err(_) => usize::MAX,
        };
        let stages = movement::stages(now, &plan.placement, slots_max)?;
        if stages.is_empty() {
            self.layers[layer].chooser = last;
            let took = Duration::ZERO;
            self.events.push(MoveEvent::Moved { layer, slots: 0, bytes: 0, took });
            return Ok(());
        }
        let mut stages: VecDeque<_> = stages.into_iter().map(LayerPlan::equal).collect();
        stages.pop_back();
        stages.push_back(plan);
        let started = Instant::now();
        let current = self.begin_stage(layer, &mut stages)?;
        let moving = Move { stages, current, started, slots: 0, bytes: 0 };
        self.layers[layer].moving = Some(moving);
        self.send_round(layer);
        Ok(())
    }

    /// Orders all ranks to stage the first of `stages`, which it takes.
    fn begin_stage(
        &mut self,
        layer: usize,
        stages: &mut VecDeque<LayerPlan>,
    ) -> Result<Stage, MoeError> {
        let led = &mut self.layers[layer];
        let (now, choice) = (&led.chooser.plan().placement, led.chooser.choice());
        let Some(LayerPlan { placement, shares }) = stages.pop_front() else {
            return Err(MoeError::config("stages of a move", 0, "at least 1"));
        };
        let moves = movement::plan(now, &placement, &self.cluster)?;
        let placement = now.successor(placement)?;
        let next = Chooser::new(LayerPlan { placement, shares }, choice, &self.cluster)?;
        let placement = &next.plan().placement;
        led.tried += 1;
        let (from, to) =
            (led.version, PlacementVersion { number: led.tried, hash: placement.hash() });
        let orders: Vec<_> = orders(layer, (from, to), placement, &moves, &self.cluster).collect();
        for (rank, order) in orders {
            let sent = self.transport.send(Port::Mover(rank), Message::Stage(Box::new(order)));
            if sent == Err(Gone) {
                let why = self.mover_is_gone(rank, layer);
                self.tell_movers(layer, to);
                return Err(why);
            }
        }
        Ok(Stage {
            next,
            version: to,
            rounds: match self.options.in_rounds {
                true => movement::rounds(moves).into(),
                false => [moves.transfers].into(),
            },
            under_way: Vec::new(),
            waiting_for: self.cluster.living().collect(),
            switched: false,
            progress: Instant::now(),
        })
    }

    /// Orders the transfers of the next round, if none of the last is under way.
    fn send_round(&mut self, layer: usize) {
        let Some(moving) = &mut self.layers[layer].moving else { return };
        let stage = &mut moving.current;
        if !stage.under_way.is_empty() {
            return;
        }
        let Some(round) = stage.rounds.pop_front() else { return };
        let version = stage.version;
        stage.under_way.clone_from(&round);
        for sender in 0..self.cluster.ranks() {
            let first = self.cluster.slots_of(sender).start;
            let of_sender = round.iter().filter(|transfer| transfer.from == sender);
            let experts: Vec<Outgoing> = of_sender
                .map(|transfer| Outgoing {
                    expert: transfer.expert,
                    slot: transfer.from_slot - first,
                    to: transfer.to,
                })
                .collect();
            if experts.is_empty() {
                continue;
            }
            let message = Message::Send { layer, version, experts };
            if self.transport.send(Port::Mover(sender), message) == Err(Gone) {
                let why = self.mover_is_gone(sender, layer);
                return self.abort(layer, why);
            }
        }
    }

    /// See [`RankGroup::poll`](super::RankGroup::poll).
    pub fn poll(&mut self) -> Vec<MoveEvent> {
        for rank in self.cluster.living().collect::<Vec<_>>() {
            self.drain(rank);
        }
        for layer in 0..self.layers.len() {
            self.watch(layer);
        }
        std::mem::take(&mut self.events)
    }

    /// Takes what has arrived from a rank and its mover.
    fn drain(&mut self, rank: usize) {
        let now = Some(Duration::ZERO);
        loop {
            match self.transport.receive(Port::Reports(rank), now) {
                Ok(Some(message)) => self.note(rank, message),
                Ok(None) => break,
                Err(Gone) => {
                    self.movers[rank].why_gone();
                    break;
                }
            }
        }
        loop {
            match self.transport.receive(Port::Results(rank), now) {
                Ok(Some(message)) => self.note(rank, message),
                Ok(None) => break,
                Err(Gone) => {
                    self.ranks[rank].why_gone();
                    break;
                }
            }
        }
    }

    /// What a message means for the moves. Messages of moves that were given up mean nothing.
    pub fn note(&mut self, rank: usize, message: Message) {
        match message {
            Message::Report { layer, version, report } if self.is_current(layer, version) => {
                self.note_report(rank, layer, report);
            }
            Message::Switched { layer, version, result } if self.is_current(layer, version) => {
                match result {
                    Ok(()) => self.note_done(rank, layer),
                    Err(why) => {
                        let why = failure(rank, layer, "switching its slots", why.to_string());
                        self.give_up(layer, why);
                    }
                }
            }
            _ => {}
        }
    }

    fn is_current(&self, layer: usize, version: PlacementVersion) -> bool {
        let moving = self.layers.get(layer).and_then(|led| led.moving.as_ref());
        moving.is_some_and(|moving| moving.current.version == version)
    }

    fn note_report(&mut self, rank: usize, layer: usize, report: Report) {
        let LedLayer { moving: Some(moving), expert_bytes, .. } = &mut self.layers[layer] else {
            return;
        };
        moving.current.progress = Instant::now();
        match report {
            Report::Received { expert } => {
                let arrived =
                    |transfer: &Transfer| (transfer.to, transfer.expert) == (rank, expert);
                moving.current.under_way.retain(|transfer| !arrived(transfer));
                moving.bytes += *expert_bytes;
                self.send_round(layer);
            }
            Report::Staged => self.note_done(rank, layer),
            Report::Failed(why) => self.abort(layer, failure(rank, layer, MOVING, why.to_string())),
        }
    }

    /// A rank has staged, or switched; when it was the last to switch, the next stage begins.
    fn note_done(&mut self, rank: usize, layer: usize) {
        let Some(moving) = &mut self.layers[layer].moving else { return };
        let stage = &mut moving.current;
        stage.waiting_for.retain(|&waited| waited != rank);
        stage.progress = Instant::now();
        if !stage.switched || !stage.waiting_for.is_empty() {
            return;
        }
        let Some(mut moving) = self.layers[layer].moving.take() else { return };
        if moving.stages.is_empty() {
            let Move { slots, bytes, started, .. } = moving;
            self.events.push(MoveEvent::Moved { layer, slots, bytes, took: started.elapsed() });
            return;
        }
        match self.begin_stage(layer, &mut moving.stages) {
            Ok(stage) => {
                moving.current = stage;
                self.layers[layer].moving = Some(moving);
                self.send_round(layer);
            }
            Err(why) => self.events.push(MoveEvent::Aborted { layer, why }),
        }
    }

    /// See [`RankGroup::switch_ready`](super::RankGroup::switch_ready).
    pub fn switch_ready(&mut self) -> Result<usize, MoeError> {
        let mut result = Ok(());
        let mut switched = 0;
        for layer in 0..self.layers.len() {
            let is_ready = |moving: &Move| moving.current.is_ready();
            if !self.layers[layer].moving.as_ref().is_some_and(is_ready) {
                continue;
            }
            let version = self.layers[layer].switch(&self.cluster);
            switched += 1;
            for rank in self.cluster.living().collect::<Vec<_>>() {
                let message = Message::Switch { layer, version };
                if self.transport.send(Port::Rank(rank), message) == Err(Gone) {
                    result = Err(self.rank_is_gone(rank, layer, COMPUTING));
                }
            }
        }
        result.map(|()| switched)
    }

    /// Gives up a move that is stuck, or that somebody who is gone takes part in.
    fn watch(&mut self, layer: usize) {
        let Some(moving) = &self.layers[layer].moving else { return };
        let stage = &moving.current;
        let rank_gone = |&rank: &usize| {
            // Who has switched has done his part.
            self.ranks[rank].is_gone() && (!stage.switched || stage.waiting_for.contains(&rank))
        };
        let mover_gone = |&rank: &usize| !stage.switched && self.movers[rank].is_gone();
        let gone_rank = self.cluster.living().find(rank_gone);
        let gone_mover = self.cluster.living().find(mover_gone);
        let stuck = stage.is_stuck(layer, self.options.move_timeout);
        let why = match (gone_rank, gone_mover) {
            (Some(rank), _) => Some(self.rank_is_gone(rank, layer, MOVING)),
            (None, Some(rank)) => Some(self.mover_is_gone(rank, layer)),
            (None, None) => stuck,
        };
        why.into_iter().for_each(|why| self.abort(layer, why));
    }

    /// Ends a move before its switch: ranks forget what they have staged.
    fn abort(&mut self, layer: usize, why: MoeError) {
        let stage = self.layers[layer].moving.as_ref().map(|moving| &moving.current);
        if let Some(version) = stage.filter(|stage| !stage.switched).map(|stage| stage.version) {
            self.tell_movers(layer, version);
        }
        self.give_up(layer, why);
    }

    fn give_up(&mut self, layer: usize, why: MoeError) {
        if self.layers[layer].moving.take().is_some() {
            self.events.push(MoveEvent::Aborted { layer, why });
        }
    }

    /// See [`RankGroup::without`](super::RankGroup::without).
    pub fn without(&mut self, dead: &[usize]) -> Result<(), MoeError> {
        let cluster = self.cluster.clone().without(dead)?;
        for layer in 0..self.layers.len() {
            let Some(&rank) = dead.first().filter(|_| self.layers[layer].moving.is_some()) else {
                continue;
            };
            self.abort(layer, failure(rank, layer, MOVING, "it was given up".to_owned()));
        }
        self.cluster = cluster;
        Ok(())
    }

    fn tell_movers(&self, layer: usize, version: PlacementVersion) {
        for rank in self.cluster.living() {
            // A mover that is gone has nothing to forget.
            let _ = self.transport.send(Port::Mover(rank), Message::Abort { layer, version });
        }
    }
}

impl LedLayer {
    /// Changes how copies are chosen, now and under the placement to come.
    pub fn set_choice(&mut self, choice: CopyChoice, cluster: &Cluster) -> Result<(), MoeError> {
        let with_choice = |chooser: &Chooser| Chooser::new(chooser.plan().clone(), choice, cluster);
        let now = with_choice(&self.chooser)?;
        if let Some(moving) = &mut self.moving {
            moving.current.next = with_choice(&moving.current.next)?;
        }
        self.chooser = now;
        Ok(())
    }

    /// Puts the staged placement in force, and returns its version.
    fn switch(&mut self, cluster: &Cluster) -> PlacementVersion {
        let Some(moving) = &mut self.moving else { return self.version };
        let stage = &mut moving.current;
        stage.switched = true;
        stage.waiting_for = cluster.living().collect();
        stage.progress = Instant::now();
        let old = std::mem::replace(&mut self.chooser, stage.next.clone());
        let slots = |chooser: &Chooser| chooser.plan().placement.physical_to_logical().to_vec();
        let changed = slots(&old).into_iter().zip(slots(&self.chooser));
        moving.slots += changed.filter(|(old, new)| old != new).count();
        self.version = stage.version;
        self.version
    }
}

/// What each living rank has to do.
fn orders<'a>(
    layer: usize,
    (from, to): (PlacementVersion, PlacementVersion),
    placement: &'a Placement,
    moves: &'a MovePlan,
    cluster: &'a Cluster,
) -> impl Iterator<Item = (usize, StageOrder)> {
    let physical_to_logical: std::sync::Arc<[i32]> = placement.physical_to_logical().into();
    cluster.living().map(move |rank| {
        let slots = cluster.slots_of(rank);
        let copies = moves.copies.iter().filter(|copy| slots.contains(&copy.to_slot));
        let receives = moves.transfers.iter().filter(|transfer| transfer.to == rank);
        let local = |slot: &usize| slot - slots.start;
        let order = StageOrder {
            layer,
            from,
            to,
            physical_to_logical: physical_to_logical.clone(),
            num_logical: placement.num_logical(),
            copies: copies.map(|copy| (local(&copy.from_slot), local(&copy.to_slot))).collect(),
            reloads: moves
                .reloads
                .iter()
                .filter(|(_, to_slot)| slots.contains(to_slot))
                .map(|(expert, to_slot)| (*expert, local(to_slot)))
                .collect(),
            receives: receives
                .map(|transfer| (transfer.expert, transfer.to_slots.iter().map(local).collect()))
                .collect(),
        };
        (rank, order)
    })
}
