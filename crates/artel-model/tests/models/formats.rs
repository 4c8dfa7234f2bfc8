//! Weights in formats other than float32: as checkpoints store them, and converted while loading.

use artel_device::cpu::CpuFeatures;
use artel_model::{Checkpoint, Format, Group, LoadOptions, Model};

use crate::support::{
    Fixture, folder, greedy, load, logits, logits_in_chunks, relative_difference,
};

/// Largest relative difference of logits to float32 arithmetic on the same numbers: bfloat16
/// operands of products, and FP8 operands with a scale per 128 of them.
const BF16_LIMIT: f64 = 2e-4;
const FP8_LIMIT: f64 = 1e-2;

/// Largest relative difference between kernels that add the same products in another order.
const ROUNDING: f64 = 1e-10;

fn difference(name: &'static str, options: &LoadOptions) -> f64 {
    let fixture = Fixture::read(name);
    let computed = logits(&load(name, options), &fixture.tokens());
    let difference = relative_difference(&computed, &fixture.logits);
    println!("{name}: relative difference {difference:.1e}");
    difference
}

fn converted_to(format: Format) -> LoadOptions {
    LoadOptions { format: Some(format), ..LoadOptions::default() }
}

fn formats_of(model: &Model, wanted: Group) -> Vec<&'static str> {
    let counts = model.parameters().by_group().filter(|(group, ..)| *group == wanted);
    counts.map(|(_, format, _)| format).collect()
}

#[test]
fn bf16_checkpoints_load_and_agree_with_float32_arithmetic() {
    assert!(difference("mixtral_bf16", &LoadOptions::default()) < BF16_LIMIT);
    // Widened to float32, projections and experts are exact; embedding and output layer stay.
    assert!(difference("mixtral_bf16", &converted_to(Format::F32)) < BF16_LIMIT / 10.0);
}

#[test]
fn fp8_checkpoints_load_and_agree_with_their_dequantised_twin() {
    let model = load("minimax_m2_fp8", &LoadOptions::default());
    assert_eq!(formats_of(&model, Group::Experts), ["fp8-block128"]);
    assert_eq!(formats_of(&model, Group::Router), ["f32"]);
    // The expected logits are those of the dequantised weights in float32 arithmetic: what is left
    // is the quantisation of activations, and nothing is left once the weights are widened.
    assert!(difference("minimax_m2_fp8", &LoadOptions::default()) < FP8_LIMIT);
    assert!(difference("minimax_m2_fp8", &converted_to(Format::F32)) < 1e-10);
}

#[test]
fn every_architecture_runs_in_every_format() {
    for name in [
        "minimax_m2_legacy",
        "qwen3_moe_norm",
        "mixtral_top2",
        "deepseek_v3_yarn",
        "gpt_oss_yarn",
        "olmoe_llama3",
        "qwen2_moe_shared",
        "glm4_moe_groups",
    ] {
        let fixture = Fixture::read(name);
        for (format, limit) in [(Format::F32, 1e-10), (Format::F16, 1e-3), (Format::Bf16, 0.02)] {
            let model = load(name, &converted_to(format));
            assert_eq!(formats_of(&model, Group::Experts).first(), Some(&format.name()));
            let computed = logits(&model, &fixture.prompt);
            let expected = &fixture.logits[..computed.len()];
            let difference = relative_difference(&computed, expected);
            assert!(difference < limit, "{name} in {format}: differs by {difference}");
        }
        // Random experts of this size lose a lot to 8 bits; a wrong scale loses everything.
        for format in [Format::Fp8Block128, Format::Fp8Tensor, Format::Fp8Channel] {
            let model = load(name, &converted_to(format));
            let computed = logits(&model, &fixture.prompt);
            let difference = relative_difference(&computed, &fixture.logits[..computed.len()]);
            assert!(difference < 0.1, "{name} in {format}: differs by {difference}");
        }
    }
}

#[test]
fn parameters_are_counted_once_and_by_group() {
    let model = load("mixtral_top2", &LoadOptions::default());
    let checkpoint = Checkpoint::open(&folder("mixtral_top2")).unwrap();
    let stored: usize =
        checkpoint.tensors().map(|(_, tensor)| tensor.shape.iter().product::<usize>()).sum();
    let parameters = model.parameters();
    assert_eq!(parameters.total(), stored);
    assert_eq!(parameters.bytes(), 4 * stored);
    // Three experts of which a token uses two; of the embedding it reads one row.
    let of = |wanted| {
        let counts = parameters.by_group().filter(move |(group, ..)| *group == wanted);
        counts.map(|(_, _, count)| count.parameters).sum::<usize>()
    };
    let unused = of(Group::Experts) / 3 + of(Group::Embedding);
    assert_eq!(parameters.active(), stored - unused);

    // A tied table is counted once, and all of it is active.
    let tied = load("minimax_m2_tied", &LoadOptions::default());
    assert_eq!(formats_of(&tied, Group::Head).len(), 0);
    assert_eq!(tied.parameters().active(), tied.parameters().total());
}

#[test]
fn progress_ends_with_everything() {
    let checkpoint = Checkpoint::open(&folder("qwen3_moe_norm")).unwrap();
    let mut reports = Vec::new();
    let options = LoadOptions::default();
    Model::load_with_progress(&checkpoint, &options, &mut |report| reports.push(report)).unwrap();
    assert_eq!(reports.len(), checkpoint.tensors().count());
    assert!(reports.windows(2).all(|pair| pair[0].bytes_done < pair[1].bytes_done));
    let last = reports.last().unwrap();
    assert_eq!(last.bytes_done, last.bytes_total);
}

#[test]
fn every_instruction_set_gives_the_same_tokens() {
    for name in ["minimax_m2_legacy", "deepseek_v3_yarn", "gpt_oss_yarn"] {
        let fixture = Fixture::read(name);
        for features in CpuFeatures::every_supported() {
            let model = load(name, &LoadOptions { features, ..LoadOptions::default() });
            let tokens = greedy(&model, &fixture.prompt, 64);
            assert_eq!(tokens, fixture.greedy, "{name} on {}", features.isa());
        }
    }
}

#[test]
fn batches_change_no_more_than_rounding_in_any_format() {
    for name in ["mixtral_bf16", "minimax_m2_fp8"] {
        let tokens = Fixture::read(name).prompt;
        for features in CpuFeatures::every_supported() {
            let model = load(name, &LoadOptions { features, ..LoadOptions::default() });
            let one_by_one = logits_in_chunks(&model, &tokens, &vec![1; tokens.len()]);
            let difference = relative_difference(&one_by_one, &logits(&model, &tokens));
            println!("{name} on {}: relative difference {difference:.1e}", features.isa());
            assert!(difference < ROUNDING, "{name} on {}: {difference}", features.isa());
        }
    }
}
