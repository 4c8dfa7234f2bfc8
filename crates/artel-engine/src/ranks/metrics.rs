use std::sync::Arc;
use std::time::Duration;

use artel_moe::eplb::{Balancedness, Cluster, LayerPlan, balance};

/// Where experts are and what has moved.
#[derive(Debug, Clone)]
pub struct RankMetrics {
    /// The ranks.
    pub cluster: Arc<Cluster>,
    /// Slots and shares in force, `[layers with experts]`.
    pub plans: Arc<Vec<LayerPlan>>,
    /// Whether experts are placed by their load.
    pub is_balanced: bool,
    /// Steps since the last rebalance, as the interval counts them.
    pub steps_since_rebalance: usize,
    /// Plans made so far.
    pub rebalances: u64,
    /// Layers that wait for their experts or are receiving them.
    pub layers_to_move: usize,
    /// Layers whose moves ended.
    pub moves: u64,
    /// Moves that were given up; the placement before them stayed.
    pub failed_moves: u64,
    /// Slots that got another expert.
    pub moved_slots: u64,
    /// Bytes that went from one rank to another.
    pub moved_bytes: u64,
    /// Time of all moves, from their begin to their switch.
    pub move_time: Duration,
    /// Ranks that were given up.
    pub lost_ranks: u64,
    /// How even the latest step that was logged was.
    pub balancedness: Option<Balancedness>,
}

impl RankMetrics {
    pub(super) fn new(cluster: Cluster, plans: Vec<LayerPlan>) -> Self {
        Self {
            cluster: Arc::new(cluster),
            plans: Arc::new(plans),
            is_balanced: false,
            steps_since_rebalance: 0,
            rebalances: 0,
            layers_to_move: 0,
            moves: 0,
            failed_moves: 0,
            moved_slots: 0,
            moved_bytes: 0,
            move_time: Duration::ZERO,
            lost_ranks: 0,
            balancedness: None,
        }
    }

    /// Tokens of each rank, `[layers][ranks]`, when experts had these, `[layers][L]`, and copies
    /// share as they do now.
    pub fn rank_loads(&self, expert_tokens: &[Vec<u64>]) -> Vec<Vec<f64>> {
        let of_layer = |(plan, tokens): (&LayerPlan, &Vec<u64>)| {
            let load: Vec<f64> = tokens.iter().map(|&tokens| tokens as f64).collect();
            let slots = plan.shares.slot_loads(&plan.placement, &load);
            balance::rank_loads(&slots, &self.cluster)
        };
        self.plans.iter().zip(expert_tokens).map(of_layer).collect()
    }

    /// Time of the slowest rank over a perfect split, `[layers]`, likewise; 1 without tokens.
    pub fn imbalances(&self, expert_tokens: &[Vec<u64>]) -> Vec<f64> {
        let of_layer = |(plan, tokens): (&LayerPlan, &Vec<u64>)| {
            let load: Vec<f64> = tokens.iter().map(|&tokens| tokens as f64).collect();
            balance::imbalance_of(plan, &load, &self.cluster)
        };
        self.plans.iter().zip(expert_tokens).map(of_layer).collect()
    }
}
