//! From the joint projection of a token to its normed query latents and its row of the cache.

pub mod cuda;
pub mod reference;
