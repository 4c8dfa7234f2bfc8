use std::path::Path;

use artel_device::cuda::{Architecture, Kernels};

use super::*;
use crate::{Checkpoint, Format, LoadOptions};

const LIMITS: CudaLimits =
    CudaLimits { tokens_max: 512, sequences_max: 16, logits_max: 16, context_max: 256 };

/// Lists the kernels of a checkpoint in `folder` of the repository.
fn list(folder: &str, format: Option<Format>, limits: CudaLimits) -> Result<usize> {
    list_for(Architecture::Sm90, folder, format, limits)
}

fn list_for(
    architecture: Architecture,
    folder: &str,
    format: Option<Format>,
    limits: CudaLimits,
) -> Result<usize> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(folder);
    let options = LoadOptions { format, ..LoadOptions::default() };
    let model = Model::load(&Checkpoint::open(&folder)?, &options)?;
    let mut kernels = Kernels::list(architecture);
    CudaKernels::load(&mut kernels, &model, &limits)?;
    Ok(kernels.specs().len())
}

#[track_caller]
fn refused(fixture: &str, reasons: &[&str]) {
    let folder = format!("crates/artel-model/tests/fixtures/{fixture}");
    let error = list(&folder, None, LIMITS).expect_err("no kernels").to_string();
    for reason in reasons {
        assert!(error.contains(reason), "{error}");
    }
}

#[test]
fn what_has_no_kernels_is_refused_by_name() {
    let ranks = ["model.layers.0", "kv_lora_rank is 16", "128, 256 or 512"];
    refused("deepseek_v3_plain", &ranks);
    refused("olmoe_clip", &["model.layers.0", "clip_qkv"]);
    refused("qwen3_moe_norm", &["model.layers.0", "head_dim is 12", "32, 64, 128 or 256"]);
    refused("minimax_m2_fp8", &["model.layers.0", "head_dim is 72"]);
}

#[test]
fn experts_that_are_not_bfloat16_or_codes_are_refused() {
    let error =
        |format| list("models/tally", Some(format), LIMITS).expect_err("no kernels").to_string();
    assert!(error(Format::F16).contains("--format bf16"), "{}", error(Format::F16));
    assert!(error(Format::F32).contains("f32"), "{}", error(Format::F32));
}

#[test]
fn codes_need_matrix_units_for_them() {
    let list = |format| list_for(Architecture::Sm80, "models/tally", format, LIMITS);
    assert!(list(None).expect("a model with kernels") > 20);
    let error = list(Some(Format::Fp8Block128)).expect_err("no kernels").to_string();
    assert!(error.contains("sm_80") && error.contains("--format bf16"), "{error}");
}

#[test]
fn kernels_of_smaller_steps_are_among_those_of_larger_ones() {
    let small = list("models/tally", None, LIMITS).expect("a model with kernels");
    let large = CudaLimits { tokens_max: 8192, ..LIMITS };
    let large = list("models/tally", None, large).expect("a model with kernels");
    assert!(small > 20 && large > small, "{small} and {large}");
    let codes = list("models/tally", Some(Format::Fp8Block128), LIMITS);
    assert!(codes.expect("a model with kernels") > 20);
}

#[test]
fn limits_must_make_sense() {
    for limits in [
        CudaLimits { tokens_max: 15, ..LIMITS },
        CudaLimits { sequences_max: 0, ..LIMITS },
        CudaLimits { logits_max: 15, ..LIMITS },
        CudaLimits { context_max: 0, ..LIMITS },
        CudaLimits { tokens_max: 1 << 25, ..LIMITS },
    ] {
        assert!(list("models/tally", None, limits).is_err(), "{limits:?}");
    }
}
