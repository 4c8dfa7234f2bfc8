pub mod cuda;
mod places;
