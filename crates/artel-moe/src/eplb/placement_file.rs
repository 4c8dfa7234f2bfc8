//! Placements of all layers as JSON: made once from recorded load, loaded when a server starts.
//!
//! ```text
//! {
//!   "format": "artel-placement",
//!   "version": 1,
//!   "model": "tally",                       any text, for people
//!   "experts": 4,                           experts of a layer, L
//!   "cluster": { "ranks": 2, "slots_per_rank": 3, "nodes": 1, "speeds": [1, 1], "dead": [] },
//!   "layers": [                             one a layer with experts, in order
//!     { "physical_to_logical": [0, 1, 2, 3, 0, -1],     expert in each slot, -1 is empty
//!       "shares": [0.5, 1, 1, 1, 0.5, 0] }              part of its expert's tokens
//!   ],
//!   "hash": "0123456789abcdef"              of everything but the name
//! }
//! ```
//!
//! Shares are rounded to nine decimals, so that every reader has the same numbers and the same hash.

use serde::{Deserialize, Serialize};

use super::{Cluster, LayerPlan, Placement, Shares};
use crate::MoeError;

const FORMAT: &str = "artel-placement";
const VERSION: u32 = 1;
/// Units of a share in the hash: nine decimals.
const SHARE_UNITS: f64 = 1e9;
const ALLOWED: &str = "one that `artel eplb plan` writes";

/// Where the experts of all layers are. A value that exists is consistent.
///
/// ```
/// use artel_moe::eplb::{Cluster, LayerPlan, Placement, PlacementFile};
/// let layer = LayerPlan::equal(Placement::new(vec![0, 1, 2, 0], 3)?);
/// let file = PlacementFile::new("tally", Cluster::new(2, 2)?, vec![layer])?;
/// let read = PlacementFile::from_json(&file.to_json())?;
/// assert_eq!((read.experts(), read.hash()), (3, file.hash()));
/// # Ok::<(), artel_moe::MoeError>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct PlacementFile {
    model: String,
    cluster: Cluster,
    layers: Vec<LayerPlan>,
}

impl PlacementFile {
    /// Plans of all layers with experts, in order, for these ranks.
    ///
    /// # Errors
    /// [`MoeError`] for no layer, layers of different numbers of experts, or plans that are not of
    /// these ranks.
    pub fn new(
        model: impl Into<String>,
        cluster: Cluster,
        layers: Vec<LayerPlan>,
    ) -> Result<Self, MoeError> {
        let Some(first) = layers.first() else {
            return Err(MoeError::config("layers of a placement", 0, "1 or more"));
        };
        let experts = first.placement.num_logical();
        let rounded = |LayerPlan { placement, shares }: LayerPlan| {
            MoeError::check_shape("experts of a layer", experts, placement.num_logical())?;
            cluster.check(&placement)?;
            let round = |share: &f64| (share * SHARE_UNITS).round() / SHARE_UNITS;
            let shares = shares.of_slots().iter().map(round).collect();
            Ok(LayerPlan { shares: Shares::new(shares, &placement)?, placement })
        };
        let layers = layers.into_iter().map(rounded).collect::<Result<_, MoeError>>()?;
        Ok(Self { model: model.into(), cluster, layers })
    }

    /// Reads what [`PlacementFile::to_json`] wrote.
    ///
    /// # Errors
    /// [`MoeError`] for other text, another version, unknown or missing fields, plans that are not
    /// consistent, or a hash that is not theirs.
    pub fn from_json(text: &str) -> Result<Self, MoeError> {
        let refuse = |why: String| MoeError::config("placement file", why, ALLOWED);
        // Another version may have other fields: it is told from what it says first.
        let Format { format, version } =
            serde_json::from_str(text).map_err(|error| refuse(error.to_string()))?;
        if format != FORMAT {
            return Err(MoeError::config("format of the placement file", format, FORMAT));
        }
        if version != VERSION {
            return Err(MoeError::config("version of the placement file", version, VERSION));
        }
        let written: Written =
            serde_json::from_str(text).map_err(|error| refuse(error.to_string()))?;
        let Written { model, experts, cluster, layers, hash, .. } = written;
        let plan = |WrittenLayer { physical_to_logical, shares }| {
            let placement = Placement::new(physical_to_logical, experts)?;
            let shares = Shares::new(shares, &placement)?;
            Ok(LayerPlan { placement, shares })
        };
        let plan = |(layer, written)| {
            plan(written)
                .map_err(|error: MoeError| refuse(format!("wrong in layer {layer} ({error})")))
        };
        let layers = layers.into_iter().enumerate().map(plan).collect::<Result<_, MoeError>>()?;
        let file = Self::new(model, cluster.checked()?, layers)?;
        match format!("{:016x}", file.hash()) {
            right if right == hash => Ok(file),
            right => Err(MoeError::config("hash of the placement file", hash, right)),
        }
    }

    /// The file's text.
    pub fn to_json(&self) -> String {
        let layers = self.layers.iter().map(|LayerPlan { placement, shares }| WrittenLayer {
            physical_to_logical: placement.physical_to_logical().to_vec(),
            shares: shares.of_slots().to_vec(),
        });
        let written = Written {
            format: FORMAT.to_owned(),
            version: VERSION,
            model: self.model.clone(),
            experts: self.experts(),
            cluster: WrittenCluster::of(&self.cluster),
            layers: layers.collect(),
            hash: format!("{:016x}", self.hash()),
        };
        let text = serde_json::to_string(&written);
        // One layer a line: a file that people can compare.
        text.expect("this is a bug: numbers and text are JSON").replace("{\"phys", "\n{\"phys")
            + "\n"
    }

    /// Name of the model, for people.
    pub fn model(&self) -> &str {
        &self.model
    }

    /// The ranks.
    pub fn cluster(&self) -> &Cluster {
        &self.cluster
    }

    /// Experts of a layer, `L`.
    pub fn experts(&self) -> usize {
        self.layers[0].placement.num_logical()
    }

    /// One plan a layer with experts, in order; at least one.
    pub fn layers(&self) -> &[LayerPlan] {
        &self.layers
    }

    /// A number that tells placements apart: ranks that compare it know that they have the same
    /// one. FNV-1a of 64 bits over ranks, slots and shares; the model's name does not count.
    pub fn hash(&self) -> u64 {
        let cluster = &self.cluster;
        let counts = [self.experts(), cluster.ranks(), cluster.slots_per_rank(), cluster.nodes()];
        let alive = (0..cluster.ranks()).map(|rank| u64::from(cluster.is_alive(rank)));
        let speeds = cluster.speeds().iter().map(|speed| units(*speed));
        let of_layer = |LayerPlan { placement, shares }: &LayerPlan| {
            let slots = placement.physical_to_logical().iter().map(|logical| *logical as u64);
            let shares = shares.of_slots().iter().map(|share| units(*share));
            slots.chain(shares).collect::<Vec<u64>>()
        };
        let numbers = counts.map(|count| count as u64).into_iter().chain(alive).chain(speeds);
        let bytes = numbers.chain(self.layers.iter().flat_map(of_layer)).flat_map(u64::to_le_bytes);
        bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
        })
    }
}

/// A number in nine decimals: the same whatever the last bit of its text became.
fn units(number: f64) -> u64 {
    (number * SHARE_UNITS).round() as u64
}

#[derive(Deserialize)]
struct Format {
    format: String,
    version: u32,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    format: String,
    version: u32,
    model: String,
    experts: usize,
    cluster: WrittenCluster,
    layers: Vec<WrittenLayer>,
    hash: String,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenCluster {
    ranks: usize,
    slots_per_rank: usize,
    nodes: usize,
    speeds: Vec<f64>,
    dead: Vec<usize>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenLayer {
    physical_to_logical: Vec<i32>,
    shares: Vec<f64>,
}

impl WrittenCluster {
    fn of(cluster: &Cluster) -> Self {
        Self {
            ranks: cluster.ranks(),
            slots_per_rank: cluster.slots_per_rank(),
            nodes: cluster.nodes(),
            speeds: cluster.speeds().to_vec(),
            dead: (0..cluster.ranks()).filter(|rank| !cluster.is_alive(*rank)).collect(),
        }
    }

    fn checked(self) -> Result<Cluster, MoeError> {
        let cluster = Cluster::new(self.ranks, self.slots_per_rank)?.with_nodes(self.nodes)?;
        cluster.with_speeds(self.speeds)?.without(&self.dead)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file() -> PlacementFile {
        let cluster = Cluster::new(3, 2).unwrap().with_speeds(vec![1.0, 0.1, 3.0]).unwrap();
        let placement = Placement::new(vec![0, 1, -1, -1, 0, 2], 3).unwrap();
        let shares = Shares::new(vec![1.0 / 3.0, 1.0, 0.0, 0.0, 2.0 / 3.0, 1.0], &placement);
        let uneven = LayerPlan { shares: shares.unwrap(), placement: placement.clone() };
        let layers = vec![uneven, LayerPlan::equal(placement)];
        PlacementFile::new("a \"model\"", cluster.without(&[1]).unwrap(), layers).unwrap()
    }

    #[test]
    fn what_was_written_is_read() {
        let (file, text) = (file(), file().to_json());
        let read = PlacementFile::from_json(&text).unwrap();
        assert_eq!(read, file);
        assert_eq!((read.model(), read.experts(), read.layers().len()), ("a \"model\"", 3, 2));
        assert_eq!(read.cluster().living().collect::<Vec<_>>(), [0, 2]);
        assert_eq!(read.layers()[0].shares.of_slots()[0], 0.333333333);
        // Writing what was read gives the same file.
        assert_eq!(read.to_json(), text);
        assert_eq!(text.lines().count(), 3);
    }

    #[test]
    fn the_hash_tells_placements_apart_and_ignores_the_name() {
        let (first, plain) = (file(), Placement::new(vec![0, 1, 2, 0], 3).unwrap());
        let of = |nodes, plans| {
            let cluster = Cluster::new(2, 2).unwrap().with_nodes(nodes).unwrap();
            PlacementFile::new("", cluster, plans).unwrap().hash()
        };
        let equal = LayerPlan::equal(plain.clone());
        let shares = Shares::new(vec![0.75, 1.0, 1.0, 0.25], &plain).unwrap();
        let shifted = LayerPlan { placement: plain, shares };
        let moved = LayerPlan::equal(Placement::new(vec![1, 0, 2, 0], 3).unwrap());
        let hashes = [
            first.hash(),
            of(1, vec![equal.clone()]),
            of(2, vec![equal.clone()]),
            of(1, vec![equal.clone(), equal.clone()]),
            of(1, vec![shifted]),
            of(1, vec![moved]),
        ];
        let distinct: std::collections::BTreeSet<u64> = hashes.into_iter().collect();
        assert_eq!(distinct.len(), hashes.len());
        assert_eq!(PlacementFile { model: "other".into(), ..first.clone() }.hash(), first.hash());
    }

    #[test]
    fn wrong_files_are_refused_with_the_reason() {
        let text = file().to_json();
        let refused = |from: &str, to: &str| {
            assert!(text.contains(from), "{text}");
            PlacementFile::from_json(&text.replacen(from, to, 1)).unwrap_err().to_string()
        };
        for (from, to, why) in [
            ("artel-placement", "else", "format of the placement file is else"),
            ("\"version\":1", "\"version\":2", "version of the placement file is 2, but must be 1"),
            ("\"nodes\":1", "\"nodes\":2", "number of nodes is 2"),
            ("\"nodes\":1", "\"nodes\":1,\"color\":1", "unknown field `color`"),
            ("\"ranks\":3", "\"ranks\":2", "speeds of ranks has 3 elements, expected 2"),
            ("\"dead\":[1]", "\"dead\":[7]", "dead ranks[0] is 7"),
            ("\"dead\":[1]", "\"dead\":[0]", "physical_to_logical[0] is 0"),
            ("[0,1,-1,-1,0,2]", "[0,1,-1,-1,0,3]", "wrong in layer 0 (physical_to_logical[5] is 3"),
            ("[0,1,-1,-1,0,2]", "[0,1,-1,-1,2]", "shares has 6 elements, expected 5"),
            ("0.333333333", "0.4", "sums of the shares of experts[0]"),
            ("[0,1,-1,-1,0,2]", "[1,0,-1,-1,0,2]", "sums of the shares"),
            ("\"hash\":\"", "\"hash\":\"f", "hash of the placement file is f"),
            ("\"experts\":3", "\"experts\":4", "logical_replica_count[3] is 0"),
            ("\"experts\":3,", "", "missing field `experts`"),
        ] {
            let error = refused(from, to);
            assert!(error.contains(why), "{why}: {error}");
        }
        for cut in [0, 1, text.len() / 2, text.len() - 3] {
            assert!(PlacementFile::from_json(&text[..cut]).is_err());
        }
        let cluster = || Cluster::new(1, 2).unwrap();
        assert!(PlacementFile::new("", cluster(), vec![]).is_err());
        let plan = |slots, experts| LayerPlan::equal(Placement::new(slots, experts).unwrap());
        let mixed = vec![plan(vec![0, 1], 2), plan(vec![0, 0], 1)];
        assert!(PlacementFile::new("", cluster(), mixed).is_err());
        assert!(PlacementFile::new("", cluster(), vec![plan(vec![0, 1, 0], 2)]).is_err());
    }
}
