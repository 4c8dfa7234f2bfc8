//! Who owns which block of the cache, and which blocks can be used again for the same text.
//!
//! A block is in one of three states:
//! - owned: some sequences hold it, one reference each;
//! - kept: nobody holds it, but it is full and known by the hash of its text. It is given to the
//!   next sequence with that text, or emptied when memory is needed, the longest unused first;
//! - free: nothing of worth is in it.

use std::collections::hash_map::RandomState;
use std::collections::{BTreeMap, HashMap};
use std::hash::BuildHasher;

use artel_model::{BLOCK_TOKENS, BlockId};

/// Stands for a block's tokens and everything before them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct BlockHash([u64; 2]);

/// Makes the hashes of one engine. Its keys are drawn at random, so that nobody can make up two
/// texts with the same hash; 128 bits are enough that it does not happen by chance.
#[derive(Debug, Default)]
pub(crate) struct BlockHasher([RandomState; 2]);

impl BlockHasher {
    /// Extends `hashes`, one for each full block, to all full blocks of `tokens`.
    pub(crate) fn extend(&self, hashes: &mut Vec<BlockHash>, tokens: &[u32]) {
        for block in tokens.chunks_exact(BLOCK_TOKENS).skip(hashes.len()) {
            let text = (hashes.last(), block);
            hashes.push(BlockHash([self.0[0].hash_one(text), self.0[1].hash_one(text)]));
        }
    }
}

/// The blocks of a cache.
#[derive(Debug)]
pub(crate) struct BlockManager {
    blocks: Vec<Block>,
    free: Vec<BlockId>,
    by_hash: HashMap<BlockHash, BlockId>,
    /// Kept blocks by the time at which they lost their last owner.
    kept: BTreeMap<u64, BlockId>,
    clock: u64,
}

#[derive(Debug, Clone, Default)]
struct Block {
    owners: u32,
    hash: Option<BlockHash>,
    /// Its key among the kept blocks.
    kept_since: u64,
}

impl BlockManager {
    /// So many free blocks.
    pub(crate) fn new(blocks: usize) -> Self {
        Self {
            blocks: vec![Block::default(); blocks],
            free: (0..blocks as BlockId).rev().collect(),
            by_hash: HashMap::new(),
            kept: BTreeMap::new(),
            clock: 0,
        }
    }

    /// All blocks.
    pub(crate) fn total(&self) -> usize {
        self.blocks.len()
    }

    /// Blocks that can be had: free and kept ones.
    pub(crate) fn available(&self) -> usize {
        self.free.len() + self.kept.len()
    }

    /// Blocks that hold the beginning of a text with these hashes, and how many of them nobody
    /// owns.
    pub(crate) fn find(&self, hashes: &[BlockHash]) -> (Vec<BlockId>, usize) {
        let found = hashes.iter().map_while(|hash| self.by_hash.get(hash)).copied();
        let found: Vec<BlockId> = found.collect();
        let kept = found.iter().filter(|block| self.blocks[**block as usize].owners == 0).count();
        (found, kept)
    }

    /// Adds an owner to a block that was found.
    pub(crate) fn share(&mut self, id: BlockId) {
        let block = &mut self.blocks[id as usize];
        if block.owners == 0 {
            let kept = self.kept.remove(&block.kept_since);
            assert_eq!(kept, Some(id), "this is a bug: a block without owner is shared");
        }
        block.owners += 1;
    }

    /// A block for new tokens: a free one, or else the longest kept one, which is forgotten.
    pub(crate) fn allocate(&mut self) -> Option<BlockId> {
        let id = self.free.pop().or_else(|| self.forget_oldest())?;
        self.blocks[id as usize].owners = 1;
        Some(id)
    }

    fn forget_oldest(&mut self) -> Option<BlockId> {
        let (_, id) = self.kept.pop_first()?;
        if let Some(hash) = self.blocks[id as usize].hash.take() {
            self.by_hash.remove(&hash);
        }
        Some(id)
    }

    /// Makes an owned, full block known by its hash. A second block with the same text stays
    /// unknown.
    pub(crate) fn register(&mut self, id: BlockId, hash: BlockHash) {
        let block = &mut self.blocks[id as usize];
        assert!(block.owners > 0, "this is a bug: block {id} is registered without an owner");
        if block.hash.is_none() && !self.by_hash.contains_key(&hash) {
            block.hash = Some(hash);
            self.by_hash.insert(hash, id);
        }
    }

    /// Takes an owner from each of a sequence's blocks. The last ones are forgotten first, as
    /// others are of no use without those before them.
    pub(crate) fn release(&mut self, blocks: &[BlockId]) {
        for &id in blocks.iter().rev() {
            let block = &mut self.blocks[id as usize];
            assert!(block.owners > 0, "this is a bug: block {id} is released twice");
            block.owners -= 1;
            if block.owners > 0 {
                continue;
            }
            if block.hash.is_some() {
                self.clock += 1;
                block.kept_since = self.clock;
                self.kept.insert(self.clock, id);
            } else {
                self.free.push(id);
            }
        }
    }

    /// Panics unless every block is in exactly one state and `owned`, the blocks of all sequences,
    /// accounts for every owner.
    #[cfg(test)]
    pub(crate) fn check_integrity<'a>(&self, owned: impl IntoIterator<Item = &'a [BlockId]>) {
        let mut owners = vec![0; self.total()];
        owned.into_iter().flatten().for_each(|&id| owners[id as usize] += 1);
        let mut states = vec![0; self.total()];
        for &id in self.free.iter().chain(self.kept.values()) {
            states[id as usize] += 1;
        }
        for (id, block) in self.blocks.iter().enumerate() {
            assert_eq!(block.owners, owners[id], "owners of block {id}");
            assert_eq!(states[id], u32::from(block.owners == 0), "lists that hold block {id}");
            if let Some(hash) = block.hash {
                assert_eq!(self.by_hash[&hash] as usize, id);
            }
        }
        let known = self.blocks.iter().filter(|block| block.hash.is_some()).count();
        assert_eq!(self.by_hash.len(), known);
        assert!(self.free.iter().all(|&id| self.blocks[id as usize].hash.is_none()));
        assert!(self.kept.iter().all(|(time, &id)| self.blocks[id as usize].kept_since == *time));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn hashes(tokens: &[u32]) -> Vec<BlockHash> {
        thread_local!(static HASHER: BlockHasher = BlockHasher::default());
        let mut hashes = Vec::new();
        HASHER.with(|hasher| hasher.extend(&mut hashes, tokens));
        hashes
    }

    #[test]
    fn a_hash_stands_for_everything_before() {
        let text: Vec<u32> = (0..64).collect();
        let whole = hashes(&text);
        assert_eq!(whole.len(), 4);
        assert_eq!(hashes(&text[..63]), whole[..3]);
        let mut other = text.clone();
        other[0] = 9;
        assert!(hashes(&other).iter().zip(&whole).all(|(a, b)| a != b));
        other[..16].copy_from_slice(&text[16..32]);
        assert_ne!(hashes(&other)[0], whole[1], "the same tokens elsewhere");
    }

    #[test]
    fn the_longest_unused_and_the_last_of_a_text_are_forgotten_first() {
        let mut manager = BlockManager::new(4);
        let (first, second) = (hashes(&[1; 32]), hashes(&[2; 32]));
        for hashes in [&first, &second] {
            let blocks: Vec<BlockId> = (0..2).map(|_| manager.allocate().unwrap()).collect();
            blocks.iter().zip(hashes).for_each(|(&id, &hash)| manager.register(id, hash));
            manager.release(&blocks);
        }
        let (found, kept) = manager.find(&first);
        assert_eq!((found.len(), kept, manager.available()), (2, 2, 4));
        manager.share(found[0]);
        let taken = manager.allocate().unwrap();
        assert_eq!((taken, manager.find(&first).0.len()), (found[1], 1));
        let taken = [taken, manager.allocate().unwrap()];
        assert_eq!(manager.find(&second).0.len(), 1, "its second block went");
        manager.check_integrity([&found[..1], &taken]);
        assert!(manager.allocate().is_some() && manager.allocate().is_none());
    }

    /// What some sequences do with the blocks.
    #[derive(Debug, Clone)]
    enum Action {
        /// A sequence whose text is one of a few comes.
        Begin { text: u32, blocks: usize },
        /// One of those that are there gets a block more.
        Grow(usize),
        /// One of those that are there goes.
        End(usize),
    }

    fn action() -> impl Strategy<Value = Action> {
        prop_oneof![
            (0..4u32, 1..7usize).prop_map(|(text, blocks)| Action::Begin { text, blocks }),
            (0..20usize).prop_map(Action::Grow),
            (0..20usize).prop_map(Action::End),
        ]
    }

    proptest! {
        #[test]
        fn no_block_is_lost_or_given_twice(
            total in 1..24usize,
            actions in prop::collection::vec(action(), 0..120),
        ) {
            let mut manager = BlockManager::new(total);
            let mut sequences: Vec<(Vec<BlockHash>, Vec<BlockId>)> = Vec::new();
            for action in actions {
                match action {
                    Action::Begin { text, blocks } => {
                        let text: Vec<u32> = (0..160).map(|i| if i < 32 { 0 } else { text }).collect();
                        let hashes = hashes(&text);
                        let (mut held, kept) = manager.find(&hashes[..blocks]);
                        if manager.available() - kept < blocks - held.len() {
                            continue;
                        }
                        held.iter().for_each(|&id| manager.share(id));
                        while held.len() < blocks {
                            let id = manager.allocate().unwrap();
                            manager.register(id, hashes[held.len()]);
                            held.push(id);
                        }
                        sequences.push((hashes, held));
                    }
                    Action::Grow(index) => {
                        let count = sequences.len().max(1);
                        let Some((hashes, held)) = sequences.get_mut(index % count) else { continue };
                        let available = manager.available();
                        let block = manager.allocate();
                        prop_assert_eq!(block.is_some(), available > 0);
                        held.extend(block);
                        if let (Some(id), Some(&hash)) = (block, hashes.get(held.len() - 1)) {
                            manager.register(id, hash);
                        }
                    }
                    Action::End(index) if index < sequences.len() => {
                        manager.release(&sequences.swap_remove(index).1);
                    }
                    Action::End(_) => {}
                }
                manager.check_integrity(sequences.iter().map(|(_, held)| &held[..]));
            }
            sequences.iter().for_each(|(_, held)| manager.release(held));
            prop_assert_eq!(manager.available(), total);
        }
    }
}
