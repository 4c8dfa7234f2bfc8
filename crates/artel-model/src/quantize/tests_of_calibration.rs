//! What is observed, against a plain computation of the same models on texts of one token each: a token
//! that is alone attends to itself, so attention is what its values are.

use std::collections::{BTreeMap, BTreeSet};

use super::tests::{every_option, fixture, logits};
use super::*;
use crate::weights::dense_matrix;

/// Epsilon of the norms of latent vectors.
const LATENT_EPSILON: f64 = 1e-6;

/// As many tokens as the layer's mean counts for an expert.
const PRIOR_TOKENS: f64 = 32.0;

const TOKENS: std::ops::Range<u32> = 0..60;

/// A model computed number by number in float64, and what each of its matrices was given.
struct Plain {
    checkpoint: Checkpoint,
    met: BTreeMap<String, Vec<Vec<f64>>>,
}

impl Plain {
    fn of(name: &str) -> Self {
        let mut plain = Self { checkpoint: fixture(name), met: BTreeMap::new() };
        TOKENS.for_each(|token| plain.read(token));
        plain
    }

    fn size(&self, field: &str) -> usize {
        self.checkpoint.config().size(field).unwrap()
    }

    fn has(&self, name: &str) -> bool {
        self.checkpoint.tensor(name).is_some()
    }

    /// Rows of a tensor; a vector is one row.
    fn rows(&self, name: &str) -> Vec<Vec<f64>> {
        let tensor = self.checkpoint.tensor(name).unwrap_or_else(|| panic!("no {name}"));
        let columns = *tensor.shape.last().unwrap();
        let rows = tensor.shape.iter().product::<usize>() / columns;
        let matrix = dense_matrix(name, tensor, [rows, columns]).unwrap();
        let row = |row| {
            let mut values = vec![0f32; columns];
            matrix.dequantize_row(row, &mut values);
            values.into_iter().map(f64::from).collect()
        };
        (0..rows).map(row).collect()
    }

    /// `weight x + bias`, remembered.
    fn linear(&mut self, base: &str, x: &[f64]) -> Vec<f64> {
        let (weight, bias) = (format!("{base}.weight"), format!("{base}.bias"));
        let dot = |row: Vec<f64>| row.iter().zip(x).map(|(a, b)| a * b).sum::<f64>();
        let mut out: Vec<f64> = self.rows(&weight).into_iter().map(dot).collect();
        if self.has(&bias) {
            out.iter_mut().zip(&self.rows(&bias)[0]).for_each(|(out, bias)| *out += bias);
        }
        self.met.entry(weight).or_default().push(x.to_vec());
        out
    }

    fn norm(&self, base: &str, x: &[f64], epsilon: f64) -> Vec<f64> {
        let mean = x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64;
        let weight = &self.rows(&format!("{base}.weight"))[0];
        x.iter().zip(weight).map(|(x, weight)| x * weight / (mean + epsilon).sqrt()).collect()
    }

    fn read(&mut self, token: u32) {
        let epsilon = self.checkpoint.config().number("rms_norm_eps").unwrap();
        let mut x = self.rows("model.embed_tokens.weight")[token as usize].clone();
        for number in 0..self.size("num_hidden_layers") {
            let layer = format!("model.layers.{number}");
            let normed = self.norm(&format!("{layer}.input_layernorm"), &x, epsilon);
            let mixed = self.attention(&format!("{layer}.self_attn"), &normed);
            x.iter_mut().zip(mixed).for_each(|(x, mixed)| *x += mixed);
            let normed = self.norm(&format!("{layer}.post_attention_layernorm"), &x, epsilon);
            let mlp = format!("{layer}.mlp");
            if self.has(&format!("{mlp}.gate_proj.weight")) {
                let out = self.gated(&mlp, &normed);
                x.iter_mut().zip(out).for_each(|(x, out)| *x += out);
            } else {
                // The last layer of these fixtures: nobody reads what comes out.
                assert_eq!(number + 1, self.size("num_hidden_layers"));
                self.experts(&mlp, &normed);
            }
        }
    }

    fn attention(&mut self, base: &str, x: &[f64]) -> Vec<f64> {
        let name = |part: &str| format!("{base}.{part}");
        let heads = self.size("num_attention_heads");
        let values = if self.has(&name("kv_b_proj.weight")) {
            if self.has(&name("q_a_proj.weight")) {
                let latent = self.linear(&name("q_a_proj"), x);
                let latent = self.norm(&name("q_a_layernorm"), &latent, LATENT_EPSILON);
                self.linear(&name("q_b_proj"), &latent);
            } else {
                self.linear(&name("q_proj"), x);
            }
            let rank = self.size("kv_lora_rank");
            let latent = self.linear(&name("kv_a_proj_with_mqa"), x);
            let latent = self.norm(&name("kv_a_layernorm"), &latent[..rank], LATENT_EPSILON);
            let expanded = self.linear(&name("kv_b_proj"), &latent);
            let width = expanded.len() / heads;
            let nope = self.size("qk_nope_head_dim");
            expanded.chunks(width).flat_map(|head| head[nope..].to_vec()).collect()
        } else {
            self.linear(&name("q_proj"), x);
            self.linear(&name("k_proj"), x);
            let values = self.linear(&name("v_proj"), x);
            let kv_heads = self.size("num_key_value_heads");
            let width = values.len() / kv_heads;
            let of_head = |head: usize| values[head * kv_heads / heads * width..][..width].to_vec();
            (0..heads).flat_map(of_head).collect::<Vec<f64>>()
        };
        self.linear(&name("o_proj"), &values)
    }

    fn gated(&mut self, base: &str, x: &[f64]) -> Vec<f64> {
        let gate = self.linear(&format!("{base}.gate_proj"), x);
        let up = self.linear(&format!("{base}.up_proj"), x);
        let silu = |x: f64| x / (1.0 + (-x).exp());
        let activated: Vec<f64> = gate.iter().zip(up).map(|(gate, up)| silu(*gate) * up).collect();
        self.linear(&format!("{base}.down_proj"), &activated)
    }

    fn experts(&mut self, base: &str, x: &[f64]) {
        let bias = format!("{base}.gate.e_score_correction_bias");
        let mut scores = self.linear(&format!("{base}.gate"), x);
        if self.has(&bias) {
            let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
            let biases = self.rows(&bias).remove(0);
            scores.iter_mut().zip(biases).for_each(|(score, bias)| *score = sigmoid(*score) + bias);
        }
        let mut order: Vec<usize> = (0..scores.len()).collect();
        order.sort_by(|a, b| scores[*b].total_cmp(&scores[*a]));
        for expert in &order[..self.size("num_experts_per_tok")] {
            self.gated(&format!("{base}.experts.{expert}"), x);
        }
        for shared in ["shared_expert", "shared_experts"] {
            let shared = format!("{base}.{shared}");
            if self.has(&format!("{shared}.gate_proj.weight")) {
                self.gated(&shared, x);
            }
        }
    }

    /// Mean squares of what a matrix was given. To an expert belongs the mean over its layer.
    fn mean_squares(&self, name: &str) -> Vec<f64> {
        let rows_of = |name: &str| self.met.get(name).cloned().unwrap_or_default();
        let mut rows = rows_of(name).len() as f64;
        let columns = *self.checkpoint.tensor(name).unwrap().shape.last().unwrap();
        let sums = |rows: &[Vec<f64>]| -> Vec<f64> {
            (0..columns).map(|k| rows.iter().map(|row| row[k] * row[k]).sum()).collect()
        };
        let mut sum = sums(&rows_of(name));
        if let Some((layer, rest)) = name.split_once(".experts.") {
            let (_, projection) = rest.split_once('.').unwrap();
            let experts = (0..64).map(|expert| format!("{layer}.experts.{expert}.{projection}"));
            let all: Vec<Vec<f64>> = experts.flat_map(|name| rows_of(&name)).collect();
            for (sum, layer) in sum.iter_mut().zip(sums(&all)) {
                *sum += PRIOR_TOKENS * layer / all.len() as f64;
            }
            rows += PRIOR_TOKENS;
        }
        sum.into_iter().map(|sum| sum / rows).collect()
    }
}

fn observe(checkpoint: &Checkpoint, pieces: &[Vec<u32>]) -> Calibration {
    let model = Model::load(checkpoint, &LoadOptions::default()).unwrap();
    Calibration::observe(&model, pieces, &mut |_| ()).unwrap()
}

/// Texts of a few lengths.
fn pieces() -> Vec<Vec<u32>> {
    let length = [1, 7, 40, 3, 100, 21];
    length.map(|length| (0..length).map(|place| place * 11 % 67).collect()).to_vec()
}

#[test]
fn what_matrices_meet_is_what_a_plain_computation_gives_them() {
    let mut kinds = BTreeSet::new();
    for name in ["deepseek_v3_plain", "qwen2_moe_shared"] {
        let plain = Plain::of(name);
        let one_token: Vec<Vec<u32>> = TOKENS.map(|token| vec![token]).collect();
        let found = observe(&plain.checkpoint, &one_token);
        assert_eq!(found.tokens(), TOKENS.len());
        for tensor in quantized_names(&plain.checkpoint).unwrap() {
            let found = found.mean_squares(&tensor).unwrap();
            let expected = plain.mean_squares(&tensor);
            assert_eq!(found.len(), expected.len(), "{tensor}");
            for (found, expected) in found.iter().zip(expected) {
                let difference = (f64::from(*found) - expected).abs();
                assert!(difference <= 1e-4 * expected + 1e-9, "{tensor}: {found}, not {expected}");
            }
            kinds.insert(tensor.replace(char::is_numeric, ""));
        }
    }
    let of_kind = |part: &str| kinds.iter().filter(|kind| kind.contains(part)).count();
    let parts = [".kv_a_", "attn.o_proj", ".mlp.down", ".experts..down", "shared_expert.down"];
    assert!(parts.iter().all(|part| of_kind(part) == 1), "{kinds:?}");
}

#[test]
fn all_that_is_quantised_is_met_in_every_architecture() {
    for name in [
        "deepseek_v3_yarn",
        "glm4_moe_groups",
        "minimax_m2_tied",
        "mixtral_top2",
        "olmoe_clip",
        "qwen2_moe_window",
        "qwen3_moe_norm",
    ] {
        let checkpoint = fixture(name);
        let calibration = observe(&checkpoint, &pieces());
        for tensor in quantized_names(&checkpoint).unwrap() {
            let found = calibration.mean_squares(&tensor).unwrap_or_else(|| panic!("no {tensor}"));
            let columns = checkpoint.tensor(&tensor).unwrap().shape[1];
            assert_eq!(found.len(), columns, "{name} {tensor}");
            assert!(found.iter().any(|mean| *mean > 0.0), "{name} {tensor}");
        }
    }
}

#[test]
fn how_texts_share_steps_and_threads_changes_little_and_nothing() {
    let checkpoint = fixture("mixtral_top2");
    let together = observe(&checkpoint, &pieces());
    let observed = || observe(&checkpoint, &pieces());
    let threads = |count| artel_device::cpu::with_threads(count, observed).unwrap();
    assert_eq!(threads(1), threads(3));
    assert_eq!(threads(1), together);
    // 40 texts of 100 tokens need several steps.
    let many: Vec<Vec<u32>> = (0..40).map(|_| pieces()[4].clone()).collect();
    let mut tokens = Vec::new();
    let model = Model::load(&checkpoint, &LoadOptions::default()).unwrap();
    let report = &mut |progress: CalibrationProgress| tokens.push(progress.tokens_done);
    let many = Calibration::observe(&model, &many, report).unwrap();
    assert_eq!(tokens, [1000, 2000, 3000, 4000]);
    let once = observe(&checkpoint, &pieces()[4..5]);
    for tensor in quantized_names(&checkpoint).unwrap().iter().filter(|name| name.contains("attn"))
    {
        let pair = [&many, &once].map(|all| all.mean_squares(tensor).unwrap());
        let near = |(a, b): (&f32, &f32)| (a - b).abs() <= 1e-4 * b;
        assert!(pair[0].iter().zip(pair[1]).all(near), "{tensor}");
    }
}

#[test]
fn calibrated_folders_load_and_their_outputs_lose_less() {
    let checkpoint = fixture("mixtral_top2");
    let calibration = observe(&checkpoint, &pieces());
    let exact = logits(&Model::load(&checkpoint, &LoadOptions::default()).unwrap());
    for options in every_option() {
        let out = tempfile::tempdir().unwrap();
        let (usual, fitted) = (out.path().join("usual"), out.path().join("fitted"));
        let uncalibrated = quantize(&checkpoint, &options, &usual, &mut |_| ()).unwrap();
        let report = &mut |_| ();
        let done = quantize_calibrated(&checkpoint, &options, &calibration, &fitted, report);
        let done = done.unwrap();
        assert_eq!(done.bytes, uncalibrated.bytes);
        for (layer, usual) in done.layers.iter().zip(&uncalibrated.layers) {
            let errors = layer.calibrated.unwrap();
            assert_eq!(errors.uncalibrated_error, usual.error);
            assert_eq!(usual.calibrated, None);
            let limit = if options.format == Format::Mxfp8 { 1.0 } else { 0.9999 };
            assert!(errors.output_error <= limit * errors.uncalibrated_output_error, "{errors:?}");
        }
        let config = |folder: &Path| std::fs::read(folder.join("config.json")).unwrap();
        assert_eq!(config(&usual), config(&fitted));
        let model = Model::load(&Checkpoint::open(&fitted).unwrap(), &LoadOptions::default());
        let found = logits(&model.unwrap());
        let lost: f64 = found.iter().zip(&exact).map(|(a, b)| f64::from(a - b).powi(2)).sum();
        let all: f64 = exact.iter().map(|b| f64::from(*b).powi(2)).sum();
        let limit = if options.format.number_bits() == 4 { 0.4 } else { 0.2 };
        assert!((lost / all).sqrt() < limit, "{options:?}: {}", (lost / all).sqrt());
    }
}

#[test]
fn a_calibration_of_another_model_is_refused() {
    let calibration = observe(&fixture("qwen2_moe_shared"), &pieces());
    let out = tempfile::tempdir().unwrap();
    let (checkpoint, options) = (fixture("mixtral_top2"), every_option()[0]);
    let done = quantize_calibrated(&checkpoint, &options, &calibration, out.path(), &mut |_| ());
    let why = done.unwrap_err().to_string();
    assert!(why.contains("calibration is that of another model"), "{why}");
}
