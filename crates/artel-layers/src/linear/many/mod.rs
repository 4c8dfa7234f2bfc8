//! Products of very many rows: those of the experts, with one expert that has all rows.

pub(super) mod cuda;
