//! `config.json` read field by field: every value is checked where it is read, and an error names
//! the field, what it holds and what it should hold.

mod quantization;
mod rope;
#[cfg(test)]
mod tests;

use artel_moe::activation::{Activation, GateLayout};
pub use quantization::{Quantization, Words};
pub use rope::{RotaryPart, latent_attention_mscale, rope_config};
use serde_json::{Map, Value};

use crate::{ModelError, Result};

/// Largest count or dimension that is believed. It is 64 times that of the largest vocabularies
/// and keeps products of three dimensions within 64 bits.
const SIZE_MAX: u64 = 1 << 24;

/// Longest context that is believed.
const POSITIONS_MAX: u64 = 1 << 32;

/// Longest piece of a JSON value that an error repeats.
const SHOWN_CHARACTERS: usize = 80;

/// An object of a JSON file with the way to it, for messages.
#[derive(Debug, Clone)]
pub struct ConfigReader<'a> {
    file: String,
    path: String,
    object: &'a Map<String, Value>,
}

impl<'a> ConfigReader<'a> {
    /// The outermost object of `file`.
    pub fn new(file: String, object: &'a Map<String, Value>) -> Self {
        Self { file, path: String::new(), object }
    }

    /// A field that is present and not null.
    pub fn value(&self, field: &str) -> Option<&'a Value> {
        self.object.get(field).filter(|value| !value.is_null())
    }

    /// Whether the field is present and not null.
    pub fn has(&self, field: &str) -> bool {
        self.value(field).is_some()
    }

    /// Names of all fields.
    pub fn fields(&self) -> impl Iterator<Item = &'a str> {
        self.object.keys().map(String::as_str)
    }

    /// An error about a field of this object.
    pub fn error(&self, field: &str, expected: impl ToString) -> ModelError {
        ModelError::Field {
            file: self.file.clone(),
            field: format!("{}{field}", self.path),
            found: self.object.get(field).map_or_else(|| "missing".to_owned(), shortened),
            expected: expected.to_string(),
        }
    }

    /// An object inside this one, or `None` when it is absent or null.
    pub fn object(&self, field: &str) -> Result<Option<Self>> {
        let Some(value) = self.value(field) else { return Ok(None) };
        let object = value.as_object().ok_or_else(|| self.error(field, "an object"))?;
        let path = format!("{}{field}.", self.path);
        Ok(Some(Self { file: self.file.clone(), path, object }))
    }

    /// A count or dimension: at least 1.
    pub fn size(&self, field: &str) -> Result<usize> {
        self.count(field, 1..=SIZE_MAX)
    }

    /// A count that may be zero.
    pub fn count_or_zero(&self, field: &str) -> Result<usize> {
        if self.has(field) { self.count(field, 0..=SIZE_MAX) } else { Ok(0) }
    }

    /// A count or dimension that may be absent or null.
    pub fn optional_size(&self, field: &str) -> Result<Option<usize>> {
        self.has(field).then(|| self.size(field)).transpose()
    }

    /// A number of positions: at least 1.
    pub fn positions(&self, field: &str) -> Result<usize> {
        self.count(field, 1..=POSITIONS_MAX)
    }

    /// A count or dimension that releases of transformers name differently; the first name that
    /// is present counts.
    pub fn size_of_any(&self, fields: &[&str]) -> Result<usize> {
        let field = fields.iter().find(|field| self.has(field)).unwrap_or(&fields[0]);
        self.size(field)
    }

    fn count(&self, field: &str, allowed: std::ops::RangeInclusive<u64>) -> Result<usize> {
        let found = self.value(field).and_then(Value::as_u64).filter(|n| allowed.contains(n));
        let expected = || format!("a whole number from {} to {}", allowed.start(), allowed.end());
        let found = found.ok_or_else(|| self.error(field, expected()))?;
        usize::try_from(found).map_err(|_| self.error(field, expected()))
    }

    /// A finite number, as float64.
    pub fn number(&self, field: &str) -> Result<f64> {
        let found = self.value(field).and_then(Value::as_f64).filter(|x| x.is_finite());
        found.ok_or_else(|| self.error(field, "a finite number"))
    }

    /// A finite number greater than zero.
    pub fn positive(&self, field: &str) -> Result<f64> {
        let found = self.number(field)?;
        if found > 0.0 { Ok(found) } else { Err(self.error(field, "a number greater than 0")) }
    }

    /// A finite number that may be absent or null.
    pub fn optional_number(&self, field: &str) -> Result<Option<f64>> {
        self.has(field).then(|| self.number(field)).transpose()
    }

    /// `true` or `false`.
    pub fn flag(&self, field: &str) -> Result<bool> {
        let found = self.value(field).and_then(Value::as_bool);
        found.ok_or_else(|| self.error(field, "true or false"))
    }

    /// `true` or `false`; `absent` is what the architecture means when the field is not there.
    pub fn flag_or(&self, field: &str, absent: bool) -> Result<bool> {
        if self.has(field) { self.flag(field) } else { Ok(absent) }
    }

    /// A string.
    pub fn text(&self, field: &str) -> Result<&'a str> {
        let found = self.value(field).and_then(Value::as_str);
        found.ok_or_else(|| self.error(field, "a string"))
    }

    /// A list of strings, or `None` when it is absent or null.
    pub fn texts(&self, field: &str) -> Result<Option<Vec<&'a str>>> {
        self.list(field, "a list of strings", Value::as_str)
    }

    /// A list of counts, empty when it is absent or null.
    pub fn counts(&self, field: &str) -> Result<Vec<usize>> {
        let as_count = |value: &Value| usize::try_from(value.as_u64()?).ok();
        let counts = self.list(field, "a list of whole numbers", as_count)?;
        Ok(counts.unwrap_or_default())
    }

    fn list<T>(
        &self,
        field: &str,
        expected: &str,
        read: impl Fn(&'a Value) -> Option<T>,
    ) -> Result<Option<Vec<T>>> {
        let Some(value) = self.value(field) else { return Ok(None) };
        let items = value.as_array().map(|items| items.iter().map(read).collect());
        let items: Option<Vec<T>> = items.ok_or_else(|| self.error(field, expected))?;
        items.map(Some).ok_or_else(|| self.error(field, expected))
    }
}

/// `rms_norm_eps`.
pub fn rms_norm_epsilon(config: &ConfigReader<'_>) -> Result<f32> {
    Ok(config.positive("rms_norm_eps")? as f32)
}

/// `hidden_act`, the function inside MLPs and experts.
pub fn hidden_activation(config: &ConfigReader<'_>) -> Result<Activation> {
    const FIELD: &str = "hidden_act";
    match config.text(FIELD)?.parse::<Activation>() {
        Ok(activation) if activation.layout() == GateLayout::Halves => Ok(activation),
        Ok(_) => Err(config.error(FIELD, "a function of gate and up")),
        Err(why) => Err(config.error(FIELD, format!("a known function ({why})"))),
    }
}

/// A JSON value as an error shows it.
fn shortened(value: &Value) -> String {
    let text = match value {
        Value::Object(fields) => format!("an object of {} fields", fields.len()),
        Value::Array(items) if items.len() > 8 => format!("a list of {} items", items.len()),
        _ => value.to_string(),
    };
    match text.char_indices().nth(SHOWN_CHARACTERS) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}
