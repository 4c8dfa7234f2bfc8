//! A checkpoint as Hugging Face folders hold it: `config.json`, safetensors, tokenizer, template.
//!
//! Opening reads headers only. Weights stay in the mapped files until a layer uses them.

mod files;
#[cfg(test)]
mod tests;
mod tensors;

use std::path::Path;

use files::Files;
use serde_json::{Map, Value};
use tensors::Tensors;
pub use tensors::{Dtype, StoredTensor};

use crate::config::ConfigReader;
use crate::{ModelError, Result};

/// Bytes that a mapped file is read in.
const PAGE_BYTES: usize = 4096;

/// How far reading or loading has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Bytes of the tensors that are in place.
    pub bytes_done: usize,
    /// Bytes of all tensors of the checkpoint.
    pub bytes_total: usize,
}

/// An opened checkpoint.
///
/// ```no_run
/// let checkpoint = artel_model::Checkpoint::open("/models/Qwen3-30B-A3B".as_ref())?;
/// println!("{} has {} tensors", checkpoint.name(), checkpoint.tensors().count());
/// # Ok::<(), artel_model::ModelError>(())
/// ```
#[derive(Debug, Clone)]
pub struct Checkpoint {
    files: Files,
    config: Map<String, Value>,
    tensors: Tensors,
    is_dummy: bool,
}

impl Checkpoint {
    /// Opens a folder.
    ///
    /// # Errors
    /// When the folder, its `config.json` or its weights are missing, truncated or corrupt.
    pub fn open(folder: &Path) -> Result<Self> {
        Self::read(Files::folder(folder)?)
    }

    /// Opens files that are part of the program, given as (file name, content).
    ///
    /// # Errors
    /// As [`Checkpoint::open`].
    pub fn from_static(name: &str, files: &[(&'static str, &'static [u8])]) -> Result<Self> {
        let files = files.iter().copied().collect();
        Self::read(Files::Static { name: name.to_owned(), files })
    }

    /// Opens a folder for its texts alone, the tokenizer and the chat template: neither
    /// `config.json` nor weights need be there.
    ///
    /// # Errors
    /// When there is no such folder.
    pub fn open_texts(folder: &Path) -> Result<Self> {
        let files = Files::folder(folder)?;
        Ok(Self { files, config: Map::new(), tensors: Tensors::new(), is_dummy: false })
    }

    /// Opens a folder for its `config.json` and texts: models of it have random weights, which are of
    /// the right shapes and types. For measurements.
    ///
    /// # Errors
    /// When the folder or its `config.json` is missing or corrupt.
    pub fn open_dummy(folder: &Path) -> Result<Self> {
        let files = Files::folder(folder)?;
        let config = config(&files)?;
        Ok(Self { files, config, tensors: Tensors::new(), is_dummy: true })
    }

    fn read(files: Files) -> Result<Self> {
        let config = config(&files)?;
        let tensors = tensors::read(&files)?;
        Ok(Self { files, config, tensors, is_dummy: false })
    }

    /// The folder, or the name that was given to files of the program.
    pub fn name(&self) -> String {
        self.files.name()
    }

    /// `config.json`.
    pub fn config(&self) -> ConfigReader<'_> {
        ConfigReader::new(self.files.describe("config.json"), &self.config)
    }

    /// A tensor by name.
    pub fn tensor(&self, name: &str) -> Option<&StoredTensor> {
        self.tensors.get(name)
    }

    /// All tensors in the order of their names.
    pub fn tensors(&self) -> impl Iterator<Item = (&str, &StoredTensor)> {
        self.tensors.iter().map(|(name, tensor)| (name.as_str(), tensor))
    }

    /// Reads all weights once, in the order of their files, so that the first step does not wait
    /// for the disk. Reports after each tensor. Worth it only where memory holds the checkpoint.
    pub fn read_ahead(&self, report: &mut dyn FnMut(Progress)) {
        let mut tensors: Vec<&StoredTensor> = self.tensors.values().collect();
        tensors.sort_by_key(|tensor| (&tensor.file, tensor.bytes.as_bytes().as_ptr()));
        let bytes_total = tensors.iter().map(|tensor| tensor.bytes.len()).sum();
        let mut bytes_done = 0;
        for tensor in tensors {
            let touched = tensor.bytes.as_bytes().iter().step_by(PAGE_BYTES);
            std::hint::black_box(touched.fold(0u8, |sum, byte| sum.wrapping_add(*byte)));
            bytes_done += tensor.bytes.len();
            report(Progress { bytes_done, bytes_total });
        }
    }

    /// A text file of the checkpoint, or `None` when there is no such file.
    ///
    /// # Errors
    /// When the file is there but cannot be read.
    pub fn find_text(&self, file: &str) -> Result<Option<String>> {
        self.files.find_text(file)
    }

    /// A file that holds a JSON object, or `None` when there is no such file.
    ///
    /// # Errors
    /// When the file is there but cannot be read or is not a JSON object.
    pub fn find_json(&self, file: &str) -> Result<Option<Map<String, Value>>> {
        self.files.find_json(file)
    }

    /// Whether its models have random weights.
    pub fn is_dummy(&self) -> bool {
        self.is_dummy
    }

    /// Name of a file in messages.
    pub(crate) fn describe(&self, file: &str) -> String {
        self.files.describe(file)
    }
}

fn config(files: &Files) -> Result<Map<String, Value>> {
    files.find_json("config.json")?.ok_or_else(|| ModelError::MissingFile {
        checkpoint: files.name(),
        file: "config.json".to_owned(),
        purpose: "the shape of the model",
    })
}
