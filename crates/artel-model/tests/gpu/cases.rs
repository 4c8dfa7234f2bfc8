//! Every model in every kind of step.

use std::sync::{Arc, OnceLock};

use artel_gpu_test::{Case, Gpu};
use artel_model::cuda::CudaKernels;
use artel_model::{LogitsOf, Model, ModelError, SequenceInput};

use crate::models::{Small, models};
use crate::session::{LIMITS, Logits, Session, blocks};

pub fn cases() -> Vec<Case> {
    let run: [(&str, Run); 5] = [
        ("one_prompt", one_prompt),
        ("chunks_and_tokens", chunks_and_tokens),
        ("mixed_steps", mixed_steps),
        ("batch_sizes", batch_sizes),
        ("padding_and_counts", padding_and_counts),
    ];
    let cases = models().into_iter().flat_map(|small| {
        let model = Arc::new(OnceLock::new());
        run.map(|(name, run)| case(small.clone(), Arc::clone(&model), name, run))
    });
    cases.collect()
}

type Run = fn(&mut Session<'_>, &Small) -> Result<(), ModelError>;

/// A test of `model`, which is loaded for the first that is chosen.
fn case(small: Small, model: Arc<OnceLock<Model>>, name: &str, run: Run) -> Case {
    let name = format!("{}::{name}", small.name);
    let (of_kernels, listed) = (small.clone(), Arc::clone(&model));
    let load = move |kernels: &mut _| {
        CudaKernels::load(kernels, listed.get_or_init(|| of_kernels.load()), &LIMITS)
    };
    let run = move |gpu: &Gpu, kernels: &CudaKernels| {
        let model = model.get_or_init(|| small.load());
        run(&mut Session::new(gpu, model, kernels)?, &small)
    };
    Case::new(name, load, run)
}

/// Tokens without a pattern.
fn tokens(count: usize, seed: usize, vocabulary: usize) -> Vec<u32> {
    (0..count)
        .map(|at| ((at * 7919 + seed * 104_729 + 13) * (at + 31) % vocabulary) as u32)
        .collect()
}

/// How far apart the rows of a test are.
#[derive(Default)]
struct Rows {
    differences: Vec<f64>,
}

impl Rows {
    #[track_caller]
    fn add(&mut self, logits: &Logits, small: &Small, what: &str) {
        for difference in logits.differences() {
            assert!(difference <= small.largest, "{what}: a row differs by {difference:e}");
            self.differences.push(difference);
        }
    }

    #[track_caller]
    fn check(mut self, small: &Small) {
        self.differences.sort_by(f64::total_cmp);
        let at =
            |share: f64| self.differences[(share * (self.differences.len() - 1) as f64) as usize];
        let [half, most, all] = [0.5, 0.8, 1.0].map(at);
        println!("{}: half of the rows {half:.1e}, most {most:.1e}, all {all:.1e}", small.name);
        assert!(half <= small.typical, "half of the rows differ by {half:e} or more");
        assert!(most <= 3.0 * small.typical, "a fifth of the rows differ by {most:e} or more");
    }
}

/// All logits of a prompt at once.
fn one_prompt(session: &mut Session<'_>, small: &Small) -> Result<(), ModelError> {
    let mut rows = Rows::default();
    for count in [1, 2, 16, 70, 290] {
        let tokens = tokens(count, 1, session.vocabulary());
        let blocks = blocks(1);
        let input = SequenceInput {
            blocks: &blocks,
            cached: 0,
            tokens: &tokens,
            logits_of: LogitsOf::AllTokens,
        };
        rows.add(&session.step(&[input])?, small, &format!("{count} tokens"));
    }
    rows.check(small);
    Ok(())
}

/// A prompt in pieces, then token by token.
fn chunks_and_tokens(session: &mut Session<'_>, small: &Small) -> Result<(), ModelError> {
    let mut rows = Rows::default();
    let (tokens, blocks) = (tokens(180, 2, session.vocabulary()), blocks(3));
    let mut cached = 0;
    for length in [5, 1, 16, 33, 100, 1, 2].into_iter().chain([1; 12]) {
        let tokens = &tokens[cached..cached + length];
        let logits_of = LogitsOf::AllTokens;
        let input = SequenceInput { blocks: &blocks, cached, tokens, logits_of };
        rows.add(&session.step(&[input])?, small, &format!("{length} tokens behind {cached}"));
        cached += length;
    }
    rows.check(small);
    Ok(())
}

/// Prompts, pieces of prompts and single tokens in one step, some without logits.
fn mixed_steps(session: &mut Session<'_>, small: &Small) -> Result<(), ModelError> {
    let mut rows = Rows::default();
    let kinds = [LogitsOf::LastToken, LogitsOf::Nothing, LogitsOf::AllTokens];
    let lengths = [[40, 1, 1, 17], [3, 60, 1, 1], [1, 1, 130, 1], [9, 1, 1, 1], [1, 1, 1, 1]];
    let vocabulary = session.vocabulary();
    let all: Vec<_> = (0..lengths.len())
        .map(|sequence| (tokens(300, 10 + sequence, vocabulary), blocks(2 * sequence)))
        .collect();
    let mut cached = [0; 5];
    for step in 0..4 {
        let sequences = all.iter().enumerate().map(|(sequence, (tokens, blocks))| SequenceInput {
            blocks,
            cached: cached[sequence],
            tokens: &tokens[cached[sequence]..cached[sequence] + lengths[sequence][step]],
            logits_of: kinds[(sequence + step) % 3],
        });
        let batch: Vec<_> = sequences.collect();
        rows.add(&session.step(&batch)?, small, &format!("step {step}"));
        (0..5).for_each(|sequence| cached[sequence] += lengths[sequence][step]);
    }
    rows.check(small);
    Ok(())
}

/// As many sequences, and as many tokens, as are served in different ways.
fn batch_sizes(session: &mut Session<'_>, small: &Small) -> Result<(), ModelError> {
    let mut rows = Rows::default();
    let vocabulary = session.vocabulary();
    let prompts: Vec<_> = (0..80)
        .map(|sequence| (tokens(90, 100 + sequence, vocabulary), blocks(sequence)))
        .collect();
    let input = |sequence: usize, cached: usize, count: usize| {
        let (tokens, blocks) = &prompts[sequence];
        let tokens = &tokens[cached..cached + count];
        SequenceInput { blocks, cached, tokens, logits_of: LogitsOf::LastToken }
    };
    // On both sides of 64 and 512, which many kernels have in common, and far beyond.
    for (sequences, count) in [(80, 80), (8, 8), (13, 5), (16, 32), (27, 19)] {
        let batch: Vec<_> = (0..sequences).map(|sequence| input(sequence, 0, count)).collect();
        rows.add(&session.step(&batch)?, small, &format!("{sequences} prompts of {count}"));
    }
    let filled: Vec<_> = (0..80).map(|sequence| input(sequence, 0, 80)).collect();
    session.step(&filled)?;
    for (index, sequences) in [1, 2, 3, 4, 8, 9, 16, 17, 32, 33, 64, 65, 80].into_iter().enumerate()
    {
        let cached = 80 - index;
        let batch: Vec<_> = (0..sequences).map(|sequence| input(sequence, cached, 1)).collect();
        rows.add(&session.step(&batch)?, small, &format!("{sequences} tokens behind {cached}"));
    }
    rows.check(small);
    Ok(())
}

/// Padding changes roundings at most and is not counted; the same step twice gives the same bits.
fn padding_and_counts(session: &mut Session<'_>, small: &Small) -> Result<(), ModelError> {
    let (tokens, blocks) = (tokens(40, 5, session.vocabulary()), [blocks(7), blocks(2), blocks(0)]);
    let input = |sequence: usize, cached: usize, count: usize| SequenceInput {
        blocks: &blocks[sequence],
        cached,
        tokens: &tokens[cached..cached + count],
        logits_of: LogitsOf::LastToken,
    };
    session.step_on_gpu(&[input(0, 0, 20), input(1, 0, 7), input(2, 0, 33)], 0)?;
    let batch = [input(0, 20, 1), input(1, 7, 1), input(2, 33, 1)];
    let alone = session.step_on_gpu(&batch, 0)?;
    let before = session.expert_pairs()?;
    assert_eq!(session.step_on_gpu(&batch, 0)?, alone, "two runs give the same bits");
    let once = session.expert_pairs()?;
    let (vocabulary, expected) = (session.vocabulary(), alone);
    let found = session.step_on_gpu(&batch, 8)?;
    let mut rows = Rows::default();
    rows.add(&Logits { expected, found, vocabulary }, small, "padded to 8 rows");
    rows.check(small);
    let twice = session.expert_pairs()?;
    let added = |now: &[i32], then: &[i32]| -> Vec<i32> {
        now.iter().zip(then).map(|(now, then)| now - then).collect()
    };
    assert_eq!(added(&twice, &once), added(&once, &before), "padding is not counted");
    assert!(added(&once, &before).iter().sum::<i32>() > 0, "tokens are");
    Ok(())
}
