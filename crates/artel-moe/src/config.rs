//! Configuration of the layer: constructors validate, so a value that exists is legal.

pub use crate::router::RouterConfig;
