//! Blocks that are shared, taken away and given back change no answer.

use proptest::prelude::*;

use super::*;

/// One request of a random run.
#[derive(Debug, Clone)]
struct Case {
    /// Which of a few texts it begins with, and how far.
    text: u32,
    prompt: usize,
    max_tokens: usize,
    priority: i32,
    /// Step before which it comes.
    at: usize,
    /// Steps after which it is cancelled or its stream dropped.
    cancelled: Option<(usize, bool)>,
}

fn case() -> impl Strategy<Value = Case> {
    let cancelled = prop::option::weighted(0.3, (0..30usize, any::<bool>()));
    (0..3u32, 1..70usize, 1..40usize, -1..2i32, 0..40usize, cancelled).prop_map(
        |(text, prompt, max_tokens, priority, at, cancelled)| Case {
            text,
            prompt,
            max_tokens,
            priority,
            at,
            cancelled,
        },
    )
}

/// Runs the requests on a device and on the host, and checks every answer, whole or cut off.
fn run(blocks: usize, config: EngineConfig, cases: &[Case]) -> Metrics {
    run_on(engine_of_device(blocks, config), cases);
    run_on(engine(blocks, config), cases)
}

fn run_on(mut engine: Engine, cases: &[Case]) -> Metrics {
    let mut open: Vec<(&Case, EventStream, Answer)> = Vec::new();
    let (mut step, mut submitted) = (0, 0);
    while submitted < cases.len() || engine.has_work() {
        for case in cases.iter().filter(|case| case.at == step) {
            let prompt = prompt(case.text, case.prompt);
            let request = Request { priority: case.priority, ..request(prompt, case.max_tokens) };
            open.push((case, engine.submit(request).unwrap(), Answer::default()));
            submitted += 1;
        }
        open.retain_mut(|(case, stream, answer)| {
            answer.read(stream);
            let due = case.cancelled.filter(|(steps, _)| case.at + steps == step);
            if let Some((_, by_id)) = due {
                engine.cancel(stream.id());
                return by_id;
            }
            true
        });
        engine.step();
        engine.check_integrity();
        step += 1;
    }
    for (case, mut stream, mut answer) in open {
        answer.read(&mut stream);
        let expected = answer_of(case);
        match answer.reason() {
            FinishReason::Cancelled => assert!(expected.starts_with(&answer.ids)),
            reason => assert_eq!((reason, &answer.ids), (&FinishReason::Length, &expected)),
        }
        assert_eq!(answer.end.unwrap().usage.completion_tokens, answer.ids.len());
    }
    let metrics = engine.metrics();
    assert_eq!((metrics.kv_blocks_used, metrics.running, metrics.waiting), (0, 0, 0));
    assert_eq!(metrics.finished.total(), cases.len() as u64);
    metrics
}

fn answer_of(case: &Case) -> Vec<u32> {
    answer(&prompt(case.text, case.prompt), case.max_tokens)
}

proptest! {
    #[test]
    fn nothing_is_lost_whatever_happens(
        cases in prop::collection::vec(case(), 1..24),
        (max_num_seqs, blocks) in (1..8usize, 7..40usize),
        extra_tokens in 0..40usize,
        prefix_caching in any::<bool>(),
    ) {
        let max_num_batched_tokens = max_num_seqs + extra_tokens;
        let config = EngineConfig {
            max_num_seqs,
            max_num_batched_tokens,
            prefix_caching,
            ..EngineConfig::default()
        };
        run(blocks, config, &cases);
    }
}

fn together(count: usize, prompt: usize, max_tokens: usize) -> Vec<Case> {
    let case = |index: usize| {
        let text = index as u32;
        Case { text, prompt, max_tokens, priority: 0, at: 0, cancelled: None }
    };
    (0..count).map(case).collect()
}

#[test]
fn preemption_changes_no_answer() {
    let cases = together(6, 20, 90);
    let plenty = run(60, EngineConfig::default(), &cases);
    let scarce = run(12, EngineConfig::default(), &cases);
    let without = EngineConfig { prefix_caching: false, ..EngineConfig::default() };
    let recomputed = run(12, without, &cases);
    assert_eq!(plenty.preemptions, 0);
    assert!(scarce.preemptions > 3 && recomputed.preemptions > 3);
    assert!(scarce.prefix_cache_hits > 0, "who comes back finds what is left of its blocks");
}

#[test]
fn a_known_beginning_is_not_computed_again() {
    let runner = HashRunner::default();
    let computed = Arc::clone(&runner.computed);
    let mut engine = Engine::new(Box::new(runner), tokenizer(), EngineConfig::default()).unwrap();
    let text = prompt(1, 100);
    let mut ask = |prompt: &[u32]| {
        let stream = engine.submit(request(prompt.to_vec(), 20)).unwrap();
        let before = *computed.lock().unwrap();
        finish(&mut engine);
        let found = read(stream);
        assert_eq!(found.ids, answer(prompt, 20));
        let usage = found.end.unwrap().usage;
        let done = *computed.lock().unwrap() - before;
        assert_eq!(done as usize, prompt.len() - usage.cached_tokens + 19);
        usage.cached_tokens
    };
    assert_eq!(ask(&text), 0);
    assert_eq!(ask(&text), 96);
    assert_eq!(ask(&text[..96]), 80, "one token at least is computed");
    assert_eq!(ask(&text[..40]), 32);
    let mut other = text.clone();
    other[20] = 5;
    assert_eq!(ask(&other), 16);
    // The next turn of a chat begins with the last one's answer.
    let next_turn = [&text[..], &answer(&text, 20), &[9, 9]].concat();
    assert_eq!(ask(&next_turn), 112);
    let metrics = engine.metrics();
    assert_eq!(metrics.prefix_cache_hits, 96 + 80 + 32 + 16 + 112);
    assert_eq!(metrics.prefix_cache_queries, 100 + 100 + 96 + 40 + 100 + 122);
}

#[test]
fn what_was_used_last_is_kept_longest() {
    let mut engine = engine(12, EngineConfig::default());
    let mut cached = |text: u32| {
        let stream = engine.submit(request(prompt(text, 65), 1)).unwrap();
        finish(&mut engine);
        read(stream).end.unwrap().usage.cached_tokens
    };
    assert_eq!([1, 2, 1].map(&mut cached), [0, 0, 64]);
    assert_eq!(cached(3), 0, "takes the blocks of the second text");
    assert_eq!([1, 3].map(&mut cached), [64, 64]);
    assert!(cached(2) < 64);
}

#[test]
fn without_prefix_caching_nothing_is_shared() {
    let config = EngineConfig { prefix_caching: false, ..EngineConfig::default() };
    let metrics = run(60, config, &[together(1, 60, 5), together(1, 60, 5)].concat());
    assert_eq!(metrics.prefix_cache_hits, 0);
}
