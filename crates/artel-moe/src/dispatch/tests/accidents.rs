//! A transport with accidents.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use super::*;

/// What a transport does to a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    Arrives,
    Lost,
    /// Arrives with one bit changed.
    Damaged,
    /// Arrives before the next message of its kind that is sent after [`Accidents::let_go`].
    Late,
    /// Whoever takes it panics.
    Deadly,
}

/// Messages between threads, with accidents.
#[derive(Debug)]
pub(super) struct Accidents {
    inner: ThreadTransport,
    /// What happens to the next messages of a kind; afterwards all arrive.
    script: Mutex<VecDeque<(Kind, Fate)>>,
    deadly: Mutex<Vec<Port>>,
    late: Mutex<Vec<(Kind, Port, Message)>>,
    let_go: AtomicBool,
}

/// Messages that accidents happen to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Compute,
    Computed,
    Expert,
    Staged,
    Stage,
    Switch,
}

impl Accidents {
    pub(super) fn new(ranks: usize, script: impl IntoIterator<Item = (Kind, Fate)>) -> Arc<Self> {
        let script = Mutex::new(script.into_iter().collect());
        let inner = ThreadTransport::new(ranks);
        let (late, let_go) = (Mutex::default(), AtomicBool::new(false));
        Arc::new(Self { inner, script, deadly: Mutex::default(), late, let_go })
    }

    /// What is late may arrive.
    pub(super) fn let_go(&self) {
        self.let_go.store(true, Ordering::Relaxed);
    }

    fn happens(&self, kind: Option<Kind>) -> Fate {
        let mut script = self.script.lock().unwrap_or_else(PoisonError::into_inner);
        match script.front() {
            Some(&(next, fate)) if Some(next) == kind => {
                script.pop_front();
                fate
            }
            _ => Fate::Arrives,
        }
    }
}

fn kind_of(message: &Message) -> Option<Kind> {
    Some(match message {
        Message::Compute(_) => Kind::Compute,
        Message::Computed(..) => Kind::Computed,
        Message::Expert(_) => Kind::Expert,
        Message::Stage(_) => Kind::Stage,
        Message::Switch { .. } => Kind::Switch,
        Message::Report { report: Report::Staged, .. } => Kind::Staged,
        _ => return None,
    })
}

impl Transport for Accidents {
    fn send(&self, to: Port, mut message: Message) -> Result<(), Gone> {
        let kind = kind_of(&message);
        let late: Vec<_> = {
            let mut late = self.late.lock().unwrap();
            let let_go = self.let_go.load(Ordering::Relaxed);
            late.extract_if(.., |(late, ..)| let_go && Some(*late) == kind).collect()
        };
        late.into_iter().try_for_each(|(_, to, message)| self.inner.send(to, message))?;
        match self.happens(kind) {
            Fate::Arrives => {}
            Fate::Lost => return Ok(()),
            Fate::Late => {
                let kind = kind.expect("only messages of a kind have accidents");
                self.late.lock().unwrap().push((kind, to, message));
                return Ok(());
            }
            Fate::Damaged => {
                if let Message::Expert(parcel) = &mut message {
                    let middle = parcel.bytes.len() / 2;
                    parcel.bytes[middle] ^= 4;
                }
            }
            Fate::Deadly => self.deadly.lock().unwrap().push(to),
        }
        self.inner.send(to, message)
    }

    fn receive(&self, at: Port, limit: Option<Duration>) -> Result<Option<Message>, Gone> {
        let message = self.inner.receive(at, limit)?;
        let deadly = self.deadly.lock().unwrap().contains(&at);
        assert!(!deadly, "killed by the test");
        Ok(message)
    }

    fn close(&self, at: Port) {
        self.inner.close(at);
    }
}
