//! `quantization_config`: how a checkpoint stores the weights of its linear maps, by the tools that
//! write them.

use super::ConfigReader;
use crate::{ModelError, Result};

/// How weights are stored. Tensors that are plain numbers stay what they are in all of them: a
/// checkpoint may leave any linear map alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Quantization {
    /// Plain numbers.
    None,
    /// e4m3 codes with a float32 `weight_scale_inv` per 128x128 block.
    Fp8Block128,
    /// e4m3 codes with a `weight_scale` of the matrix or of each row, and perhaps an `input_scale`.
    Fp8,
    /// INT8 codes with a `weight_scale` of each row; activations become INT8 by token.
    Int8,
    /// `qweight`, `scales`, `qzeros` as GPTQ writes them.
    Gptq(Words),
    /// `qweight`, `scales`, `qzeros` as AWQ writes them, four bits.
    Awq(Words),
    /// `weight_packed`, `weight_scale` and perhaps `weight_zero_point` of compressed-tensors.
    PackedIntegers(Words),
    /// FP4 with e4m3 scales of 16 and a scale of the matrix, which multiplies: ModelOpt.
    Nvfp4ModelOpt,
    /// The same of compressed-tensors, whose scale of the matrix divides.
    Nvfp4CompressedTensors,
    /// FP4 with powers of two: compressed-tensors, and the experts of gpt-oss.
    Mxfp4,
    /// e4m3 codes with powers of two.
    Mxfp8,
}

/// Integers that are packed into words of 32 bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Words {
    /// 4 or 8.
    pub bits: usize,
    /// Columns that share a scale; `None` for a whole row.
    pub group: Option<usize>,
    /// Whether zeros are stored one too small, as the first version of GPTQ's layout has it.
    pub zeros_less_one: bool,
    /// Whether all zeros are said to be in the middle.
    pub symmetric: bool,
}

const SUPPORTED: &str = "fp8 (e4m3: blocks of [128, 128], a scale per matrix or per row), gptq, awq, \
     compressed-tensors (int-quantized, float-quantized, pack-quantized, nvfp4-pack-quantized, \
     mxfp4-pack-quantized, mxfp8-quantized), modelopt (NVFP4, FP8) and mxfp4 are";

fn refuse(what: impl std::fmt::Display) -> ModelError {
    ModelError::Quantization { why: format!("{what} is not supported; {SUPPORTED}") }
}

impl Quantization {
    /// Reads `quantization_config`.
    ///
    /// # Errors
    /// [`ModelError::Quantization`] for every other method, block size or number format.
    pub fn read(config: &ConfigReader<'_>) -> Result<Self> {
        let Some(quantization) = config.object("quantization_config")? else {
            return Ok(Self::None);
        };
        match quantization.text("quant_method")? {
            "fp8" => read_fp8(&quantization),
            "gptq" => read_gptq(&quantization),
            "awq" => read_awq(&quantization),
            "compressed-tensors" => read_compressed_tensors(&quantization),
            "modelopt" | "modelopt_fp4" => read_modelopt(&quantization),
            "mxfp4" => Ok(Self::Mxfp4),
            method => Err(refuse(format!("quant_method {method:?}"))),
        }
    }
}

fn read_fp8(config: &ConfigReader<'_>) -> Result<Quantization> {
    if config.has("fmt") && !matches!(config.text("fmt")?, "float8_e4m3fn" | "e4m3") {
        return Err(refuse(format!("fmt {:?}", config.text("fmt")?)));
    }
    match config.counts("weight_block_size")?[..] {
        [128, 128] => Ok(Quantization::Fp8Block128),
        [] => Ok(Quantization::Fp8),
        ref other => Err(refuse(format!("weight_block_size {other:?}"))),
    }
}

/// `group_size`, where -1 and an absent one are a whole row.
fn group_size(config: &ConfigReader<'_>) -> Result<Option<usize>> {
    match config.optional_number("group_size")? {
        Some(whole_row) if whole_row < 0.0 => Ok(None),
        _ => config.optional_size("group_size"),
    }
}

fn bits(config: &ConfigReader<'_>, field: &str, allowed: &[usize]) -> Result<usize> {
    let bits = config.size(field)?;
    if allowed.contains(&bits) { Ok(bits) } else { Err(refuse(format!("{field} {bits}"))) }
}

fn read_gptq(config: &ConfigReader<'_>) -> Result<Quantization> {
    let version =
        if config.has("checkpoint_format") { config.text("checkpoint_format")? } else { "gptq" };
    let zeros_less_one = match version {
        "gptq" => true,
        "gptq_v2" => false,
        other => return Err(refuse(format!("checkpoint_format {other:?} of gptq"))),
    };
    let words = Words {
        bits: bits(config, "bits", &[4, 8])?,
        group: group_size(config)?,
        zeros_less_one,
        symmetric: config.flag_or("sym", false)?,
    };
    Ok(Quantization::Gptq(words))
}

fn read_awq(config: &ConfigReader<'_>) -> Result<Quantization> {
    if config.has("version") && !config.text("version")?.eq_ignore_ascii_case("gemm") {
        return Err(refuse(format!("version {:?} of awq", config.text("version")?)));
    }
    let field = if config.has("bits") { "bits" } else { "w_bit" };
    let group = if config.has("group_size") {
        group_size(config)?
    } else {
        config.optional_size("q_group_size")?
    };
    let words =
        Words { bits: bits(config, field, &[4])?, group, zeros_less_one: false, symmetric: false };
    Ok(Quantization::Awq(words))
}

fn read_modelopt(config: &ConfigReader<'_>) -> Result<Quantization> {
    match config.text("quant_algo")? {
        "NVFP4" => Ok(Quantization::Nvfp4ModelOpt),
        "FP8" => Ok(Quantization::Fp8),
        other => Err(refuse(format!("quant_algo {other:?} of modelopt"))),
    }
}

/// The only group of linear maps says more than the name of the format.
fn read_compressed_tensors(config: &ConfigReader<'_>) -> Result<Quantization> {
    let groups = config.object("config_groups")?;
    let groups = groups.ok_or_else(|| config.error("config_groups", "an object"))?;
    let names: Vec<&str> = groups.fields().collect();
    let [name] = names[..] else {
        return Err(refuse(format!("compressed-tensors with {} config_groups", names.len())));
    };
    let group = groups.object(name)?.ok_or_else(|| groups.error(name, "an object"))?;
    let weights = group.object("weights")?.ok_or_else(|| group.error("weights", "an object"))?;
    match config.text("format")? {
        "pack-quantized" => {
            let group = group_size(&weights)?;
            let bits = bits(&weights, "num_bits", &[4, 8])?;
            Ok(Quantization::PackedIntegers(Words {
                bits,
                group,
                zeros_less_one: false,
                symmetric: false,
            }))
        }
        "int-quantized" => {
            bits(&weights, "num_bits", &[8])?;
            check_int8_activations(&group)?;
            Ok(Quantization::Int8)
        }
        "float-quantized" => {
            bits(&weights, "num_bits", &[8])?;
            match weights.counts("block_structure")?[..] {
                [] => Ok(Quantization::Fp8),
                ref other => {
                    Err(refuse(format!("block_structure {other:?} of compressed-tensors")))
                }
            }
        }
        "nvfp4-pack-quantized" => Ok(Quantization::Nvfp4CompressedTensors),
        "mxfp4-pack-quantized" => Ok(Quantization::Mxfp4),
        "mxfp8-quantized" => Ok(Quantization::Mxfp8),
        other => Err(refuse(format!("format {other:?} of compressed-tensors"))),
    }
}

/// Activations must be quantised by token, around zero, as they come.
fn check_int8_activations(group: &ConfigReader<'_>) -> Result<()> {
    let Some(activations) = group.object("input_activations")? else {
        return Err(refuse("int-quantized without input_activations"));
    };
    if !activations.flag_or("dynamic", false)? {
        return Err(refuse("int-quantized with input_activations that are not dynamic"));
    }
    if !activations.flag_or("symmetric", true)? {
        return Err(refuse("int-quantized with input_activations that are not symmetric"));
    }
    Ok(())
}
