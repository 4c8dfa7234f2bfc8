//! The weights of a layer's experts, as the checkpoint stores them.

#[cfg(feature = "cuda")]
pub mod cuda;
mod expert;
mod halves;
mod shard;
mod stack;
pub mod words;
#[cfg(test)]
mod tests;

pub use expert::{Expert, TENSOR_ALIGNMENT};
pub use stack::{StackLayout, WordStack};

use crate::MoeError;
use crate::quant::{self, AnyMatrix, Format, NumberFormat, ScaleGrid, WeightMatrix};
use crate::quant::{each_format, for_each_format};

/// One matrix made of others, one on top of the other.
///
/// Checkpoints keep the first product of an expert as two matrices (gate, then up) or as one; both
/// are used where they lie. Gate `[I, H]` over up `[I, H]` is one matrix `[2I, H]`.
#[derive(Debug, Clone)]
pub struct Stacked<M> {
    parts: Vec<M>,
}

impl<M: WeightMatrix> Stacked<M> {
    /// Puts `parts` on top of each other, first on top.
    ///
    /// # Errors
    /// [`MoeError`] when there is no part or the parts differ in their number of columns.
    pub fn new(parts: Vec<M>) -> Result<Self, MoeError> {
        let Some(first) = parts.first() else {
            return Err(MoeError::config("parts of a matrix", 0, "at least 1"));
        };
        for part in &parts {
            MoeError::check_shape("columns of a stacked matrix", first.columns(), part.columns())?;
        }
        Ok(Self { parts })
    }

    /// The matrices, first on top.
    pub fn parts(&self) -> &[M] {
        &self.parts
    }

    /// Output features of all parts.
    pub fn rows(&self) -> usize {
        self.parts.iter().map(WeightMatrix::rows).sum()
    }

    /// Input features.
    pub fn columns(&self) -> usize {
        self.parts[0].columns()
    }

    /// Bytes that one use of all parts reads.
    pub fn bytes(&self) -> usize {
        self.parts.iter().map(WeightMatrix::bytes).sum()
    }

    /// Writes row `row` as float32.
    pub fn dequantize_row(&self, row: usize, out: &mut [f32]) {
        let (part, row) = self.part_of_row(row);
        part.dequantize_row(row, out);
    }

    /// The part that row `row` lies in, and which of its rows it is.
    pub(crate) fn part_of_row(&self, mut row: usize) -> (&M, usize) {
        for part in &self.parts {
            if row < part.rows() {
                return (part, row);
            }
            row -= part.rows();
        }
        panic!("this is a bug: a row beyond a stacked matrix");
    }
}

/// One matrix `[N, K]` for each of `E` experts, with an optional bias `[N]` each.
#[derive(Debug, Clone)]
pub struct ExpertMatrices<F: NumberFormat> {
    matrices: Vec<Stacked<F::Matrix>>,
    biases: Option<Vec<f32>>,
    rows: usize,
    columns: usize,
    input_scale: Option<f32>,
}

impl<F: NumberFormat> ExpertMatrices<F> {
    /// Checks that all experts have the same shape and were cut at the same place.
    ///
    /// # Errors
    /// [`MoeError`] when there is no expert, or one has another shape than the first.
    pub fn new(matrices: Vec<Stacked<F::Matrix>>) -> Result<Self, MoeError> {
        let Some(first) = matrices.first() else {
            return Err(MoeError::config("experts with weights", 0, "at least 1"));
        };
        let (rows, columns) = (first.rows(), first.columns());
        for matrix in &matrices {
            MoeError::check_shape("columns of an expert's weights", columns, matrix.columns())?;
            MoeError::check_shape(
                "parts of an expert's weights",
                first.parts.len(),
                matrix.parts.len(),
            )?;
            for (part, like) in matrix.parts.iter().zip(&first.parts) {
                MoeError::check_shape("rows of an expert's weights", like.rows(), part.rows())?;
                if part.zero_points().is_some() != like.zero_points().is_some() {
                    let found = if part.zero_points().is_some() { "there" } else { "missing" };
                    let allowed = "there for all experts or for none";
                    return Err(MoeError::config("zero points of an expert", found, allowed));
                }
                if part.scale_grid() != like.scale_grid() {
                    let (found, allowed) = (part.scale_grid(), like.scale_grid());
                    let allowed = format!("{allowed:?} as the first expert's");
                    return Err(MoeError::config(
                        "scales of an expert",
                        format!("{found:?}"),
                        allowed,
                    ));
                }
            }
        }
        let input_scale = common_input_scale(matrices.iter().flat_map(Stacked::parts))?;
        Ok(Self { matrices, biases: None, rows, columns, input_scale })
    }

    /// Adds `biases` `[E, N]`.
    ///
    /// # Errors
    /// [`MoeError::Shape`] when there are not `E * N`.
    pub fn with_biases(mut self, biases: Vec<f32>) -> Result<Self, MoeError> {
        MoeError::check_shape("expert biases", self.experts() * self.rows(), biases.len())?;
        self.biases = Some(biases);
        Ok(self)
    }

    /// `E`.
    pub fn experts(&self) -> usize {
        self.matrices.len()
    }

    /// Output features, `N`.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Rows and scales of each part, the same for all experts.
    pub fn parts(&self) -> impl Iterator<Item = (usize, ScaleGrid)> {
        self.matrices[0].parts.iter().map(|part| (part.rows(), part.scale_grid()))
    }

    /// Input features, `K`.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// The scale of all activations, where checkpoints have measured it: the largest of the
    /// experts', since an activation is quantised once for all its experts.
    pub fn input_scale(&self) -> Option<f32> {
        self.input_scale
    }

    /// The matrix of one expert.
    pub fn matrix(&self, expert: usize) -> &Stacked<F::Matrix> {
        &self.matrices[expert]
    }

    /// The bias `[N]` of one expert.
    pub fn bias(&self, expert: usize) -> Option<&[f32]> {
        let rows = self.rows();
        self.biases.as_ref().map(|biases| &biases[expert * rows..(expert + 1) * rows])
    }

    /// The biases `[E, N]`.
    fn biases(&self) -> Option<&[f32]> {
        self.biases.as_deref()
    }

    /// Bytes that one use of one expert's matrix reads.
    pub fn bytes_per_expert(&self) -> usize {
        self.matrices[0].bytes()
    }
}

/// The largest input scale, if there are any.
fn common_input_scale<'a, M: WeightMatrix>(
    mut matrices: impl Iterator<Item = &'a M>,
) -> Result<Option<f32>, MoeError> {
    let Some(mut largest) = matrices.next().map(WeightMatrix::input_scale) else {
        return Ok(None);
    };
    for matrix in matrices {
        largest = match (largest, matrix.input_scale()) {
            (None, None) => None,
            (Some(a), Some(b)) => Some(a.max(b)),
            (first, _) => {
                let found = if first.is_some() { "missing" } else { "there" };
                let allowed = "there for all experts or for none";
                return Err(MoeError::config("scale of an expert's activations", found, allowed));
            }
        };
    }
    Ok(largest)
}

/// The weights of the experts of one layer: `w13` `[E, 2I, H]` (`[E, I, H]` without a gate) and
/// `w2` `[E, H, I]`.
#[derive(Debug, Clone)]
pub struct ExpertWeights<F: NumberFormat> {
    w13: ExpertMatrices<F>,
    w2: ExpertMatrices<F>,
}

impl<F: NumberFormat> ExpertWeights<F> {
    /// Checks that the two products belong together.
    ///
    /// # Errors
    /// [`MoeError::Shape`] when they differ in experts or hidden size.
    pub fn new(w13: ExpertMatrices<F>, w2: ExpertMatrices<F>) -> Result<Self, MoeError> {
        MoeError::check_shape("experts of w2", w13.experts(), w2.experts())?;
        MoeError::check_shape("rows of w2 (hidden size)", w13.columns(), w2.rows())?;
        Ok(Self { w13, w2 })
    }

    /// Gate and up, the first product.
    pub fn w13(&self) -> &ExpertMatrices<F> {
        &self.w13
    }

    /// Down, the second product.
    pub fn w2(&self) -> &ExpertMatrices<F> {
        &self.w2
    }

    /// `E`.
    pub fn experts(&self) -> usize {
        self.w13.experts()
    }

    /// `H`.
    pub fn hidden_size(&self) -> usize {
        self.w13.columns()
    }

    /// `I`.
    pub fn intermediate_size(&self) -> usize {
        self.w2.columns()
    }

    /// Whether experts have biases.
    pub fn has_biases(&self) -> bool {
        self.w13.biases().or(self.w2.biases()).is_some()
    }

    /// Bytes that one use of one expert reads.
    pub fn bytes_per_expert(&self) -> usize {
        self.w13.bytes_per_expert() + self.w2.bytes_per_expert()
    }
}

/// One expert as a checkpoint stores it.
#[derive(Debug, Clone)]
pub struct ExpertTensors {
    /// Gate and up in this order, or both in one matrix, or up alone.
    pub w13: Vec<AnyMatrix>,
    /// `[2I]`.
    pub w13_bias: Option<Vec<f32>>,
    /// `[H, I]`.
    pub w2: AnyMatrix,
    /// `[H]`.
    pub w2_bias: Option<Vec<f32>>,
}

impl ExpertTensors {
    /// The same expert in another format.
    ///
    /// # Errors
    /// As [`AnyMatrix::convert`].
    pub fn convert(&self, format: Format) -> Result<Self, MoeError> {
        let w13: Result<_, _> = self.w13.iter().map(|part| part.convert(format)).collect();
        Ok(Self { w13: w13?, w2: self.w2.convert(format)?, ..self.clone() })
    }
}

macro_rules! define_any_experts {
    (() $($(#[doc = $doc:literal])* $Format:ident $field:ident)*) => {
        /// The experts of one layer in the format of their checkpoint: matched once, when it is
        /// loaded.
        #[derive(Debug, Clone)]
        pub enum AnyExperts {
            $($(#[doc = $doc])* $Format(ExpertWeights<quant::$Format>),)*
        }

        impl AnyExperts {
            /// Gathers the experts of a layer; the first one's format must be everyone's.
            ///
            /// # Errors
            /// [`MoeError`] for no expert, mixed formats, mixed shapes or biases in some experts
            /// only.
            pub fn new(experts: Vec<ExpertTensors>) -> Result<Self, MoeError> {
                let Some(first) = experts.first() else {
                    return Err(MoeError::config("experts with weights", 0, "at least 1"));
                };
                match first.w2.format() {
                    $(Format::$Format => {
                        let matrix = |any| match any {
                            AnyMatrix::$Format(matrix) => Ok(matrix),
                            other => Err(other_format(&other, Format::$Format)),
                        };
                        gather(experts, matrix).map(Self::$Format)
                    })*
                }
            }

            /// Format of the weights.
            pub fn format(&self) -> Format {
                match self {
                    $(Self::$Format(_) => Format::$Format,)*
                }
            }
        }
    };
}
for_each_format!(define_any_experts());

impl AnyExperts {
    /// Bytes of all experts.
    pub fn bytes(&self) -> usize {
        each_format!(AnyExperts, self, |weights| weights.experts() * weights.bytes_per_expert())
    }

    /// Whether experts have biases.
    pub fn has_biases(&self) -> bool {
        each_format!(AnyExperts, self, |weights| weights.has_biases())
    }
}

fn other_format(found: &AnyMatrix, allowed: Format) -> MoeError {
    let allowed = format!("{allowed}, as the first expert's w2");
    MoeError::config("format of an expert's weights", found.format(), allowed)
}

fn gather<F: NumberFormat>(
    experts: Vec<ExpertTensors>,
    matrix: impl Fn(AnyMatrix) -> Result<F::Matrix, MoeError>,
) -> Result<ExpertWeights<F>, MoeError> {
    let (mut w13, mut w13_biases) = (Vec::new(), Vec::new());
    let (mut w2, mut w2_biases) = (Vec::new(), Vec::new());
    for expert in experts {
        let parts: Result<Vec<F::Matrix>, _> = expert.w13.into_iter().map(&matrix).collect();
        w13.push(Stacked::new(parts?)?);
        w13_biases.push(expert.w13_bias);
        w2.push(Stacked::new(vec![matrix(expert.w2)?])?);
        w2_biases.push(expert.w2_bias);
    }
    let w13 = add_biases(ExpertMatrices::<F>::new(w13)?, w13_biases)?;
    let w2 = add_biases(ExpertMatrices::<F>::new(w2)?, w2_biases)?;
    ExpertWeights::new(w13, w2)
}

fn add_biases<F: NumberFormat>(
    matrices: ExpertMatrices<F>,
    biases: Vec<Option<Vec<f32>>>,
) -> Result<ExpertMatrices<F>, MoeError> {
    if biases.iter().all(Option::is_none) {
        return Ok(matrices);
    }
    let rows = matrices.rows();
    let mut all = Vec::with_capacity(rows * biases.len());
    for bias in biases {
        let bias = bias.unwrap_or_default();
        MoeError::check_shape("bias of an expert", rows, bias.len())?;
        all.extend(bias);
    }
    matrices.with_biases(all)
}
