//! The folder that TensorRT-LLM fills when EXPERT_STATISTIC_ITER_RANGE is set: `meta_info.json` with
//! the number of experts, and a safetensors file for each rank in which the int64 tensor
//! `ITERATION_LAYER` holds how often each expert was chosen.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use artel_moe::eplb::trace::TraceShape;
use safetensors::{Dtype, SafeTensors};
use serde::Deserialize;

use super::Recorded;

/// What `meta_info.json` says; it may say more.
#[derive(Deserialize)]
struct MetaInfo {
    num_experts: usize,
    num_experts_per_token: usize,
}

/// Counts by (iteration, source rank) and layer.
type Counts = BTreeMap<(u64, usize), BTreeMap<u64, Vec<i32>>>;

/// Reads the folder. Layers are those that are named, in order.
///
/// # Errors
/// When a file is missing or of another form, or a layer is missing in a step.
pub fn read(folder: &Path) -> anyhow::Result<Recorded> {
    let meta = folder.join("meta_info.json");
    let text =
        fs::read_to_string(&meta).with_context(|| format!("cannot read {}", meta.display()))?;
    let MetaInfo { num_experts, num_experts_per_token } =
        serde_json::from_str(&text).context("in meta_info.json")?;
    let files = files(folder)?;
    ensure!(!files.is_empty(), "there is no rank0.safetensors");
    let mut counts = Counts::new();
    for (rank, path) in files.iter().enumerate() {
        let bytes = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        add(&mut counts, rank, &bytes, num_experts)
            .with_context(|| format!("in {}", path.display()))?;
    }
    let layers: BTreeSet<u64> = counts.values().flat_map(BTreeMap::keys).copied().collect();
    let shape = TraceShape {
        layers: layers.len(),
        experts: num_experts,
        top_k: num_experts_per_token,
        source_ranks: files.len(),
    };
    let mut records = Vec::new();
    for ((iteration, rank), of_layers) in counts {
        ensure!(
            of_layers.len() == layers.len(),
            "iteration {iteration} of rank {rank} has {} of {} layers",
            of_layers.len(),
            layers.len()
        );
        records.push((iteration, rank, of_layers.into_values().collect()));
    }
    Ok(Recorded { shape, records })
}

/// `rank0.safetensors`, `rank1.safetensors` and so on, without gaps.
fn files(folder: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let path = |rank: usize| folder.join(format!("rank{rank}.safetensors"));
    Ok((0..).map(path).take_while(|path| path.exists()).collect())
}

fn add(counts: &mut Counts, rank: usize, bytes: &[u8], experts: usize) -> anyhow::Result<()> {
    let tensors = SafeTensors::deserialize(bytes).context("not a safetensors file")?;
    for (name, tensor) in tensors.tensors() {
        let numbers = name.split_once('_');
        let numbers =
            numbers.and_then(|(step, layer)| Some((step.parse().ok()?, layer.parse().ok()?)));
        let (step, layer): (u64, u64) =
            numbers.with_context(|| format!("tensor {name} is not named ITERATION_LAYER"))?;
        ensure!(
            tensor.dtype() == Dtype::I64 && tensor.shape() == [experts],
            "tensor {name} is {:?} {:?}, but must be I64 [{experts}]",
            tensor.dtype(),
            tensor.shape()
        );
        let (values, _) = tensor.data().as_chunks::<8>();
        let count = |bytes: &[u8; 8]| i32::try_from(i64::from_le_bytes(*bytes));
        let values: Result<Vec<i32>, _> = values.iter().map(count).collect();
        let values = values.with_context(|| format!("tensor {name} has a count out of range"))?;
        counts.entry((step, rank)).or_default().insert(layer, values);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use safetensors::tensor::TensorView;

    use super::*;

    fn save(folder: &Path, rank: usize, tensors: &[(&str, &[i64])]) {
        let bytes: Vec<Vec<u8>> = tensors
            .iter()
            .map(|(_, values)| values.iter().flat_map(|value| value.to_le_bytes()).collect())
            .collect();
        let views = tensors.iter().zip(&bytes).map(|((name, values), bytes)| {
            (*name, TensorView::new(Dtype::I64, vec![values.len()], bytes).unwrap())
        });
        let path = folder.join(format!("rank{rank}.safetensors"));
        safetensors::serialize_to_file(views, None, &path).unwrap();
    }

    fn folder() -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        let meta = r#"{"num_experts": 3, "num_experts_per_token": 2, "ep_size": 2}"#;
        fs::write(folder.path().join("meta_info.json"), meta).unwrap();
        folder
    }

    #[test]
    fn ranks_and_iterations_become_records() {
        let folder = folder();
        // Layers 3 and 10 in the order of numbers, not of names.
        let first: &[(&str, &[i64])] =
            &[("9_10", &[1, 2, 3]), ("9_3", &[4, 0, 0]), ("10_3", &[0; 3]), ("10_10", &[0, 1, 0])];
        save(folder.path(), 0, first);
        save(folder.path(), 1, &[("9_3", &[7, 0, 0]), ("9_10", &[0, 0, 8])]);
        let recorded = read(folder.path()).unwrap();
        let places: Vec<_> = recorded.records.iter().map(|r| (r.0, r.1)).collect();
        assert_eq!(places, [(9, 0), (9, 1), (10, 0)]);
        assert_eq!(recorded.records[0].2, [vec![4, 0, 0], vec![1, 2, 3]]);
        let TraceShape { layers, experts, top_k, source_ranks } = recorded.shape;
        assert_eq!((layers, experts, top_k, source_ranks), (2, 3, 2, 2));
    }

    #[test]
    fn folders_of_another_form_are_refused() {
        let said = |tensors: &[(&str, &[i64])]| {
            let folder = folder();
            if !tensors.is_empty() {
                save(folder.path(), 0, tensors);
            }
            format!("{:#}", read(folder.path()).err().unwrap())
        };
        assert!(said(&[]).contains("rank0.safetensors"));
        assert!(said(&[("1_0", &[0; 4])]).contains("must be I64 [3]"));
        assert!(said(&[("layer", &[0; 3])]).contains("ITERATION_LAYER"));
        assert!(said(&[("1_0", &[0, -1, 1 << 40])]).contains("out of range"));
        assert!(said(&[("1_0", &[0; 3]), ("2_1", &[0; 3])]).contains("1 of 2 layers"));
        let empty = tempfile::tempdir().unwrap();
        assert!(read(empty.path()).err().unwrap().to_string().contains("meta_info.json"));
    }
}
