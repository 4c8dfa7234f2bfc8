//! What stands behind a handle.

#[cfg(feature = "cuda")]
mod cuda;
#[cfg(not(feature = "cuda"))]
mod without;

#[cfg(feature = "cuda")]
pub(crate) use cuda::Experts;
#[cfg(not(feature = "cuda"))]
pub(crate) use without::Experts;
