pub mod cuda;
pub(super) mod places;
