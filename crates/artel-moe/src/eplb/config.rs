use std::{fmt, time::Duration};

use serde::Serialize;
use serde_json::Value;

use super::map_and_record::{ReplicaRule, ReplicaSalt};
use super::policy::{Balanced, Greedy, Policy, Resplit, Unchanged};
use super::{Cluster, Placement};
use crate::MoeError;

/// Most copies that a model's experts may have beyond one each, as published: an expert has at most
/// 1024 slots.
pub const REDUNDANT_EXPERTS_MAX: usize = 1023;

macro_rules! define_names {
    ($(#[$doc:meta])* $Name:ident { $($(#[$variant_doc:meta])* $Variant:ident = $name:literal,)* }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
        pub enum $Name {
            $($(#[$variant_doc])* #[serde(rename = $name)] $Variant,)*
        }

        impl $Name {
            const ALL: &[Self] = &[$(Self::$Variant),*];

            /// The name as users write it.
            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$Variant => $name,)*
                }
            }
        }

        impl fmt::Display for $Name {
            fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str(self.name())
            }
        }
    };
}

define_names! {
    /// Who decides where the experts of a layer are.
    PolicyName {
        /// The published greedy: copies for the most loaded experts, heaviest copies first.
        Greedy = "greedy",
        /// Few moves from the current placement, and shares that use them best.
        Balanced = "balanced",
        /// Experts stay; only the shares of their copies follow the load.
        Resplit = "resplit",
        /// Everything stays as it is.
        None = "none",
    }
}

define_names! {
    /// Which copy of an expert serves a token: see [`ReplicaRule`].
    ReplicaRuleName {
        /// vLLM's hash of the token's place in the batch, for comparison.
        Vllm = "vllm",
        /// A salted hash: every copy gets the same.
        Salted = "salted",
        /// The same hash: every copy gets its share.
        Shares = "shares",
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
    /// Which copy serves a token; absent: `shares` for policies that compute some, else `salted`.
    pub replica_rule: Option<ReplicaRuleName>,
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
            replica_rule: None,
            balance_batches: false,
            memory_bound_below: 0,
            move_timeout_seconds: 60,
        }
    }
}

impl EplbConfig {
    /// Names of the fields, in the order of [`EplbConfig`].
    pub const FIELDS: [&str; 15] = [
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
        "replica_rule",
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
            "replica_rule" => self.replica_rule = replica_rule(field, value)?,
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

    /// Who decides, for a router that chooses among `groups` of experts first; 1 for one that does not.
    pub fn policy(&self, groups: usize) -> Box<dyn Policy> {
        match self.policy {
            PolicyName::Greedy => Box::new(Greedy { groups }),
            PolicyName::Balanced => {
                let max_moves_per_layer = self.max_moves_per_layer;
                Box::new(Balanced { max_moves_per_layer, ..Balanced::default() })
            }
            PolicyName::Resplit => Box::new(Resplit),
            PolicyName::None => Box::new(Unchanged),
        }
    }

    /// Which copy serves a token, for ranks and layers that `salt` sets apart.
    pub fn rule(&self, salt: ReplicaSalt) -> ReplicaRule {
        let by_policy = match self.policy {
            PolicyName::Balanced | PolicyName::Resplit => ReplicaRuleName::Shares,
            PolicyName::Greedy | PolicyName::None => ReplicaRuleName::Salted,
        };
        match self.replica_rule.unwrap_or(by_policy) {
            ReplicaRuleName::Vllm => ReplicaRule::TokenHash,
            ReplicaRuleName::Salted => ReplicaRule::Salted(salt),
            ReplicaRuleName::Shares => ReplicaRule::Shares(salt),
        }
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
    let name = match value.as_str() {
        // vLLM's word for its only policy.
        Some("default") => Some(PolicyName::Greedy),
        name => PolicyName::ALL.iter().copied().find(|policy| Some(policy.name()) == name),
    };
    name.ok_or_else(|| {
        let names = PolicyName::ALL.iter().map(|policy| policy.name()).collect::<Vec<_>>();
        let allowed = format!("one of {}, default (the same as greedy)", names.join(", "));
        MoeError::config(field, written(value), allowed)
    })
}

fn replica_rule(field: &'static str, value: &Value) -> Result<Option<ReplicaRuleName>, MoeError> {
    if value.is_null() {
        return Ok(None);
    }
    let is_meant = |rule: &ReplicaRuleName| value.as_str() == Some(rule.name());
    match ReplicaRuleName::ALL.iter().copied().find(is_meant) {
        Some(rule) => Ok(Some(rule)),
        None => {
            let names = ReplicaRuleName::ALL.iter().map(|rule| rule.name()).collect::<Vec<_>>();
            let allowed = format!("one of {}, or null", names.join(", "));
            Err(MoeError::config(field, written(value), allowed))
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
mod tests;
