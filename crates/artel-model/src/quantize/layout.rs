//! What each format looks like in a folder: tensors and `quantization_config`, as public tools have
//! them.

use artel_moe::quant::{AnyMatrix, BLOCK, Format, Int4Matrix, Int8GroupMatrix, WeightMatrix};
use serde_json::{Value, json};

use super::QuantizeOptions;
use crate::checkpoint::Dtype;
use crate::{ModelError, Result};

/// One tensor of a file that is to be written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Stored {
    pub name: String,
    pub dtype: Dtype,
    pub shape: Vec<usize>,
}

impl Stored {
    pub fn bytes(&self) -> usize {
        self.shape.iter().product::<usize>() * self.dtype.bitsize() / 8
    }
}

fn refuse(why: String) -> ModelError {
    ModelError::Quantize { why }
}

/// `quantization_config` of a folder in this format.
pub(super) fn quantization_config(options: &QuantizeOptions) -> Result<Value> {
    let group_of = |bits: usize, group: usize, kind: &str, strategy: &str| {
        json!({
            "num_bits": bits, "type": kind, "symmetric": !options.zero_points,
            "strategy": strategy, "group_size": group,
        })
    };
    let by_row =
        |kind: &str| json!({"num_bits": 8, "type": kind, "symmetric": true, "strategy": "channel"});
    let by_token = |kind: &str| json!({"num_bits": 8, "type": kind, "symmetric": true, "strategy": "token", "dynamic": true});
    let compressed = |format: &str, weights: Value, activations: Value| {
        let group =
            json!({"targets": ["Linear"], "weights": weights, "input_activations": activations});
        json!({
            "quant_method": "compressed-tensors", "format": format, "config_groups": {"group_0": group},
            "ignore": ["lm_head", "re:.*gate$", "re:.*router$"], "quantization_status": "compressed",
        })
    };
    let fp8 = json!({"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic"});
    Ok(match options.format {
        Format::Fp8Block128 => {
            let mut blocks = fp8;
            blocks["weight_block_size"] = json!([BLOCK, BLOCK]);
            blocks
        }
        Format::Fp8Tensor => fp8,
        Format::Fp8Channel => compressed("float-quantized", by_row("float"), by_token("float")),
        Format::Int8W8A8 => compressed("int-quantized", by_row("int"), by_token("int")),
        Format::Int8W8A16 => {
            compressed("pack-quantized", group_of(8, options.group, "int", "group"), Value::Null)
        }
        Format::Int4W4A16 => {
            compressed("pack-quantized", group_of(4, options.group, "int", "group"), Value::Null)
        }
        Format::Nvfp4 => {
            let weights = group_of(4, 16, "float", "tensor_group");
            compressed("nvfp4-pack-quantized", weights, Value::Null)
        }
        Format::Mxfp4 => {
            compressed("mxfp4-pack-quantized", group_of(4, 32, "float", "group"), Value::Null)
        }
        Format::Mxfp8 => {
            compressed("mxfp8-quantized", group_of(8, 32, "float", "group"), Value::Null)
        }
        plain @ (Format::F32 | Format::F16 | Format::Bf16) => {
            return Err(refuse(format!(
                "{plain} is no format of codes; load with --format {plain}"
            )));
        }
    })
}

/// The tensors of the linear map `base` (with a dot at its end) of `[rows, columns]`.
pub(super) fn tensors(
    options: &QuantizeOptions,
    base: &str,
    [rows, columns]: [usize; 2],
) -> Result<Vec<Stored>> {
    let stored = |ending: &str, dtype, shape: Vec<usize>| Stored {
        name: format!("{base}{ending}"),
        dtype,
        shape,
    };
    let by_row = vec![rows, 1];
    let (whole, packed) = (vec![rows, columns], vec![rows, columns.div_ceil(2)]);
    let groups = |group: usize| vec![rows, columns.div_ceil(group)];
    let words = |bits: usize| match columns.is_multiple_of(32 / bits) {
        true => Ok(vec![rows, columns * bits / 32]),
        false => Err(refuse(format!("{base}weight: {columns} columns are no whole words"))),
    };
    let shape = || stored("weight_shape", Dtype::I64, vec![2]);
    Ok(match options.format {
        Format::Fp8Block128 => {
            let blocks = vec![rows.div_ceil(BLOCK), columns.div_ceil(BLOCK)];
            let scales = stored("weight_scale_inv", Dtype::F32, blocks);
            vec![stored("weight", Dtype::F8_E4M3, whole), scales]
        }
        Format::Fp8Tensor => {
            let scale = stored("weight_scale", Dtype::F32, vec![]);
            vec![stored("weight", Dtype::F8_E4M3, whole), scale]
        }
        Format::Fp8Channel => {
            let scales = stored("weight_scale", Dtype::F32, by_row);
            vec![stored("weight", Dtype::F8_E4M3, whole), scales]
        }
        Format::Int8W8A8 => {
            let scales = stored("weight_scale", Dtype::F32, by_row);
            vec![stored("weight", Dtype::I8, whole), scales]
        }
        Format::Int8W8A16 | Format::Int4W4A16 => {
            let words = words(options.format.number_bits())?;
            let groups = groups(options.group);
            let zeros = vec![rows.div_ceil(8), groups[1]];
            let mut tensors = vec![
                stored("weight_packed", Dtype::I32, words),
                stored("weight_scale", Dtype::F32, groups),
            ];
            if options.zero_points {
                tensors.push(stored("weight_zero_point", Dtype::I32, zeros));
            }
            tensors.push(shape());
            tensors
        }
        Format::Nvfp4 => vec![
            stored("weight_packed", Dtype::U8, packed),
            stored("weight_scale", Dtype::F8_E4M3, groups(16)),
            stored("weight_global_scale", Dtype::F32, vec![1]),
        ],
        Format::Mxfp4 => vec![
            stored("weight_packed", Dtype::U8, packed),
            stored("weight_scale", Dtype::U8, groups(32)),
        ],
        Format::Mxfp8 => vec![
            stored("weight", Dtype::F8_E4M3, whole),
            stored("weight_scale", Dtype::U8, groups(32)),
        ],
        Format::F32 | Format::F16 | Format::Bf16 => vec![stored("weight", Dtype::F32, whole)],
    })
}

/// The bytes of [`tensors`], in the same order.
pub(super) fn contents(matrix: &AnyMatrix) -> Vec<Vec<u8>> {
    fn numbers_and_scales(matrix: &impl WeightMatrix) -> Vec<Vec<u8>> {
        vec![matrix.numbers().to_vec(), matrix.scales().bytes().to_vec()]
    }
    let shape = [matrix.rows() as i64, matrix.columns() as i64];
    let shape = bytemuck::cast_slice::<i64, u8>(&shape).to_vec();
    match matrix {
        AnyMatrix::F32(matrix) => vec![matrix.numbers().to_vec()],
        AnyMatrix::F16(matrix) => vec![matrix.numbers().to_vec()],
        AnyMatrix::Bf16(matrix) => vec![matrix.numbers().to_vec()],
        AnyMatrix::Fp8Block128(matrix) => numbers_and_scales(matrix),
        AnyMatrix::Fp8Tensor(matrix) => numbers_and_scales(matrix),
        AnyMatrix::Fp8Channel(matrix) => numbers_and_scales(matrix),
        AnyMatrix::Int8W8A8(matrix) => numbers_and_scales(matrix),
        AnyMatrix::Mxfp4(matrix) => numbers_and_scales(matrix),
        AnyMatrix::Mxfp8(matrix) => numbers_and_scales(matrix),
        AnyMatrix::Nvfp4(matrix) => {
            let mut tensors = numbers_and_scales(matrix);
            // Here the scale of the matrix divides.
            let encode = 1.0 / matrix.global_scale().unwrap_or(1.0);
            tensors.push(encode.to_le_bytes().to_vec());
            tensors
        }
        AnyMatrix::Int8W8A16(matrix) => {
            let mut tensors = numbers_and_scales(matrix);
            // Words hold codes without a sign.
            tensors[0].iter_mut().for_each(|code| *code ^= 128);
            debug_assert!(Int8GroupMatrix::zero_points(matrix).is_none());
            tensors.push(shape);
            tensors
        }
        AnyMatrix::Int4W4A16(matrix) => {
            let mut tensors = numbers_and_scales(matrix);
            tensors.extend(zero_words(matrix));
            tensors.push(shape);
            tensors
        }
    }
}

/// Zero points in words of eight rows, if there are any.
fn zero_words(matrix: &Int4Matrix) -> Option<Vec<u8>> {
    let zeros = matrix.zero_points()?;
    let groups = matrix.columns().div_ceil(matrix.group());
    let mut words = vec![0u32; matrix.rows().div_ceil(8) * groups];
    for (index, &zero) in zeros.iter().enumerate() {
        let (row, group) = (index / groups, index % groups);
        words[row / 8 * groups + group] |= u32::from(zero.wrapping_add(8)) << (4 * (row % 8));
    }
    Some(bytemuck::cast_slice(&words).to_vec())
}
