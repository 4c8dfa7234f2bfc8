use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use artel_device::cpu::CpuFeatures;
use rayon::ThreadPoolBuilder;

use super::choice::Chooser;
use super::leader::{Batch, Leader, LedLayer};
use super::mover::Mover;
use super::rank::Rank;
use super::slots::{CpuSlots, Held, LayerOfRank, RankSlots};
use super::threads::Server;
use super::{
    CopyChoice, MoveEvent, PlacementVersion, Port, RankOptions, ThreadTransport, Transport,
};
use crate::MoeError;
use crate::config::{MoeConfig, Parallelism};
use crate::eplb::policy;
use crate::eplb::{Cluster, ExpertLoad, LayerPlan, RecordFlag};
use crate::quant::{Element, Format, each_format};
use crate::weights::AnyExperts;

/// One layer as ranks are given it.
#[derive(Debug, Clone)]
pub struct RankedLayer {
    /// What it computes, on one rank.
    pub config: MoeConfig,
    /// Its experts, each once, as the checkpoint has them.
    pub experts: AnyExperts,
    /// Which slot begins with which expert, and the shares of copies.
    pub plan: LayerPlan,
    /// How a copy is chosen.
    pub choice: CopyChoice,
}

/// Ranks that are threads of this process, seen from the thread that leads them. They end when the
/// group and all its layers are dropped.
#[derive(Debug)]
pub struct RankGroup {
    cluster: Cluster,
    layers: Vec<ExpertParallel>,
    leader: Arc<Mutex<Leader>>,
    /// What tests look into: the layers of each rank.
    #[cfg(test)]
    pub(super) held: Vec<Arc<[LayerOfRank]>>,
}

/// One layer on the ranks: what [`AnyMoeLayer::on_ranks`](crate::layer::AnyMoeLayer::on_ranks) takes.
#[derive(Debug, Clone)]
pub struct ExpertParallel {
    leader: Arc<Mutex<Leader>>,
    layer: usize,
    config: MoeConfig,
    format: Format,
}

/// A panic of the leader leaves numbers of steps and moves, each of which is whole.
fn lock(leader: &Mutex<Leader>) -> MutexGuard<'_, Leader> {
    leader.lock().unwrap_or_else(PoisonError::into_inner)
}

impl RankGroup {
    /// Starts the ranks of `cluster` with the experts of all layers. Slots share the bytes of the
    /// experts that are given; nothing is copied.
    ///
    /// # Errors
    /// [`MoeError`] when placements are not of these ranks and experts, layers are spread already, or
    /// threads do not start.
    pub fn start(
        cluster: Cluster,
        layers: Vec<RankedLayer>,
        options: RankOptions,
    ) -> Result<Self, MoeError> {
        let transport = Arc::new(ThreadTransport::new(cluster.ranks()));
        Self::start_over(transport, cluster, layers, options)
    }

    /// As [`RankGroup::start`], with messages carried by `transport`.
    ///
    /// # Errors
    /// As [`RankGroup::start`].
    pub fn start_over(
        transport: Arc<dyn Transport>,
        cluster: Cluster,
        layers: Vec<RankedLayer>,
        options: RankOptions,
    ) -> Result<Self, MoeError> {
        options.check()?;
        layers.iter().try_for_each(|layer| layer.check(&cluster))?;
        let mut leader = Leader {
            cluster: cluster.clone(),
            options: options.clone(),
            transport: Arc::clone(&transport),
            ranks: Vec::new(),
            movers: Vec::new(),
            layers: Vec::new(),
            events: Vec::new(),
            step: 0,
            works: (0..cluster.ranks()).map(|_| None).collect(),
            slots: Vec::new(),
        };
        #[cfg(test)]
        let mut all_held = Vec::new();
        for rank in 0..cluster.ranks() {
            let held = layers.iter().map(|layer| layer.of_rank(rank, &cluster, options.features));
            let held: Arc<[LayerOfRank]> = held.collect::<Result<Vec<_>, _>>()?.into();
            leader.ranks.push(start_rank(rank, &held, &transport, options.threads_per_rank)?);
            leader.movers.push(start_mover(rank, &held, &transport)?);
            #[cfg(test)]
            all_held.push(held);
        }
        let led = layers.iter().map(|layer| layer.led(&cluster));
        leader.layers = led.collect::<Result<_, _>>()?;
        let leader = Arc::new(Mutex::new(leader));
        let handle = |(layer, ranked): (usize, RankedLayer)| ExpertParallel {
            leader: Arc::clone(&leader),
            layer,
            config: ranked.config.with_biases(ranked.experts.has_biases()),
            format: ranked.experts.format(),
        };
        let layers = layers.into_iter().enumerate().map(handle).collect();
        Ok(Self {
            cluster,
            layers,
            leader,
            #[cfg(test)]
            held: all_held,
        })
    }

    /// The ranks, as they were started.
    pub fn cluster(&self) -> &Cluster {
        &self.cluster
    }

    /// The ranks without those that were given up.
    pub fn living(&self) -> Cluster {
        lock(&self.leader).cluster.clone()
    }

    /// All layers.
    pub fn layers(&self) -> &[ExpertParallel] {
        &self.layers
    }

    /// One layer.
    ///
    /// # Errors
    /// [`MoeError::Config`] for a layer that is not there.
    pub fn layer(&self, layer: usize) -> Result<ExpertParallel, MoeError> {
        let allowed = || MoeError::config("layer", layer, format!("below {}", self.layers.len()));
        self.layers.get(layer).cloned().ok_or_else(allowed)
    }

    /// Begins to move the experts of a layer to where `plan` wants them. Ranks go on computing with
    /// the placement that is in force.
    ///
    /// # Errors
    /// [`MoeError`] when the layer is moving already, the plan is not of these ranks and experts, or a
    /// mover is gone.
    pub fn begin_move(&self, layer: usize, plan: LayerPlan) -> Result<(), MoeError> {
        self.layer(layer)?;
        lock(&self.leader).begin_move(layer, plan)
    }

    /// Takes what ranks have reported about moves, gives up those that are stuck, and tells which have
    /// ended. Never waits; to be called between steps.
    pub fn poll(&self) -> Vec<MoveEvent> {
        lock(&self.leader).poll()
    }

    /// Switches all layers whose experts have arrived to their new placement, and returns how many
    /// there were; to be called between steps.
    ///
    /// # Errors
    /// [`MoeError::Rank`] when a rank is gone; the others have switched.
    pub fn switch_ready(&self) -> Result<usize, MoeError> {
        lock(&self.leader).switch_ready()
    }

    /// Whether the experts of a layer are moving.
    pub fn is_moving(&self, layer: usize) -> bool {
        lock(&self.leader).layers.get(layer).is_some_and(|led| led.moving.is_some())
    }

    /// Polls and switches until no layer is moving, and returns what became of the moves.
    ///
    /// # Errors
    /// As [`RankGroup::switch_ready`]; [`MoeError::Config`] when it takes longer than `limit`.
    pub fn finish_moves(&self, limit: Duration) -> Result<Vec<MoveEvent>, MoeError> {
        let until = Instant::now() + limit;
        let mut events = Vec::new();
        loop {
            events.extend(self.poll());
            self.switch_ready()?;
            let moving = (0..self.layers.len()).find(|&layer| self.is_moving(layer));
            match moving {
                None => break,
                Some(layer) if Instant::now() >= until => {
                    let allowed = format!("done within {} s", limit.as_secs_f64());
                    return Err(MoeError::config("move of layer", layer, allowed));
                }
                Some(_) => std::thread::sleep(Duration::from_micros(200)),
            }
        }
        events.extend(self.poll());
        Ok(events)
    }

    /// Goes on without some ranks: gives up all moves and wants nothing more of these ranks. Steps whose
    /// experts are in their slots fail until the layers have moved to a placement without them. Experts
    /// that only they had are then taken from where they were loaded.
    ///
    /// # Errors
    /// [`MoeError`] for a rank that does not exist, or when none is left.
    pub fn without(&self, dead: &[usize]) -> Result<(), MoeError> {
        lock(&self.leader).without(dead)
    }

    /// Goes on without some ranks, with every layer moved to a placement of the others: their slots are
    /// left, and an expert that is nowhere else replaces a copy of another. Waits until that is done.
    ///
    /// # Errors
    /// [`MoeError`] as of [`RankGroup::without`] and [`RankGroup::finish_moves`], for fewer living slots
    /// than experts, or with what made a move fail.
    pub fn recover(&self, dead: &[usize], limit: Duration) -> Result<(), MoeError> {
        self.without(dead)?;
        self.poll();
        let cluster = self.living();
        for layer in &self.layers {
            let now = layer.plan().placement;
            let load = vec![1.0; now.num_logical()];
            let plan = LayerPlan::equal(policy::rehome(&now, &load, &cluster)?);
            self.begin_move(layer.layer(), plan)?;
        }
        for event in self.finish_moves(limit)? {
            if let MoveEvent::Aborted { why, .. } = event {
                return Err(why);
            }
        }
        Ok(())
    }

    /// Records the load of all layers from now on whenever `flag` is on.
    pub fn follow(&self, flag: &RecordFlag) {
        lock(&self.leader).layers.iter_mut().for_each(|led| led.load.follow(flag));
    }
}

impl ExpertParallel {
    /// Number of the layer in its group.
    pub fn layer(&self) -> usize {
        self.layer
    }

    /// What the layer computes.
    pub fn config(&self) -> &MoeConfig {
        &self.config
    }

    /// Number of ranks.
    pub fn ranks(&self) -> usize {
        lock(&self.leader).cluster.ranks()
    }

    /// What their kernels use.
    pub fn features(&self) -> CpuFeatures {
        lock(&self.leader).options.features
    }

    /// Format of the experts.
    pub fn format(&self) -> Format {
        self.format
    }

    /// The placement and shares in force.
    pub fn plan(&self) -> LayerPlan {
        lock(&self.leader).layers[self.layer].chooser.plan().clone()
    }

    /// Which placement rows are computed by.
    pub fn version(&self) -> PlacementVersion {
        lock(&self.leader).layers[self.layer].version
    }

    /// Changes how a copy is chosen, from the next step on.
    ///
    /// # Errors
    /// [`MoeError`] when the placement is not of the ranks, which is checked before.
    pub fn set_choice(&self, choice: CopyChoice) -> Result<(), MoeError> {
        let leader = &mut *lock(&self.leader);
        leader.layers[self.layer].set_choice(choice, &leader.cluster)
    }

    /// Pairs of each slot since the last time, `[P]`, in steps that were recorded. To be taken before
    /// slots switch, since they would then mean other experts.
    pub fn take_load(&self) -> Vec<i32> {
        lock(&self.leader).layers[self.layer].load.take()
    }

    /// Bytes that one expert has when it moves.
    pub fn expert_bytes(&self) -> usize {
        lock(&self.leader).layers[self.layer].expert_bytes
    }

    /// Computes the row of every pair whose expert exists; `out` is `[T * K, H]`.
    pub(crate) fn compute<A: Element>(
        &self,
        batch: Batch<'_, A>,
        out: &mut [A],
    ) -> Result<(), MoeError> {
        lock(&self.leader).compute(self.layer, batch, out)
    }
}

impl RankedLayer {
    fn check(&self, cluster: &Cluster) -> Result<(), MoeError> {
        cluster.check(&self.plan.placement)?;
        let experts = self.config.shape().num_experts;
        MoeError::check_shape(
            "experts of a placement",
            experts,
            self.plan.placement.num_logical(),
        )?;
        let found = each_format!(AnyExperts, &self.experts, |weights| weights.experts());
        MoeError::check_shape("experts of a layer", experts, found)?;
        let parallelism = self.config.parallelism();
        if *parallelism != Parallelism::Single {
            let found = format!("{parallelism:?}");
            return Err(MoeError::config("parallelism of a layer for ranks", found, "Single"));
        }
        Ok(())
    }

    fn version(&self) -> PlacementVersion {
        PlacementVersion { number: 0, hash: self.plan.placement.hash() }
    }

    /// What a rank begins with. An empty slot has some expert's weights, which nobody asks for.
    fn of_rank(
        &self,
        rank: usize,
        cluster: &Cluster,
        features: CpuFeatures,
    ) -> Result<LayerOfRank, MoeError> {
        let experts = self.plan.placement.physical_to_logical()[cluster.slots_of(rank)].to_vec();
        let picked: Vec<usize> =
            experts.iter().map(|&expert| usize::try_from(expert).unwrap_or(0)).collect();
        let (config, features) = (self.config.clone(), features.with_invariant_rows());
        let slots: Arc<dyn RankSlots> = each_format!(AnyExperts, &self.experts, |weights| {
            let (weights, loaded) = (weights.pick(&picked)?, weights.clone());
            Arc::new(CpuSlots { config, features, weights, loaded })
        });
        Ok(LayerOfRank::new(Held { version: self.version(), experts, slots }))
    }

    /// What the leader begins with.
    fn led(&self, cluster: &Cluster) -> Result<LedLayer, MoeError> {
        let experts = &self.experts;
        Ok(LedLayer {
            hidden_size: self.config.shape().hidden_size,
            expert_bytes: each_format!(AnyExperts, experts, |w| w.expert(0).exported_bytes()),
            chooser: Chooser::new(self.plan.clone(), self.choice, cluster)?,
            version: self.version(),
            tried: 0,
            load: ExpertLoad::default(),
            moving: None,
        })
    }
}

fn start_rank(
    rank: usize,
    layers: &Arc<[LayerOfRank]>,
    transport: &Arc<dyn Transport>,
    threads: usize,
) -> Result<Server, MoeError> {
    let this = Rank { rank, layers: Arc::clone(layers), transport: Arc::clone(transport) };
    let serve = move || {
        // This thread is one of its own pool, so that a pool of one needs no second thread.
        let pool = ThreadPoolBuilder::new().num_threads(threads).use_current_thread().build();
        let _pool = pool.map_err(|why| format!("its {threads} threads did not start: {why}"))?;
        this.run();
        Ok(())
    };
    let ports = [Port::Rank(rank), Port::Results(rank)];
    Server::start(format!("artel-rank-{rank}"), Arc::clone(transport), ports, serve)
}

fn start_mover(
    rank: usize,
    layers: &Arc<[LayerOfRank]>,
    transport: &Arc<dyn Transport>,
) -> Result<Server, MoeError> {
    let (layers, carried) = (Arc::clone(layers), Arc::clone(transport));
    let mut this = Mover { rank, layers, transport: carried, orders: BTreeMap::new() };
    let serve = move || {
        this.run();
        Ok(())
    };
    let ports = [Port::Mover(rank), Port::Reports(rank)];
    Server::start(format!("artel-mover-{rank}"), Arc::clone(transport), ports, serve)
}
