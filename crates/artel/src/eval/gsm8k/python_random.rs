//! The random numbers of Python's `random` module, so that examples are drawn as the harness draws
//! them: MT19937 (Matsumoto and Nishimura, 1998) seeded by an array, and `random.sample`.

const WORDS: usize = 624;
const OFFSET: usize = 397;

/// `random.Random(seed)`.
pub(super) struct PythonRandom {
    state: [u32; WORDS],
    next: usize,
}

impl PythonRandom {
    /// The generator for a seed that is not negative.
    pub(super) fn new(seed: u64) -> Self {
        let (low, high) = (seed as u32, (seed >> 32) as u32);
        let key = [low, high];
        Self::by_array(if high == 0 { &key[..1] } else { &key })
    }

    fn by_array(key: &[u32]) -> Self {
        let mut state = [19_650_218u32; WORDS];
        for i in 1..WORDS {
            state[i] = scrambled(state[i - 1]).wrapping_mul(1_812_433_253).wrapping_add(i as u32);
        }
        let mut i = 1;
        for round in 0..WORDS.max(key.len()) {
            let j = round % key.len();
            let mixed = state[i] ^ scrambled(state[i - 1]).wrapping_mul(1_664_525);
            state[i] = mixed.wrapping_add(key[j]).wrapping_add(j as u32);
            i = advance(&mut state, i);
        }
        for _ in 1..WORDS {
            let mixed = state[i] ^ scrambled(state[i - 1]).wrapping_mul(1_566_083_941);
            state[i] = mixed.wrapping_sub(i as u32);
            i = advance(&mut state, i);
        }
        state[0] = 1 << 31;
        Self { state, next: WORDS }
    }

    /// The next 32 random bits.
    pub(super) fn next_u32(&mut self) -> u32 {
        if self.next == WORDS {
            self.twist();
        }
        let mut word = self.state[self.next];
        self.next += 1;
        word ^= word >> 11;
        word ^= word << 7 & 0x9d2c_5680;
        word ^= word << 15 & 0xefc6_0000;
        word ^ word >> 18
    }

    fn twist(&mut self) {
        for i in 0..WORDS {
            let high = self.state[i] & 1 << 31;
            let word = high | self.state[(i + 1) % WORDS] & !(1 << 31);
            let odd = if word & 1 == 1 { 0x9908_b0df } else { 0 };
            self.state[i] = self.state[(i + OFFSET) % WORDS] ^ word >> 1 ^ odd;
        }
        self.next = 0;
    }

    /// An index below `bound`: as many bits as it has, drawn again when they are too many.
    fn below(&mut self, bound: usize) -> usize {
        let bits = usize::BITS - bound.leading_zeros();
        assert!((1..=32).contains(&bits), "this is a bug: {bound} is no size of a training set");
        loop {
            let index = (self.next_u32() >> (32 - bits)) as usize;
            if index < bound {
                return index;
            }
        }
    }

    /// `random.sample(range(population), count)`: `count` different indices.
    ///
    /// Python picks from a list when that is smaller than the set of what was picked would be; the
    /// two ways consume the same numbers but give different indices, so both are here.
    pub(super) fn sample(&mut self, population: usize, count: usize) -> Vec<usize> {
        assert!(count <= population, "this is a bug: {count} of {population} were asked for");
        if population <= set_size(count) {
            let mut pool: Vec<usize> = (0..population).collect();
            let picks = (0..count).map(|taken| {
                let left = population - taken;
                let at = self.below(left);
                let picked = pool[at];
                pool[at] = pool[left - 1];
                picked
            });
            return picks.collect();
        }
        let mut picked = Vec::with_capacity(count);
        while picked.len() < count {
            let index = self.below(population);
            if !picked.contains(&index) {
                picked.push(index);
            }
        }
        picked
    }
}

/// Python's estimate of the slots that a set of `count` numbers takes.
fn set_size(count: usize) -> usize {
    let mut table = 1;
    while table < 3 * count {
        table *= 4;
    }
    if count > 5 { 21 + table } else { 21 }
}

fn scrambled(word: u32) -> u32 {
    word ^ word >> 30
}

/// The next place of the seeding, which carries the last word over to the first.
fn advance(state: &mut [u32; WORDS], i: usize) -> usize {
    if i + 1 < WORDS {
        return i + 1;
    }
    state[0] = state[WORDS - 1];
    1
}
