//! A matrix of its own for each head: into the latent space before attention, out of it behind.

pub mod cuda;
pub mod reference;

/// One product by head, from and to some columns of wider rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HeadProductShape {
    /// Heads.
    pub heads: usize,
    /// Elements that a head is multiplied from, the first of it, `K`.
    pub inputs: usize,
    /// Elements from a head of the input to the next.
    pub input_stride: usize,
    /// Elements from a row of the input to the next.
    pub input_row: usize,
    /// Elements that are made of a head, the first of it, `N`.
    pub outputs: usize,
    /// Elements from a head of the output to the next; as many heads are a row of the output.
    pub output_stride: usize,
}

impl HeadProductShape {
    /// Numbers of the weights `[heads, N, K]`.
    pub fn weights(&self) -> usize {
        self.heads * self.outputs * self.inputs
    }
}
