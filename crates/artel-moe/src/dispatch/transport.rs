use std::collections::VecDeque;
use std::fmt::Debug;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::Message;

/// Where messages wait for the one who takes them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Port {
    /// Rows and switches for a rank.
    Rank(usize),
    /// Orders and experts for the mover of a rank.
    Mover(usize),
    /// What a rank answers to the leader.
    Results(usize),
    /// What the mover of a rank reports to the leader.
    Reports(usize),
}

/// Nobody is at the other end any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gone;

/// Carries messages between the leader, ranks and movers.
///
/// What arrives at a port arrives in the order in which it was sent, also from different senders: a
/// message that was sent after another one had been sent arrives after it.
pub trait Transport: Debug + Send + Sync {
    /// Sends a message. Does not wait for it to be taken.
    ///
    /// # Errors
    /// [`Gone`] when the port has been closed.
    fn send(&self, to: Port, message: Message) -> Result<(), Gone>;

    /// Takes the next message; waits for one, without `limit` as long as it takes. `None` when none
    /// came in time.
    ///
    /// # Errors
    /// [`Gone`] when the port has been closed and nothing is left.
    fn receive(&self, at: Port, limit: Option<Duration>) -> Result<Option<Message>, Gone>;

    /// Nothing more can be sent to the port. What is there can still be taken.
    fn close(&self, at: Port);
}

/// Messages between threads of one process: a queue for each port.
#[derive(Debug)]
pub struct ThreadTransport {
    /// Of each rank in the order of [`Port`]'s variants.
    boxes: Vec<[Mailbox; 4]>,
}

impl ThreadTransport {
    /// The ports of so many ranks.
    pub fn new(ranks: usize) -> Self {
        Self { boxes: (0..ranks).map(|_| Default::default()).collect() }
    }

    fn mailbox(&self, port: Port) -> Option<&Mailbox> {
        let (rank, index) = match port {
            Port::Rank(rank) => (rank, 0),
            Port::Mover(rank) => (rank, 1),
            Port::Results(rank) => (rank, 2),
            Port::Reports(rank) => (rank, 3),
        };
        self.boxes.get(rank).map(|boxes| &boxes[index])
    }
}

impl Transport for ThreadTransport {
    fn send(&self, to: Port, message: Message) -> Result<(), Gone> {
        self.mailbox(to).ok_or(Gone)?.put(message)
    }

    fn receive(&self, at: Port, limit: Option<Duration>) -> Result<Option<Message>, Gone> {
        self.mailbox(at).ok_or(Gone)?.take(limit)
    }

    fn close(&self, at: Port) {
        self.mailbox(at).into_iter().for_each(Mailbox::close);
    }
}

/// A queue that threads wait at.
#[derive(Debug, Default)]
struct Mailbox {
    content: Mutex<Content>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Content {
    messages: VecDeque<Message>,
    closed: bool,
}

impl Mailbox {
    /// A thread that panics with the lock leaves a queue that is whole.
    fn lock(&self) -> MutexGuard<'_, Content> {
        self.content.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn put(&self, message: Message) -> Result<(), Gone> {
        let mut content = self.lock();
        if content.closed {
            return Err(Gone);
        }
        content.messages.push_back(message);
        drop(content);
        self.changed.notify_one();
        Ok(())
    }

    fn take(&self, limit: Option<Duration>) -> Result<Option<Message>, Gone> {
        let until = limit.map(|limit| Instant::now() + limit);
        let mut content = self.lock();
        loop {
            if let Some(message) = content.messages.pop_front() {
                return Ok(Some(message));
            }
            if content.closed {
                return Err(Gone);
            }
            content = match until.map(|until| until.saturating_duration_since(Instant::now())) {
                Some(Duration::ZERO) => return Ok(None),
                Some(left) => {
                    let waited = self.changed.wait_timeout(content, left);
                    waited.unwrap_or_else(PoisonError::into_inner).0
                }
                None => self.changed.wait(content).unwrap_or_else(PoisonError::into_inner),
            };
        }
    }

    fn close(&self) {
        self.lock().closed = true;
        self.changed.notify_all();
    }
}
