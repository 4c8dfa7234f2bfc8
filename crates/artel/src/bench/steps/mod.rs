//! `artel bench steps`: the small kernels of a layer on the GPU, by batch size.
//!
//! Those of the MoE layer move next to nothing, so what counts is how long one launch holds up the
//! next: a graph of [`LAUNCHES`] launches of one step is replayed [`REPLAYS`] times, and the median is
//! divided by the launches. Sizes are those of MiniMax-M2.5: 256 experts, 8 a token, hidden 3072. The
//! rest of a decoder block is measured for Qwen3-30B-A3B as well.

mod attention;
mod block;
mod cuda;
mod peer;
mod rows;
mod sample;

use std::path::{Path, PathBuf};

use artel_device::cuda::{Architecture, Compiler, Context, KernelPack, Kernels, compile_all};
use artel_layers::linear::cuda::LinearNumbers;
use serde::Serialize;

use crate::record::{self, Provenance};

/// Launches of one graph.
const LAUNCHES: usize = 50;

/// Replays that count, after a few that do not.
const REPLAYS: usize = 31;

/// Bytes that an H200 reads in a second, measured as a sum over 2 GiB.
const READ_BYTES_PER_SECOND: f64 = 4.35e12;

/// Operations of matrix units in a second that a dense product of 8192 reaches with the vendor's
/// library on an H200, in bfloat16 and in FP8.
const BF16_OPERATIONS_PER_SECOND: f64 = 790e12;
const FP8_OPERATIONS_PER_SECOND: f64 = 1362e12;

/// What a step takes at least, in seconds.
#[derive(Debug, Clone, Copy)]
struct Floor {
    seconds: f64,
}

impl Floor {
    /// So many bytes have to be read or written.
    fn bytes(bytes: usize) -> Self {
        Self { seconds: bytes as f64 / READ_BYTES_PER_SECOND }
    }

    /// And so many operations be done.
    fn or_operations(self, operations: f64, numbers: LinearNumbers) -> Self {
        let per_second = match numbers {
            LinearNumbers::Plain => BF16_OPERATIONS_PER_SECOND,
            LinearNumbers::Fp8Block128 => FP8_OPERATIONS_PER_SECOND,
        };
        Self { seconds: self.seconds.max(operations / per_second) }
    }

    fn microseconds(self) -> f64 {
        self.seconds * 1e6
    }
}

/// Kernels that are measured together.
const SECTIONS: [&str; 7] = ["route", "gate", "rows", "norm", "linear", "attention", "sample"];

/// The sections that are wanted.
#[derive(Debug, Clone, Default)]
pub struct Only {
    sections: Vec<String>,
}

impl Only {
    /// These sections; all when there is none.
    ///
    /// # Errors
    /// When there is no section of a name.
    pub fn new(sections: Vec<String>) -> anyhow::Result<Self> {
        for name in &sections {
            let known = SECTIONS.contains(&name.as_str());
            anyhow::ensure!(known, "--only {name}: there are {}", SECTIONS.join(", "));
        }
        Ok(Self { sections })
    }

    fn wants(&self, section: &str) -> bool {
        debug_assert!(SECTIONS.contains(&section), "{section} has no name");
        self.sections.is_empty() || self.sections.iter().any(|wanted| wanted == section)
    }
}

/// What to measure with.
#[derive(Debug)]
pub struct Options {
    /// What is measured.
    pub only: Only,
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
    /// Every input read and every output written once, at the rate at which the GPU reads, or all
    /// operations at that of the vendor's library, whichever takes longer.
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
    steps.measure(&context.stream()?, &options.only, |step, tokens, floor, times| {
        let row = Row {
            step: step.to_owned(),
            tokens,
            microseconds: times[times.len() / 2],
            microseconds_min: times[0],
            floor_microseconds: floor.microseconds(),
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

#[cfg(test)]
mod tests {
    use super::Only;

    #[test]
    fn sections_are_chosen_by_name() {
        let only = |names: &[&str]| Only::new(names.iter().map(|&name| name.to_owned()).collect());
        assert!(only(&[]).unwrap().wants("norm"));
        let two = only(&["norm", "sample"]).unwrap();
        assert!(two.wants("sample") && !two.wants("rows"));
        let error = only(&["norms"]).unwrap_err().to_string();
        assert!(error.starts_with("--only norms: there are route, gate"), "{error}");
    }
}
