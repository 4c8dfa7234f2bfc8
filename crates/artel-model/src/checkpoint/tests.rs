use std::fs;

use proptest::prelude::*;
use tempfile::TempDir;

use super::*;

const SHARD_1: &str = "model-00001-of-00002.safetensors";

/// A safetensors file with any header over any data.
fn safetensors(header: &str, data: &[u8]) -> Vec<u8> {
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend_from_slice(header.as_bytes());
    file.extend_from_slice(data);
    file
}

fn sound() -> Vec<u8> {
    let header = r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},
                     "b":{"dtype":"BF16","shape":[1,3],"data_offsets":[8,14]}}"#;
    safetensors(header, &[0; 14])
}

fn folder(files: &[(&str, &[u8])]) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, content) in files {
        fs::write(folder.path().join(name), content).unwrap();
    }
    folder
}

fn open(files: &[(&str, &[u8])]) -> Result<Checkpoint> {
    Checkpoint::open(folder(files).path())
}

fn open_weights(weights: &[u8]) -> Result<Checkpoint> {
    open(&[("config.json", b"{}"), ("model.safetensors", weights)])
}

fn message(opened: Result<Checkpoint>) -> String {
    opened.expect_err("the checkpoint is broken").to_string()
}

fn index(shard: &str) -> String {
    format!(r#"{{"weight_map": {{"a": "{shard}", "b": "{SHARD_1}"}}}}"#)
}

#[test]
fn a_sound_folder_opens() {
    let checkpoint = open_weights(&sound()).unwrap();
    let names: Vec<_> = checkpoint.tensors().map(|(name, _)| name).collect();
    assert_eq!(names, ["a", "b"]);
    let b = checkpoint.tensor("b").unwrap();
    assert_eq!((b.dtype, &b.shape[..], b.bytes.len()), (Dtype::BF16, &[1, 3][..], 6));
    assert!(b.file.ends_with("model.safetensors"));
    assert!(checkpoint.tensor("c").is_none());
}

#[test]
fn shards_are_joined_and_only_what_the_index_names_is_there() {
    let files: [(&str, &[u8]); 3] = [
        ("config.json", b"{}"),
        ("model.safetensors.index.json", br#"{"weight_map": {"b": "x.safetensors"}}"#),
        ("x.safetensors", &sound()),
    ];
    let checkpoint = open(&files).unwrap();
    assert_eq!(checkpoint.tensors().count(), 1);
    assert!(checkpoint.tensor("b").is_some());
}

#[test]
fn missing_files_are_named() {
    let weights = sound();
    assert!(message(open(&[("model.safetensors", &weights)])).contains("no config.json"));
    let error = message(open(&[("config.json", b"{}")]));
    assert!(error.contains("model.safetensors or model.safetensors.index.json"), "{error}");
    let with_index = |index: &str| {
        open(&[("config.json", b"{}"), ("model.safetensors.index.json", index.as_bytes())])
    };
    assert!(message(with_index(&index(SHARD_1))).contains(SHARD_1));
    let error = message(Checkpoint::open("no/such/folder".as_ref()));
    assert!(error.contains("no/such/folder is not a folder"), "{error}");
}

#[test]
fn an_index_cannot_leave_the_folder() {
    for shard in ["../x.safetensors", "/etc/passwd", "a/b.safetensors", "..", "", "C:x", "a\\\\b"] {
        let index = index(shard);
        let files: [(&str, &[u8]); 3] = [
            ("config.json", b"{}"),
            ("model.safetensors.index.json", index.as_bytes()),
            (SHARD_1, &sound()),
        ];
        let error = open(&files).unwrap_err();
        assert!(matches!(error, ModelError::ShardPath { .. }), "{shard:?}: {error}");
    }
}

#[test]
fn a_wrong_index_is_an_error() {
    let cases = [
        ("[]", "is not valid JSON"),
        ("{}", "weight_map is missing"),
        (r#"{"weight_map": 3}"#, "weight_map is 3"),
        (r#"{"weight_map": {"a": [1]}}"#, "weight_map.a is [1], expected a string"),
        (r#"{"weight_map": {"missing": "model.safetensors"}}"#, "places tensor missing in it"),
    ];
    for (index, expected) in cases {
        let files: [(&str, &[u8]); 3] = [
            ("config.json", b"{}"),
            ("model.safetensors.index.json", index.as_bytes()),
            ("model.safetensors", &sound()),
        ];
        let error = message(open(&files));
        assert!(error.contains(expected), "{index}: {error}");
    }
}

#[test]
fn truncated_files_are_errors_at_every_length() {
    let whole = sound();
    for length in 0..whole.len() {
        let error = open_weights(&whole[..length]).unwrap_err();
        assert!(matches!(error, ModelError::CorruptFile { .. }), "{length}: {error}");
    }
    let longer = [&whole[..], &[0]].concat();
    let error = message(open_weights(&longer));
    assert!(error.contains("promises 14 bytes of data, the file has 15"), "{error}");
}

#[test]
fn hostile_headers_are_errors() {
    let one = |entry: &str| safetensors(&format!("{{\"a\":{entry}}}"), &[0; 8]);
    let huge_dimension = usize::MAX;
    let cases = [
        u64::MAX.to_le_bytes().to_vec(),
        [&(1u64 << 40).to_le_bytes()[..], b"{}"].concat(),
        safetensors("not json", &[]),
        safetensors(&"[".repeat(100_000), &[]),
        safetensors(&"{\"a\":".repeat(100_000), &[]),
        safetensors("{\"a\":1}", &[]),
        safetensors("\u{FFFD}", &[]),
        // Overlapping, reversed, beyond the end, leaving a gap, of the wrong size.
        safetensors(
            r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},
                "b":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}}"#,
            &[0; 12],
        ),
        one(r#"{"dtype":"F32","shape":[2],"data_offsets":[8,0]}"#),
        one(r#"{"dtype":"F32","shape":[4],"data_offsets":[0,16]}"#),
        one(r#"{"dtype":"F32","shape":[1],"data_offsets":[4,8]}"#),
        one(r#"{"dtype":"F32","shape":[3],"data_offsets":[0,8]}"#),
        // Sizes that overflow.
        one(&format!(r#"{{"dtype":"F32","shape":[{huge_dimension}],"data_offsets":[0,8]}}"#)),
        one(r#"{"dtype":"F32","shape":[4294967296,4294967296,2],"data_offsets":[0,8]}"#),
        one(r#"{"dtype":"U8","shape":[18446744073709551615],
                "data_offsets":[0,18446744073709551615]}"#),
        one(r#"{"dtype":"F32","shape":[-1],"data_offsets":[0,8]}"#),
        one(r#"{"dtype":"F33","shape":[2],"data_offsets":[0,8]}"#),
    ];
    for (number, file) in cases.iter().enumerate() {
        let error = open_weights(file).unwrap_err();
        assert!(matches!(error, ModelError::CorruptFile { .. }), "case {number}: {error}");
    }
}

#[test]
fn hostile_configs_are_errors() {
    let nested = "{\"a\":".repeat(100_000);
    for config in ["", "[]", "3", "{\"a\": 1e999}", "{\"a\"", &nested] {
        let error = open(&[("config.json", config.as_bytes()), ("model.safetensors", &sound())]);
        assert!(
            matches!(error, Err(ModelError::Json { .. })),
            "{}",
            &config[..config.len().min(9)]
        );
    }
}

proptest! {
    /// Whatever happens to the bytes, opening returns, and what it returns stays within the file.
    #[test]
    fn mutated_files_never_panic(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..12),
        cut in prop::option::of(any::<prop::sample::Index>()),
    ) {
        let mut file = sound();
        for (place, byte) in changes {
            let place = place.index(file.len());
            file[place] = byte;
        }
        if let Some(cut) = cut {
            file.truncate(cut.index(file.len()));
        }
        if let Ok(checkpoint) = open_weights(&file) {
            let bytes: usize = checkpoint.tensors().map(|(_, tensor)| tensor.bytes.len()).sum();
            prop_assert!(bytes <= file.len());
        }
    }

    #[test]
    fn mutated_indices_never_panic(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
    ) {
        let mut index = index(SHARD_1).into_bytes();
        for (place, byte) in changes {
            let place = place.index(index.len());
            index[place] = byte;
        }
        let weights = sound();
        let opened = open(&[
            ("config.json", b"{}"),
            ("model.safetensors.index.json", &index),
            (SHARD_1, &weights),
        ]);
        prop_assert!(opened.is_err() || opened.unwrap().tensors().count() <= 2);
    }
}
