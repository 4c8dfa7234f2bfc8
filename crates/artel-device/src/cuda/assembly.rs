//! Kernels written in PTX, the assembly language of NVIDIA GPUs, for what the tile language cannot
//! say.

use std::process::Command;
use std::sync::Arc;
use std::{fs, io};

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
        let failed = |what: &str, why: io::Error| format!("{what} {}: {why}", program.display());
        let folder = tempfile::tempdir().map_err(|why| failed("making a folder for", why))?;
        let [source, cubin] = ["kernel.ptx", "kernel.cubin"].map(|name| folder.path().join(name));
        fs::write(&source, self.text.as_bytes())
            .map_err(|why| failed("writing the input of", why))?;
        let output = Command::new(&program)
            // `a`: with instructions that only this architecture has.
            .args(["-v".to_owned(), format!("-arch={architecture}a")])
            .args([source.as_os_str(), "-o".as_ref(), cubin.as_os_str()])
            .output()
            .map_err(|why| failed("starting", why))?;
        let said = String::from_utf8_lossy(&output.stderr);
        // It warns when it makes the matrix units wait after every instruction.
        if !output.status.success() || said.contains("Performance Loss") {
            return Err(said.into_owned());
        }
        fs::read(&cubin).map_err(|why| failed("reading what was made by", why))
    }
}
