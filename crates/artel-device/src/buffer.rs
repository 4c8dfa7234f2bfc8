//! Host memory as it is found: owned, mapped from a file, or part of the program itself.
//!
//! Checkpoints are never copied to be used: a weight is a [`HostBuffer`] that points into the
//! mapped file, and the clone of a buffer shares the bytes.

use std::fs::File;
use std::ops::{Deref, Range};
use std::path::Path;
use std::sync::Arc;

use bytemuck::Pod;

use crate::DeviceError;

/// A shared, read-only run of bytes. Cloning and slicing copy nothing.
#[derive(Clone)]
pub struct HostBuffer {
    storage: Arc<dyn Storage>,
    range: Range<usize>,
}

/// Where bytes are kept.
trait Storage: Deref<Target = [u8]> + Send + Sync {
    /// Gives memory of `range` back to the system where its bytes can be had again.
    fn release(&self, _range: Range<usize>) {}
}

impl Storage for &'static [u8] {}
impl<T: Pod + Send + Sync> Storage for OwnedElements<T> {}

impl Storage for memmap2::Mmap {
    fn release(&self, range: Range<usize>) {
        let advice = memmap2::UncheckedAdvice::DontNeed;
        // SAFETY: nobody writes to a read-only mapping, so its pages are the file's when they are read
        // again.
        let advised = unsafe { self.unchecked_advise_range(advice, range.start, range.len()) };
        // The pages stay where they are when the system does not want them back.
        drop(advised);
    }
}

/// A vector of numbers seen as its bytes, so that its alignment is the numbers' own.
struct OwnedElements<T>(Vec<T>);

impl<T: Pod> Deref for OwnedElements<T> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        bytemuck::cast_slice(&self.0)
    }
}

impl HostBuffer {
    /// Takes over a vector; the bytes keep the alignment of `T`.
    pub fn from_vec<T: Pod + Send + Sync>(elements: Vec<T>) -> Self {
        Self::over(Arc::new(OwnedElements(elements)))
    }

    /// Bytes that are part of the program, such as a bundled model.
    pub fn from_static(bytes: &'static [u8]) -> Self {
        Self::over(Arc::new(bytes))
    }

    /// Maps a file read-only. The pages are read when they are first touched.
    ///
    /// # Errors
    /// [`DeviceError::MapFile`] when the file cannot be opened or mapped.
    pub fn map_file(path: &Path) -> Result<Self, DeviceError> {
        let failed = |source| DeviceError::MapFile { path: path.to_owned(), source };
        let file = File::open(path).map_err(failed)?;
        if file.metadata().map_err(failed)?.len() == 0 {
            return Ok(Self::from_static(&[]));
        }
        // SAFETY: the mapping is private and read-only. A process that truncates the file while it
        // is mapped can still fault a reader; checkpoints are not changed while they are served.
        let map = unsafe { memmap2::Mmap::map(&file) }.map_err(failed)?;
        Ok(Self::over(Arc::new(map)))
    }

    fn over(storage: Arc<dyn Storage>) -> Self {
        let range = 0..storage.len();
        Self { storage, range }
    }

    /// A part of this buffer that shares its bytes.
    ///
    /// # Errors
    /// [`DeviceError::OutOfRange`] when `range` is reversed or reaches beyond the buffer.
    pub fn slice(&self, range: Range<usize>) -> Result<Self, DeviceError> {
        if range.start > range.end || range.end > self.len() {
            let length = self.len();
            return Err(DeviceError::OutOfRange { start: range.start, end: range.end, length });
        }
        let range = self.range.start + range.start..self.range.start + range.end;
        Ok(Self { storage: Arc::clone(&self.storage), range })
    }

    /// Gives the pages of a mapped file back to the system, for bytes that are not needed soon: reading
    /// them again reads the file again. Memory of the program stays as it is.
    pub fn release_pages(&self) {
        self.storage.release(self.range.clone());
    }

    /// The bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.storage[self.range.clone()]
    }

    /// Number of bytes.
    pub fn len(&self) -> usize {
        self.range.len()
    }

    /// Whether there are no bytes.
    pub fn is_empty(&self) -> bool {
        self.range.is_empty()
    }

    /// The same bytes at an address that `T` may be read from: this buffer, or a copy of it when
    /// a file placed the bytes at an odd address.
    pub fn aligned_for<T: Pod + Send + Sync>(self) -> Self {
        if self.as_bytes().as_ptr().cast::<T>().is_aligned() {
            return self;
        }
        Self::from_vec(bytemuck::allocation::pod_collect_to_vec::<u8, T>(self.as_bytes()))
    }

    /// The bytes as numbers.
    ///
    /// # Panics
    /// When address or length do not fit `T`: a buffer is made fit by [`HostBuffer::aligned_for`]
    /// and checked where it enters the program, so this is a bug.
    pub fn as_slice<T: Pod>(&self) -> &[T] {
        bytemuck::try_cast_slice(self.as_bytes())
            .unwrap_or_else(|why| panic!("this is a bug: a buffer was not prepared: {why}"))
    }
}

impl std::fmt::Debug for HostBuffer {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "HostBuffer({} bytes)", self.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slices_share_and_check_their_range() {
        let buffer = HostBuffer::from_vec(vec![1u16, 2, 3]);
        assert_eq!(buffer.slice(2..6).unwrap().as_slice::<u16>(), [2, 3]);
        assert_eq!(buffer.slice(2..6).unwrap().slice(2..4).unwrap().as_slice::<u16>(), [3]);
        assert!(matches!(
            buffer.slice(4..7),
            Err(DeviceError::OutOfRange { start: 4, end: 7, length: 6 })
        ));
        #[expect(clippy::reversed_empty_ranges, reason = "the reversed range is the case")]
        let reversed = buffer.slice(3..2);
        assert!(reversed.is_err());
    }

    #[test]
    fn an_odd_address_is_mended_by_a_copy() {
        let buffer = HostBuffer::from_vec(vec![0u8, 1, 0, 2, 0]);
        for start in 0..2 {
            let part = buffer.slice(start..start + 4).unwrap();
            let expected: Vec<u8> = part.as_bytes().to_vec();
            assert_eq!(part.aligned_for::<u16>().as_bytes(), expected);
        }
    }

    #[test]
    fn released_pages_are_read_again() {
        let path = std::env::temp_dir().join(format!("artel-pages-{}", std::process::id()));
        let bytes: Vec<u8> = (0..20_000u32).map(|index| index as u8).collect();
        std::fs::write(&path, &bytes).unwrap();
        let mapped = HostBuffer::map_file(&path).unwrap();
        for range in [0..20_000, 5_000..5_000, 4_095..12_289, 19_999..20_000] {
            let part = mapped.slice(range.clone()).unwrap();
            assert_eq!(part.as_bytes(), &bytes[range.clone()]);
            part.release_pages();
            assert_eq!(part.as_bytes(), &bytes[range]);
        }
        assert_eq!(mapped.as_bytes(), bytes);
        std::fs::remove_file(&path).unwrap();
        let owned = HostBuffer::from_vec(bytes.clone());
        owned.release_pages();
        assert_eq!(owned.as_bytes(), bytes);
    }

    #[test]
    fn a_missing_file_is_named() {
        let error = HostBuffer::map_file(Path::new("no/such/file")).unwrap_err();
        assert!(error.to_string().contains("no/such/file"), "{error}");
    }
}
