//! What a step's requests want of their tokens, as words that go to the device in one copy.

use std::collections::BTreeMap;
use std::ops::Range;

use artel_device::cuda::{Context, CudaError, DeviceBuffer, DeviceSlice, DeviceSliceMut, Stream};
use artel_layers::LayersError;
use artel_layers::sample::TokenMask;
use artel_layers::sample::cuda::{
    RowAdjustments, RowMasks, RowParameters, SampleKernels, SampleSteps, SampleWorkspace,
};
use half::bf16;

use crate::Result;
use crate::runner::{Choice, SequenceStep};

/// Tokens whose logits all rows of a step may change together.
const ENTRIES_MAX: usize = 1 << 18;

/// Words that sections begin at multiples of: pointers of kernels are 16-byte aligned.
const ALIGNMENT: usize = 4;

/// Where the words of a step lie. Behind the sections are ids, counts and biases of the entries, as
/// many as there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct SamplingLayout {
    rows_max: usize,
    vocabulary: usize,
}

/// A part of the words, with a place for each row.
#[derive(Debug, Clone, Copy)]
enum Section {
    /// Row of the step before whose token is this sequence's; -1: none.
    Sources,
    Temperatures,
    TopKs,
    TopPs,
    Least,
    /// float64.
    Uniforms,
    /// Three each.
    Penalties,
    /// One more than rows.
    Starts,
    /// Number of each row's mask; -1: none.
    Masks,
    Entries,
}

impl SamplingLayout {
    pub(super) fn rows_max(&self) -> usize {
        self.rows_max
    }

    /// Entries that one row may have; requests that change more logits are for the host.
    fn entries_of_row(&self) -> usize {
        ENTRIES_MAX / self.rows_max
    }

    fn start(&self, section: Section) -> usize {
        let rows = (self.rows_max + 1).next_multiple_of(ALIGNMENT);
        // Uniforms are two words wide, penalties three.
        let before = match section as usize {
            narrow @ 0..=5 => narrow,
            6 => 7,
            later => later + 3,
        };
        before * rows
    }

    /// Words of a mask.
    fn mask_words(&self) -> usize {
        self.vocabulary.div_ceil(32)
    }

    /// Words of the masks of all rows, which go to the device by themselves.
    pub(super) fn masks_max(&self) -> usize {
        self.rows_max * self.mask_words()
    }

    pub(super) fn words_max(&self) -> usize {
        self.start(Section::Entries) + 3 * (ENTRIES_MAX + ALIGNMENT)
    }
}

/// The kernels of sampling from bfloat16 logits.
pub(super) type SamplingKernels = SampleKernels<bf16>;

/// What a step's words hold.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Rows {
    /// Rows of logits to choose from.
    pub(super) count: usize,
    /// The row of each sequence of which a token is chosen.
    pub(super) of_sequences: Vec<Option<usize>>,
    /// Whether a sequence goes on with a token that the step before it chooses.
    pub(super) is_fed: bool,
    /// Whether the host wants to see logits.
    pub(super) needs_logits: bool,
    /// Entries of all rows.
    entries: usize,
    /// Rows that have a mask.
    masks: usize,
    steps: SampleSteps,
}

/// Chooses tokens on the device.
pub(super) struct DeviceSampling {
    kernels: SamplingKernels,
    workspace: SampleWorkspace,
    layout: SamplingLayout,
    words: DeviceBuffer<i32>,
    masks: DeviceBuffer<i32>,
    chosen: DeviceBuffer<i32>,
    logprobs: DeviceBuffer<f32>,
}

/// What is done to the logit of a token: occurrences in the output (-1: not seen) and bias.
type Entry = (i32, f32);

/// The tokens whose logits a request changes.
fn entries(choice: &Choice<'_>) -> BTreeMap<u32, Entry> {
    let mut entries = BTreeMap::new();
    if choice.sampler.params().depends_on_history() {
        entries.extend(choice.history.seen().map(|(id, count)| (id, (count as i32, 0.0))));
    }
    let biases = choice.adjustments.bias.iter().copied();
    let bans = choice.adjustments.banned.iter().map(|&id| (id, f32::NEG_INFINITY));
    for (id, bias) in biases.chain(bans) {
        entries.entry(id).or_insert((-1, 0.0)).1 += bias;
    }
    entries
}

impl DeviceSampling {
    pub(super) fn new(
        context: &Context,
        kernels: SamplingKernels,
        (rows_max, vocabulary): (usize, usize),
    ) -> std::result::Result<Self, LayersError> {
        let layout = SamplingLayout { rows_max, vocabulary };
        Ok(Self {
            workspace: kernels.workspace(context, rows_max)?,
            kernels,
            layout,
            words: DeviceBuffer::zeroed(context, layout.words_max())?,
            masks: DeviceBuffer::zeroed(context, layout.masks_max())?,
            chosen: DeviceBuffer::zeroed(context, rows_max)?,
            logprobs: DeviceBuffer::zeroed(context, rows_max)?,
        })
    }

    pub(super) fn layout(&self) -> &SamplingLayout {
        &self.layout
    }

    /// Whether the host has to choose: some histories are long.
    pub(super) fn is_for_the_host(&self, step: &SequenceStep<'_>) -> bool {
        step.choice.is_some_and(|choice| {
            let adjusted = choice.adjustments.bias.len() + choice.adjustments.banned.len();
            let seen = match choice.sampler.params().depends_on_history() {
                true => choice.history.seen_max(),
                false => 0,
            };
            adjusted + seen > self.layout.entries_of_row()
        })
    }

    /// Writes what the sequences of a step want into `words` and `masks`. `before`: the rows of the
    /// sequences of the step before.
    pub(super) fn write(
        &self,
        batch: &[SequenceStep<'_>],
        before: &[Option<usize>],
        (words, masks): (&mut [i32], &mut [i32]),
    ) -> Rows {
        let mut rows = Rows::default();
        let mut all = Vec::new();
        for (sequence, step) in batch.iter().enumerate() {
            let source = step.awaited.and_then(|place| before[place]);
            rows.is_fed |= source.is_some();
            words[self.layout.start(Section::Sources) + sequence] =
                source.map_or(-1, |row| row as i32);
            rows.of_sequences.push(step.choice.map(|_| rows.count));
            let Some(choice) = step.choice else { continue };
            let is_for_the_host = self.is_for_the_host(step);
            rows.needs_logits |= is_for_the_host || choice.logprobs.is_some_and(|top| top > 0);
            self.write_row(&choice, rows.count, words);
            let mask = choice.adjustments.allowed.filter(|_| !is_for_the_host);
            words[self.layout.start(Section::Masks) + rows.count] = match mask {
                None => -1,
                Some(mask) => {
                    let place = rows.masks * self.layout.mask_words();
                    self.write_mask(mask, &mut masks[place..][..self.layout.mask_words()]);
                    rows.masks += 1;
                    rows.masks as i32 - 1
                }
            };
            words[self.layout.start(Section::Starts) + rows.count] = all.len() as i32;
            if !is_for_the_host {
                rows.steps = with(rows.steps, &choice);
                all.extend(entries(&choice));
            }
            rows.count += 1;
        }
        words[self.layout.start(Section::Starts) + rows.count] = all.len() as i32;
        rows.entries = all.len();
        for (index, (id, (count, bias))) in all.into_iter().enumerate() {
            let [ids, counts, biases] = self.entries_at(rows.entries).map(|range| range.start);
            words[ids + index] = id as i32;
            words[counts + index] = count;
            words[biases + index] = bias.to_bits() as i32;
        }
        rows
    }

    fn write_row(&self, choice: &Choice<'_>, row: usize, words: &mut [i32]) {
        let params = choice.sampler.params();
        let top_k = i32::try_from(params.top_k).unwrap_or(i32::MAX);
        let bits = |number: f32| number.to_bits() as i32;
        for (section, word) in [
            (Section::Temperatures, bits(params.temperature)),
            (Section::TopKs, top_k),
            (Section::TopPs, bits(params.top_p)),
            (Section::Least, bits(params.min_p.ln())),
        ] {
            words[self.layout.start(section) + row] = word;
        }
        if params.temperature > 0.0 {
            let uniform = choice.sampler.uniform(choice.position).to_bits();
            let place = self.layout.start(Section::Uniforms) + 2 * row;
            words[place..place + 2].copy_from_slice(&[uniform as i32, (uniform >> 32) as i32]);
        }
        let place = self.layout.start(Section::Penalties) + 3 * row;
        words[place..place + 3].copy_from_slice(&[
            bits(params.repetition_penalty),
            bits(params.presence_penalty),
            bits(params.frequency_penalty),
        ]);
    }

    /// A mask as kernels read it: what it does not know of may not come.
    fn write_mask(&self, mask: &TokenMask, words: &mut [i32]) {
        let known = mask.words().iter().copied().chain(std::iter::repeat(0));
        words.iter_mut().zip(known).for_each(|(word, bits)| *word = bits as i32);
        let (whole, rest) = (mask.vocabulary() / 32, mask.vocabulary() % 32);
        if let Some(word) = words.get_mut(whole) {
            *word &= (1 << rest) - 1;
        }
    }

    /// Ids, counts and biases of so many entries.
    fn entries_at(&self, entries: usize) -> [Range<usize>; 3] {
        let start = self.layout.start(Section::Entries);
        let stride = entries.next_multiple_of(ALIGNMENT);
        [0, 1, 2].map(|part| start + part * stride..start + part * stride + entries)
    }

    /// How many words a step uses.
    pub(super) fn words_used(&self, rows: &Rows) -> usize {
        let [.., biases] = self.entries_at(rows.entries);
        biases.end
    }

    /// How many words the masks of a step use.
    pub(super) fn masks_used(&self, rows: &Rows) -> usize {
        rows.masks * self.layout.mask_words()
    }

    /// The words and the masks on the device.
    pub(super) fn words_mut(&mut self) -> (DeviceSliceMut<'_, i32>, DeviceSliceMut<'_, i32>) {
        (self.words.slice_mut(), self.masks.slice_mut())
    }

    /// Where the tokens of so many sequences come from, and the tokens.
    pub(super) fn feed(
        &self,
        sequences: usize,
    ) -> std::result::Result<(DeviceSlice<'_, i32>, DeviceSlice<'_, i32>), CudaError> {
        let sources = self.layout.start(Section::Sources);
        Ok((self.words.slice().range(sources, sequences)?, self.chosen.slice()))
    }

    /// Chooses a token for each row of `logits` `[rows, V]`.
    pub(super) fn launch(
        &mut self,
        stream: &Stream,
        logits: DeviceSlice<'_, bf16>,
        rows: &Rows,
    ) -> Result<()> {
        let words = self.words.slice();
        let of = |section, len| words.range(self.layout.start(section), len);
        let parameters = RowParameters {
            temperatures: of(Section::Temperatures, rows.count)?.cast(),
            top_ks: of(Section::TopKs, rows.count)?,
            top_ps: of(Section::TopPs, rows.count)?.cast(),
            least: of(Section::Least, rows.count)?.cast(),
            uniforms: of(Section::Uniforms, 2 * rows.count)?.cast(),
        };
        let [ids, counts, biases] = self.entries_at(rows.entries);
        let entries = |range: Range<usize>| words.range(range.start, range.len());
        let masks = RowMasks {
            of_rows: of(Section::Masks, rows.count)?,
            words: self.masks.slice().range(0, self.masks_used(rows))?,
        };
        let adjustments = RowAdjustments {
            masks: (rows.masks > 0).then_some(masks),
            starts: of(Section::Starts, rows.count + 1)?,
            ids: entries(ids)?,
            counts: entries(counts)?,
            biases: entries(biases)?.cast(),
            penalties: of(Section::Penalties, 3 * rows.count)?.cast(),
        };
        let adjustments = (rows.entries + rows.masks > 0).then_some(&adjustments);
        let (chosen, logprobs) = (self.chosen.slice_mut(), self.logprobs.slice_mut());
        Ok(self.kernels.launch(
            stream,
            logits,
            (&parameters, adjustments),
            rows.steps,
            &mut self.workspace,
            (chosen, logprobs),
        )?)
    }

    /// What was chosen for the first `rows` rows: tokens, and natural logarithms of their
    /// probabilities.
    pub(super) fn chosen(
        &self,
        rows: usize,
    ) -> std::result::Result<(DeviceSlice<'_, i32>, DeviceSlice<'_, f32>), CudaError> {
        Ok((self.chosen.slice().range(0, rows)?, self.logprobs.slice().range(0, rows)?))
    }
}

/// The launches of a step to which a row is added.
fn with(steps: SampleSteps, choice: &Choice<'_>) -> SampleSteps {
    let params = choice.sampler.params();
    let draws = params.temperature > 0.0;
    SampleSteps {
        draws: steps.draws || draws,
        top_k: steps.top_k || (draws && params.top_k > 0),
        top_p: steps.top_p || (draws && params.top_p < 1.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sections_do_not_overlap_and_are_aligned() {
        for rows_max in [1, 3, 64, 256] {
            let layout = SamplingLayout { rows_max, vocabulary: 100 };
            let sections = [
                (Section::Sources, rows_max),
                (Section::Temperatures, rows_max),
                (Section::TopKs, rows_max),
                (Section::TopPs, rows_max),
                (Section::Least, rows_max),
                (Section::Uniforms, 2 * rows_max),
                (Section::Penalties, 3 * rows_max),
                (Section::Starts, rows_max + 1),
                (Section::Masks, rows_max),
            ];
            let mut end = 0;
            for (section, len) in sections {
                let start = layout.start(section);
                assert!(start >= end && start.is_multiple_of(ALIGNMENT), "{section:?} at {start}");
                end = start + len;
            }
            assert!(layout.start(Section::Entries) >= end);
            assert!(layout.entries_of_row() * rows_max <= ENTRIES_MAX);
        }
    }
}
