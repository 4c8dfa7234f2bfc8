//! The functions of the header. Each checks its pointers and leaves the work to safe code.

use std::ffi::{CStr, c_char, c_void};
use std::path::PathBuf;

use crate::experts::Experts;
use crate::failure::{self, Failure, guarded};
use crate::settings::{ArtelMoeSettings, Settings, Texts};

/// `artel_moe_experts` of the header.
#[derive(Debug)]
pub struct ArtelMoeExperts {
    experts: Experts,
}

/// Version of the library.
#[unsafe(no_mangle)]
pub extern "C" fn artel_moe_version() -> *const c_char {
    failure::version().as_ptr()
}

/// Why the last failing call of this thread failed.
#[unsafe(no_mangle)]
pub extern "C" fn artel_moe_last_error() -> *const c_char {
    failure::last_text()
}

/// Plans, loads kernels and allocates the workspace.
///
/// # Safety
/// `settings` and `experts` are null or valid, and so are the texts of the settings; the weights stay
/// on the device until the experts are destroyed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn artel_moe_create(
    settings: *const ArtelMoeSettings,
    experts: *mut *mut ArtelMoeExperts,
) -> i32 {
    guarded(|| {
        // SAFETY: null or valid, says the caller.
        let experts = unsafe { experts.as_mut() };
        let experts = experts.ok_or_else(|| Failure::invalid("experts is null"))?;
        *experts = std::ptr::null_mut();
        if settings.is_null() {
            return Err(Failure::invalid("settings is null"));
        }
        // SAFETY: not null, so valid; its first field is there whatever the caller's header says.
        let bytes = unsafe { (*settings).settings_bytes };
        if bytes != size_of::<ArtelMoeSettings>() as u64 {
            return Err(Failure::invalid(format!(
                "settings_bytes is {bytes}, expected {}: header and library are of different versions",
                size_of::<ArtelMoeSettings>()
            )));
        }
        // SAFETY: as large as this library's, checked above.
        let raw = unsafe { &*settings };
        // SAFETY: the caller vouches for the texts.
        let texts = unsafe { texts(raw) }?;
        let settings = Settings::new(raw, texts)?;
        let made = ArtelMoeExperts { experts: Experts::new(settings)? };
        *experts = Box::into_raw(Box::new(made));
        Ok(())
    })
}

/// Launches one batch.
///
/// # Safety
/// `experts` is null or was created and not destroyed; `stream` and all device pointers are what the
/// header says, until the launched work has ended.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn artel_moe_forward(
    experts: *mut ArtelMoeExperts,
    stream: *mut c_void,
    hidden: *const c_void,
    topk_ids: *const i32,
    topk_weights: *const f32,
    tokens: u64,
    out: *mut c_void,
) -> i32 {
    guarded(|| {
        // SAFETY: null or valid, says the caller. Only shared: the workspace has a lock.
        let experts = unsafe { experts.as_ref() };
        let experts = experts.ok_or_else(|| Failure::invalid("experts is null"))?;
        let addresses = [hidden.addr(), topk_ids.addr(), topk_weights.addr(), out.addr()];
        experts.experts.forward(stream, addresses, tokens)
    })
}

/// Which kernels serve which batch sizes and why.
///
/// # Safety
/// `experts` is null or was created and not destroyed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn artel_moe_plan(experts: *const ArtelMoeExperts) -> *const c_char {
    // SAFETY: null or valid, says the caller.
    match unsafe { experts.as_ref() } {
        Some(experts) => experts.experts.plan().as_ptr(),
        None => std::ptr::null(),
    }
}

/// Frees everything but the weights.
///
/// # Safety
/// `experts` is null or was created and not destroyed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn artel_moe_destroy(experts: *mut ArtelMoeExperts) {
    if !experts.is_null() {
        guarded(|| {
            // SAFETY: made by `Box::into_raw` in `artel_moe_create`, and given back once.
            drop(unsafe { Box::from_raw(experts) });
            Ok(())
        });
    }
}

/// Copies the texts that the settings point to.
///
/// # Safety
/// Every text is null or ends with a zero byte; `kernel_packs` is null or has `num_kernel_packs`.
unsafe fn texts(raw: &ArtelMoeSettings) -> Result<Texts, Failure> {
    if raw.num_kernel_packs > 0 && raw.kernel_packs.is_null() {
        return Err(Failure::invalid("kernel_packs is null"));
    }
    let mut kernel_packs = Vec::new();
    for index in 0..raw.num_kernel_packs as usize {
        // SAFETY: the caller says that so many paths are there.
        let path = unsafe { *raw.kernel_packs.add(index) };
        // SAFETY: null or a text, says the caller.
        kernel_packs.push(PathBuf::from(unsafe { text("a path of kernel_packs", path) }?));
    }
    Ok(Texts {
        // SAFETY: null or a text, says the caller.
        format: unsafe { text("format", raw.format) }?,
        // SAFETY: as above.
        activation: unsafe { text("activation", raw.activation) }?,
        kernel_packs,
    })
}

/// # Safety
/// `text` is null or ends with a zero byte.
unsafe fn text(name: &str, text: *const c_char) -> Result<String, Failure> {
    if text.is_null() {
        return Err(Failure::invalid(format!("{name} is null")));
    }
    // SAFETY: not null, so it ends with a zero byte.
    let text = unsafe { CStr::from_ptr(text) }.to_str();
    text.map(str::to_owned).map_err(|_| Failure::invalid(format!("{name} is not UTF-8")))
}
