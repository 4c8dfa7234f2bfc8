use proptest::prelude::*;

use super::*;

const PLAIN: RopeConfig =
    RopeConfig { rotary_dim: 12, theta: 1e4, scaling: RopeScaling::None, style: RopeStyle::NeoX };

const YARN: Yarn = Yarn {
    factor: 4.0,
    beta_fast: 32.0,
    beta_slow: 1.0,
    original_max_position: 4096,
    attention: YarnAttention::FromFactor,
    truncate: true,
};

fn scaled(rotary_dim: usize, theta: f64, scaling: RopeScaling) -> RopeConfig {
    RopeConfig { rotary_dim, theta, scaling, style: RopeStyle::NeoX }
}

/// The numbers that `transformers` has under `key` for the case `name`.
fn golden(name: &str, key: &str) -> Vec<f32> {
    let start = format!("{name} {key} ");
    let mut lines = include_str!("../../golden/rope.txt").lines();
    let line = lines.find_map(|line| line.strip_prefix(&start)).unwrap();
    line.split(' ').map(|number| number.parse().unwrap()).collect()
}

/// Frequencies within two units in the last place of those of `transformers`, tables as near as
/// that allows at each position.
fn check_golden(config: &RopeConfig, name: &str) {
    let rope = Rope::new(config).unwrap();
    assert!((rope.attention_scaling() - golden(name, "attention_scaling")[0]).abs() < 1e-6);
    let near = |found: f32, expected: f32| (found - expected).abs() <= 2.4e-7 * expected.abs();
    let frequencies = golden(name, "inverse_frequencies");
    assert_eq!(rope.inverse_frequencies().len(), frequencies.len());
    for (found, expected) in rope.inverse_frequencies().iter().zip(&frequencies) {
        assert!(near(*found, *expected), "{found} for {expected}");
    }
    let positions: Vec<usize> =
        golden("all", "positions").into_iter().map(|position| position as usize).collect();
    let table = rope.table(&positions);
    for (found, expected) in [(&table.cos, golden(name, "cos")), (&table.sin, golden(name, "sin"))]
    {
        assert_eq!(found.len(), expected.len());
        for (index, (found, expected)) in found.iter().zip(&expected).enumerate() {
            let position = positions[index / table.pairs];
            let angle = position as f32 * frequencies[index % table.pairs];
            let near = (found - expected).abs() <= 1e-6 + 2.4e-7 * angle;
            assert!(near, "{found} for {expected} at {position}");
        }
    }
}

#[test]
fn unscaled_as_transformers() {
    check_golden(&PLAIN, "default");
    check_golden(&scaled(64, 5e6, RopeScaling::None), "partial");
}

#[test]
fn linear_and_llama3_as_transformers() {
    check_golden(&scaled(16, 1e4, RopeScaling::Linear { factor: 2.5 }), "linear");
    let llama3 = RopeScaling::Llama3(Llama3 {
        factor: 8.0,
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_max_position: 8192,
    });
    check_golden(&scaled(64, 5e5, llama3), "llama3");
}

#[test]
fn yarn_as_transformers() {
    let gpt_oss = Yarn { factor: 32.0, truncate: false, ..YARN };
    check_golden(&scaled(64, 150_000.0, RopeScaling::Yarn(gpt_oss)), "yarn_gpt_oss");
    let quotient = YarnAttention::Quotient { mscale: 1.0, mscale_all_dim: 0.707 };
    let deepseek = Yarn { factor: 40.0, attention: quotient, ..YARN };
    check_golden(&scaled(64, 1e4, RopeScaling::Yarn(deepseek)), "yarn_deepseek");
    check_golden(&scaled(32, 1e6, RopeScaling::Yarn(YARN)), "yarn_plain");
    let explicit = Yarn { attention: YarnAttention::Explicit(0.75), ..YARN };
    check_golden(&scaled(32, 1e6, RopeScaling::Yarn(explicit)), "yarn_explicit");
}

/// The fast code agrees with the definition.
fn check(config: &RopeConfig, positions: &[usize], target: &RopeTarget) {
    let rope = Rope::new(config).unwrap();
    let elements = positions.len() * target.row_width;
    let before: Vec<f32> = (0..elements).map(|i| (i * 29 % 83) as f32 / 40.0 - 1.0).collect();
    let expected = reference::apply(&rope, positions, target, &before);
    let mut after = before;
    rope.table(positions).apply(target, &mut after).unwrap();
    for (index, (found, expected)) in after.iter().zip(&expected).enumerate() {
        assert!((f64::from(*found) - expected).abs() < 1e-6, "{index}: {found} for {expected}");
    }
}

#[test]
fn no_token_one_token_and_many() {
    for style in [RopeStyle::NeoX, RopeStyle::Interleaved] {
        let config = RopeConfig { style, ..PLAIN };
        check(&config, &[], &RopeTarget::heads(3, 12));
        check(&config, &[0], &RopeTarget::heads(1, 12));
        check(&config, &[5, 5, 1_000_003], &RopeTarget::heads(3, 12));
        check(&config, &[7, 8], &RopeTarget::heads(0, 12));
    }
}

#[test]
fn a_part_of_a_head_or_of_a_row() {
    for style in [RopeStyle::NeoX, RopeStyle::Interleaved] {
        let config = RopeConfig { style, ..PLAIN };
        check(&config, &[3, 4], &RopeTarget::heads(2, 17));
        check(&config, &[3, 4], &RopeTarget::heads(2, 17).at(5));
        let latent = RopeTarget { row_width: 30, columns: 18..30, head_dim: 12, offset: 0 };
        check(&config, &[3, 4], &latent);
    }
}

#[test]
fn both_sides_of_the_switch_to_threads() {
    let positions: Vec<usize> = (0..130).collect();
    for heads in [20, 22, 64] {
        check(&PLAIN, &positions, &RopeTarget::heads(heads, 12));
    }
}

#[test]
fn targets_that_do_not_fit_are_refused() {
    let table = Rope::new(&PLAIN).unwrap().table(&[0, 1]);
    let mut rows = vec![0.0; 48];
    assert!(table.apply(&RopeTarget::heads(2, 12), &mut rows).is_ok());
    assert!(table.apply(&RopeTarget::heads(2, 12), &mut rows[1..]).is_err());
    assert!(table.apply(&RopeTarget::heads(3, 8), &mut rows).is_err());
    assert!(table.apply(&RopeTarget::heads(2, 12).at(1), &mut rows).is_err());
    assert!(table.apply(&RopeTarget::heads(2, 12).at(usize::MAX), &mut rows).is_err());
    let outside = RopeTarget { row_width: 24, columns: 13..25, head_dim: 12, offset: 0 };
    assert!(table.apply(&outside, &mut rows).is_err());
    let no_width = RopeTarget { row_width: 24, columns: 0..24, head_dim: 0, offset: 0 };
    assert!(table.apply(&no_width, &mut rows).is_err());
}

#[test]
fn impossible_configurations_are_refused() {
    let refused = |config: RopeConfig| Rope::new(&config).unwrap_err().to_string();
    for rotary_dim in [0, 7, usize::MAX - 1] {
        assert!(refused(RopeConfig { rotary_dim, ..PLAIN }).contains("rotary_dim"));
    }
    for theta in [0.0, -1.0, f64::NAN, f64::INFINITY] {
        assert!(refused(RopeConfig { theta, ..PLAIN }).contains("rope_theta"));
    }
    assert!(refused(scaled(12, 1.0, RopeScaling::Yarn(YARN))).contains("YaRN"));
    assert!(refused(scaled(12, 1e4, RopeScaling::Linear { factor: 0.0 })).contains("factor"));
    let yarn = Yarn { beta_fast: 0.0, ..YARN };
    assert!(refused(scaled(12, 1e4, RopeScaling::Yarn(yarn))).contains("beta_fast"));
    let llama3 = RopeScaling::Llama3(Llama3 {
        factor: 8.0,
        low_freq_factor: 4.0,
        high_freq_factor: 4.0,
        original_max_position: 8192,
    });
    assert!(refused(scaled(12, 1e4, llama3)).contains("high_freq_factor"));
}

proptest! {
    #[test]
    fn products_depend_on_the_distance_only(
        query in prop::collection::vec(-1f32..1.0, 12),
        key in prop::collection::vec(-1f32..1.0, 12),
        (distance, shift) in (0usize..500, 0usize..500),
    ) {
        let rope = Rope::new(&PLAIN).unwrap();
        let product = |query_at: usize, key_at: usize| {
            let mut rows = [query.clone(), key.clone()].concat();
            let table = rope.table(&[query_at, key_at]);
            table.apply(&RopeTarget::heads(1, 12), &mut rows).unwrap();
            crate::vector::dot(&rows[..12], &rows[12..])
        };
        prop_assert!((product(distance, 0) - product(distance + shift, shift)).abs() < 1e-3);
    }

    #[test]
    fn lengths_are_kept(row in prop::collection::vec(-1f32..1.0, 12), position in 0usize..100_000) {
        let mut turned = row.clone();
        let table = Rope::new(&PLAIN).unwrap().table(&[position]);
        table.apply(&RopeTarget::heads(1, 12), &mut turned).unwrap();
        let length = |row: &[f32]| crate::vector::dot(row, row).sqrt();
        prop_assert!((length(&row) - length(&turned)).abs() < 1e-5);
    }
}
