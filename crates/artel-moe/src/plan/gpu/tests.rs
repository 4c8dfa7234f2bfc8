use std::collections::BTreeMap;

use super::record::RecordOrigin;
use super::tune::{Stopwatch, Task, tasks, tune};
use super::*;
use crate::activation::Activation;
use crate::config::{MoeShape, Parallelism};
use crate::eplb::{EpRank, ExpertMap, ExpertPlacement};

fn minimax() -> MoeConfig {
    let shape = MoeShape { hidden_size: 3072, intermediate_size: 1536, num_experts: 256, top_k: 8 };
    let config = MoeConfig::new(shape, Activation::Silu).unwrap();
    config.with_parallelism(Parallelism::Tensor { size: 2 }).unwrap()
}

fn qwen3() -> MoeConfig {
    let shape = MoeShape { hidden_size: 2048, intermediate_size: 768, num_experts: 128, top_k: 8 };
    MoeConfig::new(shape, Activation::Silu).unwrap()
}

fn h200() -> &'static GpuCeilings {
    GpuCeilings::of_architecture("sm_90").unwrap()
}

fn hashes(hash: &str) -> BTreeMap<String, String> {
    ["decode", "prefill", "align"].map(|name| (name.to_owned(), hash.to_owned())).into()
}

fn empty_record(config: &MoeConfig, format: Format) -> TuningRecord {
    let origin = RecordOrigin {
        architecture: "sm_90".to_owned(),
        device: "a fake".to_owned(),
        compiler: "none".to_owned(),
        date: "2026-01-01".to_owned(),
    };
    TuningRecord::new(origin, &ExpertsShape::of(config, format), hashes("1"))
}

/// The model with noise that depends on the step alone, of at most a tenth.
struct FakeGpu {
    config: MoeConfig,
    format: Format,
    measured: usize,
    fails_after: usize,
}

impl Stopwatch for FakeGpu {
    type Error = String;

    fn measure(&mut self, task: &Task) -> Result<Option<f64>, String> {
        if self.measured == self.fails_after {
            return Err("interrupted".to_owned());
        }
        self.measured += 1;
        let shape = ExpertsShape::of(&self.config, self.format);
        let seconds = match task.step {
            Step::Align { block_size } => {
                model::assign_seconds(GpuPath::Aligned { block_size }, &shape, task.tokens)
            }
            Step::Product { kernel, .. } if kernel.tile.occupancy == 3 => return Ok(None),
            Step::Product { product, path, kernel } => {
                model::product_seconds(h200(), &shape, product, path, kernel, task.tokens).unwrap()
            }
        };
        let noise = (format!("{task:?}").bytes().map(usize::from).sum::<usize>() % 11) as f64;
        Ok(Some(seconds * 1e6 * (1.0 + noise / 100.0)))
    }
}

fn assert_covers(plan: &GpuPlan, limit: usize) {
    assert_eq!(plan.entries()[0].tokens_min, 1);
    assert_eq!(plan.entries().last().unwrap().tokens_max, limit);
    for pair in plan.entries().windows(2) {
        assert_eq!(pair[0].tokens_max + 1, pair[1].tokens_min);
    }
    for entry in plan.entries() {
        assert!(entry.expected > entry.floor, "{plan}");
        assert!(!entry.because.is_empty());
        if let GpuPath::Aligned { block_size } = entry.path {
            let ExpertKernels { first, second } = entry.kernels;
            assert_eq!((first.tile.rows, second.tile.rows), (block_size, block_size));
        }
    }
}

#[test]
fn small_batches_go_direct_and_large_ones_to_prefill() {
    for (config, format) in [(minimax(), Format::Fp8Block128), (qwen3(), Format::Bf16)] {
        let plan = GpuPlan::new(h200(), &config, format, None, 8192).unwrap();
        assert_covers(&plan, 8192);
        assert_eq!(plan.entry(1).path, GpuPath::Direct, "{plan}");
        assert_eq!(plan.entry(64).kernels.first.family, GemmFamily::Decode, "{plan}");
        assert!(plan.entry(64).kernels.first.tile.occupancy > 1, "{plan}");
        let last = plan.entry(8192);
        assert_eq!(last.kernels.first.family, GemmFamily::Prefill, "{plan}");
        assert!(last.because.contains("arithmetic"), "{plan}");
        assert!(!plan.is_tuned() && plan.to_string().contains("no tuning record"), "{plan}");
    }
}

#[test]
fn the_direct_form_ends_where_the_published_rule_ends() {
    let plan = GpuPlan::new(h200(), &minimax(), Format::Fp8Block128, None, 4096).unwrap();
    assert_ne!(plan.entry(9).path, GpuPath::Direct, "{plan}");
    let map = ExpertMap::new(256, ExpertPlacement::Linear, EpRank::new(0, 2).unwrap()).unwrap();
    let spread = minimax().with_parallelism(Parallelism::Expert(map)).unwrap();
    let plan = GpuPlan::new(h200(), &spread, Format::Fp8Block128, None, 4096).unwrap();
    assert!(plan.entries().iter().all(|entry| entry.path != GpuPath::Direct), "{plan}");
    assert_covers(&plan, 4096);
}

#[test]
fn what_no_kernel_serves_is_an_error_with_the_way_out() {
    let refused = |architecture, config: &MoeConfig, format| {
        let gpu = GpuCeilings::of_architecture(architecture).unwrap();
        GpuPlan::new(gpu, config, format, None, 64).unwrap_err().to_string()
    };
    let error = refused("sm_80", &qwen3(), Format::Fp8Block128);
    assert!(error.contains("bf16 on sm_80"), "{error}");
    let shape = MoeShape { hidden_size: 100, intermediate_size: 96, num_experts: 4, top_k: 2 };
    let odd = MoeConfig::new(shape, Activation::Silu).unwrap();
    let error = refused("sm_90", &odd, Format::Bf16);
    assert!(error.contains("multiples of 128"), "{error}");
    let record = empty_record(&qwen3(), Format::Bf16);
    let error = GpuPlan::new(h200(), &minimax(), Format::Bf16, Some(&record), 64).unwrap_err();
    assert!(error.to_string().contains("shape of the tuning record"), "{error}");
}

#[test]
fn tuning_goes_on_where_it_stopped_and_forgets_what_changed() {
    let (config, format) = (minimax(), Format::Fp8Block128);
    let shape = ExpertsShape::of(&config, format);
    let tasks = tasks(h200(), &config, &shape, &[1, 64, 8192]).unwrap();
    let mut record = empty_record(&config, format);
    let mut gpu = FakeGpu { config: config.clone(), format, measured: 0, fails_after: 5 };
    let mut saved = String::new();
    let save = |saved: &mut String, record: &TuningRecord| *saved = record.to_json();
    let stopped = tune(&mut record, &tasks, &mut gpu, |record, _| {
        save(&mut saved, record);
        Ok(())
    });
    assert_eq!(stopped, Err("interrupted".to_owned()));

    let mut resumed = TuningRecord::from_json(&saved).unwrap();
    assert_eq!(resumed.update(&hashes("1")), Vec::<String>::new());
    gpu.fails_after = usize::MAX;
    tune(&mut resumed, &tasks, &mut gpu, |_, _| Ok(())).unwrap();
    assert_eq!(gpu.measured, tasks.len(), "every step is measured once");
    assert_eq!(resumed.tokens(), [1, 64, 8192]);
    assert_eq!(TuningRecord::from_json(&resumed.to_json()).unwrap(), resumed);

    let mut changed = hashes("1");
    changed.insert("decode".to_owned(), "2".to_owned());
    assert_eq!(resumed.update(&changed), ["decode"]);
    let before = gpu.measured;
    tune(&mut resumed, &tasks, &mut gpu, |_, _| Ok(())).unwrap();
    let again = gpu.measured - before;
    assert!(again > 0 && again < tasks.len(), "{again} of {}", tasks.len());
}

#[test]
fn a_tuned_plan_follows_the_times_and_the_model_comes_close() {
    for (config, format) in [(minimax(), Format::Fp8Block128), (qwen3(), Format::Bf16)] {
        let shape = ExpertsShape::of(&config, format);
        let sizes: Vec<usize> = (0..=12).map(|power| 1 << power).collect();
        let tasks = tasks(h200(), &config, &shape, &sizes).unwrap();
        let mut record = empty_record(&config, format);
        let mut gpu =
            FakeGpu { config: config.clone(), format, measured: 0, fails_after: usize::MAX };
        tune(&mut record, &tasks, &mut gpu, |_, _| Ok(())).unwrap();
        let tuned = GpuPlan::new(h200(), &config, format, Some(&record), 4096).unwrap();
        assert_covers(&tuned, 4096);
        assert!(tuned.is_tuned() && tuned.to_string().contains("tuned on a fake"), "{tuned}");
        let wrong = |kernel: GemmKernel| kernel.tile.occupancy == 3;
        for entry in tuned.entries() {
            let ExpertKernels { first, second } = entry.kernels;
            assert!(!wrong(first) && !wrong(second), "wrong results are never chosen: {tuned}");
        }
    }
}

#[test]
fn files_that_are_no_records_are_refused() {
    let record = empty_record(&qwen3(), Format::Bf16);
    let mut timed = record.clone();
    let step = Step::Align { block_size: 8 };
    timed.note(step, 1, Known::Microseconds(4.25));
    assert_eq!(timed.known(step, 1), Known::Microseconds(4.25));
    assert_eq!(timed.known(step, 2), Known::Nothing);
    let text = timed.to_json();
    for bad in [
        String::new(),
        text[..text.len() / 2].to_owned(),
        text.replace("4.25", "-4.25"),
        text.replace("\"8\": 4.25", "\"aligned decode 8x8\": 4.25"),
        text.replace("\"shape\"", "\"form\""),
    ] {
        assert!(TuningRecord::from_json(&bad).is_err(), "{bad}");
    }
    let found = TuningRecord::bundled("sm_90", &ExpertsShape::of(&qwen3(), Format::F32)).unwrap();
    assert_eq!(found, None);
}
