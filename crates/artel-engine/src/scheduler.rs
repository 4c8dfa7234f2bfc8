//! Which tokens a step computes, and who gets memory for them.
//!
//! 1. Every sequence that decodes gets its token. When no block is left for it, the last sequence
//!    in the order of [`Key`] gives all of its blocks back and begins anew later.
//! 2. What is left of the step goes to the prompts that run, in order.
//! 3. Then requests that wait get a place, in order, as long as there are places, tokens and blocks
//!    for all they know. What another request has computed already is shared.
//!
//! Example: a step of 8 tokens; two sequences decode, one has 20 tokens of its prompt left: the
//! step computes 1, 1 and 6 tokens.

use std::collections::BTreeMap;

use artel_model::{BLOCK_TOKENS, KvCache};

use crate::EngineConfig;
use crate::blocks::{BlockHasher, BlockManager};
use crate::sequence::{Key, Sequence};

/// One block of so many stays free when a request is admitted, so that it need not give way to the
/// next block of another at once.
const BLOCKS_PER_SPARE: usize = 100;

/// Everything that is known about requests.
pub(crate) struct Scheduler {
    config: EngineConfig,
    pub(crate) blocks: BlockManager,
    hasher: BlockHasher,
    pub(crate) waiting: BTreeMap<Key, Box<Sequence>>,
    pub(crate) running: BTreeMap<Key, Box<Sequence>>,
    pub(crate) counters: Counters,
}

/// What happened since the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Counters {
    pub(crate) preemptions: u64,
    pub(crate) prefix_cache_queries: u64,
    pub(crate) prefix_cache_hits: u64,
    pub(crate) prompt_tokens: u64,
    pub(crate) generated_tokens: u64,
}

/// A sequence that takes part in a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Scheduled {
    pub(crate) key: Key,
    /// New tokens.
    pub(crate) tokens: usize,
    /// Tokens of the sequence that are computed after the step.
    pub(crate) computed: usize,
}

impl Scheduled {
    fn new(key: Key, sequence: &Sequence, tokens: usize) -> Self {
        Self { key, tokens, computed: sequence.computed + tokens }
    }
}

impl Scheduler {
    pub(crate) fn new(config: EngineConfig, blocks: usize) -> Self {
        Self {
            config,
            blocks: BlockManager::new(blocks),
            hasher: BlockHasher::default(),
            waiting: BTreeMap::new(),
            running: BTreeMap::new(),
            counters: Counters::default(),
        }
    }

    /// Chooses the tokens of a step; every sequence owns the blocks for its tokens then.
    pub(crate) fn schedule(&mut self) -> Vec<Scheduled> {
        let preemptions = self.counters.preemptions;
        let mut schedule = self.decodes();
        let decoding = schedule.len();
        let mut left = self.config.max_num_batched_tokens - decoding;
        for (&key, sequence) in self.running.iter().filter(|(_, running)| running.pending() > 1) {
            let tokens = sequence.pending().min(left);
            left -= tokens;
            schedule.extend((tokens > 0).then(|| Scheduled::new(key, sequence, tokens)));
        }
        // Who has just given way would take the blocks back.
        if preemptions == self.counters.preemptions {
            while left > 0
                && let Some(admitted) = self.admit(left)
            {
                left -= admitted.tokens;
                schedule.push(admitted);
            }
        }
        schedule
    }

    /// One token for every sequence that decodes.
    fn decodes(&mut self) -> Vec<Scheduled> {
        let decoding = self.running.iter().filter(|(_, sequence)| sequence.pending() == 1);
        let keys: Vec<Key> = decoding.map(|(&key, _)| key).collect();
        let mut schedule = Vec::with_capacity(keys.len());
        for key in keys {
            if self.make_room(key) {
                schedule.push(Scheduled::new(key, &self.running[&key], 1));
            }
        }
        schedule
    }

    /// Sees to it that a decoding sequence has a block for its token, at the cost of those behind
    /// it; `false` when it had to give way itself.
    fn make_room(&mut self, key: Key) -> bool {
        loop {
            let Some(sequence) = self.running.get_mut(&key) else { return false };
            if sequence.computed < sequence.blocks.len() * BLOCK_TOKENS {
                return true;
            }
            if let Some(block) = self.blocks.allocate() {
                sequence.blocks.push(block);
                return true;
            }
            self.preempt_last();
        }
    }

    fn preempt_last(&mut self) {
        let last = self.running.pop_last();
        let (key, mut sequence) = last.expect("this is a bug: nobody to take blocks from");
        tracing::debug!("{} gives way: no block is left", key.id);
        self.counters.preemptions += 1;
        self.blocks.release(&std::mem::take(&mut sequence.blocks));
        sequence.preempt();
        self.waiting.insert(key, sequence);
    }

    /// Gives the first request that waits a place and up to `left` tokens, if all it knows fits.
    fn admit(&mut self, left: usize) -> Option<Scheduled> {
        if self.running.len() >= self.config.max_num_seqs {
            return None;
        }
        let mut first = self.waiting.first_entry()?;
        let sequence = first.get_mut();
        let (shared, kept) = match self.config.prefix_caching {
            true => self.blocks.find(sequence.shareable(&self.hasher)),
            false => (Vec::new(), 0),
        };
        let needed = KvCache::blocks_for(sequence.tokens.len()) - shared.len();
        let spare = match self.running.is_empty() {
            true => 0,
            false => self.blocks.total().div_ceil(BLOCKS_PER_SPARE),
        };
        if self.blocks.available() < needed + kept + spare {
            return None;
        }
        let (key, mut sequence) = first.remove_entry();
        shared.iter().for_each(|&block| self.blocks.share(block));
        let cached = shared.len() * BLOCK_TOKENS;
        sequence.blocks = shared;
        sequence.blocks.extend((0..needed).map_while(|_| self.blocks.allocate()));
        self.counters.prompt_tokens += sequence.admit(cached) as u64;
        self.counters.prefix_cache_queries += sequence.tokens.len() as u64;
        self.counters.prefix_cache_hits += cached as u64;
        let scheduled = Scheduled::new(key, &sequence, sequence.pending().min(left));
        self.running.insert(key, sequence);
        Some(scheduled)
    }

    /// Makes the blocks that a step has filled known to later requests; `computed` tokens of the
    /// sequence are in them.
    pub(crate) fn register(&mut self, key: Key, computed: usize) {
        let Some(sequence) = self.running.get_mut(&key) else { return };
        let full = computed / BLOCK_TOKENS;
        if self.config.prefix_caching && sequence.registered < full {
            self.hasher.extend(&mut sequence.hashes, &sequence.tokens[..full * BLOCK_TOKENS]);
            for index in sequence.registered..full {
                self.blocks.register(sequence.blocks[index], sequence.hashes[index]);
            }
            sequence.registered = full;
        }
    }

    /// Takes a request out; its blocks are free.
    pub(crate) fn remove(&mut self, key: Key) -> Option<Box<Sequence>> {
        let mut sequence = self.running.remove(&key).or_else(|| self.waiting.remove(&key))?;
        self.blocks.release(&std::mem::take(&mut sequence.blocks));
        Some(sequence)
    }

    /// The requests for which this holds.
    pub(crate) fn select(&self, holds: impl Fn(&Sequence) -> bool) -> Vec<Key> {
        let all = self.running.iter().chain(&self.waiting);
        all.filter(|(_, sequence)| holds(sequence)).map(|(&key, _)| key).collect()
    }

    /// Panics when a block is lost, owned twice by one sequence or not accounted for.
    #[cfg(test)]
    pub(crate) fn check_integrity(&self) {
        self.blocks.check_integrity(self.running.values().map(|sequence| &sequence.blocks[..]));
        for sequence in self.running.values() {
            let own: std::collections::BTreeSet<_> = sequence.blocks.iter().collect();
            assert_eq!(own.len(), sequence.blocks.len());
            assert!(sequence.computed <= sequence.blocks.len() * BLOCK_TOKENS);
        }
        assert!(self.waiting.values().all(|waiting| waiting.blocks.is_empty()));
    }
}
