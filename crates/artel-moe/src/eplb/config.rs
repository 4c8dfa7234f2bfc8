use std::{fmt, time::Duration};

use serde::{Serialize, Serializer};
use serde_json::Value;

use super::{Cluster, Placement};
use crate::MoeError;

/// Most copies that a model's experts may have beyond one each, as published: an expert has at most
/// 1024 slots.
pub const REDUNDANT_EXPERTS_MAX: usize = 1023;

/// Who decides where the experts of a layer are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PolicyName {
    /// The published greedy: copies for the most loaded experts, heaviest copies first.
    Greedy,
    /// Few moves from the current placement, and shares that use them best.
    Balanced,
    /// Experts stay; only the shares of their copies follow the load.
    Resplit,
    /// Everything stays as it is.
    None,
}

impl PolicyName {
    /// Every name that is accepted, with what it means. "default" is vLLM's word for its only policy.
    const NAMES: [(&str, Self); 5] = [
        ("default", Self::Greedy),
        ("greedy", Self::Greedy),
        ("balanced", Self::Balanced),
        ("resplit", Self::Resplit),
        ("none", Self::None),
    ];

    /// The name as users write it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Greedy => "greedy",
            Self::Balanced => "balanced",
            Self::Resplit => "resplit",
            Self::None => "none",
        }
    }
}

impl fmt::Display for PolicyName {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

impl Serialize for PolicyName {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

/// How experts are balanced over ranks. The first nine fields have the names, the defaults and the
/// ranges of vLLM's `EPLBConfig`; the others are ours and do nothing by default.
///
/// ```
/// use artel_moe::eplb::EplbConfig;
/// let mut config = EplbConfig::from_json(r#"{"window_size": 100, "policy": "balanced"}"#)?;
/// config.set("step_interval", "500")?;
/// assert_eq!((config.window_size, config.step_interval, config.use_async), (100, 500, true));
/// assert!(EplbConfig::from_json(r#"{"windowsize": 100}"#).is_err());
/// # Ok::<(), artel_moe::MoeError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct EplbConfig {
    /// Recorded steps whose load a rebalance sees, above 0.
    pub window_size: usize,
    /// Steps between rebalances, above 0.
    pub step_interval: usize,
    /// Slots beyond one for each expert, 0 to [`REDUNDANT_EXPERTS_MAX`].
    pub num_redundant_experts: usize,
    /// Whether to log how even the load of ranks is.
    pub log_balancedness: bool,
    /// Steps between two such lines, above 0.
    pub log_balancedness_interval: usize,
    /// Whether weights move beside the steps, one layer at a time, instead of between two steps.
    pub use_async: bool,
    /// Who decides.
    pub policy: PolicyName,
    /// How weights travel. Ranks of one process copy memory, which needs no choice: "memory" says
    /// so, and absence means the same.
    pub communicator: Option<&'static str>,
    /// Whether moves are ordered so that a rank talks to one other at a time.
    pub enable_migration_batching: bool,
    /// Most slots of a layer that one rebalance may change; absent: all.
    pub max_moves_per_layer: Option<usize>,
    /// Steps between two computations of the shares of copies; absent: only with a rebalance.
    pub resplit_interval: Option<usize>,
    /// Whether every batch is split over the copies by its own counts.
    pub balance_batches: bool,
    /// Batches with fewer tokens an expert that has any are bound by reading weights, so active
    /// experts are balanced rather than tokens: the knee of the roofline. 0: none is.
    pub memory_bound_below: usize,
    /// Seconds after which a move that has not ended counts as stuck, above 0.
    pub move_timeout_seconds: usize,
}

impl Default for EplbConfig {
    fn default() -> Self {
        Self {
            window_size: 1000,
            step_interval: 3000,
            num_redundant_experts: 0,
            log_balancedness: false,
            log_balancedness_interval: 1,
            use_async: true,
            policy: PolicyName::Greedy,
            communicator: None,
            enable_migration_batching: false,
            max_moves_per_layer: None,
            resplit_interval: None,
            balance_batches: false,
            memory_bound_below: 0,
            move_timeout_seconds: 60,
        }
    }
}

impl EplbConfig {
    /// Names of the fields, in the order of [`EplbConfig`].
    pub const FIELDS: [&str; 14] = [
        "window_size",
        "step_interval",
        "num_redundant_experts",
        "log_balancedness",
        "log_balancedness_interval",
        "use_async",
        "policy",
        "communicator",
        "enable_migration_batching",
        "max_moves_per_layer",
        "resplit_interval",
        "balance_batches",
        "memory_bound_below",
        "move_timeout_seconds",
    ];

    /// The defaults but for the fields of a JSON object.
    ///
    /// # Errors
    /// [`MoeError::Config`] with the field: one that is unknown, or a value outside its range.
    pub fn from_json(text: &str) -> Result<Self, MoeError> {
        let allowed = "a JSON object, such as {\"window_size\": 1000}";
        let object: Value = serde_json::from_str(text).map_err(|error| {
            MoeError::config("eplb-config", text, format!("{allowed} ({error})"))
        })?;
        let Value::Object(fields) = object else {
            return Err(MoeError::config("eplb-config", text, allowed));
        };
        let mut config = Self::default();
        for (field, value) in &fields {
            config.set_value(field, value)?;
        }
        Ok(config)
    }

    /// Overwrites one field by what a user wrote: a number, `true`, `false`, a name, or `null`.
    ///
    /// # Errors
    /// As [`EplbConfig::from_json`].
    pub fn set(&mut self, field: &str, text: &str) -> Result<(), MoeError> {
        let value = serde_json::from_str(text).unwrap_or_else(|_| Value::from(text));
        self.set_value(field, &value)
    }

    fn set_value(&mut self, field: &str, value: &Value) -> Result<(), MoeError> {
        let unknown = || {
            let allowed = format!("one of {}", Self::FIELDS.join(", "));
            MoeError::config("field of eplb-config", field, allowed)
        };
        let known = |name: &&str| *name == field;
        let field = Self::FIELDS.into_iter().find(known).ok_or_else(unknown)?;
        match field {
            "window_size" => self.window_size = positive(field, value)?,
            "step_interval" => self.step_interval = positive(field, value)?,
            "num_redundant_experts" => {
                self.num_redundant_experts = number(field, value, 0, REDUNDANT_EXPERTS_MAX)?;
            }
            "log_balancedness" => self.log_balancedness = switch(field, value)?,
            "log_balancedness_interval" => self.log_balancedness_interval = positive(field, value)?,
            "use_async" => self.use_async = switch(field, value)?,
            "policy" => self.policy = policy(field, value)?,
            "communicator" => self.communicator = communicator(field, value)?,
            "enable_migration_batching" => self.enable_migration_batching = switch(field, value)?,
            "max_moves_per_layer" => self.max_moves_per_layer = optional(field, value)?,
            "resplit_interval" => self.resplit_interval = optional(field, value)?,
            "balance_batches" => self.balance_batches = switch(field, value)?,
            "memory_bound_below" => self.memory_bound_below = number(field, value, 0, NUMBER_MAX)?,
            "move_timeout_seconds" => self.move_timeout_seconds = positive(field, value)?,
            _ => return Err(unknown()),
        }
        Ok(())
    }

    /// Checks every field, and that a layer of `num_logical` experts fits on `ranks`: the ranks with
    /// their slots.
    ///
    /// # Errors
    /// [`MoeError::Config`] with the field, or for slots that ranks cannot share evenly.
    pub fn cluster(&self, num_logical: usize, ranks: usize) -> Result<Cluster, MoeError> {
        self.check()?;
        Cluster::of_slots(self.initial_placement(num_logical)?.num_physical(), ranks)
    }

    /// Where the experts of a layer are before anything is known about load.
    ///
    /// # Errors
    /// [`MoeError::Config`] when there are no experts or too many slots.
    pub fn initial_placement(&self, num_logical: usize) -> Result<Placement, MoeError> {
        Placement::initial(num_logical, self.num_redundant_experts)
    }

    /// Time after which a move that has not ended counts as stuck.
    pub fn move_timeout(&self) -> Duration {
        Duration::from_secs(self.move_timeout_seconds as u64)
    }

    /// Checks what a program may have written into the fields.
    pub(super) fn check(&self) -> Result<(), MoeError> {
        let mut copy = Self::default();
        let Ok(Value::Object(fields)) = serde_json::to_value(self) else {
            unreachable!("this is a bug: a configuration is an object")
        };
        fields.iter().try_for_each(|(field, value)| copy.set_value(field, value))
    }
}

/// Largest number of a field: what fits 32 bits, so that sums of several never overflow.
const NUMBER_MAX: usize = u32::MAX as usize;

/// A value as users wrote it.
fn written(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

fn number(field: &'static str, value: &Value, min: usize, max: usize) -> Result<usize, MoeError> {
    let number = value.as_u64().and_then(|number| usize::try_from(number).ok());
    match number.filter(|number| (min..=max).contains(number)) {
        Some(number) => Ok(number),
        None => {
            let allowed = format!("a whole number of {min} to {max}");
            Err(MoeError::config(field, written(value), allowed))
        }
    }
}

fn positive(field: &'static str, value: &Value) -> Result<usize, MoeError> {
    number(field, value, 1, NUMBER_MAX)
}

fn optional(field: &'static str, value: &Value) -> Result<Option<usize>, MoeError> {
    if value.is_null() {
        return Ok(None);
    }
    positive(field, value).map(Some).map_err(|_| {
        let allowed = format!("a whole number of 1 to {NUMBER_MAX}, or null");
        MoeError::config(field, written(value), allowed)
    })
}

fn switch(field: &'static str, value: &Value) -> Result<bool, MoeError> {
    value.as_bool().ok_or_else(|| MoeError::config(field, written(value), "true or false"))
}

fn policy(field: &'static str, value: &Value) -> Result<PolicyName, MoeError> {
    let name = value.as_str().unwrap_or_default();
    match PolicyName::NAMES.into_iter().find(|(known, _)| *known == name) {
        Some((_, policy)) => Ok(policy),
        None => {
            let names = PolicyName::NAMES.map(|(name, _)| name).join(", ");
            Err(MoeError::config(field, written(value), format!("one of {names}")))
        }
    }
}

fn communicator(field: &'static str, value: &Value) -> Result<Option<&'static str>, MoeError> {
    match value {
        Value::Null => Ok(None),
        Value::String(name) if name == "memory" => Ok(Some("memory")),
        _ => {
            let allowed = "\"memory\" or null: ranks are of one process, which copies memory";
            Err(MoeError::config(field, written(value), allowed))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn published_fields_have_their_published_defaults() {
        let defaults = EplbConfig::from_json("{}").unwrap();
        assert_eq!(defaults, EplbConfig::default());
        assert_eq!((defaults.window_size, defaults.step_interval), (1000, 3000));
        assert_eq!((defaults.num_redundant_experts, defaults.log_balancedness_interval), (0, 1));
        assert!(defaults.use_async && !defaults.log_balancedness);
        assert!(!defaults.enable_migration_batching && defaults.communicator.is_none());
        assert_eq!(EplbConfig::from_json(r#"{"policy":"default"}"#).unwrap(), defaults);
    }

    #[test]
    fn every_field_is_read_and_written() {
        let values = [
            ("window_size", "7"),
            ("step_interval", "9"),
            ("num_redundant_experts", "1023"),
            ("log_balancedness", "true"),
            ("log_balancedness_interval", "4"),
            ("use_async", "false"),
            ("policy", "\"none\""),
            ("communicator", "\"memory\""),
            ("enable_migration_batching", "true"),
            ("max_moves_per_layer", "8"),
            ("resplit_interval", "50"),
            ("balance_batches", "true"),
            ("memory_bound_below", "16"),
            ("move_timeout_seconds", "5"),
        ];
        assert_eq!(values.map(|(field, _)| field), EplbConfig::FIELDS);
        let mut config = EplbConfig::default();
        for (field, value) in values {
            let before = config.clone();
            config.set(field, value).unwrap();
            assert_ne!(config, before, "{field}");
        }
        let text = serde_json::to_string(&config).unwrap();
        for (field, value) in values {
            assert!(text.contains(&format!("\"{field}\":{value}")), "{field} in {text}");
        }
        assert_eq!(EplbConfig::from_json(&text).unwrap(), config);
        // Names need no quotation marks on a command line.
        config.set("policy", "balanced").unwrap();
        config.set("max_moves_per_layer", "null").unwrap();
        assert_eq!((config.policy, config.max_moves_per_layer), (PolicyName::Balanced, None));
    }

    #[test]
    fn unknown_fields_are_named_with_the_known_ones() {
        let error = EplbConfig::from_json(r#"{"windowsize": 1}"#).unwrap_err().to_string();
        assert!(error.contains("is windowsize") && error.contains("window_size, "), "{error}");
        assert!(EplbConfig::default().set("", "1").is_err());
        for text in ["", "[]", "3", "{\"window_size\": }", "null"] {
            let error = EplbConfig::from_json(text).unwrap_err().to_string();
            assert!(error.contains("JSON object"), "{error}");
        }
    }

    #[test]
    fn wrong_values_are_named_with_their_range() {
        for (field, text, allowed) in [
            ("window_size", "0", "1 to"),
            ("window_size", "-1", "1 to"),
            ("window_size", "1.5", "1 to"),
            ("step_interval", "0", "1 to"),
            ("step_interval", "18446744073709551615", "1 to"),
            ("num_redundant_experts", "1024", "0 to 1023"),
            ("num_redundant_experts", "many", "0 to 1023"),
            ("log_balancedness", "1", "true or false"),
            ("log_balancedness_interval", "0", "1 to"),
            ("use_async", "yes", "true or false"),
            ("policy", "best", "default, greedy, balanced, resplit, none"),
            ("policy", "null", "default, greedy"),
            ("communicator", "pynccl", "\"memory\" or null"),
            ("max_moves_per_layer", "0", "or null"),
            ("resplit_interval", "0", "or null"),
            ("memory_bound_below", "-3", "0 to"),
            ("move_timeout_seconds", "0", "1 to"),
        ] {
            let error = EplbConfig::default().set(field, text).unwrap_err().to_string();
            assert!(error.starts_with(&format!("{field} is {text},")), "{error}");
            assert!(error.contains(allowed), "{error}");
        }
    }

    #[test]
    fn the_whole_is_checked_against_the_layer() {
        let config = EplbConfig { num_redundant_experts: 32, ..EplbConfig::default() };
        let cluster = config.cluster(256, 32).unwrap();
        assert_eq!((cluster.ranks(), cluster.slots_per_rank()), (32, 9));
        let uneven = config.cluster(256, 7).unwrap_err().to_string();
        assert!(uneven.contains("is 288") && uneven.contains("multiple"), "{uneven}");
        assert!(config.cluster(0, 1).is_err() && config.cluster(256, 0).is_err());
        assert!(config.cluster(32_768, 32).is_err());
        let written = EplbConfig { window_size: 0, ..EplbConfig::default() };
        let error = written.cluster(4, 2).unwrap_err().to_string();
        assert!(error.starts_with("window_size is 0"), "{error}");
    }
}
