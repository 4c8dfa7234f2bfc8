//! The pages of `docs/` are made from what was measured, and what was not measured is named.

use std::path::Path;

use serde_json::json;

/// A workspace with the measurements of the CPU and nothing else.
fn workspace() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let record = json!({
        "machine": "a processor", "commit": "c0ffee", "date": "2026-01-02",
        "rows": [{
            "shape": "small", "format": "bf16", "tokens": 4, "microseconds": 20.0,
            "share_of_ceiling": 0.5, "gigabytes_per_second": 10.0, "gigaflops": 100.0,
            "times_gemm_crate": 0.9, "num_experts": 4, "num_experts_published": 8
        }]
    });
    put(folder.path(), "benches/results/cpu/layer.json", &record);
    folder
}

fn put(root: &Path, path: &str, record: &serde_json::Value) {
    let path = root.join(path);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, record.to_string()).unwrap();
}

fn page(root: &Path, name: &str) -> String {
    std::fs::read_to_string(root.join("docs").join(name)).unwrap()
}

/// One shape with one batch size for each routing.
fn gpu_record(shape: &str) -> serde_json::Value {
    let row = |routing: &str, microseconds: f64| {
        json!({
            "tokens": 8, "routing": routing, "path": "direct 8x128x128", "microseconds": microseconds,
            "microseconds_min": 49.0, "experts_touched": 56.8, "bytes": 4.0e8, "operations": 9.0e8,
            "relative_error": 0.0025, "floor_microseconds": 40.0,
            "share_of_floor": 40.0 / microseconds, "terabytes_per_second": 3.5, "teraflops": 18.0
        })
    };
    json!({
        "machine": {"processor": "a processor", "threads": 2, "instruction_set": "avx2"},
        "commit": "c0ffee", "date": "2026-01-02",
        "gpu": {"name": "a GPU", "architecture": "sm_90", "multiprocessors": 132, "driver": "13.0"},
        "method": "median", "shape": shape,
        "sizes": {"num_experts": 256, "top_k": 8, "hidden_size": 3072, "intermediate_size": 768,
            "format": "bf16"},
        "ceilings": {"read_terabytes_per_second": 4.35, "teraflops": 1362.0},
        "rows": [row("uniform", 50.0), row("zipf-1.0", 45.0)]
    })
}

#[test]
fn without_a_gpu_the_page_of_the_cpu_is_made_and_the_rest_is_named() {
    let folder = workspace();
    let missing = xtask::report::make(folder.path()).unwrap();
    assert!(page(folder.path(), "cpu-layer.md").contains("(4 of 8 experts in memory)"));
    assert!(page(folder.path(), "cpu-layer.svg").contains("small, bf16"));
    assert!(missing[0].contains("artel bench layer --device cuda"), "{missing:?}");
    assert!(missing.iter().any(|sentence| sentence.contains("small-steps.json")), "{missing:?}");
    assert!(!folder.path().join("docs/gpu-layer.md").exists());
}

#[test]
fn the_peer_stands_beside_the_rows_that_it_was_measured_for() {
    let folder = workspace();
    put(folder.path(), "benches/results/h200/experts-a.json", &gpu_record("a"));
    put(folder.path(), "benches/results/h200/experts-b.json", &gpu_record("b"));
    let peer = json!({
        "name": "another 1.0", "rows": [{"shape": "a", "tokens": 8, "microseconds": 100.0}]
    });
    put(folder.path(), "benches/peers/vllm-0.22-h200.json", &peer);
    let steps = json!({
        "gpu": "a GPU", "method": "median", "commit": "c0ffee", "date": "2026-01-02",
        "rows": [
            {"step": "route", "tokens": 8, "microseconds": 2.0, "floor_microseconds": 0.5,
             "peer_microseconds": 5.0},
            {"step": "gate", "tokens": 8, "microseconds": 4.0, "floor_microseconds": 0.25,
             "peer_microseconds": null},
        ]
    });
    put(folder.path(), "benches/results/h200/small-steps.json", &steps);
    let missing = xtask::report::make(folder.path()).unwrap();
    assert!(!missing.iter().any(|sentence| sentence.contains("gpu-layer")), "{missing:?}");
    assert!(!missing.iter().any(|sentence| sentence.contains("small-steps")), "{missing:?}");

    let page = page(folder.path(), "gpu-layer.md");
    let with_peer = "| 8 | 50.0 | 40.0 | 80 % | 100.0 | 2.00 | 3.50 | 18 | 56.8 | 2.5e-3 | direct";
    let without = "| 8 | 45.0 | 40.0 | 89 % | 3.50 | 18 | 56.8 | 2.5e-3 | direct";
    assert_eq!(page.matches(with_peer).count(), 1, "{page}");
    assert_eq!(page.matches(without).count(), 2, "{page}");
    assert!(page.contains("| route | 8 | 2.00 | 0.50 | 5.00 | 2.50 |"), "{page}");
    assert!(page.contains("| gate | 8 | 4.00 | 0.25 | | |"), "{page}");
    let picture = |name: &str| self::page(folder.path(), name);
    assert!(picture("gpu-layer-a.svg").contains("another 1.0, uniform routing"));
    assert!(!picture("gpu-layer-b.svg").contains("another"));
    assert!(picture("gpu-layer.svg").contains("Artel, b"));
}

#[test]
fn whole_models_stand_beside_their_floors() {
    let folder = workspace();
    let batch = json!({
        "batch_size": 16,
        "steps": {
            "times": {
                "first_token_seconds": 0.5, "decode_step_seconds": 0.004,
                "decode_step_host_seconds": 0.0001, "decode_step_active_experts": 61.5
            },
            "first_token_floor_seconds": 0.25, "decode_step_floor_seconds": 0.003
        }
    });
    let record = json!({
        "model": "a-model", "format": "bf16", "commit": "c0ffee", "date": "2026-01-02",
        "batches": [batch]
    });
    put(folder.path(), "benches/results/h200/serving/a-model.json", &record);
    let missing = xtask::report::make(folder.path()).unwrap();
    assert!(!missing.iter().any(|sentence| sentence.contains("gpu-serving")), "{missing:?}");
    let page = page(folder.path(), "gpu-serving.md");
    let row = "| 16 | 500.0 | 250.0 | 50 % | 4.00 | 3.00 | 75 % | 4000 | 0.100 | 61.5 |";
    assert!(page.contains("## a-model") && page.contains(row), "{page}");
}

#[test]
fn formats_stand_in_one_table() {
    let folder = workspace();
    let missing = xtask::report::make(folder.path()).unwrap();
    assert!(missing.iter().any(|sentence| sentence.contains("formats.json")), "{missing:?}");
    let row = |format: &str, tokens: u32, microseconds: f64| {
        json!({
            "shape": "small", "format": format, "tokens": tokens, "microseconds": microseconds,
            "share_of_ceiling": 0.5, "bytes_per_weight": 0.53125, "relative_error": 0.001 * f64::from(tokens)
        })
    };
    let rows = [row("bf16", 1, 40.0), row("bf16", 2, 60.0), row("mxfp4", 1, 16.0)];
    let record = json!({"commit": "c0ffee", "date": "2026-01-02", "rows": rows});
    put(folder.path(), "benches/results/cpu/formats.json", &record);
    let score = json!({"total": {"problems": 1000, "right": 998}});
    put(folder.path(), "benches/results/cpu/arithmetic-bf16.json", &score);
    let mut gpu = gpu_record("m2.5-tp2-mxfp4");
    gpu["sizes"]["format"] = json!("mxfp4");
    put(folder.path(), "benches/results/h200/experts-m2.5-tp2-mxfp4.json", &gpu);
    let missing = xtask::report::make(folder.path()).unwrap();
    let lacks = |what: &str| missing.iter().any(|sentence| sentence.contains(what));
    assert!(lacks("arithmetic-mxfp4.json") && lacks("m2.5-tp2-… in bf16"), "{missing:?}");
    assert!(!lacks("arithmetic-bf16.json") && !lacks("m2.5-tp2-… in mxfp4"), "{missing:?}");
    let page = page(folder.path(), "formats.md");
    assert!(page.contains("| bf16 | 0.531 | 2.0e-3 |  | 998 of 1000 | | | | |"), "{page}");
    assert!(page.contains("| mxfp4 | 0.531 | 1.0e-3 | 2.5e-3 |  | | 50.0 (80 %) | | |"), "{page}");
    assert!(page.contains("| mxfp4 | 16 (50 %, 2.50x) | |"), "{page}");
}

#[test]
fn placements_are_compared_from_what_was_simulated() {
    let folder = workspace();
    let row = |policy: &str, imbalance: f64, redundancy: serde_json::Value| {
        json!({
            "policy": policy, "steps": 28, "imbalance": imbalance, "imbalance_p99": 1.5,
            "imbalance_worst": 2.0, "planned_imbalance": 1.0, "lost_us_per_step": 12.5,
            "activated_experts": 3.0, "plans": 3, "moved_slots_per_plan": 4.5,
            "moved_bytes": 2_500_000_000u64, "move_us": 10.0, "redundancy": redundancy,
            "imbalance_by_step": "1.5 1.2 1.1", "after": ["1.0 1.1", "0.9 1.0"],
            "watched_layer": 1, "watched": ["1 1", "1 1", "1 1"]
        })
    };
    let worth = json!({
        "saved_us_per_step": 9.0, "move_us_per_step": 1.0, "bytes_per_rank": 5_000_000, "pays": true
    });
    let record = json!({
        "machine": {}, "commit": "c0ffee", "date": "2026-01-02",
        "command": "artel eplb simulate --synthetic drift:0.2", "load": "drift:0.2",
        "model": "synthetic", "layers": 2, "experts": 8, "top_k": 2, "source_ranks": 2, "gpus": 2,
        "redundant": 2, "nodes": 1, "interval": 10, "window": 10, "us_per_token": 0.05,
        "bytes_per_expert": 1_000_000, "gigabytes_per_second": 50.0, "settled": 2,
        "steps_per_point": 10, "steps_per_heat_point": 10, "before": ["0.5 1.5", "1.0 1.0"],
        "rows": [row("greedy", 1.25, json!(null)), row("balanced", 1.125, worth)]
    });
    put(folder.path(), "benches/results/eplb/drift.json", &record);
    let missing = xtask::report::make(folder.path()).unwrap();
    assert!(missing.iter().any(|sentence| sentence.contains("eplb/tally.json")), "{missing:?}");
    assert!(!missing.iter().any(|sentence| sentence.contains("eplb/drift.json")), "{missing:?}");
    let page = page(folder.path(), "eplb.md");
    assert!(page.contains("| drift: drift:0.2 | 2, 2 | 1.250 | 1.125 |"), "{page}");
    assert!(
        page.contains("| greedy | 1.250 | 1.500 | 1.000 | 12.5 | 3.0 | 4.5 | 2.5 GB |"),
        "{page}"
    );
    assert!(page.contains("| balanced | 9.0 | 1.0 | pays |"), "{page}");
    let picture = |name: &str| self::page(folder.path(), name);
    assert!(picture("eplb-drift.svg").contains("balanced"));
    assert!(picture("eplb-drift-layers.svg").contains("before the first plan"));
    assert!(picture("eplb-drift-steps.svg").contains("greedy, layer 1"));
}

#[test]
fn a_record_of_another_form_is_an_error_with_its_name() {
    let folder = workspace();
    put(folder.path(), "benches/results/h200/experts-a.json", &json!({"rows": []}));
    let error = format!("{:#}", xtask::report::make(folder.path()).unwrap_err());
    assert!(error.contains("experts-a.json") && error.contains("shape"), "{error}");
}
