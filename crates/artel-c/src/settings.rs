//! What a caller asks for: the structures of the header, and what they mean once checked.

use std::ffi::{c_char, c_void};
use std::path::PathBuf;

use artel_moe::activation::GateLayout;
use artel_moe::config::{MoeConfig, MoeShape};
use artel_moe::quant::Format;
use artel_moe::weights::StackLayout;

use crate::failure::Failure;

/// `artel_moe_stack` of the header.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct ArtelMoeStack {
    /// As the format stores them.
    pub numbers: *const c_void,
    /// Bytes behind `numbers`.
    pub number_bytes: u64,
    /// One for each block, or null.
    pub scales: *const f32,
    /// Floats behind `scales`.
    pub scale_count: u64,
    /// Rows that one scale covers, 0 without scales.
    pub scale_rows: u64,
    /// Columns that one scale covers, 0 without scales.
    pub scale_columns: u64,
}

/// `artel_moe_settings` of the header.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct ArtelMoeSettings {
    /// Bytes of this structure, as the caller's header has it.
    pub settings_bytes: u64,
    /// `E`.
    pub num_experts: u64,
    /// `K`.
    pub top_k: u64,
    /// `H`.
    pub hidden_size: u64,
    /// `I`.
    pub intermediate_size: u64,
    /// Tokens of a step.
    pub tokens_max: u64,
    /// Name of the number format.
    pub format: *const c_char,
    /// Name of the activation.
    pub activation: *const c_char,
    /// Paths of kernel packs.
    pub kernel_packs: *const *const c_char,
    /// How many.
    pub num_kernel_packs: u64,
    /// Ordinal of the GPU.
    pub device: u64,
    /// 1 for experts that take packed pairs, else 0.
    pub packed: u64,
    /// Gate over up.
    pub w13: ArtelMoeStack,
    /// Down.
    pub w2: ArtelMoeStack,
}

/// Texts of the settings, as Rust has them.
#[derive(Debug, Clone)]
pub(crate) struct Texts {
    pub(crate) format: String,
    pub(crate) activation: String,
    pub(crate) kernel_packs: Vec<PathBuf>,
}

/// Settings that were checked.
#[derive(Debug)]
#[cfg_attr(not(feature = "cuda"), allow(dead_code, reason = "nothing is created without a GPU"))]
pub(crate) struct Settings {
    pub(crate) config: MoeConfig,
    pub(crate) format: Format,
    pub(crate) tokens_max: usize,
    pub(crate) device: usize,
    pub(crate) packed: bool,
    pub(crate) kernel_packs: Vec<PathBuf>,
    pub(crate) w13: Stack,
    pub(crate) w2: Stack,
}

/// Weights of one product in memory of the caller.
#[derive(Debug, Clone, Copy)]
#[cfg_attr(not(feature = "cuda"), allow(dead_code, reason = "nothing is created without a GPU"))]
pub(crate) struct Stack {
    pub(crate) layout: StackLayout,
    pub(crate) numbers: u64,
    pub(crate) scales: u64,
}

impl Settings {
    /// Checks everything that can be checked without a GPU.
    pub(crate) fn new(raw: &ArtelMoeSettings, texts: Texts) -> Result<Self, Failure> {
        let shape = MoeShape {
            hidden_size: size(raw.hidden_size),
            intermediate_size: size(raw.intermediate_size),
            num_experts: size(raw.num_experts),
            top_k: size(raw.top_k),
        };
        let config = MoeConfig::new(shape, texts.activation.parse()?)?;
        if config.activation().layout() == GateLayout::Interleaved {
            let name = config.activation().name();
            return Err(Failure::invalid(format!(
                "activation is {name}, whose gate and up rows alternate, but w13 must be gate rows \
                 over up rows"
            )));
        }
        let format: Format = texts.format.parse()?;
        if !(1..=TOKENS_MAX).contains(&raw.tokens_max) {
            return Err(Failure::invalid(format!(
                "tokens_max is {}, but must be 1 to {TOKENS_MAX}",
                raw.tokens_max
            )));
        }
        if raw.packed > 1 {
            return Err(Failure::invalid(format!("packed is {}, but must be 0 or 1", raw.packed)));
        }
        let MoeShape { hidden_size, intermediate_size, .. } = *config.shape();
        let rows = config.activation().input_columns(intermediate_size);
        let layout = |rows, columns| StackLayout {
            experts: config.local_experts(),
            rows,
            columns,
            // No format with smaller numbers has kernels here, which is said when it is loaded.
            number_bytes: format.number_bits().div_ceil(8),
            scale_block: None,
            words: None,
        };
        Ok(Self {
            w13: Stack::new("w13", &raw.w13, layout(rows, hidden_size), format)?,
            w2: Stack::new("w2", &raw.w2, layout(hidden_size, intermediate_size), format)?,
            format,
            tokens_max: size(raw.tokens_max),
            device: size(raw.device),
            packed: raw.packed == 1,
            kernel_packs: texts.kernel_packs,
            config,
        })
    }
}

/// Keeps the numbers of pairs and rows in 31 bits.
const TOKENS_MAX: u64 = 1 << 20;

/// What does not fit is refused with the largest number there is.
fn size(value: u64) -> usize {
    usize::try_from(value).unwrap_or(usize::MAX)
}

impl Stack {
    fn new(
        name: &str,
        raw: &ArtelMoeStack,
        mut layout: StackLayout,
        format: Format,
    ) -> Result<Self, Failure> {
        let scaled = !matches!(format, Format::F32 | Format::F16 | Format::Bf16);
        layout.scale_block = match [size(raw.scale_rows), size(raw.scale_columns)] {
            [0, 0] => None,
            [0, _] | [_, 0] => {
                return Err(Failure::invalid(format!(
                    "scale_rows and scale_columns of {name} are {} and {}, but must both be 0 or \
                     neither",
                    raw.scale_rows, raw.scale_columns
                )));
            }
            block => Some(block),
        };
        if scaled != layout.scale_block.is_some() {
            let must = if scaled { "must have" } else { "has no" };
            return Err(Failure::invalid(format!(
                "{name} in {format} {must} scales: scale_rows and scale_columns are {} and {}",
                raw.scale_rows, raw.scale_columns
            )));
        }
        let bytes = layout.experts * layout.number_bytes_per_expert();
        expect(&format!("{name}.number_bytes"), raw.number_bytes, bytes)?;
        let scales = layout.experts * layout.scales_per_expert();
        expect(&format!("{name}.scale_count"), raw.scale_count, scales)?;
        not_null(&format!("{name}.numbers"), raw.numbers.addr())?;
        if scaled {
            not_null(&format!("{name}.scales"), raw.scales.addr())?;
        }
        let (numbers, scales) = (raw.numbers.addr() as u64, raw.scales.addr() as u64);
        Ok(Self { layout, numbers, scales })
    }
}

fn expect(name: &str, found: u64, expected: usize) -> Result<(), Failure> {
    match size(found) == expected {
        true => Ok(()),
        false => Err(Failure::invalid(format!("{name} is {found}, expected {expected}"))),
    }
}

/// Checks an address of the device: not null, and aligned as kernels expect it.
pub(crate) fn not_null(name: &str, address: usize) -> Result<(), Failure> {
    match address {
        0 => Err(Failure::invalid(format!("{name} is null"))),
        address if address % 16 != 0 => Err(Failure::invalid(format!(
            "{name} lies at {address:#x}, but must be 16-byte aligned"
        ))),
        _ => Ok(()),
    }
}
