//! One expert as a unit: what is exported, moved and put into another slot, never a part of it.
//!
//! As bytes an expert is each of its matrices from w13 to w2 (numbers, scales, zero points, scale of all
//! numbers, scale of activations)
//! and then the biases of w13 and w2. Every tensor begins at a multiple of [`TENSOR_ALIGNMENT`], and
//! experts of one layer have the same layout, so that the bytes need no description of their own.

use artel_device::HostBuffer;

use super::{ExpertMatrices, ExpertWeights, Stacked};
use crate::MoeError;
use crate::quant::{MatrixTensors, NumberFormat, WeightMatrix};

/// Tensors of an exported expert begin at multiples of so many bytes.
pub const TENSOR_ALIGNMENT: usize = 64;

/// All tensors of one expert, over shared bytes.
#[derive(Debug, Clone)]
pub struct Expert<F: NumberFormat> {
    w13: Stacked<F::Matrix>,
    w13_bias: Option<Vec<f32>>,
    w2: Stacked<F::Matrix>,
    w2_bias: Option<Vec<f32>>,
}

impl<F: NumberFormat> Expert<F> {
    /// A copy of all tensors as bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.exported_bytes());
        for matrix in self.matrices() {
            append(&mut out, matrix.numbers());
            append(&mut out, matrix.scales().bytes());
            append(&mut out, matrix.zero_points().unwrap_or_default());
            append(&mut out, bytemuck::cast_slice(matrix.global_scale().as_slice()));
            append(&mut out, bytemuck::cast_slice(matrix.input_scale().as_slice()));
        }
        for bias in self.biases() {
            append(&mut out, bytemuck::cast_slice(bias));
        }
        out
    }

    /// Length of [`Expert::to_bytes`].
    pub fn exported_bytes(&self) -> usize {
        let matrix = |matrix: &F::Matrix| {
            padded(matrix.numbers().len())
                + padded(matrix.scales().bytes().len())
                + padded(matrix.zero_points().map_or(0, <[u8]>::len))
                + padded(size_of_val(matrix.global_scale().as_slice()))
                + padded(size_of_val(matrix.input_scale().as_slice()))
        };
        let matrices: usize = self.matrices().map(matrix).sum();
        matrices + self.biases().map(|bias| padded(size_of_val(bias))).sum::<usize>()
    }

    /// The expert of which `bytes` are the export; it uses them where they lie. `self` is any expert
    /// of the same layer.
    ///
    /// # Errors
    /// [`MoeError`] for bytes of another length, or scales that this format does not allow.
    pub fn from_bytes(&self, bytes: &HostBuffer) -> Result<Self, MoeError> {
        MoeError::check_shape("bytes of an expert", self.exported_bytes(), bytes.len())?;
        let mut reader = Reader { bytes, position: 0 };
        let mut stacked = |like: &Stacked<F::Matrix>| {
            let parts: Result<_, _> = like.parts().iter().map(|part| reader.matrix(part)).collect();
            Stacked::new(parts?)
        };
        let (w13, w2) = (stacked(&self.w13)?, stacked(&self.w2)?);
        let mut bias = |like: &Option<Vec<f32>>| {
            like.as_ref().map(|like| reader.floats(like.len()).as_slice().to_vec())
        };
        let (w13_bias, w2_bias) = (bias(&self.w13_bias), bias(&self.w2_bias));
        Ok(Self { w13, w13_bias, w2, w2_bias })
    }

    fn matrices(&self) -> impl Iterator<Item = &F::Matrix> {
        self.w13.parts().iter().chain(self.w2.parts())
    }

    fn biases(&self) -> impl Iterator<Item = &[f32]> {
        [&self.w13_bias, &self.w2_bias].into_iter().flatten().map(Vec::as_slice)
    }
}

fn padded(length: usize) -> usize {
    length.next_multiple_of(TENSOR_ALIGNMENT)
}

fn append(out: &mut Vec<u8>, tensor: &[u8]) {
    out.extend_from_slice(tensor);
    out.resize(padded(out.len()), 0);
}

/// Takes tensors off the front of an export whose length has been checked.
struct Reader<'a> {
    bytes: &'a HostBuffer,
    position: usize,
}

impl Reader<'_> {
    fn tensor(&mut self, length: usize) -> HostBuffer {
        let part = self.bytes.slice(self.position..self.position + length);
        self.position += padded(length);
        part.unwrap_or_else(|why| panic!("this is a bug: the length was not checked: {why}"))
    }

    fn floats(&mut self, count: usize) -> HostBuffer {
        self.tensor(count * size_of::<f32>()).aligned_for::<f32>()
    }

    fn matrix<M: WeightMatrix>(&mut self, like: &M) -> Result<M, MoeError> {
        let numbers = self.tensor(like.numbers().len());
        let scales = self.tensor(like.scales().bytes().len());
        let zero_points = like.zero_points().map(|zero_points| self.tensor(zero_points.len()));
        let global_scale = like.global_scale().map(|_| self.floats(1).as_slice()[0]);
        let input_scale = like.input_scale().map(|_| self.floats(1).as_slice()[0]);
        like.over(MatrixTensors { numbers, scales, zero_points, global_scale, input_scale })
    }
}

impl<F: NumberFormat> ExpertWeights<F> {
    /// One expert, over the same bytes.
    ///
    /// # Panics
    /// When there are not so many experts, which is a bug.
    pub fn expert(&self, expert: usize) -> Expert<F> {
        let matrix = |matrices: &ExpertMatrices<F>| matrices.matrix(expert).clone();
        let bias = |matrices: &ExpertMatrices<F>| matrices.bias(expert).map(<[f32]>::to_vec);
        let (w13, w2) = (&self.w13, &self.w2);
        Expert { w13: matrix(w13), w13_bias: bias(w13), w2: matrix(w2), w2_bias: bias(w2) }
    }

    /// These of its experts, in this order and as often as they are named, over the same bytes. What
    /// holds for the layer as a whole (the scale of all activations) stays what it was.
    ///
    /// # Errors
    /// [`MoeError`] for no expert, or one that is not there.
    pub fn pick(&self, experts: &[usize]) -> Result<Self, MoeError> {
        if experts.is_empty() {
            return Err(MoeError::config("experts with weights", 0, "at least 1"));
        }
        if let Some(position) = experts.iter().position(|&expert| expert >= self.experts()) {
            let allowed = format!("below {}", self.experts());
            return Err(MoeError::element("experts", position, experts[position], allowed));
        }
        Ok(Self { w13: self.w13.pick(experts), w2: self.w2.pick(experts) })
    }

    /// The same experts but for one.
    ///
    /// # Errors
    /// [`MoeError`] when the new one is not of this layer's shape, or its place is not there.
    pub fn replace(&mut self, expert: usize, with: Expert<F>) -> Result<(), MoeError> {
        if expert >= self.experts() {
            let allowed = format!("below {}", self.experts());
            return Err(MoeError::config("expert to replace", expert, allowed));
        }
        self.w13.check_like(&with.w13, with.w13_bias.as_deref())?;
        self.w2.check_like(&with.w2, with.w2_bias.as_deref())?;
        self.w13.replace(expert, with.w13, with.w13_bias);
        self.w2.replace(expert, with.w2, with.w2_bias);
        Ok(())
    }
}

impl<F: NumberFormat> ExpertMatrices<F> {
    fn pick(&self, experts: &[usize]) -> Self {
        let matrices = experts.iter().map(|&expert| self.matrices[expert].clone()).collect();
        let biases = self.biases.is_some().then(|| {
            let of_expert = |&expert: &usize| self.bias(expert).unwrap_or_default().iter().copied();
            experts.iter().flat_map(of_expert).collect()
        });
        Self { matrices, biases, ..*self }
    }

    fn check_like(
        &self,
        matrix: &Stacked<F::Matrix>,
        bias: Option<&[f32]>,
    ) -> Result<(), MoeError> {
        Self::new(vec![self.matrices[0].clone(), matrix.clone()])?;
        let expected = self.bias(0).map_or(0, <[f32]>::len);
        MoeError::check_shape("bias of an expert", expected, bias.map_or(0, <[f32]>::len))
    }

    fn replace(&mut self, expert: usize, matrix: Stacked<F::Matrix>, bias: Option<Vec<f32>>) {
        self.matrices[expert] = matrix;
        if let (Some(biases), Some(bias)) = (&mut self.biases, bias) {
            biases[expert * self.rows..(expert + 1) * self.rows].copy_from_slice(&bias);
        }
    }
}
