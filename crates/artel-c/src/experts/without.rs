//! Of a library without GPU support: there are no experts, and the call that asks for some says why.

use std::ffi::{CStr, c_void};

use crate::failure::{Failure, Status};
use crate::settings::Settings;

/// Never made.
#[derive(Debug)]
pub(crate) enum Experts {}

impl Experts {
    pub(crate) fn new(_: Settings) -> Result<Self, Failure> {
        let text = "this library was built without GPU support; build it with `cargo build \
                    --release -p artel-c --features cuda`";
        Err(Failure { status: Status::Unavailable, text: text.to_owned() })
    }

    pub(crate) fn forward(&self, _: *mut c_void, _: [usize; 4], _: u64) -> Result<(), Failure> {
        match *self {}
    }

    pub(crate) fn plan(&self) -> &CStr {
        match *self {}
    }
}
