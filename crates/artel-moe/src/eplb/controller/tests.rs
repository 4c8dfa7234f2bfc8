use proptest::prelude::*;

use super::*;

/// One layer of four experts on two ranks of three slots.
fn controller(config: EplbConfig) -> EplbController {
    let config = EplbConfig { num_redundant_experts: 2, ..config };
    let cluster = config.cluster(4, 2).unwrap();
    let placement = config.initial_placement(4).unwrap();
    EplbController::new(config, cluster, vec![placement]).unwrap()
}

fn config(window_size: usize, step_interval: usize) -> EplbConfig {
    EplbConfig { window_size, step_interval, use_async: false, ..EplbConfig::default() }
}

fn step(controller: &mut EplbController, kind: StepKind, loads: [i32; 6]) -> StepOutcome {
    let mut slot_loads = vec![loads.to_vec()];
    let outcome = controller.step(kind, &mut slot_loads).unwrap();
    assert_eq!(slot_loads, [[0; 6]], "the load of a step never counts for the next");
    assert_eq!(outcome.record_next, controller.record_flag().is_on());
    outcome
}

fn real(controller: &mut EplbController) -> StepOutcome {
    step(controller, StepKind::Real, [1, 0, 0, 0, 0, 0])
}

#[test]
fn the_first_rebalance_comes_after_a_quarter_of_the_interval() {
    for (interval, start) in [(3000, 2250), (100, 75), (7, 6), (4, 3), (3, 3), (1, 1)] {
        let mut controller = controller(config(10_000, interval));
        assert_eq!(controller.steps_since_rebalance(), start);
        let first = (1..).find(|_| real(&mut controller).rebalance.is_some());
        assert_eq!(first, Some((interval - start).max(1)), "interval {interval}");
        let second = (1..).find(|_| real(&mut controller).rebalance.is_some());
        assert_eq!(second, Some(interval));
    }
}

#[test]
fn the_last_steps_before_a_rebalance_are_recorded() {
    let mut controller = controller(config(10, 30));
    let mut recorded = Vec::new();
    for _ in 0..67 {
        // Was recorded, steps counted before it.
        recorded.push((controller.record_flag().is_on(), controller.steps_since_rebalance()));
        real(&mut controller);
    }
    for (recorded, step) in recorded {
        assert_eq!(recorded, 30 - step <= 10, "step {step}");
    }
    // The last ten of an interval, so ten tokens of expert 0.
    assert_eq!(controller.window().layer(0), [10, 0, 0, 0]);
}

#[test]
fn lines_of_the_log_are_recorded_too() {
    let logged =
        EplbConfig { log_balancedness: true, log_balancedness_interval: 20, ..config(3, 1000) };
    let mut controller = controller(logged);
    for _ in 0..400 {
        let before = controller.steps_since_rebalance();
        let near_log = (20 - before % 20) % 20 <= 3;
        assert_eq!(controller.record_flag().is_on(), near_log || 1000 - before <= 3);
        let outcome = real(&mut controller);
        assert_eq!(outcome.balancedness.is_some(), before.is_multiple_of(20), "step {before}");
    }
}

#[test]
fn balancedness_is_of_ranks_not_of_layers() {
    let config = EplbConfig { log_balancedness: true, ..config(5, 100) };
    let cluster = Cluster::new(4, 1).unwrap();
    let placement = Placement::initial(4, 0).unwrap();
    let mut controller = EplbController::new(config, cluster, vec![placement; 2]).unwrap();
    let mut loads = vec![vec![100, 0, 0, 0]; 2];
    let outcome = controller.step(StepKind::Real, &mut loads).unwrap();
    let balancedness = outcome.balancedness.unwrap();
    assert_eq!(balancedness.rank_loads, vec![vec![100.0, 0.0, 0.0, 0.0]; 2]);
    assert_eq!((balancedness.avg_tokens, balancedness.max_tokens), (50.0, 200.0));
    assert_eq!((balancedness.balancedness, balancedness.steps_until_rebalance), (0.25, 25));
    assert_eq!(
        balancedness.to_string(),
        "EPLB step 75: avg_tokens=50.00, max_tokens=200, balancedness=0.2500, \
         steps until the next rebalance: 25"
    );
}

#[test]
fn a_dummy_step_counts_but_its_load_does_not() {
    let logged = EplbConfig { log_balancedness: true, ..config(100, 4) };
    let mut controller = controller(logged);
    let outcome = step(&mut controller, StepKind::Dummy, [9; 6]);
    assert_eq!(outcome.balancedness.unwrap().balancedness, 0.0, "nobody computed anything");
    assert_eq!(outcome.rebalance, Some(vec![vec![0.0; 4]]), "ranks stay together");
    // Nor does it take a row of the window from a real step.
    for _ in 0..99 {
        step(&mut controller, StepKind::Dummy, [9; 6]);
        real(&mut controller);
    }
    assert_eq!(controller.window().layer(0), [99, 0, 0, 0]);
}

#[test]
fn a_dummy_step_leaves_the_load_of_others_alone() {
    let mut controller = controller(config(100, 8));
    real(&mut controller);
    let outcome = step(&mut controller, StepKind::Dummy, [0; 6]);
    assert_eq!(outcome.rebalance, Some(vec![vec![1.0, 0.0, 0.0, 0.0]]), "not zeros");
}

#[test]
fn a_profile_step_changes_nothing() {
    let mut controller = controller(config(100, 4));
    let outcome = step(&mut controller, StepKind::Profile, [9; 6]);
    assert_eq!(outcome, StepOutcome { record_next: true, ..StepOutcome::default() });
    assert_eq!(controller.steps_since_rebalance(), 3);
    assert_eq!(controller.window().layer(0), [0; 4]);
}

#[test]
fn an_asynchronous_rebalance_holds_the_next_one() {
    let mut controller = controller(EplbConfig { use_async: true, ..config(2, 4) });
    assert!(real(&mut controller).rebalance.is_some() && controller.is_moving());
    for step in 1..=9 {
        let outcome = real(&mut controller);
        assert_eq!(outcome.rebalance, None, "step {step}");
        assert_eq!(controller.steps_since_rebalance(), step, "the count goes on");
        // From two steps before the interval on, and for as long as it has to wait.
        assert_eq!(outcome.record_next, step >= 2);
    }
    controller.finish_rebalance();
    assert!(real(&mut controller).rebalance.is_some());
    assert_eq!(controller.steps_since_rebalance(), 0);
}

#[test]
fn a_rebalance_that_does_not_end_is_noticed() {
    let mut controller = controller(EplbConfig { use_async: true, ..config(2, 4) });
    real(&mut controller);
    assert_eq!(controller.stuck_for(), None, "it has a minute");
    controller.moving_since = Instant::now().checked_sub(Duration::from_secs(61));
    assert!(controller.stuck_for().unwrap() >= Duration::from_secs(60));
    controller.finish_rebalance();
    assert_eq!(controller.stuck_for(), None);
}

#[test]
fn shares_are_computed_between_rebalances() {
    let mut controller = controller(EplbConfig { resplit_interval: Some(5), ..config(2, 16) });
    let mut events = Vec::new();
    for step in 1..=20 {
        let outcome = real(&mut controller);
        assert!(outcome.rebalance.is_none() || outcome.resplit.is_none());
        events.extend(outcome.rebalance.map(|_| (step, "rebalance")));
        events.extend(outcome.resplit.map(|_| (step, "resplit")));
    }
    let resplits = [9, 14, 19].map(|step| (step, "resplit"));
    assert_eq!(events[0], (4, "rebalance"));
    assert_eq!(events[1..4], resplits);
    assert_eq!(events[4], (20, "rebalance"));
}

#[test]
fn without_a_policy_nothing_moves() {
    let mut controller = controller(EplbConfig { policy: PolicyName::None, ..config(2, 4) });
    assert!((0..20).all(|_| real(&mut controller).rebalance.is_none()));
    assert!(controller.window().layer(0)[0] == 2, "but load is recorded");
}

#[test]
fn load_follows_the_experts_when_they_move() {
    let mut controller = controller(config(100, 4));
    // Slots hold experts 0, 1, 2, 3, 0, 1 and then 3, 2, 1, 0, 3, 3.
    let first = step(&mut controller, StepKind::Real, [5, 1, 0, 2, 5, 1]);
    assert_eq!(first.rebalance, Some(vec![vec![10.0, 2.0, 0.0, 2.0]]));
    let next = Placement::new(vec![3, 2, 1, 0, 3, 3], 4).unwrap();
    assert_eq!(controller.commit(0, next).unwrap().version(), 1);
    let loads = [1, 0, 2, 10, 0, 1];
    let second = (0..4).find_map(|_| step(&mut controller, StepKind::Real, loads).rebalance);
    assert_eq!(second, Some(vec![vec![50.0, 10.0, 0.0, 10.0]]), "five times the same load");
}

#[test]
fn wrong_layers_are_refused() {
    let mut controller = controller(config(2, 4));
    let placement = |slots: &[i32], experts| Placement::new(slots.to_vec(), experts).unwrap();
    assert!(controller.commit(1, placement(&[0, 1, 2, 3, 0, 1], 4)).is_err());
    assert!(controller.commit(0, placement(&[0, 1, 2, 3], 4)).is_err());
    assert!(controller.commit(0, placement(&[0, 1, 2, 0, 1, 2], 3)).is_err());
    assert_eq!(controller.placements()[0].version(), 0);
    for mut loads in [vec![], vec![vec![0; 5]], vec![vec![0; 6]; 2]] {
        assert!(controller.step(StepKind::Real, &mut loads).is_err());
    }
    assert_eq!(controller.steps_since_rebalance(), 3, "a refused step does not count");
    let cluster = || Cluster::new(2, 3).unwrap();
    let new = |placements| EplbController::new(config(2, 4), cluster(), placements);
    assert!(new(vec![]).is_err());
    assert!(new(vec![placement(&[0, 1, 2, 3], 4)]).is_err());
    assert!(new(vec![placement(&[0, 1, 2, 0, 1, 2], 3), placement(&[0; 6], 1)]).is_err());
    let wrong = EplbConfig { step_interval: 0, ..config(2, 4) };
    assert!(EplbController::new(wrong, cluster(), vec![placement(&[0; 6], 1)]).is_err());
}

#[derive(Debug, Clone, Copy)]
enum Event {
    Step(StepKind, i32),
    Finish,
}

proptest! {
    /// The published step, written down a second time in its own words.
    #[test]
    fn any_run_follows_the_published_order(
        (window, interval, log, log_interval) in (1usize..6, 1usize..9, any::<bool>(), 1usize..5),
        use_async in any::<bool>(),
        events in prop::collection::vec(prop_oneof![
            6 => (0..50).prop_map(|load| Event::Step(StepKind::Real, load)),
            2 => (0..50).prop_map(|load| Event::Step(StepKind::Dummy, load)),
            1 => (0..50).prop_map(|load| Event::Step(StepKind::Profile, load)),
            2 => Just(Event::Finish),
        ], 0..60),
    ) {
        let mut controller = controller(EplbConfig {
            use_async,
            log_balancedness: log,
            log_balancedness_interval: log_interval,
            ..config(window, interval)
        });
        let records = |step: usize| {
            interval as i64 - step as i64 <= window as i64
                || log && (log_interval - step % log_interval) % log_interval <= window
        };
        let (mut step_now, mut rows, mut moving) = (interval - interval / 4, Vec::new(), false);
        for event in events {
            let Event::Step(kind, load) = event else {
                controller.finish_rebalance();
                moving = false;
                continue;
            };
            let outcome = step(&mut controller, kind, [load, 0, 0, 0, 0, 0]);
            if kind == StepKind::Profile {
                prop_assert_eq!((outcome.rebalance, outcome.balancedness), (None, None));
                continue;
            }
            let is_logged = log && step_now.is_multiple_of(log_interval);
            prop_assert_eq!(outcome.balancedness.is_some(), is_logged);
            if kind == StepKind::Real && records(step_now) {
                rows.push(load as u64);
            }
            step_now += 1;
            let mut rebalance = None;
            if step_now >= interval && !moving {
                step_now = 0;
                moving = use_async;
                let sum: u64 = rows[rows.len().saturating_sub(window)..].iter().sum();
                rebalance = Some(vec![vec![sum as f64, 0.0, 0.0, 0.0]]);
            }
            prop_assert_eq!(outcome.rebalance, rebalance);
            prop_assert_eq!(outcome.record_next, records(step_now));
            prop_assert_eq!(controller.steps_since_rebalance(), step_now);
        }
    }
}
