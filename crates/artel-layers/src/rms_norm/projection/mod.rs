//! RMS norm of the queries and keys of a joint projection that comes in parts.

pub mod cuda;
