use proptest::prelude::*;

use super::*;

const PLAIN: SamplingParams = SamplingParams {
    temperature: 1.0,
    top_k: 0,
    top_p: 1.0,
    min_p: 0.0,
    repetition_penalty: 1.0,
    presence_penalty: 0.0,
    frequency_penalty: 0.0,
    seed: 7,
};

const NOTHING: Adjustments<'_> = Adjustments { allowed: None, banned: &[], bias: &[] };

fn sample_at(params: SamplingParams, position: u64, logits: &[f32]) -> Sampled {
    let mut logits = logits.to_vec();
    let sampler = Sampler::new(params).unwrap();
    sampler.sample(&TokenHistory::default(), position, NOTHING, &mut logits).unwrap()
}

/// Frequencies over many draws agree with the definition, and nothing impossible is drawn.
fn check(params: SamplingParams, history: &TokenHistory, logits: &[f32]) {
    const DRAWS: u64 = 4000;
    let expected = reference::probabilities(&params, history, logits);
    let sampler = Sampler::new(params).unwrap();
    let mut counts = vec![0u64; logits.len()];
    for position in 0..DRAWS {
        let sampled = sampler.sample(history, position, NOTHING, &mut logits.to_vec()).unwrap();
        counts[sampled.id as usize] += 1;
    }
    for (id, (&count, &probability)) in counts.iter().zip(&expected).enumerate() {
        let deviation = (DRAWS as f64 * probability * (1.0 - probability)).sqrt();
        let error = (count as f64 - DRAWS as f64 * probability).abs();
        assert!(error <= 5.0 * deviation + 1e-3, "{params:?} {id}: {count} for {probability}");
    }
}

const LOGITS: [f32; 7] = [0.3, 2.0, -1.0, 2.0, 1.1, f32::NAN, 0.9];

#[test]
fn each_filter_alone_and_together() {
    let history = TokenHistory::default();
    for params in [
        PLAIN,
        SamplingParams { temperature: 0.5, ..PLAIN },
        SamplingParams { temperature: 30.0, ..PLAIN },
        SamplingParams { top_k: 1, ..PLAIN },
        SamplingParams { top_k: 3, ..PLAIN },
        SamplingParams { top_k: 100, ..PLAIN },
        SamplingParams { top_p: 1e-6, ..PLAIN },
        SamplingParams { top_p: 0.6, ..PLAIN },
        SamplingParams { min_p: 0.3, ..PLAIN },
        SamplingParams { min_p: 1.0, ..PLAIN },
        SamplingParams { temperature: 0.7, top_k: 5, top_p: 0.9, min_p: 0.05, ..PLAIN },
        SamplingParams { temperature: 0.0, top_k: 3, ..PLAIN },
    ] {
        check(params, &history, &LOGITS);
    }
}

#[test]
fn each_penalty_alone_and_together() {
    let mut history = TokenHistory::of_prompt(&[1, 2, 2, 900]);
    [4, 4, 1].into_iter().for_each(|id| history.push(id));
    for params in [
        SamplingParams { repetition_penalty: 1.7, ..PLAIN },
        SamplingParams { presence_penalty: 1.5, ..PLAIN },
        SamplingParams { frequency_penalty: -0.5, ..PLAIN },
        SamplingParams {
            repetition_penalty: 0.8,
            presence_penalty: 0.5,
            frequency_penalty: 0.5,
            temperature: 0.8,
            top_p: 0.8,
            ..PLAIN
        },
    ] {
        check(params, &history, &LOGITS);
    }
}

#[test]
fn masks_bans_and_biases_come_first() {
    let history = TokenHistory::of_prompt(&[0, 3]);
    let params = SamplingParams { repetition_penalty: 1.3, ..PLAIN };
    let sampler = Sampler::new(params).unwrap();
    let mut allowed = TokenMask::none(LOGITS.len());
    [0, 2, 3, 4].into_iter().for_each(|id| allowed.allow(id));
    for adjustments in [
        Adjustments { allowed: Some(&allowed), ..NOTHING },
        Adjustments { banned: &[1, 900], ..NOTHING },
        Adjustments { bias: &[(2, 2.5), (1, -100.0), (900, 1.0)], ..NOTHING },
        Adjustments { allowed: Some(&allowed), banned: &[3], bias: &[(0, 1.0), (1, 50.0)] },
    ] {
        let adjusted = reference::adjusted(&adjustments, &LOGITS);
        for position in 0..100 {
            let mut logits = LOGITS;
            let found = sampler.sample(&history, position, adjustments, &mut logits).unwrap();
            let expected = sampler.sample(&history, position, NOTHING, &mut adjusted.clone());
            assert_eq!(found.id, expected.unwrap().id, "{adjustments:?}");
            let own = TokenLogprobs::new(&LOGITS, found.id, 0);
            assert_eq!(found.logprob, own.logprob, "the model's own distribution");
        }
    }
    let nothing = TokenMask::none(LOGITS.len());
    let adjustments = Adjustments { allowed: Some(&nothing), ..NOTHING };
    assert!(nothing.is_empty());
    assert!(sampler.sample(&history, 0, adjustments, &mut LOGITS.clone()).is_err());
}

#[test]
fn a_mask_ends_where_the_vocabulary_ends() {
    for vocabulary in [0, 1, 31, 32, 33, 64] {
        let mut mask = TokenMask::none(vocabulary);
        mask.allow_all();
        mask.allow(vocabulary as u32);
        assert_eq!(mask.is_empty(), vocabulary == 0);
        assert!((0..vocabulary as u32).all(|id| mask.is_allowed(id)));
        assert!(!mask.is_allowed(vocabulary as u32));
        let mut logits = [0.0; 70];
        mask.apply(&mut logits);
        assert_eq!(logits.iter().filter(|logit| **logit == 0.0).count(), vocabulary);
        mask.clear();
        assert!(mask.is_empty());
    }
}

#[test]
fn the_most_probable_tokens_are_listed_in_order() {
    let found = TokenLogprobs::new(&LOGITS, 4, 3);
    let normalizer: f64 =
        LOGITS.iter().filter(|l| !l.is_nan()).map(|&l| f64::from(l).exp()).sum::<f64>().ln();
    let logprob = |logit: f64| (logit - normalizer) as f32;
    assert!((found.logprob - logprob(1.1)).abs() < 1e-6);
    let ids: Vec<u32> = found.top.iter().map(|(id, _)| *id).collect();
    assert_eq!(ids, [1, 3, 4]);
    assert!((found.top[0].1 - logprob(2.0)).abs() < 1e-6);
    assert_eq!(TokenLogprobs::new(&LOGITS, 4, 100).top.len(), 6);
}

#[test]
fn greedy_takes_the_lowest_of_equal_ids() {
    assert_eq!(sample_at(SamplingParams::greedy(), 0, &LOGITS).id, 1);
    assert_eq!(sample_at(SamplingParams::greedy(), 0, &[0.0]).id, 0);
    assert_eq!(sample_at(SamplingParams::greedy(), 0, &[f32::INFINITY; 3]).id, 0);
}

#[test]
fn the_logprob_is_the_models_own() {
    let mut history = TokenHistory::default();
    history.push(1);
    let params = SamplingParams { presence_penalty: 1.5, ..SamplingParams::greedy() };
    let mut logits = [1.0, 2.0, 0.0];
    let sampled = Sampler::new(params).unwrap().sample(&history, 0, NOTHING, &mut logits).unwrap();
    let normalizer = (1f64.exp() + 2f64.exp() + 1.0).ln();
    assert_eq!(sampled.id, 0);
    assert!((f64::from(sampled.logprob) - (1.0 - normalizer)).abs() < 1e-6);
    let kept = SamplingParams { presence_penalty: -1.0, ..params };
    let sampled =
        Sampler::new(kept).unwrap().sample(&history, 0, NOTHING, &mut [1.0, 2.0, 0.0]).unwrap();
    assert!(sampled.id == 1 && (f64::from(sampled.logprob) - (2.0 - normalizer)).abs() < 1e-6);
}

#[test]
fn a_large_vocabulary_needs_more_than_the_first_sorted() {
    // Nearly flat, so that 99 % of the probability takes almost all of 5000 tokens.
    let logits: Vec<f32> = (0..5000).map(|id| (id % 71) as f32 * 1e-4).collect();
    let params = SamplingParams { top_p: 0.99, ..PLAIN };
    let kept = reference::probabilities(&params, &TokenHistory::default(), &logits);
    for position in 0..200 {
        let id = sample_at(params, position, &logits).id;
        assert!(kept[id as usize] > 0.0, "{id} is outside");
    }
}

#[test]
fn a_stream_is_its_seed_and_position() {
    let logits = vec![0.0; 1000];
    let ids = |seed: u64| -> Vec<u32> {
        (0..20).map(|at| sample_at(SamplingParams { seed, ..PLAIN }, at, &logits).id).collect()
    };
    assert_eq!(ids(7), ids(7));
    assert_ne!(ids(7), ids(8));
    // Pinned, so that a seed keeps its meaning from version to version.
    assert_eq!(ids(7)[..4], [157, 992, 300, 181]);
}

#[test]
fn hopeless_logits_are_an_error() {
    let sampler = Sampler::new(PLAIN).unwrap();
    let history = TokenHistory::default();
    for mut logits in [vec![], vec![f32::NAN; 3], vec![f32::NEG_INFINITY; 2]] {
        let vocabulary = logits.len();
        let error = sampler.sample(&history, 0, NOTHING, &mut logits).unwrap_err();
        assert_eq!(error, LayersError::NoCandidate { vocabulary });
    }
    let certain = sample_at(PLAIN, 3, &[1.0, f32::INFINITY, f32::NAN]);
    assert_eq!(certain.id, 1);
    assert_eq!(sample_at(SamplingParams { temperature: 1e-38, ..PLAIN }, 0, &LOGITS[..2]).id, 1);
}

#[test]
fn impossible_parameters_are_refused() {
    for (params, field) in [
        (SamplingParams { temperature: -0.1, ..PLAIN }, "temperature"),
        (SamplingParams { temperature: f32::NAN, ..PLAIN }, "temperature"),
        (SamplingParams { temperature: f32::INFINITY, ..PLAIN }, "temperature"),
        (SamplingParams { top_p: 0.0, ..PLAIN }, "top_p"),
        (SamplingParams { top_p: 1.1, ..PLAIN }, "top_p"),
        (SamplingParams { min_p: -0.1, ..PLAIN }, "min_p"),
        (SamplingParams { repetition_penalty: 0.0, ..PLAIN }, "repetition_penalty"),
        (SamplingParams { presence_penalty: 2.5, ..PLAIN }, "presence_penalty"),
        (SamplingParams { frequency_penalty: f32::NAN, ..PLAIN }, "frequency_penalty"),
    ] {
        let message = Sampler::new(params).unwrap_err().to_string();
        assert!(message.starts_with(field), "{message}");
    }
}

proptest! {
    #[test]
    fn anything_at_all_is_sampled_or_refused(
        bits in prop::collection::vec(any::<u32>(), 0..40),
        (temperature, top_k) in (0f32..3.0, 0usize..50),
        (top_p, min_p) in (0.01f32..1.0, 0f32..1.0),
        (repetition_penalty, position) in (0.1f32..3.0, any::<u64>()),
    ) {
        let logits: Vec<f32> = bits.into_iter().map(f32::from_bits).collect();
        let params =
            SamplingParams { temperature, top_k, top_p, min_p, repetition_penalty, ..PLAIN };
        let history = TokenHistory::of_prompt(&[0, 3, 5]);
        let sampler = Sampler::new(params).unwrap();
        let possible = logits.iter().any(|&logit| logit > f32::NEG_INFINITY);
        match sampler.sample(&history, position, NOTHING, &mut logits.clone()) {
            Ok(sampled) => prop_assert!(!logits[sampled.id as usize].is_nan()),
            // A penalty can turn the largest numbers into infinities of either sign.
            Err(_) => prop_assert!(!possible || logits.iter().all(|l| l.is_nan() || l.abs() > 1e38)),
        }
    }

    #[test]
    fn what_is_drawn_has_probability(
        logits in prop::collection::vec(-4f32..4.0, 1..60),
        (top_k, top_p, min_p) in (0usize..20, 0.05f32..1.0, 0f32..0.5),
        position in any::<u64>(),
    ) {
        let params = SamplingParams { top_k, top_p, min_p, ..PLAIN };
        let kept = reference::probabilities(&params, &TokenHistory::default(), &logits);
        let id = sample_at(params, position, &logits).id;
        prop_assert!(kept[id as usize] > 0.0);
    }
}
