//! The tokens that may come next.

/// One bit a token of the vocabulary: whether it is allowed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenMask {
    words: Vec<u32>,
    vocabulary: usize,
}

impl TokenMask {
    /// A mask that allows nothing.
    pub fn none(vocabulary: usize) -> Self {
        Self { words: vec![0; vocabulary.div_ceil(32)], vocabulary }
    }

    /// Tokens of the vocabulary.
    pub fn vocabulary(&self) -> usize {
        self.vocabulary
    }

    /// Allows one token; one beyond the vocabulary stays unheard of.
    pub fn allow(&mut self, id: u32) {
        if (id as usize) < self.vocabulary {
            self.words[id as usize / 32] |= 1 << (id % 32);
        }
    }

    /// Allows every token.
    pub fn allow_all(&mut self) {
        self.words.fill(u32::MAX);
    }

    /// Forbids every token.
    pub fn clear(&mut self) {
        self.words.fill(0);
    }

    /// Whether the token may come.
    pub fn is_allowed(&self, id: u32) -> bool {
        (id as usize) < self.vocabulary && self.words[id as usize / 32] >> (id % 32) & 1 == 1
    }

    /// Whether nothing may come.
    pub fn is_empty(&self) -> bool {
        !(0..self.vocabulary as u32).any(|id| self.is_allowed(id))
    }

    /// The bits, as [`words_mut`](Self::words_mut) has them.
    pub fn words(&self) -> &[u32] {
        &self.words
    }

    /// The bits: token `id` is bit `id % 32` of word `id / 32`. Bits beyond the vocabulary mean
    /// nothing.
    pub fn words_mut(&mut self) -> &mut [u32] {
        &mut self.words
    }

    /// Makes the logits of all other tokens negative infinity; logits beyond the vocabulary too.
    pub(super) fn apply(&self, logits: &mut [f32]) {
        let words = self.words.iter().copied().chain(std::iter::repeat(0));
        for (logits, word) in logits.chunks_mut(32).zip(words) {
            for (bit, logit) in logits.iter_mut().enumerate() {
                if word >> bit & 1 == 0 {
                    *logit = f32::NEG_INFINITY;
                }
            }
        }
        logits.iter_mut().skip(self.vocabulary).for_each(|logit| *logit = f32::NEG_INFINITY);
    }
}
