//! Safetensors files, written front to back.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use super::layout::Stored;
use crate::{ModelError, Result};

/// Largest file before another is begun.
const FILE_BYTES_MAX: usize = 5_000_000_000;

/// Names and header of one file.
struct Part {
    name: String,
    header: Vec<u8>,
    /// Lengths of its tensors.
    lengths: Vec<usize>,
}

/// Writes tensors in the order in which they were announced.
pub(super) struct FolderWriter {
    folder: PathBuf,
    parts: Vec<Part>,
    index: Map<String, Value>,
    /// Part and tensor in it that come next.
    next: (usize, usize),
    file: Option<BufWriter<File>>,
    bytes: usize,
}

impl FolderWriter {
    /// Makes `folder`, which must not have files in it.
    pub fn create<'a>(folder: &Path, tensors: impl Iterator<Item = &'a Stored>) -> Result<Self> {
        let failed = |source| failed(folder, source);
        std::fs::create_dir_all(folder).map_err(failed)?;
        if std::fs::read_dir(folder).map_err(failed)?.next().is_some() {
            let why = format!("{} has files in it; name a new folder", folder.display());
            return Err(ModelError::Quantize { why });
        }
        let mut files: Vec<Vec<&Stored>> = vec![Vec::new()];
        let mut bytes = 0;
        for tensor in tensors {
            if bytes > 0 && bytes + tensor.bytes() > FILE_BYTES_MAX {
                files.push(Vec::new());
                bytes = 0;
            }
            bytes += tensor.bytes();
            files.last_mut().expect("this is a bug: no file").push(tensor);
        }
        let (mut parts, mut index, count) = (Vec::new(), Map::new(), files.len());
        for (number, tensors) in files.iter().enumerate() {
            let name = match count {
                1 => "model.safetensors".to_owned(),
                _ => format!("model-{:05}-of-{count:05}.safetensors", number + 1),
            };
            for tensor in tensors {
                index.insert(tensor.name.clone(), Value::String(name.clone()));
            }
            let lengths = tensors.iter().map(|tensor| tensor.bytes()).collect();
            parts.push(Part { name, header: header(tensors)?, lengths });
        }
        let folder = folder.to_owned();
        Ok(Self { folder, parts, index, next: (0, 0), file: None, bytes: 0 })
    }

    /// The next tensor.
    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        while self.parts.get(self.next.0).is_some_and(|part| part.lengths.len() == self.next.1) {
            self.close()?;
            self.next = (self.next.0 + 1, 0);
        }
        let (part, tensor) = self.next;
        let part = &self.parts[part];
        assert_eq!(part.lengths[tensor], bytes.len(), "this is a bug: a tensor of another length");
        let path = self.folder.join(&part.name);
        if self.file.is_none() {
            let mut file = BufWriter::new(File::create(&path).map_err(|why| failed(&path, why))?);
            file.write_all(&part.header).map_err(|why| failed(&path, why))?;
            self.file = Some(file);
        }
        let file = self.file.as_mut().expect("this is a bug: the file is open");
        file.write_all(bytes).map_err(|why| failed(&path, why))?;
        self.bytes += bytes.len();
        self.next.1 += 1;
        Ok(())
    }

    /// Closes the last file and writes the index, if there are several; returns bytes of all tensors.
    pub fn finish(mut self) -> Result<usize> {
        self.close()?;
        if self.parts.len() > 1 {
            let index = json!({"metadata": {"total_size": self.bytes}, "weight_map": self.index});
            write_json(&self.folder, "model.safetensors.index.json", &index)?;
        }
        Ok(self.bytes)
    }

    fn close(&mut self) -> Result<()> {
        match self.file.take() {
            Some(mut file) => file.flush().map_err(|why| failed(&self.folder, why)),
            None => Ok(()),
        }
    }
}

/// Length and JSON, padded so that tensors begin at multiples of eight.
fn header(tensors: &[&Stored]) -> Result<Vec<u8>> {
    let (mut entries, mut offset) = (Map::new(), 0);
    entries.insert("__metadata__".to_owned(), json!({"format": "pt"}));
    for tensor in tensors {
        let end = offset + tensor.bytes();
        let dtype = serde_json::to_value(tensor.dtype);
        let dtype =
            dtype.map_err(|source| ModelError::Json { file: tensor.name.clone(), source })?;
        let entry = json!({"dtype": dtype, "shape": tensor.shape, "data_offsets": [offset, end]});
        entries.insert(tensor.name.clone(), entry);
        offset = end;
    }
    let mut json = Value::Object(entries).to_string().into_bytes();
    json.resize(json.len().next_multiple_of(8), b' ');
    let mut header = (json.len() as u64).to_le_bytes().to_vec();
    header.extend(json);
    Ok(header)
}

/// Writes a file of the folder.
pub(super) fn write_file(folder: &Path, file: &str, bytes: &[u8]) -> Result<()> {
    let path = folder.join(file);
    std::fs::write(&path, bytes).map_err(|why| failed(&path, why))
}

/// Writes a JSON file of the folder.
pub(super) fn write_json(folder: &Path, file: &str, value: &Value) -> Result<()> {
    write_file(folder, file, format!("{value:#}\n").as_bytes())
}

fn failed(path: &Path, source: std::io::Error) -> ModelError {
    ModelError::CannotWrite { path: path.to_owned(), source }
}
