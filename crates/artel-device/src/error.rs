use std::path::PathBuf;

/// What can go wrong below the layer: files that cannot be mapped, ranges that do not exist.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DeviceError {
    /// A file could not be opened or mapped into memory.
    #[error("cannot map {path} into memory: {source}", path = path.display())]
    MapFile {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// A slice was asked for that the buffer does not have.
    #[error("bytes {start}..{end} were asked of a buffer of {length} bytes")]
    OutOfRange {
        /// First byte asked for.
        start: usize,
        /// One past the last byte asked for.
        end: usize,
        /// What the buffer holds.
        length: usize,
    },
    /// The operating system did not start the threads.
    #[error("cannot start {count} threads: {why}")]
    Threads {
        /// How many were asked for.
        count: usize,
        /// What the thread pool said.
        why: String,
    },
}
