use std::num::NonZeroUsize;

use super::*;
use crate::eplb::{
    Cluster, LayerPlan, Placement, Shares,
    policy::{Balanced, Greedy, Resplit},
    trace::{TraceError, TraceHeader, TraceReader, TraceRecord, TraceShape, TraceWriter},
};

const GREEDY: Greedy = Greedy { groups: 1 };

fn number(value: usize) -> NonZeroUsize {
    NonZeroUsize::new(value).unwrap()
}

/// Steps of one source rank and one layer.
fn steps(loads: &[&[i32]]) -> Vec<Vec<TraceRecord>> {
    let record = |(step, counts): (usize, &&[i32])| {
        vec![TraceRecord { step: step as u64, source_rank: 0, counts: vec![counts.to_vec()] }]
    };
    loads.iter().enumerate().map(record).collect()
}

fn config(ranks: usize, slots: usize) -> ReplayConfig {
    let cluster = Cluster::new(ranks, slots).unwrap();
    ReplayConfig { source_ranks: 1, us_per_token: 1.0, ..ReplayConfig::new(cluster) }
}

fn run(loads: &[&[i32]], strategy: Strategy<'_>, config: &ReplayConfig) -> Replay {
    replay(steps(loads).into_iter().map(Ok), &strategy, config).unwrap()
}

#[test]
fn a_step_costs_what_the_slowest_rank_costs() {
    let still = Strategy { policy: None, rule: CopyRule::Hash };
    // Ranks have [6 + 2, 1 + 1].
    let replay = run(&[&[6, 2, 1, 1], &[0, 0, 0, 0]], still, &config(2, 2));
    let first = &replay.steps[0];
    assert_eq!((first.max_tokens, first.avg_tokens, first.lost_us), (8.0, 5.0, 3.0));
    assert_eq!((first.imbalance(), first.imbalance_worst), (1.6, 1.6));
    assert_eq!(first.activated_experts, 2.0);
    // Without tokens nothing is uneven.
    assert_eq!((replay.steps[1].imbalance(), replay.steps[1].lost_us), (1.0, 0.0));
    assert_eq!(replay.before, [[4.0, 1.0]]);
    assert_eq!(replay.watched, [[8.0, 2.0], [0.0, 0.0]]);
    // A rank of twice the speed has the time of half its load.
    let mut fast = config(2, 2);
    fast.cluster = fast.cluster.with_speeds(vec![4.0, 1.0]).unwrap();
    let replay = run(&[&[6, 2, 1, 1]], still, &fast);
    assert_eq!((replay.steps[0].max_tokens, replay.steps[0].imbalance()), (2.0, 1.0));
}

#[test]
fn maxima_are_taken_before_layers_are_added() {
    // Layer 0 burdens rank 0, layer 1 rank 1: the sums are even and every layer is not.
    let record =
        TraceRecord { step: 0, source_rank: 0, counts: vec![vec![4, 4, 0, 0], vec![0, 0, 4, 4]] };
    let still = Strategy { policy: None, rule: CopyRule::Hash };
    let replay = replay([Ok(vec![record])].into_iter(), &still, &config(2, 2)).unwrap();
    assert_eq!((replay.steps[0].max_tokens, replay.steps[0].avg_tokens), (16.0, 8.0));
}

#[test]
fn a_plan_moves_experts_and_says_what_it_moved() {
    let load: &[i32] = &[6, 2, 1, 1];
    let config = ReplayConfig {
        interval: number(4),
        window: number(10),
        bytes_per_expert: 100,
        bytes_per_second: 1e6,
        ..config(2, 2)
    };
    let greedy = Strategy { policy: Some(&GREEDY), rule: CopyRule::Hash };
    let replay = run(&[load; 7], greedy, &config);
    // The heaviest goes with the lightest: 6 + 1 and 2 + 1. One expert of each rank changes place.
    let imbalances: Vec<f64> = replay.steps.iter().map(StepReport::imbalance).collect();
    assert_eq!(imbalances, [1.6, 1.4, 1.4, 1.4, 1.4, 1.4, 1.4]);
    let ages: Vec<usize> = replay.steps.iter().map(|step| step.plan_age).collect();
    assert_eq!(ages, [0, 0, 1, 2, 3, 0, 1]);
    let moved: Vec<u64> = replay.steps.iter().map(|step| step.moved_bytes).collect();
    assert_eq!(moved, [0, 200, 0, 0, 0, 0, 0]);
    assert_eq!((replay.steps[1].moved_slots, replay.steps[5].moved_slots), (2, 0));
    let [first, second, third] = replay.windows.as_slice() else { panic!("{:?}", replay.windows) };
    assert_eq!((first.steps, second.steps, third.steps), (1, 4, 2));
    assert_eq!((second.first_step, second.planned_imbalance, second.imbalance), (1, 1.4, 1.4));
    // Each rank receives 100 bytes at a million a second.
    assert_eq!((second.moved_slots, second.moved_bytes, second.move_us), (2, 200, 100.0));
    assert_eq!((replay.settled, replay.before.len(), replay.after[0][0]), (1, 1, 7.0));
    let summary = replay.summary();
    assert_eq!((summary.steps, summary.plans, summary.imbalance), (6, 2, 1.4));
    assert_eq!((summary.moved_slots_per_plan, summary.lost_us_per_step), (1.0, 2.0));
}

#[test]
fn a_plan_sees_the_window_and_nothing_else() {
    let (early, late): (&[i32], &[i32]) = (&[9, 1, 1, 1], &[1, 1, 9, 1]);
    let loads = [early, early, early, early, late, late, late];
    let config =
        |window| ReplayConfig { interval: number(6), window: number(window), ..config(2, 2) };
    let greedy = Strategy { policy: Some(&GREEDY), rule: CopyRule::Hash };
    // Plans are due before steps 1 and 7, so the second serves what follows these loads.
    let with_next: Vec<&[i32]> = loads.into_iter().chain([late]).collect();
    let planned = |window| run(&with_next, greedy, &config(window)).plans[0].clone();
    let hot_rank = |plan: &LayerPlan, expert: i32| plan.placement.replicas(expert)[0] / 2;
    // Both hot experts count in the long window, only the later one in the short.
    let long = planned(7);
    assert_ne!(hot_rank(&long, 0), hot_rank(&long, 2));
    let load = |plan: &LayerPlan| plan.shares.slot_loads(&plan.placement, &[1.0, 1.0, 9.0, 1.0]);
    assert_eq!(crate::eplb::balance::imbalance(&load(&planned(3)), &config(3).cluster), 10.0 / 6.0);
}

#[test]
fn rules_for_copies_do_what_they_say() {
    let placement = Placement::new(vec![0, 1, 0, 2], 3).unwrap();
    let all_first = Shares::new(vec![1.0, 1.0, 0.0, 1.0], &placement).unwrap();
    let plan = LayerPlan { placement, shares: all_first };
    let config = ReplayConfig { initial: vec![plan], ..config(2, 2) };
    let slowest = |rule| {
        let strategy = Strategy { policy: None, rule };
        run(&[&[8, 6, 2]], strategy, &config).steps[0].clone()
    };
    // All 8 pairs beside the 6.
    assert_eq!(slowest(CopyRule::Shares).max_tokens, 14.0);
    // 2 beside the 6 and 6 beside the 2.
    assert_eq!(slowest(CopyRule::WaterFill).max_tokens, 8.0);
    assert_eq!(slowest(CopyRule::FewExperts).activated_experts, 2.0);
    // The source is rank 0, whose own copy stands beside the 6.
    assert_eq!(slowest(CopyRule::Nearest).max_tokens, 14.0);
    let hash = slowest(CopyRule::Hash).max_tokens;
    assert!((8.0..14.0).contains(&hash), "{hash}");
    for rule in ["hash", "shares", "water-fill", "nearest", "few-experts"] {
        assert_eq!(rule.parse::<CopyRule>().unwrap().to_string(), rule);
    }
    assert!("best".parse::<CopyRule>().unwrap_err().to_string().contains("water-fill"));
}

#[test]
fn shares_are_computed_between_plans_without_a_move() {
    // Expert 0 is on both ranks; beside it 1 is heavy at first and 2 later.
    let placement = Placement::new(vec![0, 1, 0, 2], 3).unwrap();
    let config = ReplayConfig {
        initial: vec![LayerPlan::equal(placement)],
        interval: number(100),
        window: number(1),
        resplit_interval: Some(number(1)),
        ..config(2, 2)
    };
    let resplit = Strategy { policy: Some(&Resplit), rule: CopyRule::Shares };
    let mut loads: Vec<&[i32]> = vec![&[800, 600, 200]; 26];
    loads.extend([&[800, 200, 600][..]; 3]);
    let replay = run(&loads, resplit, &config);
    let imbalance = |step: usize| replay.steps[step].imbalance();
    assert!(imbalance(0) > 1.15 && imbalance(25) < 1.08, "{} {}", imbalance(0), imbalance(25));
    // Step 26 is served by shares for the load before; 27 by shares for its own.
    assert!(imbalance(26) > 1.3 && imbalance(27) < 1.08, "{} {}", imbalance(26), imbalance(27));
    assert_eq!(replay.steps.iter().map(|step| step.moved_slots).sum::<usize>(), 0);
}

/// Simulated before with other code: 32 ranks, 288 slots, lognormal loads, 16 tokens a rank.
#[test]
fn realised_imbalance_is_that_of_other_simulations() {
    let shape = TraceShape { layers: 1, experts: 256, top_k: 8, source_ranks: 32 };
    let imbalance = |rule| {
        let load = "lognormal:1.0".parse().unwrap();
        let steps = Synthetic::new(load, shape, 16, 1).unwrap().take(160).map(Ok);
        let config = ReplayConfig {
            interval: number(320),
            window: number(80),
            ..ReplayConfig::new(Cluster::new(32, 9).unwrap())
        };
        let balanced = Balanced::default();
        let strategy = Strategy { policy: Some(&balanced), rule };
        replay(steps, &strategy, &config).unwrap().summary().imbalance
    };
    let (hash, water) = (imbalance(CopyRule::Hash), imbalance(CopyRule::WaterFill));
    assert!((1.15..1.22).contains(&hash), "{hash}");
    assert!((1.10..1.16).contains(&water), "{water}");
}

#[test]
fn the_same_input_gives_the_same_numbers() {
    let shape = TraceShape { layers: 3, experts: 16, top_k: 4, source_ranks: 4 };
    let replayed = |seed| {
        let load = "drift:0.3".parse().unwrap();
        let steps = Synthetic::new(load, shape, 8, seed).unwrap().correlated(0.5).unwrap();
        let config =
            ReplayConfig { interval: number(10), ..ReplayConfig::new(Cluster::new(4, 5).unwrap()) };
        let greedy = Strategy { policy: Some(&GREEDY), rule: CopyRule::Hash };
        replay(steps.take(40).map(Ok), &greedy, &config).unwrap()
    };
    assert_eq!(replayed(1).steps, replayed(1).steps);
    assert_ne!(replayed(1).steps, replayed(2).steps);
}

#[test]
fn synthetic_tokens_choose_each_expert_at_most_once() {
    let shape = TraceShape { layers: 2, experts: 8, top_k: 3, source_ranks: 2 };
    for load in ["uniform", "lognormal:1.0", "zipf:2.5", "drift:0.2", "zipf:16"] {
        let load: SyntheticLoad = load.parse().unwrap();
        for records in Synthetic::new(load, shape, 5, 3).unwrap().take(3) {
            assert_eq!(records.iter().map(|r| r.source_rank).collect::<Vec<_>>(), [0, 1]);
            for counts in records.iter().flat_map(|record| &record.counts) {
                assert_eq!(counts.iter().sum::<i32>(), 15);
                assert!(counts.iter().all(|count| (0..=5).contains(count)));
            }
        }
    }
}

#[test]
fn loads_drift_when_they_should() {
    let shape = TraceShape { layers: 1, experts: 4, top_k: 1, source_ranks: 1 };
    let synthetic = Synthetic::new("drift:1".parse().unwrap(), shape, 20_000, 3).unwrap();
    let every = std::num::NonZeroU32::new(2).unwrap();
    let steps: Vec<Vec<i32>> =
        synthetic.drifting_every(every).take(4).map(|step| step[0].counts[0].clone()).collect();
    let apart = |a: &[i32], b: &[i32]| a.iter().zip(b).map(|(a, b)| (a - b).abs()).sum::<i32>();
    assert!(apart(&steps[0], &steps[1]) < 1000 && apart(&steps[2], &steps[3]) < 1000);
    assert!(apart(&steps[1], &steps[2]) > 4000, "{steps:?}");
}

#[test]
fn texts_that_are_no_load_are_refused() {
    for text in ["", "zipf", "zipf:", "zipf:x", "zipf:-1", "zipf:NaN", "uniform:1", "drift:17"] {
        assert!(text.parse::<SyntheticLoad>().is_err(), "{text}");
    }
    let error = "lognorm:1".parse::<SyntheticLoad>().unwrap_err().to_string();
    assert!(error.contains("lognorm:1") && error.contains("lognormal:SIGMA"), "{error}");
    for text in ["uniform", "lognormal:0.5", "zipf:1", "drift:0.2"] {
        assert_eq!(text.parse::<SyntheticLoad>().unwrap().to_string(), text);
    }
    let shape = TraceShape { layers: 0, experts: 4, top_k: 1, source_ranks: 1 };
    assert!(Synthetic::new(SyntheticLoad::Uniform, shape, 1, 0).is_err());
}

#[test]
fn records_of_a_step_come_together_and_errors_last() {
    let shape = TraceShape { layers: 1, experts: 2, top_k: 1, source_ranks: 2 };
    let mut writer = TraceWriter::new(Vec::new(), TraceHeader::new(shape, "").unwrap()).unwrap();
    for (step, rank) in [(0, 0), (0, 1), (3, 1), (4, 0), (4, 1)] {
        writer.write(step, rank, &[vec![1, 0]]).unwrap();
    }
    let file = writer.into_inner();
    let sizes = |bytes: &[u8]| -> Vec<Option<usize>> {
        let reader = TraceReader::new(bytes).unwrap();
        by_step(reader).map(|step| step.ok().map(|records| records.len())).collect()
    };
    assert_eq!(sizes(&file), [Some(2), Some(1), Some(2)]);
    assert_eq!(sizes(&file[..file.len() - 1]), [Some(2), Some(1), Some(1), None]);
}

#[test]
fn impossible_replays_are_refused() {
    let still = Strategy { policy: None, rule: CopyRule::Hash };
    let refused = |loads: &[&[i32]], config: &ReplayConfig| {
        replay(steps(loads).into_iter().map(Ok), &still, config).unwrap_err().to_string()
    };
    let small = refused(&[&[1; 5]], &config(2, 2));
    assert!(small.contains("slots of all ranks is 4") && small.contains('5'), "{small}");
    assert!(refused(&[&[1; 4], &[1; 3]], &config(2, 2)).contains("experts of a step"));
    let free = ReplayConfig { us_per_token: f64::NAN, ..config(2, 2) };
    assert!(refused(&[&[1; 4]], &free).contains("us_per_token"));
    let stuck = ReplayConfig { bytes_per_second: 0.0, ..config(2, 2) };
    assert!(refused(&[&[1; 4]], &stuck).contains("above 0"));
    let plan = LayerPlan::equal(Placement::new(vec![0, 1, 2, 2], 3).unwrap());
    let other = ReplayConfig { initial: vec![plan], ..config(2, 2) };
    assert!(refused(&[&[1; 4]], &other).contains("experts of a plan"));
    // What the source says goes through, and no step is no error.
    let failing = [Err(TraceError::Io(std::io::Error::other("gone")))];
    assert!(replay(failing.into_iter(), &still, &config(2, 2)).is_err());
    let nothing = replay(std::iter::empty(), &still, &config(2, 2)).unwrap();
    assert_eq!((nothing.steps.len(), nothing.summary().imbalance), (0, 1.0));
}

#[test]
fn redundancy_pays_when_it_saves_more_than_it_moves() {
    // Four steps, two layers, and moves for them.
    let replayed = |lost_us, move_us| Replay {
        steps: vec![StepReport { lost_us, ..StepReport::default() }; 4],
        windows: vec![WindowReport::default(), WindowReport { move_us, ..WindowReport::default() }],
        plans: vec![LayerPlan::equal(Placement::initial(2, 0).unwrap()); 2],
        ..Replay::default()
    };
    let compared = |move_us| Redundancy::of(&replayed(1.0, move_us), &replayed(5.0, 4.0), 3, 100);
    let expected = Redundancy {
        saved_us_per_step: 4.0,
        move_us_per_step: 1.0,
        bytes_per_rank: 600,
        pays: true,
    };
    assert_eq!(compared(8.0), expected);
    assert_eq!((compared(24.0).move_us_per_step, compared(24.0).pays), (5.0, false));
}

#[test]
fn a_second_copy_of_a_hot_expert_is_worth_its_slot() {
    let load: &[i32] = &[1, 2, 12, 1];
    let lost = |slots| {
        let strategy = Strategy { policy: Some(&GREEDY), rule: CopyRule::WaterFill };
        let config = ReplayConfig { interval: number(4), ..config(2, slots) };
        run(&[load; 9], strategy, &config).summary().lost_us_per_step
    };
    // 12 + 1 beside 2 + 1, or 8 on both ranks.
    assert_eq!((lost(2), lost(3)), (5.0, 0.0));
}
