//! Every architecture against what transformers computes, on small random checkpoints.

use crate::support::{Fixture, greedy, input, largest_difference, logits, logits_in_chunks};
use artel_model::LogitsOf;

/// Largest difference to transformers at any position, in float32.
const LIMIT: f32 = 1e-4;

fn check(name: &'static str) {
    let fixture = Fixture::read(name);
    let model = fixture.load();
    let tokens = fixture.tokens();
    assert_eq!(model.config().vocabulary, fixture.vocabulary());

    let at_once = logits(&model, &tokens);
    let error = largest_difference(&at_once, &fixture.logits);
    println!("{name}: largest difference of a logit {error:.1e}");
    assert!(error < LIMIT, "{name}: prefill differs by {error}");

    // However the tokens arrive, the result is the same to the last bit.
    let one_by_one = logits_in_chunks(&model, &tokens, &vec![1; tokens.len()]);
    assert!(one_by_one == at_once, "{name}: decoding differs from prefill");
    let chunked = logits_in_chunks(&model, &tokens, &[2, 1, 17, 5, tokens.len() - 25]);
    assert!(chunked == at_once, "{name}: chunked prefill differs");

    assert_eq!(greedy(&model, &fixture.prompt, 64), fixture.greedy, "{name}: greedy tokens");
    check_batch(&fixture);
}

/// Three sequences at once, one of them with nothing new: each gets what it gets alone.
fn check_batch(fixture: &Fixture) {
    let model = fixture.load();
    let (prompt, vocabulary) = (&fixture.prompt, fixture.vocabulary());
    let mut workspace = model.new_workspace();
    let mut cache = model.new_cache(9);
    let [first, second, third] = [[4, 0, 8], [1, 2, 3], [7, 6, 5]];
    let batch = [
        input(&first, 0, prompt, LogitsOf::LastToken),
        input(&second, 0, &[], LogitsOf::AllTokens),
        input(&third, 0, &prompt[3..5], LogitsOf::LastToken),
    ];
    let together = model.forward(&mut workspace, &mut cache, &batch).unwrap();
    assert_eq!(together.len(), 2 * vocabulary);
    for (row, alone) in [(0, &prompt[..]), (1, &prompt[3..5])] {
        let alone = logits(&model, alone);
        let together = &together[row * vocabulary..(row + 1) * vocabulary];
        let alone = &alone[alone.len() - vocabulary..];
        assert!(together == alone, "{}: a batch changes a result", fixture.name);
    }
    // The second sequence begins with what the first has cached.
    let shared = input(&first, prompt.len() - 1, &prompt[prompt.len() - 1..], LogitsOf::LastToken);
    let again = model.forward(&mut workspace, &mut cache, &[shared]).unwrap();
    let alone = logits(&model, prompt);
    assert!(again == &alone[alone.len() - vocabulary..], "{}: a shared prefix", fixture.name);
}

macro_rules! fixtures {
    ($($name:ident),* $(,)?) => {
        $(#[test] fn $name() { check(stringify!($name)); })*
    };
}

fixtures!(
    minimax_m2_legacy,
    minimax_m2_tied,
    qwen3_moe_norm,
    qwen3_moe_window,
    mixtral_top2,
    mixtral_window,
    deepseek_v3_yarn,
    deepseek_v3_plain,
    gpt_oss_yarn,
    gpt_oss_plain,
    olmoe_clip,
    olmoe_llama3,
    qwen2_moe_shared,
    qwen2_moe_window,
    glm4_moe_groups,
    glm4_moe_bias,
);
