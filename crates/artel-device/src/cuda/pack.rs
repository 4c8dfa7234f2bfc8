//! Kernel packs: files of machine code, named and checked.
//!
//! Layout: the eight bytes `ARTELKP1`, the length of the header as a little-endian 64-bit number,
//! the header (JSON: one entry per kernel with key, architecture, hash of its source, compiler,
//! position, length and SHA-256), then the machine code of all kernels one after the other.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::spec::hex;
use super::{Architecture, CudaError, KernelSpec};

const MAGIC: &[u8; 8] = b"ARTELKP1";

/// One compiled kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PackedKernel {
    /// Which specialisation it is ([`KernelSpec::key`]).
    pub key: String,
    /// What it runs on.
    pub architecture: Architecture,
    /// SHA-256 of the source that it was compiled from.
    pub source_hash: String,
    /// What compiled it.
    pub compiler: String,
    /// Its machine code, an ELF image.
    pub cubin: Vec<u8>,
}

/// Compiled kernels of one or more architectures.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct KernelPack {
    kernels: BTreeMap<(Architecture, String), PackedKernel>,
}

#[derive(Serialize, Deserialize)]
struct Entry {
    key: String,
    architecture: String,
    source_hash: String,
    compiler: String,
    offset: usize,
    length: usize,
    sha256: String,
}

impl KernelPack {
    /// Adds a kernel, in place of one with the same key and architecture.
    pub fn insert(&mut self, kernel: PackedKernel) {
        self.kernels.insert((kernel.architecture, kernel.key.clone()), kernel);
    }

    /// All kernels, by architecture and key.
    pub fn kernels(&self) -> impl Iterator<Item = &PackedKernel> {
        self.kernels.values()
    }

    /// How many kernels it holds.
    pub fn len(&self) -> usize {
        self.kernels.len()
    }

    /// Whether it holds none.
    pub fn is_empty(&self) -> bool {
        self.kernels.is_empty()
    }

    /// The kernel that `spec` asks for, unless it was made from other sources.
    pub fn find(&self, spec: &KernelSpec, architecture: Architecture) -> Option<&PackedKernel> {
        let kernel = self.kernels.get(&(architecture, spec.key()))?;
        (kernel.source_hash == spec.source_hash()).then_some(kernel)
    }

    /// Writes the pack to a new file beside `path` and moves it there.
    ///
    /// # Errors
    /// [`CudaError::Pack`] with what the operating system said.
    pub fn save(&self, path: &Path) -> Result<(), CudaError> {
        let failed = |why: String| CudaError::Pack { path: path.to_owned(), why };
        let partial = path.with_extension("partial");
        std::fs::write(&partial, self.to_bytes())
            .and_then(|()| std::fs::rename(&partial, path))
            .map_err(|error| failed(format!("cannot be written: {error}")))
    }

    /// Reads a pack and checks every kernel in it.
    ///
    /// # Errors
    /// [`CudaError::Pack`] for a file that is not there, not a pack, cut short or altered.
    pub fn load(path: &Path) -> Result<Self, CudaError> {
        let failed = |why: String| CudaError::Pack { path: path.to_owned(), why };
        let bytes =
            std::fs::read(path).map_err(|error| failed(format!("cannot be read: {error}")))?;
        Self::from_bytes(&bytes).map_err(failed)
    }

    /// The file's contents.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut offset = 0;
        let entries: Vec<Entry> = self
            .kernels
            .values()
            .map(|kernel| {
                offset += kernel.cubin.len();
                Entry {
                    key: kernel.key.clone(),
                    architecture: kernel.architecture.to_string(),
                    source_hash: kernel.source_hash.clone(),
                    compiler: kernel.compiler.clone(),
                    offset: offset - kernel.cubin.len(),
                    length: kernel.cubin.len(),
                    sha256: hex(&Sha256::digest(&kernel.cubin)),
                }
            })
            .collect();
        let header = serde_json::to_vec(&entries).expect("this is a bug: names are text");
        let mut bytes = MAGIC.to_vec();
        bytes.extend((header.len() as u64).to_le_bytes());
        bytes.extend(header);
        self.kernels.values().for_each(|kernel| bytes.extend(&kernel.cubin));
        bytes
    }

    /// The pack in `bytes`, every kernel checked; the error says what is wrong and what to do.
    ///
    /// # Errors
    /// A sentence for people.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, String> {
        let not_a_pack = || "is not a kernel pack (expected one made by `artel kernels build`)";
        let cut_short = || "is cut short; copy or build it again";
        let rest = bytes.strip_prefix(MAGIC).ok_or_else(not_a_pack)?;
        let (length, rest) = rest.split_first_chunk::<8>().ok_or_else(cut_short)?;
        let length = usize::try_from(u64::from_le_bytes(*length)).unwrap_or(usize::MAX);
        let (header, code) = rest.split_at_checked(length).ok_or_else(cut_short)?;
        let entries: Vec<Entry> = serde_json::from_slice(header)
            .map_err(|error| format!("has a damaged header ({error}); build it again"))?;
        let mut pack = Self::default();
        for entry in entries {
            let end = entry.offset.saturating_add(entry.length);
            let cubin = code.get(entry.offset..end).ok_or_else(cut_short)?.to_vec();
            if hex(&Sha256::digest(&cubin)) != entry.sha256 {
                return Err(format!("holds damaged code for {}; build it again", entry.key));
            }
            let architecture =
                entry.architecture.parse().map_err(|error: CudaError| error.to_string())?;
            let Entry { key, source_hash, compiler, .. } = entry;
            pack.insert(PackedKernel { key, architecture, source_hash, compiler, cubin });
        }
        Ok(pack)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pack() -> KernelPack {
        let mut pack = KernelPack::default();
        for (key, architecture, cubin) in [
            ("a<1>", Architecture::Sm90, vec![1, 2, 3]),
            ("a<1>", Architecture::Sm80, vec![4]),
            ("b<2>", Architecture::Sm90, vec![]),
        ] {
            let (key, source_hash, compiler) = (key.into(), "00".into(), "13.5".into());
            pack.insert(PackedKernel { key, architecture, source_hash, compiler, cubin });
        }
        pack
    }

    #[test]
    fn a_pack_survives_the_file() {
        assert_eq!(KernelPack::from_bytes(&pack().to_bytes()), Ok(pack()));
        assert_eq!(pack().len(), 3);
        assert_eq!(KernelPack::from_bytes(&KernelPack::default().to_bytes()).unwrap().len(), 0);
    }

    #[test]
    fn damaged_files_are_refused_with_the_reason() {
        let bytes = pack().to_bytes();
        for length in 0..bytes.len() {
            let error = KernelPack::from_bytes(&bytes[..length]).unwrap_err();
            let expected = if length < 8 { "not a kernel pack" } else { "cut short" };
            assert!(error.contains(expected), "{length}: {error}");
        }
        let mut altered = bytes.clone();
        *altered.last_mut().unwrap() ^= 1;
        assert!(KernelPack::from_bytes(&altered).unwrap_err().contains("damaged code for a<1>"));
        let mut header = bytes;
        header[17] = b'x';
        assert!(KernelPack::from_bytes(&header).unwrap_err().contains("damaged header"));
    }

    #[test]
    fn a_file_that_is_not_there_is_named() {
        let error = KernelPack::load(Path::new("/nowhere/sm_90.pack")).unwrap_err().to_string();
        assert!(
            error.contains("/nowhere/sm_90.pack") && error.contains("cannot be read"),
            "{error}"
        );
    }
}
