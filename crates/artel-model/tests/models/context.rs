//! The edges of a sequence: its first and its last token, and what does not fit.

use artel_model::{BlockId, Checkpoint, KvCache, LoadOptions, LogitsOf, Model, ModelError};

use crate::support::{Fixture, folder, input, logits};

fn fixture() -> (Fixture, Model) {
    let fixture = Fixture::read("qwen3_moe_window");
    let model = fixture.load();
    (fixture, model)
}

#[test]
fn tokens_need_blocks() {
    let (fixture, model) = fixture();
    let mut workspace = model.new_workspace();
    let mut cache = model.new_cache(2);
    let mut forward = |blocks: &[BlockId], cached: usize, tokens: &[u32]| {
        let input = input(blocks, cached, tokens, LogitsOf::LastToken);
        model.forward(&mut workspace, &mut cache, &[input]).map(|logits| logits.to_vec())
    };
    let error = forward(&[0], 0, &[5; 17]).unwrap_err();
    assert_eq!(
        error.to_string(),
        "17 positions are needed, but the context of this sequence holds 16"
    );
    forward(&[1], 0, &fixture.prompt[..3]).unwrap();
    let last = forward(&[1], 3, &fixture.prompt[3..4]).unwrap();
    assert!(matches!(
        forward(&[1], 16, &fixture.prompt[4..5]),
        Err(ModelError::ContextOverflow { needed: 17, available: 16 })
    ));
    let expected = logits(&model, &fixture.prompt[..4]);
    assert_eq!(last, expected[expected.len() - last.len()..]);
    assert!(matches!(forward(&[2], 0, &[5]), Err(ModelError::Layer(_))), "no such block");
}

#[test]
fn a_context_longer_than_the_model_is_refused() {
    let (_, model) = fixture();
    let positions = model.config().max_positions;
    let mut cache = model.new_cache(KvCache::blocks_for(positions + 1));
    let blocks = cache.all_blocks();
    let mut workspace = model.new_workspace();
    let mut last = |cached: usize| {
        let input = input(&blocks, cached, &[5], LogitsOf::LastToken);
        model.forward(&mut workspace, &mut cache, &[input]).map(|logits| logits.to_vec())
    };
    let error = last(positions).unwrap_err();
    assert!(matches!(error, ModelError::ContextTooLong { .. }), "{error}");
}

#[test]
fn a_step_that_fails_can_be_repeated() {
    let (fixture, model) = fixture();
    let mut workspace = model.new_workspace();
    let mut cache = model.new_cache(6);
    let outside = [1, 2, model.config().vocabulary as u32];
    let first = input(&[0, 1, 2], 0, &fixture.prompt, LogitsOf::AllTokens);
    let batch = [first, input(&[3], 0, &outside, LogitsOf::AllTokens)];
    let error = model.forward(&mut workspace, &mut cache, &batch).unwrap_err();
    assert!(error.to_string().contains("token id 67"), "{error}");

    let logits_now = model.forward(&mut workspace, &mut cache, &[first]).unwrap();
    assert_eq!(logits_now, logits(&model, &fixture.prompt));
}

#[test]
fn a_cache_of_another_model_is_refused() {
    let (fixture, model) = fixture();
    let mut cache = Fixture::read("mixtral_top2").load().new_cache(3);
    let blocks = cache.all_blocks();
    let input = input(&blocks, 0, &fixture.prompt, LogitsOf::AllTokens);
    let mut workspace = model.new_workspace();
    let error = model.forward(&mut workspace, &mut cache, &[input]).unwrap_err();
    assert!(matches!(error, ModelError::Layer(_)), "{error}");
}

#[test]
fn logits_are_those_asked_for() {
    let (fixture, model) = fixture();
    let mut workspace = model.new_workspace();
    let mut cache = model.new_cache(3);
    assert_eq!(model.forward(&mut workspace, &mut cache, &[]).unwrap(), [0f32; 0]);
    let expected = logits(&model, &fixture.prompt);
    let last = expected.len() - model.config().vocabulary;
    for (logits_of, from) in
        [(LogitsOf::Nothing, expected.len()), (LogitsOf::LastToken, last), (LogitsOf::AllTokens, 0)]
    {
        let blocks = [0, 1, 2];
        let none = input(&blocks, 0, &[], logits_of);
        assert_eq!(model.forward(&mut workspace, &mut cache, &[none]).unwrap(), [0f32; 0]);
        let prompt = input(&blocks, 0, &fixture.prompt, logits_of);
        let logits = model.forward(&mut workspace, &mut cache, &[none, prompt]).unwrap();
        assert_eq!(logits, &expected[from..]);
    }
}

#[test]
fn pairs_are_counted_by_expert() {
    let (fixture, model) = fixture();
    let mut workspace = model.new_workspace();
    let mut cache = model.new_cache(3);
    let blocks = cache.all_blocks();
    let input = input(&blocks, 0, &fixture.prompt, LogitsOf::Nothing);
    for _ in 0..2 {
        model.forward(&mut workspace, &mut cache, &[input]).unwrap();
        assert!(!workspace.expert_pairs().is_empty());
        for layer in workspace.expert_pairs() {
            assert_eq!(layer.len(), model.config().experts);
            let pairs = fixture.prompt.len() * model.config().experts_per_token;
            assert_eq!(layer.iter().sum::<i32>() as usize, pairs);
        }
    }
}

#[test]
fn a_model_can_be_part_of_the_program() {
    let read = |file: &str| -> &'static [u8] {
        std::fs::read(folder("mixtral_top2").join(file)).unwrap().leak()
    };
    let files = ["config.json", "model.safetensors"].map(|file| (file, read(file)));
    let bundled = Checkpoint::from_static("bundled", &files).unwrap();
    let model = Model::load(&bundled, &LoadOptions::default()).unwrap();
    let fixture = Fixture::read("mixtral_top2");
    assert_eq!(logits(&model, &fixture.prompt), logits(&fixture.load(), &fixture.prompt));
    let missing = bundled.find_text("tokenizer.json").unwrap();
    assert_eq!(missing, None);
}

#[test]
fn reading_ahead_reads_everything() {
    let checkpoint = Checkpoint::open(&folder("qwen3_moe_norm")).unwrap();
    let mut last = None;
    checkpoint.read_ahead(&mut |progress| last = Some(progress));
    let last = last.unwrap();
    assert_eq!(last.bytes_done, last.bytes_total);
}

#[test]
fn models_can_be_shared_between_threads() {
    fn shared<T: Send + Sync>() {}
    fn sent<T: Send>() {}
    shared::<Model>();
    sent::<artel_model::Workspace>();
    sent::<artel_model::KvCache>();
}
