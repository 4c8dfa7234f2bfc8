use std::sync::Arc;
use std::time::Instant;

use super::accidents::{Accidents, Fate, Kind};
use super::*;

/// Two ranks over a transport with accidents, and what they should compute.
struct Scene {
    transport: Arc<Accidents>,
    group: RankGroup,
    layer: AnyMoeLayer,
    ws: AnyWorkspace,
    hidden: Vec<f32>,
    expected: Vec<f32>,
    began: Instant,
}

/// Waiting ends early enough that a test can tell it from hanging.
const LIMIT: Duration = Duration::from_secs(8);

fn scene(script: &[(Kind, Fate)]) -> Scene {
    let features = CpuFeatures::detect();
    let local = layer(Format::Fp8Block128, features, RouterWeight::OnOutput);
    let mut ws = workspace(features);
    let hidden = hidden_states(30);
    let expected = forward(&local, &mut ws, &hidden).unwrap();
    let cluster = Cluster::new(2, 8).unwrap();
    let plan = LayerPlan::equal(placement(0));
    let options = RankOptions {
        compute_timeout: Duration::from_millis(1500),
        move_timeout: Duration::from_millis(700),
        slots_per_switch: 100,
        ..options(features, 2)
    };
    let transport = Accidents::new(2, script.iter().copied());
    let layers = vec![local.for_ranks(plan, salted())];
    let group = RankGroup::start_over(transport.clone(), cluster, layers, options).unwrap();
    let layer = local.on_ranks(group.layer(0).unwrap()).unwrap();
    Scene { transport, group, layer, ws, hidden, expected, began: Instant::now() }
}

/// Ten experts in sixteen slots, turned by `turn`.
fn placement(turn: i32) -> Placement {
    let slots = (0..16).map(|slot| (slot * 7 + turn) % EXPERTS as i32).collect();
    Placement::new(slots, EXPERTS).unwrap()
}

impl Scene {
    fn compute(&mut self) -> Result<(), MoeError> {
        let out = forward(&self.layer, &mut self.ws, &self.hidden)?;
        assert_eq!(out, self.expected, "an answer, and a wrong one");
        Ok(())
    }

    fn try_move(&mut self) -> Vec<MoveEvent> {
        self.group.begin_move(0, LayerPlan::equal(placement(3))).unwrap();
        self.group.finish_moves(LIMIT).unwrap()
    }

    /// A move that is given up leaves everything as it was.
    fn aborted_move(&mut self) -> String {
        let before = self.group.layers()[0].version();
        let events = self.try_move();
        let [MoveEvent::Aborted { layer: 0, why }] = &events[..] else { panic!("{events:?}") };
        assert_eq!(self.group.layers()[0].version(), before);
        assert_eq!(self.group.layers()[0].plan().placement, placement(0));
        why.to_string()
    }

    fn next_move_succeeds(&mut self) {
        self.transport.let_go();
        let events = self.try_move();
        assert!(matches!(events[..], [MoveEvent::Moved { .. }]), "{events:?}");
        assert_eq!(self.group.layers()[0].plan().placement, placement(3));
        self.compute().unwrap();
    }

    fn was_quick(&self) {
        assert!(self.began.elapsed() < LIMIT, "{:?}", self.began.elapsed());
    }
}

fn check_words(message: &str, words: &[&str]) {
    assert!(words.iter().all(|word| message.contains(word)), "{message}");
}

#[test]
fn a_rank_that_dies_computing_is_named_and_the_rest_recovers() {
    let mut scene = scene(&[(Kind::Compute, Fate::Arrives), (Kind::Compute, Fate::Deadly)]);
    for _ in 0..2 {
        let why = scene.compute().unwrap_err().to_string();
        check_words(&why, &["rank 1", "computing", "layer 0", "panicked: killed by the test"]);
    }
    scene.group.recover(&[1], LIMIT).unwrap_err();
    scene.was_quick();
}

#[test]
fn a_group_with_room_goes_on_without_a_dead_rank() {
    let features = CpuFeatures::detect();
    let local = layer(Format::Fp8Tensor, features, RouterWeight::OnOutput);
    let mut ws = workspace(features);
    let hidden = hidden_states(30);
    let expected = forward(&local, &mut ws, &hidden).unwrap();
    let cluster = Cluster::new(3, 5).unwrap();
    let slots = (0..15).map(|slot| slot % EXPERTS as i32).collect();
    let plan = LayerPlan::equal(Placement::new(slots, EXPERTS).unwrap());
    let transport =
        Accidents::new(3, [(Kind::Compute, Fate::Arrives), (Kind::Compute, Fate::Deadly)]);
    let layers = vec![local.for_ranks(plan, salted())];
    let group = RankGroup::start_over(transport, cluster, layers, options(features, 3)).unwrap();
    let layer = local.on_ranks(group.layer(0).unwrap()).unwrap();
    let why = forward(&layer, &mut ws, &hidden).unwrap_err();
    assert!(matches!(why, MoeError::Rank { rank: 1, layer: 0, .. }), "{why}");
    // Rank 1 had the only copies of experts 5 to 9.
    group.recover(&[1], LIMIT).unwrap();
    assert_eq!(forward(&layer, &mut ws, &hidden).unwrap(), expected);
    assert_eq!(group.layers()[0].plan().placement.physical_to_logical()[5..10], [-1; 5]);
}

#[test]
fn an_answer_that_is_lost_fails_one_step() {
    for fate in [Fate::Lost, Fate::Late] {
        let mut scene = scene(&[(Kind::Computed, fate)]);
        let why = scene.compute().unwrap_err().to_string();
        check_words(&why, &["rank ", "computing", "no answer within 1.5 s"]);
        scene.transport.let_go();
        scene.compute().unwrap();
        scene.was_quick();
    }
}

#[test]
fn a_rank_that_dies_during_a_move_ends_the_move() {
    let mut scene = scene(&[(Kind::Expert, Fate::Lost), (Kind::Compute, Fate::Deadly)]);
    scene.group.begin_move(0, LayerPlan::equal(placement(3))).unwrap();
    std::thread::sleep(Duration::from_millis(100));
    let why = scene.compute().unwrap_err().to_string();
    check_words(&why, &["rank 0", "panicked"]);
    let events = scene.group.finish_moves(LIMIT).unwrap();
    let [MoveEvent::Aborted { layer: 0, why }] = &events[..] else { panic!("{events:?}") };
    check_words(&why.to_string(), &["rank 0", "moving experts", "panicked: killed by the test"]);
    scene.was_quick();
}

#[test]
fn a_mover_that_dies_leaves_its_rank_computing() {
    let mut scene = scene(&[(Kind::Expert, Fate::Deadly)]);
    let why = scene.aborted_move();
    check_words(&why, &["moving experts", "mover: its thread panicked: killed by the test"]);
    scene.compute().unwrap();
    let why = scene.group.begin_move(0, LayerPlan::equal(placement(3))).unwrap_err();
    check_words(&why.to_string(), &["mover"]);
    assert!(!scene.group.is_moving(0));
    scene.compute().unwrap();
    scene.was_quick();
}

#[test]
fn an_expert_that_does_not_arrive_is_named_and_the_next_move_works() {
    for fate in [Fate::Lost, Fate::Late] {
        let mut scene = scene(&[(Kind::Expert, fate)]);
        let why = scene.aborted_move();
        check_words(&why, &["nothing has happened for 0.7 s", "expert ", "has not reached rank"]);
        scene.compute().unwrap();
        scene.next_move_succeeds();
        scene.was_quick();
    }
}

#[test]
fn a_damaged_expert_is_never_used() {
    let mut scene = scene(&[(Kind::Expert, Fate::Damaged)]);
    let why = scene.aborted_move();
    check_words(&why, &["checksum of an expert", "of expert ", "as rank "]);
    scene.compute().unwrap();
    scene.next_move_succeeds();
}

#[test]
fn reports_and_orders_that_are_lost_end_the_move() {
    for (kind, fate) in
        [(Kind::Staged, Fate::Lost), (Kind::Staged, Fate::Late), (Kind::Stage, Fate::Lost)]
    {
        let mut scene = scene(&[(kind, fate)]);
        check_words(&scene.aborted_move(), &["rank ", "nothing has happened"]);
        scene.compute().unwrap();
        scene.next_move_succeeds();
        scene.was_quick();
    }
}

#[test]
fn a_rank_that_has_not_switched_refuses_to_compute() {
    let mut scene = scene(&[(Kind::Switch, Fate::Lost)]);
    let events = scene.try_move();
    assert!(matches!(events[..], [MoveEvent::Aborted { .. }]), "{events:?}");
    let why = scene.compute().unwrap_err().to_string();
    check_words(&why, &["rank 0", "version of a placement is 1 ("]);
    scene.was_quick();
}

#[test]
fn impossible_moves_are_refused_and_change_nothing() {
    let mut scene = scene(&[]);
    let begin = |scene: &Scene, slots: Vec<i32>, experts| {
        let plan = LayerPlan::equal(Placement::new(slots, experts).unwrap());
        scene.group.begin_move(0, plan).unwrap_err().to_string()
    };
    check_words(&begin(&scene, (0..10).collect(), 10), &["slots of a placement"]);
    let nine = (0..16).map(|slot| slot % 9).collect();
    check_words(&begin(&scene, nine, 9), &["experts of a placement"]);
    assert!(scene.group.begin_move(1, LayerPlan::equal(placement(3))).is_err());
    scene.group.begin_move(0, LayerPlan::equal(placement(3))).unwrap();
    let twice = scene.group.begin_move(0, LayerPlan::equal(placement(4))).unwrap_err();
    check_words(&twice.to_string(), &["layer to move", "not moving"]);
    scene.group.finish_moves(LIMIT).unwrap();
    scene.compute().unwrap();
}

#[test]
fn layers_and_ranks_that_do_not_belong_together_are_refused() {
    let features = CpuFeatures::detect();
    let local = layer(Format::F32, features, RouterWeight::OnOutput);
    let start = |slots: usize, options: RankOptions| {
        let cluster = Cluster::new(2, slots).unwrap();
        let layers = vec![local.for_ranks(LayerPlan::equal(placement(0)), salted())];
        RankGroup::start(cluster, layers, options)
    };
    assert!(start(7, options(features, 2)).is_err());
    assert!(start(8, RankOptions { threads_per_rank: 0, ..options(features, 2) }).is_err());
    assert!(start(8, RankOptions { slots_per_switch: 0, ..options(features, 2) }).is_err());
    let group = start(8, options(features, 2)).unwrap();
    let other = layer(Format::F16, features, RouterWeight::OnOutput);
    let why = other.on_ranks(group.layer(0).unwrap()).unwrap_err().to_string();
    check_words(&why, &["layer on ranks is f32"]);
    assert!(group.layer(1).is_err());
}
