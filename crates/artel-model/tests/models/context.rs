//! The edges of a sequence: its first and its last token, and what does not fit.

use artel_model::{Checkpoint, LoadOptions, LogitsOf, Model, ModelError, SequenceInput};

use crate::support::{Fixture, folder, logits};

fn fixture() -> (Fixture, Model) {
    let fixture = Fixture::read("qwen3_moe_window");
    let model = fixture.load();
    (fixture, model)
}

#[test]
fn a_context_holds_exactly_what_it_was_made_for() {
    let (fixture, model) = fixture();
    let mut workspace = model.new_workspace();
    let mut cache = model.new_cache(4).unwrap();
    let mut forward = |tokens: &[u32]| {
        let mut batch = [SequenceInput { cache: &mut cache, tokens }];
        let result = model.forward(&mut workspace, &mut batch, LogitsOf::LastTokens);
        result.map(<[f32]>::to_vec)
    };
    let error = forward(&fixture.prompt[..5]).unwrap_err();
    assert_eq!(
        error.to_string(),
        "5 positions are needed, but the context of this sequence holds 4"
    );
    forward(&fixture.prompt[..3]).unwrap();
    let last = forward(&fixture.prompt[3..4]).unwrap();
    assert!(matches!(
        forward(&fixture.prompt[4..5]),
        Err(ModelError::ContextOverflow { needed: 5, available: 4 })
    ));
    let expected = logits(&model, &fixture.prompt[..4]);
    assert_eq!(last, expected[expected.len() - last.len()..]);
}

#[test]
fn a_context_longer_than_the_model_is_refused() {
    let (_, model) = fixture();
    let positions = model.config().max_positions;
    model.new_cache(positions).unwrap();
    let error = model.new_cache(positions + 1).unwrap_err();
    assert!(matches!(error, ModelError::ContextTooLong { .. }), "{error}");
}

#[test]
fn a_step_that_fails_leaves_every_cache_as_it_was() {
    let (fixture, model) = fixture();
    let mut workspace = model.new_workspace();
    let [mut first, mut second] = [(); 2].map(|()| model.new_cache(40).unwrap());
    let outside = [1, 2, model.config().vocabulary as u32];
    let mut batch = [
        SequenceInput { cache: &mut first, tokens: &fixture.prompt },
        SequenceInput { cache: &mut second, tokens: &outside },
    ];
    let error = model.forward(&mut workspace, &mut batch, LogitsOf::AllTokens).unwrap_err();
    assert!(error.to_string().contains("token id 67"), "{error}");
    assert_eq!((first.len(), second.len()), (0, 0));

    let mut batch = [SequenceInput { cache: &mut first, tokens: &fixture.prompt }];
    let logits_now = model.forward(&mut workspace, &mut batch, LogitsOf::AllTokens).unwrap();
    assert_eq!(logits_now, logits(&model, &fixture.prompt));
}

#[test]
fn a_cache_of_another_model_is_refused() {
    let (fixture, model) = fixture();
    let mut cache = Fixture::read("mixtral_top2").load().new_cache(40).unwrap();
    let mut batch = [SequenceInput { cache: &mut cache, tokens: &fixture.prompt }];
    let mut workspace = model.new_workspace();
    let error = model.forward(&mut workspace, &mut batch, LogitsOf::AllTokens).unwrap_err();
    assert!(matches!(error, ModelError::Layer(_)), "{error}");
}

#[test]
fn nothing_new_gives_no_logits() {
    let (_, model) = fixture();
    let mut workspace = model.new_workspace();
    for logits_of in [LogitsOf::LastTokens, LogitsOf::AllTokens] {
        assert_eq!(model.forward(&mut workspace, &mut [], logits_of).unwrap(), [0f32; 0]);
        let mut cache = model.new_cache(4).unwrap();
        let mut batch = [SequenceInput { cache: &mut cache, tokens: &[] }];
        assert_eq!(model.forward(&mut workspace, &mut batch, logits_of).unwrap(), [0f32; 0]);
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
