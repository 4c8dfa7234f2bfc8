//! `artel kernels list`.

use std::collections::BTreeMap;
use std::io::{self, Write};

use artel_device::cuda::{Architecture, KernelPack, Kernels};
use artel_moe::cuda::shipped;
use indicatif::HumanBytes;

use crate::cli::KernelsListArgs;
use crate::shapes::{NamedLayer, SHIPPED};

/// Digits of a hash that tell sources apart.
const HASH_DIGITS: usize = 12;

pub(super) fn list(args: &KernelsListArgs) -> anyhow::Result<()> {
    let pack = KernelPack::load(&args.file)?;
    let current = current_sources()?;
    let mut out = io::stdout().lock();
    let mut bytes = 0;
    writeln!(out, "{:<7} {:>9} {:<12} {:<8} kernel", "arch", "size", "source", "state")?;
    for kernel in pack.kernels() {
        bytes += kernel.cubin.len();
        let state = match current.get(&(kernel.architecture, kernel.key.clone())) {
            Some(hash) if *hash == kernel.source_hash => "current",
            Some(_) => "outdated",
            None => "other",
        };
        let size = HumanBytes(kernel.cubin.len() as u64).to_string();
        let source = kernel.source_hash.get(..HASH_DIGITS).unwrap_or(&kernel.source_hash);
        let (architecture, key) = (kernel.architecture.name(), &kernel.key);
        writeln!(out, "{architecture:<7} {size:>9} {source:<12} {state:<8} {key}")?;
    }
    let mut compilers: Vec<&str> = pack.kernels().map(|kernel| kernel.compiler.as_str()).collect();
    compilers.sort_unstable();
    compilers.dedup();
    let (count, size) = (pack.len(), HumanBytes(bytes as u64));
    writeln!(out, "{count} kernels, {size}, compiled by {}", compilers.join("; "))?;
    writeln!(
        out,
        "current: made from this program's sources; outdated: from others, never loaded; other: \
         of a layer that is not shipped"
    )?;
    Ok(())
}

/// Hash of the source of every shipped kernel as this program has it.
fn current_sources() -> anyhow::Result<BTreeMap<(Architecture, String), String>> {
    let mut current = BTreeMap::new();
    for architecture in Architecture::ALL {
        let mut kernels = Kernels::list(architecture);
        for name in SHIPPED {
            let layer: NamedLayer = name.parse()?;
            // What an architecture does not serve is in no pack either.
            let _ = shipped::load(&mut kernels, &layer.config, &layer.router, layer.format);
        }
        for spec in kernels.specs() {
            current.insert((architecture, spec.key()), spec.source_hash());
        }
    }
    Ok(current)
}
