use artel_moe::quant::Format;

use super::*;
use crate::{KvCache, LogitsOf, SequenceInput};

pub(super) fn fixture(name: &str) -> Checkpoint {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name);
    Checkpoint::open(&folder).unwrap()
}

pub(super) fn logits(model: &Model) -> Vec<f32> {
    let tokens: Vec<u32> = (0..24).map(|index| index * 5 % 67).collect();
    let mut cache = model.new_cache(KvCache::blocks_for(tokens.len()));
    let blocks = cache.all_blocks();
    let logits_of = LogitsOf::AllTokens;
    let input = SequenceInput { blocks: &blocks, cached: 0, tokens: &tokens, logits_of };
    let mut workspace = model.new_workspace();
    model.forward(&mut workspace, &mut cache, &[input]).unwrap().to_vec()
}

/// Formats with codes, as options.
pub(super) fn every_option() -> Vec<QuantizeOptions> {
    let plain = [Format::F32, Format::F16, Format::Bf16];
    let options = |format| QuantizeOptions { format, group: 16, zero_points: false };
    let coded = Format::ALL.into_iter().filter(|format| !plain.contains(format)).map(options);
    let zero_points = QuantizeOptions { zero_points: true, ..options(Format::Int4W4A16) };
    coded.chain([zero_points]).collect()
}

#[test]
fn folders_of_every_format_load_as_what_was_written() {
    let checkpoint = fixture("mixtral_top2");
    for options in every_option() {
        let out = tempfile::tempdir().unwrap();
        let mut reports = Vec::new();
        let done =
            quantize(&checkpoint, &options, out.path(), &mut |done| reports.push(done)).unwrap();
        assert_eq!(reports.last().unwrap().bytes_done, reports[0].bytes_total);
        let model = Model::load(&Checkpoint::open(out.path()).unwrap(), &LoadOptions::default());
        let model = model.unwrap_or_else(|why| panic!("{options:?}: {why}"));
        let experts = model.parameters().by_group().find(|(group, ..)| group.name() == "experts");
        assert_eq!(experts.unwrap().1, options.format.name());
        assert_eq!(done.layers.len(), 2);
        let limit = if options.format.number_bits() == 4 { 0.15 } else { 0.04 };
        assert!(done.layers.iter().all(|layer| (1e-4..limit).contains(&layer.error)), "{done:?}");

        // Formats whose groups are not chosen are converted to the same codes while loading.
        if !matches!(options.format, Format::Int4W4A16 | Format::Int8W8A16) {
            let format = Some(options.format);
            let load = LoadOptions { format, ..LoadOptions::default() };
            let expected = logits(&Model::load(&checkpoint, &load).unwrap());
            let found = logits(&model);
            let same =
                found.iter().zip(&expected).all(|(a, b)| (a - b).abs() <= 1e-5 * b.abs().max(1.0));
            assert!(same, "{options:?}");
        }
    }
}

#[test]
fn what_cannot_be_quantised_is_refused_by_name() {
    let out = tempfile::tempdir().unwrap();
    let options = every_option()[0];
    let run = |name: &str, options: QuantizeOptions| {
        let result = quantize(&fixture(name), &options, &out.path().join(name), &mut |_| ());
        result.unwrap_err().to_string()
    };
    let plain = QuantizeOptions { format: Format::Bf16, ..options };
    assert!(run("mixtral_top2", plain).contains("bf16 is no format of codes"));
    let zero_points = QuantizeOptions { zero_points: true, ..options };
    assert!(run("mixtral_top2", zero_points).contains("has no zero points"));
    assert!(run("minimax_m2_fp8", options).contains("quantised already"));
    assert!(run("gpt_oss_plain", options).contains("all experts of a layer in one tensor"));
    std::fs::write(out.path().join("file"), "x").unwrap();
    let full = quantize(&fixture("mixtral_top2"), &options, out.path(), &mut |_| ());
    assert!(full.unwrap_err().to_string().contains("has files in it"));
}
