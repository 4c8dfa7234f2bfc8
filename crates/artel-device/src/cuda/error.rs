use std::path::PathBuf;

/// What can go wrong between the program and a GPU.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum CudaError {
    /// The driver library could not be opened.
    #[error("no NVIDIA driver: {why}; install the driver or run on the CPU")]
    NoDriver {
        /// What the loader said.
        why: String,
    },
    /// A call of the driver failed.
    #[error("{what}: {why}")]
    Driver {
        /// What was attempted.
        what: &'static str,
        /// The driver's name and text of the error.
        why: String,
    },
    /// A device was asked for that is not there.
    #[error("GPU {ordinal} was asked for, but there are {count} (numbered from 0)")]
    NoSuchDevice {
        /// The number asked for.
        ordinal: usize,
        /// How many there are.
        count: usize,
    },
    /// An architecture that kernels are not made for.
    #[error("{name:?} is not an architecture; expected one of sm_80, sm_90, sm_100, sm_120")]
    Architecture {
        /// What was given.
        name: String,
    },
    /// Device memory ran out.
    #[error("no room for {bytes} bytes on the GPU: {free} of {total} bytes are free")]
    OutOfMemory {
        /// What was asked for.
        bytes: usize,
        /// Free when it was asked for.
        free: usize,
        /// Memory of the device.
        total: usize,
    },
    /// A buffer is shorter than a copy or a kernel needs.
    #[error("{what} has {actual} elements, but {expected} are needed")]
    Length {
        /// The buffer.
        what: &'static str,
        /// What is needed.
        expected: usize,
        /// What it has.
        actual: usize,
    },
    /// A kernel was promised aligned memory and did not get it.
    #[error(
        "argument {index} of kernel {kernel} lies at {address:#x}, but must be 16-byte aligned"
    )]
    Alignment {
        /// The kernel.
        kernel: String,
        /// Position of the argument, from 0.
        index: usize,
        /// The address.
        address: u64,
    },
    /// A kernel was only listed, so there is nothing to launch.
    #[error("kernel {kernel} was listed, not loaded: open the kernels on a GPU before launching")]
    NotLoaded {
        /// The kernel.
        kernel: String,
    },
    /// Kernels are in no pack and there is no toolkit to compile them.
    #[error(
        "{count} kernels for {architecture} are missing from the kernel packs and no toolkit is \
         installed to compile them, the first of them {first}; build a pack with `artel kernels \
         build --arch {architecture} -o FILE` where the toolkit is (`cargo xtask toolkit`) and pass \
         it with --kernels FILE"
    )]
    MissingKernels {
        /// How many.
        count: usize,
        /// Name of one.
        first: String,
        /// For which GPU.
        architecture: String,
    },
    /// A kernel does not compile.
    #[error("kernel {kernel} does not compile for {architecture}: {why}")]
    Compile {
        /// The specialisation.
        kernel: String,
        /// For which GPU.
        architecture: String,
        /// What the compiler said.
        why: String,
    },
    /// The compiler of kernels is not there.
    #[error(
        "no toolkit to compile GPU kernels: {why}; fetch one with `cargo xtask toolkit` and name it \
         with `eval \"$(cargo xtask toolkit --env)\"`"
    )]
    NoToolkit {
        /// What was looked for.
        why: String,
    },
    /// A kernel pack cannot be used.
    #[error("kernel pack {path}: {why}", path = path.display())]
    Pack {
        /// The file.
        path: PathBuf,
        /// What is wrong with it and what to do.
        why: String,
    },
}

impl CudaError {
    /// Attaches what was attempted to an error of the driver.
    pub(super) fn driver(what: &'static str) -> impl Fn(cuda_core::DriverError) -> Self {
        move |error| {
            let name = error.error_name().map(|text| text.to_string_lossy().into_owned());
            let text = error.error_string().map(|text| text.to_string_lossy().into_owned());
            let why = match (name, text) {
                (Ok(name), Ok(text)) => format!("{text} ({name})"),
                _ => format!("driver error {}", error.0),
            };
            Self::Driver { what, why }
        }
    }
}
