//! The threads of ranks and movers, and what is left to say when one of them has ended.

use std::any::Any;
use std::sync::Arc;
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

use super::{Port, Transport};
use crate::MoeError;

/// Threads that do not end by themselves for so long are left behind.
const PATIENCE: Duration = Duration::from_secs(5);

/// A thread that serves ports until these are closed.
#[derive(Debug)]
pub(super) struct Server {
    thread: Option<JoinHandle<Result<(), String>>>,
    gone: Option<String>,
}

impl Server {
    /// Starts `serve` on its own thread. However it ends, the `ports` that it serves and answers at are
    /// closed then, so that nobody waits for it.
    pub fn start(
        name: String,
        transport: Arc<dyn Transport>,
        ports: [Port; 2],
        serve: impl FnOnce() -> Result<(), String> + Send + 'static,
    ) -> Result<Self, MoeError> {
        let closing = Closing { transport, ports };
        let work = move || {
            let _closing = closing;
            serve()
        };
        match Builder::new().name(name.clone()).spawn(work) {
            Ok(thread) => Ok(Self { thread: Some(thread), gone: None }),
            Err(why) => Err(MoeError::config("thread of a rank", name, format!("started: {why}"))),
        }
    }

    /// Why the thread has ended; to be called when its ports are closed.
    pub fn why_gone(&mut self) -> &str {
        if let Some(thread) = self.thread.take() {
            self.gone = Some(match thread.join() {
                Ok(Ok(())) => "its thread has ended".to_owned(),
                Ok(Err(why)) => why,
                Err(panic) => format!("its thread panicked: {}", message_of(&*panic)),
            });
        }
        self.gone.as_deref().unwrap_or_default()
    }

    /// Whether [`Server::why_gone`] has been asked.
    pub fn is_gone(&self) -> bool {
        self.gone.is_some()
    }

    /// Waits a while for the thread to end.
    pub fn end(self) {
        let Some(thread) = self.thread else { return };
        let until = Instant::now() + PATIENCE;
        while !thread.is_finished() && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

fn message_of(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("no message")
}

/// Closes ports when a thread ends, also by a panic.
struct Closing {
    transport: Arc<dyn Transport>,
    ports: [Port; 2],
}

impl Drop for Closing {
    fn drop(&mut self) {
        self.ports.iter().for_each(|&port| self.transport.close(port));
    }
}
