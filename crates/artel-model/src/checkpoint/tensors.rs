//! The tensors of a checkpoint: headers of safetensors files, and the index over shards.

use std::collections::BTreeMap;
use std::sync::Arc;

use artel_device::HostBuffer;
pub use safetensors::Dtype;
use safetensors::tensor::Metadata;
use serde_json::{Map, Value};

use super::files::Files;
use crate::config::ConfigReader;
use crate::{ModelError, Result};

const SINGLE_FILE: &str = "model.safetensors";
const INDEX_FILE: &str = "model.safetensors.index.json";

/// Bytes of the little-endian header length that a safetensors file begins with.
const LENGTH_BYTES: usize = 8;

/// Longest header that is parsed, the limit of the format's own library.
const HEADER_BYTES_MAX: usize = 100_000_000;

/// One tensor as the file stores it; the bytes are shared with the mapped file.
#[derive(Debug, Clone)]
pub struct StoredTensor {
    /// Number type.
    pub dtype: Dtype,
    /// Sizes, outermost first.
    pub shape: Vec<usize>,
    /// The numbers, row-major.
    pub bytes: HostBuffer,
    /// File it comes from, for messages.
    pub file: Arc<str>,
}

/// All tensors by name.
pub(super) type Tensors = BTreeMap<String, StoredTensor>;

/// Reads the headers of `model.safetensors`, or of the shards that the index names.
pub(super) fn read(files: &Files) -> Result<Tensors> {
    if let Some(index) = files.find_json(INDEX_FILE)? {
        return read_shards(files, &index);
    }
    match files.find(SINGLE_FILE)? {
        Some(file) => read_file(&file, files.describe(SINGLE_FILE).into()),
        None => Err(missing(files, format!("{SINGLE_FILE} or {INDEX_FILE}"))),
    }
}

fn missing(files: &Files, file: String) -> ModelError {
    ModelError::MissingFile { checkpoint: files.name(), file, purpose: "the weights" }
}

/// The index decides where each tensor is: a shard may hold more than the index names.
fn read_shards(files: &Files, index: &Map<String, Value>) -> Result<Tensors> {
    let weight_map = weight_map(files, index)?;
    let mut shards: BTreeMap<&str, Tensors> = BTreeMap::new();
    let mut tensors = Tensors::new();
    for (name, shard) in weight_map {
        if !shards.contains_key(shard) {
            let file = files.find(shard)?.ok_or_else(|| missing(files, shard.to_owned()))?;
            shards.insert(shard, read_file(&file, files.describe(shard).into())?);
        }
        let tensor = shards.get_mut(shard).and_then(|shard| shard.remove(name));
        let why = || format!("{INDEX_FILE} places tensor {name} in it, but it is not there");
        let tensor = tensor.ok_or_else(|| corrupt(&files.describe(shard), why()))?;
        tensors.insert(name.to_owned(), tensor);
    }
    Ok(tensors)
}

/// Tensor name -> file name, each checked to be a plain name of the checkpoint's own folder.
fn weight_map<'a>(files: &Files, index: &'a Map<String, Value>) -> Result<Vec<(&'a str, &'a str)>> {
    let index = ConfigReader::new(files.describe(INDEX_FILE), index);
    let expected = "an object from tensor names to file names";
    let map = index.object("weight_map")?.ok_or_else(|| index.error("weight_map", expected))?;
    let mut entries = Vec::new();
    for tensor in map.fields() {
        let shard = map.text(tensor)?;
        if !is_plain_file_name(shard) {
            let (index, tensor) = (files.describe(INDEX_FILE), tensor.to_owned());
            return Err(ModelError::ShardPath { index, tensor, shard: shard.to_owned() });
        }
        entries.push((tensor, shard));
    }
    Ok(entries)
}

fn is_plain_file_name(name: &str) -> bool {
    !name.is_empty() && name != "." && name != ".." && !name.contains(['/', '\\', ':', '\0'])
}

/// Reads one header and checks it against the length of the file. Allocates in proportion to the
/// header that is really there, never to a number that the file claims.
fn read_file(file: &HostBuffer, name: Arc<str>) -> Result<Tensors> {
    let header = header(file.as_bytes()).map_err(|why| corrupt(&name, why))?;
    let metadata: Metadata = serde_json::from_slice(header)
        .map_err(|why| corrupt(&name, format!("its header is wrong: {why}")))?;
    let data = file.slice(LENGTH_BYTES + header.len()..file.len())?;
    if metadata.data_len() != data.len() {
        let (promised, found) = (metadata.data_len(), data.len());
        let why = format!("its header promises {promised} bytes of data, the file has {found}");
        return Err(corrupt(&name, why));
    }
    let mut tensors = Tensors::new();
    for (tensor, info) in metadata.tensors() {
        let bytes = data.slice(info.data_offsets.0..info.data_offsets.1)?;
        let shape = info.shape.clone();
        let stored = StoredTensor { dtype: info.dtype, shape, bytes, file: Arc::clone(&name) };
        tensors.insert(tensor, stored);
    }
    Ok(tensors)
}

fn header(file: &[u8]) -> std::result::Result<&[u8], String> {
    let Some((length, rest)) = file.split_first_chunk::<LENGTH_BYTES>() else {
        return Err(format!("it has {} bytes, fewer than the smallest header", file.len()));
    };
    let length = u64::from_le_bytes(*length);
    let available = rest.len().min(HEADER_BYTES_MAX);
    match usize::try_from(length) {
        Ok(length) if length <= available => Ok(&rest[..length]),
        _ => Err(format!("it claims a header of {length} bytes where {available} are possible")),
    }
}

fn corrupt(file: &str, why: String) -> ModelError {
    ModelError::CorruptFile { file: file.to_owned(), why }
}
