use std::io::Write;

use super::{MAGIC, TraceError, TraceHeader, TraceShape, VERSION, bytes};
use crate::MoeError;

/// Writes a trace record by record.
///
/// Each record reaches `out` in one call and is flushed, so nothing but the last one can be lost
/// when the process dies. Pass a file itself; a buffer around it would only copy.
#[derive(Debug)]
pub struct TraceWriter<W: Write> {
    out: W,
    header: TraceHeader,
    last: Option<(u64, usize)>,
    /// The record in the making, kept so that a step allocates nothing.
    record: Vec<u8>,
}

impl<W: Write> TraceWriter<W> {
    /// Begins a trace: writes the header.
    ///
    /// # Errors
    /// [`TraceError::Io`] when `out` cannot be written.
    pub fn new(mut out: W, header: TraceHeader) -> Result<Self, TraceError> {
        let TraceShape { layers, experts, top_k, source_ranks } = header.shape();
        let mut record = MAGIC.to_vec();
        record.extend(VERSION.to_le_bytes());
        for number in [layers, experts, top_k, source_ranks] {
            record.extend((number as u32).to_le_bytes());
        }
        record.extend((header.model().len() as u16).to_le_bytes());
        record.extend(header.model().as_bytes());
        out.write_all(&record)?;
        out.flush()?;
        Ok(Self { out, header, last: None, record })
    }

    /// Appends the step of one source rank: tokens that chose each expert, `[layers][L]`.
    ///
    /// # Errors
    /// [`TraceError::Input`] for counts of other sizes or below 0, a source rank that does not
    /// exist, or one that does not ascend by step, then source rank: nothing is written and the
    /// trace can go on. [`TraceError::Io`] when the file cannot be written: stop then, since what
    /// follows half a record cannot be read.
    pub fn write(
        &mut self,
        step: u64,
        source_rank: usize,
        counts: &[Vec<i32>],
    ) -> Result<(), TraceError> {
        self.header.check_order(self.last, (step, source_rank))?;
        check_counts(counts, self.header.shape())?;
        self.record.clear();
        self.record.extend([0; size_of::<u32>()]);
        bytes::put_varint(&mut self.record, step);
        bytes::put_varint(&mut self.record, source_rank as u64);
        bytes::put_counts(&mut self.record, counts.iter().flatten().copied());
        let content = &self.record[size_of::<u32>()..];
        let (length, hash) = (content.len() as u32, bytes::fnv1a(content));
        self.record[..size_of::<u32>()].copy_from_slice(&length.to_le_bytes());
        self.record.extend(hash.to_le_bytes());
        self.out.write_all(&self.record)?;
        self.out.flush()?;
        self.last = Some((step, source_rank));
        Ok(())
    }

    /// What the trace began with.
    pub fn header(&self) -> &TraceHeader {
        &self.header
    }

    /// Where the trace is written to.
    pub fn get_ref(&self) -> &W {
        &self.out
    }

    /// Ends the trace and gives the file back.
    pub fn into_inner(self) -> W {
        self.out
    }
}

fn check_counts(counts: &[Vec<i32>], shape: TraceShape) -> Result<(), MoeError> {
    MoeError::check_shape("layers of a record", shape.layers, counts.len())?;
    for (layer, experts) in counts.iter().enumerate() {
        MoeError::check_shape("counts of a layer", shape.experts, experts.len())?;
        if let Some(expert) = experts.iter().position(|count| *count < 0) {
            let position = layer * shape.experts + expert;
            return Err(MoeError::element("counts", position, experts[expert], "0 or more"));
        }
    }
    Ok(())
}
