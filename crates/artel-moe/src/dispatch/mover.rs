//! What the mover of a rank does: sends experts, and assembles the slots that a switch brings into
//! force, while its rank goes on computing.

use std::collections::BTreeMap;
use std::sync::Arc;

use artel_device::HostBuffer;

use super::message::Outgoing;
use super::slots::{Content, Held, LayerOfRank};
use super::{Gone, Message, Parcel, PlacementVersion, Port, Report, StageOrder, Transport};
use crate::MoeError;
use crate::eplb::Placement;

/// The mover of one rank, on its own thread.
#[derive(Debug)]
pub(super) struct Mover {
    pub rank: usize,
    pub layers: Arc<[LayerOfRank]>,
    pub transport: Arc<dyn Transport>,
    /// Orders under way, by layer.
    pub orders: BTreeMap<usize, Order>,
}

/// An order under way.
#[derive(Debug)]
pub(super) struct Order {
    order: StageOrder,
    /// What slots will hold, as far as it is there.
    contents: Vec<(usize, Content)>,
}

impl Mover {
    /// Serves the leader and other movers until the leader closes the port.
    pub fn run(&mut self) {
        while let Ok(Some(message)) = self.transport.receive(Port::Mover(self.rank), None) {
            if self.answer(message).is_err() {
                break;
            }
        }
    }

    fn answer(&mut self, message: Message) -> Result<(), Gone> {
        match message {
            Message::Stage(order) => {
                let (layer, version) = (order.layer, order.to);
                let result = self.begin(*order).and_then(|()| self.finish(layer));
                self.report(layer, version, result)
            }
            Message::Send { layer, version, experts } => {
                let mut experts = experts.into_iter();
                let result = experts.try_for_each(|outgoing| self.send(layer, version, outgoing));
                self.report(layer, version, result.map(|()| None))
            }
            Message::Expert(parcel) => {
                let (layer, version) = (parcel.layer, parcel.version);
                let expert = parcel.expert;
                match self.take(parcel) {
                    Ok(false) => Ok(()),
                    Ok(true) => {
                        self.report(layer, version, Ok(Some(Report::Received { expert })))?;
                        let result = self.finish(layer);
                        self.report(layer, version, result)
                    }
                    Err(why) => self.report(layer, version, Err(why)),
                }
            }
            Message::Abort { layer, version } => {
                if self.orders.get(&layer).is_some_and(|order| order.order.to == version) {
                    self.orders.remove(&layer);
                }
                self.layers[layer].drop_staged();
                Ok(())
            }
            _ => panic!("this is a bug: a message for somebody else sent to a mover"),
        }
    }

    /// Tells the leader what has happened, if it is worth telling.
    fn report(
        &self,
        layer: usize,
        version: PlacementVersion,
        result: Result<Option<Report>, MoeError>,
    ) -> Result<(), Gone> {
        let Some(report) = result.unwrap_or_else(|why| Some(Report::Failed(why))) else {
            return Ok(());
        };
        let report = Message::Report { layer, version, report };
        self.transport.send(Port::Reports(self.rank), report)
    }

    fn begin(&mut self, order: StageOrder) -> Result<(), MoeError> {
        let held = self.layers[order.layer].held();
        if held.version != order.from {
            let allowed = format!("{}, which rank {} has", held.version, self.rank);
            return Err(MoeError::config("version of a placement", order.from, allowed));
        }
        let placement = Placement::new(order.physical_to_logical.to_vec(), order.num_logical)?;
        if placement.hash() != order.to.hash {
            let found = format!("{:016x}", placement.hash());
            return Err(MoeError::config("hash of a placement", found, order.to));
        }
        let copy = |&(from, to): &(usize, usize)| (to, Content::CopyOf(from));
        let reload = |&(expert, to): &(usize, usize)| (to, Content::Loaded(expert));
        let copies = order.copies.iter().map(copy);
        let contents = copies.chain(order.reloads.iter().map(reload)).collect();
        self.orders.insert(order.layer, Order { order, contents });
        Ok(())
    }

    fn send(
        &self,
        layer: usize,
        version: PlacementVersion,
        outgoing: Outgoing,
    ) -> Result<(), MoeError> {
        let Outgoing { expert, slot, to } = outgoing;
        let held = self.layers[layer].held();
        if held.experts.get(slot).is_none_or(|&found| found != expert as i32) {
            let allowed = format!("an expert in slot {slot} of rank {}", self.rank);
            return Err(MoeError::config("expert to send", expert, allowed));
        }
        let bytes = held.slots.export(slot);
        let mut parcel = Parcel { layer, version, expert, from: self.rank, bytes, checksum: 0 };
        parcel.checksum = parcel.expected_checksum();
        let sent = self.transport.send(Port::Mover(to), Message::Expert(parcel));
        sent.map_err(|Gone| MoeError::Rank {
            rank: to,
            layer,
            doing: "receiving an expert",
            why: "its mover is gone".to_owned(),
        })
    }

    /// Whether the expert was waited for; others belong to a move that was given up.
    fn take(&mut self, parcel: Parcel) -> Result<bool, MoeError> {
        let Some(order) = self.orders.get_mut(&parcel.layer) else { return Ok(false) };
        let receives = &mut order.order.receives;
        let waited = receives.iter().position(|(expert, _)| *expert == parcel.expert);
        let Some(position) = waited.filter(|_| order.order.to == parcel.version) else {
            return Ok(false);
        };
        let expected = parcel.expected_checksum();
        if parcel.checksum != expected {
            let found = format!("{:016x}", parcel.checksum);
            let field = "checksum of an expert";
            let Parcel { expert, from, .. } = parcel;
            let allowed = format!("{expected:016x}, of expert {expert} as rank {from} sent it");
            return Err(MoeError::config(field, found, allowed));
        }
        let (_, slots) = receives.swap_remove(position);
        let bytes = HostBuffer::from_vec(parcel.bytes);
        let contents = slots.into_iter().map(|slot| (slot, Content::Arrived(bytes.clone())));
        order.contents.extend(contents);
        Ok(true)
    }

    /// Stages the slots if everything has arrived.
    fn finish(&mut self, layer: usize) -> Result<Option<Report>, MoeError> {
        let arrived = |order: &mut Order| order.order.receives.is_empty();
        let Some(Order { order, contents }) = self
            .orders
            .get_mut(&layer)
            .is_some_and(arrived)
            .then(|| self.orders.remove(&layer))
            .flatten()
        else {
            return Ok(None);
        };
        let held = self.layers[layer].held();
        let (first, count) = (self.rank * held.experts.len(), held.experts.len());
        let experts = order.physical_to_logical[first..first + count].to_vec();
        let slots = match contents.as_slice() {
            [] => Arc::clone(&held.slots),
            contents => held.slots.with(contents)?,
        };
        self.layers[layer].stage(Held { version: order.to, experts, slots });
        Ok(Some(Report::Staged))
    }
}
