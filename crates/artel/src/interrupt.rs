//! Ctrl-C: the first asks the work to stop at the next step, the second ends the program.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Context;
use artel_engine::Cancellation;

/// Exit status of a program that was interrupted, as shells count it (128 + SIGINT).
pub const EXIT_INTERRUPTED: i32 = 130;

/// Whether the user asked to stop. Clones share the answer.
#[derive(Debug, Clone, Default)]
pub struct Interrupt(Arc<AtomicBool>);

impl Interrupt {
    /// Listens for Ctrl-C (and SIGTERM) from now on.
    ///
    /// # Errors
    /// When the handler cannot be set.
    pub fn listen() -> anyhow::Result<Self> {
        Self::listen_and(|| ())
    }

    /// The same, telling somebody of the first.
    ///
    /// # Errors
    /// When the handler cannot be set.
    pub fn listen_and(tell: impl Fn() + Send + 'static) -> anyhow::Result<Self> {
        let interrupt = Self::default();
        let flag = interrupt.clone();
        ctrlc::set_handler(move || {
            if flag.0.swap(true, Ordering::SeqCst) {
                std::process::exit(EXIT_INTERRUPTED);
            }
            tell();
        })
        .context("cannot listen for Ctrl-C")?;
        Ok(interrupt)
    }

    /// Whether Ctrl-C was pressed.
    pub fn requested(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }

    /// Takes note of the request and goes on listening, as a chat does between two answers.
    pub fn take(&self) -> bool {
        self.0.swap(false, Ordering::SeqCst)
    }

    /// The same flag as the engine knows it: the request ends before its next step.
    pub fn cancellation(&self) -> Cancellation {
        Cancellation::over(Arc::clone(&self.0))
    }
}
