//! Exchange: the words of the host, and what is told, as the definition has them.

mod cuda;

pub use cuda::cases;
