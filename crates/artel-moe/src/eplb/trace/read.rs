use std::io::Read;

use super::{MAGIC, TraceError, TraceHeader, TraceRecord, TraceShape, VERSION, bytes};

/// Bytes of the header before the model's name.
const FIXED_HEADER_BYTES: usize = 8 + 5 * 4 + 2;

/// Reads a trace record by record, in little memory. Iterating ends at the first error; the records
/// before it are good. Reads in small pieces: give it a buffered file.
#[derive(Debug)]
pub struct TraceReader<R: Read> {
    input: R,
    header: TraceHeader,
    /// Bytes read so far.
    offset: u64,
    last: Option<(u64, usize)>,
    ended: bool,
}

impl<R: Read> TraceReader<R> {
    /// Reads the header.
    ///
    /// # Errors
    /// [`TraceError`] for anything but a trace of this version.
    pub fn new(mut input: R) -> Result<Self, TraceError> {
        let fixed = take(&mut input, "the header", 0, FIXED_HEADER_BYTES)?;
        if fixed[..8] != *MAGIC {
            let found = format!("{:?}", String::from_utf8_lossy(&fixed[..8]));
            return Err(TraceError::malformed("the beginning", 0, found, "\"ARTELTRC\""));
        }
        let number = |index: usize| u32_at(&fixed, 8 + 4 * index);
        if number(0) != VERSION {
            return Err(TraceError::malformed("the version", 0, number(0), VERSION));
        }
        let length = usize::from(u16::from_le_bytes([fixed[28], fixed[29]]));
        let offset = FIXED_HEADER_BYTES as u64;
        let name = take(&mut input, "the model's name", offset, length)?;
        let Ok(model) = String::from_utf8(name) else {
            return Err(TraceError::malformed("the model's name", offset, "not", "UTF-8"));
        };
        let [layers, experts, top_k, source_ranks] = [1, 2, 3, 4].map(|at| number(at) as usize);
        let shape = TraceShape { layers, experts, top_k, source_ranks };
        let header = TraceHeader::new(shape, model)
            .map_err(|error| TraceError::malformed("the header", 0, error, "legal"))?;
        Ok(Self { input, header, offset: offset + length as u64, last: None, ended: false })
    }

    /// What the trace begins with.
    pub fn header(&self) -> &TraceHeader {
        &self.header
    }

    /// The next record; `None` at the end of the file.
    fn record(&mut self) -> Result<Option<TraceRecord>, TraceError> {
        const RECORD: &str = "a record";
        let start = self.offset;
        let length = take_up_to(&mut self.input, size_of::<u32>())?;
        if length.is_empty() {
            return Ok(None);
        }
        if length.len() < size_of::<u32>() {
            let (expected, found) = (size_of::<u32>(), length.len());
            return Err(TraceError::Truncated { what: RECORD, offset: start, expected, found });
        }
        let (length, most) = (u32_at(&length, 0), self.header.content_bytes_max());
        if length as usize > most {
            let allowed = format!("at most {most}");
            return Err(TraceError::malformed("the length of a record", start, length, allowed));
        }
        let length = length as usize;
        let mut content = take(&mut self.input, RECORD, start, length + size_of::<u32>())?;
        let expected = u32_at(&content, length);
        content.truncate(length);
        let found = bytes::fnv1a(&content);
        if found != expected {
            let [found, expected] = [found, expected].map(|hash| format!("{hash:08x}"));
            return Err(TraceError::malformed("the hash of a record", start, found, expected));
        }
        self.offset += (length + 2 * size_of::<u32>()) as u64;
        self.content(&content, start).map(Some)
    }

    fn content(&mut self, mut content: &[u8], start: u64) -> Result<TraceRecord, TraceError> {
        let malformed =
            |why: String| TraceError::malformed("a record", start, why, "as the header says");
        let mut number = || bytes::take_varint(&mut content);
        let (Some(step), Some(source_rank)) = (number(), number()) else {
            return Err(malformed("too short".to_owned()));
        };
        let source_rank = usize::try_from(source_rank).unwrap_or(usize::MAX);
        let place = (step, source_rank);
        self.header.check_order(self.last, place).map_err(|error| malformed(error.to_string()))?;
        let TraceShape { layers, experts, .. } = self.header.shape();
        let counts = bytes::take_counts(content, layers * experts)
            .map_err(|why| malformed(why.to_owned()))?;
        self.last = Some(place);
        let counts = counts.chunks(experts).map(<[i32]>::to_vec).collect();
        Ok(TraceRecord { step, source_rank, counts })
    }
}

impl<R: Read> Iterator for TraceReader<R> {
    type Item = Result<TraceRecord, TraceError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        let record = self.record().transpose();
        self.ended = !matches!(record, Some(Ok(_)));
        record
    }
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

/// Reads `length` bytes, or says what is incomplete.
fn take(
    input: &mut impl Read,
    what: &'static str,
    offset: u64,
    length: usize,
) -> Result<Vec<u8>, TraceError> {
    let bytes = take_up_to(input, length)?;
    match bytes.len() {
        found if found < length => {
            Err(TraceError::Truncated { what, offset, expected: length, found })
        }
        _ => Ok(bytes),
    }
}

/// Reads up to `length` bytes. Memory grows with what is there, not with what is announced.
fn take_up_to(input: &mut impl Read, length: usize) -> Result<Vec<u8>, TraceError> {
    let mut bytes = Vec::new();
    input.take(length as u64).read_to_end(&mut bytes)?;
    Ok(bytes)
}
