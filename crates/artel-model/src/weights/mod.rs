//! Weights by name: every tensor that an architecture asks for is checked against the shape that
//! `config.json` implies, counted, and used where it lies in the file.

mod dummy;
mod packed_words;
mod parameters;
mod quantized;

use std::cell::RefCell;
use std::collections::BTreeSet;

use artel_device::HostBuffer;
use artel_device::cpu::CpuFeatures;
use artel_layers::linear::Linear;
use artel_layers::rms_norm::RmsNorm;
use artel_moe::quant::{AnyMatrix, DenseMatrix, Element, Format, WeightMatrix};
use dummy::DummyTensors;
use half::{bf16, f16};
pub use parameters::{FormatBytes, Group, Parameters};
use rayon::prelude::*;

use crate::checkpoint::{Dtype, Progress, StoredTensor};
use crate::config::{ConfigReader, Quantization};
use crate::{Checkpoint, ModelError, Result};

const FLOATS: &str = "F32, F16 or BF16";

/// Columns that are turned into rows at a time: a cache line of each row of the source.
const TRANSPOSED_COLUMNS: usize = 32;

/// Names of unused tensors that an error repeats.
const EXTRA_NAMES_SHOWN: usize = 5;

/// How a model is loaded.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LoadOptions {
    /// The format that projections and experts are converted to, rounded to nearest. `None` keeps
    /// what the checkpoint stores and copies nothing. Embedding, output layer, routers and norms
    /// are never converted.
    pub format: Option<Format>,
    /// The instruction sets that may be used.
    pub features: CpuFeatures,
}

impl Default for LoadOptions {
    /// Stored formats, and all that this processor can do.
    fn default() -> Self {
        Self { format: None, features: CpuFeatures::detect() }
    }
}

/// The weights of a checkpoint while a model is built from them.
pub(crate) struct Weights<'a> {
    checkpoint: &'a Checkpoint,
    quantization: Quantization,
    options: &'a LoadOptions,
    /// What stands in for tensors, where the checkpoint was opened without.
    dummy: Option<RefCell<DummyTensors>>,
    state: RefCell<State<'a>>,
}

struct State<'a> {
    used: BTreeSet<String>,
    parameters: Parameters,
    progress: Progress,
    report: &'a mut dyn FnMut(Progress),
}

impl<'a> Weights<'a> {
    /// The weights of `checkpoint`.
    pub(crate) fn new(
        checkpoint: &'a Checkpoint,
        options: &'a LoadOptions,
        report: &'a mut dyn FnMut(Progress),
    ) -> Result<Self> {
        let quantization = Quantization::read(&checkpoint.config())?;
        let bytes_total = checkpoint.tensors().map(|(_, tensor)| tensor.bytes.len()).sum();
        let progress = Progress { bytes_done: 0, bytes_total };
        let (used, parameters) = (BTreeSet::new(), Parameters::default());
        let state = RefCell::new(State { used, parameters, progress, report });
        let dummy = match checkpoint.is_dummy() {
            true => Some(RefCell::new(DummyTensors::new(&checkpoint.config(), quantization)?)),
            false => None,
        };
        Ok(Self { checkpoint, quantization, options, dummy, state })
    }

    /// `config.json` of the same checkpoint.
    pub(crate) fn config(&self) -> ConfigReader<'a> {
        self.checkpoint.config()
    }

    /// Tensors whose names begin with `prefix` and a dot.
    pub(crate) fn scope(&self, prefix: &str, group: Group) -> Scope<'_, 'a> {
        Scope { weights: self, prefix: prefix.to_owned(), group }
    }

    /// Checks that every tensor was used, except those that `ignored` names, and returns the count
    /// of what was.
    pub(crate) fn finish(
        self,
        architecture: &str,
        ignored: impl Fn(&str) -> bool,
    ) -> Result<Parameters> {
        let State { used, parameters, .. } = self.state.into_inner();
        let names = self.checkpoint.tensors().map(|(name, _)| name);
        let extra: Vec<&str> =
            names.filter(|name| !used.contains(*name) && !ignored(name)).collect();
        if extra.is_empty() {
            return Ok(parameters);
        }
        Err(ModelError::ExtraTensors {
            checkpoint: self.checkpoint.name(),
            architecture: architecture.to_owned(),
            count: extra.len(),
            names: extra[..extra.len().min(EXTRA_NAMES_SHOWN)].join(", "),
        })
    }

    /// A tensor by name, which should have this shape.
    fn find(&self, name: &str, shape: &[usize]) -> Result<Option<StoredTensor>> {
        match &self.dummy {
            Some(dummy) => dummy.borrow_mut().tensor(name, shape).map(Some),
            None => Ok(self.checkpoint.tensor(name).cloned()),
        }
    }

    /// A tensor of exactly this shape.
    fn tensor(&self, name: &str, shape: &[usize]) -> Result<StoredTensor> {
        let tensor = self.find(name, shape)?.ok_or_else(|| ModelError::MissingTensor {
            checkpoint: self.checkpoint.name(),
            name: name.to_owned(),
            expected: shape.to_vec(),
        })?;
        if tensor.shape != shape {
            return Err(ModelError::TensorShape {
                name: name.to_owned(),
                file: tensor.file.to_string(),
                expected: shape.to_vec(),
                found: tensor.shape,
            });
        }
        let mut state = self.state.borrow_mut();
        if state.used.insert(name.to_owned()) {
            state.progress.bytes_done += tensor.bytes.len();
            let progress = state.progress;
            (state.report)(progress);
        }
        Ok(tensor)
    }

    fn count(&self, group: Group, format: &'static str, parameters: usize, bytes: usize) {
        self.state.borrow_mut().parameters.add(group, format, parameters, bytes);
    }
}

/// Whether a linear map has a bias.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Bias {
    None,
    Stored,
}

impl Bias {
    /// What a flag of `config.json` such as `attention_bias` says.
    pub(crate) fn when(stored: bool) -> Self {
        if stored { Self::Stored } else { Self::None }
    }
}

/// The weights below one name, such as `model.layers.3.self_attn`.
#[derive(Clone)]
pub(crate) struct Scope<'w, 'a> {
    weights: &'w Weights<'a>,
    prefix: String,
    group: Group,
}

impl<'w, 'a> Scope<'w, 'a> {
    /// The weights below a name of this scope.
    pub(crate) fn scope(&self, name: &str, group: Group) -> Self {
        Self { weights: self.weights, prefix: self.name(name), group }
    }

    /// The same weights, counted as part of another group.
    pub(crate) fn counted_as(&self, group: Group) -> Self {
        Self { group, ..self.clone() }
    }

    /// The instruction sets that may be used.
    pub(crate) fn features(&self) -> CpuFeatures {
        self.weights.options.features
    }

    /// The whole name of a tensor of this scope.
    pub(crate) fn name(&self, name: &str) -> String {
        format!("{}.{name}", self.prefix)
    }

    /// A matrix `[rows, columns]` in its stored format, or in the one that loading asks for where
    /// the group of this scope is converted.
    pub(crate) fn matrix(&self, name: &str, shape: [usize; 2]) -> Result<AnyMatrix> {
        let name = self.name(name);
        let matrix = self.weights.matrix(&name, shape)?;
        self.weights.state.borrow_mut().parameters.name_matrix(name, self.group);
        self.keep(matrix)
    }

    /// A matrix in its stored format that the caller replaces by a float32 copy, which is what is
    /// counted.
    pub(crate) fn matrix_to_widen(&self, name: &str, shape: [usize; 2]) -> Result<AnyMatrix> {
        let matrix = self.weights.matrix(&self.name(name), shape)?;
        let parameters = matrix.rows() * matrix.columns();
        let bytes = parameters * size_of::<f32>();
        self.weights.count(self.group, Format::F32.name(), parameters, bytes);
        Ok(matrix)
    }

    /// Converts a matrix where this group is converted, and counts it.
    pub(crate) fn keep(&self, matrix: AnyMatrix) -> Result<AnyMatrix> {
        let matrix = match self.weights.options.format {
            Some(format) if self.group.is_converted() => matrix.convert(format)?,
            _ => matrix,
        };
        let parameters = matrix.rows() * matrix.columns();
        self.weights.count(self.group, matrix.format_name(), parameters, matrix.bytes());
        Ok(matrix)
    }

    /// `name.weight` `[outputs, inputs]`, and `name.bias` `[outputs]` where there is one.
    pub(crate) fn linear(&self, name: &str, shape: [usize; 2], bias: Bias) -> Result<Linear> {
        let weight_name = format!("{name}.weight");
        let weight = self.matrix(&weight_name, shape)?;
        let linear = match bias {
            Bias::None => Linear::new(weight),
            Bias::Stored => {
                Linear::with_bias(weight, self.vector(&format!("{name}.bias"), shape[0])?)?
            }
        };
        Ok(linear.named(&self.name(&weight_name)))
    }

    /// `name.weight` `[width]` as an RMS norm.
    pub(crate) fn norm(&self, name: &str, width: usize, epsilon: f32) -> Result<RmsNorm> {
        let norms = self.counted_as(Group::Norms);
        Ok(RmsNorm::new(norms.vector(&format!("{name}.weight"), width)?, epsilon)?)
    }

    /// A vector, widened to float32.
    pub(crate) fn vector(&self, name: &str, length: usize) -> Result<Vec<f32>> {
        self.array(name, &[length])
    }

    /// An array of plain numbers of any shape, widened to float32.
    pub(crate) fn array(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
        let name = self.name(name);
        let values = floats(&name, &self.weights.tensor(&name, shape)?)?;
        let bytes = values.len() * size_of::<f32>();
        self.weights.count(self.group, Format::F32.name(), values.len(), bytes);
        Ok(values)
    }

    /// Whether the tensor `name` is there.
    pub(crate) fn has(&self, name: &str) -> bool {
        let name = self.name(name);
        match &self.weights.dummy {
            Some(dummy) => dummy.borrow().has(&name),
            None => self.weights.checkpoint.tensor(&name).is_some(),
        }
    }

    /// Matrices `[rows, columns]` of several experts in MXFP4: `name_blocks` and `name_scales`.
    pub(crate) fn mxfp4_matrices(&self, name: &str, shape: [usize; 3]) -> Result<Vec<AnyMatrix>> {
        let experts = self.weights.mxfp4_experts(&self.name(name), shape)?;
        experts.into_iter().map(|matrix| self.keep(matrix)).collect()
    }

    /// Matrices `[columns, rows]` of several experts in one tensor `[experts, columns, rows]`,
    /// each turned around to `[rows, columns]`: the layout `x @ W` of gpt-oss. Turning them is the
    /// one case in which weights are copied.
    pub(crate) fn transposed_matrices(
        &self,
        name: &str,
        [experts, columns, rows]: [usize; 3],
    ) -> Result<Vec<AnyMatrix>> {
        let name = self.name(name);
        let tensor = self.weights.tensor(&name, &[experts, columns, rows])?;
        let bytes = tensor.bytes.len() / experts;
        let turned = (0..experts).map(|expert| {
            let stored = StoredTensor {
                bytes: tensor.bytes.slice(expert * bytes..(expert + 1) * bytes)?,
                ..tensor.clone()
            };
            self.keep(transposed(&dense_matrix(&name, &stored, [columns, rows])?)?)
        });
        turned.collect()
    }
}

/// A matrix of plain numbers over the bytes of its tensor.
pub(crate) fn dense_matrix(
    name: &str,
    tensor: &StoredTensor,
    shape: [usize; 2],
) -> Result<AnyMatrix> {
    let ([rows, columns], bytes) = (shape, tensor.bytes.clone());
    Ok(match tensor.dtype {
        Dtype::F32 => AnyMatrix::F32(DenseMatrix::new(bytes, rows, columns)?),
        Dtype::F16 => AnyMatrix::F16(DenseMatrix::new(bytes, rows, columns)?),
        Dtype::BF16 => AnyMatrix::Bf16(DenseMatrix::new(bytes, rows, columns)?),
        _ => return Err(wrong_type(name, tensor)),
    })
}

fn transposed(matrix: &AnyMatrix) -> Result<AnyMatrix> {
    fn turned<T: Element>(matrix: &DenseMatrix<T>) -> Result<DenseMatrix<T>> {
        let (rows, columns) = (matrix.rows(), matrix.columns());
        let mut turned = vec![T::from_f32(0.0); rows * columns];
        let blocks = turned.par_chunks_mut(TRANSPOSED_COLUMNS * rows).enumerate();
        blocks.for_each(|(block, turned)| {
            let first = block * TRANSPOSED_COLUMNS;
            for (row, elements) in matrix.elements().chunks_exact(columns).enumerate() {
                let places = turned.iter_mut().skip(row).step_by(rows);
                places.zip(&elements[first..]).for_each(|(place, element)| *place = *element);
            }
        });
        Ok(DenseMatrix::new(HostBuffer::from_vec(turned), columns, rows)?)
    }
    Ok(match matrix {
        AnyMatrix::F32(matrix) => AnyMatrix::F32(turned(matrix)?),
        AnyMatrix::F16(matrix) => AnyMatrix::F16(turned(matrix)?),
        AnyMatrix::Bf16(matrix) => AnyMatrix::Bf16(turned(matrix)?),
        codes => panic!("this is a bug: {} is never turned around", codes.format()),
    })
}

/// All numbers of a tensor of plain numbers as float32.
fn floats(name: &str, tensor: &StoredTensor) -> Result<Vec<f32>> {
    fn widened<T: Element>(tensor: &StoredTensor) -> Vec<f32> {
        let bytes = tensor.bytes.clone().aligned_for::<T>();
        bytes.as_slice::<T>().iter().map(|&number| number.to_f32()).collect()
    }
    Ok(match tensor.dtype {
        Dtype::F32 => widened::<f32>(tensor),
        Dtype::F16 => widened::<f16>(tensor),
        Dtype::BF16 => widened::<bf16>(tensor),
        _ => return Err(wrong_type(name, tensor)),
    })
}

fn wrong_type(name: &str, tensor: &StoredTensor) -> ModelError {
    wrong_type_of(name, tensor, FLOATS)
}

fn wrong_type_of(name: &str, tensor: &StoredTensor, expected: &'static str) -> ModelError {
    ModelError::TensorType {
        name: name.to_owned(),
        file: tensor.file.to_string(),
        expected,
        found: tensor.dtype.to_string(),
    }
}
