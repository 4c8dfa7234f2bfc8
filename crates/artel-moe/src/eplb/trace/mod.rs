//! Traces: how many tokens chose each expert, layer by layer and step by step, in a file that a
//! server can write while it works and that survives its crash.
//!
//! All numbers are little endian. A *varint* is seven bits a byte, the lowest first; the high bit
//! says that another byte follows.
//!
//! ```text
//! header   8 bytes  "ARTELTRC"
//!          u32      version, 1
//!          u32 x 4  layers with experts, experts of a layer, experts a token (top k), source ranks
//!          u16      bytes of the name
//!          bytes    name of the model in UTF-8, for people
//! record   u32      bytes of the content
//!          content  varint step, varint source rank, then the counts [layers, experts] in order:
//!                   a varint each, but a 0 is followed by the number of further zeros
//!          u32      FNV-1a hash of the content
//! ...      more records, ascending by (step, source rank)
//! ```
//!
//! A *source rank* is one that tokens come from, not one that computes their experts: with data
//! parallel attention each has tokens of its own. A step of 58 layers with 256 experts takes about
//! 15 KB with many tokens and 2 KB with one.
//!
//! ```
//! use artel_moe::eplb::trace::{TraceHeader, TraceReader, TraceShape, TraceWriter};
//! let shape = TraceShape { layers: 1, experts: 4, top_k: 2, source_ranks: 1 };
//! let mut file = Vec::new();
//! let mut writer = TraceWriter::new(&mut file, TraceHeader::new(shape, "tally")?)?;
//! writer.write(0, 0, &[vec![3, 0, 0, 1]])?;
//!
//! let reader = TraceReader::new(file.as_slice())?;
//! assert_eq!(reader.header().model(), "tally");
//! let records = reader.collect::<Result<Vec<_>, _>>()?;
//! assert_eq!(records[0].counts, [vec![3, 0, 0, 1]]);
//! # Ok::<(), artel_moe::eplb::trace::TraceError>(())
//! ```

mod bytes;
mod error;
mod read;
mod write;

#[cfg(test)]
mod tests;

pub use error::TraceError;
pub use read::TraceReader;
pub use write::TraceWriter;

use crate::{MoeError, router::RouterConfig};

const MAGIC: &[u8; 8] = b"ARTELTRC";
const VERSION: u32 = 1;

/// Sizes of what is traced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TraceShape {
    /// Layers that have experts.
    pub layers: usize,
    /// Experts of a layer, `L`.
    pub experts: usize,
    /// Experts a token, `K`.
    pub top_k: usize,
    /// Ranks that tokens come from.
    pub source_ranks: usize,
}

/// What a trace begins with. A value that exists is legal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TraceHeader {
    shape: TraceShape,
    model: String,
}

impl TraceHeader {
    /// Most counts of a record, `layers * experts`: more is a broken header, and must not decide
    /// how much memory is asked for.
    pub const COUNTS_MAX: usize = 1 << 22;
    /// Most ranks that tokens can come from.
    pub const SOURCE_RANKS_MAX: usize = 1 << 16;
    /// Most bytes of the model's name.
    pub const MODEL_BYTES_MAX: usize = u16::MAX as usize;

    /// The header of a trace of `model`, any text.
    ///
    /// # Errors
    /// [`MoeError::Config`] for a number that is 0 or too large, `K` above `L`, or a long name.
    pub fn new(shape: TraceShape, model: impl Into<String>) -> Result<Self, MoeError> {
        let TraceShape { layers, experts, top_k, source_ranks } = shape;
        let model = model.into();
        let layers_max = Self::COUNTS_MAX / experts.clamp(1, RouterConfig::EXPERTS_MAX);
        for (field, value, least, most) in [
            ("experts of a trace", experts, 1, RouterConfig::EXPERTS_MAX),
            ("layers of a trace", layers, 1, layers_max),
            ("experts a token of a trace", top_k, 1, experts),
            ("source ranks of a trace", source_ranks, 1, Self::SOURCE_RANKS_MAX),
            ("bytes of the model's name", model.len(), 0, Self::MODEL_BYTES_MAX),
        ] {
            if !(least..=most).contains(&value) {
                return Err(MoeError::config(field, value, format!("{least} to {most}")));
            }
        }
        Ok(Self { shape, model })
    }

    /// The sizes.
    pub fn shape(&self) -> TraceShape {
        self.shape
    }

    /// Name of the model, for people.
    pub fn model(&self) -> &str {
        &self.model
    }

    /// Most bytes that the content of a record can have.
    fn content_bytes_max(&self) -> usize {
        2 * bytes::VARINT_BYTES_MAX + 5 * self.shape.layers * self.shape.experts
    }

    /// Checks that a record of `next` may follow one of `last`, both `(step, source rank)`.
    fn check_order(&self, last: Option<(u64, usize)>, next: (u64, usize)) -> Result<(), MoeError> {
        let ranks = self.shape.source_ranks;
        if next.1 >= ranks {
            let allowed = format!("below the number of source ranks, {ranks}");
            return Err(MoeError::config("source rank of a record", next.1, allowed));
        }
        match last {
            Some(last) if last >= next => {
                let (value, allowed) = (format!("{next:?}"), format!("above {last:?}"));
                Err(MoeError::config("(step, source rank) of a record", value, allowed))
            }
            _ => Ok(()),
        }
    }
}

/// One step of one source rank.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TraceRecord {
    /// Number of the step; steps may be left out.
    pub step: u64,
    /// Where the tokens came from.
    pub source_rank: usize,
    /// Tokens that chose each expert, `[layers][L]`.
    pub counts: Vec<Vec<i32>>,
}
