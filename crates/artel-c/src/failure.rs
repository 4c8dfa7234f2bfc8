//! Why a call failed: a status for the program and a text for people, kept for each thread.

use std::any::Any;
use std::cell::RefCell;
use std::ffi::{CStr, c_char};
use std::panic::{AssertUnwindSafe, catch_unwind};

use artel_moe::MoeError;

/// What functions return.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(i32)]
pub enum Status {
    /// Done.
    Ok = 0,
    /// An argument is null, out of range, or does not fit the others.
    Invalid = 1,
    /// No GPU support in this library, no driver, no such GPU, or no kernel.
    Unavailable = 2,
    /// The GPU or its driver failed.
    Gpu = 3,
    /// The library failed.
    Bug = 4,
}

/// A call that failed.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) status: Status,
    pub(crate) text: String,
}

impl Failure {
    pub(crate) fn invalid(text: impl Into<String>) -> Self {
        Self { status: Status::Invalid, text: text.into() }
    }
}

impl From<MoeError> for Failure {
    fn from(error: MoeError) -> Self {
        Self { status: status_of(&error), text: error.to_string() }
    }
}

#[cfg(feature = "cuda")]
impl From<artel_device::cuda::CudaError> for Failure {
    fn from(error: artel_device::cuda::CudaError) -> Self {
        MoeError::from(error).into()
    }
}

#[cfg(feature = "cuda")]
fn status_of(error: &MoeError) -> Status {
    use artel_device::cuda::CudaError;
    match error {
        MoeError::Cuda(error) => match error {
            CudaError::Length { .. } | CudaError::Alignment { .. } => Status::Invalid,
            CudaError::NoDriver { .. }
            | CudaError::NoSuchDevice { .. }
            | CudaError::Architecture { .. }
            | CudaError::MissingKernels { .. }
            | CudaError::NoToolkit { .. }
            | CudaError::Compile { .. }
            | CudaError::Pack { .. } => Status::Unavailable,
            _ => Status::Gpu,
        },
        _ => Status::Invalid,
    }
}

#[cfg(not(feature = "cuda"))]
fn status_of(_: &MoeError) -> Status {
    Status::Invalid
}

/// Bytes kept of a text, with the zero byte at its end.
const TEXT_BYTES: usize = 4096;

thread_local! {
    // A fixed place, so that what a caller was given never dangles while its thread lives.
    static LAST: RefCell<[u8; TEXT_BYTES]> = const { RefCell::new([0; TEXT_BYTES]) };
}

/// The text of the last failure of this thread.
pub(crate) fn last_text() -> *const c_char {
    LAST.with_borrow(|text| text.as_ptr().cast())
}

fn keep(text: &str) {
    let end = text.floor_char_boundary(TEXT_BYTES - 1);
    LAST.with_borrow_mut(|last| {
        last[..end].copy_from_slice(&text.as_bytes()[..end]);
        last[end] = 0;
    });
}

/// Runs the body of a call: a failure or a panic becomes a status, and its text is kept.
pub(crate) fn guarded(body: impl FnOnce() -> Result<(), Failure>) -> i32 {
    let result = catch_unwind(AssertUnwindSafe(body)).unwrap_or_else(|panic| {
        Err(Failure { status: Status::Bug, text: text_of_panic(panic.as_ref()) })
    });
    let Err(Failure { status, text }) = result else { return Status::Ok as i32 };
    keep(&text);
    status as i32
}

fn text_of_panic(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied();
    let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    text.unwrap_or("a panic without a text").to_owned()
}

/// Version of the library and whether it can use a GPU.
pub(crate) fn version() -> &'static CStr {
    const TEXT: &str = match cfg!(feature = "cuda") {
        true => concat!(env!("CARGO_PKG_VERSION"), " (cuda)\0"),
        false => concat!(env!("CARGO_PKG_VERSION"), " (no GPU support)\0"),
    };
    CStr::from_bytes_with_nul(TEXT.as_bytes()).expect("this is a bug: one zero byte, at the end")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn last() -> String {
        let bytes = LAST.with_borrow(|text| text.to_vec());
        CStr::from_bytes_until_nul(&bytes).unwrap().to_str().unwrap().to_owned()
    }

    #[test]
    fn a_panic_stays_inside_and_leaves_its_text() {
        let number = 7;
        let status = guarded(|| panic!("this is a bug: {number}"));
        assert_eq!((status, last().as_str()), (Status::Bug as i32, "this is a bug: 7"));
    }

    #[test]
    fn success_keeps_the_text_of_the_last_failure() {
        assert_eq!(guarded(|| Err(Failure::invalid("a text"))), Status::Invalid as i32);
        assert_eq!(guarded(|| Ok(())), Status::Ok as i32);
        assert_eq!(last(), "a text");
    }

    #[test]
    fn a_long_text_is_cut_between_characters() {
        guarded(|| Err(Failure::invalid("é".repeat(TEXT_BYTES))));
        assert_eq!(last(), "é".repeat((TEXT_BYTES - 1) / 2));
    }
}
