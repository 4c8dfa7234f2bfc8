//! Matrices of codes, in the layouts of the tools that write them.

use artel_device::HostBuffer;
use artel_moe::quant::Nvfp4Matrix;
use artel_moe::quant::{AnyMatrix, BLOCK, Fp8BlockMatrix, Fp8ChannelMatrix, Fp8TensorMatrix};
use artel_moe::quant::{Int4Matrix, Int8ChannelMatrix, Int8GroupMatrix, Mxfp4Matrix, Mxfp8Matrix};

use super::packed_words::{rows_from_awq_words, rows_from_input_words, turned};
use super::packed_words::{zeros_from_output_words, zeros_from_packed_rows};
use super::{Weights, dense_matrix, floats, wrong_type_of};
use crate::checkpoint::{Dtype, StoredTensor};
use crate::config::{Quantization, Words};
use crate::{ModelError, Result};

/// Columns that share a scale of NVFP4.
const NVFP4_GROUP: usize = 16;

/// Columns that share a power of two.
const MX_GROUP: usize = 32;

/// Where the tensors of one matrix are, and its shape.
#[derive(Clone, Copy)]
struct Place<'n> {
    /// Name of the linear map with a dot behind it.
    base: &'n str,
    rows: usize,
    columns: usize,
}

impl Place<'_> {
    fn name(&self, tensor: &str) -> String {
        format!("{}{tensor}", self.base)
    }

    fn shape(&self) -> [usize; 2] {
        [self.rows, self.columns]
    }

    fn bad(&self, tensor: &str, why: &str) -> ModelError {
        ModelError::Quantization { why: format!("{}: {why}", self.name(tensor)) }
    }
}

impl<'a> Weights<'a> {
    /// A matrix as it is stored. Only a checkpoint that declares codes may hold them.
    pub(super) fn matrix(&self, name: &str, [rows, columns]: [usize; 2]) -> Result<AnyMatrix> {
        let Some(base) = name.strip_suffix("weight") else {
            return dense_matrix(name, &self.tensor(name, &[rows, columns])?, [rows, columns]);
        };
        let place = Place { base, rows, columns };
        let stored = self.find(name, &[rows, columns])?;
        let is_plain = stored
            .is_some_and(|tensor| matches!(tensor.dtype, Dtype::F32 | Dtype::F16 | Dtype::BF16));
        match self.quantization {
            _ if is_plain => dense_matrix(name, &self.tensor(name, &place.shape())?, place.shape()),
            Quantization::None => {
                dense_matrix(name, &self.tensor(name, &place.shape())?, place.shape())
            }
            Quantization::Fp8Block128 => self.fp8_blocks(place),
            Quantization::Fp8 => self.fp8(place),
            Quantization::Int8 => self.int8(place),
            Quantization::Gptq(words) => self.gptq(place, words),
            Quantization::Awq(words) => self.awq(place, words),
            Quantization::PackedIntegers(words) => self.packed_integers(place, words),
            Quantization::Nvfp4ModelOpt => self.nvfp4(place, ["weight", "weight_scale_2"]),
            Quantization::Nvfp4CompressedTensors => {
                self.nvfp4(place, ["weight_packed", "weight_global_scale"])
            }
            Quantization::Mxfp4 => self.mxfp4(place),
            Quantization::Mxfp8 => self.mxfp8(place),
        }
    }

    /// Matrices of several experts in the tensors `name_blocks` `[experts, rows, columns / 32, 16]`
    /// and `name_scales` `[experts, rows, columns / 32]`: gpt-oss.
    pub(super) fn mxfp4_experts(
        &self,
        name: &str,
        [experts, rows, columns]: [usize; 3],
    ) -> Result<Vec<AnyMatrix>> {
        let groups = columns.div_ceil(MX_GROUP);
        let tensor = |suffix: &str, shape: &[usize]| {
            let name = format!("{name}_{suffix}");
            self.typed(&name, shape, &[Dtype::U8, Dtype::F8_E8M0], "U8")
        };
        let blocks = tensor("blocks", &[experts, rows, groups, MX_GROUP / 2])?;
        let scales = tensor("scales", &[experts, rows, groups])?;
        let part = |tensor: &StoredTensor, expert: usize| {
            let bytes = tensor.bytes.len() / experts;
            tensor.bytes.slice(expert * bytes..(expert + 1) * bytes)
        };
        let expert = |expert| {
            let (blocks, scales) = (part(&blocks, expert)?, part(&scales, expert)?);
            Ok(AnyMatrix::Mxfp4(Mxfp4Matrix::new(blocks, scales, [rows, columns])?))
        };
        (0..experts).map(expert).collect()
    }

    /// A tensor of one of some types.
    fn typed(
        &self,
        name: &str,
        shape: &[usize],
        types: &[Dtype],
        expected: &'static str,
    ) -> Result<StoredTensor> {
        let tensor = self.tensor(name, shape)?;
        if types.contains(&tensor.dtype) {
            Ok(tensor)
        } else {
            Err(wrong_type_of(name, &tensor, expected))
        }
    }

    /// A tensor that need not be there, whatever its shape; it counts as used.
    fn optional(&self, name: &str) -> Result<Option<StoredTensor>> {
        match self.checkpoint.tensor(name) {
            Some(tensor) => self.tensor(name, &tensor.shape).map(Some),
            None => Ok(None),
        }
    }

    /// A scale of a whole matrix, `[]` or `[1]`.
    fn scalar(&self, place: Place<'_>, tensor: &str) -> Result<f32> {
        let name = place.name(tensor);
        let shape: &[usize] = match self.checkpoint.tensor(&name) {
            Some(stored) if stored.shape.is_empty() => &[],
            _ => &[1],
        };
        let value = floats(&name, &self.tensor(&name, shape)?)?[0];
        if value.is_finite() && value > 0.0 {
            return Ok(value);
        }
        Err(place.bad(tensor, &format!("{value} is no scale, which is positive and finite")))
    }

    /// Float32 scales of any plain type.
    fn scales(&self, place: Place<'_>, tensor: &str, shape: &[usize]) -> Result<Vec<f32>> {
        let name = place.name(tensor);
        floats(&name, &self.tensor(&name, shape)?)
    }

    fn words(&self, place: Place<'_>, tensor: &str, shape: &[usize]) -> Result<Vec<u32>> {
        let name = place.name(tensor);
        let stored = self.typed(&name, shape, &[Dtype::I32, Dtype::U32], "I32")?;
        Ok(stored.bytes.clone().aligned_for::<u32>().as_slice().to_vec())
    }

    fn fp8_blocks(&self, place: Place<'_>) -> Result<AnyMatrix> {
        let codes =
            self.typed(&place.name("weight"), &place.shape(), &[Dtype::F8_E4M3], "F8_E4M3")?;
        let shape = place.shape().map(|size| size.div_ceil(BLOCK));
        let scales = HostBuffer::from_vec(self.scales(place, "weight_scale_inv", &shape)?);
        let (codes, rows, columns) = (codes.bytes.clone(), place.rows, place.columns);
        Ok(AnyMatrix::Fp8Block128(Fp8BlockMatrix::new(codes, scales, rows, columns)?))
    }

    /// The shape of the scales says what they cover.
    fn fp8(&self, place: Place<'_>) -> Result<AnyMatrix> {
        let codes =
            self.typed(&place.name("weight"), &place.shape(), &[Dtype::F8_E4M3], "F8_E4M3")?;
        let (codes, Place { rows, columns, .. }) = (codes.bytes.clone(), place);
        let input_scale = match self.checkpoint.tensor(&place.name("input_scale")) {
            Some(_) => Some(self.scalar(place, "input_scale")?),
            None => None,
        };
        let stored = self.checkpoint.tensor(&place.name("weight_scale"));
        if stored.is_none_or(|scales| scales.shape.iter().product::<usize>() == 1 && rows != 1) {
            let scale = self.scalar(place, "weight_scale")?;
            let matrix = Fp8TensorMatrix::new(codes, scale, rows, columns)?;
            return Ok(AnyMatrix::Fp8Tensor(match input_scale {
                Some(scale) => matrix.with_input_scale(scale)?,
                None => matrix,
            }));
        }
        let shape: &[usize] =
            if stored.is_some_and(|scales| scales.shape.len() == 1) { &[rows] } else { &[rows, 1] };
        let scales = HostBuffer::from_vec(self.scales(place, "weight_scale", shape)?);
        Ok(AnyMatrix::Fp8Channel(Fp8ChannelMatrix::new(codes, scales, rows, columns)?))
    }

    fn int8(&self, place: Place<'_>) -> Result<AnyMatrix> {
        let codes = self.typed(&place.name("weight"), &place.shape(), &[Dtype::I8], "I8")?;
        let scales = HostBuffer::from_vec(self.scales(place, "weight_scale", &[place.rows, 1])?);
        if self.checkpoint.tensor(&place.name("weight_zero_point")).is_some() {
            return Err(
                place.bad("weight_zero_point", "INT8 weights by INT8 activations have none")
            );
        }
        let (codes, rows, columns) = (codes.bytes.clone(), place.rows, place.columns);
        Ok(AnyMatrix::Int8W8A8(Int8ChannelMatrix::new(codes, scales, rows, columns)?))
    }

    fn gptq(&self, place: Place<'_>, words: Words) -> Result<AnyMatrix> {
        let Place { rows, columns, .. } = place;
        let (bits, per_word) = (words.bits, 32 / words.bits);
        check_words(place, "qweight", [rows, columns], per_word)?;
        let group = words.group.unwrap_or(columns);
        self.check_order(place, "g_idx", group)?;
        let groups = columns.div_ceil(group);
        let codes = self.words(place, "qweight", &[columns / per_word, rows])?;
        let codes = rows_from_input_words(&codes, [rows, columns], bits);
        let scales = turned(&self.scales(place, "scales", &[groups, rows])?, rows);
        let zeros = self.words(place, "qzeros", &[groups, rows / per_word])?;
        let mut zeros = zeros_from_output_words(&zeros, [rows, groups], bits, false);
        if words.zeros_less_one {
            let largest = (1u16 << bits) - 1;
            for zero in &mut zeros {
                // Zero 16 of four bits is stored as 15 and would not be a code.
                if u16::from(*zero) == largest {
                    return Err(place.bad("qzeros", "a zero point that no code has"));
                }
                *zero += 1;
            }
        }
        let in_the_middle = zeros.iter().all(|&zero| zero == 1 << (bits - 1));
        let zeros = (!words.symmetric || !in_the_middle).then_some(zeros);
        integers(place, (codes, bits), (scales, group), zeros)
    }

    fn awq(&self, place: Place<'_>, words: Words) -> Result<AnyMatrix> {
        let Place { rows, columns, .. } = place;
        check_words(place, "qweight", [rows, columns], 8)?;
        let group = words.group.unwrap_or(columns);
        let groups = columns.div_ceil(group);
        let codes = self.words(place, "qweight", &[columns, rows / 8])?;
        let codes = rows_from_awq_words(&codes, [rows, columns]);
        let scales = turned(&self.scales(place, "scales", &[groups, rows])?, rows);
        let zeros = self.words(place, "qzeros", &[groups, rows / 8])?;
        let zeros = zeros_from_output_words(&zeros, [rows, groups], 4, true);
        integers(place, (codes, 4), (scales, group), Some(zeros))
    }

    fn packed_integers(&self, place: Place<'_>, words: Words) -> Result<AnyMatrix> {
        let Place { rows, columns, .. } = place;
        let (bits, per_word) = (words.bits, 32 / words.bits);
        check_words(place, "weight_packed", [per_word, columns], per_word)?;
        let group = words.group.unwrap_or(columns);
        self.check_order(place, "weight_g_idx", group)?;
        self.optional(&place.name("weight_shape"))?;
        let groups = columns.div_ceil(group);
        let packed = place.name("weight_packed");
        let packed = self.typed(&packed, &[rows, columns / per_word], &[Dtype::I32], "I32")?;
        let scales = self.scales(place, "weight_scale", &[rows, groups])?;
        let zeros = match self.checkpoint.tensor(&place.name("weight_zero_point")) {
            Some(_) => {
                let shape = [rows.div_ceil(per_word), groups];
                let zeros = self.words(place, "weight_zero_point", &shape)?;
                Some(zeros_from_packed_rows(&zeros, [rows, groups], bits))
            }
            None => None,
        };
        if bits == 4 {
            // The words are the bytes that are asked for: used where they lie.
            let scales = HostBuffer::from_vec(scales);
            let matrix = Int4Matrix::new(packed.bytes.clone(), scales, place.shape(), group)?;
            return Ok(AnyMatrix::Int4W4A16(match zeros {
                Some(zeros) => matrix.with_zeros(&zeros)?,
                None => matrix,
            }));
        }
        integers(place, (packed.bytes.as_bytes().to_vec(), bits), (scales, group), zeros)
    }

    /// Columns must be in the order of their groups: column `k` in group `k / group`.
    fn check_order(&self, place: Place<'_>, tensor: &str, group: usize) -> Result<()> {
        let name = place.name(tensor);
        if self.checkpoint.tensor(&name).is_none() {
            return Ok(());
        }
        let indices = self.words(place, tensor, &[place.columns])?;
        let in_order = |(column, &index): (usize, &u32)| index as usize == column / group;
        if indices.iter().enumerate().all(in_order) {
            return Ok(());
        }
        let why = "columns in the order of their activations (desc_act, actorder) are not supported; \
                   quantise without it";
        Err(place.bad(tensor, why))
    }

    /// Names of the codes and of the scale of the matrix.
    fn nvfp4(&self, place: Place<'_>, [codes, global]: [&str; 2]) -> Result<AnyMatrix> {
        let Place { rows, columns, .. } = place;
        let codes_name = place.name(codes);
        let codes = self.typed(&codes_name, &[rows, columns.div_ceil(2)], &[Dtype::U8], "U8")?;
        let shape = [rows, columns.div_ceil(NVFP4_GROUP)];
        let scales_name = place.name("weight_scale");
        let scales = self.typed(&scales_name, &shape, &[Dtype::F8_E4M3], "F8_E4M3")?;
        let stored = self.scalar(place, global)?;
        // Scales of activations, which stay bfloat16 here.
        for unused in ["input_scale", "input_global_scale"] {
            self.optional(&place.name(unused))?;
        }
        let global = if global == "weight_scale_2" { stored } else { 1.0 / stored };
        let (codes, scales) = (codes.bytes.clone(), scales.bytes.clone());
        Ok(AnyMatrix::Nvfp4(Nvfp4Matrix::new(codes, scales, global, place.shape())?))
    }

    fn powers_of_two(&self, place: Place<'_>) -> Result<HostBuffer> {
        let shape = [place.rows, place.columns.div_ceil(MX_GROUP)];
        let types = [Dtype::U8, Dtype::F8_E8M0];
        let scales = self.typed(&place.name("weight_scale"), &shape, &types, "U8 or F8_E8M0")?;
        Ok(scales.bytes.clone())
    }

    fn mxfp4(&self, place: Place<'_>) -> Result<AnyMatrix> {
        let shape = [place.rows, place.columns.div_ceil(2)];
        let codes = self.typed(&place.name("weight_packed"), &shape, &[Dtype::U8], "U8")?;
        let scales = self.powers_of_two(place)?;
        Ok(AnyMatrix::Mxfp4(Mxfp4Matrix::new(codes.bytes.clone(), scales, place.shape())?))
    }

    fn mxfp8(&self, place: Place<'_>) -> Result<AnyMatrix> {
        let codes =
            self.typed(&place.name("weight"), &place.shape(), &[Dtype::F8_E4M3], "F8_E4M3")?;
        let scales = self.powers_of_two(place)?;
        Ok(AnyMatrix::Mxfp8(Mxfp8Matrix::new(codes.bytes.clone(), scales, place.shape())?))
    }
}

/// Rows and columns must be whole words.
fn check_words(place: Place<'_>, tensor: &str, sizes: [usize; 2], per_word: usize) -> Result<()> {
    if sizes.iter().all(|size| size.is_multiple_of(per_word)) {
        return Ok(());
    }
    let why = format!("{:?} numbers are no whole words of {per_word}", place.shape());
    Err(place.bad(tensor, &why))
}

/// A matrix of unsigned codes, the middle of which is zero unless zero points say otherwise.
fn integers(
    place: Place<'_>,
    (mut codes, bits): (Vec<u8>, usize),
    (scales, group): (Vec<f32>, usize),
    zeros: Option<Vec<u8>>,
) -> Result<AnyMatrix> {
    let (shape, scales) = (place.shape(), HostBuffer::from_vec(scales));
    if bits == 4 {
        let matrix = Int4Matrix::new(HostBuffer::from_vec(codes), scales, shape, group)?;
        return Ok(AnyMatrix::Int4W4A16(match zeros {
            Some(zeros) => matrix.with_zeros(&zeros)?,
            None => matrix,
        }));
    }
    codes.iter_mut().for_each(|code| *code ^= 128);
    let matrix = Int8GroupMatrix::new(HostBuffer::from_vec(codes), scales, shape, group)?;
    Ok(AnyMatrix::Int8W8A16(match zeros {
        Some(zeros) => matrix.with_zeros(&zeros)?,
        None => matrix,
    }))
}
