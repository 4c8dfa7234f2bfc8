//! `artel bench steps`: the small kernels of a layer on the GPU, by batch size.
//!
//! They move next to nothing, so what counts is how long one launch holds up the next: a graph of
//! [`LAUNCHES`] launches of one step is replayed [`REPLAYS`] times, and the median is divided by
//! the launches. Sizes are those of MiniMax-M2.5: 256 experts, 8 a token, hidden 3072.

mod cuda;
mod peer;
mod rows;

use std::path::{Path, PathBuf};

use artel_device::cuda::{Architecture, Compiler, Context, KernelPack, Kernels, compile_all};
use serde::Serialize;

use crate::record::{self, Provenance};

/// Launches of one graph.
const LAUNCHES: usize = 50;

/// Replays that count, after a few that do not.
const REPLAYS: usize = 31;

/// Bytes that an H200 reads in a second, measured as a sum over 2 GiB.
const READ_BYTES_PER_SECOND: f64 = 4.35e12;

/// What to measure with.
#[derive(Debug)]
pub struct Options {
    /// Packs to load kernels from.
    pub packs: Vec<PathBuf>,
    /// Where the record goes.
    pub save_result: Option<PathBuf>,
}

/// One step at one batch size.
#[derive(Debug, Serialize)]
struct Row {
    step: String,
    tokens: usize,
    microseconds: f64,
    microseconds_min: f64,
    /// Every input read and every output written once, at the rate at which the GPU reads.
    floor_microseconds: f64,
    /// The same step of vLLM 0.22.0 on the same GPU.
    peer_microseconds: Option<f64>,
}

#[derive(Debug, Serialize)]
struct Record {
    #[serde(flatten)]
    provenance: Provenance,
    gpu: String,
    method: String,
    rows: Vec<Row>,
}

/// Compiles what [`run`] loads into a pack; needs no GPU.
///
/// # Errors
/// When there is no toolkit, a kernel does not compile, or the pack cannot be written.
pub fn prepare(path: &Path) -> anyhow::Result<()> {
    let mut kernels = Kernels::list(Architecture::Sm90);
    cuda::Steps::load(&mut kernels)?;
    let compiled = compile_all(&Compiler::find()?, kernels.specs(), Architecture::Sm90, |_| {})?;
    let mut pack = KernelPack::default();
    compiled.into_iter().for_each(|kernel| pack.insert(kernel));
    pack.save(path)?;
    println!("{} kernels in {}", pack.len(), path.display());
    Ok(())
}

/// Measures every step and prints a table.
///
/// # Errors
/// Without a GPU or its kernels, and when the record cannot be written.
pub fn run(options: &Options) -> anyhow::Result<()> {
    let context = Context::new(0)?;
    let packs = options.packs.iter().map(|path| KernelPack::load(path));
    let packs = packs.collect::<Result<Vec<_>, _>>()?;
    let mut kernels = Kernels::open(&context, packs, Compiler::find().ok());
    let steps = cuda::Steps::load(&mut kernels)?;
    let mut record = Record {
        provenance: Provenance::here(),
        gpu: context.name()?,
        method: format!("graph of {LAUNCHES} launches, median of {REPLAYS} replays"),
        rows: Vec::new(),
    };
    println!("{}: us, floor us, peer us", record.gpu);
    steps.measure(&context.stream()?, |step, tokens, bytes, times| {
        let row = Row {
            step: step.to_owned(),
            tokens,
            microseconds: times[times.len() / 2],
            microseconds_min: times[0],
            floor_microseconds: bytes as f64 / READ_BYTES_PER_SECOND * 1e6,
            peer_microseconds: peer::microseconds(step, tokens),
        };
        row.print();
        record.rows.push(row);
    })?;
    match &options.save_result {
        Some(path) => record::save(path, &record),
        None => Ok(()),
    }
}

impl Row {
    fn print(&self) {
        let Self { step, tokens, microseconds, floor_microseconds, .. } = self;
        let peer = self.peer_microseconds.map_or_else(String::new, |peer| format!("{peer:8.2}"));
        println!("{step:36} {tokens:>6} {microseconds:8.2} {floor_microseconds:8.2} {peer}");
    }
}
