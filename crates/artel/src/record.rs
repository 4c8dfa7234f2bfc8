//! What a measurement is worth without: where, when and with which program it was made.

use std::path::Path;

use anyhow::Context;
use serde::Serialize;

/// Machine, program and day of a measurement.
#[derive(Debug, Clone, Serialize)]
pub struct Provenance {
    /// What computed.
    pub machine: Machine,
    /// Commit that the program was built from.
    pub commit: &'static str,
    /// Day in UTC, `YYYY-MM-DD`.
    pub date: String,
}

/// What computed.
#[derive(Debug, Clone, Serialize)]
pub struct Machine {
    /// Name that the processor gives itself.
    pub processor: String,
    /// Threads used.
    pub threads: usize,
    /// Strongest instruction set.
    pub instruction_set: &'static str,
}

impl Provenance {
    /// Of this process, now.
    pub fn here() -> Self {
        let machine = Machine {
            processor: processor_name(),
            threads: artel_device::cpu::threads(),
            instruction_set: artel_device::cpu::CpuFeatures::detect().isa().name(),
        };
        let date = chrono::Utc::now().format("%Y-%m-%d").to_string();
        Self { machine, commit: env!("ARTEL_COMMIT"), date }
    }
}

/// Writes a record as JSON and makes the folder for it.
///
/// # Errors
/// When the file or its folder cannot be written.
pub fn save(path: &Path, record: &impl Serialize) -> anyhow::Result<()> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)
            .with_context(|| format!("cannot make the folder {}", folder.display()))?;
    }
    let text = serde_json::to_string_pretty(record)? + "\n";
    std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}

fn processor_name() -> String {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let line = text.lines().find(|line| line.starts_with("model name"));
    let name = line.and_then(|line| line.split_once(':')).map(|(_, name)| name.trim().to_owned());
    name.unwrap_or_else(|| std::env::consts::ARCH.to_owned())
}
