//! The models: the bundled one, and small ones of several architectures with random weights.

use artel_model::{Checkpoint, Format, LoadOptions, Model};
use serde_json::{Value, json};

/// A small model and how well it is met.
#[derive(Debug, Clone)]
pub struct Small {
    pub name: &'static str,
    /// Largest `1 - 2 <a, b> / (|a|^2 + |b|^2)` of half of the rows of logits; three times that of most.
    pub typical: f64,
    /// And of every row: a token may choose another expert where two are nearly as good.
    pub largest: f64,
    config: Option<&'static str>,
    changes: Value,
    /// What weights become.
    format: Option<Format>,
}

/// bfloat16 between operations is a relative error of 2^-9 each, some ten a layer.
const ROUNDED: f64 = 1e-4;

/// FP8 activations: rows that differ by a rounding of 2^-9 have one code in thirty that is the next one, which
/// is 2^-4 away: a hundredth of a row, a dozen times.
const CODES: f64 = 3e-4;

/// An expert for another in a layer or two.
const OTHER_EXPERT: f64 = 0.1;

impl Small {
    pub fn load(&self) -> Model {
        let checkpoint = match self.config {
            None => Checkpoint::open(TALLY.as_ref()),
            Some(config) => {
                let mut config: Value = serde_json::from_str(config).expect("a fixture");
                let fields = config.as_object_mut().expect("an object");
                fields.extend(self.changes.as_object().expect("an object").clone());
                let folder = tempfile::tempdir().expect("a folder");
                std::fs::write(folder.path().join("config.json"), config.to_string())
                    .expect("a file");
                Checkpoint::open_dummy(folder.path())
            }
        };
        let checkpoint = checkpoint.expect("a checkpoint");
        let options = LoadOptions { format: self.format, ..LoadOptions::default() };
        Model::load(&checkpoint, &options).expect("a model")
    }
}

/// The bundled model.
const TALLY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../models/tally");

/// `config.json` of a fixture.
macro_rules! fixture {
    ($name:literal) => {
        include_str!(concat!("../fixtures/", $name, "/config.json"))
    };
}

/// Sizes that kernels take, put over what a fixture says.
fn sizes(heads: usize, kv_heads: usize, head_dim: usize, further: Value) -> Value {
    let sizes = json!({
        "hidden_size": 256,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
        "vocab_size": 520,
        "num_hidden_layers": 3,
        "max_position_embeddings": 1024,
    });
    with(sizes, further)
}

/// The same for latent attention: its ranks, and elements of a head that do not turn, that turn, of values.
fn latent(query_rank: usize, rank: usize, [nope, rope, value]: [usize; 3]) -> Value {
    let further = json!({
        "q_lora_rank": query_rank,
        "kv_lora_rank": rank,
        "qk_nope_head_dim": nope,
        "qk_rope_head_dim": rope,
        "qk_head_dim": nope + rope,
        "v_head_dim": value,
        "n_routed_experts": 16,
        "n_group": 4,
        "topk_group": 2,
        "num_experts_per_tok": 4,
        "moe_intermediate_size": 128,
        "intermediate_size": 192,
    });
    sizes(4, 4, rope, further)
}

fn small(name: &'static str, config: &'static str, typical: f64, changes: Value) -> Small {
    let largest = OTHER_EXPERT;
    Small { name, typical, largest, config: Some(config), changes, format: None }
}

/// Fields put over others.
fn with(mut base: Value, further: Value) -> Value {
    let fields = base.as_object_mut().expect("an object");
    fields.extend(further.as_object().expect("an object").clone());
    base
}

pub fn models() -> Vec<Small> {
    let experts = |count: usize, top_k: usize| {
        json!({"num_local_experts": count, "num_experts": count, "num_experts_per_tok": top_k,
               "moe_intermediate_size": 128, "intermediate_size": 192})
    };
    // Sinks, windows on some layers, YaRN, biases of everything, gates and ups in turns that are clamped.
    let gpt_oss = small("gpt_oss", fixture!("gpt_oss_yarn"), ROUNDED, {
        let kinds = ["sliding_attention", "full_attention", "sliding_attention"];
        let further = json!({"layer_types": kinds, "sliding_window": 37, "swiglu_limit": 1.1});
        sizes(4, 2, 64, with(experts(8, 4), further))
    });
    vec![
        Small {
            name: "tally",
            config: None,
            typical: ROUNDED,
            largest: OTHER_EXPERT,
            changes: json!({}),
            format: None,
        },
        // A norm by head, biases, one dense layer, a tied output layer.
        small(
            "qwen3_moe",
            fixture!("qwen3_moe_norm"),
            ROUNDED,
            sizes(8, 2, 64, with(experts(16, 4), json!({"tie_word_embeddings": true}))),
        ),
        // Norms over all heads, FP8 in blocks, part of a head turns.
        small("minimax_m2_fp8", fixture!("minimax_m2_fp8"), CODES, sizes(4, 2, 64, experts(16, 4))),
        // Attention of prompts that stores codes.
        small("minimax_m2_fp8_128", fixture!("minimax_m2_fp8"), CODES, {
            sizes(4, 2, 128, experts(16, 4))
        }),
        // As many key-value heads as query heads, another scaling of frequencies.
        small("olmoe", fixture!("olmoe_llama3"), ROUNDED, sizes(4, 4, 64, experts(8, 2))),
        // A shared expert behind a gate, biases, a dense layer.
        small("qwen2_moe", fixture!("qwen2_moe_shared"), ROUNDED, {
            let shared = json!({"shared_expert_intermediate_size": 160});
            sizes(4, 2, 64, with(experts(8, 2), shared))
        }),
        // Two shared experts, a bias and groups in the router.
        small("glm4_moe", fixture!("glm4_moe_bias"), ROUNDED, {
            let routed = json!({"n_routed_experts": 16, "n_group": 4, "topk_group": 2});
            sizes(4, 2, 64, with(experts(16, 2), routed))
        }),
        // A window that is shorter than prompts.
        small(
            "mixtral_window",
            fixture!("mixtral_window"),
            ROUNDED,
            sizes(4, 2, 128, with(experts(8, 3), json!({"sliding_window": 37}))),
        ),
        gpt_oss.clone(),
        Small { name: "gpt_oss_mxfp4", format: Some(Format::Mxfp4), ..gpt_oss },
    ]
    .into_iter()
    .chain(latent_models())
    .collect()
}

/// Those with latent attention.
fn latent_models() -> Vec<Small> {
    vec![
        // Latent attention: query latents, YaRN, a dense layer first, a bias and groups in the router.
        small("deepseek_v3", fixture!("deepseek_v3_yarn"), ROUNDED, latent(192, 128, [64, 32, 64])),
        // FP8 in blocks, with a norm of query latents that makes codes: one more map that reads some.
        Small {
            typical: 1.5 * CODES,
            format: Some(Format::Fp8Block128),
            ..small("deepseek_v3_fp8", fixture!("deepseek_v3_yarn"), CODES, {
                latent(256, 512, [128, 64, 128])
            })
        },
        // Queries made directly, biases, halves that turn together. Weights of experts are not made to
        // add up to one, so that another expert changes more.
        Small {
            largest: 2.0 * OTHER_EXPERT,
            ..small("deepseek_v3_direct", fixture!("deepseek_v3_plain"), ROUNDED, {
                let direct = json!({"q_lora_rank": null, "n_group": 1, "topk_group": 1});
                with(latent(192, 256, [32, 16, 64]), direct)
            })
        },
    ]
}
