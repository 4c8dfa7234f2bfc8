use artel_layers::rope::yarn_mscale;
use artel_layers::rope::{Llama3, RopeConfig, RopeScaling, RopeStyle, Yarn, YarnAttention};

use super::ConfigReader;
use crate::Result;

const SUPPORTED: &str = "one of default, linear, llama3, yarn";

/// How much of a head the rotary embedding turns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RotaryPart {
    /// All of it, unless `config.json` says otherwise.
    Whole,
    /// What `config.json` says, which must say it.
    Declared,
}

/// What `config.json` says about the rotary embedding of heads of `head_dim` elements.
///
/// Two spellings are read: `rope_parameters` of transformers 5, and `rope_theta`, `rope_scaling`,
/// `rotary_dim` and `partial_rotary_factor` of the checkpoints before.
pub fn rope_config(
    config: &ConfigReader<'_>,
    head_dim: usize,
    part: RotaryPart,
    style: RopeStyle,
) -> Result<RopeConfig> {
    let rope = Rope::read(config)?;
    Ok(RopeConfig {
        rotary_dim: rope.rotary_dim(head_dim, part)?,
        theta: rope.theta()?,
        scaling: rope.scaling()?,
        style,
    })
}

/// DeepSeek's factor on the softmax scale: the square of YaRN's `mscale_all_dim` correction.
pub fn latent_attention_mscale(config: &ConfigReader<'_>) -> Result<f64> {
    let rope = Rope::read(config)?;
    let Some(parameters) = &rope.parameters else { return Ok(1.0) };
    let mscale_all_dim = parameters.optional_number("mscale_all_dim")?.unwrap_or(0.0);
    if mscale_all_dim == 0.0 || rope.kind()? == "default" {
        return Ok(1.0);
    }
    Ok(yarn_mscale(parameters.positive("factor")?, mscale_all_dim).powi(2))
}

/// The object with the parameters, if there is one, and `config.json` around it.
struct Rope<'c, 'a> {
    config: &'c ConfigReader<'a>,
    parameters: Option<ConfigReader<'a>>,
}

impl<'c, 'a> Rope<'c, 'a> {
    fn read(config: &'c ConfigReader<'a>) -> Result<Self> {
        let parameters = match config.object("rope_parameters")? {
            Some(parameters) => Some(parameters),
            None => config.object("rope_scaling")?,
        };
        Ok(Self { config, parameters })
    }

    /// The object that has `field`: the parameters first, then `config.json` itself.
    fn holder(&self, field: &str) -> &ConfigReader<'a> {
        let parameters = self.parameters.as_ref().filter(|parameters| parameters.has(field));
        parameters.unwrap_or(self.config)
    }

    fn theta(&self) -> Result<f64> {
        self.holder("rope_theta").positive("rope_theta")
    }

    fn rotary_dim(&self, head_dim: usize, part: RotaryPart) -> Result<usize> {
        const FACTOR: &str = "partial_rotary_factor";
        let of_parameters = self.parameters.as_ref().filter(|parameters| parameters.has(FACTOR));
        if of_parameters.is_none() && self.config.has("rotary_dim") {
            let rotary_dim = self.config.size("rotary_dim")?;
            let allowed = format!("an even number up to the head dimension, {head_dim}");
            return match rotary_dim <= head_dim && rotary_dim.is_multiple_of(2) {
                true => Ok(rotary_dim),
                false => Err(self.config.error("rotary_dim", allowed)),
            };
        }
        let holder = self.holder(FACTOR);
        if !holder.has(FACTOR) && part == RotaryPart::Whole {
            return even(head_dim).ok_or_else(|| self.config.error("head_dim", "an even number"));
        }
        let factor = holder.positive(FACTOR)?;
        let rotary_dim = (factor <= 1.0).then_some((head_dim as f64 * factor) as usize);
        let allowed = format!("at most 1, for an even part of the {head_dim} of a head");
        rotary_dim.and_then(even).ok_or_else(|| holder.error(FACTOR, allowed))
    }

    /// `rope_type`, once called `type`.
    fn kind(&self) -> Result<&'a str> {
        match &self.parameters {
            Some(parameters) if parameters.has("rope_type") => parameters.text("rope_type"),
            Some(parameters) if parameters.has("type") => parameters.text("type"),
            _ => Ok("default"),
        }
    }

    fn scaling(&self) -> Result<RopeScaling> {
        let Some(parameters) = &self.parameters else { return Ok(RopeScaling::None) };
        match self.kind()? {
            "default" => Ok(RopeScaling::None),
            "linear" => Ok(RopeScaling::Linear { factor: parameters.positive("factor")? }),
            "llama3" => Ok(RopeScaling::Llama3(Llama3 {
                factor: parameters.positive("factor")?,
                low_freq_factor: parameters.positive("low_freq_factor")?,
                high_freq_factor: parameters.positive("high_freq_factor")?,
                original_max_position: self.original_max_position()?,
            })),
            "yarn" => Ok(RopeScaling::Yarn(self.yarn(parameters)?)),
            _ if parameters.has("rope_type") => Err(parameters.error("rope_type", SUPPORTED)),
            _ => Err(parameters.error("type", SUPPORTED)),
        }
    }

    fn yarn(&self, parameters: &ConfigReader<'a>) -> Result<Yarn> {
        // Zero means "not given" in these fields, as it does for transformers.
        let given = |field| -> Result<Option<f64>> {
            Ok(parameters.optional_number(field)?.filter(|&value| value != 0.0))
        };
        let original_max_position = self.original_max_position()?;
        let factor = match parameters.has("factor") {
            true => parameters.positive("factor")?,
            false => {
                let positions = self.config.positions("max_position_embeddings")?;
                positions as f64 / original_max_position as f64
            }
        };
        let explicit = parameters.optional_number("attention_factor")?;
        let attention = match (explicit, given("mscale")?, given("mscale_all_dim")?) {
            (Some(explicit), ..) => YarnAttention::Explicit(explicit),
            (None, Some(mscale), Some(mscale_all_dim)) => {
                YarnAttention::Quotient { mscale, mscale_all_dim }
            }
            _ => YarnAttention::FromFactor,
        };
        Ok(Yarn {
            factor,
            beta_fast: given("beta_fast")?.unwrap_or(32.0),
            beta_slow: given("beta_slow")?.unwrap_or(1.0),
            original_max_position,
            attention,
            truncate: parameters.flag_or("truncate", true)?,
        })
    }

    fn original_max_position(&self) -> Result<usize> {
        const FIELD: &str = "original_max_position_embeddings";
        // A value beside the parameters is the one that training used.
        let holder = if self.config.has(FIELD) { self.config } else { self.holder(FIELD) };
        match holder.has(FIELD) {
            true => holder.positions(FIELD),
            false => self.config.positions("max_position_embeddings"),
        }
    }
}

fn even(size: usize) -> Option<usize> {
    (size > 0 && size.is_multiple_of(2)).then_some(size)
}
