use artel_model::{BLOCK_TOKENS, KvCache};

use crate::runner::RunnerInfo;
use crate::{EngineError, Result};

/// Most memory that keys and values take unless the caller wants otherwise or one sequence of full
/// length needs more.
const KV_CACHE_MEMORY: usize = 4 << 30;

/// Sizes of an engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EngineConfig {
    /// Requests that run at the same time; others wait.
    pub max_num_seqs: usize,
    /// Tokens of one step, prompts and answers together; at least `max_num_seqs`. Answers come
    /// first, and a longer prompt is computed in pieces.
    pub max_num_batched_tokens: usize,
    /// Tokens of a request, prompt and answer together. `usize::MAX` is what the model and the
    /// memory allow.
    pub max_model_len: usize,
    /// Bytes for keys and values. `None`: on a device what it has left; on the host, where memory is
    /// taken as they fill, every running request at full length, but no more than 4 GiB unless a
    /// single one needs more.
    pub kv_cache_memory: Option<usize>,
    /// Requests that wait; more are refused.
    pub max_waiting: usize,
    /// Whether prompts that begin alike share what has been computed.
    pub prefix_caching: bool,
}

impl Default for EngineConfig {
    fn default() -> Self {
        Self {
            max_num_seqs: 64,
            max_num_batched_tokens: 512,
            max_model_len: usize::MAX,
            kv_cache_memory: None,
            max_waiting: 1024,
            prefix_caching: true,
        }
    }
}

impl EngineConfig {
    /// Sizes for requests that are all known beforehand: so many run at the same time, and none is
    /// refused because others wait.
    pub fn offline(max_num_seqs: usize) -> Self {
        let usual = Self::default();
        let max_num_batched_tokens = usual.max_num_batched_tokens.max(max_num_seqs);
        Self { max_num_seqs, max_num_batched_tokens, max_waiting: usize::MAX, ..usual }
    }

    /// Checks the sizes against each other and the model; returns them with the real
    /// `max_model_len`, and the number of blocks.
    pub(crate) fn resolve(self, info: &RunnerInfo) -> Result<(Self, usize)> {
        let sizes = [
            ("max_num_seqs", self.max_num_seqs),
            ("max_num_batched_tokens", self.max_num_batched_tokens),
            ("max_model_len", self.max_model_len),
            ("max_waiting", self.max_waiting),
        ];
        if let Some((field, size)) = sizes.into_iter().find(|&(_, size)| size == 0) {
            return Err(EngineError::invalid(field, size, "at least 1"));
        }
        if self.max_num_batched_tokens < self.max_num_seqs {
            let allowed = format!("at least max_num_seqs, {}", self.max_num_seqs);
            let tokens = self.max_num_batched_tokens;
            return Err(EngineError::invalid("max_num_batched_tokens", tokens, allowed));
        }
        let wanted = self.max_model_len.min(info.max_positions);
        let block_bytes = BLOCK_TOKENS * info.kv_bytes_per_token;
        let one = KvCache::blocks_for(wanted);
        let memory = self.kv_cache_memory.or(info.kv_cache_memory);
        let blocks = match memory {
            Some(bytes) => bytes / block_bytes,
            None => {
                one.saturating_mul(self.max_num_seqs).min(one.max(KV_CACHE_MEMORY / block_bytes))
            }
        };
        let fits = blocks * BLOCK_TOKENS;
        let asked_for_more = self.max_model_len != usize::MAX && wanted > fits;
        if let Some(bytes) = memory
            && (blocks == 0 || asked_for_more)
        {
            let tokens = if asked_for_more { wanted } else { BLOCK_TOKENS };
            let needed = KvCache::blocks_for(tokens) * block_bytes;
            let allowed = format!("at least {needed} bytes to hold {tokens} tokens");
            return Err(EngineError::invalid("kv_cache_memory", bytes, allowed));
        }
        Ok((Self { max_model_len: wanted.min(fits), ..self }, blocks))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INFO: RunnerInfo = RunnerInfo {
        vocabulary: 100,
        max_positions: 1000,
        kv_bytes_per_token: 1 << 20,
        kv_cache_memory: None,
    };

    #[test]
    fn memory_for_everybody_but_not_without_end() {
        let config = EngineConfig { max_num_seqs: 2, ..EngineConfig::default() };
        let (resolved, blocks) = config.resolve(&INFO).unwrap();
        assert_eq!((resolved.max_model_len, blocks), (1000, 126));
        let (_, blocks) = EngineConfig::default().resolve(&INFO).unwrap();
        assert_eq!(blocks * BLOCK_TOKENS, 4 << 10);
        let long = RunnerInfo { max_positions: 10_000, ..INFO };
        let (resolved, blocks) = EngineConfig::default().resolve(&long).unwrap();
        assert_eq!((resolved.max_model_len, blocks), (10_000, 625));
    }

    #[test]
    fn little_memory_means_short_requests() {
        let config = EngineConfig { kv_cache_memory: Some(100 << 20), ..EngineConfig::default() };
        let (resolved, blocks) = config.resolve(&INFO).unwrap();
        assert_eq!((resolved.max_model_len, blocks), (96, 6));
        let fits = EngineConfig { max_model_len: 90, ..config };
        assert_eq!(fits.resolve(&INFO).unwrap().0.max_model_len, 90);
        let long = EngineConfig { max_model_len: 97, ..config };
        let why = long.resolve(&INFO).unwrap_err().to_string();
        assert!(why.contains("117440512 bytes to hold 97 tokens"), "{why}");
        let none = EngineConfig { kv_cache_memory: Some(1000), ..config };
        assert!(none.resolve(&INFO).unwrap_err().to_string().contains("16777216"));
    }

    #[test]
    fn a_device_says_what_it_has_left() {
        let device = RunnerInfo { kv_cache_memory: Some(100 << 20), ..INFO };
        let (resolved, blocks) = EngineConfig::default().resolve(&device).unwrap();
        assert_eq!((resolved.max_model_len, blocks), (96, 6));
        let asked = EngineConfig { kv_cache_memory: Some(32 << 20), ..EngineConfig::default() };
        assert_eq!(asked.resolve(&device).unwrap().1, 2);
        let full = RunnerInfo { kv_cache_memory: Some(0), ..INFO };
        let why = EngineConfig::default().resolve(&full).unwrap_err().to_string();
        assert!(why.starts_with("kv_cache_memory is 0"), "{why}");
    }

    #[test]
    fn impossible_sizes_are_named() {
        let usual = EngineConfig::default();
        for (config, field) in [
            (EngineConfig { max_num_seqs: 0, ..usual }, "max_num_seqs"),
            (EngineConfig { max_num_batched_tokens: 0, ..usual }, "max_num_batched_tokens"),
            (EngineConfig { max_num_batched_tokens: 63, ..usual }, "max_num_batched_tokens"),
            (EngineConfig { max_model_len: 0, ..usual }, "max_model_len"),
            (EngineConfig { max_waiting: 0, ..usual }, "max_waiting"),
        ] {
            let why = config.resolve(&INFO).unwrap_err().to_string();
            assert!(why.starts_with(field), "{why}");
        }
    }
}
