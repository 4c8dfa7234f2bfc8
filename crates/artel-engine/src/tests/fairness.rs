//! Who is served when.

use super::*;

/// The order in which requests end.
fn order(mut engine: Engine, mut streams: Vec<EventStream>) -> Vec<usize> {
    let mut order = Vec::new();
    let mut answers: Vec<Answer> = streams.iter().map(|_| Answer::default()).collect();
    while engine.has_work() {
        engine.step();
        for (index, (answer, stream)) in answers.iter_mut().zip(&mut streams).enumerate() {
            let open = answer.end.is_none();
            answer.read(stream);
            if open && answer.end.is_some() {
                order.push(index);
            }
        }
    }
    order
}

#[test]
fn an_answer_flows_while_a_long_prompt_is_computed() {
    let config =
        EngineConfig { max_num_seqs: 4, max_num_batched_tokens: 20, ..EngineConfig::default() };
    let mut engine = engine(200, config);
    let mut streams = [1, 2].map(|seed| engine.submit(request(prompt(seed, 5), 100)).unwrap());
    let mut answers = [(); 2].map(|()| Answer::default());
    engine.step();
    let mut long = engine.submit(request(prompt(3, 1000), 5)).unwrap();
    let mut steps = 0;
    let mut first = long.try_recv();
    while first.is_none() {
        engine.step();
        steps += 1;
        assert!(engine.metrics().last_step.tokens <= 20);
        for (answer, stream) in answers.iter_mut().zip(&mut streams) {
            answer.read(stream);
            assert_eq!(answer.ids.len(), 1 + steps, "one token every step");
        }
        first = long.try_recv();
    }
    assert_eq!(steps, 1000usize.div_ceil(18), "the prompt gets all the rest");
    finish(&mut engine);
}

#[test]
fn chunks_change_no_answer() {
    for max_num_batched_tokens in [4, 5, 7, 16, 33, 512] {
        let config =
            EngineConfig { max_num_seqs: 4, max_num_batched_tokens, ..EngineConfig::default() };
        let mut engine = engine(100, config);
        let streams = [1, 15, 16, 17, 64, 100].map(|tokens| {
            let prompt = prompt(tokens as u32, tokens);
            (engine.submit(request(prompt.clone(), 20)).unwrap(), prompt)
        });
        finish(&mut engine);
        for (stream, prompt) in streams {
            assert_eq!(read(stream).ids, answer(&prompt, 20));
        }
    }
}

#[test]
fn first_come_first_served_within_a_priority() {
    let config = EngineConfig { max_num_seqs: 1, ..EngineConfig::default() };
    let mut engine = engine(100, config);
    let priorities = [0, 0, 5, -1, 0, -1];
    let streams = priorities
        .map(|priority| engine.submit(Request { priority, ..request(prompt(1, 8), 3) }).unwrap());
    assert_eq!(order(engine, streams.into()), [3, 5, 0, 1, 4, 2]);
}

#[test]
fn the_least_urgent_gives_way() {
    let mut engine = engine(8, EngineConfig::default());
    let streams = [1, 0, 2]
        .map(|priority| engine.submit(Request { priority, ..request(prompt(1, 20), 60) }).unwrap());
    let ids = order(engine, streams.into());
    assert_eq!(ids, [1, 0, 2]);
}

#[test]
fn a_full_queue_says_when_to_come_back() {
    let config = EngineConfig { max_num_seqs: 2, max_waiting: 3, ..EngineConfig::default() };
    let mut engine = engine(100, config);
    let submit = |engine: &mut Engine| engine.submit(request(prompt(1, 8), 4));
    let mut streams: Vec<_> = (0..3).map(|_| submit(&mut engine).unwrap()).collect();
    let Err(SubmitError::QueueFull { waiting: 3, limit: 3, retry_after }) = submit(&mut engine)
    else {
        panic!("the queue is full");
    };
    assert!((1..=60).contains(&retry_after.as_secs()));
    engine.step();
    streams.extend((0..2).map(|_| submit(&mut engine).unwrap()));
    assert!(submit(&mut engine).is_err());
    drop(streams.pop());
    engine.step();
    assert!(submit(&mut engine).is_ok(), "who is gone does not wait");
    finish(&mut engine);
    assert_eq!(engine.metrics().finished.length, 4);
}

#[test]
fn a_request_that_was_refused_takes_no_place() {
    let config = EngineConfig { max_waiting: 1, ..EngineConfig::default() };
    let mut engine = engine(100, config);
    for _ in 0..3 {
        let hot = SamplingParams { temperature: -1.0, ..SamplingParams::greedy() };
        let refused = Request { sampling: hot, ..request(prompt(1, 8), 4) };
        assert!(matches!(engine.submit(refused), Err(SubmitError::Invalid { .. })));
    }
    assert!(engine.submit(request(prompt(1, 8), 4)).is_ok());
}
