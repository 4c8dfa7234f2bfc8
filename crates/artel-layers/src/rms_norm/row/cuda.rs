//! Loading.

use artel_device::cuda::{Architecture, Assembly, Kernel, KernelSpec, Kernels};

use super::super::cuda::Residual;
use super::text::{Form, source};
use crate::LayersError;

/// Columns that whole warps have.
const WIDTH_MULTIPLE: usize = 256;
/// Columns of the most threads of a block.
const WIDTH_MAX: usize = 8192;

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
    let is_known = elements == ["f32", "bf16"]
        && width.is_multiple_of(WIDTH_MULTIPLE)
        && width <= WIDTH_MAX
        && kernels.architecture() == Architecture::Sm90;
    if !is_known {
        return Ok(None);
    }
    let [adds, parts] = residual.constants();
    let form = Form { width, parts: (adds == 1).then_some(parts), rows, codes };
    let text = source(&form).into();
    let (threads, shared_bytes) = (form.threads(), form.shared_bytes());
    let assembly = Assembly { text, threads, shared_bytes };
    let sizes = [width, adds, parts, usize::from(rows), usize::from(codes)];
    let spec = KernelSpec::assembly("rms_norm/row", assembly, "normalize", Architecture::Sm90)
        .generics(sizes.map(|size| size as i32))
        .programmatic();
    Ok(Some(kernels.get(&spec)?))
}
