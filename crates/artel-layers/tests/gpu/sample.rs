//! Sampling: the tokens of the CPU, and their probabilities within float32.

use artel_gpu_test::{Case, Gpu};
use artel_layers::LayersError;
use artel_layers::sample::cuda::{
    RowAdjustments, RowMasks, RowParameters, SampleKernels, SampleSteps,
};
use artel_layers::sample::{
    Adjustments, Sampled, Sampler, SamplingParams, TokenHistory, TokenMask,
};
use artel_moe::quant::Element;
use half::bf16;

use crate::numbers::{numbers, widened};

pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for vocabulary in [1, 100, 4096, 4097, 20_000, 151_936] {
        cases.push(case::<f32>(vocabulary));
        cases.push(case::<bf16>(vocabulary));
    }
    cases
}

/// Requests of every kind; more rows than any one of them alone would show.
fn requests() -> Vec<SamplingParams> {
    let plain = SamplingParams::default();
    let mut requests = vec![
        SamplingParams::greedy(),
        plain,
        SamplingParams { temperature: 0.3, ..plain },
        SamplingParams { temperature: 5.0, ..plain },
        SamplingParams { top_k: 1, ..plain },
        SamplingParams { top_k: 50, ..plain },
        SamplingParams { top_k: 1 << 30, ..plain },
        SamplingParams { top_p: 0.9, ..plain },
        SamplingParams { top_p: 1e-6, ..plain },
        SamplingParams { top_p: 0.999, temperature: 3.0, ..plain },
        SamplingParams { min_p: 0.1, ..plain },
        SamplingParams { min_p: 1.0, ..plain },
        SamplingParams { temperature: 0.7, top_k: 20, top_p: 0.95, min_p: 0.01, ..plain },
    ];
    for penalised in 0..requests.len() {
        requests.push(SamplingParams {
            repetition_penalty: 1.3,
            presence_penalty: 0.5,
            frequency_penalty: -0.25,
            ..requests[penalised]
        });
    }
    (0..requests.len() * 4)
        .map(|row| SamplingParams { seed: row as u64 * 77, ..requests[row % requests.len()] })
        .collect()
}

fn case<L: Element>(vocabulary: usize) -> Case {
    let name = format!("sample::{}_{vocabulary}", L::NAME);
    let load = move |kernels: &mut _| SampleKernels::<L>::load(kernels, vocabulary);
    Case::new(name, load, move |gpu, kernels| {
        let all = requests();
        check(gpu, kernels, vocabulary, &all, no_masks)?;
        check(gpu, kernels, vocabulary, &all, some_masks)?;
        check(gpu, kernels, vocabulary, &[], no_masks)?;
        for kept in [
            |params: &SamplingParams| params.temperature == 0.0,
            |params: &SamplingParams| params.top_k == 0 && params.top_p == 1.0,
            |params: &SamplingParams| params.top_p == 1.0,
            |params: &SamplingParams| params.top_k == 0,
        ] {
            let some: Vec<SamplingParams> = all.iter().copied().filter(kept).collect();
            check(gpu, kernels, vocabulary, &some, no_masks)?;
            let plain: Vec<SamplingParams> =
                some.into_iter().filter(|params| params.repetition_penalty == 1.0).collect();
            check(gpu, kernels, vocabulary, &plain, some_masks)?;
        }
        Ok(())
    })
}

/// Rows with ties, NaN and infinities; the last of all holds nothing to choose.
fn logits<L: Element>(vocabulary: usize, rows: usize) -> Vec<L> {
    let mut logits: Vec<L> = numbers(vocabulary * rows, 41);
    for (row, logits) in logits.chunks_mut(vocabulary).enumerate() {
        logits.iter_mut().for_each(|logit| *logit = L::from_f32(logit.to_f32() * 6.0));
        match row % 5 {
            1 => logits.iter_mut().step_by(3).for_each(|logit| *logit = L::from_f32(7.5)),
            2 => logits.iter_mut().step_by(2).for_each(|logit| *logit = L::from_f32(f32::NAN)),
            3 => logits
                .iter_mut()
                .step_by(4)
                .for_each(|logit| *logit = L::from_f32(f32::NEG_INFINITY)),
            _ => {}
        }
        if row + 1 == rows && rows > 1 {
            logits.fill(L::from_f32(f32::NEG_INFINITY));
        }
    }
    logits
}

/// What penalties care about: some tokens of the prompt, some of the output, some of both.
fn history(vocabulary: usize, row: usize) -> (TokenHistory, Vec<(i32, i32)>) {
    let id = |index: usize| ((index * 7919 + row * 31) % vocabulary) as u32;
    let prompt: Vec<u32> = (0..300).map(id).collect();
    let output: Vec<u32> = (250..400).map(|index| id(index % 370)).collect();
    let mut history = TokenHistory::of_prompt(&prompt);
    output.iter().for_each(|&id| history.push(id));
    let mut ids = [prompt, output.clone()].concat();
    ids.sort_unstable();
    ids.dedup();
    let count = |id: &u32| output.iter().filter(|seen| *seen == id).count() as i32;
    (history, ids.iter().map(|id| (*id as i32, count(id))).collect())
}

/// The mask of a row.
type MaskOf = fn(vocabulary: usize, row: usize) -> Option<TokenMask>;

fn no_masks(_vocabulary: usize, _row: usize) -> Option<TokenMask> {
    None
}

/// Rows without a mask between such that allow some tokens, none, the last, and all.
fn some_masks(vocabulary: usize, row: usize) -> Option<TokenMask> {
    let mut mask = TokenMask::none(vocabulary);
    match row % 6 {
        1 => (0..vocabulary as u32).filter(|id| id % 7 < 3).for_each(|id| mask.allow(id)),
        2 => {}
        3 => mask.allow(vocabulary as u32 - 1),
        4 => mask.allow_all(),
        _ => return None,
    }
    Some(mask)
}

/// The masks of all rows: which each row has, and their words.
fn masks_of(vocabulary: usize, rows: usize, mask_of: MaskOf) -> [Vec<i32>; 2] {
    let (mut of_rows, mut words, mut count) = (Vec::new(), Vec::new(), 0);
    for row in 0..rows {
        of_rows.push(match mask_of(vocabulary, row) {
            None => -1,
            Some(mask) => {
                words.extend(mask.words().iter().map(|&word| word as i32));
                count += 1;
                count - 1
            }
        });
    }
    [of_rows, words]
}

/// The random number of a row and what the CPU chose.
type Expected = (f64, Result<Sampled, LayersError>);

/// Where the adjusted tokens of each row begin, they with their counts, and what is expected.
type Requested = (Vec<i32>, Vec<(i32, i32)>, Vec<Expected>);

/// What the CPU makes of the requests.
fn on_the_cpu<L: Element>(
    vocabulary: usize,
    requests: &[SamplingParams],
    logits: &[L],
    mask_of: MaskOf,
) -> Result<Requested, LayersError> {
    let (mut starts, mut entries, mut expected) = (vec![0], Vec::new(), Vec::new());
    for (row, params) in requests.iter().enumerate() {
        let (history, seen) = history(vocabulary, row);
        if params.repetition_penalty != 1.0 {
            entries.extend(seen);
        }
        starts.push(entries.len() as i32);
        let mut own = widened(&logits[row * vocabulary..][..vocabulary]);
        let sampler = Sampler::new(*params)?;
        let position = row as u64 * 3;
        let mask = mask_of(vocabulary, row);
        let adjustments = Adjustments { allowed: mask.as_ref(), ..Adjustments::default() };
        let sampled = sampler.sample(&history, position, adjustments, &mut own);
        expected.push((sampler.uniform(position), sampled));
    }
    Ok((starts, entries, expected))
}

fn compare(requests: &[SamplingParams], expected: &[Expected], tokens: &[i32], logprobs: &[f32]) {
    for (row, (_, expected)) in expected.iter().enumerate() {
        let params = requests[row];
        match expected {
            Err(_) => assert_eq!(tokens[row], -1, "row {row}: {params:?}"),
            Ok(expected) => {
                assert_eq!(tokens[row], expected.id as i32, "row {row}: {params:?}");
                let error = (logprobs[row] - expected.logprob).abs();
                assert!(error <= 1e-4 * (1.0 + expected.logprob.abs()), "row {row}: {params:?}");
            }
        }
    }
}

fn check<L: Element>(
    gpu: &Gpu,
    kernels: &SampleKernels<L>,
    vocabulary: usize,
    requests: &[SamplingParams],
    mask_of: MaskOf,
) -> Result<(), LayersError> {
    let rows = requests.len();
    let logits = logits::<L>(vocabulary, rows);
    let steps = SampleSteps {
        draws: requests.iter().any(|params| params.temperature > 0.0),
        top_k: requests.iter().any(|params| params.top_k > 0),
        top_p: requests.iter().any(|params| params.top_p < 1.0),
    };
    let penalised = requests.iter().any(|params| params.repetition_penalty != 1.0);
    let (starts, entries, expected) = on_the_cpu(vocabulary, requests, &logits, mask_of)?;
    let upload =
        |of: fn(&SamplingParams) -> f32| gpu.upload(&requests.iter().map(of).collect::<Vec<f32>>());
    let temperatures = upload(|params| params.temperature);
    let (top_ps, least) = (upload(|params| params.top_p), upload(|params| params.min_p.ln()));
    let top_ks: Vec<i32> = requests.iter().map(|params| params.top_k as i32).collect();
    let top_ks = gpu.upload(&top_ks);
    let uniforms = gpu.upload(&expected.iter().map(|(uniform, _)| *uniform).collect::<Vec<f64>>());
    let parameters = RowParameters {
        temperatures: temperatures.slice(),
        top_ks: top_ks.slice(),
        top_ps: top_ps.slice(),
        least: least.slice(),
        uniforms: uniforms.slice(),
    };
    let penalty = |params: &SamplingParams| {
        [params.repetition_penalty, params.presence_penalty, params.frequency_penalty]
    };
    let penalties = gpu.upload(&requests.iter().flat_map(penalty).collect::<Vec<f32>>());
    let (starts, biases) = (gpu.upload(&starts), gpu.upload(&vec![0f32; entries.len()]));
    let ids = gpu.upload(&entries.iter().map(|(id, _)| *id).collect::<Vec<i32>>());
    let counts = gpu.upload(&entries.iter().map(|(_, count)| *count).collect::<Vec<i32>>());
    let masks = masks_of(vocabulary, rows, mask_of);
    let is_masked = !masks[1].is_empty();
    let [of_rows, words] = masks.map(|numbers| gpu.upload(&numbers));
    let masks = RowMasks { of_rows: of_rows.slice(), words: words.slice() };
    let adjustments = RowAdjustments {
        masks: is_masked.then_some(masks),
        starts: starts.slice(),
        ids: ids.slice(),
        counts: counts.slice(),
        biases: biases.slice(),
        penalties: penalties.slice(),
    };
    let adjustments = (penalised || is_masked).then_some(&adjustments);
    let on_device = gpu.upload(&logits);
    let mut workspace = kernels.workspace(gpu.stream.context(), rows)?;
    let (mut tokens, mut logprobs) = (gpu.poisoned::<i32>(rows), gpu.poisoned::<f32>(rows));
    kernels.launch(
        &gpu.stream,
        on_device.slice(),
        (&parameters, adjustments),
        steps,
        &mut workspace,
        (tokens.slice_mut(), logprobs.slice_mut()),
    )?;
    let (tokens, logprobs) = (gpu.download(&tokens), gpu.download(&logprobs));
    compare(requests, &expected, &tokens, &logprobs);
    Ok(())
}
