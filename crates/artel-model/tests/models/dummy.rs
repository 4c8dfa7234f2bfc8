//! Models without weights: shapes and types of the checkpoint that is not there.

use artel_model::{Checkpoint, Format, LoadOptions, Model, ModelError};
use serde_json::{Value, json};

use crate::support::{folder, logits};

/// A model of the configuration of a fixture with some fields changed.
fn dummy(fixture: &str, changes: &[(&str, Value)]) -> Result<Model, ModelError> {
    let text = std::fs::read_to_string(folder(fixture).join("config.json")).unwrap();
    let mut config: Value = serde_json::from_str(&text).unwrap();
    for (field, value) in changes {
        config[*field] = value.clone();
    }
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
    let checkpoint = Checkpoint::open_dummy(folder.path())?;
    assert!(checkpoint.is_dummy());
    Model::load(&checkpoint, &LoadOptions::default())
}

#[test]
fn every_architecture_runs_without_weights() {
    for fixture in [
        "qwen3_moe_norm",
        "minimax_m2_legacy",
        "olmoe_llama3",
        "mixtral_window",
        "qwen2_moe_shared",
        "glm4_moe_bias",
        "deepseek_v3_plain",
        "gpt_oss_plain",
    ] {
        let model = dummy(fixture, &[]).unwrap();
        let found = logits(&model, &[1, 2, 3, 40, 5, 6, 7]);
        assert!(found.iter().all(|logit| logit.is_finite()), "{fixture}");
        let size = found.iter().map(|logit| logit * logit).sum::<f32>() / found.len() as f32;
        assert!((0.01..100.0).contains(&size), "{fixture}: logits of {size}");
        assert_eq!(found, logits(&dummy(fixture, &[]).unwrap(), &[1, 2, 3, 40, 5, 6, 7]));
    }
}

#[test]
fn gpt_oss_has_experts_in_mxfp4() {
    let changes = [
        ("quantization_config", json!({"quant_method": "mxfp4"})),
        ("hidden_size", json!(64)),
        ("intermediate_size", json!(96)),
    ];
    let model = dummy("gpt_oss_yarn", &changes).unwrap();
    assert_eq!(model.moe_layer().expect("experts").plan().format(), Format::Mxfp4.name());
    let found = logits(&model, &[1, 2, 3, 40, 5, 6, 7]);
    assert!(found.iter().all(|logit| logit.is_finite()));
    let size = found.iter().map(|logit| logit * logit).sum::<f32>() / found.len() as f32;
    assert!((0.01..100.0).contains(&size), "logits of {size}");
}

#[test]
fn types_are_those_of_the_checkpoint() {
    let model = dummy("minimax_m2_fp8", &[]).unwrap();
    let experts = model.moe_layer().expect("experts");
    assert_eq!(experts.plan().format(), Format::Fp8Block128.name());
    let formats: Vec<_> = model
        .parameters()
        .by_group()
        .map(|(group, format, _)| format!("{group:?} {format}"))
        .collect();
    for expected in ["Attention fp8-block128", "Experts fp8-block128", "Router bf16", "Head bf16"] {
        assert!(formats.iter().any(|found| found == expected), "{formats:?}");
    }
    let found = logits(&model, &[1, 2, 3]);
    assert!(found.iter().all(|logit| logit.is_finite()));
}

#[test]
fn tokens_spread_over_experts_in_every_layer() {
    let changes = [
        ("num_local_experts", json!(16)),
        ("num_experts_per_tok", json!(2)),
        ("num_hidden_layers", json!(24)),
        ("hidden_size", json!(256)),
        ("vocab_size", json!(2000)),
    ];
    let model = dummy("minimax_m2_legacy", &changes).unwrap();
    let mut workspace = model.new_workspace();
    let tokens: Vec<u32> = (0..120).map(|at| at * 7919 % 2000).collect();
    let mut cache = model.new_cache(8);
    let blocks = cache.all_blocks();
    let input = crate::support::input(&blocks, 0, &tokens, artel_model::LogitsOf::Nothing);
    model.forward(&mut workspace, &mut cache, &[input]).unwrap();
    assert_eq!(workspace.expert_pairs().len(), 24);
    for pairs in workspace.expert_pairs() {
        assert_eq!(pairs.iter().sum::<i32>(), 240);
        let most = *pairs.iter().max().unwrap();
        assert!(most < 45, "15 pairs each would be uniform: {pairs:?}");
    }
}

#[test]
fn formats_without_dummies_are_refused() {
    let awq = json!({"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemm"});
    let error = dummy("mixtral_bf16", &[("quantization_config", awq)]).unwrap_err().to_string();
    assert!(error.contains("dummy weights") && error.contains("Awq"), "{error}");
}
