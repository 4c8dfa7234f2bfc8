use serde_json::{Map, Value};

use crate::config::ConfigReader;
use crate::{Checkpoint, Result};

const FILE: &str = "generation_config.json";

/// How the authors of a checkpoint mean it to be sampled: `generation_config.json`, with the end
/// tokens of `config.json` where it has none.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct GenerationConfig {
    /// Tokens that end an answer.
    pub end_tokens: Vec<u32>,
    /// `temperature`; absent when the authors gave none.
    pub temperature: Option<f64>,
    /// `top_k`, 0 for no limit.
    pub top_k: Option<usize>,
    /// `top_p`.
    pub top_p: Option<f64>,
    /// `min_p`.
    pub min_p: Option<f64>,
    /// `repetition_penalty`.
    pub repetition_penalty: Option<f64>,
    /// `do_sample`: `false` asks for greedy decoding.
    pub samples: Option<bool>,
}

impl GenerationConfig {
    /// Reads the settings of a checkpoint; without `generation_config.json` only the end tokens.
    ///
    /// # Errors
    /// When a field has a value of the wrong kind.
    pub fn read(checkpoint: &Checkpoint) -> Result<Self> {
        let object = checkpoint.find_json(FILE)?.unwrap_or_default();
        let mut read = Self::from_object(checkpoint.describe(FILE), &object)?;
        if read.end_tokens.is_empty() {
            read.end_tokens = end_tokens(&checkpoint.config())?;
        }
        Ok(read)
    }

    fn from_object(file: String, object: &Map<String, Value>) -> Result<Self> {
        let config = ConfigReader::new(file, object);
        Ok(Self {
            end_tokens: end_tokens(&config)?,
            temperature: config.optional_number("temperature")?,
            top_k: config.has("top_k").then(|| config.count_or_zero("top_k")).transpose()?,
            top_p: config.optional_number("top_p")?,
            min_p: config.optional_number("min_p")?,
            repetition_penalty: config.optional_number("repetition_penalty")?,
            samples: config.has("do_sample").then(|| config.flag("do_sample")).transpose()?,
        })
    }
}

/// `eos_token_id` is one id, a list of ids, or absent.
fn end_tokens(config: &ConfigReader<'_>) -> Result<Vec<u32>> {
    const FIELD: &str = "eos_token_id";
    let id = |value: &Value| u32::try_from(value.as_u64()?).ok();
    let ids = match config.value(FIELD) {
        None => return Ok(Vec::new()),
        Some(Value::Array(ids)) => ids.iter().map(id).collect(),
        Some(value) => id(value).map(|id| vec![id]),
    };
    ids.ok_or_else(|| config.error(FIELD, "a token id or a list of token ids"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn checkpoint(generation: Option<&Value>) -> Checkpoint {
        let leak = |value: Value| -> &'static [u8] { value.to_string().into_bytes().leak() };
        let mut files = vec![
            ("config.json", leak(json!({"eos_token_id": 7}))),
            ("model.safetensors", &b"\x02\0\0\0\0\0\0\0{}"[..]),
        ];
        files.extend(generation.map(|value| (FILE, leak(value.clone()))));
        Checkpoint::from_static("test", &files).unwrap()
    }

    #[test]
    fn settings_are_read() {
        let object = json!({"eos_token_id": [3, 5], "temperature": 0.6, "top_k": 20, "top_p": 0.95,
                            "min_p": null, "do_sample": true, "transformers_version": "5"});
        let expected = GenerationConfig {
            end_tokens: vec![3, 5],
            temperature: Some(0.6),
            top_k: Some(20),
            top_p: Some(0.95),
            min_p: None,
            repetition_penalty: None,
            samples: Some(true),
        };
        assert_eq!(GenerationConfig::read(&checkpoint(Some(&object))).unwrap(), expected);
    }

    #[test]
    fn the_end_token_of_the_model_is_the_fallback() {
        for generation in [None, Some(&json!({"temperature": 1}))] {
            let read = GenerationConfig::read(&checkpoint(generation)).unwrap();
            assert_eq!(read.end_tokens, [7]);
        }
    }

    #[test]
    fn wrong_settings_are_named() {
        let wrong = [
            ("eos_token_id", json!(-1)),
            ("eos_token_id", json!([1, "x"])),
            ("temperature", json!("hot")),
            ("top_k", json!(-5)),
            ("do_sample", json!(1)),
        ];
        for (field, value) in wrong {
            let error = GenerationConfig::read(&checkpoint(Some(&json!({field: value}))));
            let error = error.unwrap_err().to_string();
            assert!(error.contains(&format!("test/generation_config.json: {field}")), "{error}");
        }
    }
}
