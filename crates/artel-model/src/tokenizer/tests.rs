use proptest::prelude::*;
use serde_json::Value;

use super::*;

/// A checkpoint needs a model beside its tokenizer: here an empty one.
const NO_WEIGHTS: &[u8] = b"\x02\0\0\0\0\0\0\0{}";

fn checkpoint(tokenizer: &'static [u8]) -> Checkpoint {
    let files: [(&str, &'static [u8]); 3] =
        [("config.json", b"{}"), ("model.safetensors", NO_WEIGHTS), (FILE, tokenizer)];
    Checkpoint::from_static("test", &files).unwrap()
}

fn byte_level() -> (Tokenizer, Vec<Value>) {
    read(
        include_bytes!("../../tests/fixtures/text/byte_level/tokenizer.json"),
        include_str!("../../tests/fixtures/text/byte_level/cases.json"),
    )
}

fn byte_fallback() -> (Tokenizer, Vec<Value>) {
    read(
        include_bytes!("../../tests/fixtures/text/byte_fallback/tokenizer.json"),
        include_str!("../../tests/fixtures/text/byte_fallback/cases.json"),
    )
}

fn read(tokenizer: &'static [u8], cases: &str) -> (Tokenizer, Vec<Value>) {
    let tokenizer = Tokenizer::read(&checkpoint(tokenizer)).unwrap();
    (tokenizer, serde_json::from_str(cases).unwrap())
}

fn ids(case: &Value, field: &str) -> Vec<u32> {
    case[field].as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

fn streamed(tokenizer: &Tokenizer, ids: &[u32]) -> String {
    let mut stream = tokenizer.stream();
    let mut text = String::new();
    for &id in ids {
        let part = stream.push(id).unwrap();
        assert!(!part.contains('\u{FFFD}'), "half a character came out in {part:?}");
        text += &part;
    }
    text + &stream.finish().unwrap()
}

#[test]
fn encodes_and_decodes_as_the_reference_does() {
    for (tokenizer, cases) in [byte_level(), byte_fallback()] {
        assert_eq!(cases.len(), 8);
        for case in &cases {
            let text = case["text"].as_str().unwrap();
            assert_eq!(tokenizer.encode(text).unwrap(), ids(case, "ids"), "{text:?}");
            assert_eq!(tokenizer.encode_verbatim(text).unwrap(), ids(case, "verbatim"), "{text:?}");
            let decoded = tokenizer.decode(&ids(case, "ids")).unwrap();
            assert_eq!(decoded, case["decoded"].as_str().unwrap());
        }
    }
}

#[test]
fn a_stream_says_what_decoding_at_once_says() {
    for (tokenizer, cases) in [byte_level(), byte_fallback()] {
        for case in &cases {
            let ids = ids(case, "ids");
            assert_eq!(streamed(&tokenizer, &ids), tokenizer.decode(&ids).unwrap());
        }
    }
}

#[test]
fn an_unfinished_character_is_held_back_until_the_end() {
    let (tokenizer, _) = byte_level();
    let fox = tokenizer.encode_verbatim("🦊").unwrap();
    assert!(fox.len() > 1, "the case needs a character of several tokens");
    let mut stream = tokenizer.stream();
    for &id in &fox[..fox.len() - 1] {
        assert_eq!(stream.push(id).unwrap(), "");
    }
    assert_eq!(stream.finish().unwrap(), "\u{FFFD}");
}

#[test]
fn bytes_that_never_become_a_character_do_not_stop_the_stream() {
    let (tokenizer, _) = byte_level();
    let fox = tokenizer.encode_verbatim("🦊").unwrap();
    let word = tokenizer.encode_verbatim("dog").unwrap();
    let mut stream = tokenizer.stream();
    let mut text = String::new();
    for id in std::iter::repeat_n(fox[0], 40).chain(word) {
        text += &stream.push(id).unwrap();
    }
    assert!(text.ends_with("dog"), "{text:?}");
    assert!(text.contains('\u{FFFD}'));
}

#[test]
fn unknown_ids_are_left_out() {
    let (tokenizer, _) = byte_level();
    assert_eq!(tokenizer.decode(&[u32::MAX, 1_000_000]).unwrap(), "");
    assert_eq!(streamed(&tokenizer, &[u32::MAX, 1_000_000]), "");
}

#[test]
fn vocabulary_is_looked_up_both_ways() {
    let (tokenizer, _) = byte_level();
    let end = tokenizer.token_id("<|end|>").unwrap();
    assert_eq!(tokenizer.token_text(end).as_deref(), Some("<|end|>"));
    assert_eq!(tokenizer.token_id("no such token"), None);
    assert!(tokenizer.vocabulary() > 256);
}

#[test]
fn missing_and_broken_tokenizers_are_errors() {
    let files: [(&str, &'static [u8]); 2] =
        [("config.json", b"{}"), ("model.safetensors", NO_WEIGHTS)];
    let bare = Checkpoint::from_static("bare", &files).unwrap();
    let error = Tokenizer::read(&bare).unwrap_err();
    assert_eq!(
        error.to_string(),
        "bare has no tokenizer.json, which is needed for turning text into token ids"
    );
    for broken in [&b"{}"[..], b"[]", b"{\"model\": {\"type\": \"BPE\", \"vocab\": 3}}"] {
        let error = Tokenizer::read(&checkpoint(broken)).unwrap_err();
        assert!(error.to_string().contains("test/tokenizer.json does not load"), "{error}");
    }
    for broken in [&b""[..], b"[1", b"{\"decoder\": ,}"] {
        let error = Tokenizer::read(&checkpoint(broken)).unwrap_err();
        assert!(error.to_string().contains("test/tokenizer.json is not valid JSON"), "{error}");
    }
}

proptest! {
    /// Whatever happens to the file, loading returns, and a tokenizer that loads encodes.
    #[test]
    fn mutated_tokenizers_never_panic(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        fallback in any::<bool>(),
    ) {
        let mut file = match fallback {
            true => include_bytes!("../../tests/fixtures/text/byte_fallback/tokenizer.json").to_vec(),
            false => include_bytes!("../../tests/fixtures/text/byte_level/tokenizer.json").to_vec(),
        };
        for (place, byte) in changes {
            let place = place.index(file.len());
            file[place] = byte;
        }
        if let Ok(tokenizer) = Tokenizer::read(&checkpoint(file.leak())) {
            let ids = tokenizer.encode("The dog, 🦊.").unwrap_or_default();
            prop_assert!(tokenizer.decode(&ids).is_ok());
        }
    }
}

#[test]
fn text_ids_are_the_vocabulary_without_special_tokens() {
    for (tokenizer, _) in [byte_level(), byte_fallback()] {
        let ids = tokenizer.text_ids();
        assert!(ids.is_sorted() && !ids.is_empty() && ids.len() < tokenizer.vocabulary());
        let begins_with = tokenizer.encode("").unwrap();
        assert!(begins_with.iter().all(|id| !ids.contains(id)));
        assert!(ids.iter().all(|id| tokenizer.token_text(*id).is_some()));
    }
}

#[test]
fn a_tokenizer_needs_no_model_beside_it() {
    let folder = tempfile::tempdir().unwrap();
    let file = include_bytes!("../../tests/fixtures/text/byte_level/tokenizer.json");
    std::fs::write(folder.path().join(FILE), file).unwrap();
    let texts = Checkpoint::open_texts(folder.path()).unwrap();
    assert!(Tokenizer::read(&texts).unwrap().vocabulary() > 0);
    assert!(Checkpoint::open(folder.path()).is_err());
    assert!(Checkpoint::open_texts(&folder.path().join("nowhere")).is_err());
}
