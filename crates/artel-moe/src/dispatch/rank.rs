//! What the thread of a rank does: computes the rows that it is sent, and switches slots.

use std::sync::Arc;

use super::slots::{LayerOfRank, Scratch};
use super::{Gone, Message, Port, Transport, Work};
use crate::MoeError;

/// One rank, on its own thread.
#[derive(Debug)]
pub(super) struct Rank {
    pub rank: usize,
    pub layers: Arc<[LayerOfRank]>,
    pub transport: Arc<dyn Transport>,
}

impl Rank {
    /// Serves the leader until it closes the port.
    pub fn run(&self) {
        let mut scratch = Scratch::default();
        while let Ok(Some(message)) = self.transport.receive(Port::Rank(self.rank), None) {
            if self.answer(message, &mut scratch).is_err() {
                break;
            }
        }
    }

    fn answer(&self, message: Message, scratch: &mut Scratch) -> Result<(), Gone> {
        let answer = match message {
            Message::Compute(mut work) => {
                let result = self.compute(&mut work, scratch);
                Message::Computed(work, result)
            }
            Message::Switch { layer, version } => {
                let result = self.layer(layer).and_then(|layer| layer.switch(version));
                Message::Switched { layer, version, result }
            }
            _ => panic!("this is a bug: a message for somebody else sent to a rank"),
        };
        self.transport.send(Port::Results(self.rank), answer)
    }

    fn compute(&self, work: &mut Work, scratch: &mut Scratch) -> Result<(), MoeError> {
        let held = self.layer(work.layer)?.held();
        if work.version != Some(held.version) {
            let found = work.version.map_or("none".to_owned(), |version| version.to_string());
            let allowed = format!("{}, which rank {} has", held.version, self.rank);
            return Err(MoeError::config("version of a placement", found, allowed));
        }
        let is_filled = |slot: i32| {
            let slot = usize::try_from(slot).ok();
            slot.and_then(|slot| held.experts.get(slot)).is_some_and(|&expert| expert >= 0)
        };
        if let Some(row) = work.slots.iter().position(|&slot| !is_filled(slot)) {
            let allowed = format!("a slot of rank {} with an expert", self.rank);
            return Err(MoeError::element("slots of rows", row, work.slots[row], allowed));
        }
        held.slots.compute(work, scratch)
    }

    fn layer(&self, layer: usize) -> Result<&LayerOfRank, MoeError> {
        let layers = self.layers.len();
        let missing = || MoeError::config("layer of a rank", layer, format!("below {layers}"));
        self.layers.get(layer).ok_or_else(missing)
    }
}
