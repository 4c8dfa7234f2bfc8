//! How evenly the replica rules load the ranks: the measurement behind the default.

use super::*;
use crate::eplb::{BatchSplit, Cluster, Placement, policy::Batch};
use crate::router::{
    TopK,
    simulator::{Simulator, SimulatorConfig, Workload},
};

const EXPERTS: usize = 256;
const TOP_K: usize = 8;
const STEPS: usize = 200;

struct Setting {
    ranks: usize,
    slots: usize,
    tokens_per_rank: usize,
}

/// Skewed popularity of the experts: lognormal with sigma 1, by quantiles.
fn lognormal_loads() -> Vec<f64> {
    // Tukey's lambda distribution comes within 0.01 of the normal quantile.
    let quantile = |expert: usize| {
        let p = (expert as f64 + 0.5) / EXPERTS as f64;
        (p.powf(0.135) - (1.0 - p).powf(0.135)) / 0.1975
    };
    (0..EXPERTS).map(|expert| quantile(expert * 37 % EXPERTS).exp()).collect()
}

/// Copies go to the expert with the most load a copy; then the heaviest copies go first, each to
/// the emptiest rank that has room (the greedy of DeepSeek's EPLB).
fn balanced_placement(loads: &[f64], cluster: &Setting) -> Placement {
    let mut copies = vec![1usize; EXPERTS];
    let load_a_copy = |copies: &[usize], expert: usize| loads[expert] / copies[expert] as f64;
    for _ in EXPERTS..cluster.slots {
        let by_load =
            |a: &usize, b: &usize| load_a_copy(&copies, *a).total_cmp(&load_a_copy(&copies, *b));
        let heaviest = (0..EXPERTS).max_by(by_load).unwrap();
        copies[heaviest] += 1;
    }
    let mut replicas: Vec<usize> =
        (0..EXPERTS).flat_map(|expert| vec![expert; copies[expert]]).collect();
    replicas.sort_by(|&a, &b| load_a_copy(&copies, b).total_cmp(&load_a_copy(&copies, a)));
    let mut ranks = vec![(0f64, Vec::new()); cluster.ranks];
    for expert in replicas {
        let room = ranks.iter_mut().filter(|r| r.1.len() < cluster.slots / cluster.ranks);
        let emptiest = room.min_by(|a, b| a.0.total_cmp(&b.0)).unwrap();
        emptiest.0 += load_a_copy(&copies, expert);
        emptiest.1.push(expert as i32);
    }
    Placement::new(ranks.into_iter().flat_map(|rank| rank.1).collect(), EXPERTS).unwrap()
}

fn table(placement: Placement) -> ReplicaTable {
    ReplicaTable::new(&LayerPlan::equal(placement)).unwrap()
}

/// Mean over steps of the most loaded rank over the mean rank. Every rank sends its own tokens,
/// whose ids `serve` replaces by slots.
fn imbalance(
    setting: &Setting,
    mut serve: impl FnMut(usize, &mut [i32], LoadRecorder<'_>) -> Result<(), MoeError>,
) -> f64 {
    let config = SimulatorConfig { num_experts: EXPERTS, top_k: TOP_K, seed: 1, layer: 0 };
    let workload = Workload::Popularity(lognormal_loads());
    let mut simulator = Simulator::new(workload, config).unwrap();
    let mut topk = TopK::default();
    let mut total = 0.0;
    for _ in 0..STEPS {
        let mut expert_load = vec![0; setting.slots];
        for rank in 0..setting.ranks {
            simulator.route(setting.tokens_per_rank, &mut topk);
            let recorder = LoadRecorder {
                expert_load: &mut expert_load,
                enabled: true,
                unpadded_tokens: setting.tokens_per_rank,
            };
            serve(rank, &mut topk.ids, recorder).unwrap();
        }
        let of_ranks = expert_load.chunks(setting.slots / setting.ranks);
        let max = of_ranks.map(|slots| slots.iter().sum::<i32>()).max().unwrap();
        let pairs = setting.ranks * setting.tokens_per_rank * TOP_K;
        total += f64::from(max) * setting.ranks as f64 / pairs as f64;
    }
    total / STEPS as f64
}

/// By a rule.
fn ruled(setting: &Setting, rule_of_rank: impl Fn(usize) -> ReplicaRule) -> f64 {
    let table = table(balanced_placement(&lognormal_loads(), setting));
    imbalance(setting, |rank, ids, recorder| {
        cpu::map_and_record(ids, TOP_K, &table, rule_of_rank(rank), recorder)
    })
}

/// By quotas that every rank computes of its own tokens.
fn split(setting: &Setting) -> f64 {
    let placement = balanced_placement(&lognormal_loads(), setting);
    let cluster = Cluster::of_slots(setting.slots, setting.ranks).unwrap();
    let of_rank = |rank| BatchSplit::new(&placement, &cluster, Batch::OfRank(rank), 0).unwrap();
    let mut splits: Vec<BatchSplit> = (0..setting.ranks).map(of_rank).collect();
    let table = table(placement);
    imbalance(setting, |rank, ids, recorder| {
        splits[rank].map_and_record(ids, TOP_K, &table, recorder)
    })
}

fn published_and_salted(cluster: Setting) -> (f64, f64) {
    let published = ruled(&cluster, |_| ReplicaRule::TokenHash);
    let salted = ruled(&cluster, |rank| ReplicaRule::Salted(ReplicaSalt::of_rank(rank, 0)));
    let Setting { ranks, slots, tokens_per_rank } = cluster;
    println!(
        "{ranks} ranks, {slots} slots, {tokens_per_rank} tokens a rank: \
         published {published:.3}, salted {salted:.3}"
    );
    (published, salted)
}

#[test]
fn one_token_a_rank_spreads_over_the_copies() {
    let cluster = |slots| Setting { ranks: 32, slots, tokens_per_rank: 1 };
    let (published, salted) = published_and_salted(cluster(288));
    assert!(published > 2.2 && salted < 1.9, "{published} {salted}");
    let (published, salted) = published_and_salted(cluster(384));
    assert!(published > 2.8 && salted < 1.9, "{published} {salted}");
}

#[test]
fn many_tokens_a_rank_are_as_even_as_with_the_published_rule() {
    let cluster = Setting { ranks: 32, slots: 288, tokens_per_rank: 16 };
    let (published, salted) = published_and_salted(cluster);
    assert!(salted < published && salted < 1.25, "{published} {salted}");
}

/// Also where a rank has fewer pairs than there are ranks and knows nothing of the others' tokens.
#[test]
fn quotas_of_every_rank_are_more_even_than_chance() {
    for (slots, tokens_per_rank, below) in [
        (288, 16, 1.17),
        (384, 16, 1.10),
        (288, 4, 1.36),
        (384, 4, 1.27),
        (288, 2, 1.52),
        (384, 2, 1.44),
        (288, 1, 1.77),
        (384, 1, 1.73),
    ] {
        let setting = Setting { ranks: 32, slots, tokens_per_rank };
        let salted = ruled(&setting, |rank| ReplicaRule::Salted(ReplicaSalt::of_rank(rank, 0)));
        let split = split(&setting);
        println!(
            "32 ranks, {slots} slots, {tokens_per_rank} tokens a rank: \
             salted {salted:.3}, quotas {split:.3}"
        );
        assert!(split < salted && split < below, "{split}, {salted} by chance");
    }
}

#[test]
fn few_tokens_of_many_ranks_do_not_meet_at_one_copy() {
    let table = table(Placement::new(vec![0; 4], 1).unwrap());
    for tokens_per_rank in 1..=4 {
        let load_of = |rule_of_rank: &dyn Fn(usize) -> ReplicaRule| {
            let mut expert_load = vec![0; 4];
            for rank in 0..32 {
                let recorder = LoadRecorder {
                    expert_load: &mut expert_load,
                    enabled: true,
                    unpadded_tokens: tokens_per_rank,
                };
                let mut ids = vec![0; tokens_per_rank];
                cpu::map_and_record(&mut ids, 1, &table, rule_of_rank(rank), recorder).unwrap();
            }
            expert_load.into_iter().max().unwrap() as usize
        };
        // A token index has one copy under the published rule, whichever rank it is on.
        assert!(load_of(&|_| ReplicaRule::TokenHash) >= 32);
        for rule in [ReplicaRule::Salted, ReplicaRule::Shares] {
            let salted = load_of(&|rank| rule(ReplicaSalt::of_rank(rank, 0)));
            let tokens = 32 * tokens_per_rank;
            assert!(salted <= 8 * tokens_per_rank + 8, "{salted} of {tokens} tokens");
        }
    }
}
