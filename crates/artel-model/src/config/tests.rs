use artel_layers::rope::{Llama3, RopeScaling, RopeStyle, Yarn, YarnAttention};
use serde_json::json;

use super::*;

fn object(value: &Value) -> ConfigReader<'_> {
    ConfigReader::new("config.json".to_owned(), value.as_object().expect("an object"))
}

fn rope(config: &Value) -> Result<artel_layers::rope::RopeConfig> {
    rope_config(&object(config), 64, RotaryPart::Whole, RopeStyle::NeoX)
}

fn scaling(config: &Value) -> RopeScaling {
    rope(config).unwrap().scaling
}

#[test]
fn both_spellings_of_rope_say_the_same() {
    let pairs = [
        (
            json!({"rope_theta": 5e6, "rotary_dim": 32}),
            json!({"rope_parameters": {"rope_theta": 5e6, "partial_rotary_factor": 0.5,
                                       "rope_type": "default"}, "rotary_dim": 32}),
        ),
        (
            json!({"rope_theta": 1e4, "partial_rotary_factor": 0.25, "rope_scaling": null}),
            json!({"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.25}}),
        ),
        (
            json!({"rope_theta": 1e4, "rope_scaling": {"type": "linear", "factor": 4}}),
            json!({"rope_parameters": {"rope_theta": 1e4, "rope_type": "linear", "factor": 4.0}}),
        ),
    ];
    for (old, new) in pairs {
        assert_eq!(rope(&old).unwrap(), rope(&new).unwrap());
    }
    // The newer object counts where a file has both.
    let both = json!({"rope_theta": 1.0, "rope_parameters": {"rope_theta": 2.0}});
    assert_eq!(rope(&both).unwrap().theta, 2.0);
}

#[test]
fn yarn_takes_its_defaults_from_the_context() {
    let config = json!({"rope_theta": 1e4, "max_position_embeddings": 160,
        "rope_scaling": {"type": "yarn", "original_max_position_embeddings": 40}});
    let expected = Yarn {
        factor: 4.0,
        beta_fast: 32.0,
        beta_slow: 1.0,
        original_max_position: 40,
        attention: YarnAttention::FromFactor,
        truncate: true,
    };
    assert_eq!(scaling(&config), RopeScaling::Yarn(expected));

    let config = json!({"rope_theta": 1e4, "max_position_embeddings": 160, "rope_scaling": {
        "rope_type": "yarn", "factor": 40, "beta_fast": 16, "beta_slow": 2, "truncate": false,
        "mscale": 1.0, "mscale_all_dim": 0.5}});
    let quotient = YarnAttention::Quotient { mscale: 1.0, mscale_all_dim: 0.5 };
    let expected = Yarn {
        factor: 40.0,
        beta_fast: 16.0,
        beta_slow: 2.0,
        original_max_position: 160,
        attention: quotient,
        truncate: false,
    };
    assert_eq!(scaling(&config), RopeScaling::Yarn(expected));
}

#[test]
fn yarn_prefers_what_is_said_explicitly() {
    let with = |field: &str, value: f64| {
        let mut config = json!({"rope_theta": 1e4, "max_position_embeddings": 160, "rope_scaling":
            {"type": "yarn", "factor": 2, "mscale": 0.0, "mscale_all_dim": 1.0}});
        config["rope_scaling"][field] = value.into();
        match scaling(&config) {
            RopeScaling::Yarn(yarn) => yarn.attention,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(with("attention_factor", 1.5), YarnAttention::Explicit(1.5));
    assert_eq!(with("factor", 2.0), YarnAttention::FromFactor);
}

#[test]
fn the_context_of_training_beside_the_parameters_counts_first() {
    let config = json!({"rope_theta": 1e4, "original_max_position_embeddings": 8, "rope_scaling":
        {"rope_type": "llama3", "factor": 8, "low_freq_factor": 1, "high_freq_factor": 4,
         "original_max_position_embeddings": 16}});
    let expected = Llama3 {
        factor: 8.0,
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_max_position: 8,
    };
    assert_eq!(scaling(&config), RopeScaling::Llama3(expected));
}

#[test]
fn a_declared_part_must_be_declared() {
    let config = json!({"rope_theta": 1e4});
    let declared = rope_config(&object(&config), 64, RotaryPart::Declared, RopeStyle::NeoX);
    let error = declared.unwrap_err().to_string();
    assert!(error.contains("partial_rotary_factor is missing"), "{error}");
    assert_eq!(rope(&config).unwrap().rotary_dim, 64);
}

#[test]
fn wrong_values_of_rope_are_named() {
    let cases = [
        (json!({}), "rope_theta is missing"),
        (json!({"rope_parameters": {"rope_theta": "x"}}), "rope_parameters.rope_theta is \"x\""),
        (json!({"rope_theta": 1, "rotary_dim": 66}), "up to the head dimension, 64"),
        (json!({"rope_theta": 1, "partial_rotary_factor": 0.05}), "an even part of the 64"),
        (json!({"rope_theta": 1, "rope_scaling": {"type": "dynamic"}}), "one of default, linear"),
        (json!({"rope_theta": 1, "rope_scaling": 3}), "rope_scaling is 3, expected an object"),
    ];
    for (config, expected) in cases {
        let error = rope(&config).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn latent_attention_is_scaled_under_yarn_only() {
    let config =
        |kind: &str| json!({"rope_scaling": {"type": kind, "factor": 40, "mscale_all_dim": 1.0}});
    let expected = (0.1 * 40f64.ln() + 1.0).powi(2);
    assert_eq!(latent_attention_mscale(&object(&config("yarn"))).unwrap(), expected);
    assert_eq!(latent_attention_mscale(&object(&config("default"))).unwrap(), 1.0);
    assert_eq!(latent_attention_mscale(&object(&json!({}))).unwrap(), 1.0);
}

#[test]
fn long_values_are_shortened_in_errors() {
    let config = json!({"a": "ü".repeat(500), "b": vec![0; 100], "c": {"d": 1}});
    let shown = |field| object(&config).error(field, "less").to_string();
    assert!(shown("a").chars().count() < 150);
    assert!(shown("b").contains("a list of 100 items"));
    assert!(shown("c").contains("an object of 1 fields"));
    assert!(shown("e").contains("e is missing"));
}
