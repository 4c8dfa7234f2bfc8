//! What a request may ask for.

use super::*;

/// The same on the host and on a device.
fn alone(request: impl Fn() -> Request) -> Answer {
    let [host, device] = ENGINES.map(|engine| {
        let mut engine = engine(100, EngineConfig::default());
        let stream = engine.submit(request()).unwrap();
        finish(&mut engine);
        read(stream)
    });
    assert_eq!((&host.ids, &host.text), (&device.ids, &device.text));
    assert_eq!(host.reason(), device.reason());
    assert_eq!(host.end.as_ref().unwrap().usage, device.end.unwrap().usage);
    host
}

#[test]
fn without_max_tokens_the_context_is_filled() {
    let config = EngineConfig { max_model_len: 50, ..EngineConfig::default() };
    let mut engine = engine(100, config);
    let stream = engine.submit(Request::new(prompt(1, 20))).unwrap();
    finish(&mut engine);
    let found = read(stream);
    assert_eq!((found.ids.len(), found.reason()), (30, &FinishReason::Length));
    let too_long = engine.submit(Request::new(prompt(1, 50))).unwrap_err();
    let expected = SubmitError::PromptTooLong { prompt: 50, max_tokens: 1, context: 50 };
    assert_eq!(too_long, expected);
}

#[test]
fn an_answer_says_what_stopped_it() {
    let expected = answer(&prompt(1, 8), 40);
    let free = alone(|| request(prompt(1, 8), 40));
    let last = expected[25];
    let at = expected.iter().position(|&id| id == last).unwrap();

    let ended = alone(|| Request { end_tokens: vec![last], ..request(prompt(1, 8), 40) });
    assert_eq!((&ended.ids[..], ended.ids.len()), (&expected[..at], at));
    assert_eq!(ended.reason(), &FinishReason::Stop(StoppedBy::EndToken(last)));
    assert_eq!(ended.end.unwrap().usage.completion_tokens, at + 1);

    let stop_tokens = vec![last];
    let goes_on = || Request { ignore_eos: true, ..request(prompt(1, 8), 40) };
    let stopped = || Request { stop_tokens: stop_tokens.clone(), ..goes_on() };
    assert_eq!(alone(stopped).reason(), &FinishReason::Stop(StoppedBy::StopToken(last)));
    let ignored = || Request { end_tokens: vec![last], ..goes_on() };
    assert_eq!(alone(ignored).ids, expected);

    let string: String = free.text.chars().skip(20).take(3).collect();
    let stop_strings = vec![string.clone()];
    let stopped =
        alone(|| Request { stop_strings: stop_strings.clone(), ..request(prompt(1, 8), 40) });
    assert_eq!(stopped.text, free.text[..free.text.find(&string).unwrap()]);
    assert_eq!(stopped.reason(), &FinishReason::Stop(StoppedBy::StopString(string)));
}

#[test]
fn nothing_ends_an_answer_before_its_shortest_length() {
    let free = alone(|| request(prompt(1, 8), 12));
    let ends: Vec<u32> = free.ids[..6].to_vec();
    let usual = || Request { min_tokens: 9, ..request(prompt(1, 8), 40) };
    let long = alone(|| Request { end_tokens: ends.clone(), ..usual() });
    assert!(long.ids.len() >= 9 && long.ids.iter().take(9).all(|id| !ends.contains(id)));
    let first: String = free.text.chars().take(1).collect();
    let usual = || Request { min_tokens: 5, ..request(prompt(1, 8), 5) };
    let strings = || Request { stop_strings: vec![first.clone()], ..usual() };
    assert_eq!(alone(strings).text, free.text.chars().take(5).collect::<String>());
}

/// Allows one token after the other and then fails or allows nothing.
struct Script {
    ids: Vec<u32>,
    fails: bool,
}

impl LogitsMask for Script {
    fn allow(
        &mut self,
        generated: &[u32],
        allowed: &mut TokenMask,
    ) -> std::result::Result<(), String> {
        assert!(allowed.is_empty());
        assert_eq!(generated, &self.ids[..generated.len()]);
        match self.ids.get(generated.len()) {
            Some(&id) => allowed.allow(id),
            None if self.fails => return Err("out of script".to_owned()),
            None => {}
        }
        Ok(())
    }
}

#[test]
fn a_mask_decides_what_may_come() {
    for (max_tokens, fails, end) in [
        (4, false, FinishReason::Length),
        (5, true, FinishReason::Failed("out of script".to_owned())),
        (5, false, FinishReason::Failed("nothing fits".to_owned())),
    ] {
        for engine in ENGINES {
            let config = EngineConfig { max_num_batched_tokens: 64, ..EngineConfig::default() };
            let mut engine = engine(100, config);
            let ids = vec![9, 8, 9, 30];
            let mask = Some(Box::new(Script { ids: ids.clone(), fails }) as Box<dyn LogitsMask>);
            let masked = Request { mask, ..request(prompt(1, 200), max_tokens) };
            let masked = engine.submit(masked).unwrap();
            let free = engine.submit(request(prompt(2, 20), 10)).unwrap();
            finish(&mut engine);
            let masked = read(masked);
            assert_eq!((&masked.ids, masked.reason()), (&ids, &end));
            assert_eq!(read(free).ids, answer(&prompt(2, 20), 10), "others go on");
        }
    }
}

#[test]
fn a_mask_survives_preemption() {
    for engine in ENGINES {
        check_preempted_mask(engine(6, EngineConfig::default()));
    }
}

fn check_preempted_mask(mut engine: Engine) {
    let others: Vec<_> =
        (0..2).map(|seed| engine.submit(request(prompt(seed, 20), 50)).unwrap()).collect();
    let ids: Vec<u32> = (0..40).map(|index| 3 + index % 50).collect();
    let mask = Box::new(Script { ids: ids.clone(), fails: true });
    let masked = Request { mask: Some(mask), ..request(prompt(1, 20), 40) };
    let masked = engine.submit(masked).unwrap();
    finish(&mut engine);
    assert!(engine.metrics().preemptions > 0);
    assert_eq!(read(masked).ids, ids);
    assert!(others.into_iter().all(|other| read(other).ids.len() == 50));
}

#[test]
fn the_prompt_can_be_judged_in_any_chunks() {
    // A prompt whose second half is what the model says anyway.
    let text = [prompt(1, 30), answer(&prompt(1, 30), 30)].concat();
    let sizes = [(64, 100), (7, 100), (16, 100), (16, 9)];
    for ((max_num_batched_tokens, blocks), engine) in
        sizes.into_iter().flat_map(|size| ENGINES.map(|engine| (size, engine)))
    {
        let config =
            EngineConfig { max_num_seqs: 4, max_num_batched_tokens, ..EngineConfig::default() };
        let mut engine = engine(blocks, config);
        let warm = engine.submit(request(text.clone(), 60)).unwrap();
        let judged = Request { prompt_logprobs: Some(0), ..request(text.clone(), 20) };
        let judged = engine.submit(judged).unwrap();
        finish(&mut engine);
        assert_eq!(read(warm).ids, answer(&text, 60));
        let found = read(judged);
        assert_eq!(found.ids, answer(&text, 20));
        assert_eq!((found.prompt.len(), &found.prompt[0]), (60, &None));
        for (index, known) in found.prompt.iter().enumerate().skip(1) {
            let known = known.as_ref().unwrap();
            let certain = next(&text[..index]) == text[index];
            assert!(index < 30 || certain);
            assert_eq!((known.id, known.logprob == 0.0), (text[index], certain));
        }
    }
}

#[test]
fn a_step_that_fails_ends_those_that_took_part() {
    for is_device in [false, true] {
        check_failure(HashRunner { poison: Some(2), is_device, ..HashRunner::default() });
    }
}

fn check_failure(runner: HashRunner) {
    let mut engine = Engine::new(Box::new(runner), tokenizer(), EngineConfig::default()).unwrap();
    let mut beside = engine.submit(request(prompt(1, 8), 20)).unwrap();
    engine.step();
    let mut poisoned = engine.submit(request(vec![3, 2, 3], 20)).unwrap();
    engine.step();
    let later = engine.submit(request(prompt(1, 8), 20)).unwrap();
    finish(&mut engine);
    for stream in [&mut beside, &mut poisoned] {
        let mut answer = Answer::default();
        answer.read(stream);
        let FinishReason::Failed(why) = answer.reason() else { panic!("it failed") };
        assert!(why.contains("no poison"), "{why}");
    }
    assert_eq!(read(later).ids, answer(&prompt(1, 8), 20));
    assert_eq!(engine.metrics().finished.failed, 2);
}

#[test]
fn a_device_is_given_its_next_step_before_the_tokens_of_the_last_are_known() {
    let expected = answer(&prompt(1, 8), 40);
    let end = expected[25];
    let at = expected.iter().position(|&id| id == end).unwrap();
    let plain = || request(prompt(1, 8), at + 4);
    let ends = || Request { end_tokens: vec![end], ..plain() };
    let penalty = SamplingParams { repetition_penalty: 1.5, ..SamplingParams::greedy() };
    for (request, computed) in [
        (plain(), 8 + at + 3),
        // The token behind the end is computed and dropped,
        (ends(), 8 + at + 1),
        // unless a penalty has to know each token first.
        (Request { sampling: penalty, ..ends() }, 8 + at),
    ] {
        let runner = HashRunner { is_device: true, ..HashRunner::default() };
        let counted = Arc::clone(&runner.computed);
        let mut engine =
            Engine::new(Box::new(runner), tokenizer(), EngineConfig::default()).unwrap();
        let stream = engine.submit(request).unwrap();
        engine.step();
        assert_eq!((engine.metrics().steps, *counted.lock().unwrap()), (0, 8));
        finish(&mut engine);
        assert!(expected.starts_with(&read(stream).ids));
        assert_eq!(*counted.lock().unwrap(), computed as u64);
    }
}

#[test]
fn what_cannot_be_served_is_refused_by_name() {
    let mut engine = engine(100, EngineConfig { max_model_len: 20, ..EngineConfig::default() });
    let plain = || request(vec![3; 10], 10);
    let high = SamplingParams { top_p: 1.5, ..SamplingParams::default() };
    for (request, field) in [
        (Request { prompt_ids: vec![], ..plain() }, "prompt is empty"),
        (Request { prompt_ids: vec![VOCABULARY], ..plain() }, "prompt is token id 67"),
        (Request { max_tokens: Some(0), ..plain() }, "max_tokens"),
        (Request { min_tokens: 11, ..plain() }, "min_tokens"),
        (Request { sampling: high, ..plain() }, "top_p"),
        (Request { logit_bias: vec![(70, 1.0)], ..plain() }, "logit_bias is token id 70"),
        (Request { logit_bias: vec![(7, 101.0)], ..plain() }, "logit_bias is 101"),
        (Request { logit_bias: vec![(7, f32::NAN)], ..plain() }, "logit_bias is NaN"),
        (Request { stop_strings: vec![String::new()], ..plain() }, "stop"),
        (Request { logprobs: Some(21), ..plain() }, "logprobs"),
        (Request { prompt_logprobs: Some(21), ..plain() }, "prompt_logprobs"),
    ] {
        let why = engine.submit(request).unwrap_err();
        assert!(matches!(why, SubmitError::Invalid { .. }));
        assert!(why.to_string().starts_with(field), "{why}");
    }
    for max_tokens in [11, usize::MAX] {
        let why = engine.submit(request(vec![3; 10], max_tokens)).unwrap_err();
        assert_eq!(why, SubmitError::PromptTooLong { prompt: 10, max_tokens, context: 20 });
    }
    assert!(!engine.has_work());
    engine.step();
    assert!(engine.submit(plain()).is_ok());
}
