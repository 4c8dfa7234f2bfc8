//! Requests on small random models: alone, together, stopped, cancelled, refused.

use std::collections::BTreeMap;
use std::path::Path;

use artel_engine::*;
use artel_model::{Checkpoint, LoadOptions, LogitsOf, Model, SequenceInput, Tokenizer};

/// A random model of 67 tokens and a tokenizer whose first 67 tokens are characters.
struct Fixture {
    model: Model,
    tokenizer: Tokenizer,
}

const MODELS: [&str; 4] =
    ["qwen3_moe_norm", "minimax_m2_tied", "deepseek_v3_plain", "gpt_oss_yarn"];

impl Fixture {
    fn new(name: &str) -> Self {
        let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../artel-model/tests/fixtures");
        let checkpoint = Checkpoint::open(&fixtures.join(name)).unwrap();
        let model = Model::load(&checkpoint, &LoadOptions::default()).unwrap();
        let files: [(&str, &'static [u8]); 3] = [
            ("config.json", b"{}"),
            ("model.safetensors", b"\x02\0\0\0\0\0\0\0{}"),
            (
                "tokenizer.json",
                include_bytes!("../../artel-model/tests/fixtures/text/byte_level/tokenizer.json"),
            ),
        ];
        let tokenizer = Checkpoint::from_static("characters", &files).unwrap();
        Self { model, tokenizer: Tokenizer::read(&tokenizer).unwrap() }
    }

    fn engine(&self, config: EngineConfig) -> Engine<'_> {
        Engine::new(&self.model, &self.tokenizer, config).unwrap()
    }

    /// Runs one request by itself.
    fn alone(&self, request: GenerationRequest) -> Answer {
        let mut engine = self.engine(EngineConfig::default());
        let id = engine.submit(request).unwrap();
        run(&mut engine).remove(&id).unwrap()
    }

    /// Greedy tokens by the model alone, one at a time.
    fn greedy(&self, prompt: &[u32], count: usize) -> Vec<u32> {
        let mut workspace = self.model.new_workspace();
        let mut cache = self.model.new_cache(prompt.len() + count).unwrap();
        let mut tokens = prompt.to_vec();
        for _ in 0..count {
            let start = cache.len();
            let new = tokens[start..].to_vec();
            let mut batch = [SequenceInput { cache: &mut cache, tokens: &new }];
            let logits =
                self.model.forward(&mut workspace, &mut batch, LogitsOf::LastTokens).unwrap();
            let best = (0..logits.len()).max_by(|&a, &b| logits[a].total_cmp(&logits[b])).unwrap();
            tokens.push(best as u32);
        }
        tokens.split_off(prompt.len())
    }
}

/// Everything that the events of a request said.
#[derive(Debug, Clone, Default, PartialEq)]
struct Answer {
    ids: Vec<u32>,
    text: String,
    reason: Option<FinishReason>,
    usage: Usage,
}

fn run(engine: &mut Engine<'_>) -> BTreeMap<RequestId, Answer> {
    let mut answers = BTreeMap::new();
    run_on(engine, &mut answers);
    answers
}

fn run_on(engine: &mut Engine<'_>, answers: &mut BTreeMap<RequestId, Answer>) {
    while engine.has_work() {
        collect(engine.step().unwrap(), answers);
    }
}

fn collect(events: Vec<Event>, answers: &mut BTreeMap<RequestId, Answer>) {
    for event in events {
        let answer = answers.entry(event.request).or_default();
        assert!(answer.reason.is_none(), "{} went on after its end", event.request);
        match event.kind {
            EventKind::Token(token) => {
                assert!(token.logprob <= 0.0 && token.logprob.is_finite());
                answer.ids.push(token.id);
                answer.text += &token.text;
            }
            EventKind::Finished(end) => {
                answer.text += &end.text;
                answer.reason = Some(end.reason);
                answer.usage = end.usage;
            }
        }
    }
}

/// Prompts of many lengths, some longer than a step takes.
fn prompts() -> Vec<Vec<u32>> {
    let prompt = |length: u32| (0..length).map(|i| 3 + (i * i * 7 + length * 5) % 60).collect();
    [1, 2, 40, 7, 19, 3, 64, 11].map(prompt).to_vec()
}

#[test]
fn together_is_as_alone() {
    for name in MODELS {
        let fixture = Fixture::new(name);
        let requests: Vec<GenerationRequest> = prompts()
            .into_iter()
            .enumerate()
            .map(|(index, prompt)| GenerationRequest::new(prompt, 5 + index * 3))
            .collect();
        let config = EngineConfig { sequences_max: 3, step_tokens_max: 16, context: 128 };
        let mut engine = fixture.engine(config);
        let ids = requests.iter().map(|request| engine.submit(request.clone()).unwrap());
        let ids: Vec<RequestId> = ids.collect();
        let mut together = run(&mut engine);
        for (id, request) in ids.into_iter().zip(requests) {
            let answer = together.remove(&id).unwrap();
            let expected = fixture.greedy(&request.prompt_ids, request.max_tokens);
            assert_eq!(answer.ids, expected, "{name}, {id}");
            assert_eq!(answer.reason, Some(FinishReason::Length));
            assert_eq!(answer.text, fixture.tokenizer.decode(&answer.ids).unwrap());
            let usage = Usage {
                prompt_tokens: request.prompt_ids.len(),
                completion_tokens: request.max_tokens,
            };
            assert_eq!(answer.usage, usage);
            assert_eq!(fixture.alone(request), answer);
        }
        assert!(together.is_empty());
    }
}

#[test]
fn seeds_are_reproducible_in_any_company() {
    let fixture = Fixture::new("qwen3_moe_norm");
    let request = |seed: u64| GenerationRequest {
        sampling: SamplingParams { top_p: 0.95, seed, ..SamplingParams::default() },
        ..GenerationRequest::new(vec![5, 6, 7], 30)
    };
    let mut engine = fixture.engine(EngineConfig { sequences_max: 4, ..EngineConfig::default() });
    let ids = [1, 2, 1, 3].map(|seed| engine.submit(request(seed)).unwrap());
    let answers = run(&mut engine);
    let [first, second, again, _] = ids.map(|id| answers[&id].clone());
    assert_eq!(first, again);
    assert_ne!(first.ids, second.ids);
    assert_eq!(first, fixture.alone(request(1)));
}

#[test]
fn a_stop_string_ends_the_answer_before_it() {
    let fixture = Fixture::new("minimax_m2_tied");
    let prompt = vec![9, 30, 4];
    let free = fixture.alone(GenerationRequest::new(prompt.clone(), 40));
    assert_eq!(free.text.chars().count(), 40, "the model says {:?}", free.text);
    // Two or three characters that first appear in the middle of the answer.
    for (start, length) in [(5, 3), (10, 2), (37, 3), (0, 2)] {
        let stop = &free.text[start..start + length];
        let at = free.text.find(stop).unwrap();
        let stopped = fixture.alone(GenerationRequest {
            stop_strings: vec!["never".to_owned(), stop.to_owned()],
            ..GenerationRequest::new(prompt.clone(), 40)
        });
        assert_eq!(stopped.text, free.text[..at], "stopped by {stop:?}");
        assert_eq!(stopped.reason, Some(FinishReason::Stop));
        assert_eq!(stopped.usage.completion_tokens, at + length);
    }
}

#[test]
fn text_held_for_a_stop_string_comes_out_at_the_end() {
    let fixture = Fixture::new("minimax_m2_tied");
    let free = fixture.alone(GenerationRequest::new(vec![9, 30, 4], 10));
    let last = format!("{}?", free.text.chars().last().unwrap());
    let held = fixture.alone(GenerationRequest {
        stop_strings: vec![last],
        ..GenerationRequest::new(vec![9, 30, 4], 10)
    });
    assert_eq!(held, free);
}

#[test]
fn an_end_token_ends_the_answer_unless_ignored() {
    let fixture = Fixture::new("qwen3_moe_norm");
    let free = fixture.alone(GenerationRequest::new(vec![8, 9], 20));
    let end = free.ids[6];
    let at = free.ids.iter().position(|&id| id == end).unwrap();
    let request =
        GenerationRequest { end_tokens: vec![0, end], ..GenerationRequest::new(vec![8, 9], 20) };
    let ended = fixture.alone(request.clone());
    assert_eq!(ended.ids, free.ids[..at]);
    assert_eq!(ended.reason, Some(FinishReason::Stop));
    assert_eq!(ended.usage.completion_tokens, at + 1);
    assert_eq!(fixture.alone(GenerationRequest { ignore_end_tokens: true, ..request }), free);
}

#[test]
fn a_cancelled_request_makes_room() {
    let fixture = Fixture::new("deepseek_v3_plain");
    let mut engine = fixture.engine(EngineConfig { sequences_max: 1, ..EngineConfig::default() });
    let [long, waiting, short] =
        [100, 100, 4].map(|max_tokens| GenerationRequest::new(vec![3, 4], max_tokens));
    let switches = [long.cancellation.clone(), waiting.cancellation.clone()];
    let ids = [long, waiting, short].map(|request| engine.submit(request).unwrap());
    let mut answers = BTreeMap::new();
    for _ in 0..3 {
        collect(engine.step().unwrap(), &mut answers);
    }
    assert_eq!((answers.len(), answers[&ids[0]].ids.len(), engine.running()), (1, 3, 1));
    switches.iter().for_each(Cancellation::cancel);
    collect(engine.step().unwrap(), &mut answers);
    run_on(&mut engine, &mut answers);
    assert_eq!(answers[&ids[0]].reason, Some(FinishReason::Cancelled));
    assert_eq!(answers[&ids[0]].ids.len(), 3);
    assert_eq!(answers[&ids[1]].reason, Some(FinishReason::Cancelled));
    assert_eq!(answers[&ids[1]].usage, Usage { prompt_tokens: 2, completion_tokens: 0 });
    assert_eq!(answers[&ids[2]].ids, fixture.greedy(&[3, 4], 4));
}

#[test]
fn what_cannot_be_served_is_refused_before_it_runs() {
    let fixture = Fixture::new("qwen3_moe_norm");
    let mut engine = fixture.engine(EngineConfig { context: 20, ..EngineConfig::default() });
    let mut refused = |request: GenerationRequest| engine.submit(request).unwrap_err().to_string();
    let plain = GenerationRequest::new(vec![3; 10], 10);
    let message = refused(GenerationRequest { max_tokens: 11, ..plain.clone() });
    assert!(
        message.contains("10") && message.contains("11") && message.contains("20"),
        "{message}"
    );
    assert!(refused(GenerationRequest { max_tokens: usize::MAX, ..plain.clone() }).contains("20"));
    assert!(refused(GenerationRequest { max_tokens: 0, ..plain.clone() }).contains("max_tokens"));
    assert!(refused(GenerationRequest { prompt_ids: vec![], ..plain.clone() }).contains("empty"));
    assert!(refused(GenerationRequest { prompt_ids: vec![67], ..plain.clone() }).contains("67"));
    let empty_stop = vec!["a".to_owned(), String::new()];
    assert!(
        refused(GenerationRequest { stop_strings: empty_stop, ..plain.clone() }).contains("stop")
    );
    let hot = SamplingParams { temperature: -1.0, ..SamplingParams::default() };
    assert!(refused(GenerationRequest { sampling: hot, ..plain.clone() }).contains("temperature"));
    assert!(!engine.has_work());
    assert!(engine.step().unwrap().is_empty());
    engine.submit(plain).unwrap();
    assert_eq!(run(&mut engine).len(), 1);
}

#[test]
fn the_context_is_the_models_own_at_most() {
    let fixture = Fixture::new("qwen3_moe_norm");
    let engine = fixture.engine(EngineConfig::default());
    assert_eq!(engine.config().context, fixture.model.config().max_positions);
    for config in [
        EngineConfig { sequences_max: 0, ..EngineConfig::default() },
        EngineConfig { step_tokens_max: 0, ..EngineConfig::default() },
        EngineConfig { context: 0, ..EngineConfig::default() },
    ] {
        assert!(Engine::new(&fixture.model, &fixture.tokenizer, config).is_err());
    }
}
