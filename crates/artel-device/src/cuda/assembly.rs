//! Kernels written in PTX, the assembly language of NVIDIA GPUs, for what the tile language cannot
//! say.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use cutile_compiler::cuda_tile_runtime_utils::tileiras_binary;
use sha2::{Digest, Sha256};

use super::Architecture;
use super::spec::hex;

/// A kernel in PTX with what its launches need.
#[derive(Debug, Clone)]
pub struct Assembly {
    /// One module. The symbol of its entry ends in `_entry`, as the compiler of tiles names them.
    pub text: Arc<str>,
    /// Threads of a block.
    pub threads: usize,
    /// Bytes of dynamic shared memory of a block.
    pub shared_bytes: usize,
}

impl Assembly {
    /// SHA-256 of the text.
    pub(super) fn source_hash(&self) -> String {
        hex(&Sha256::digest(self.text.as_bytes()))
    }

    /// Machine code, by `ptxas` of the toolkit that `tileiras` belongs to.
    pub(super) fn assemble(&self, architecture: Architecture) -> Result<Vec<u8>, String> {
        let program = tileiras_binary().with_file_name("ptxas");
        let [source, cubin] = ["ptx", "cubin"].map(temporary_file);
        let failed = |what: &str, why: String| format!("{what} {}: {why}", program.display());
        let assembled = fs::write(&source, self.text.as_bytes())
            .map_err(|error| failed("writing the input of", error.to_string()))
            .and_then(|()| {
                Command::new(&program)
                    // `a`: with instructions that only this architecture has.
                    .args(["-v".to_owned(), format!("-arch={architecture}a")])
                    .args([source.as_os_str(), "-o".as_ref(), cubin.as_os_str()])
                    .output()
                    .map_err(|error| failed("starting", error.to_string()))
            })
            .and_then(|output| {
                let said = String::from_utf8_lossy(&output.stderr);
                // It warns when it makes the matrix units wait after every instruction.
                match output.status.success() && !said.contains("Performance Loss") {
                    true => fs::read(&cubin).map_err(|e| failed("reading from", e.to_string())),
                    false => Err(said.into_owned()),
                }
            });
        // They may be missing; and who cleans up has nothing to say.
        let _ = (fs::remove_file(source), fs::remove_file(cubin));
        assembled
    }
}

/// A path that no other thread or process uses.
fn temporary_file(extension: &str) -> PathBuf {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    let (process, number) = (std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
    std::env::temp_dir().join(format!("artel-{process}-{number}.{extension}"))
}
