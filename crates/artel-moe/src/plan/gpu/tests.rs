use std::collections::BTreeMap;

use super::record::RecordOrigin;
use super::tune::{Search, Stopwatch, tune};
use super::*;
use crate::activation::Activation;
use crate::config::{MoeShape, Parallelism};
use crate::eplb::{EpRank, ExpertMap, ExpertPlacement};
use crate::grouped_gemm::prefill::warpgroup;

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
    ["decode", "prefill", "warpgroup", "long", "streamed", "steps"]
        .map(|name| (name.to_owned(), hash.to_owned()))
        .into()
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

#[derive(Debug, PartialEq)]
enum FakeError {
    Interrupted,
    Plan(MoeError),
}

impl From<MoeError> for FakeError {
    fn from(error: MoeError) -> Self {
        Self::Plan(error)
    }
}

impl FakeGpu {
    fn new(config: &MoeConfig, format: Format, fails_after: usize) -> Self {
        Self { config: config.clone(), format, measured: 0, fails_after }
    }

    fn search(&self) -> Search<'_> {
        Search { gpu: h200(), config: &self.config, format: self.format }
    }

    fn tune(
        &mut self,
        record: &mut TuningRecord,
        tokens: &[usize],
    ) -> (String, Result<(), FakeError>) {
        let (config, mut saved) = (self.config.clone(), String::new());
        let search = Search { gpu: h200(), config: &config, format: self.format };
        let result = tune(record, &search, tokens, self, |record, _, _| {
            saved = record.to_json();
            Ok(())
        });
        (saved, result)
    }
}

impl Stopwatch for FakeGpu {
    type Error = FakeError;

    fn measure(&mut self, way: &Way, tokens: usize) -> Result<Option<f64>, FakeError> {
        if self.measured == self.fails_after {
            return Err(FakeError::Interrupted);
        }
        self.measured += 1;
        if is_wrong(way) {
            return Ok(None);
        }
        let shape = ExpertsShape::of(&self.config, self.format);
        let modelled = model::seconds(h200(), &shape, *way, tokens)? * 1e6;
        let noise = format!("{way} {tokens}").bytes().map(usize::from).sum::<usize>() % 11;
        Ok(Some(modelled * (1.0 + noise as f64 / 100.0)))
    }
}

/// Kernels that compute something else.
fn is_wrong(way: &Way) -> bool {
    way.kernels.first.tile.occupancy == 3 || way.kernels.second.tile.occupancy == 3
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
            let rows = [first.tile.rows, second.tile.rows];
            match first.family {
                GemmFamily::Warpgroup => {
                    assert!([1, 2].map(warpgroup::rows_max).contains(&rows[0]), "{plan}");
                    assert_eq!(rows[0], rows[1]);
                }
                GemmFamily::Long => assert_eq!(rows, [warpgroup::LONG_ROWS; 2]),
                _ => assert_eq!(rows, [block_size; 2]),
            }
        }
    }
}

#[test]
fn small_batches_go_direct_and_large_ones_to_prefill() {
    let (long, high) = (GemmFamily::Long, GemmFamily::Warpgroup);
    let layers = [(minimax(), Format::Fp8Block128, long), (qwen3(), Format::Bf16, high)];
    for (config, format, family) in layers {
        let plan = GpuPlan::new(h200(), &config, format, None, 8192).unwrap();
        assert_covers(&plan, 8192);
        assert_eq!(plan.entry(1).path, GpuPath::Direct, "{plan}");
        assert_eq!(plan.entry(64).kernels.first.family, GemmFamily::Decode, "{plan}");
        let last = plan.entry(8192);
        assert_eq!(last.kernels.first.family, family, "{plan}");
        assert!(last.because.contains("arithmetic"), "{plan}");
        assert!(!plan.is_tuned() && plan.to_string().contains("no tuning record"), "{plan}");
        let way = Way { path: plan.entry(1).path, kernels: plan.entry(64).kernels };
        let forced = plan.with_way(way);
        assert_covers(&forced, 8192);
        assert_eq!((forced.entry(1).kernels, forced.entry(8192).path), (way.kernels, way.path));
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
    assert!(error.contains("bf16 or f16 on sm_80"), "{error}");
    let shape = MoeShape { hidden_size: 100, intermediate_size: 96, num_experts: 4, top_k: 2 };
    let odd = MoeConfig::new(shape, Activation::Silu).unwrap();
    let error = refused("sm_90", &odd, Format::Bf16);
    assert!(error.contains("multiple of 16 bytes"), "{error}");
    let record = empty_record(&qwen3(), Format::Bf16);
    let error = GpuPlan::new(h200(), &minimax(), Format::Bf16, Some(&record), 64).unwrap_err();
    assert!(error.to_string().contains("shape of the tuning record"), "{error}");
}

#[test]
fn tuning_goes_on_where_it_stopped_and_forgets_what_changed() {
    let (config, format, tokens) = (minimax(), Format::Fp8Block128, [1, 64, 8192]);
    let mut record = empty_record(&config, format);
    let (saved, stopped) = FakeGpu::new(&config, format, 5).tune(&mut record, &tokens);
    assert_eq!(stopped, Err(FakeError::Interrupted));
    assert_eq!(TuningRecord::from_json(&saved).unwrap(), record);

    let mut whole = empty_record(&config, format);
    let mut gpu = FakeGpu::new(&config, format, usize::MAX);
    gpu.tune(&mut whole, &tokens).1.unwrap();
    assert_eq!((gpu.measured, whole.tokens()), (whole.len(), tokens.to_vec()));
    let may_come = tokens.map(|tokens| gpu.search().ways(tokens).unwrap().len());
    assert!(whole.len() <= may_come.iter().sum(), "{} of {may_come:?}", whole.len());

    let mut resumed = TuningRecord::from_json(&saved).unwrap();
    assert!(resumed.forget_changed(&hashes("1")).is_empty());
    assert!(resumed.forget_changed(&BTreeMap::new()).is_empty(), "nothing was looked at");
    let mut gpu = FakeGpu::new(&config, format, usize::MAX);
    gpu.tune(&mut resumed, &tokens).1.unwrap();
    assert_eq!(resumed, whole, "as if it had never stopped");
    assert_eq!(gpu.measured, whole.len() - 5);

    let mut changed = hashes("1");
    changed.insert("decode".to_owned(), "2+3".to_owned());
    assert_eq!(resumed.forget_changed(&changed), ["decode"]);
    changed.insert("decode".to_owned(), "3".to_owned());
    assert!(resumed.forget_changed(&changed).is_empty(), "a plan with some of its kernels");
    assert!(!resumed.is_empty() && resumed.len() < whole.len(), "prefill is kept");
    changed.insert("steps".to_owned(), "2".to_owned());
    assert_eq!(resumed.forget_changed(&changed), ["steps"]);
    assert!(resumed.is_empty(), "every way sorts and sums");
}

#[test]
fn a_tuned_plan_follows_the_times_and_never_takes_what_was_wrong() {
    for (config, format) in [(minimax(), Format::Fp8Block128), (qwen3(), Format::Bf16)] {
        let sizes: Vec<usize> = (0..=12).map(|power| 1 << power).collect();
        let mut record = empty_record(&config, format);
        FakeGpu::new(&config, format, usize::MAX).tune(&mut record, &sizes).1.unwrap();
        let plan = GpuPlan::new(h200(), &config, format, Some(&record), 4096).unwrap();
        assert_covers(&plan, 4096);
        assert!(plan.is_tuned() && plan.to_string().contains("tuned on a fake"), "{plan}");
        for GpuPlanEntry { path, kernels, tokens_max, expected, .. } in plan.entries() {
            let way = Way { path: *path, kernels: *kernels };
            assert!(!is_wrong(&way), "{plan}");
            assert_eq!(record.known(&way, *tokens_max), Known::Microseconds(*expected));
        }
        // Beyond what was measured the model goes on.
        let longer = GpuPlan::new(h200(), &config, format, Some(&record), 8192).unwrap();
        assert!(longer.entry(4096).tuned && !longer.entry(8192).tuned, "{longer}");
    }
}

#[test]
fn kernels_newer_than_the_record_serve_where_they_are_clearly_better() {
    let (config, format) = (minimax(), Format::Nvfp4);
    let mut record = empty_record(&config, format);
    FakeGpu::new(&config, format, usize::MAX).tune(&mut record, &[1, 8, 64]).1.unwrap();
    let family = |record: &TuningRecord, tokens: usize| {
        let plan = GpuPlan::new(h200(), &config, format, Some(record), 64).unwrap();
        let GpuPlanEntry { kernels, tuned, .. } = plan.entry(tokens);
        (kernels.first.family, *tuned)
    };
    assert_eq!(family(&record, 1), (GemmFamily::Streamed, true));

    // A slower record, without what it knows of the newer kernels.
    let mut times: serde_json::Value = serde_json::from_str(&record.to_json()).unwrap();
    for times in times["microseconds"].as_object_mut().unwrap().values_mut() {
        times.as_object_mut().unwrap().retain(|way, time| {
            *time = time.as_f64().map(|time| 1.5 * time).into();
            !way.contains("streamed")
        });
    }
    let mut older = TuningRecord::from_json(&times.to_string()).unwrap();
    assert_eq!(family(&older, 1), (GemmFamily::Streamed, false));
    assert!(family(&older, 64).1);

    // A measured time that is as good stays.
    let way = "direct: decode 8x64x128 w4 o5 + decode 8x64x128 w4 o5".parse().unwrap();
    older.note(&way, 1, Some(17.0));
    assert_eq!(family(&older, 1), (GemmFamily::Decode, true));
}

#[test]
fn tiles_as_high_as_an_expert_has_rows_win_where_they_are_as_good() {
    let (config, format) = (qwen3(), Format::Bf16);
    let high = "aligned/16: warpgroup 288x64x64 w8 o1 + warpgroup 288x128x64 w8 o1";
    let fixed = "aligned/80: decode 80x128x64 w8 o1 + decode 80x128x64 w4 o2";
    let family = |microseconds: f64| {
        let mut record = empty_record(&config, format);
        record.note(&fixed.parse().unwrap(), 1024, Some(100.0));
        record.note(&high.parse().unwrap(), 1024, Some(microseconds));
        let plan = GpuPlan::new(h200(), &config, format, Some(&record), 1024).unwrap();
        plan.entry(1024).kernels.first.family
    };
    assert_eq!([99.0, 102.4].map(family), [GemmFamily::Warpgroup; 2]);
    assert_eq!(family(102.6), GemmFamily::Decode);
}

#[test]
fn files_that_are_no_records_are_refused() {
    let mut record = empty_record(&qwen3(), Format::Bf16);
    let way = "direct: decode 8x128x128 w4 o2 + decode 8x128x128 w4 o2".parse().unwrap();
    record.note(&way, 1, Some(4.25));
    assert_eq!(record.known(&way, 1), Known::Microseconds(4.25));
    assert_eq!(record.known(&way, 2), Known::Nothing);
    record.note(&way, 2, None);
    assert_eq!(record.known(&way, 2), Known::Wrong);
    let text = record.to_json();
    assert_eq!(TuningRecord::from_json(&text), Ok(record));
    for bad in [
        String::new(),
        text[..text.len() / 2].to_owned(),
        text.replace("4.25", "-4.25"),
        text.replace("direct:", "straight:"),
        text.replace("\"shape\"", "\"form\""),
    ] {
        assert!(TuningRecord::from_json(&bad).is_err(), "{bad}");
    }
    let shape = ExpertsShape::of(&qwen3(), Format::F32);
    assert_eq!(TuningRecord::bundled("sm_90", &shape), Ok(None));
}

/// What a shape without a record is served by, against the best that was measured of shapes with one.
#[test]
fn a_modelled_choice_is_near_the_best_that_was_measured() {
    for (config, format) in [(minimax(), Format::Fp8Block128), (qwen3(), Format::Bf16)] {
        let shape = ExpertsShape::of(&config, format);
        let record = TuningRecord::bundled("sm_90", &shape).unwrap().expect("a bundled record");
        let tuned = GpuPlan::new(h200(), &config, format, Some(&record), 8192).unwrap();
        let modelled = GpuPlan::new(h200(), &config, format, None, 8192).unwrap();
        let mut compared = 0;
        for tokens in record.tokens() {
            let time = |plan: &GpuPlan| {
                let entry = plan.entry(tokens);
                let way = Way { path: entry.path, kernels: entry.kernels };
                match record.known(&way, tokens) {
                    Known::Microseconds(time) => Some(time),
                    _ => None,
                }
            };
            let best = time(&tuned).expect("a tuned plan follows what was measured");
            // The search leaves some ways out, among them a modelled one now and then.
            let Some(found) = time(&modelled) else { continue };
            println!("{format} {tokens}: {found:.1} of {best:.1} us, {:.3}", found / best);
            assert!(found <= 1.1 * best, "{format}, {tokens} tokens: {found} of {best}");
            compared += 1;
        }
        assert!(compared >= 8, "{format}: only {compared} batch sizes were compared");
    }
}
