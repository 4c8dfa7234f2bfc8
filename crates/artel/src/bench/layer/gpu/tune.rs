//! `artel tune`: a record for each layer, written after every measurement, so that an interrupted
//! call goes on where it stopped.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use artel_device::cuda::{Compiler, Context, KernelPack, Kernels};
use artel_moe::cuda::shipped;
use artel_moe::plan::gpu::record::{RecordOrigin, RecordShape};
use artel_moe::plan::gpu::{ExpertsShape, TuningRecord};
use indicatif::ProgressBar;

use super::cuda;
use crate::record::Provenance;
use crate::shapes::NamedLayer;

/// What is tuned.
#[derive(Debug, Clone)]
pub struct Options {
    /// Number of the GPU.
    pub ordinal: usize,
    /// Layers.
    pub shapes: Vec<NamedLayer>,
    /// Batch sizes.
    pub tokens: Vec<usize>,
    /// Kernel packs.
    pub packs: Vec<PathBuf>,
    /// Folder of the records.
    pub output: PathBuf,
}

/// Tunes one layer after the other.
///
/// # Errors
/// Without a GPU or its kernels, or when a record is of something else or cannot be written.
pub fn run(options: &Options) -> Result<()> {
    let context = Context::new(options.ordinal)?;
    std::fs::create_dir_all(&options.output)
        .with_context(|| format!("cannot make the folder {}", options.output.display()))?;
    for layer in &options.shapes {
        let packs = options.packs.iter().map(|path| KernelPack::load(path));
        let packs = packs.collect::<Result<Vec<_>, _>>()?;
        let compiler = Compiler::find().ok();
        let made_by = packs.iter().flat_map(KernelPack::kernels).map(|kernel| &kernel.compiler);
        let made_by = made_by.map(String::as_str).last();
        let version = made_by.or(compiler.as_ref().map(Compiler::version)).unwrap_or("unknown");
        let origin = RecordOrigin {
            architecture: context.architecture().to_string(),
            device: context.name()?,
            compiler: version.to_owned(),
            date: Provenance::here().date,
        };
        let path = options.output.join(format!("{layer}.json"));
        let mut record = open(&path, layer, origin, &context)?;
        let mut kernels = Kernels::open(&context, packs, compiler);
        let bar = ProgressBar::new_spinner().with_prefix(layer.to_string());
        cuda::tune_layer(
            &context,
            &mut kernels,
            layer,
            &mut record,
            &options.tokens,
            |record, way, tokens| {
                bar.set_message(format!(
                    "{layer}: {tokens} tokens, {way}: {:?}",
                    record.known(way, tokens)
                ));
                bar.tick();
                save(&path, record)
            },
        )?;
        bar.finish_and_clear();
        println!("{layer}: {} times in {}", record.len(), path.display());
    }
    Ok(())
}

/// The record that is there, without what has changed since, or a new one.
fn open(
    path: &Path,
    layer: &NamedLayer,
    origin: RecordOrigin,
    context: &Context,
) -> Result<TuningRecord> {
    let shape = ExpertsShape::of(&layer.config, layer.format);
    let mut listed = Kernels::list(context.architecture());
    cuda::load_ways(&mut listed, layer)?;
    let sources = shipped::sources(listed.specs());
    if !path.exists() {
        return Ok(TuningRecord::new(origin, &shape, sources));
    }
    let mut record = read(path)?;
    let same = (&record.origin.architecture, &record.origin.device, &record.origin.compiler)
        == (&origin.architecture, &origin.device, &origin.compiler);
    ensure!(
        same && record.shape == RecordShape::from(&shape),
        "{} is of {} ({}) or of another layer; name another folder",
        path.display(),
        record.origin.device,
        record.origin.compiler
    );
    for name in record.forget_changed(&sources) {
        println!("{layer}: {name} kernels have changed; their times are measured anew");
    }
    record.origin.date = origin.date;
    Ok(record)
}

/// A record from its file.
///
/// # Errors
/// When the file cannot be read or is no record.
pub fn read(path: &Path) -> Result<TuningRecord> {
    let text =
        std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    TuningRecord::from_json(&text).with_context(|| path.display().to_string())
}

/// Writes beside the record and moves it there, so that it is always whole.
fn save(path: &Path, record: &TuningRecord) -> Result<()> {
    let partial = path.with_extension("partial");
    std::fs::write(&partial, record.to_json())
        .and_then(|()| std::fs::rename(&partial, path))
        .with_context(|| format!("cannot write {}", path.display()))
}
