//! Requests on small random models: alone, together, sharing, giving way, stopped.

use std::path::Path;
use std::sync::Arc;

use artel_engine::*;
use artel_model::{
    BLOCK_TOKENS, Checkpoint, KvCache, LoadOptions, LogitsOf, Model, SequenceInput, Tokenizer,
};

/// A random model of 67 tokens and a tokenizer whose first 67 tokens are characters.
struct Fixture {
    model: Arc<Model>,
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
        Self { model: Arc::new(model), tokenizer: Tokenizer::read(&tokenizer).unwrap() }
    }

    fn engine(&self, config: EngineConfig) -> Engine {
        let runner = Box::new(CpuRunner::new(Arc::clone(&self.model)));
        Engine::new(runner, self.tokenizer.clone(), config).unwrap()
    }

    /// Runs requests together and returns their answers in order.
    fn run(&self, config: EngineConfig, requests: Vec<Request>) -> (Vec<Answer>, Metrics) {
        let mut engine = self.engine(config);
        let streams: Vec<EventStream> =
            requests.into_iter().map(|request| engine.submit(request).unwrap()).collect();
        while engine.has_work() {
            engine.step();
        }
        let metrics = engine.metrics();
        assert_eq!(metrics.kv_blocks_used, 0);
        (streams.into_iter().map(Answer::read).collect(), metrics)
    }

    fn alone(&self, request: Request) -> Answer {
        self.run(EngineConfig::default(), vec![request]).0.remove(0)
    }

    /// Greedy tokens by the model alone, one at a time.
    fn greedy(&self, prompt: &[u32], count: usize) -> Vec<u32> {
        let mut workspace = self.model.new_workspace();
        let mut cache = self.model.new_cache(KvCache::blocks_for(prompt.len() + count));
        let blocks = cache.all_blocks();
        let (mut tokens, mut cached) = (prompt.to_vec(), 0);
        for _ in 0..count {
            let logits_of = LogitsOf::LastToken;
            let input =
                SequenceInput { blocks: &blocks, cached, tokens: &tokens[cached..], logits_of };
            let logits = self.model.forward(&mut workspace, &mut cache, &[input]).unwrap();
            let best = (0..logits.len()).max_by(|&a, &b| logits[a].total_cmp(&logits[b])).unwrap();
            cached = tokens.len();
            tokens.push(best as u32);
        }
        tokens.split_off(prompt.len())
    }
}

/// Everything that the events of a request said.
#[derive(Debug, Clone, Default, PartialEq)]
struct Answer {
    tokens: Vec<Token>,
    prompt: Vec<Option<TokenLogprobs>>,
    text: String,
    reason: Option<FinishReason>,
    usage: Usage,
}

impl Answer {
    fn read(mut stream: EventStream) -> Self {
        let mut answer = Self::default();
        while let Some(event) = stream.try_recv() {
            assert!(answer.reason.is_none(), "{} went on after its end", stream.id());
            match event {
                Event::PromptLogprobs(prompt) => answer.prompt = prompt,
                Event::Token(token) => {
                    assert!(token.logprob <= 0.0 && token.logprob.is_finite());
                    answer.text += &token.text;
                    answer.tokens.push(token);
                }
                Event::Finished(end) => {
                    answer.text += &end.text;
                    answer.reason = Some(end.reason);
                    answer.usage = end.usage;
                }
            }
        }
        answer
    }

    fn ids(&self) -> Vec<u32> {
        self.tokens.iter().map(|token| token.id).collect()
    }
}

fn request(prompt_ids: Vec<u32>, max_tokens: usize) -> Request {
    Request { max_tokens: Some(max_tokens), ..Request::new(prompt_ids) }
}

/// Prompts of many lengths, some longer than a step takes.
fn prompts() -> Vec<Vec<u32>> {
    let prompt = |length: u32| (0..length).map(|i| 3 + (i * i * 7 + length * 5) % 60).collect();
    [1, 2, 40, 7, 19, 3, 64, 11].map(prompt).to_vec()
}

/// Room for so many tokens of a fixture.
fn memory(fixture: &Fixture, tokens: usize) -> Option<usize> {
    let bytes = fixture.model.config().cache_bytes_per_token;
    Some(KvCache::blocks_for(tokens) * BLOCK_TOKENS * bytes)
}

#[test]
fn together_is_as_alone() {
    for name in MODELS {
        let fixture = Fixture::new(name);
        let requests = || {
            let prompts = prompts().into_iter().enumerate();
            prompts.map(|(index, prompt)| request(prompt, 5 + index * 3)).collect::<Vec<_>>()
        };
        let config = EngineConfig {
            max_num_seqs: 3,
            max_num_batched_tokens: 16,
            max_model_len: 128,
            prefix_caching: false,
            ..EngineConfig::default()
        };
        let (together, metrics) = fixture.run(config, requests());
        assert!(metrics.last_step.active_experts > 0.0 && !metrics.last_step.path.is_empty());
        for (answer, request) in together.into_iter().zip(requests()) {
            let max_tokens = request.max_tokens.unwrap();
            let expected = fixture.greedy(&request.prompt_ids, max_tokens);
            assert_eq!(answer.ids(), expected, "{name}");
            assert_eq!(answer.reason, Some(FinishReason::Length));
            assert_eq!(answer.text, fixture.tokenizer.decode(&answer.ids()).unwrap());
            let prompt_tokens = request.prompt_ids.len();
            let usage = Usage { prompt_tokens, cached_tokens: 0, completion_tokens: max_tokens };
            assert_eq!(answer.usage, usage);
            assert_eq!(fixture.alone(request), answer);
        }
    }
}

#[test]
fn giving_way_and_sharing_change_no_token() {
    for name in MODELS {
        let fixture = Fixture::new(name);
        let prompt: Vec<u32> = (0..40).map(|i| 3 + i * i % 60).collect();
        let requests = || (0..5).map(|last| request([&prompt[..], &[last]].concat(), 50));
        let scarce =
            EngineConfig { kv_cache_memory: memory(&fixture, 192), ..EngineConfig::default() };
        let (answers, metrics) = fixture.run(scarce, requests().collect());
        assert!(metrics.preemptions > 0 && metrics.prefix_cache_hits > 0, "{name}: {metrics:?}");
        for (answer, request) in answers.iter().zip(requests()) {
            assert_eq!(answer.ids(), fixture.greedy(&request.prompt_ids, 50), "{name}");
        }
        // One after the other, so that each finds what the ones before it left.
        let one = EngineConfig { max_num_seqs: 1, ..EngineConfig::default() };
        let (shared, _) = fixture.run(one, requests().collect());
        for (index, (shared, answer)) in shared.iter().zip(&answers).enumerate() {
            assert_eq!(shared.tokens, answer.tokens, "to the last bit of the logprobs");
            assert_eq!(shared.usage.cached_tokens, if index == 0 { 0 } else { 32 });
        }
    }
}

#[test]
fn seeds_are_reproducible_in_any_company() {
    let fixture = Fixture::new("qwen3_moe_norm");
    let request = |seed: u64| Request {
        sampling: SamplingParams { top_p: 0.95, seed, ..SamplingParams::default() },
        ..request(vec![5, 6, 7], 30)
    };
    let (answers, _) = fixture.run(EngineConfig::default(), [1, 2, 1, 3].map(request).into());
    assert_eq!(answers[0], answers[2]);
    assert_ne!(answers[0].ids(), answers[1].ids());
    assert_eq!(answers[0], fixture.alone(request(1)));
}

#[test]
fn a_stop_string_ends_the_answer_before_it() {
    let fixture = Fixture::new("minimax_m2_tied");
    let prompt = vec![9, 30, 4];
    let free = fixture.alone(request(prompt.clone(), 40));
    assert_eq!(free.text.chars().count(), 40, "the model says {:?}", free.text);
    // Two or three characters that first appear in the middle of the answer.
    for (start, length) in [(5, 3), (10, 2), (37, 3), (0, 2)] {
        let stop = free.text[start..start + length].to_owned();
        let at = free.text.find(&stop).unwrap();
        let stopped = fixture.alone(Request {
            stop_strings: vec!["never".to_owned(), stop.clone()],
            ..request(prompt.clone(), 40)
        });
        assert_eq!(stopped.text, free.text[..at], "stopped by {stop:?}");
        assert_eq!(stopped.reason, Some(FinishReason::Stop(StoppedBy::StopString(stop))));
        assert_eq!(stopped.usage.completion_tokens, at + length);
    }
    let last = format!("{}?", free.text.chars().last().unwrap());
    let held = fixture.alone(Request { stop_strings: vec![last], ..request(prompt, 40) });
    assert_eq!(held.text, free.text, "text held for a stop string comes out at the end");
}

#[test]
fn probabilities_come_with_tokens_and_prompt() {
    let fixture = Fixture::new("qwen3_moe_norm");
    let prompt: Vec<u32> = (3..40).collect();
    let plain = fixture.alone(request(prompt.clone(), 6));
    assert!(plain.tokens.iter().all(|token| token.top.is_empty()) && plain.prompt.is_empty());
    let config = EngineConfig { max_num_seqs: 2, max_num_batched_tokens: 9, ..Default::default() };
    let asked =
        Request { logprobs: Some(3), prompt_logprobs: Some(2), ..request(prompt.clone(), 6) };
    let asked = fixture.run(config, vec![asked]).0.remove(0);
    assert_eq!(asked.ids(), plain.ids());
    for token in &asked.tokens {
        assert_eq!(token.top[0], (token.id, token.logprob), "greedy takes the most probable");
        assert!(token.top.len() == 3 && token.top.is_sorted_by(|a, b| a.1 >= b.1));
    }
    assert_eq!((asked.prompt.len(), &asked.prompt[0]), (prompt.len(), &None));
    // A prompt that is continued by its own answer is judged as the answer was.
    let whole = Request { prompt_logprobs: Some(3), ..request([prompt, plain.ids()].concat(), 1) };
    let judged = fixture.alone(whole).prompt.split_off(37);
    for (judged, token) in judged.iter().zip(&asked.tokens) {
        let judged = judged.as_ref().unwrap();
        assert_eq!((judged.id, judged.logprob), (token.id, token.logprob));
        assert_eq!(judged.top, token.top);
    }
}

#[test]
fn biases_and_masks_steer_the_answer() {
    struct Even;
    impl LogitsMask for Even {
        fn allow(
            &mut self,
            _generated: &[u32],
            allowed: &mut TokenMask,
        ) -> std::result::Result<(), String> {
            (0..allowed.vocabulary() as u32).step_by(2).for_each(|id| allowed.allow(id));
            Ok(())
        }
    }
    let fixture = Fixture::new("mixtral_top2");
    let biased = Request { logit_bias: vec![(11, 100.0)], ..request(vec![3, 4], 5) };
    assert_eq!(fixture.alone(biased).ids(), [11; 5]);
    let masked = Request { mask: Some(Box::new(Even)), ..request(vec![3, 4], 30) };
    let ids = fixture.alone(masked).ids();
    assert!(ids.len() == 30 && ids.iter().all(|id| id.is_multiple_of(2)), "{ids:?}");
}

#[test]
fn experts_are_counted() {
    let fixture = Fixture::new("qwen3_moe_norm");
    let (_, metrics) = fixture.run(EngineConfig::default(), vec![request(vec![3; 20], 11)]);
    let per_token = fixture.model.config().experts_per_token as u64;
    for layers in [&metrics.experts.tokens, &metrics.experts.recent] {
        assert!(!layers.is_empty());
        for layer in layers {
            assert_eq!(layer.len(), fixture.model.config().experts);
            assert_eq!(layer.iter().sum::<u64>(), 30 * per_token);
        }
    }
    assert_eq!((metrics.steps, metrics.generated_tokens, metrics.prompt_tokens), (11, 11, 20));
}

#[test]
fn the_context_is_the_models_own_at_most() {
    let fixture = Fixture::new("qwen3_moe_norm");
    let engine = fixture.engine(EngineConfig::default());
    assert_eq!(engine.config().max_model_len, fixture.model.config().max_positions);
}
