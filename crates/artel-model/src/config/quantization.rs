use super::ConfigReader;
use crate::{ModelError, Result};

/// How `quantization_config` says that weights are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Quantization {
    /// Plain numbers.
    None,
    /// e4m3 codes with a float32 `weight_scale_inv` per 128x128 block.
    Fp8Block128,
}

impl Quantization {
    /// Reads `quantization_config`.
    ///
    /// # Errors
    /// [`ModelError::Quantization`] for every other method, block size or number format.
    pub fn read(config: &ConfigReader<'_>) -> Result<Self> {
        let Some(quantization) = config.object("quantization_config")? else {
            return Ok(Self::None);
        };
        let refuse = |what: String| ModelError::Quantization {
            why: format!("{what} is not supported; fp8 (e4m3) in blocks of [128, 128] is"),
        };
        let method = quantization.text("quant_method")?;
        if method != "fp8" {
            return Err(refuse(format!("quant_method {method:?}")));
        }
        if quantization.has("fmt") && !matches!(quantization.text("fmt")?, "float8_e4m3fn" | "e4m3")
        {
            return Err(refuse(format!("fmt {:?}", quantization.text("fmt")?)));
        }
        match quantization.counts("weight_block_size")?[..] {
            [128, 128] => Ok(Self::Fp8Block128),
            [] => Err(refuse("one scale for a whole tensor".to_owned())),
            ref other => Err(refuse(format!("weight_block_size {other:?}"))),
        }
    }
}
