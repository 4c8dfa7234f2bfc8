//! Both products in tiles as high as an expert has rows.

pub mod cuda;
