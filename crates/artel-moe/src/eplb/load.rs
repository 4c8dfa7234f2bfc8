/// Tokens that each physical expert has computed.
#[derive(Debug, Clone, Default)]
pub struct ExpertLoad {
    counts: Vec<i32>,
    recording: bool,
}

impl ExpertLoad {
    /// Switches recording on or off.
    pub fn record(&mut self, recording: bool) {
        self.recording = recording;
    }

    /// The counts, `[P]`, and whether to add to them.
    pub(crate) fn counts(&mut self, physical_experts: usize) -> (&mut [i32], bool) {
        self.counts.resize(physical_experts, 0);
        (&mut self.counts, self.recording)
    }

    /// Counts pairs by their experts, ids beyond the experts left out.
    pub(crate) fn add(&mut self, experts: usize, ids: &[i32]) {
        let (counts, recording) = self.counts(experts);
        if recording {
            for &id in ids {
                let count = usize::try_from(id).ok().and_then(|id| counts.get_mut(id));
                count.into_iter().for_each(|count| *count += 1);
            }
        }
    }

    /// Takes the counts since the last time.
    pub fn take(&mut self) -> Vec<i32> {
        std::mem::take(&mut self.counts)
    }
}
