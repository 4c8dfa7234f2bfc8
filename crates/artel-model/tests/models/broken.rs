//! Checkpoints that are wrong: each says what is wrong with it, and none brings the program down.

use artel_model::ModelError;
use artel_model::checkpoint::Dtype;
use proptest::prelude::*;
use serde_json::{Value, json};

use crate::support::{Edited, logits};

const FIXTURES: [&str; 8] = [
    "minimax_m2_legacy",
    "qwen3_moe_norm",
    "mixtral_top2",
    "deepseek_v3_yarn",
    "gpt_oss_yarn",
    "olmoe_llama3",
    "qwen2_moe_window",
    "glm4_moe_groups",
];

const EXPERT: &str = "model.layers.1.block_sparse_moe.experts.2.w2.weight";

fn mixtral() -> Edited {
    Edited::of("mixtral_top2")
}

fn assert_contains(error: &str, parts: &[&str]) {
    for part in parts {
        assert!(error.contains(part), "{part:?} is not in: {error}");
    }
}

#[test]
fn copies_of_fixtures_load() {
    for name in FIXTURES {
        Edited::of(name).load().unwrap();
    }
}

#[test]
fn an_unknown_architecture_is_told_the_known_ones() {
    let error = mixtral().set("architectures", json!(["LlamaForCausalLM"])).error();
    assert_contains(&error, &["LlamaForCausalLM", "MixtralForCausalLM", "Glm4MoeForCausalLM"]);
    let missing = mixtral().set("architectures", Value::Null).load();
    assert!(matches!(missing, Err(ModelError::UnknownArchitecture { .. })));
    let wrong = mixtral().set("architectures", json!("MixtralForCausalLM")).error();
    assert_contains(&wrong, &["architectures", "expected a list of strings"]);
}

#[test]
fn a_missing_tensor_is_named_with_its_shape() {
    for name in FIXTURES {
        let whole = Edited::of(name);
        for tensor in whole.tensors.keys() {
            let mut edited = Edited::of(name);
            edited.tensors.remove(tensor);
            let loaded = edited.load();
            let Err(ModelError::MissingTensor { name: named, expected, .. }) = loaded else {
                panic!("{name} without {tensor}: {loaded:?}");
            };
            assert_eq!((&named, &expected), (tensor, &whole.tensors[tensor].1));
        }
    }
}

#[test]
fn a_mis_shaped_tensor_is_named_with_both_shapes_and_its_file() {
    let mut edited = mixtral();
    let (_, shape, _) = edited.tensor(EXPERT);
    shape.swap(0, 1);
    let error = edited.error();
    assert_contains(&error, &[EXPERT, "shape [40, 48]", "expected [48, 40]", "model.safetensors"]);
}

#[test]
fn a_mistyped_tensor_is_named_with_both_types() {
    let mut edited = mixtral();
    let (dtype, ..) = edited.tensor(EXPERT);
    *dtype = Dtype::I32;
    assert_contains(&edited.error(), &[EXPERT, "type I32", "expected F32, F16 or BF16"]);
}

#[test]
fn extra_tensors_are_named() {
    let mut edited = mixtral();
    let tensor = edited.tensor(EXPERT).clone();
    edited.tensors.insert("model.layers.1.block_sparse_moe.experts.3.w2.weight".into(), tensor);
    let error = edited.error();
    assert_contains(&error, &["1 tensors", "MixtralForCausalLM", "experts.3.w2.weight"]);
}

#[test]
fn layers_for_further_tokens_and_stored_frequencies_are_passed_over() {
    let mut edited = Edited::of("deepseek_v3_yarn");
    let tensor = edited.tensor("model.norm.weight").clone();
    edited.tensors.insert("model.layers.2.enorm.weight".into(), tensor.clone());
    edited.tensors.insert("model.layers.0.self_attn.rotary_emb.inv_freq".into(), tensor.clone());
    edited.load().unwrap();
    edited.tensors.insert("model.layers.3.enorm.weight".into(), tensor);
    assert_contains(&edited.error(), &["model.layers.3.enorm.weight"]);
}

#[test]
fn experts_of_different_formats_are_refused() {
    let mut edited = mixtral();
    let (dtype, _, bytes) = edited.tensor(EXPERT);
    *dtype = Dtype::BF16;
    bytes.truncate(bytes.len() / 2);
    assert_contains(&edited.error(), &["model.layers.1: format of an expert's weights is bf16"]);
}

#[test]
fn fp8_codes_need_their_declaration_and_their_scales() {
    let mut bare = Edited::of("minimax_m2_fp8");
    bare.config.remove("quantization_config");
    assert_contains(&bare.error(), &["type F8_E4M3", "expected F32, F16 or BF16"]);

    let mut no_scale = Edited::of("minimax_m2_fp8");
    let scale = "model.layers.0.self_attn.q_proj.weight_scale_inv";
    no_scale.tensors.remove(scale);
    assert_contains(&no_scale.error(), &[scale, "[2, 2]"]);
}

#[test]
fn unsupported_quantisation_says_what_is_supported() {
    let cases = [
        (json!({"quant_method": "bitsandbytes"}), "\"bitsandbytes\""),
        (json!({"quant_method": "gptq", "bits": 3}), "bits 3"),
        (json!({"quant_method": "gptq", "bits": 4, "checkpoint_format": "marlin"}), "marlin"),
        (json!({"quant_method": "awq", "bits": 4, "version": "gemv"}), "gemv"),
        (json!({"quant_method": "modelopt", "quant_algo": "W4A8_AWQ"}), "W4A8_AWQ"),
        (json!({"quant_method": "compressed-tensors", "format": "x"}), "config_groups is missing"),
        (json!({"quant_method": "fp8", "weight_block_size": [64, 128]}), "[64, 128]"),
        (json!({"quant_method": "fp8", "fmt": "e5m2", "weight_block_size": [128, 128]}), "e5m2"),
        (json!({"quant_method": 3}), "quantization_config.quant_method is 3"),
        (json!([]), "quantization_config is []"),
    ];
    for (config, expected) in cases {
        let error = mixtral().set("quantization_config", config).error();
        assert_contains(&error, &[expected]);
    }
}

#[test]
fn every_field_that_matters_must_be_there_and_make_sense() {
    for field in ["hidden_size", "num_attention_heads", "num_hidden_layers", "vocab_size"] {
        for wrong in [json!(0), json!(-1), json!(1.5), json!("48"), json!(u64::MAX), Value::Null] {
            let error = mixtral().set(field, wrong).error();
            assert_contains(&error, &["config.json", field, "a whole number from 1 to"]);
        }
    }
    let cases = [
        ("num_key_value_heads", json!(3), "a divisor of num_attention_heads, 4"),
        ("num_local_experts", json!(1 << 20), "config.json: num_experts is 1048576"),
        ("num_experts_per_tok", json!(9), "config.json: top_k is 9"),
        ("hidden_act", json!("tanh"), "hidden_act is \"tanh\""),
        ("hidden_act", json!("relu2_no_mul"), "a function of gate and up"),
        ("rms_norm_eps", json!(-1e-5), "rms_norm_eps is -0.00001"),
        ("rope_theta", json!(0), "rope_theta is 0"),
        ("rope_scaling", json!({"type": "su"}), "rope_scaling.type is \"su\""),
        ("rope_scaling", json!({"type": "linear"}), "rope_scaling.factor is missing"),
        ("rotary_dim", json!(7), "an even number up to the head dimension, 12"),
        ("partial_rotary_factor", json!(2), "at most 1"),
        ("tie_word_embeddings", json!("no"), "true or false"),
        ("max_position_embeddings", json!(0), "max_position_embeddings is 0"),
        ("sliding_window", json!(0), "sliding_window is 0"),
        ("head_dim", json!(1u64 << 40), "head_dim is 1099511627776"),
    ];
    for (field, value, expected) in cases {
        assert_contains(&mixtral().set(field, value).error(), &[expected]);
    }
}

#[test]
fn variants_that_no_released_checkpoint_uses_are_refused() {
    let cases = [
        ("scoring_func", json!("softmax")),
        ("qk_norm_type", json!("per_head")),
        ("use_qk_norm", json!(false)),
        ("use_routing_bias", json!(false)),
        ("shared_intermediate_size", json!(64)),
        ("attn_type_list", json!([1, 0])),
    ];
    for (field, value) in cases {
        let error = Edited::of("minimax_m2_legacy").set(field, value).error();
        assert_contains(&error, &["config.json", field]);
    }
    for (field, value) in [("topk_method", json!("greedy")), ("moe_layer_freq", json!(2))] {
        let error = Edited::of("deepseek_v3_yarn").set(field, value).error();
        assert_contains(&error, &["config.json", field]);
    }
    let error = Edited::of("gpt_oss_yarn").set("layer_types", json!(["chunked", "full"])).error();
    assert_contains(&error, &["layer_types", "2 of full_attention, sliding_attention"]);
}

#[test]
fn weights_that_are_not_numbers_never_panic() {
    for name in FIXTURES {
        for value in [f32::NAN, f32::INFINITY, f32::MAX] {
            for tensor in Edited::of(name).tensors.keys() {
                let mut edited = Edited::of(name);
                let (_, _, bytes) = edited.tensor(tensor);
                bytes.as_chunks_mut().0.fill(value.to_le_bytes());
                // A router refuses a selection bias that is not finite; everything else runs.
                if let Ok(model) = edited.load() {
                    assert_eq!(logits(&model, &[1, 2, 3]).len(), 3 * model.config().vocabulary);
                }
            }
        }
    }
}

/// A value that some field of `config.json` might not expect.
fn hostile_value() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(Value::Null),
        Just(json!([])),
        Just(json!({})),
        Just(json!("")),
        Just(json!(true)),
        Just(json!(u64::MAX)),
        Just(json!(i64::MIN)),
        Just(json!(1e308)),
        Just(json!(1e-308)),
        Just(json!([u64::MAX, 0])),
        (0u64..20).prop_map(Value::from),
        (1u64 << 20..1 << 24).prop_map(Value::from),
        (-2.0..2.0).prop_map(Value::from),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    /// Whatever one field says, loading returns, and a model that loads runs.
    #[test]
    fn hostile_config_fields_never_panic(
        fixture in prop::sample::select(&FIXTURES[..]),
        field in any::<prop::sample::Index>(),
        inner in any::<prop::sample::Index>(),
        value in hostile_value(),
    ) {
        let mut edited = Edited::of(fixture);
        let field = edited.config.keys().nth(field.index(edited.config.len())).cloned().unwrap();
        match edited.config.get_mut(&field) {
            Some(Value::Object(fields)) if !fields.is_empty() => {
                let inner = fields.keys().nth(inner.index(fields.len())).cloned().unwrap();
                fields.insert(inner, value);
            }
            _ => drop(edited.config.insert(field, value)),
        }
        let loaded = edited.load().ok();
        if let Some(model) = loaded.filter(|model| model.config().max_positions >= 3) {
            prop_assert_eq!(logits(&model, &[1, 2, 3]).len(), 3 * model.config().vocabulary);
        }
    }
}
