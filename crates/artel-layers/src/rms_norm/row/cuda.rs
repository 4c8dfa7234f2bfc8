//! Loading.

use artel_device::cuda::{Architecture, Assembly, Kernel, KernelSpec, Kernels};

use super::super::cuda::Residual;
use super::text::{Form, source};
use crate::LayersError;

/// Columns that whole warps have.
const WIDTH_MULTIPLE: usize = 256;
/// Columns of the most threads of a block.
const WIDTH_MAX: usize = 8192;
/// Most pairs of a token: all that a thread reads of them is in its registers.
const PAIRS_MAX: usize = 16;

/// Whether rows of `width` float32 numbers have a kernel that becomes bfloat16.
pub(in crate::rms_norm) fn is_known(kernels: &Kernels, width: usize, residual: Residual) -> bool {
    let fits = match residual {
        Residual::AddPairs(pairs) => pairs <= PAIRS_MAX,
        Residual::Alone | Residual::Add | Residual::AddParts(_) => true,
    };
    let is_architecture = kernels.architecture() == Architecture::Sm90;
    fits && is_architecture && width.is_multiple_of(WIDTH_MULTIPLE) && width <= WIDTH_MAX
}

/// The kernel for rows of the `elements` that are read and made, and whether rows and codes are stored;
/// `None` where there is none. It is launched with a block for each row and the arguments of
/// [`NormalizeQuantize`](super::super::cuda::NormalizeQuantize).
pub(in crate::rms_norm) fn load(
    kernels: &mut Kernels,
    elements: [&str; 2],
    width: usize,
    residual: Residual,
    [rows, codes]: [bool; 2],
) -> Result<Option<Kernel>, LayersError> {
    if elements != ["f32", "bf16"] || !is_known(kernels, width, residual) {
        return Ok(None);
    }
    let [adds, parts] = residual.constants();
    let form = Form { width, residual, rows, codes };
    let text = source(&form).into();
    let (threads, shared_bytes) = (form.threads(), form.shared_bytes());
    let assembly = Assembly { text, threads, shared_bytes };
    let sizes = [width, adds, parts, usize::from(rows), usize::from(codes)];
    let spec = KernelSpec::assembly("rms_norm/row", assembly, "normalize", Architecture::Sm90)
        .generics(sizes.map(|size| size as i32))
        .programmatic();
    Ok(Some(kernels.get(&spec)?))
}
