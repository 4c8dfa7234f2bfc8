//! The files of a checkpoint: a folder on disk, or files that are part of the program.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use artel_device::HostBuffer;
use serde_json::{Map, Value};

use crate::{ModelError, Result};

/// Largest JSON or template file that is read: tokenizers of real models have up to 35 MB.
const TEXT_BYTES_MAX: usize = 64 << 20;

/// Where the files are.
#[derive(Debug, Clone)]
pub(super) enum Files {
    /// A folder; weights are mapped from it.
    Folder(PathBuf),
    /// Files inside the program, by name.
    Static { name: String, files: BTreeMap<&'static str, &'static [u8]> },
}

impl Files {
    pub(super) fn folder(path: &Path) -> Result<Self> {
        if !path.is_dir() {
            return Err(ModelError::NotAFolder { path: path.to_owned() });
        }
        Ok(Self::Folder(path.to_owned()))
    }

    /// Name of the checkpoint in messages.
    pub(super) fn name(&self) -> String {
        match self {
            Self::Folder(path) => path.display().to_string(),
            Self::Static { name, .. } => name.clone(),
        }
    }

    /// Name of one of its files in messages.
    pub(super) fn describe(&self, file: &str) -> String {
        match self {
            Self::Folder(path) => path.join(file).display().to_string(),
            Self::Static { name, .. } => format!("{name}/{file}"),
        }
    }

    /// The bytes of `file`, or `None` when there is no such file.
    pub(super) fn find(&self, file: &str) -> Result<Option<HostBuffer>> {
        match self {
            Self::Folder(folder) => {
                let path = folder.join(file);
                if path.is_file() { Ok(Some(HostBuffer::map_file(&path)?)) } else { Ok(None) }
            }
            Self::Static { files, .. } => {
                Ok(files.get(file).map(|bytes| HostBuffer::from_static(bytes)))
            }
        }
    }

    /// A text file, or `None` when there is no such file. Broken UTF-8 is replaced, not refused:
    /// the parser of the text gives the better message.
    pub(super) fn find_text(&self, file: &str) -> Result<Option<String>> {
        let Some(buffer) = self.find(file)? else { return Ok(None) };
        if buffer.len() > TEXT_BYTES_MAX {
            let (bytes, limit) = (buffer.len(), TEXT_BYTES_MAX);
            return Err(ModelError::FileTooLarge { file: self.describe(file), bytes, limit });
        }
        Ok(Some(String::from_utf8_lossy(buffer.as_bytes()).into_owned()))
    }

    /// A file that holds a JSON object, or `None` when there is no such file.
    pub(super) fn find_json(&self, file: &str) -> Result<Option<Map<String, Value>>> {
        let Some(text) = self.find_text(file)? else { return Ok(None) };
        let object = serde_json::from_str(&text)
            .map_err(|source| ModelError::Json { file: self.describe(file), source })?;
        Ok(Some(object))
    }
}
