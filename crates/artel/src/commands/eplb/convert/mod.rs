//! `artel eplb convert`: traces from what other programs recorded.

mod array;
mod tensorrt;

use std::fs::File;
use std::path::Path;

use anyhow::{Context, ensure};
use artel_moe::eplb::trace::{TraceHeader, TraceShape, TraceWriter};

use crate::cli::{EplbConvertArgs, TraceLayoutArg};
use array::Array;

/// Steps of load as they were recorded elsewhere.
struct Recorded {
    shape: TraceShape,
    /// Number, source rank and counts `[layers][L]`, in the order of a trace.
    records: Vec<(u64, usize, Vec<Vec<i32>>)>,
}

/// Writes the trace.
///
/// # Errors
/// When the input is not of the layout, or a file cannot be read or written.
pub fn convert(args: &EplbConvertArgs) -> anyhow::Result<()> {
    let input = &args.input;
    let recorded = match args.from {
        TraceLayoutArg::Ids => {
            let experts = args.experts.context("--from ids needs --experts")?;
            of_ids(&Array::read(input)?, experts.get(), args.step_tokens.get())
        }
        TraceLayoutArg::Counts => of_counts(
            &Array::read(input)?,
            args.top_k.context("--from counts needs --top-k")?.get(),
        ),
        TraceLayoutArg::TensorrtLlm => tensorrt::read(input),
    };
    let recorded = recorded.with_context(|| format!("in {}", input.display()))?;
    write(&args.output, &args.model, &recorded)?;
    let TraceShape { layers, experts, top_k, source_ranks } = recorded.shape;
    println!(
        "{}: {} records, {layers} layers of {experts} experts, {top_k} a token, {source_ranks} \
         source rank(s)",
        args.output.display(),
        recorded.records.len()
    );
    Ok(())
}

fn write(path: &Path, model: &str, recorded: &Recorded) -> anyhow::Result<()> {
    // Nothing is written over before the shape is known to be legal.
    let header = TraceHeader::new(recorded.shape, model)?;
    let file = File::create(path).with_context(|| format!("cannot write {}", path.display()))?;
    let mut writer = TraceWriter::new(file, header)?;
    for (step, source_rank, counts) in &recorded.records {
        writer
            .write(*step, *source_rank, counts)
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

/// Ids `[tokens, layers, K]`: every so many tokens make a step.
fn of_ids(array: &Array, experts: usize, step_tokens: usize) -> anyhow::Result<Recorded> {
    let [_, layers, top_k] = array.shape;
    ensure!(layers > 0 && top_k > 0, "the ids are [{}, {layers}, {top_k}]", array.shape[0]);
    let mut records = Vec::new();
    for (step, tokens) in array.values.chunks(step_tokens * layers * top_k).enumerate() {
        let mut counts = vec![vec![0; experts]; layers];
        for (position, &id) in tokens.iter().enumerate() {
            let layer = position / top_k % layers;
            match usize::try_from(id).ok().and_then(|id| counts[layer].get_mut(id)) {
                Some(count) => *count += 1,
                None => {
                    let token = step * step_tokens + position / top_k / layers;
                    ensure!(
                        id == -1,
                        "token {token} has expert {id} in layer {layer}, but must have -1 or one \
                         below --experts {experts}"
                    );
                }
            }
        }
        records.push((step as u64, 0, counts));
    }
    Ok(Recorded { shape: TraceShape { layers, experts, top_k, source_ranks: 1 }, records })
}

/// Counts `[steps, layers, L]`.
fn of_counts(array: &Array, top_k: usize) -> anyhow::Result<Recorded> {
    let [_, layers, experts] = array.shape;
    ensure!(layers > 0 && experts > 0, "the counts are [{}, {layers}, {experts}]", array.shape[0]);
    let mut records = Vec::new();
    for (step, counts) in array.values.chunks(layers * experts).enumerate() {
        let count = |&count: &i64| {
            i32::try_from(count).ok().filter(|count| *count >= 0).with_context(|| {
                format!("step {step} has a count of {count}, but must have 0 to {}", i32::MAX)
            })
        };
        let counts = counts.iter().map(count).collect::<anyhow::Result<Vec<i32>>>()?;
        records.push((step as u64, 0, counts.chunks(experts).map(<[i32]>::to_vec).collect()));
    }
    Ok(Recorded { shape: TraceShape { layers, experts, top_k, source_ranks: 1 }, records })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn array(shape: [usize; 3], values: &[i64]) -> Array {
        Array { shape, values: values.to_vec() }
    }

    #[test]
    fn ids_are_counted_by_step_and_layer() {
        // Three tokens, two layers, two experts each; -1 is none.
        let ids = array([3, 2, 2], &[0, 1, 2, 2, 1, 3, 0, -1, 3, 3, 1, 0]);
        let recorded = of_ids(&ids, 4, 2).unwrap();
        assert_eq!(recorded.records[0], (0, 0, vec![vec![1, 2, 0, 1], vec![1, 0, 2, 0]]));
        assert_eq!(recorded.records[1], (1, 0, vec![vec![0, 0, 0, 2], vec![1, 1, 0, 0]]));
        assert_eq!(recorded.shape.top_k, 2);
        for (wrong, said) in [(4, "has expert 4"), (-2, "has expert -2")] {
            let ids = array([2, 1, 1], &[0, wrong]);
            let error = of_ids(&ids, 4, 2).err().unwrap().to_string();
            assert!(error.contains("token 1") && error.contains(said), "{error}");
        }
        assert!(of_ids(&array([3, 0, 2], &[]), 4, 2).is_err());
    }

    #[test]
    fn counts_become_steps() {
        let recorded = of_counts(&array([2, 1, 3], &[1, 2, 3, 0, 0, 5]), 2).unwrap();
        assert_eq!(recorded.records[1], (1, 0, vec![vec![0, 0, 5]]));
        assert_eq!((recorded.shape.layers, recorded.shape.experts), (1, 3));
        for wrong in [-1, 1 << 31] {
            assert!(of_counts(&array([1, 1, 2], &[1, wrong]), 2).is_err());
        }
    }
}
