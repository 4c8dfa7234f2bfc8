//! Experts on ranks: nobody who reads answers can tell where they are, or that they move.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use artel_engine::*;
use artel_model::{Format, Model};
use artel_moe::MoeError;
use artel_moe::dispatch::{
    CopyChoice, Gone, Message, Port, RankGroup, RankOptions, ThreadTransport, Transport,
};
use artel_moe::eplb::map_and_record::{ReplicaRule, ReplicaSalt};
use artel_moe::eplb::{Cluster, EplbConfig, LayerPlan, LayerQuery, Placement, Policy};
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::Subject;

const REDUNDANT: usize = 8;
const EXPERTS: usize = 16;

/// Every plan is another shuffle.
#[derive(Debug, Default)]
struct Shuffle(AtomicU64);

impl Policy for Shuffle {
    fn name(&self) -> &'static str {
        "shuffle"
    }

    fn plan(&self, query: &LayerQuery<'_>) -> std::result::Result<LayerPlan, MoeError> {
        let mut random = ChaCha8Rng::seed_from_u64(self.0.fetch_add(1, Ordering::Relaxed));
        let experts = query.current.num_logical() as i32;
        let further = query.current.num_physical() as i32 - experts;
        let copies: Vec<i32> = (0..further).map(|_| random.random_range(0..experts)).collect();
        let mut slots: Vec<i32> = (0..experts).chain(copies).collect();
        slots.shuffle(&mut random);
        Ok(LayerPlan::equal(Placement::new(slots, experts as usize)?))
    }
}

impl Subject {
    /// Experts on so many ranks, initially in order.
    fn ranks(&self, model: &mut Model, ranks: usize) -> ExpertRanks {
        self.ranks_over(Arc::new(ThreadTransport::new(ranks)), model, ranks)
    }

    /// The same with messages carried by `transport`.
    fn ranks_over(
        &self,
        transport: Arc<dyn Transport>,
        model: &mut Model,
        ranks: usize,
    ) -> ExpertRanks {
        let cluster = Cluster::of_slots(EXPERTS + REDUNDANT, ranks).unwrap();
        let plan = LayerPlan::equal(Placement::initial(EXPERTS, REDUNDANT).unwrap());
        let plans = vec![plan; model.expert_layers().len()];
        let options = RankOptions {
            slots_per_switch: 12,
            threads_per_rank: 1,
            ..RankOptions::new(self.options.features, ranks)
        };
        let choice = match ranks {
            4 => CopyChoice::Quotas { memory_bound_below: 2 },
            _ => ReplicaRule::Shares(ReplicaSalt::of_replicated_tokens(0)).into(),
        };
        let layers = model.ranked_layers(plans, |_| choice).unwrap();
        let group = RankGroup::start_over(transport, cluster, layers, options).unwrap();
        model.use_ranks(&group).unwrap();
        ExpertRanks::new(group)
    }
}

#[test]
fn a_hundred_random_rebalances_change_no_bit_of_any_answer() {
    let config = EplbConfig {
        window_size: 1,
        step_interval: 1,
        num_redundant_experts: REDUNDANT,
        ..EplbConfig::default()
    };
    for format in Format::ALL {
        let subject = Subject::new(format);
        let alone = CpuRunner::new(Arc::new(subject.model()));
        let expected = subject.answers(&mut subject.engine(alone));
        for (count, use_async) in [(2, true), (4, false), (8, true)] {
            let mut model = subject.model();
            let ranks = subject.ranks(&mut model, count);
            let config = EplbConfig { use_async, ..config.clone() };
            let ranks = ranks.balanced_by(config, Arc::new(Shuffle::default())).unwrap();
            let mut engine = subject.engine(CpuRunner::new(Arc::new(model)).with_ranks(ranks));
            let case = format!("{format} on {count} ranks, beside steps: {use_async}");
            loop {
                assert!(subject.answers(&mut engine) == expected, "{case}: answers differ");
                let ranks = engine.metrics().ranks.expect("there are ranks");
                assert_eq!(ranks.failed_moves, 0, "{case}");
                // Beside steps every layer moves by itself.
                let done = if use_async { ranks.moves } else { ranks.rebalances };
                if done >= 100 {
                    assert!(ranks.moved_slots > 500 && ranks.moved_bytes > 0, "{case}");
                    break;
                }
            }
        }
    }
}

/// A rank dies as it takes its hundredth message.
#[derive(Debug)]
struct Deadly {
    inner: ThreadTransport,
    rank: usize,
    taken: AtomicU64,
}

impl Transport for Deadly {
    fn send(&self, to: Port, message: Message) -> std::result::Result<(), Gone> {
        self.inner.send(to, message)
    }

    fn receive(
        &self,
        at: Port,
        limit: Option<Duration>,
    ) -> std::result::Result<Option<Message>, Gone> {
        let message = self.inner.receive(at, limit)?;
        if matches!(at, Port::Rank(rank) if rank == self.rank) {
            assert!(self.taken.fetch_add(1, Ordering::Relaxed) != 100, "killed by the test");
        }
        Ok(message)
    }

    fn close(&self, at: Port) {
        self.inner.close(at);
    }
}

#[test]
fn answers_survive_the_death_of_a_rank() {
    let subject = Subject::new(Format::Bf16);
    let alone = CpuRunner::new(Arc::new(subject.model()));
    let expected = subject.answers(&mut subject.engine(alone));
    let config = EplbConfig {
        window_size: 4,
        step_interval: 4,
        num_redundant_experts: REDUNDANT,
        ..EplbConfig::default()
    };
    // Three ranks have 24 slots, and two of them still have 16.
    let mut model = subject.model();
    let inner = ThreadTransport::new(3);
    let deadly = Arc::new(Deadly { inner, rank: 1, taken: AtomicU64::new(0) });
    let ranks = subject.ranks_over(deadly, &mut model, 3).balanced(config).unwrap();
    let mut engine = subject.engine(CpuRunner::new(Arc::new(model)).with_ranks(ranks));
    assert!(subject.answers(&mut engine) == expected, "answers differ");
    let ranks = engine.metrics().ranks.expect("there are ranks");
    assert_eq!(ranks.lost_ranks, 1);
    assert_eq!(ranks.cluster.living().collect::<Vec<_>>(), [0, 2]);
    let rebalances = ranks.rebalances;
    assert!(subject.answers(&mut engine) == expected, "answers differ afterwards");
    assert!(engine.metrics().ranks.unwrap().rebalances > rebalances, "balancing goes on");
}
