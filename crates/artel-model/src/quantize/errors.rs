//! What quantising has lost, layer by layer.

use artel_moe::quant::AnyMatrix;
use rayon::prelude::*;

/// What was lost in one layer: `|quantised - stored| / |stored|` over its quantised weights.
#[derive(Debug, Clone, PartialEq)]
pub struct LayerError {
    /// Such as `model.layers.3`.
    pub layer: String,
    /// Numbers that were quantised.
    pub parameters: usize,
    /// The relative error.
    pub error: f64,
    /// What calibration has changed, where there was one.
    pub calibrated: Option<CalibratedError>,
}

/// Errors that are known where the inputs of matrices are. The error of outputs is that of weights with
/// the columns weighted by the mean squares of the inputs: what is expected of outputs when the columns
/// of the input do not depend on each other.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct CalibratedError {
    /// The error of the weights without calibration.
    pub uncalibrated_error: f64,
    /// The relative error of outputs.
    pub output_error: f64,
    /// The same without calibration.
    pub uncalibrated_output_error: f64,
}

/// Sums of squares over numbers of matrices.
#[derive(Debug, Clone, Copy, Default)]
struct Sums {
    stored: f64,
    lost: f64,
    /// Lost without calibration.
    usually_lost: f64,
}

impl Sums {
    fn add(&mut self, other: &Self) {
        self.stored += other.stored;
        self.lost += other.lost;
        self.usually_lost += other.usually_lost;
    }

    fn relative(&self, lost: f64) -> f64 {
        if self.stored == 0.0 { 0.0 } else { (lost / self.stored).sqrt() }
    }
}

/// The same of one or more matrices, and with columns weighted where the inputs are known.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Squares {
    weights: Sums,
    outputs: Option<Sums>,
    parameters: usize,
}

impl Squares {
    /// Of a matrix whose inputs are not known.
    pub fn uncalibrated(stored: &AnyMatrix, quantized: &AnyMatrix) -> Self {
        let [weights, _] = sums(stored, [quantized; 2], &vec![1.0; stored.columns()]);
        Self { weights, outputs: None, parameters: stored.rows() * stored.columns() }
    }

    /// Of a matrix that was quantised without and with inputs of these mean squares.
    pub fn calibrated(
        stored: &AnyMatrix,
        quantized: [&AnyMatrix; 2],
        mean_squares: &[f32],
    ) -> Self {
        let [weights, outputs] = sums(stored, quantized, mean_squares);
        let parameters = stored.rows() * stored.columns();
        Self { weights, outputs: Some(outputs), parameters }
    }

    pub fn add(&mut self, other: &Self) {
        self.weights.add(&other.weights);
        if let Some(outputs) = &other.outputs {
            self.outputs.get_or_insert_default().add(outputs);
        }
        self.parameters += other.parameters;
    }

    pub fn of(self, layer: String) -> LayerError {
        let Self { weights, outputs, parameters } = self;
        let calibrated = outputs.map(|outputs| CalibratedError {
            uncalibrated_error: weights.relative(weights.usually_lost),
            output_error: outputs.relative(outputs.lost),
            uncalibrated_output_error: outputs.relative(outputs.usually_lost),
        });
        LayerError { layer, parameters, error: weights.relative(weights.lost), calibrated }
    }
}

/// Plain and weighted sums of a matrix that was quantised in two ways, as usual and as it is written.
fn sums(stored: &AnyMatrix, [usual, written]: [&AnyMatrix; 2], mean_squares: &[f32]) -> [Sums; 2] {
    let columns = stored.columns();
    let of_row = |[a, b, c]: &mut [Vec<f32>; 3], row| {
        stored.dequantize_row(row, a);
        usual.dequantize_row(row, b);
        written.dequantize_row(row, c);
        let mut sums = [Sums::default(); 2];
        for (((&a, &b), &c), &mean_square) in a.iter().zip(&*b).zip(&*c).zip(mean_squares) {
            let squares = [a, c - a, b - a].map(|number| f64::from(number).powi(2));
            for (sums, weight) in sums.iter_mut().zip([1.0, f64::from(mean_square)]) {
                let [stored, lost, usually_lost] = squares.map(|square| weight * square);
                sums.add(&Sums { stored, lost, usually_lost });
            }
        }
        sums
    };
    let room = || [(); 3].map(|()| vec![0f32; columns]);
    // Summed in the order of the rows, so that the report is the same every time.
    let of_rows: Vec<[Sums; 2]> =
        (0..stored.rows()).into_par_iter().map_init(room, of_row).collect();
    let mut all = [Sums::default(); 2];
    for sums in &of_rows {
        all.iter_mut().zip(sums).for_each(|(all, sums)| all.add(sums));
    }
    all
}
