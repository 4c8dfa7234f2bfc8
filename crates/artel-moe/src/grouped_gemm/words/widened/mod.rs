pub mod cuda;
pub mod product;
