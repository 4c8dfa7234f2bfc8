//! What attention in the latent space has in common for few and for many new tokens.

pub mod cuda;
