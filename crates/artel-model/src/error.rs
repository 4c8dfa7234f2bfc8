use std::path::PathBuf;

use artel_device::DeviceError;
use artel_layers::LayersError;
use artel_moe::MoeError;

/// Everything that a checkpoint, a request or a template can get wrong. Each message says what was
/// wrong and where, what was expected, and where it helps, what to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ModelError {
    /// A checkpoint lacks a file.
    #[error("{checkpoint} has no {file}, which is needed for {purpose}")]
    MissingFile {
        /// Folder or name of the checkpoint.
        checkpoint: String,
        /// The file, or the files of which one is needed.
        file: String,
        /// What it is needed for.
        purpose: &'static str,
    },
    /// The path of a checkpoint is not a folder.
    #[error("{path} is not a folder; give the folder that holds config.json and *.safetensors",
            path = path.display())]
    NotAFolder {
        /// The path.
        path: PathBuf,
    },
    /// A file could not be mapped or sliced.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// A JSON file does not parse.
    #[error("{file} is not valid JSON: {source}")]
    Json {
        /// The file.
        file: String,
        /// What the parser said.
        source: serde_json::Error,
    },
    /// A file is far larger than any real one of its kind.
    #[error("{file} has {bytes} bytes, more than the {limit} that such a file may have")]
    FileTooLarge {
        /// The file.
        file: String,
        /// Its size.
        bytes: usize,
        /// The largest size accepted.
        limit: usize,
    },
    /// A safetensors file is truncated or its header is not one.
    #[error("{file} is not a sound safetensors file: {why}")]
    CorruptFile {
        /// The file.
        file: String,
        /// What is wrong with it.
        why: String,
    },
    /// The shard index names a file outside the folder.
    #[error("{index} places {tensor} in {shard:?}; a shard must be a plain file name beside it")]
    ShardPath {
        /// The index file.
        index: String,
        /// The tensor.
        tensor: String,
        /// What the index says.
        shard: String,
    },
    /// A field of a JSON file is missing or makes no sense.
    #[error("{file}: {field} is {found}, expected {expected}")]
    Field {
        /// The file.
        file: String,
        /// The field, with the names of the objects around it.
        field: String,
        /// What the file has, shortened.
        found: String,
        /// What it should have.
        expected: String,
    },
    /// No architecture of that name.
    #[error("architecture {found:?} is not known; known are: {known}")]
    UnknownArchitecture {
        /// What config.json says.
        found: String,
        /// The known names.
        known: String,
    },
    /// Weights that cannot be written in another format, or not there.
    #[error("cannot quantise: {why}")]
    Quantize {
        /// What is in the way.
        why: String,
    },
    /// Weights stored in a way that is not supported.
    #[error("quantization_config of config.json: {why}")]
    Quantization {
        /// What is not supported, and what is.
        why: String,
    },
    /// A file of texts that a model cannot be calibrated with.
    #[error("{}: {why}", path.display())]
    Texts {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// A file cannot be written.
    #[error("cannot write {}: {source}", path.display())]
    CannotWrite {
        /// File or folder.
        path: std::path::PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A tensor that the architecture needs is not there.
    #[error("{checkpoint} lacks tensor {name}, expected with shape {expected:?}")]
    MissingTensor {
        /// Folder or name of the checkpoint.
        checkpoint: String,
        /// The tensor.
        name: String,
        /// Its shape according to config.json.
        expected: Vec<usize>,
    },
    /// Tensors that the architecture does not know.
    #[error(
        "{checkpoint} has {count} tensors that {architecture} does not use, such as {names}; \
         config.json and the weights do not describe the same model"
    )]
    ExtraTensors {
        /// Folder or name of the checkpoint.
        checkpoint: String,
        /// The architecture that was read.
        architecture: String,
        /// How many there are.
        count: usize,
        /// The first few.
        names: String,
    },
    /// A tensor has another shape than config.json implies.
    #[error("tensor {name} of {file} has shape {found:?}, expected {expected:?}")]
    TensorShape {
        /// The tensor.
        name: String,
        /// File it is in.
        file: String,
        /// Shape according to config.json.
        expected: Vec<usize>,
        /// Shape in the file.
        found: Vec<usize>,
    },
    /// A tensor has a number type that cannot be used in its place.
    #[error("tensor {name} of {file} has type {found}, expected {expected}")]
    TensorType {
        /// The tensor.
        name: String,
        /// File it is in.
        file: String,
        /// The types accepted.
        expected: &'static str,
        /// Type in the file.
        found: String,
    },
    /// A sequence would not fit its cache.
    #[error("{needed} positions are needed, but the context of this sequence holds {available}")]
    ContextOverflow {
        /// Positions after the call.
        needed: usize,
        /// Positions of the cache.
        available: usize,
    },
    /// More tokens than the model can position.
    #[error("a context of {asked} positions was asked of a model with {available}")]
    ContextTooLong {
        /// Positions asked for.
        asked: usize,
        /// `max_position_embeddings` of the model.
        available: usize,
    },
    /// A step on a GPU with more of something than there is room for.
    #[cfg(feature = "cuda")]
    #[error("a step with {found} {what} was asked of a model with room for {limit}")]
    StepTooLarge {
        /// Of what.
        what: &'static str,
        /// What was asked for.
        found: usize,
        /// What there is room for.
        limit: usize,
    },
    /// A part of the model for which there are no GPU kernels.
    #[cfg(feature = "cuda")]
    #[error("{what} has no GPU kernels: {why}; run on the CPU with --device cpu")]
    NotOnGpu {
        /// The part.
        what: &'static str,
        /// What it is, and what there are kernels for.
        why: String,
    },
    /// A kernel could not be loaded or launched, or memory on the GPU ran out.
    #[cfg(feature = "cuda")]
    #[error(transparent)]
    Cuda(#[from] artel_device::cuda::CudaError),
    /// The tokenizer does not load or does not accept a text.
    #[error("tokenizer: {why}")]
    Tokenizer {
        /// What the tokenizer said.
        why: String,
    },
    /// The checkpoint has no chat template, or none of the name asked for.
    #[error("{checkpoint} has no chat template{named}; give the prompt as plain text instead")]
    NoChatTemplate {
        /// Folder or name of the checkpoint.
        checkpoint: String,
        /// Empty, or ` named "…"`.
        named: String,
    },
    /// The chat template does not parse, or refuses these messages.
    #[error("chat template: {why}")]
    ChatTemplate {
        /// What the template engine or the template itself said.
        why: String,
    },
    /// A part of the model that cannot be built from what the checkpoint says.
    #[error("{part}: {why}")]
    Part {
        /// File or layer.
        part: String,
        /// What is wrong with it.
        why: Box<ModelError>,
    },
    /// A step of the mixture-of-experts layer refused its input.
    #[error(transparent)]
    Moe(#[from] MoeError),
    /// A step of the decoder refused its input.
    #[error(transparent)]
    Layer(#[from] LayersError),
}

impl ModelError {
    /// The error with the name of the part that it is about, unless it names one itself.
    pub(crate) fn of_part(self, part: &str) -> Self {
        match self {
            #[cfg(feature = "cuda")]
            Self::NotOnGpu { .. } => Self::Part { part: part.to_owned(), why: Box::new(self) },
            Self::Moe(_) | Self::Layer(_) => {
                Self::Part { part: part.to_owned(), why: Box::new(self) }
            }
            _ => self,
        }
    }
}

/// Result with a [`ModelError`].
pub type Result<T> = std::result::Result<T, ModelError>;
