//! What a GPU plan chooses between, and how each choice is called in records and on the screen.

use std::fmt;
use std::str::FromStr;

use crate::MoeError;
use crate::grouped_gemm::prefill::warpgroup;

/// The two products of the experts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum GpuProduct {
    /// `w13`: `[M, H]` to `[M, 2I]`.
    GateUp,
    /// `w2`: `[M, I]` to `[M, H]`.
    Down,
}

impl GpuProduct {
    /// Both, in the order in which they run.
    pub const ALL: [Self; 2] = [Self::GateUp, Self::Down];

    /// `gate_up` or `down`.
    pub fn name(self) -> &'static str {
        match self {
            Self::GateUp => "gate_up",
            Self::Down => "down",
        }
    }
}

/// How pairs of token and expert come to their weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum GpuPath {
    /// One pair a block, the expert read from `topk_ids`; no assignment runs.
    Direct,
    /// Pairs sorted by expert, the rows of each expert padded to a multiple of `block_size`.
    Aligned {
        /// Rows of a block.
        block_size: usize,
    },
}

impl fmt::Display for GpuPath {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Direct => formatter.write_str("direct"),
            Self::Aligned { block_size } => write!(formatter, "aligned/{block_size}"),
        }
    }
}

/// Families of grouped GEMM kernels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum GemmFamily {
    /// Weights on the long side of the matrix units: few rows an expert, bound by reading weights.
    Decode,
    /// Activations on the long side: many rows an expert, bound by arithmetic.
    Prefill,
    /// Tiles as high as an expert has rows: many rows on Hopper.
    Warpgroup,
    /// Tiles of 128 rows on the long side of the matrix instructions: very many FP8 rows on Hopper.
    Long,
    /// Both products in one launch: few tokens on weights of eight or four bits on Hopper.
    Streamed,
}

impl GemmFamily {
    /// All of them.
    pub const ALL: [Self; 5] =
        [Self::Decode, Self::Prefill, Self::Warpgroup, Self::Long, Self::Streamed];

    /// `decode`, `prefill`, `warpgroup`, `long` or `streamed`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Decode => "decode",
            Self::Prefill => "prefill",
            Self::Warpgroup => "warpgroup",
            Self::Long => "long",
            Self::Streamed => "streamed",
        }
    }
}

/// What one block of a kernel computes, and with what.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tile {
    /// Rows of activations; of warpgroup kernels the most that a tile has.
    pub rows: usize,
    /// Output features; of decode kernels that compute gate and up, so many of each.
    pub columns: usize,
    /// Input features read at a time.
    pub depth: usize,
    /// Warps that compute: 4, 8 or 16.
    pub warps: usize,
    /// Blocks that share a multiprocessor.
    pub occupancy: usize,
}

impl fmt::Display for Tile {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { rows, columns, depth, warps, occupancy } = self;
        write!(formatter, "{rows}x{columns}x{depth} w{warps} o{occupancy}")
    }
}

/// One kernel of a family. Its text, `decode 16x128x128 w4 o2`, is its name in tuning records.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GemmKernel {
    /// Which code.
    pub family: GemmFamily,
    /// Which specialisation of it.
    pub tile: Tile,
}

impl fmt::Display for GemmKernel {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} {}", self.family.name(), self.tile)
    }
}

impl FromStr for GemmKernel {
    type Err = MoeError;

    fn from_str(text: &str) -> Result<Self, MoeError> {
        let parse = || {
            let mut words = text.split(' ');
            let family = words.next()?;
            let family = GemmFamily::ALL.into_iter().find(|known| known.name() == family)?;
            let mut sizes = words.next()?.split('x').map(|size| size.parse().ok());
            let tile = Tile {
                rows: sizes.next()??,
                columns: sizes.next()??,
                depth: sizes.next()??,
                warps: words.next()?.strip_prefix('w')?.parse().ok()?,
                occupancy: words.next()?.strip_prefix('o')?.parse().ok()?,
            };
            (sizes.next().is_none() && words.next().is_none()).then_some(Self { family, tile })
        };
        parse().ok_or_else(|| {
            MoeError::config("kernel", text, "FAMILY ROWSxCOLUMNSxDEPTH wWARPS oOCCUPANCY")
        })
    }
}

/// The kernels of both products of one range of batch sizes. Both work on the same assignment: the
/// rows of either tile divide the block size.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ExpertKernels {
    /// Kernel of `w13`.
    pub first: GemmKernel,
    /// Kernel of `w2`.
    pub second: GemmKernel,
}

impl FromStr for GpuPath {
    type Err = MoeError;

    fn from_str(text: &str) -> Result<Self, MoeError> {
        let block_size = text.strip_prefix("aligned/").and_then(|size| size.parse().ok());
        match block_size {
            Some(block_size) => Ok(Self::Aligned { block_size }),
            None if text == "direct" => Ok(Self::Direct),
            None => Err(MoeError::config("path", text, "direct or aligned/ROWS")),
        }
    }
}

/// One way to serve a batch. Its text names it in tuning records:
/// `aligned/16: decode 16x128x128 w4 o2 + decode 16x128x128 w4 o3`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Way {
    /// How pairs come to their experts.
    pub path: GpuPath,
    /// What multiplies.
    pub kernels: ExpertKernels,
}

impl Way {
    /// Whether tiles are as high as an expert has rows, also where it has many.
    pub(super) fn follows_rows(&self) -> bool {
        let ExpertKernels { first, second } = self.kernels;
        [first, second].iter().all(|kernel| {
            kernel.family == GemmFamily::Warpgroup && kernel.tile.rows >= warpgroup::rows_max(2)
        })
    }

    /// Whether all tiles of the first product have the same height.
    pub(super) fn has_fixed_height(&self) -> bool {
        matches!(self.kernels.first.family, GemmFamily::Decode | GemmFamily::Prefill)
    }
}

impl fmt::Display for Way {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ExpertKernels { first, second } = self.kernels;
        write!(formatter, "{}: {first} + {second}", self.path)
    }
}

impl FromStr for Way {
    type Err = MoeError;

    fn from_str(text: &str) -> Result<Self, MoeError> {
        let parts = text.split_once(": ").and_then(|(path, kernels)| {
            kernels.split_once(" + ").map(|(first, second)| (path, first, second))
        });
        let expected = || MoeError::config("way to serve a batch", text, "PATH: KERNEL + KERNEL");
        let (path, first, second) = parts.ok_or_else(expected)?;
        let kernels = ExpertKernels { first: first.parse()?, second: second.parse()? };
        Ok(Self { path: path.parse()?, kernels })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_survive_records() {
        let tile = Tile { rows: 16, columns: 128, depth: 64, warps: 8, occupancy: 2 };
        for family in GemmFamily::ALL {
            let kernel = GemmKernel { family, tile };
            assert_eq!(kernel.to_string().parse(), Ok(kernel));
            let kernels = ExpertKernels { first: kernel, second: kernel };
            for path in [GpuPath::Direct, GpuPath::Aligned { block_size: 16 }] {
                let way = Way { path, kernels };
                assert_eq!(way.to_string().parse(), Ok(way));
            }
        }
        for bad in
            ["", "direct", "direct: decode 8x8x8 w4 o1", "aligned/x: a + b", "aligned: a + b"]
        {
            assert!(bad.parse::<Way>().is_err(), "{bad}");
        }
        for bad in [
            "",
            "decode",
            "other 8x8x8 w4 o1",
            "decode 8x8 w4 o1",
            "decode 8x8x8x8 w4 o1",
            "decode 8x8x8 w4",
        ] {
            let error = bad.parse::<GemmKernel>().unwrap_err().to_string();
            assert!(error.contains("ROWSxCOLUMNSxDEPTH"), "{bad}: {error}");
        }
    }
}
